"use strict";
/* A topological order of a graph's rows. Counterpart: glasscluster/sim/recording/order.py. */
const GlassOrder = (function () {
  /* Every row after all that it depends on. */
  function topologicalOrder(graph) {
    const { n, dep_ptr, dep_idx, match } = graph;
    const missing = Int32Array.from(graph.dep_count);
    const pointer = new Int32Array(n + 1); // of each row's followers
    for (let k = 0; k < dep_idx.length; k++) pointer[dep_idx[k] + 1]++;
    for (let i = 0; i < n; i++) {
      if (match[i] < 0) continue;
      pointer[match[i] + 1]++;
      missing[i]++;
    }
    for (let i = 0; i < n; i++) pointer[i + 1] += pointer[i];
    const followers = new Int32Array(pointer[n]);
    const filled = pointer.slice(0, n);
    for (let i = 0; i < n; i++) {
      for (let k = dep_ptr[i]; k < dep_ptr[i + 1]; k++) followers[filled[dep_idx[k]]++] = i;
      if (match[i] >= 0) followers[filled[match[i]]++] = i;
    }
    const order = new Int32Array(n);
    let end = 0;
    for (let i = 0; i < n; i++) if (missing[i] === 0) order[end++] = i;
    for (let at = 0; at < end; at++) {
      for (let k = pointer[order[at]]; k < pointer[order[at] + 1]; k++) {
        if (--missing[followers[k]] === 0) order[end++] = followers[k];
      }
    }
    if (end !== n) throw new Error("the recorded events depend on each other in a cycle");
    return order;
  }

  return { topologicalOrder };
})();
