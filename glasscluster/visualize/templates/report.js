"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const all = (query, within) => Array.from((within || document).querySelectorAll(query));
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const drawn = new Map(); // figure id -> language it is drawn in
  const form = document.getElementById("predict");

  // ---- view state lives in the URL hash, so that a link shows what its sender saw
  const runs = all('#panel-timeline select[data-pick="run"] option').map((o) => o.value);
  const hardware = all('#panel-timeline select[data-pick="hw"] option').map((o) => o.value);
  let state = {
    tab: "story",
    lang: (navigator.language || "en").startsWith("zh") ? "zh" : "en",
    run: runs[0] || "",
    hw: hardware[0] || "",
  };
  // what these say is only ever parsed, never shown as markup
  const free = ["guess", "sel", "bw", "lat", "flops", "slow", "faster"];

  function read() {
    const fromHash = new URLSearchParams(location.hash.slice(1));
    const tabs = all("[data-tab]").map((b) => b.dataset.tab);
    const take = (name, allowed) => {
      if (allowed.includes(fromHash.get(name))) state[name] = fromHash.get(name);
    };
    take("tab", tabs);
    take("lang", ["en", "zh"]);
    take("run", runs);
    take("hw", hardware);
    free.forEach((name) => {
      if (fromHash.has(name)) state[name] = fromHash.get(name);
      else if (name !== "guess") delete state[name];
    });
  }

  let writing = 0;
  let drawing = 0;
  function go(change, often) {
    const moved = "run" in change && change.run !== state.run;
    state = Object.assign({}, state, moved ? { sel: "" } : {}, change);
    Object.keys(timeline.DEFAULTS).forEach((k) => {
      if (state[k] === timeline.DEFAULTS[k]) delete state[k];
    });
    clearTimeout(writing); // browsers refuse hundreds of changes of the address a second
    const write = () => history.replaceState(null, "", "#" + new URLSearchParams(state).toString());
    if (often) {
      writing = setTimeout(write, 250);
      timeline.show(current());
    } else {
      write();
      show();
    }
  }

  function show() {
    root.dataset.lang = state.lang;
    root.lang = state.lang;
    all("[data-tab]").forEach((b) => b.setAttribute("aria-selected", String(b.dataset.tab === state.tab)));
    all('[role="tabpanel"]').forEach((p) => {
      p.hidden = p.id !== "panel-" + state.tab;
    });
    all("select[data-pick]").forEach((s) => {
      s.value = state[s.dataset.pick];
      all("option[data-en]", s).forEach((o) => {
        o.textContent = o.dataset[state.lang];
      });
    });
    all(".view").forEach((v) => {
      v.hidden = v.dataset.run !== state.run || (v.dataset.hw !== undefined && v.dataset.hw !== state.hw);
    });
    if (form && state.guess) judge(state.guess);
    root.dataset.drawing = "yes";
    clearTimeout(drawing);
    const first = all("figure[data-fig]").filter(
      (f) => f.offsetParent !== null && f.dataset.fig in data.views,
    );
    Promise.all(first.map((f) => draw(f.dataset.fig))).then(() => {
      clearTimeout(drawing);
      drawing = setTimeout(drawNext, 0);
    });
  }

  /* The other figures in view, one a turn, so that the page answers in between. */
  function drawNext() {
    const next = all("figure[data-fig]").find(
      (f) =>
        f.offsetParent !== null && !(f.dataset.fig in data.views) && drawn.get(f.dataset.fig) !== state.lang,
    );
    root.dataset.drawing = next ? "yes" : "no";
    if (!next) return;
    draw(next.dataset.fig);
    drawing = setTimeout(drawNext, 0);
  }

  const say = (key, values) =>
    data.words[key][state.lang].replace(/{(\w+)}/g, (whole, k) =>
      values && k in values ? values[k] : whole,
    );

  // ---- figures are drawn when they are first seen, in the language of the page
  function content(id) {
    const figure = data.figures[id];
    const copy = JSON.parse(JSON.stringify(figure));
    if (state.lang === "en") return { data: copy.data, layout: copy.layout };
    return {
      data: copy.data.map((t, i) => Object.assign(t, copy.zh.data[i])),
      layout: Object.assign(copy.layout, copy.zh.layout),
    };
  }

  const timeline = GlassTimelineTab({ data, say, content, go, state: () => state });

  async function draw(id) {
    if (id in data.views) await timeline.show(id);
    else if (drawn.get(id) !== state.lang) {
      const figure = content(id);
      moduleName.react(document.getElementById("fig-" + id), figure.data, figure.layout, {
        responsive: true,
        displaylogo: false,
        scrollZoom: false,
        modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
      });
    } else return;
    drawn.set(id, state.lang);
    const box = document.querySelector('figure[data-fig="' + id + '"] .table-box');
    if (!box.hidden) fill(id, box);
  }

  // ---- every figure is also a table
  async function fill(id, box) {
    const table = document.createElement("table");
    const line = (cells, tag) => {
      const row = table.appendChild(document.createElement("tr"));
      cells.forEach((c) => {
        row.appendChild(document.createElement(tag)).textContent = c;
      });
    };
    const plain = (text) =>
      String(text)
        .replace(/<br>/g, " · ")
        .replace(/<[^>]*>/g, "");
    if (id in data.views) {
      const { rows, all: n } = await timeline.table(id);
      rows.forEach((cells) => line(cells, "td"));
      if (n > rows.length)
        line([say("table_cut", { shown: rows.length, all: n.toLocaleString("en") })], "td");
    } else {
      content(id).data.forEach((trace) => {
        if (trace.hoverinfo === "skip" || !trace.x) return;
        const along = trace.orientation === "h" ? trace.y : trace.x;
        const size = trace.orientation === "h" ? trace.x : trace.y;
        along.forEach((where, i) => {
          if (trace.customdata) line([trace.name || "", plain(trace.customdata[i])], "td");
          else line([trace.name || "", plain(where), size[i]], "td");
        });
      });
    }
    box.replaceChildren(table);
  }

  function current() {
    const view = all("#panel-timeline .view").find((v) => !v.hidden);
    return view ? view.querySelector("figure").dataset.fig : null;
  }

  document.addEventListener("keydown", (event) => {
    if (
      state.tab !== "timeline" ||
      event.ctrlKey ||
      event.metaKey ||
      event.altKey ||
      /^(SELECT|INPUT|TEXTAREA)$/.test(event.target.tagName)
    )
      return;
    const id = current();
    if (id && timeline.press(id, event.key)) event.preventDefault();
  });

  // ---- a figure with a slider can also be stepped through
  all("[data-step]").forEach((b) =>
    b.addEventListener("click", () => {
      const plot = b.closest("figure").querySelector(".plot");
      const slider = plot.layout.sliders[0];
      const next = Math.min(
        Math.max((plot._fullLayout.sliders[0].active || 0) + Number(b.dataset.step), 0),
        slider.steps.length - 1,
      );
      const [change, relayout, traces] = slider.steps[next].args;
      moduleName.update(plot, change, Object.assign({ "sliders[0].active": next }, relayout), traces);
    }),
  );

  // ---- clicks
  all("[data-tab]").forEach((b) => b.addEventListener("click", () => go({ tab: b.dataset.tab })));
  all("select[data-pick]").forEach((s) =>
    s.addEventListener("change", () => go({ [s.dataset.pick]: s.value })),
  );
  document
    .getElementById("language")
    .addEventListener("click", () => go({ lang: state.lang === "en" ? "zh" : "en" }));
  all(".table-toggle").forEach((b) =>
    b.addEventListener("click", () => {
      const box = b.parentElement.querySelector(".table-box");
      box.hidden = !box.hidden;
      b.setAttribute("aria-expanded", String(!box.hidden));
      const key = box.hidden ? "show_table" : "hide_table";
      all("span", b).forEach((s) => {
        s.textContent = data.words[key][s.lang];
      });
      if (!box.hidden) fill(b.parentElement.dataset.fig, box);
    }),
  );
  all("[data-download]").forEach((b) =>
    b.addEventListener("click", async () => {
      const name = b.dataset.download;
      const text =
        name === "ledger.csv"
          ? data.ledger
          : await timeline.download(current() || Object.keys(data.views)[0], name);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(
        new Blob([text], { type: name.endsWith("csv") ? "text/csv" : "application/json" }),
      );
      link.download = name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    }),
  );
  window.addEventListener("hashchange", () => {
    read();
    show();
    if (!calm) scrollTo({ top: 0, behavior: "smooth" });
  });
  window.addEventListener("beforeprint", () =>
    all("figure[data-fig]").forEach((f) => {
      if (f.offsetParent !== null) draw(f.dataset.fig);
    }),
  );

  // ---- a lesson keeps its answer closed until a number is written down
  function judge(text) {
    const guess = Number(String(text).replace(",", "."));
    const verdict = document.getElementById("verdict");
    if (String(text).trim() === "" || !Number.isFinite(guess)) {
      verdict.textContent = say("not_a_number");
      return null;
    }
    const { answer, low, high } = data.lesson;
    const unit = data.lesson.unit[state.lang];
    if (low !== null && (guess < low || guess > high)) {
      verdict.textContent = say("out_of_range", { guess, unit, low, high });
      return null;
    }
    const ratio =
      answer === 0 || guess === 0 ? (guess - answer).toPrecision(3) : "× " + (guess / answer).toPrecision(3);
    verdict.textContent = say("you_said", {
      guess: guess,
      unit: unit,
      answer: Number(answer.toPrecision(6)),
      ratio: ratio,
    });
    delete root.dataset.locked;
    return guess;
  }
  function reveal(text) {
    const guess = judge(text);
    if (guess !== null && state.guess !== String(guess)) go({ guess: String(guess) });
  }
  if (form) {
    root.dataset.locked = "";
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      reveal(document.getElementById("guess").value);
    });
  }

  // ---- the explanation is compared by its writer, never scored
  const why = document.getElementById("why");
  if (why) {
    const open = () => {
      document.getElementById("explanation").hidden = why.value.trim().length < 10;
    };
    document.getElementById("compare").addEventListener("click", open);
  }

  read();
  if (form && state.guess) document.getElementById("guess").value = state.guess;
  show();
})();
