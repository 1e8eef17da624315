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
  const free = ["guess", "sel", "bw", "lat", "flops", "slow", "faster", "show"];

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
    if (state.show) state.tab = presentation.tabOf(state.show) || state.tab;
  }

  let writing = 0;
  let drawing = 0;
  function go(change, often) {
    const moved = "run" in change && change.run !== state.run;
    state = Object.assign({}, state, moved ? { sel: "" } : {}, change);
    Object.keys(timeline.DEFAULTS).forEach((k) => {
      if (state[k] === timeline.DEFAULTS[k]) delete state[k];
    });
    if (!state.show) delete state.show;
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
    stopAt(document.getElementById("tab-" + state.tab));
    all("[data-says]").forEach((part) => part.setAttribute("aria-label", say(part.dataset.says)));
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
    presentation.apply();
    root.dataset.drawing = "yes";
    clearTimeout(drawing);
    const first = inView().filter((f) => f.dataset.fig in data.views);
    Promise.all(first.map((f) => draw(f.dataset.fig))).then(() => {
      clearTimeout(drawing);
      drawing = setTimeout(drawNext, 0);
    });
  }

  /* The figures of the open tab and the chosen run, or the one that is presented. */
  function inView() {
    const slide = presentation.shown();
    if (slide) return slide.dataset.fig ? [slide] : [];
    return all("figure[data-fig]").filter((f) => f.getClientRects().length > 0);
  }

  /* What a figure is drawn for: a language and, if it is presented, a size. */
  const wanted = (id) => state.lang + " " + figures.shape(id);

  /* The other figures in view, one a turn, so that the page answers in between. */
  function drawNext() {
    const next = inView().find(
      ({ dataset: { fig } }) => !(fig in data.views) && drawn.get(fig) !== wanted(fig),
    );
    root.dataset.drawing = next ? "yes" : "no";
    if (!next) return;
    draw(next.dataset.fig).then(() => {
      clearTimeout(drawing);
      drawing = setTimeout(drawNext, 0);
    });
  }

  const say = (key, values) =>
    data.words[key][state.lang].replace(/{(\w+)}/g, (whole, k) =>
      values && k in values ? values[k] : whole,
    );

  // ---- figures are drawn when they are first seen, in the language of the page
  const figures = GlassFigures({ data, state: () => state, slide: (id) => presentation.room(id) });
  const { content } = figures;
  const presentation = GlassPresentation({ content, go, state: () => state });
  const timeline = GlassTimelineTab({ data, say, content, go, state: () => state, figures });

  async function draw(id) {
    const key = wanted(id);
    if (id in data.views) await timeline.show(id);
    else if (drawn.get(id) !== key) await figures.draw(id);
    else return;
    drawn.set(id, key);
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
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = /^(SELECT|INPUT|TEXTAREA)$/.test(event.target.tagName);
    if (typing && !(event.key === "Escape" && presentation.shown())) return;
    const id = current();
    if (presentation.press(event) || (state.tab === "timeline" && id && timeline.press(id, event.key)))
      event.preventDefault();
  });
  const stopAt = GlassRoving.over(document.querySelector("nav"), "[data-tab]", (tab) => tab.click());
  all(".tool-bar").forEach((bar) => GlassRoving.over(bar, "button"));
  all(".scroll").forEach(figures.watch);

  let resizing = 0;
  window.addEventListener("resize", () => {
    clearTimeout(resizing); // a slide is drawn for the size of its screen
    resizing = setTimeout(() => {
      if (presentation.shown()) show();
      else inView().forEach((f) => drawn.has(f.dataset.fig) && figures.refit(f));
    }, 200);
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
  const does = {
    whole: ({ dataset: { fig } }) => (fig in data.views ? timeline.press(fig, "0") : figures.draw(fig)),
    save: figures.save,
    present: presentation.enter,
  };
  all("[data-do]").forEach((b) => b.addEventListener("click", () => does[b.dataset.do](b.closest("figure"))));
  all(".table-toggle").forEach((b) =>
    b.addEventListener("click", () => {
      const box = b.closest("figure").querySelector(".table-box");
      box.hidden = !box.hidden;
      b.setAttribute("aria-expanded", String(!box.hidden));
      const key = box.hidden ? "show_table" : "hide_table";
      all("span", b).forEach((s) => {
        s.textContent = data.words[key][s.lang];
      });
      if (!box.hidden) fill(b.closest("figure").dataset.fig, box);
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
