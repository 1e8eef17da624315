"use strict";
/* When everything happened, and questions of it.
   Counterpart: glasscluster/sim/time/timeline.py; only what the page asks is here. Idle time is worked out in
   idle.js, the critical path in critical_path.js, what is drawn in bars.js. */
const GlassTimeline = (function () {
  const USEFUL = ["forward", "backward", "weight", "recompute"];

  class Timeline {
    #known = {};

    /* `start` and `end`: seconds of every row of `graph`. */
    constructor(graph, start, end) {
      Object.assign(this, { graph, start, end });
      this.makespan = 0;
      for (let i = 0; i < end.length; i++) if (end[i] > this.makespan) this.makespan = end[i];
    }

    /* What `make` gives, worked out once. */
    #once(name, make) {
      if (!(name in this.#known)) this.#known[name] = make();
      return this.#known[name];
    }

    // ---- when communication began
    /* Of each collective, by its number: the row of the last launch, that of the lowest rank of several. */
    #lastLaunches() {
      const { graph, start } = this;
      const last = new Int32Array(graph.joins).fill(-1);
      for (const i of graph.launches) {
        const join = graph.join[i];
        if (last[join] < 0 || start[i] > start[last[join]]) last[join] = i;
      }
      return last;
    }

    #lastLaunch(row) {
      return this.graph.join[row] < 0 ? -1 : this.#once("launches", () => this.#lastLaunches())[this.graph.join[row]];
    }

    /* The row with which the rank of collective `row` launched it. */
    launch(row) {
      return this.graph.launchOf[row];
    }

    /* When (seconds) a collective or message really began: when everybody had come to it. */
    underWay(row) {
      const { kind, KIND, match } = this.graph;
      if (kind[row] === KIND.recv) return this.start[match[row]];
      if (kind[row] === KIND.send) return this.start[row];
      if (kind[row] === KIND.host) return 0; // the host: its link or its CPU is busy
      const last = this.#lastLaunch(row);
      return last < 0 ? 0 : this.start[last];
    }

    /* The rank that whoever waits for a row waits for: of a message the one at its other end, of a collective
       the one that came to it last, of the host's work the rank itself. */
    awaited(row) {
      const { kind, KIND, match, rank, peer } = this.graph;
      if (kind[row] === KIND.recv) return rank[match[row]];
      if (kind[row] === KIND.send) return peer[row];
      const last = kind[row] === KIND.host ? -1 : this.#lastLaunch(row);
      return rank[last < 0 ? row : last];
    }

    /* The rank that finishes last, the lowest of several. */
    get lastRank() {
      return this.#once("lastRank", () => {
        const ends = new Float64Array(this.graph.ranks);
        for (let i = 0; i < this.end.length; i++) {
          const rank = this.graph.rank[i];
          if (this.end[i] > ends[rank]) ends[rank] = this.end[i];
        }
        return ends.indexOf(Math.max(...ends));
      });
    }

    // ---- busy time and bubbles
    /* Rows of forward and backward compute, rank by rank; all compute when nothing is labelled so. */
    #useful() {
      const { graph } = this;
      const labelled = graph.phases.map((phase) => USEFUL.includes(phase));
      const chosen = graph.computing.map((rows) => rows.filter((row) => labelled[graph.phase[row]]));
      return chosen.some((rows) => rows.length) ? chosen : graph.computing;
    }

    /* From the first forward to the last backward; the whole run when nothing is labelled so. */
    get window() {
      let [first, last] = [Infinity, -Infinity];
      for (const rows of this.#once("useful", () => this.#useful())) {
        for (const row of rows) {
          first = Math.min(first, this.start[row]);
          last = Math.max(last, this.end[row]);
        }
      }
      return first === Infinity ? [0, this.makespan] : [first, last];
    }

    /* Seconds of forward and backward compute of each rank. */
    useful() {
      const seconds = (sum, row) => sum + (this.end[row] - this.start[row]);
      return this.#once("useful", () => this.#useful()).map((rows) => rows.reduce(seconds, 0));
    }

    /* Of the papers' three bubbles the first: idle time as a fraction of the window; null without a pipeline. */
    bubble() {
      if (!this.graph.pipelined) return { bubble_fraction: null };
      const [first, last] = this.window;
      const total = this.graph.ranks * (last - first);
      const idle = total - this.useful().reduce((sum, seconds) => sum + seconds, 0);
      return { bubble_fraction: total ? idle / total : 0 };
    }

    // ---- idle time (idle.js)
    gaps(rank, columns) {
      return GlassIdle.gaps(this, rank, columns);
    }

    get allGaps() {
      return this.#once("gaps", () => {
        let columns;
        for (let rank = 0; rank < this.graph.ranks; rank++) columns = this.gaps(rank, columns);
        return columns;
      });
    }

    exposedComm() {
      return GlassIdle.exposedComm(this);
    }

    breakdown(rank = this.lastRank) {
      return GlassIdle.breakdown(this, rank);
    }

    // ---- the critical path (critical_path.js)
    get criticalPath() {
      return this.#once("path", () => GlassCriticalPath.criticalPath(this));
    }

    /* The figures of the line under the sliders, named as in the JSON of `glass train`. */
    summary() {
      return this.#once("summary", () => this.#summary());
    }

    #summary() {
      const exposed = this.exposedComm().reduce((sum, seconds) => sum + seconds, 0);
      const exposed_comm_s = this.graph.ranks ? exposed / this.graph.ranks : 0;
      const breakdown_s = this.breakdown();
      return { makespan_s: this.makespan, ...this.bubble(), exposed_comm_s, breakdown_s };
    }

    // ---- for pictures (bars.js)
    blocks() {
      return GlassBars.blocks(this);
    }

    communications() {
      return GlassBars.communications(this);
    }
  }

  return { USEFUL, Timeline };
})();
