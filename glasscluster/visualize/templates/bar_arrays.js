"use strict";
/* Everything that is drawn of a timeline, as arrays sorted by lane and start, which the canvas can search by
   time. It has no counterpart in Python: bars.js and idle.js say what is a block, a communication, a gap. */
const GlassBarArrays = (function () {
  const DRAWN = ["forward", "backward", "weight", "recompute", "optimizer", "other"];
  DRAWN.push("collective", "p2p", "host");
  const FIRST_IDLE = DRAWN.length; // from here on, reasons for which a compute lane is idle
  DRAWN.push("exposed_tp", "exposed_pp", "exposed_dp", "exposed_cp", "exposed_ep", "exposed");
  DRAWN.push("host_wait", "bubble", "wait");
  const WHOLE = ["lane", "kind", "axis", "rank", "first", "last", "critical", "micro", "awaited", "events"];
  const REALS = ["start", "end", "flops"];

  /* Of each bar: `kind` (its number in DRAWN), rank, axis (-1 on the compute lane), start, end, first, last
     row, critical, micro-batch, the rank that is awaited (-1: none), events and FLOPs joined in it. The bars
     of lane l are lanePtr[l] to lanePtr[l + 1]. Written straight to their places in typed arrays: every slider step makes
     them all anew. */
  function barArrays(timeline) {
    const { graph } = timeline;
    const [blocks, works, gaps] = [timeline.blocks(), timeline.communications(), timeline.allGaps];
    const lasting = []; // the gaps that take any time
    for (let i = 0; i < gaps.n; i++) if (gaps.end[i] > gaps.start[i]) lasting.push(i);
    const lanes = 1 + graph.axes.length; // of a rank
    const firstGap = blocks.n + works.n;
    const n = firstGap + lasting.length;
    // as they come: lane and start of the blocks, then the communications, then the gaps
    const lane = new Int32Array(n);
    const start = new Float64Array(n);
    start.set(blocks.start.subarray(0, blocks.n));
    start.set(works.start, blocks.n);
    for (let i = 0; i < blocks.n; i++) lane[i] = blocks.rank[i] * lanes;
    for (let i = 0; i < works.n; i++) {
      lane[blocks.n + i] = works.rank[i] * lanes + 1 + graph.axis[works.row[i]];
    }
    for (let i = 0; i < lasting.length; i++) {
      lane[firstGap + i] = gaps.rank[lasting[i]] * lanes;
      start[firstGap + i] = gaps.start[lasting[i]];
    }
    const { lanePtr, place } = places(lane, start, graph.ranks * lanes);

    const b = { n, lanes, lanePtr };
    for (const name of WHOLE) b[name] = new Int32Array(n);
    for (const name of REALS) b[name] = new Float64Array(n);
    const set = (i, kind, axis, rank, first, last, end) => {
      const at = place[i];
      b.kind[at] = kind;
      b.axis[at] = axis;
      b.rank[at] = rank;
      b.first[at] = first;
      b.last[at] = last;
      b.start[at] = start[i];
      b.end[at] = end;
      b.lane[at] = lane[i];
      return at;
    };
    b.micro.fill(-1);
    b.awaited.fill(-1);
    const numbers = Object.fromEntries(DRAWN.map((kind, i) => [kind, i]));
    const ofPhase = graph.phases.map((phase) => numbers[phase]);
    for (let i = 0; i < blocks.n; i++) {
      const kind = ofPhase[blocks.phase[i]];
      const at = set(i, kind, -1, blocks.rank[i], blocks.first[i], blocks.last[i], blocks.end[i]);
      b.critical[at] = blocks.critical[i];
      b.micro[at] = blocks.micro_batch[i];
      b.events[at] = blocks.events[i];
      b.flops[at] = blocks.flops[i];
    }
    const { collective, host, p2p } = numbers;
    const ofKind = graph.kinds.map((kind) => ({ collective, host, send: p2p })[kind]);
    for (let i = 0; i < works.n; i++) {
      const row = works.row[i];
      const kind = ofKind[graph.kind[row]];
      const at = set(blocks.n + i, kind, graph.axis[row], works.rank[i], row, row, works.end[i]);
      b.critical[at] = works.critical[i];
      b.events[at] = 1;
    }
    const ofEntry = GlassBreakdown.entriesOf(graph).map((entry) => numbers[kindOfGap(entry)]);
    for (let i = 0; i < lasting.length; i++) {
      const [gap, row] = [lasting[i], gaps.row[lasting[i]]];
      const at = set(firstGap + i, ofEntry[gaps.entry[gap]], -1, gaps.rank[gap], row, row, gaps.end[gap]);
      b.awaited[at] = gaps.awaited[gap];
    }
    return b;
  }

  /* How a gap with an entry of the breakdown is drawn: "host" is the host's own work, in its lane. */
  function kindOfGap(entry) {
    if (entry === "host") return "host_wait";
    return DRAWN.includes(entry) || !entry.startsWith("exposed_") ? entry : "exposed";
  }

  /* Where each bar stands among all, by lane, and in a lane by start; and where each lane begins. */
  function places(lane, start, lanes) {
    const lanePtr = new Int32Array(lanes + 1);
    for (let i = 0; i < lane.length; i++) lanePtr[lane[i] + 1]++;
    for (let l = 0; l < lanes; l++) lanePtr[l + 1] += lanePtr[l];
    const order = new Int32Array(lane.length);
    const filled = lanePtr.slice(0, lanes);
    for (let i = 0; i < lane.length; i++) order[filled[lane[i]]++] = i;
    for (let l = 0; l < lanes; l++) putInOrder(order, lanePtr[l], lanePtr[l + 1], start);
    const place = new Int32Array(lane.length);
    for (let at = 0; at < order.length; at++) place[order[at]] = at;
    return { lanePtr, place };
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

  return { DRAWN, FIRST_IDLE, kindOfGap, barArrays };
})();
