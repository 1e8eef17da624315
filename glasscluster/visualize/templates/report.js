"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const all = (query, within) => Array.from((within || document).querySelectorAll(query));
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const drawn = new Map(); // figure id -> language it is drawn in
  let picked = -1;

  // ---- view state lives in the URL hash, so that a link shows what its sender saw
  const first = { tab: "story", lang: (navigator.language || "en").startsWith("zh") ? "zh" : "en", run: "", hw: "" };
  const runs = all('#panel-timeline select[data-pick="run"] option').map((o) => o.value);
  const hardware = all('#panel-timeline select[data-pick="hw"] option').map((o) => o.value);
  first.run = runs[0] || "";
  first.hw = hardware[0] || "";
  let state = Object.assign({}, first);

  function read() {
    const asked = new URLSearchParams(location.hash.slice(1));
    const tabs = all("[data-tab]").map((b) => b.dataset.tab);
    if (tabs.includes(asked.get("tab"))) state.tab = asked.get("tab");
    if (["en", "zh"].includes(asked.get("lang"))) state.lang = asked.get("lang");
    if (runs.includes(asked.get("run"))) state.run = asked.get("run");
    if (hardware.includes(asked.get("hw"))) state.hw = asked.get("hw");
    if (asked.get("guess")) state.guess = asked.get("guess");
  }

  function go(change) {
    state = Object.assign({}, state, change);
    history.replaceState(null, "", "#" + new URLSearchParams(state).toString());
    show();
  }

  function show() {
    root.dataset.lang = state.lang;
    root.lang = state.lang;
    picked = -1;
    document.getElementById("selected").textContent = "";
    all("[data-tab]").forEach((b) => b.setAttribute("aria-selected", String(b.dataset.tab === state.tab)));
    all('[role="tabpanel"]').forEach((p) => { p.hidden = p.id !== "panel-" + state.tab; });
    all("select[data-pick]").forEach((s) => {
      s.value = state[s.dataset.pick];
      all("option[data-en]", s).forEach((o) => { o.textContent = o.dataset[state.lang]; });
    });
    all(".view").forEach((v) => {
      v.hidden = v.dataset.run !== state.run || (v.dataset.hw !== undefined && v.dataset.hw !== state.hw);
    });
    all("figure[data-fig]").forEach((f) => { if (f.offsetParent !== null) draw(f.dataset.fig); });
  }

  // ---- figures are drawn when they are first seen, in the language of the page
  function inLanguage(figure) {
    if (state.lang === "en") return { data: figure.data, layout: figure.layout };
    return {
      data: figure.data.map((t, i) => Object.assign({}, t, figure.zh.data[i])),
      layout: Object.assign({}, figure.layout, figure.zh.layout),
    };
  }

  function draw(id) {
    if (drawn.get(id) === state.lang) return;
    const content = JSON.parse(JSON.stringify(inLanguage(data.figures[id])));
    const options = { responsive: true, displaylogo: false, scrollZoom: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
    moduleName.react(document.getElementById("fig-" + id), content.data, content.layout, options);
    drawn.set(id, state.lang);
    const box = document.querySelector('figure[data-fig="' + id + '"] .table-box');
    if (!box.hidden) fill(id, box);
  }

  // ---- every figure is also a table
  function fill(id, box) {
    const content = inLanguage(data.figures[id]);
    const table = document.createElement("table");
    const line = (cells, tag) => {
      const row = table.appendChild(document.createElement("tr"));
      cells.forEach((c) => { row.appendChild(document.createElement(tag)).textContent = c; });
    };
    const plain = (text) => String(text).replace(/<br>/g, " · ").replace(/<[^>]*>/g, "");
    content.data.forEach((trace) => {
      if (trace.hoverinfo === "skip") return;
      const along = trace.orientation === "h" ? trace.y : trace.x;
      const size = trace.orientation === "h" ? trace.x : trace.y;
      along.forEach((where, i) => {
        if (trace.customdata) line([trace.name, plain(trace.customdata[i])], "td");
        else line([trace.name, where, size[i]], "td");
      });
    });
    box.replaceChildren(table);
  }

  // ---- keyboard on the timeline: pan, zoom, walk through events
  function current() {
    const view = all("#panel-timeline .view").find((v) => !v.hidden);
    return view ? view.querySelector("figure").dataset.fig : null;
  }

  function events(id) {
    const found = [];
    inLanguage(data.figures[id]).data.forEach((t) => {
      if (t.hoverinfo === "skip") return;
      t.base.forEach((start, i) => found.push({ start: start, end: start + t.x[i], y: t.y[i], height: t.width[i], text: t.customdata[i] }));
    });
    return found.sort((a, b) => a.start - b.start || a.y - b.y);
  }

  function window_(id, change) {
    const plot = document.getElementById("fig-" + id);
    const now = plot.layout.xaxis.range.slice();
    const full = data.figures[id].layout.xaxis.range;
    const next = change(now, now[1] - now[0], full);
    const length = Math.min(next[1] - next[0], full[1] - full[0]);
    const start = Math.min(Math.max(next[0], full[0]), full[1] - length);
    moduleName.relayout(plot, { "xaxis.range": [start, start + length] });
  }

  function walk(id, by) {
    const list = events(id);
    picked = Math.min(Math.max(picked + by, 0), list.length - 1);
    const e = list[picked];
    document.getElementById("selected").textContent = e.text.replace(/<br>/g, " · ").replace(/<[^>]*>/g, "");
    const outline = { type: "rect", x0: e.start, x1: e.end, y0: e.y - e.height / 2, y1: e.y + e.height / 2, line: { color: "#d0021b", width: 3 } };
    moduleName.relayout(document.getElementById("fig-" + id), { shapes: [outline] });
    window_(id, (now, length, full) => (e.start < now[0] || e.end > now[1] ? [e.start - length / 4, e.start + 0.75 * length] : now));
  }

  const keys = {
    ArrowLeft: (id) => window_(id, (n, l) => [n[0] - l / 5, n[1] - l / 5]),
    ArrowRight: (id) => window_(id, (n, l) => [n[0] + l / 5, n[1] + l / 5]),
    "+": (id) => window_(id, (n, l) => [n[0] + l / 6, n[1] - l / 6]),
    "=": (id) => window_(id, (n, l) => [n[0] + l / 6, n[1] - l / 6]),
    "-": (id) => window_(id, (n, l) => [n[0] - l / 4, n[1] + l / 4]),
    0: (id) => window_(id, (n, l, full) => full.slice()),
    j: (id) => walk(id, 1),
    k: (id) => walk(id, -1),
  };
  document.addEventListener("keydown", (event) => {
    if (state.tab !== "timeline" || event.ctrlKey || event.metaKey || event.altKey || /^(SELECT|INPUT|TEXTAREA)$/.test(event.target.tagName)) return;
    const id = current();
    if (id && keys[event.key]) { keys[event.key](id); event.preventDefault(); }
  });

  // ---- clicks
  all("[data-tab]").forEach((b) => b.addEventListener("click", () => go({ tab: b.dataset.tab })));
  all("select[data-pick]").forEach((s) => s.addEventListener("change", () => go({ [s.dataset.pick]: s.value })));
  document.getElementById("language").addEventListener("click", () => go({ lang: state.lang === "en" ? "zh" : "en" }));
  all(".table-toggle").forEach((b) => b.addEventListener("click", () => {
    const box = b.parentElement.querySelector(".table-box");
    box.hidden = !box.hidden;
    b.setAttribute("aria-expanded", String(!box.hidden));
    const key = box.hidden ? "show_table" : "hide_table";
    all("span", b).forEach((s) => { s.textContent = data.words[key][s.lang]; });
    if (!box.hidden) fill(b.parentElement.dataset.fig, box);
  }));
  document.getElementById("download").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([data.ledger], { type: "text/csv" }));
    link.download = "ledger.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  });
  window.addEventListener("hashchange", () => { read(); show(); if (!calm) scrollTo({ top: 0, behavior: "smooth" }); });
  window.addEventListener("beforeprint", () => all("figure[data-fig]").forEach((f) => { if (f.offsetParent !== null) draw(f.dataset.fig); }));

  // ---- a lesson keeps its answer closed until a number is written down
  const form = document.getElementById("predict");
  function reveal(text) {
    const guess = Number(String(text).replace(",", "."));
    const says = (key) => data.words[key][state.lang];
    const verdict = document.getElementById("verdict");
    if (String(text).trim() === "" || !Number.isFinite(guess)) { verdict.textContent = says("not_a_number"); return; }
    const answer = data.lesson.answer;
    const ratio = answer === 0 || guess === 0 ? (guess - answer).toPrecision(3) : "× " + (guess / answer).toPrecision(3);
    const values = { guess: guess, unit: data.lesson.unit, answer: Number(answer.toPrecision(6)), ratio: ratio };
    verdict.textContent = says("you_said").replace(/{(\w+)}/g, (_, k) => values[k]);
    delete root.dataset.locked;
    if (state.guess !== String(guess)) go({ guess: String(guess) });
  }
  if (form) {
    root.dataset.locked = "";
    form.addEventListener("submit", (event) => { event.preventDefault(); reveal(document.getElementById("guess").value); });
  }

  read();
  if (form && state.guess) { document.getElementById("guess").value = state.guess; reveal(state.guess); }
  show();
})();
