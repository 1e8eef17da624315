"use strict";
/* Events joined into what a person sees of a timeline. Counterpart: glasscluster/sim/time/bars.py. */
const GlassBars = (function () {
  const JOINED_S = 1e-12; // two computing events this close (seconds) have no gap between them

  /* Compute events joined: one block per (phase, micro-batch) without a gap inside, from row `first` to
     `last`. */
  function blocks(timeline) {
    const { graph, start, end } = timeline;
    const onPath = new Set(timeline.criticalPath);
    const found = [];
    for (let rank = 0; rank < graph.ranks; rank++) {
      let current = null;
      for (const row of GlassGraph.computeRows(graph, rank)) {
        if (end[row] <= start[row]) continue;
        const phase = graph.phase[row];
        const micro_batch = graph.micro_batch[row];
        const same = current !== null && current.phase === phase && current.micro_batch === micro_batch;
        if (same && start[row] - current.end <= JOINED_S) {
          current.end = end[row];
          current.last = row;
          current.events += 1;
          current.flops += graph.flops[row];
        } else {
          const when = { start: start[row], end: end[row], first: row, last: row };
          current = {
            rank,
            phase,
            micro_batch,
            ...when,
            events: 1,
            flops: graph.flops[row],
            critical: false,
          };
          found.push(current);
        }
        if (onPath.has(row)) current.critical = true;
      }
    }
    return found;
  }

  /* Whole collectives, point-to-point sends, the host's work: when launched, and when everybody had come. */
  function communications(timeline) {
    const { graph, start, end } = timeline;
    const K = graph.KIND;
    const onPath = new Set(timeline.criticalPath);
    const work = (row) => graph.join[row] * graph.ranks + graph.rank[row];
    const pathWorks = new Set(timeline.criticalPath.filter((row) => graph.join[row] >= 0).map(work));
    const lastEnd = new Map(); // collectives of one communicator run one after the other
    const found = [];
    for (let row = 0; row < graph.n; row++) {
      const collective = graph.kind[row] === K.collective;
      const host = graph.kind[row] === K.host;
      if (!collective && !host && !(graph.kind[row] === K.send && graph.sequence[row] < 0)) continue;
      let launched = start[row];
      let begun = start[row];
      if (collective) {
        const key = graph.rank[row] + "/" + graph.group[row];
        launched = start[timeline.launch(row)];
        begun = Math.max(timeline.underWay(row), lastEnd.get(key) || 0);
        lastEnd.set(key, end[row]);
      }
      const kind = collective ? "collective" : host ? "host" : "p2p";
      const critical = onPath.has(row) || (graph.join[row] >= 0 && pathWorks.has(work(row)));
      found.push({ rank: graph.rank[row], row, kind, launched, start: begun, end: end[row], critical });
    }
    return found;
  }

  return { blocks, communications };
})();
