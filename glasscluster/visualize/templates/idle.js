"use strict";
/* Every gap in a rank's compute lane and what it waited for. Counterpart: glasscluster/sim/time/idle.py. */
const GlassIdle = (function () {
  const IDLE_CAUSES = ["communication", "dependency", "warm-up", "drain"];
  const { latest } = GlassCriticalPath;

  /* The gaps of a rank, from 0 to the makespan, in order of time and with their causes. */
  function gaps(timeline, rank) {
    const { graph, start, end, makespan } = timeline;
    const found = [];
    let clock = 0;
    GlassGraph.computeRows(graph, rank).forEach((row, number) => {
      if (start[row] > clock) {
        const awaited = blocker(timeline, row);
        found.push(...waits(timeline, rank, clock, start[row], awaited, number === 0));
      }
      clock = end[row];
    });
    if (makespan > clock) {
      const after = clock;
      const own = graph.rows[rank].filter((i) => graph.kind[i] !== graph.KIND.compute && end[i] > after);
      if (own.length) {
        const last = latest(timeline, own);
        found.push(gap(timeline, rank, clock, end[last], last, false));
        clock = end[last];
      }
      if (makespan > clock) {
        found.push({ rank, start: clock, end: makespan, cause: "drain", axis: "", comm: 0, row: -1 });
      }
    }
    return found;
  }

  /* The communication event whose end let `row` start: the latest that it depends on, -1 without one. */
  function blocker(timeline, row) {
    const { kind, KIND } = timeline.graph;
    const awaited = (d) => kind[d] !== KIND.compute && kind[d] !== KIND.begin;
    return latest(timeline, timeline.graph.dependencies(row).filter(awaited));
  }

  /* One idle stretch as gaps, cut where what ended it was launched: before that it had another cause. */
  function waits(timeline, rank, start, end, row, first) {
    const { graph } = timeline;
    const found = [];
    while (row >= 0 && graph.kind[row] === graph.KIND.collective) {
      const launch = timeline.launch(row);
      const launched = timeline.start[launch];
      if (launched <= start) break;
      found.push(gap(timeline, rank, launched, end, row, false));
      end = launched;
      row = blocker(timeline, launch);
    }
    found.push(gap(timeline, rank, start, end, row, first));
    return found.reverse();
  }

  /* The gap that the end of `row` closed, `comm` seconds of it with the awaited message on the wire. */
  function gap(timeline, rank, start, end, row, first) {
    if (row < 0)
      return { rank, start, end, cause: first ? "warm-up" : "dependency", axis: "", comm: 0, row: -1 };
    const comm = Math.max(0, Math.min(end, timeline.end[row]) - Math.max(start, timeline.underWay(row)));
    const cause = comm >= (end - start) / 2 ? "communication" : first ? "warm-up" : "dependency";
    return { rank, start, end, cause, axis: timeline.graph.axisOf(row), comm, row };
  }

  /* Seconds each rank's compute lane stood still with the awaited message on the wire. */
  function exposedComm(timeline) {
    const exposed = new Array(timeline.graph.ranks).fill(0);
    for (const { rank, comm } of timeline.allGaps) exposed[rank] += comm;
    return exposed;
  }

  return { IDLE_CAUSES, gaps, exposedComm };
})();
