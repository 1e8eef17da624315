"use strict";
/* A graph on some hardware becomes a timeline of virtual seconds.
   Counterpart: glasscluster/sim/time/replay.py.

   Replay with contention is Python's alone: the page gets how long its messages took. */
const GlassReplay = (function () {
  /* The page's sliders. In Python: replay(graph, hw.scaled(bandwidth=..., latency=..., flops=...),
     slow_ranks={slowRank: slowFactor}, faster={kind: factor}). */
  const AS_RECORDED = { bandwidth: 1, latency: 1, flops: 1, slowRank: 0, slowFactor: 1, kind: "", factor: 1 };

  /* The timeline of `graph` on packed hardware `hw`, with the options of Python's replay and then `knobs`. */
  function replay(graph, hw, knobs) {
    const settings = { ...AS_RECORDED, ...knobs };
    const slowRanks = Object.entries(hw.slow).map(([rank, factor]) => [Number(rank), factor]);
    slowRanks.push([settings.slowRank, settings.slowFactor]);
    const faster = [...Object.entries(hw.faster), [settings.kind, settings.factor]];
    const cost = GlassCost.costs(graph, GlassHardware.scaled(hw, settings), slowRanks, faster);
    const { start, end } = longestPath(graph, cost.duration, cost.latency);
    return new GlassTimeline.Timeline(graph, start, end);
  }

  /* Start and end of every event. */
  function longestPath(graph, duration, latency) {
    const { n, dep_ptr, dep_idx, match, inOrder } = graph;
    const start = new Float64Array(n);
    const end = new Float64Array(n);
    for (let at = 0; at < n; at++) {
      const i = inOrder[at];
      let t = 0;
      for (let k = dep_ptr[i]; k < dep_ptr[i + 1]; k++) {
        const ended = end[dep_idx[k]];
        if (ended > t) t = ended;
      }
      if (match[i] >= 0) t = Math.max(t, end[match[i]] + latency[i]);
      start[i] = t;
      end[i] = t + duration[i];
    }
    return { start, end };
  }

  return { AS_RECORDED, replay, longestPath };
})();
