"use strict";
/* Everything that is drawn of a timeline, as arrays sorted by lane and start, which the canvas can search by
   time. No counterpart in Python: what a block, a communication or a gap is, bars.js and idle.js say. */
const GlassBarArrays = (function () {
  const DRAWN = ["forward", "backward", "weight", "recompute", "optimizer", "other"];
  DRAWN.push("collective", "p2p", "host", "bubble");

  /* Of each bar: `kind` (in DRAWN), rank, axis (-1 on the compute lane), start, end, first and last row,
     critical, micro-batch, cause (in IDLE_CAUSES), events and FLOPs joined. Lane l is bars lanePtr[l] ..
     lanePtr[l + 1]. */
  function barArrays(timeline) {
    const { graph } = timeline;
    const found = [];
    const blank = { axis: -1, critical: false, micro: -1, cause: -1, events: 1, flops: 0 };
    const drawn = graph.phases.map((phase) => DRAWN.indexOf(phase));
    for (const block of timeline.blocks()) {
      found.push({ ...blank, ...block, kind: drawn[block.phase], micro: block.micro_batch });
    }
    for (const work of timeline.communications()) {
      const { rank, row, start, end, critical } = work;
      const kind = DRAWN.indexOf(work.kind);
      found.push({
        ...blank,
        kind,
        rank,
        axis: graph.axis[row],
        start,
        end,
        first: row,
        last: row,
        critical,
      });
    }
    for (const gap of timeline.allGaps) {
      if (gap.end <= gap.start) continue;
      const { rank, start, end, row } = gap;
      const cause = GlassIdle.IDLE_CAUSES.indexOf(gap.cause);
      found.push({ ...blank, kind: DRAWN.indexOf("bubble"), rank, start, end, first: row, last: row, cause });
    }
    return sorted(graph, found);
  }

  /* Bars by lane, each lane by start. */
  function sorted(graph, found) {
    const n = found.length;
    const lanes = 1 + graph.axes.length; // of a rank
    const lanePtr = new Int32Array(graph.ranks * lanes + 1);
    const lane = new Int32Array(n);
    for (let i = 0; i < n; i++) {
      lane[i] = found[i].rank * lanes + 1 + found[i].axis;
      lanePtr[lane[i] + 1]++;
    }
    for (let i = 0; i < graph.ranks * lanes; i++) lanePtr[i + 1] += lanePtr[i];
    const order = new Int32Array(n);
    const filled = lanePtr.slice(0, graph.ranks * lanes);
    for (let i = 0; i < n; i++) order[filled[lane[i]]++] = i;
    for (let l = 0; l < graph.ranks * lanes; l++) putInOrder(order, lanePtr[l], lanePtr[l + 1], found);
    const out = { n, lanes, lanePtr, lane: Int32Array.from(order, (i) => lane[i]) };
    const take = (name, Kind) => Kind.from(order, (i) => found[i][name]);
    for (const name of ["start", "end", "flops"]) out[name] = take(name, Float64Array);
    for (const name of ["kind", "rank", "axis", "first", "last", "critical", "micro", "cause", "events"]) {
      out[name] = take(name, Int32Array);
    }
    return out;
  }

  /* Two runs that are each in order, as blocks and then gaps are, become one; anything else is sorted. */
  function putInOrder(order, from, to, found) {
    const start = (at) => found[order[at]].start;
    const turns = [];
    for (let i = from + 1; i < to && turns.length < 2; i++) if (start(i) < start(i - 1)) turns.push(i);
    if (!turns.length) return;
    if (turns.length > 1) {
      order.subarray(from, to).sort((x, y) => found[x].start - found[y].start || x - y);
      return;
    }
    const first = order.slice(from, turns[0]);
    let b = turns[0];
    for (let a = 0, at = from; a < first.length; at++) {
      order[at] = b < to && start(b) < found[first[a]].start ? order[b++] : first[a++];
    }
  }

  return { DRAWN, barArrays };
})();
