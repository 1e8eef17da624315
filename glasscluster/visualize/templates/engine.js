"use strict";
/* The page's replay engine: what sim/time/cost.py, sim/time/replay.py and sim/time/timeline.py do, over the graph that the page carries.
   No DOM here. The same operations in the same order, so start times equal Python's; tests/visualize/test_engine.py holds
   them to it. Rows stand in canonical order (rank, lane, order). */
const GlassEngine = (function () {
  const DRAWN = ["forward", "backward", "weight", "recompute", "optimizer", "other", "collective", "p2p", "host", "bubble"];
  const CAUSES = ["communication", "dependency", "warm-up", "drain"];
  const AS_RECORDED = { bandwidth: 1, latency: 1, flops: 1, slowRank: 0, slowFactor: 1, kind: "", factor: 1 };

  // ---- unpack (visualize/pack.py) ------------------------------------------------------------------------------
  async function inflate(base64) {
    const packed = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  function column(raw, at, width, n, wide) {
    const out = wide ? new Float64Array(n) : new Int32Array(n);
    const bits = 8 * width;
    let sum = 0;
    for (let i = 0; i < n; i++) {
      let step;
      if (width === 1) step = (raw[at + i] << 24) >> 24;
      else if (width === 2) step = ((raw[at + i] | (raw[at + n + i] << 8)) << 16) >> 16;
      else {
        step = raw[at + i] | (raw[at + n + i] << 8) | (raw[at + 2 * n + i] << 16) | (raw[at + 3 * n + i] << 24);
        if (bits === 64) {
          const high = raw[at + 4 * n + i] | (raw[at + 5 * n + i] << 8) | (raw[at + 6 * n + i] << 16) | (raw[at + 7 * n + i] << 24);
          step = high * 4294967296 + (step >>> 0);
        }
      }
      sum += step;
      out[i] = sum;
    }
    return out;
  }

  async function unpack(packed) {
    const raw = await inflate(packed.data);
    const g = { ranks: packed.ranks, names: packed.names, groups: packed.groups, info: packed.info, memory: packed.memory };
    Object.assign(g, { kinds: packed.kinds, phases: packed.phases, purposes: packed.purposes, lanesPerGroup: packed.lanes_per_group });
    let at = 0;
    for (const [name, width, n] of packed.columns) {
      g[name] = column(raw, at, width, n, /^(flops|bytes|memory_.*)$/.test(name));
      at += n * width;
    }
    return prepare(g);
  }

  // ---- what does not change while times do -----------------------------------------------------------------------
  function prepare(g) {
    const n = (g.n = g.rank.length);
    g.KIND = Object.fromEntries(g.kinds.map((k, i) => [k, i]));
    g.ptr = new Int32Array(n + 1);
    for (let i = 0; i < n; i++) g.ptr[i + 1] = g.ptr[i] + g.dep_count[i];
    g.dep = new Int32Array(g.ptr[n]);
    for (let i = 0; i < n; i++) for (let k = g.ptr[i]; k < g.ptr[i + 1]; k++) g.dep[k] = i - g.dep_back[k];
    g.order_ = topological(g);
    g.group = Int32Array.from(g.lane, (lane) => (lane === 0 ? -1 : Math.floor((lane - 1) / g.lanesPerGroup)));
    groupsAndAxes(g);
    g.native = g.names.map((name) => name.endsWith("/native"));
    g.computeRows = Array.from({ length: g.ranks }, () => []);
    g.rows = Array.from({ length: g.ranks }, () => []);
    for (let i = 0; i < n; i++) {
      g.rows[g.rank[i]].push(i);
      if (g.kind[i] === g.KIND.compute) g.computeRows[g.rank[i]].push(i);
    }
    return g;
  }

  function topological(g) {
    const n = g.n;
    const missing = Int32Array.from(g.dep_count);
    const start = new Int32Array(n + 1);
    const count = (from) => { start[from + 1]++; };
    g.dep.forEach(count);
    for (let i = 0; i < n; i++) if (g.match[i] >= 0) { count(g.match[i]); missing[i]++; }
    for (let i = 0; i < n; i++) start[i + 1] += start[i];
    const followers = new Int32Array(start[n]);
    const filled = start.slice(0, n);
    for (let i = 0; i < n; i++) {
      for (let k = g.ptr[i]; k < g.ptr[i + 1]; k++) followers[filled[g.dep[k]]++] = i;
      if (g.match[i] >= 0) followers[filled[g.match[i]]++] = i;
    }
    const order = new Int32Array(n);
    let end = 0;
    for (let i = 0; i < n; i++) if (missing[i] === 0) order[end++] = i;
    for (let at = 0; at < end; at++) {
      for (let k = start[order[at]]; k < start[order[at] + 1]; k++) if (--missing[followers[k]] === 0) order[end++] = followers[k];
    }
    if (end !== n) throw new Error("the recorded events depend on each other in a circle");
    return order;
  }

  /* Number the axes, and give every collective of a communicator one number (`join`) on all its ranks. */
  function groupsAndAxes(g) {
    const axes = [];
    const joins = new Map();
    g.axis = new Int32Array(g.n).fill(-1);
    g.join = new Int32Array(g.n).fill(-1);
    for (let i = 0; i < g.n; i++) {
      if (g.group[i] < 0) continue;
      const [axis, members] = g.groups[g.rank[i]][g.group[i]];
      let number = axes.indexOf(axis);
      if (number < 0) number = axes.push(axis) - 1;
      g.axis[i] = number;
      if (g.sequence[i] < 0) continue;
      const key = g.group[i] + "/" + members[0] + "/" + g.sequence[i];
      if (!joins.has(key)) joins.set(key, joins.size);
      g.join[i] = joins.get(key);
    }
    g.axes = axes;
    g.joins = joins.size;
  }

  /* The phases computed and the axes communicated on: what "faster" may name. */
  function kindsOfWork(g) {
    const phases = new Set();
    for (let i = 0; i < g.n; i++) if (g.kind[i] === g.KIND.compute) phases.add(g.phase[i]);
    return [...g.phases.filter((_, i) => phases.has(i)), ...g.axes.slice().sort()];
  }

  // ---- cost (sim/time/cost.py) ---------------------------------------------------------------------------------------
  function costs(g, hw, given) {
    const knobs = Object.assign({}, AS_RECORDED, given);
    const duration = new Float64Array(g.n);
    const latency = new Float64Array(g.n);
    const K = g.KIND;
    const peaks = g.names.map((name) => knobs.flops * (hw.fp8 && hw.fp8.kernels.includes(name) ? hw.fp8.peak : hw.peak));
    const links = hw.links.map((x) => ({ bandwidth: x.bandwidth * knobs.bandwidth, latency: x.latency_s * knobs.latency, overhead: x.overhead_s * knobs.latency }));
    const node = (rank) => Math.floor(rank / hw.node_size);
    const phase = g.phases.indexOf(knobs.kind);
    const axis = g.axes.indexOf(knobs.kind);
    const slow = hw.slow || {}; // how the run was replayed before anybody asked "what if"
    const faster = Object.entries(hw.faster || {});
    const quicker = (i, factor) => { duration[i] /= factor; latency[i] /= factor; };
    const library = (hw.native || []).map(reals); // seconds of latency, seconds of moving bytes, of each native collective
    let natives = 0;
    for (let i = 0; i < g.n; i++) {
      const kind = g.kind[i];
      if (kind === K.compute) {
        duration[i] = hw.launch_s + Math.max(g.flops[i] / peaks[g.op[i]], g.bytes[i] / hw.memory_bandwidth);
        if (slow[g.rank[i]]) duration[i] *= slow[g.rank[i]];
        if (g.rank[i] === knobs.slowRank) duration[i] *= knobs.slowFactor;
        faster.forEach(([kind, factor]) => { if (g.phases[g.phase[i]] === kind) quicker(i, factor); });
        if (g.phase[i] === phase) quicker(i, knobs.factor);
        continue;
      }
      if (kind === K.send || kind === K.recv) {
        const link = links[node(g.rank[i]) === node(g.peer[i]) ? 0 : 1];
        if (kind === K.send) duration[i] = link.overhead + g.bytes[i] / link.bandwidth;
        else latency[i] = link.latency;
      } else if (kind === K.reduce) duration[i] = hw.reduce_rate === null ? 0 : g.bytes[i] / hw.reduce_rate;
      else if (kind === K.host) duration[i] = g.names[g.op[i]] === "update" ? g.bytes[i] / hw.host.memory_bandwidth : hw.host.alpha + g.bytes[i] / hw.host.bandwidth;
      else if (kind === K.collective && g.native[g.op[i]]) {
        duration[i] = library.length ? library[0][natives] * knobs.latency + library[1][natives++] / knobs.bandwidth : native(g, i, links, node);
      }
      faster.forEach(([kind, factor]) => { if (g.axes[g.axis[i]] === kind) quicker(i, factor); });
      if (axis >= 0 && g.axis[i] === axis) quicker(i, knobs.factor);
    }
    if (hw.shared) { // messages that shared links: as Python replayed them
      const seconds = reals(hw.shared);
      for (let i = 0; i < g.n; i++) {
        if (g.kind[i] === K.send) duration[i] = seconds[i];
        else if (g.kind[i] === K.recv) latency[i] = seconds[i];
      }
    }
    return { duration, latency };
  }

  function reals(base64) {
    return new Float64Array(Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)).buffer);
  }

  function native(g, i, links, node) {
    const members = g.groups[g.rank[i]][g.group[i]][1];
    const link = links[new Set(members.map(node)).size > 1 ? 1 : 0];
    const steps = (g.names[g.op[i]].startsWith("all_reduce") ? 2 : 1) * (members.length - 1);
    return steps * (link.overhead + link.latency + g.bytes[i] / members.length / link.bandwidth);
  }

  // ---- replay (sim/time/replay.py) -----------------------------------------------------------------------------------
  function longestPath(g, cost) {
    const start = new Float64Array(g.n);
    const end = new Float64Array(g.n);
    let makespan = 0;
    for (let at = 0; at < g.n; at++) {
      const i = g.order_[at];
      let t = 0;
      for (let k = g.ptr[i]; k < g.ptr[i + 1]; k++) { const e = end[g.dep[k]]; if (e > t) t = e; }
      if (g.match[i] >= 0) { const arrival = end[g.match[i]] + cost.latency[i]; if (arrival > t) t = arrival; }
      start[i] = t;
      end[i] = t + cost.duration[i];
      if (end[i] > makespan) makespan = end[i];
    }
    return { start, end, makespan, duration: cost.duration };
  }

  // ---- the timeline (sim/time/timeline.py) ---------------------------------------------------------------------------
  function wire(g, t) {
    const everyone = new Float64Array(g.joins);
    const launched = new Map(); // join * ranks + rank -> when this rank launched it
    const launchRow = new Map();
    for (let i = 0; i < g.n; i++) {
      if (g.kind[i] !== g.KIND.begin) continue;
      launched.set(g.join[i] * g.ranks + g.rank[i], t.start[i]);
      launchRow.set(g.join[i] * g.ranks + g.rank[i], i);
      if (t.start[i] > everyone[g.join[i]]) everyone[g.join[i]] = t.start[i];
    }
    return { everyone, launched, launchRow };
  }

  function underWay(g, t, w, i) {
    if (g.kind[i] === g.KIND.recv) return t.start[g.match[i]];
    if (g.kind[i] === g.KIND.host) return 0; // waiting for the host, whether its link or its CPU is busy
    return g.kind[i] === g.KIND.send ? t.start[i] : w.everyone[g.join[i]];
  }

  /* The latest of a row's dependencies that passes `keep`; of equal ones the first in canonical order. */
  function latest(g, t, i, keep) {
    let best = -1;
    for (let k = g.ptr[i]; k < g.ptr[i + 1]; k++) {
      const d = g.dep[k];
      if (keep(d) && (best < 0 || t.end[d] > t.end[best] || (t.end[d] === t.end[best] && d < best))) best = d;
    }
    return best;
  }

  function criticalPath(g, t) {
    if (!g.n) return [];
    let row = 0;
    for (let i = 1; i < g.n; i++) if (t.end[i] > t.end[row]) row = i;
    const path = [row];
    while (t.start[row] > 0) {
      let best = latest(g, t, row, () => true);
      if (g.match[row] >= 0 && (best < 0 || t.end[best] < t.start[row])) best = g.match[row];
      if (best < 0) break;
      path.push((row = best));
    }
    return path.reverse();
  }

  function gaps(g, t, w) {
    const found = [];
    const add = (rank, start, end, row, first) => {
      if (row < 0) { found.push({ rank, start, end, cause: first ? "warm-up" : "dependency", axis: "", comm: 0, row }); return; }
      const comm = Math.max(0, Math.min(end, t.end[row]) - Math.max(start, underWay(g, t, w, row)));
      const cause = comm >= (end - start) / 2 ? "communication" : first ? "warm-up" : "dependency";
      found.push({ rank, start, end, cause, axis: g.axes[g.axis[row]], comm, row });
    };
    const awaited = (d) => g.kind[d] !== g.KIND.compute && g.kind[d] !== g.KIND.begin;
    /* An idle stretch, cut where what ended it was launched: before that the program waited for something else. */
    const waits = (rank, start, end, row, first) => {
      const parts = [];
      while (row >= 0 && g.kind[row] === g.KIND.collective) {
        const launch = w.launchRow.get(g.join[row] * g.ranks + rank);
        if (t.start[launch] <= start) break;
        parts.push([t.start[launch], end, row, false]);
        end = t.start[launch];
        row = latest(g, t, launch, awaited);
      }
      parts.push([start, end, row, first]);
      parts.reverse().forEach((part) => add(rank, ...part));
    };
    for (let rank = 0; rank < g.ranks; rank++) {
      let clock = 0;
      g.computeRows[rank].forEach((row, number) => {
        if (t.start[row] > clock) waits(rank, clock, t.start[row], latest(g, t, row, awaited), number === 0);
        clock = t.end[row];
      });
      if (t.makespan <= clock) continue;
      let last = -1;
      for (const i of g.rows[rank]) {
        if (g.kind[i] !== g.KIND.compute && t.end[i] > clock && (last < 0 || t.end[i] > t.end[last])) last = i;
      }
      if (last >= 0) { add(rank, clock, t.end[last], last, false); clock = t.end[last]; }
      if (t.makespan > clock) found.push({ rank, start: clock, end: t.makespan, cause: "drain", axis: "", comm: 0, row: -1 });
    }
    return found;
  }

  function summary(g, t, idle) {
    const used = g.phases.map((p) => ["forward", "backward", "weight", "recompute"].includes(p));
    const any = g.computeRows.some((rows) => rows.some((i) => used[g.phase[i]]));
    let first = Infinity, last = 0, useful = 0;
    g.computeRows.forEach((rows) => {
      let mine = 0;
      rows.forEach((i) => {
        if (any && !used[g.phase[i]]) return;
        first = Math.min(first, t.start[i]);
        last = Math.max(last, t.end[i]);
        mine += t.end[i] - t.start[i];
      });
      useful += mine;
    });
    const span = last > first ? last - first : 0;
    const exposed = idle.reduce((sum, gap) => sum + gap.comm, 0) / (g.ranks || 1);
    return { makespan: t.makespan, bubble: span ? (g.ranks * span - useful) / (g.ranks * span) : 0, exposed };
  }

  // ---- what is drawn: blocks, communications, gaps; arrays, sorted by lane and start ------------------------------
  function bars(g, t, path) {
    const w = wire(g, t);
    const K = g.KIND;
    const idle = gaps(g, t, w);
    const onPath = new Uint8Array(g.n);
    const joinOnPath = new Set();
    path.forEach((i) => { onPath[i] = 1; if (g.join[i] >= 0) joinOnPath.add(g.join[i] * g.ranks + g.rank[i]); });
    const b = { kind: [], rank: [], axis: [], start: [], end: [], first: [], last: [], critical: [], micro: [], cause: [] };
    const push = (kind, rank, axis, start, end, first, last, critical, micro, cause) => {
      b.kind.push(kind); b.rank.push(rank); b.axis.push(axis); b.start.push(start); b.end.push(end);
      b.first.push(first); b.last.push(last); b.critical.push(critical ? 1 : 0); b.micro.push(micro); b.cause.push(cause);
    };
    const drawn = g.phases.map((p) => DRAWN.indexOf(p));
    for (let rank = 0; rank < g.ranks; rank++) {
      let open = -1;
      for (const i of g.computeRows[rank]) {
        if (t.end[i] <= t.start[i]) continue;
        const at = b.kind.length - 1;
        if (open === at && at >= 0 && b.kind[at] === drawn[g.phase[i]] && b.micro[at] === g.micro_batch[i] && t.start[i] - b.end[at] <= 1e-12) {
          b.end[at] = t.end[i];
          b.last[at] = i;
          if (onPath[i]) b.critical[at] = 1;
        } else {
          open = at + 1;
          push(drawn[g.phase[i]], rank, -1, t.start[i], t.end[i], i, i, onPath[i], g.micro_batch[i], -1);
        }
      }
    }
    const previous = new Map(); // collectives of one communicator run one after the other
    for (let i = 0; i < g.n; i++) {
      const whole = g.kind[i] === K.collective;
      if (!whole && g.kind[i] !== K.host && !(g.kind[i] === K.send && g.sequence[i] < 0)) continue;
      let begun = t.start[i];
      if (whole) {
        const key = g.rank[i] + "/" + g.group[i];
        begun = Math.max(w.everyone[g.join[i]], previous.get(key) || 0);
        previous.set(key, t.end[i]);
      }
      const critical = onPath[i] || (g.join[i] >= 0 && joinOnPath.has(g.join[i] * g.ranks + g.rank[i]));
      push(DRAWN.indexOf(whole ? "collective" : g.kind[i] === K.host ? "host" : "p2p"), g.rank[i], g.axis[i], begun, t.end[i], i, i, critical, -1, -1);
    }
    for (const gap of idle) {
      if (gap.end > gap.start) push(DRAWN.indexOf("bubble"), gap.rank, -1, gap.start, gap.end, gap.row, gap.row, 0, -1, CAUSES.indexOf(gap.cause));
    }
    return Object.assign(sorted(g, b), { idle, launched: w.launched });
  }

  /* Bars by lane, each lane by start. Bars of a lane were found in order but for the gaps after its blocks: sort what is not. */
  function sorted(g, b) {
    const n = b.kind.length;
    const lanes = 1 + g.axes.length;
    const ptr = new Int32Array(g.ranks * lanes + 1);
    const lane = new Int32Array(n);
    for (let i = 0; i < n; i++) { lane[i] = b.rank[i] * lanes + 1 + b.axis[i]; ptr[lane[i] + 1]++; }
    for (let i = 0; i < g.ranks * lanes; i++) ptr[i + 1] += ptr[i];
    const order = new Int32Array(n);
    const filled = ptr.slice(0, g.ranks * lanes);
    for (let i = 0; i < n; i++) order[filled[lane[i]]++] = i;
    for (let l = 0; l < g.ranks * lanes; l++) inOrder(order, ptr[l], ptr[l + 1], b.start);
    const out = { n, lanes, lanePtr: ptr, lane: take(lane, order, Int32Array) };
    for (const name of ["start", "end"]) out[name] = take(b[name], order, Float64Array);
    for (const name of ["kind", "rank", "axis", "first", "last", "critical", "micro", "cause"]) out[name] = take(b[name], order, Int32Array);
    return out;
  }

  function take(values, order, Kind) {
    const out = new Kind(order.length);
    for (let i = 0; i < order.length; i++) out[i] = values[order[i]];
    return out;
  }

  /* Two runs that are each in order become one; anything else is sorted. */
  function inOrder(order, from, to, start) {
    let turn = to;
    for (let i = from + 1; i < to; i++) if (start[order[i]] < start[order[i - 1]]) { turn = i; break; }
    if (turn === to) return;
    for (let i = turn + 1; i < to; i++) {
      if (start[order[i]] < start[order[i - 1]]) { order.subarray(from, to).sort((x, y) => start[x] - start[y] || x - y); return; }
    }
    const first = order.slice(from, turn);
    for (let a = 0, b = turn, at = from; a < first.length; at++) {
      order[at] = b < to && start[order[b]] < start[first[a]] ? order[b++] : first[a++];
    }
  }

  /* One call for the page: knobs in, everything that is drawn or printed out. */
  function play(g, hw, knobs) {
    const t = longestPath(g, costs(g, hw, knobs));
    const path = criticalPath(g, t);
    const b = bars(g, t, path);
    return { times: t, path, bars: b, summary: summary(g, t, b.idle) };
  }

  // ---- downloads (visualize/page/trace.py) ---------------------------------------------------------------------------
  function chromeTrace(g, t, hardware) {
    const events = [];
    const K = g.KIND;
    const lanes = ["collectives", "sends", "receives", "launches", "messages out", "messages in"];
    const us = (seconds) => Math.round(seconds * 1e12) / 1e6;
    for (let r = 0; r < g.ranks; r++) events.push({ ph: "M", name: "process_name", pid: r, args: { name: "rank " + r } });
    const seen = new Set();
    for (let i = 0; i < g.n; i++) {
      const pid = g.rank[i], tid = g.lane[i], kind = g.kind[i];
      if (!seen.has(pid + "/" + tid)) {
        seen.add(pid + "/" + tid);
        const name = tid === 0 ? "compute" : (g.axes[g.axis[i]] || "world") + " " + lanes[(tid - 1) % g.lanesPerGroup];
        events.push({ ph: "M", name: "thread_name", pid, tid, args: { name } });
      }
      if (kind === K.begin) continue;
      const args = { phase: g.phases[g.phase[i]], bytes: g.bytes[i] };
      if (kind === K.compute) Object.assign(args, { flops: g.flops[i], layer: g.layer[i], micro_batch: g.micro_batch[i] });
      else if (kind === K.send || kind === K.recv) args.peer = g.peer[i];
      else if (kind === K.collective) args.sequence = g.sequence[i];
      const name = g.names[g.op[i]] + (g.label[i] >= 0 && g.names[g.label[i]] ? " · " + g.names[g.label[i]] : "");
      events.push({ ph: "X", name, cat: g.kinds[kind], pid, tid, ts: us(t.start[i]), dur: us(t.end[i] - t.start[i]), args });
      if (kind === K.recv && g.match[i] >= 0) {
        const s = g.match[i];
        const common = { name: "message", cat: "message", id: i };
        events.push({ ph: "s", ...common, pid: g.rank[s], tid: g.lane[s], ts: us(t.start[s]) });
        events.push({ ph: "f", bp: "e", ...common, pid, tid, ts: us(t.end[i]) });
      }
    }
    return { traceEvents: events, displayTimeUnit: "ns", otherData: { hardware, time: "virtual" } };
  }

  return { DRAWN, CAUSES, AS_RECORDED, unpack, kindsOfWork, costs, longestPath, criticalPath, gaps, bars, summary, play, chromeTrace, wire };
})();
