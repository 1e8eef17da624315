"use strict";
/* Every gap in a rank's compute lane and what it waited for. Counterpart: glasscluster/sim/time/idle.py.

   Python has an object for each gap; here gaps are columns, because every slider step makes them all anew. */
const GlassIdle = (function () {
  const IDLE_CAUSES = ["communication", "dependency", "warm-up", "drain"];
  const [COMMUNICATION, DEPENDENCY, WARM_UP, DRAIN] = IDLE_CAUSES.keys();
  const { latest } = GlassCriticalPath;

  /* The gaps of a rank, from 0 to the makespan, in order of time and with their causes, after those in
     `columns`: `n` rows of columns that have room for more. `cause` is a number in IDLE_CAUSES; `axis` is -1
     where nothing was awaited. */
  function gaps(timeline, rank, columns = none(timeline.graph)) {
    const { graph, start, end, makespan } = timeline;
    const rows = GlassGraph.computeRows(graph, rank);
    let clock = 0;
    for (let number = 0; number < rows.length; number++) {
      const row = rows[number];
      if (start[row] > clock) {
        const awaited = blocker(timeline, row);
        waits(timeline, columns, rank, clock, start[row], awaited, number === 0);
      }
      clock = end[row];
    }
    if (makespan > clock) {
      const own = graph.rows[rank];
      const endsAfterClock = (i) => graph.kind[i] !== graph.KIND.compute && end[i] > clock;
      const last = latest(timeline, own, 0, own.length, endsAfterClock);
      if (last >= 0) {
        gap(timeline, columns, rank, clock, end[last], last, false);
        clock = end[last];
      }
      if (makespan > clock) add(columns, rank, clock, makespan, DRAIN, -1, 0, -1);
    }
    return columns;
  }

  /* Columns with room for the gaps of all ranks: each ends at the start of a computing event or of a launch,
     but for a rank's last two. */
  function none(graph) {
    const room = graph.computing.reduce((sum, rows) => sum + rows.length, 0);
    const whole = () => new Int32Array(room + graph.launches.length + 2 * graph.ranks);
    const reals = () => new Float64Array(room + graph.launches.length + 2 * graph.ranks);
    const columns = { n: 0, rank: whole(), start: reals(), end: reals(), cause: whole(), axis: whole() };
    return Object.assign(columns, { comm: reals(), row: whole() });
  }

  /* The communication event whose end let `row` start: the latest that it depends on, -1 without one. */
  function blocker(timeline, row) {
    const { kind, KIND, dep_idx, dep_ptr } = timeline.graph;
    const awaited = (d) => kind[d] !== KIND.compute && kind[d] !== KIND.begin;
    return latest(timeline, dep_idx, dep_ptr[row], dep_ptr[row + 1], awaited);
  }

  /* Adds one idle time as gaps, cut where what ended it was launched: before that it had another cause. */
  function waits(timeline, columns, rank, start, end, row, first) {
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
    gap(timeline, columns, rank, start, until, row, first);
    for (let i = cuts.length - 1; i >= 0; i--) {
      const [awaited, launched] = cuts[i];
      gap(timeline, columns, rank, launched, i > 0 ? cuts[i - 1][1] : end, awaited, false);
    }
  }

  /* Adds the gap that the end of `row` closed, `comm` seconds of it with the awaited message on the wire. */
  function gap(timeline, columns, rank, start, end, row, first) {
    const otherwise = first ? WARM_UP : DEPENDENCY;
    if (row < 0) {
      add(columns, rank, start, end, otherwise, -1, 0, -1);
      return;
    }
    const comm = Math.max(0, Math.min(end, timeline.end[row]) - Math.max(start, timeline.underWay(row)));
    const cause = comm >= (end - start) / 2 ? COMMUNICATION : otherwise;
    add(columns, rank, start, end, cause, timeline.graph.axis[row], comm, row);
  }

  function add(columns, rank, start, end, cause, axis, comm, row) {
    const i = columns.n++;
    if (i >= columns.row.length) throw new Error("more gaps than events that could end one");
    columns.rank[i] = rank;
    columns.start[i] = start;
    columns.end[i] = end;
    columns.cause[i] = cause;
    columns.axis[i] = axis;
    columns.comm[i] = comm;
    columns.row[i] = row;
  }

  /* Seconds each rank's compute lane stood still with the awaited message on the wire. */
  function exposedComm(timeline) {
    const exposed = new Array(timeline.graph.ranks).fill(0);
    const { n, rank, comm } = timeline.allGaps;
    for (let i = 0; i < n; i++) exposed[rank[i]] += comm[i];
    return exposed;
  }

  return { IDLE_CAUSES, gaps, exposedComm };
})();
