"use strict";
/* Every gap in a rank's compute lane and what it waited for, and where a rank's seconds went.
   Counterpart: glasscluster/sim/time/idle.py.

   Python has an object for each gap; here gaps are columns, because every slider step makes them all anew. */
const GlassIdle = (function () {
  const { ENTRIES, entriesOf, inOrder } = GlassBreakdown;
  const { latest } = GlassCriticalPath;

  /* The gaps of a rank, from 0 to the makespan, in order of time, after those in `columns`: `n` rows of
     columns that have room for more. `entry` is a number in `entriesOf(graph)`; `axis` is -1 where nothing
     was awaited, `awaited` -1 where nobody was. */
  function gaps(timeline, rank, columns = none(timeline.graph)) {
    const { graph, start, end, makespan } = timeline;
    const rows = GlassGraph.computeRows(graph, rank);
    let clock = 0;
    for (const row of rows) {
      if (start[row] > clock) waits(timeline, columns, rank, clock, start[row], blocker(timeline, row));
      clock = end[row];
    }
    if (makespan > clock) {
      const own = graph.rows[rank];
      const endsAfterClock = (i) => graph.kind[i] !== graph.KIND.compute && end[i] > clock;
      const last = latest(timeline, own, 0, own.length, endsAfterClock);
      if (last >= 0) {
        cut(timeline, columns, rank, clock, end[last], last);
        clock = end[last];
      }
      const awaited = timeline.lastRank;
      if (makespan > clock) {
        add(columns, rank, clock, makespan, withoutMessage(graph, rank, awaited), -1, awaited, -1);
      }
    }
    return columns;
  }

  /* Columns with room for the gaps of all ranks: each ends at the start of a computing event or of a launch,
     but for a rank's last two, and is cut in at most three. */
  function none(graph) {
    const room = graph.computing.reduce((sum, rows) => sum + rows.length, 0);
    const size = 3 * (room + graph.launches.length + 2 * graph.ranks);
    const whole = () => new Int32Array(size);
    const reals = () => new Float64Array(size);
    const columns = { n: 0, rank: whole(), start: reals(), end: reals(), entry: whole(), axis: whole() };
    return Object.assign(columns, { awaited: whole(), row: whole() });
  }

  /* The communication event whose end let `row` start: the latest that it depends on, -1 without one. */
  function blocker(timeline, row) {
    const { kind, KIND, dep_idx, dep_ptr } = timeline.graph;
    const awaited = (d) => kind[d] !== KIND.compute && kind[d] !== KIND.begin;
    return latest(timeline, dep_idx, dep_ptr[row], dep_ptr[row + 1], awaited);
  }

  /* Adds one idle time as gaps, cut where what ended it was launched: before that it had another reason. */
  function waits(timeline, columns, rank, start, end, row) {
    const { graph } = timeline;
    const cuts = []; // pairs of an awaited row and its launch, the latest first
    let until = end;
    while (row >= 0 && graph.kind[row] === graph.KIND.collective) {
      const launch = timeline.launch(row);
      const launched = timeline.start[launch];
      if (launched <= start) break;
      cuts.push([row, launched]);
      until = launched;
      row = blocker(timeline, launch);
    }
    cut(timeline, columns, rank, start, until, row);
    for (let i = cuts.length - 1; i >= 0; i--) {
      const [awaited, launched] = cuts[i];
      cut(timeline, columns, rank, launched, i > 0 ? cuts[i - 1][1] : end, awaited);
    }
  }

  /* Adds the idle time that ended with `row`, cut where its message set off, and where it had arrived. */
  function cut(timeline, columns, rank, start, end, row) {
    const { graph } = timeline;
    const entries = entriesOf(graph);
    if (row < 0) {
      add(columns, rank, start, end, entries.indexOf("wait"), -1, -1, -1);
      return;
    }
    const [axis, awaited] = [graph.axis[row], timeline.awaited(row)];
    const isHost = graph.kind[row] === graph.KIND.host;
    const moving = entries.indexOf(isHost ? "host" : "exposed_" + graph.axes[axis]);
    const setOff = Math.min(Math.max(start, timeline.underWay(row)), end);
    const arrived = Math.max(setOff, Math.min(end, timeline.end[row]));
    add(columns, rank, start, setOff, withoutMessage(graph, rank, awaited), axis, awaited, row);
    add(columns, rank, setOff, arrived, moving, axis, awaited, row);
    add(columns, rank, arrived, end, entries.indexOf("wait"), axis, awaited, row);
  }

  /* The entry of a wait for a rank while no message is in flight. */
  function withoutMessage(graph, rank, awaited) {
    const other = graph.stages[awaited] !== graph.stages[rank];
    return entriesOf(graph).indexOf(other ? "bubble" : "wait");
  }

  function add(columns, rank, start, end, entry, axis, awaited, row) {
    if (!(end > start)) return;
    const i = columns.n++;
    if (i >= columns.row.length) throw new Error("more gaps than events that could end one");
    columns.rank[i] = rank;
    columns.start[i] = start;
    columns.end[i] = end;
    columns.entry[i] = entry;
    columns.axis[i] = axis;
    columns.awaited[i] = awaited;
    columns.row[i] = row;
  }

  /* Seconds each rank's compute lane stood still with the awaited message in flight, on any axis. */
  function exposedComm(timeline) {
    const inFlight = entriesOf(timeline.graph).map((entry) => entry.startsWith("exposed_"));
    const exposed = new Array(timeline.graph.ranks).fill(0);
    const { n, rank, start, end, entry } = timeline.allGaps;
    for (let i = 0; i < n; i++) if (inFlight[entry[i]]) exposed[rank[i]] += end[i] - start[i];
    return exposed;
  }

  /* A rank's makespan as seconds of each entry, all entries in their order; they add up to it. */
  function breakdown(timeline, rank) {
    const { graph, start, end } = timeline;
    const entries = entriesOf(graph);
    const seconds = Object.fromEntries(ENTRIES.map((entry) => [entry, 0]));
    for (const row of GlassGraph.computeRows(graph, rank)) {
      const phase = graph.phases[graph.phase[row]];
      seconds[phase === "recompute" || phase === "optimizer" ? phase : "compute"] += end[row] - start[row];
    }
    const gaps = timeline.allGaps;
    for (let i = 0; i < gaps.n; i++) {
      if (gaps.rank[i] !== rank) continue;
      const entry = entries[gaps.entry[i]];
      seconds[entry] = (seconds[entry] || 0) + gaps.end[i] - gaps.start[i];
    }
    return Object.fromEntries(inOrder(Object.keys(seconds)).map((entry) => [entry, seconds[entry]]));
  }

  return { gaps, exposedComm, breakdown };
})();
