"use strict";
/* What every rank did, as columns of events and their dependencies.
   Counterpart: glasscluster/sim/recording/graph.py.

   Here rows stand in canonical order (rank, lane, order), so a row number is also its place in that order. */
const GlassGraph = (function () {
  class ExecutionGraph {
    /* `columns` as packed; `meta`: ranks, names, groups, and the words that columns hold numbers of. */
    constructor(columns, meta) {
      Object.assign(this, columns);
      this.ranks = meta.ranks;
      this.names = meta.names;
      this.groups = meta.groups;
      this.kinds = meta.kinds;
      this.phases = meta.phases;
      this.lanesPerGroup = meta.lanes_per_group;
      this.KIND = Object.fromEntries(meta.kinds.map((kind, i) => [kind, i]));
      const K = this.KIND;
      const n = (this.n = this.rank.length);
      this.dep_ptr = new Int32Array(n + 1);
      for (let i = 0; i < n; i++) this.dep_ptr[i + 1] = this.dep_ptr[i] + this.dep_count[i];
      this.dep_idx = new Int32Array(this.dep_ptr[n]);
      for (let i = 0; i < n; i++) {
        for (let k = this.dep_ptr[i]; k < this.dep_ptr[i + 1]; k++) this.dep_idx[k] = i - this.dep_back[k];
      }
      this.inOrder = GlassOrder.topologicalOrder(this);
      const lanes = this.lanesPerGroup;
      this.group = Int32Array.from(this.lane, (lane) => (lane === 0 ? -1 : Math.floor((lane - 1) / lanes)));
      nameAxesAndJoins(this);
      this.rows = Array.from({ length: this.ranks }, () => []);
      for (let i = 0; i < n; i++) this.rows[this.rank[i]].push(i);
      this.computing = this.rows.map((rows) =>
        Int32Array.from(rows.filter((i) => this.kind[i] === K.compute)),
      );
      const drawn = (kind, sequence) => // a message of a collective is part of that
        kind === K.collective || kind === K.host || (kind === K.send && sequence < 0);
      this.communicating = this.rows.flat().filter((i) => drawn(this.kind[i], this.sequence[i]));
      this.communicating = Int32Array.from(this.communicating);
      nameLaunches(this);
      this.stages = stages(this);
      this.pipelined = this.stages.some((stage) => stage > 0);
    }

    /* The rows that a row follows (its message is not among them: see `match`). */
    dependencies(row) {
      const rows = []; // an array and no view of dep_idx: those take a hundred times as long to make
      for (let k = this.dep_ptr[row]; k < this.dep_ptr[row + 1]; k++) rows.push(this.dep_idx[k]);
      return rows;
    }

    /* The axis name of a row's communicator, "" for compute. */
    axisOf(row) {
      return this.axis[row] < 0 ? "" : this.axes[this.axis[row]];
    }
  }

  /* Sets `axes`; `axis`, every row's number among them; `join`, one number for a collective on all ranks. */
  function nameAxesAndJoins(graph) {
    const axes = [];
    const joins = new Map();
    graph.axis = new Int32Array(graph.n).fill(-1);
    graph.join = new Int32Array(graph.n).fill(-1);
    for (let i = 0; i < graph.n; i++) {
      if (graph.group[i] < 0) continue;
      const [axis, members] = graph.groups[graph.rank[i]][graph.group[i]];
      let number = axes.indexOf(axis);
      if (number < 0) number = axes.push(axis) - 1;
      graph.axis[i] = number;
      if (graph.sequence[i] < 0) continue;
      const key = graph.group[i] + "/" + members[0] + "/" + graph.sequence[i];
      if (!joins.has(key)) joins.set(key, joins.size);
      graph.join[i] = joins.get(key);
    }
    graph.axes = axes;
    graph.joins = joins.size;
  }

  /* Each rank's pipeline stage: its place in its longest communicator on the axis `pp`, else 0. */
  function stages(graph) {
    return Array.from({ length: graph.ranks }, (_, rank) => {
      let longest = [rank];
      for (const [axis, members] of Object.values(graph.groups[rank] || {})) {
        const mine = axis === "pp" && members.includes(rank);
        if (mine && members.length > longest.length) longest = members;
      }
      return longest.indexOf(rank);
    });
  }

  /* Sets `launches`, the rows that launched a collective, and `launchOf`: of each row of a collective the one
     with which its rank launched it, else -1. */
  function nameLaunches(graph) {
    const { n, ranks, rank, kind, join, KIND } = graph;
    const launch = new Map();
    for (let i = 0; i < n; i++) if (kind[i] === KIND.begin) launch.set(join[i] * ranks + rank[i], i);
    graph.launches = Int32Array.from(launch.values());
    graph.launchOf = new Int32Array(n).fill(-1);
    for (let i = 0; i < n; i++) {
      if (join[i] >= 0) graph.launchOf[i] = launch.get(join[i] * ranks + rank[i]) ?? -1;
    }
  }

  /* Rows of a rank's compute lane in program order. */
  function computeRows(graph, rank) {
    return graph.computing[rank];
  }

  return { ExecutionGraph, computeRows };
})();
