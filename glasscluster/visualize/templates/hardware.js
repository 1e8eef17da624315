"use strict";
/* The figures that cost an event, as the page carries them. Counterpart: glasscluster/sim/time/hardware.py
   (sim/recording/packed.py says which figures; a rate without limit is null there, and Infinity here). */
const GlassHardware = (function () {
  const rate = (figure) => (figure === null ? Infinity : figure);

  /* The same cluster with other links or GPUs, each figure times a factor. */
  function scaled(hw, { bandwidth = 1, latency = 1, flops = 1 }) {
    const links = hw.links.map((link) => ({
      bandwidth: rate(link.bandwidth) * bandwidth,
      latency_s: link.latency_s * latency,
      overhead_s: link.overhead_s * latency,
    }));
    const fp8 = hw.fp8 && { peak: hw.fp8.peak * flops, kernels: hw.fp8.kernels };
    let native = null; // seconds of every collective that a library ran
    if (hw.native) {
      const [waiting, moving] = hw.native.map(GlassPack.reals);
      native = waiting.map((seconds, i) => seconds * latency + moving[i] / bandwidth);
    }
    const memory_bandwidth = rate(hw.memory_bandwidth);
    const reduce_rate = rate(hw.reduce_rate);
    const host = {
      alpha: hw.host.alpha,
      bandwidth: rate(hw.host.bandwidth),
      memory_bandwidth: rate(hw.host.memory_bandwidth),
    };
    return { ...hw, peak: hw.peak * flops, links, fp8, native, memory_bandwidth, reduce_rate, host };
  }

  /* The wire between two ranks: the route of a topology, else the wire inside a node or between nodes. */
  function link(hw, src, dst) {
    if (hw.routes) return hw.links[hw.routes[src + ">" + dst]];
    const node = (rank) => Math.floor(rank / hw.node_size);
    return hw.links[node(src) === node(dst) ? 0 : 1];
  }

  return { scaled, link };
})();
