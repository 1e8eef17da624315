"use strict";
/* The events that hand the makespan on to each other. Counterpart: glasscluster/sim/time/critical_path.py. */
const GlassCriticalPath = (function () {
  /* Of the rows at the places `from` to `to` of `rows` and for which `keep` holds: the row that ends last, of
     equal ones the first in canonical order; -1 of none. */
  function latest(timeline, rows, from, to, keep) {
    const end = timeline.end;
    let best = -1;
    for (let at = from; at < to; at++) {
      const row = rows[at];
      if (!keep(row)) continue;
      if (best < 0 || end[row] > end[best] || (end[row] === end[best] && row < best)) best = row;
    }
    return best;
  }

  /* Row numbers, first to last: each could start only when the one before it had ended. */
  function criticalPath(timeline) {
    const { graph, start, end, makespan } = timeline;
    const all = () => true;
    if (!graph.n) return [];
    let row = end.indexOf(makespan); // the first in canonical order
    const path = [row];
    while (start[row] > 0) {
      let best = latest(timeline, graph.dep_idx, graph.dep_ptr[row], graph.dep_ptr[row + 1], all);
      if (graph.match[row] >= 0 && (best < 0 || end[best] < start[row])) best = graph.match[row];
      if (best < 0) break;
      path.push((row = best));
    }
    return path.reverse();
  }

  return { latest, criticalPath };
})();
