"use strict";
/* Seconds for an operation on a GPU and for a message on a wire. Counterpart: glasscluster/sim/time/cost.py.

   The same operations on the same numbers in the same order, so that seconds are Python's to the last bit. */
const GlassCost = (function () {
  /* Per event: `duration` occupies its lane, `latency` is added to a received message while in flight. `hw`
     is from GlassHardware.scaled. `slowRanks`: pairs of a rank and the factor by which its compute takes
     longer; `faster`: pairs of a kind of work and the factor by which it is faster. Messages that shared
     links take as long as Python found (`hw.shared`). */
  function costs(graph, hw, slowRanks, faster) {
    const duration = new Float64Array(graph.n);
    const latency = new Float64Array(graph.n);
    const K = graph.KIND;
    const peaks = peakOfNames(graph, hw);
    const update = graph.names.map((name) => name === "update");
    const native = graph.names.map((name) => name.endsWith("/native"));
    let natives = 0;
    for (let i = 0; i < graph.n; i++) {
      const bytes = graph.bytes[i];
      switch (graph.kind[i]) {
        case K.compute:
          duration[i] =
            hw.launch_s + Math.max(graph.flops[i] / peaks[graph.op[i]], bytes / hw.memory_bandwidth);
          break;
        case K.send: {
          const link = GlassHardware.link(hw, graph.rank[i], graph.peer[i]);
          duration[i] = link.overhead_s + bytes / link.bandwidth;
          break;
        }
        case K.recv:
          latency[i] = GlassHardware.link(hw, graph.peer[i], graph.rank[i]).latency_s;
          break;
        case K.reduce:
          duration[i] = bytes / hw.reduce_rate;
          break;
        case K.host:
          if (update[graph.op[i]]) duration[i] = bytes / hw.host.memory_bandwidth;
          else duration[i] = hw.host.alpha + bytes / hw.host.bandwidth;
          break;
        case K.collective: // one of ours takes no time of its own, only its messages do
          if (native[graph.op[i]]) duration[i] = hw.native[natives++];
      }
    }
    for (const [rank, factor] of slowRanks) {
      if (factor !== 1) for (const i of graph.computing[rank] || []) duration[i] *= factor;
    }
    for (const [kind, factor] of faster) {
      if (factor === 1) continue;
      const chosen = ofKind(graph, kind);
      for (let i = 0; i < graph.n; i++) {
        if (!chosen(i)) continue;
        duration[i] /= factor;
        latency[i] /= factor;
      }
    }
    if (hw.shared) {
      const seconds = GlassPack.reals(hw.shared);
      for (let i = 0; i < graph.n; i++) {
        if (graph.kind[i] === K.send) duration[i] = seconds[i];
        else if (graph.kind[i] === K.recv) latency[i] = seconds[i];
      }
    }
    return { duration, latency };
  }

  /* FLOP/s that each operation may reach, by the number of its name. */
  function peakOfNames(graph, hw) {
    return graph.names.map((name) => (hw.fp8 && hw.fp8.kernels.includes(name) ? hw.fp8.peak : hw.peak));
  }

  /* What "faster" may name in this graph: the phases it computed and the axes it communicated on. */
  function kindsOfWork(graph) {
    const phases = new Set();
    for (let i = 0; i < graph.n; i++) if (graph.kind[i] === graph.KIND.compute) phases.add(graph.phase[i]);
    const axes = graph.axes.filter((axis) => axis !== "");
    return [...graph.phases.filter((_, i) => phases.has(i)), ...axes.sort()];
  }

  /* Says of a row whether it is of this kind of work. Nothing is of an unknown kind (in Python: an error). */
  function ofKind(graph, kind) {
    const phase = graph.phases.indexOf(kind);
    if (phase >= 0) return (i) => graph.kind[i] === graph.KIND.compute && graph.phase[i] === phase;
    const axis = kind === "" ? -1 : graph.axes.indexOf(kind);
    return (i) => axis >= 0 && graph.kind[i] !== graph.KIND.compute && graph.axis[i] === axis;
  }

  return { costs, kindsOfWork, ofKind };
})();
