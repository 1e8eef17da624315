"use strict";
/* The gallery: lessons by topic or by the questions of interviews, searched and filtered; what came out of
   each stays closed until it is asked for. The state is in the address: a link shows what its sender saw. */
(function () {
  const root = document.documentElement;
  const at = (id) => document.getElementById(id);
  const all = (query) => Array.from(document.querySelectorAll(query));
  const search = at("search");
  const allowed = {
    lang: ["en", "zh"],
    view: all("[data-view]").map((view) => view.dataset.view),
    topic: all(".topics [data-topic]").map((button) => button.dataset.topic),
    answers: ["no", "yes"],
  };
  const state = { view: "topics", topic: "", find: "", answers: "no" };
  state.lang = (navigator.language || "en").startsWith("zh") ? "zh" : "en";

  function read() {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const [name, values] of Object.entries(allowed))
      if (values.includes(given.get(name))) state[name] = given.get(name);
    state.find = given.get("find") || state.find;
  }
  function go(change) {
    Object.assign(state, change);
    history.replaceState(null, "", "#" + new URLSearchParams(state).toString());
    show();
  }

  function show() {
    root.dataset.lang = root.lang = state.lang;
    root.toggleAttribute("data-answers", state.answers === "yes");
    at("answers").setAttribute("aria-pressed", String(state.answers === "yes"));
    search.placeholder = search.dataset[state.lang];
    search.setAttribute("aria-label", search.dataset[state.lang]);
    if (document.activeElement !== search) search.value = state.find;
    all("[data-tab]").forEach((b) => b.setAttribute("aria-selected", String(b.dataset.tab === state.view)));
    stopAt(at("tab-" + state.view));
    all("[data-view]").forEach((view) => {
      view.hidden = view.dataset.view !== state.view;
    });
    all(".topics [data-topic]").forEach((b) =>
      b.setAttribute("aria-pressed", String(b.dataset.topic === state.topic)),
    );
    const words = state.find.toLowerCase().split(/\s+/);
    all("[data-words]").forEach((entry) => {
      const topical = !state.topic || entry.dataset.topic === state.topic;
      entry.hidden = !topical || !words.every((word) => entry.dataset.words.includes(word));
    });
    all("[data-view] a").forEach((a) => {
      a.hash = "lang=" + state.lang;
    });
    at("count").textContent = all(".tile:not([hidden])").length;
    // the tab key stops at the first entry that is shown
    const first = (query) => all(query).find((a) => !a.closest("[hidden]"));
    const [card, question] = [first(".tile"), first(".asked a")];
    if (card) cardsAt(card);
    if (question) questionsAt(question);
  }

  const stopAt = GlassRoving.over(document.querySelector("nav"), "[data-tab]", (tab) => tab.click());
  GlassRoving.over(document.querySelector(".topics"), "[data-topic]");
  const cardsAt = GlassRoving.over(document.querySelector(".cards"), ".tile");
  const questionsAt = GlassRoving.over(document.querySelector(".asked"), "a");
  at("language").addEventListener("click", () => go({ lang: state.lang === "en" ? "zh" : "en" }));
  at("answers").addEventListener("click", () => go({ answers: state.answers === "yes" ? "no" : "yes" }));
  search.addEventListener("input", () => go({ find: search.value }));
  all("[data-tab]").forEach((b) => b.addEventListener("click", () => go({ view: b.dataset.tab })));
  all(".topics [data-topic]").forEach((b) =>
    b.addEventListener("click", () => go({ topic: b.dataset.topic })),
  );
  window.addEventListener("hashchange", () => {
    read();
    show();
  });
  read();
  show();
})();
