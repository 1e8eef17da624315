"use strict";
/* Events joined into what a person sees of a timeline. Counterpart: glasscluster/sim/time/bars.py.

   Python has a dictionary for each bar; here bars are columns, because every slider step makes them all
   anew. */
const GlassBars = (function () {
  const JOINED_S = 1e-12; // two computing events this close (seconds) have no gap between them

  /* Compute events joined: one block per (phase, micro-batch) without a gap inside, from row `first` to
     `last`. `n` rows of columns that have room for more. */
  function blocks(timeline) {
    const { graph, start, end } = timeline;
    const onPath = pathMarks(timeline);
    const room = graph.computing.reduce((sum, rows) => sum + rows.length, 0);
    const whole = () => new Int32Array(room);
    const reals = () => new Float64Array(room);
    const b = { n: 0, rank: whole(), phase: whole(), micro_batch: whole(), start: reals(), end: reals() };
    Object.assign(b, { first: whole(), last: whole(), events: whole(), flops: reals(), critical: whole() });
    let current = -1;
    for (let rank = 0; rank < graph.ranks; rank++) {
      const before = current; // no block goes on from one rank to the next
      for (const row of GlassGraph.computeRows(graph, rank)) {
        if (end[row] <= start[row]) continue;
        const phase = graph.phase[row];
        const micro_batch = graph.micro_batch[row];
        const same =
          current > before && b.phase[current] === phase && b.micro_batch[current] === micro_batch;
        if (!same || start[row] - b.end[current] > JOINED_S) {
          current++;
          b.rank[current] = rank;
          b.phase[current] = phase;
          b.micro_batch[current] = micro_batch;
          b.start[current] = start[row];
          b.first[current] = row;
        }
        b.end[current] = end[row];
        b.last[current] = row;
        b.events[current] += 1;
        b.flops[current] += graph.flops[row];
        b.critical[current] |= onPath[row];
      }
    }
    b.n = current + 1;
    return b;
  }

  /* Whole collectives, point-to-point sends, the host's work: when launched, and when everybody had come.
     Columns of `n` rows. */
  function communications(timeline) {
    const { graph, start, end } = timeline;
    const onPath = pathMarks(timeline);
    const K = graph.KIND;
    const n = graph.communicating.length;
    const whole = () => new Int32Array(n);
    const reals = () => new Float64Array(n);
    const b = { n, row: graph.communicating, rank: whole(), critical: whole() };
    Object.assign(b, { launched: reals(), start: reals(), end: reals() });
    const work = (row) => graph.join[row] * graph.ranks + graph.rank[row];
    const pathWorks = new Set(timeline.criticalPath.filter((row) => graph.join[row] >= 0).map(work));
    const lastEnd = new Map(); // collectives of one communicator run one after the other
    for (let i = 0; i < n; i++) {
      const row = b.row[i];
      const rank = graph.rank[row];
      b.rank[i] = rank;
      b.launched[i] = b.start[i] = start[row];
      b.end[i] = end[row];
      if (graph.kind[row] === K.collective) {
        const key = graph.group[row] * graph.ranks + rank;
        b.launched[i] = start[timeline.launch(row)];
        b.start[i] = Math.max(timeline.underWay(row), lastEnd.get(key) || 0);
        lastEnd.set(key, end[row]);
      }
      const critical = onPath[row] || (graph.join[row] >= 0 && pathWorks.has(work(row)));
      b.critical[i] = critical ? 1 : 0;
    }
    return b;
  }

  /* Of every row 1 where it is on the critical path, else 0. */
  function pathMarks(timeline) {
    const marks = new Uint8Array(timeline.graph.n);
    for (const row of timeline.criticalPath) marks[row] = 1;
    return marks;
  }

  return { blocks, communications };
})();
