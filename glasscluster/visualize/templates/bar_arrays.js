"use strict";
/* Everything that is drawn of a timeline, as arrays sorted by lane and start, which the canvas can search by
   time. It has no counterpart in Python: bars.js and idle.js say what is a block, a communication, a gap. */
const GlassBarArrays = (function () {
  const DRAWN = ["forward", "backward", "weight", "recompute", "optimizer", "other"];
  DRAWN.push("collective", "p2p", "host", "bubble");
  const REALS = ["start", "end", "flops"];

  /* Of each bar: `kind` (its number in DRAWN), rank, axis (-1 on the compute lane), start, end, first, last
     row, critical, micro-batch, cause (in IDLE_CAUSES), events and FLOPs joined in it. The bars of lane l are
     lanePtr[l] to lanePtr[l + 1]. */
  function barArrays(timeline) {
    const { graph } = timeline;
    const b = { kind: [], axis: [], rank: [], start: [], end: [], first: [], last: [], critical: [] };
    Object.assign(b, { micro: [], cause: [], events: [], flops: [] });
    const place = (kind, axis, { rank, start, end }) => {
      b.kind.push(kind);
      b.axis.push(axis);
      b.rank.push(rank);
      b.start.push(start);
      b.end.push(end);
    };
    const tell = (first, last, critical, micro, cause, events, flops) => {
      b.first.push(first);
      b.last.push(last);
      b.critical.push(critical ? 1 : 0);
      b.micro.push(micro);
      b.cause.push(cause);
      b.events.push(events);
      b.flops.push(flops);
    };
    const numbers = Object.fromEntries(DRAWN.map((kind, i) => [kind, i]));
    const drawn = graph.phases.map((phase) => numbers[phase]);
    for (const block of timeline.blocks()) {
      const { first, last, critical, micro_batch, events, flops } = block;
      place(drawn[block.phase], -1, block);
      tell(first, last, critical, micro_batch, -1, events, flops);
    }
    for (const work of timeline.communications()) {
      place(numbers[work.kind], graph.axis[work.row], work);
      tell(work.row, work.row, work.critical, -1, -1, 1, 0);
    }
    for (const gap of timeline.allGaps) {
      if (gap.end <= gap.start) continue;
      place(numbers.bubble, -1, gap);
      tell(gap.row, gap.row, false, -1, GlassIdle.IDLE_CAUSES.indexOf(gap.cause), 0, 0);
    }
    return sorted(graph, b);
  }

  /* Bars by lane, each lane by start. */
  function sorted(graph, b) {
    const n = b.kind.length;
    const lanes = 1 + graph.axes.length; // of a rank
    const lanePtr = new Int32Array(graph.ranks * lanes + 1);
    const lane = new Int32Array(n);
    for (let i = 0; i < n; i++) {
      lane[i] = b.rank[i] * lanes + 1 + b.axis[i];
      lanePtr[lane[i] + 1]++;
    }
    for (let i = 0; i < graph.ranks * lanes; i++) lanePtr[i + 1] += lanePtr[i];
    const order = new Int32Array(n);
    const filled = lanePtr.slice(0, graph.ranks * lanes);
    for (let i = 0; i < n; i++) order[filled[lane[i]]++] = i;
    for (let l = 0; l < graph.ranks * lanes; l++) putInOrder(order, lanePtr[l], lanePtr[l + 1], b.start);
    const out = { n, lanes, lanePtr, lane: taken(lane, order, Int32Array) };
    for (const [name, values] of Object.entries(b)) {
      out[name] = taken(values, order, REALS.includes(name) ? Float64Array : Int32Array);
    }
    return out;
  }

  function taken(values, order, Kind) {
    const out = new Kind(order.length);
    for (let i = 0; i < order.length; i++) out[i] = values[order[i]];
    return out;
  }

  /* Two runs that are each in order, as blocks and then gaps are, become one; anything else is sorted. */
  function putInOrder(order, from, to, start) {
    const turns = [];
    for (let i = from + 1; i < to && turns.length < 2; i++) {
      if (start[order[i]] < start[order[i - 1]]) turns.push(i);
    }
    if (!turns.length) return;
    if (turns.length > 1) {
      order.subarray(from, to).sort((x, y) => start[x] - start[y] || x - y);
      return;
    }
    const first = order.slice(from, turns[0]);
    for (let a = 0, b = turns[0], at = from; a < first.length; at++) {
      order[at] = b < to && start[order[b]] < start[first[a]] ? order[b++] : first[a++];
    }
  }

  return { DRAWN, barArrays };
})();
