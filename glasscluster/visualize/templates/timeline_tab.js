"use strict";
/* The timeline tab: plotly draws axes, legend and, up to 2,000 bars, the bars; above that, and while a
   what-if is on, the bars are on a canvas. Hover, choice, what-if and downloads ask the replayed graph, never
   the picture. */
const GlassTimelineTab = function (page) {
  const { DRAWN, FIRST_IDLE } = GlassBarArrays;
  const { data, say } = page;
  const graphs = new Map(); // chapter number -> promise of its graph
  const views = new Map(); // figure id -> what is known and drawn of it
  const stageOf = (id) => document.querySelector('figure[data-fig="' + id + '"] .stage');
  const CHOICES = 2000; // rows of a table, and bars one by one

  // ---- knobs: slider positions are in the page's state, as text
  const DEFAULTS = { bw: "1", lat: "1", flops: "1", slow: "0:1", faster: ":1" };
  function knobs() {
    const s = Object.assign({}, DEFAULTS, page.state());
    const [slowRank, slowFactor] = s.slow.split(":").map(Number);
    const [kind, factor] = s.faster.split(":");
    const number = (text) => (Number(text) > 0 && Number.isFinite(Number(text)) ? Number(text) : 1);
    return {
      bandwidth: number(s.bw),
      latency: number(s.lat),
      flops: number(s.flops),
      slowRank,
      slowFactor: number(slowFactor),
      kind,
      factor: number(factor),
    };
  }
  const movesAnything = (k) =>
    k.bandwidth !== 1 || k.latency !== 1 || k.flops !== 1 || k.slowFactor !== 1 || (k.kind && k.factor !== 1);

  function graph(number) {
    if (!graphs.has(number)) graphs.set(number, GlassPack.loadPacked(data.graphs[number]));
    return graphs.get(number);
  }

  /* A replay under some knobs, and its bars. */
  function replayed(g, about, k) {
    const timeline = GlassReplay.replay(g, about.hardware, k);
    return { timeline, bars: GlassBarArrays.barArrays(timeline) };
  }

  async function load(id) {
    if (!views.has(id)) {
      const about = data.views[id];
      const promise = graph(about.graph).then((g) => {
        const known = { id, about, g, kinds: GlassCost.kindsOfWork(g), base: replayed(g, about, {}) };
        return { ...known, hidden: new Set(), mode: "", lang: "" };
      });
      views.set(id, promise);
    }
    return views.get(id);
  }

  // ---- draw
  async function show(id) {
    const V = await load(id);
    // where links were shared the page cannot say what else would have happened
    const shared = Boolean(V.about.hardware.shared);
    const k = Object.assign(
      {},
      knobs(),
      shared ? { bandwidth: 1, latency: 1, flops: 1, slowFactor: 1, kind: "", factor: 1 } : {},
    );
    V.knobs = k;
    V.now = movesAnything(k) ? replayed(V.g, V.about, k) : V.base;
    const mode = V.about.canvas || V.now !== V.base ? "canvas" : "bars";
    const shape = page.figures.shape(id);
    if (V.mode !== mode || V.lang !== page.state().lang || V.shape !== shape) await outline(V, mode, shape);
    reach(V);
    tell(V);
    choose(V, find(V, page.state().sel)); // and paints
    window.glassReady = window.glassReady || performance.now();
  }

  async function outline(V, mode, shape) {
    const content = page.content(V.id);
    if (mode === "canvas")
      content.data = content.data.map((t) =>
        Object.assign(t, { x: [null], y: [null], base: [0], width: 0.5, text: [""], customdata: null }),
      );
    const stage = stageOf(V.id);
    V.plot = stage.querySelector(".plot");
    const was = V.mode ? V.plot._fullLayout.xaxis.range.slice() : null;
    if (was) content.layout.xaxis.range = was;
    const drawing = page.figures.draw(V.id, content); // what follows may rely on a first drawing
    if (!V.mode) listen(V, stage);
    Object.assign(V, { mode, shape, lang: page.state().lang });
    V.full = V.full || content.layout.xaxis.range.slice();
    await drawing;
  }

  function listen(V, stage) {
    V.canvas = stage.querySelector("canvas.bars");
    V.marks = stage.querySelector("canvas.marks");
    V.tip = stage.querySelector(".tip");
    ["plotly_relayout", "plotly_afterplot"].forEach((name) => V.plot.on(name, () => paint(V)));
    V.plot.on("plotly_relayouting", (change) => paint(V, change));
    V.plot.on("plotly_restyle", () => {
      V.hidden = new Set();
      V.plot.data.forEach((t) => {
        if (t.visible === "legendonly")
          V.hidden.add(t.meta === "critical" ? "critical" : DRAWN.indexOf(t.meta));
      });
      paint(V);
    });
    let pressed = null;
    stage.addEventListener(
      "mousedown",
      (e) => {
        pressed = [e.clientX, e.clientY];
      },
      true,
    );
    window.addEventListener("mouseup", (e) => {
      if (pressed && Math.hypot(e.clientX - pressed[0], e.clientY - pressed[1]) < 4) {
        const i = under(V, e);
        if (i !== null) page.go({ sel: i < 0 ? "" : key(V, i) });
      }
      pressed = null;
    });
    stage.addEventListener("mousemove", (e) => hover(V, e));
    stage.addEventListener("mouseleave", () => {
      V.tip.hidden = true;
    });
  }

  function frame(V, change) {
    const layout = V.plot._fullLayout;
    const range =
      change && change["xaxis.range[0]"] !== undefined
        ? [change["xaxis.range[0]"], change["xaxis.range[1]"]]
        : layout.xaxis.range;
    const [yBottom, yTop] = layout.yaxis.range;
    const { l, t, w, h } = layout._size;
    return {
      x0: range[0] / V.about.factor,
      x1: range[1] / V.about.factor,
      left: l,
      top: t,
      width: w,
      height: h,
      yTop,
      yBottom,
      letters: layout.font.size,
    };
  }

  function paint(V, change) {
    if (!V.now || !V.plot._fullLayout || !V.plot.offsetParent) return;
    const view = frame(V, change);
    const bars = V.now.bars;
    let drawn = { single: bars.n, binned: 0, pixel: (view.x1 - view.x0) / view.width };
    V.canvas.hidden = V.mode !== "canvas";
    if (V.mode === "canvas")
      drawn = GlassCanvas.draw(V.canvas, V.g, bars, view, data.palette, V.hidden, (i) => digit(V, i));
    GlassCanvas.mark(V.marks, V.g, bars, view, V.chosen === undefined ? -1 : V.chosen, V.before || []);
    const note = stageOf(V.id).closest("figure").querySelector(".drawn");
    note.textContent = say("drawn", {
      events: V.g.n.toLocaleString("en"),
      blocks: bars.n.toLocaleString("en"),
      single: drawn.single.toLocaleString("en"),
      binned: drawn.binned.toLocaleString("en"),
      pixel: time(V, drawn.pixel, 3),
    });
  }

  /* The whole step stays in view when it grows; somebody who has zoomed keeps the zoom. */
  function reach(V) {
    const need = Math.max(V.base.timeline.makespan, V.now.timeline.makespan) * V.about.factor * 1.004;
    const range = V.plot._fullLayout.xaxis.range;
    const whole =
      Math.abs(range[0] - V.full[0]) < 1e-9 * need && Math.abs(range[1] - V.full[1]) < 1e-9 * V.full[1];
    V.full = [0, Number(need.toPrecision(7))];
    if (whole && Math.abs(range[1] - need) > 1e-3 * need)
      moduleName.relayout(V.plot, { "xaxis.range": V.full.slice() });
  }

  // ---- words for a bar
  const time = (V, seconds, digits) =>
    Number((seconds * V.about.factor).toPrecision(digits || 5)) + " " + V.about.unit;
  function size(bytes) {
    for (const [limit, name] of [
      [1e9, "GB"],
      [1e6, "MB"],
      [1e3, "kB"],
    ])
      if (bytes >= limit) return Number((bytes / limit).toPrecision(4)) + " " + name;
    return bytes + " B";
  }
  const kindOf = (V, i) => DRAWN[V.now.bars.kind[i]];
  const isGap = (V, i) => V.now.bars.kind[i] >= FIRST_IDLE;

  function digit(V, i) {
    const kind = kindOf(V, i),
      micro = V.now.bars.micro[i];
    if (kind === "optimizer") return say("opt");
    if (V.now.bars.axis[i] >= 0 || micro < 0 || kind === "other" || isGap(V, i)) return "";
    return kind === "weight" ? micro + "w" : String(micro);
  }

  function title(V, i) {
    const { g } = V,
      b = V.now.bars,
      kind = kindOf(V, i),
      row = b.first[i];
    const head = say("rank") + " " + b.rank[i] + " · ";
    if (kind === "collective" || kind === "p2p" || kind === "host")
      return (
        head +
        g.names[g.op[row]] +
        (g.label[row] >= 0 && g.names[g.label[row]] ? " " + g.names[g.label[row]] : "")
      );
    return (
      head +
      say(kind) +
      (!isGap(V, i) && kind !== "optimizer" && kind !== "other" && b.micro[i] >= 0
        ? " " + b.micro[i]
        : "")
    );
  }

  function describe(V, i) {
    const { g } = V,
      { bars: b, timeline: t } = V.now,
      kind = kindOf(V, i),
      row = b.first[i];
    const lines = [title(V, i)];
    if (kind === "p2p") lines.push(say("to_rank") + " " + g.peer[row]);
    if (kind === "collective") lines.push(say("launched") + " " + time(V, t.start[t.launch(row)]));
    lines.push(
      say("from_to") +
        " " +
        time(V, b.start[i]) +
        ", " +
        say("length") +
        " " +
        time(V, b.end[i] - b.start[i]),
    );
    if (kind === "collective" || kind === "p2p" || kind === "host")
      lines.push(size(g.bytes[row]) + ", " + say("axis") + " " + g.axes[b.axis[i]]);
    else if (isGap(V, i)) {
      const [other, axis] = [b.awaited[i], row >= 0 ? g.axis[row] : -1];
      if (kind === "exposed") lines[0] += " (" + g.axes[axis] + ")";
      if (other >= 0 && other !== b.rank[i]) lines.push(say("follows") + ": " + say("rank") + " " + other);
      lines.push(say("means_" + kind));
    } else
      lines.push(
        b.events[i] + " " + say("events") + ", " + Number((b.flops[i] / 1e6).toPrecision(4)) + " MFLOP",
      );
    return lines;
  }

  // ---- point, choose, follow
  function under(V, event) {
    const box = V.plot.getBoundingClientRect();
    const view = frame(V);
    const x = event.clientX - box.left - view.left,
      y = event.clientY - box.top - view.top;
    if (x < 0 || y < 0 || x > view.width || y > view.height) return null;
    const second = (view.x1 - view.x0) / view.width;
    return GlassCanvas.hit(
      V.g,
      V.now.bars,
      view.x0 + x * second,
      view.yTop + (y / view.height) * (view.yBottom - view.yTop),
      2 * second,
      V.hidden,
    );
  }

  function hover(V, event) {
    const i = V.mode === "canvas" && event.buttons === 0 ? under(V, event) : null;
    V.tip.hidden = i === null || i < 0;
    if (V.tip.hidden) return;
    V.tip.replaceChildren(
      ...describe(V, i).map((text, n) =>
        Object.assign(document.createElement(n ? "div" : "b"), { textContent: text }),
      ),
    );
    const box = V.plot.getBoundingClientRect();
    const right = event.clientX - box.left > box.width / 2;
    V.tip.style.left = event.clientX - box.left + (right ? -14 : 14) + "px";
    V.tip.style.transform = right ? "translateX(-100%)" : "";
    V.tip.style.top = event.clientY - box.top + 14 + "px";
  }

  const key = (V, i) => kindOf(V, i) + "." + V.now.bars.rank[i] + "." + V.now.bars.first[i];
  function find(V, text) {
    const [kind, rank, first] = String(text || "").split(".");
    const number = DRAWN.indexOf(kind),
      b = V.now.bars;
    if (number < 0) return -1;
    for (let i = 0; i < b.n; i++)
      if (b.kind[i] === number && b.rank[i] === Number(rank) && b.first[i] === Number(first)) return i;
    return -1;
  }

  /* The bar that a recorded row belongs to. */
  function barOf(V, row) {
    const { g } = V,
      b = V.now.bars;
    if (row < 0) return -1;
    if (g.kind[row] === g.KIND.recv && g.join[row] < 0) row = g.match[row];
    if (!b.byRow) {
      b.byRow = new Map();
      b.byJoin = new Map();
      for (let i = 0; i < b.n; i++) {
        if (isGap(V, i)) continue;
        b.byRow.set(b.first[i], i);
        if (b.axis[i] >= 0 && g.join[b.first[i]] >= 0)
          b.byJoin.set(g.join[b.first[i]] * g.ranks + b.rank[i], i);
      }
    }
    if (g.join[row] >= 0) {
      const i = b.byJoin.get(g.join[row] * g.ranks + g.rank[row]);
      return i === undefined ? -1 : i;
    }
    for (let r = row; r >= 0 && g.rank[r] === g.rank[row] && g.lane[r] === g.lane[row]; r--) {
      const i = b.byRow.get(r);
      if (i !== undefined) return b.last[i] >= row ? i : -1;
    }
    return -1;
  }

  /* The bars that a bar follows: what its first operation depends on, and the message it received. */
  function precursors(V, i) {
    const { g } = V,
      { bars: b, timeline: t } = V.now,
      row = b.first[i];
    if (row < 0) return [];
    let rows = [row];
    if (kindOf(V, i) === "collective") {
      rows = [];
      let last = -1;
      for (let r = 0; r < g.n; r++)
        if (
          g.kind[r] === g.KIND.begin &&
          g.join[r] === g.join[row] &&
          (last < 0 || t.start[r] > t.start[last])
        )
          last = r;
      if (last >= 0) rows.push(last); // the rank that came last let it begin
    } else if (isGap(V, i)) return [barOf(V, row)].filter((x) => x >= 0);
    const bars = new Set();
    rows.forEach((r) => {
      for (const d of g.dependencies(r)) bars.add(barOf(V, d));
      if (g.match[r] >= 0) bars.add(barOf(V, g.match[r]));
    });
    return [...bars].filter((x) => x >= 0 && x !== i).sort((x, y) => b.end[y] - b.end[x]);
  }

  function choose(V, i) {
    const line = document.getElementById("selected");
    V.chosen = i;
    V.before = i < 0 ? [] : precursors(V, i);
    line.replaceChildren();
    if (i >= 0) {
      line.append(describe(V, i).join(" · "));
      if (V.before.length) line.append(" — " + say("follows") + ": ");
      V.before.forEach((other) => {
        const button = Object.assign(document.createElement("button"), {
          type: "button",
          className: "quiet",
          textContent: title(V, other) + ", " + time(V, V.now.bars.end[other], 4),
        });
        button.addEventListener("click", () => page.go({ sel: key(V, other) }));
        line.append(button, " ");
      });
    }
    paint(V);
  }

  // ---- keyboard
  function move(V, change) {
    const now = V.plot._fullLayout.xaxis.range.slice();
    const next = change(now, now[1] - now[0], V.full);
    const length = Math.min(next[1] - next[0], V.full[1] - V.full[0]);
    const start = Math.min(Math.max(next[0], V.full[0]), V.full[1] - length);
    moduleName.relayout(V.plot, { "xaxis.range": [start, start + length] });
  }

  function walk(V, by) {
    const b = V.now.bars;
    if (!b.inTime)
      b.inTime = Array.from({ length: b.n }, (_, i) => i)
        .filter((i) => b.kind[i] < FIRST_IDLE)
        .sort((x, y) => b.start[x] - b.start[y] || b.lane[x] - b.lane[y]);
    const at = b.inTime.indexOf(V.chosen);
    const i = b.inTime[Math.min(Math.max(at + by, 0), b.inTime.length - 1)];
    const [start, end] = [b.start[i] * V.about.factor, b.end[i] * V.about.factor];
    page.go({ sel: key(V, i) });
    move(V, (now, length) =>
      start < now[0] || end > now[1] ? [start - length / 4, start + 0.75 * length] : now,
    );
  }

  const KEYS = {
    ArrowLeft: (V) => move(V, (n, l) => [n[0] - l / 5, n[1] - l / 5]),
    ArrowRight: (V) => move(V, (n, l) => [n[0] + l / 5, n[1] + l / 5]),
    "+": (V) => move(V, (n, l) => [n[0] + l / 6, n[1] - l / 6]),
    "=": (V) => move(V, (n, l) => [n[0] + l / 6, n[1] - l / 6]),
    "-": (V) => move(V, (n, l) => [n[0] - l / 4, n[1] + l / 4]),
    0: (V) => move(V, (n, l, full) => full.slice()),
    j: (V) => walk(V, 1),
    k: (V) => walk(V, -1),
    Escape: () => page.go({ sel: "" }),
  };
  function press(id, name) {
    if (KEYS[name] === undefined || !views.has(id)) return false;
    views.get(id).then((V) => KEYS[name](V));
    return true;
  }

  // ---- what if
  function listed(breakdown) {
    return GlassBreakdown.listed(breakdown, nameOf, page.state().lang === "zh" ? "、" : ", ");
  }

  function nameOf(key) {
    const known = GlassBreakdown.ENTRIES.includes(key);
    return known ? say("entry_" + key) : say("entry_exposed", { axis: key.slice("exposed_".length) });
  }

  function tell(V) {
    const before = V.base.timeline.summary(),
      after = V.now.timeline.summary();
    const says = document.getElementById("whatif-says");
    const change = after.makespan_s / before.makespan_s - 1;
    const values = {
      before: time(V, before.makespan_s, 4),
      after: time(V, after.makespan_s, 4),
      change: (change >= 0 ? "+" : "−") + Math.abs(100 * change).toFixed(1) + " %",
      rank: V.now.timeline.lastRank,
      entries: listed(after.breakdown_s),
      bubble: (100 * after.bubble_fraction).toFixed(1) + "%",
    };
    const shared = Boolean(V.about.hardware.shared);
    document.querySelectorAll(".whatif input, .whatif select").forEach((control) => {
      control.disabled = shared;
    });
    says.textContent = shared
      ? say(V.about.hardware.folded ? "whatif_folded" : "whatif_shared", values)
      : V.now === V.base
        ? say("whatif_idle", values)
        : say("whatif_says", values) + (V.g.pipelined ? " " + say("whatif_papers", values) : "");
    fillSelect(
      "whatif-kind",
      ["", ...V.kinds].map((k) => [
        k,
        k === "" ? "—" : V.g.phases.includes(k) ? say(k) : say("messages_of", { axis: k }),
      ]),
      V.knobs.kind,
    );
    fillSelect(
      "whatif-rank",
      Array.from({ length: V.g.ranks }, (_, r) => [String(r), say("rank") + " " + r]),
      String(V.knobs.slowRank),
    );
    const set = (name, value) => {
      const slider = document.getElementById("whatif-" + name);
      if (document.activeElement !== slider) slider.value = String(Math.log2(value));
      document.getElementById("whatif-" + name + "-says").textContent = "× " + Number(value.toPrecision(3));
    };
    set("bw", V.knobs.bandwidth);
    set("lat", V.knobs.latency);
    set("flops", V.knobs.flops);
    set("slow", V.knobs.slowFactor);
    set("faster", V.knobs.factor);
  }

  function fillSelect(id, options, value) {
    const select = document.getElementById(id);
    const text = JSON.stringify(options);
    if (select.dataset.holds !== text) {
      select.dataset.holds = text;
      select.replaceChildren(
        ...options.map(([v, t]) =>
          Object.assign(document.createElement("option"), { value: v, textContent: t }),
        ),
      );
    }
    select.value = value;
  }

  function read() {
    const of = (name) => document.getElementById("whatif-" + name).value;
    const times = (name) => String(Number((2 ** Number(of(name))).toPrecision(4)));
    return {
      bw: times("bw"),
      lat: times("lat"),
      flops: times("flops"),
      slow: of("rank") + ":" + times("slow"),
      faster: of("kind") + ":" + times("faster"),
    };
  }

  let waiting = false;
  document.querySelectorAll(".whatif input, .whatif select").forEach((control) =>
    control.addEventListener("input", () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        page.go(read(), true);
      });
    }),
  );
  document // a page without a run has no sliders
    .getElementById("whatif-reset")
    ?.addEventListener("click", () => page.go(Object.assign({}, DEFAULTS)));

  // ---- the data behind it
  async function table(id) {
    const V = await load(id);
    V.now = V.now || V.base;
    const b = V.now.bars;
    const rows = [];
    for (let i = 0; i < b.n && rows.length < CHOICES; i++) rows.push(describe(V, i));
    return { rows, all: b.n };
  }

  async function download(id, what) {
    const V = await load(id);
    if (what === "trace.json")
      return JSON.stringify(GlassTrace.chromeTrace(V.base.timeline, V.about.hardware.name));
    return JSON.stringify(Object.assign({ format: GlassPack.FORMAT }, data.graphs[V.about.graph]));
  }

  return { show, press, table, download, view: (id) => views.get(id), DEFAULTS };
};
