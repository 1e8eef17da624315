"use strict";
/* The list of what a rank's time goes into, and a breakdown in words. Names come with the page.
   Counterpart: glasscluster/base/breakdown.py. */
const GlassBreakdown = (function () {
  const AXES = ["tp", "pp", "dp", "cp", "ep"];
  const ENTRIES = ["compute", "recompute", ...AXES.map((axis) => "exposed_" + axis)];
  ENTRIES.push("host", "bubble", "wait", "optimizer");

  /* The entries that a graph's time can go to, by number: the list, then axes of a user's own program. */
  function entriesOf(graph) {
    if (!graph.entries) {
      const others = graph.axes.filter((axis) => axis !== "host" && !AXES.includes(axis));
      graph.entries = [...ENTRIES, ...others.map((axis) => "exposed_" + axis)];
    }
    return graph.entries;
  }

  /* Keys in the order of the list; those of other axes, by name, stand behind the five of plans. */
  function inOrder(keys) {
    const place = (key) => (ENTRIES.includes(key) ? ENTRIES.indexOf(key) : ENTRIES.indexOf("host") - 0.5);
    return [...keys].sort((a, b) => place(a) - place(b) || (a < b ? -1 : a > b ? 1 : 0));
  }

  /* Shares of a breakdown in tenths of a percent, rounded so that they add up to exactly 1000: the largest
     remainders are rounded up. Pairs of entry and share; those that come out as zero are left out. */
  function tenths(breakdown) {
    const keys = inOrder(Object.keys(breakdown));
    const total = keys.reduce((sum, key) => sum + breakdown[key], 0);
    if (!(total > 0)) return [];
    const exact = keys.map((key) => (1000 * breakdown[key]) / total);
    const whole = exact.map((share) => Math.floor(share + 1e-9));
    const missing = 1000 - whole.reduce((sum, share) => sum + share, 0);
    const remainder = (i) => Math.round((exact[i] - whole[i]) * 1e6);
    const order = keys.map((_, i) => i).sort((a, b) => remainder(b) - remainder(a) || a - b);
    for (const i of order.slice(0, Math.max(missing, 0))) whole[i]++;
    return keys.map((key, i) => [key, whole[i]]).filter(([, share]) => share);
  }

  /* A breakdown in words, whose shares add up to 100 %. `nameOf` says what an entry is called. */
  function listed(breakdown, nameOf, comma) {
    const shares = tenths(breakdown).map(([key, share]) => nameOf(key) + " " + (share / 10).toFixed(1) + "%");
    return shares.join(comma);
  }

  return { ENTRIES, entriesOf, inOrder, tenths, listed };
})();
