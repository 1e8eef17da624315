"use strict";
/* The events that hand the makespan on to each other. Counterpart: glasscluster/sim/time/critical_path.py. */
const GlassCriticalPath = (function () {
  /* The row that ends last, of equal ones the first in canonical order; -1 of none. */
  function latest(timeline, rows) {
    const end = timeline.end;
    let best = -1;
    for (const row of rows) {
      if (best < 0 || end[row] > end[best] || (end[row] === end[best] && row < best)) best = row;
    }
    return best;
  }

  /* Row numbers, first to last: each could start only when the one before it had ended. */
  function criticalPath(timeline) {
    const { graph, start, end } = timeline;
    if (!graph.n) return [];
    let row = latest(timeline, graph.inOrder);
    const path = [row];
    while (start[row] > 0) {
      let best = latest(timeline, graph.dependencies(row));
      if (graph.match[row] >= 0 && (best < 0 || end[best] < start[row])) best = graph.match[row];
      if (best < 0) break;
      path.push((row = best));
    }
    return path.reverse();
  }

  return { latest, criticalPath };
})();
