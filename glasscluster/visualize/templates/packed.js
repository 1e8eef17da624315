"use strict";
/* Unpacks the recorded graph that the page carries.
   Counterpart: glasscluster/sim/recording/packed.py, which packs it.

   A column is stored as the steps from each number to the next, all lowest bytes first, then the next bytes;
   all columns together are one deflated stream in base64. No DOM here, nor in any file that names a
   counterpart. */
const GlassPack = (function () {
  const FORMAT = "glasscluster.graph/3";
  const WIDE = /^(flops|bytes|memory_.*)$/; // columns whose numbers may pass 2^31

  async function inflate(base64) {
    const packed = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  /* `n` numbers of `width` bytes a step, from byte `at` of the stream. */
  function column(raw, at, width, n, wide) {
    const out = wide ? new Float64Array(n) : new Int32Array(n);
    const byte = (place, i) => raw[at + place * n + i];
    const word = (place, i) =>
      byte(place, i) | (byte(place + 1, i) << 8) | (byte(place + 2, i) << 16) | (byte(place + 3, i) << 24);
    let sum = 0;
    for (let i = 0; i < n; i++) {
      if (width === 1) sum += (byte(0, i) << 24) >> 24;
      else if (width === 2) sum += ((byte(0, i) | (byte(1, i) << 8)) << 16) >> 16;
      else if (width === 4) sum += word(0, i);
      else sum += word(4, i) * 4294967296 + (word(0, i) >>> 0);
      out[i] = sum;
    }
    return out;
  }

  /* The columns by name. */
  async function unpack(packed) {
    const raw = await inflate(packed.data);
    const columns = {};
    let at = 0;
    for (const [name, width, n] of packed.columns) {
      columns[name] = column(raw, at, width, n, WIDE.test(name));
      at += n * width;
    }
    return columns;
  }

  /* The graph, with what does not change while times do. */
  async function loadPacked(packed) {
    return new GlassGraph.ExecutionGraph(await unpack(packed), packed);
  }

  /* Little-endian float64 numbers from base64. */
  function reals(base64) {
    return new Float64Array(Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)).buffer);
  }

  return { FORMAT, unpack, loadPacked, reals };
})();
