"use strict";
(function () {
  const root = document.documentElement;
  const all = (query) => Array.from(document.querySelectorAll(query));
  const set = (lang) => {
    root.dataset.lang = lang;
    root.lang = lang;
    all("a.tile").forEach((a) => {
      a.hash = "lang=" + lang;
    });
  };
  document
    .getElementById("language")
    .addEventListener("click", () => set(root.dataset.lang === "en" ? "zh" : "en"));
  all("nav [data-topic]").forEach((button) =>
    button.addEventListener("click", () => {
      all("nav [data-topic]").forEach((b) => b.setAttribute("aria-selected", String(b === button)));
      all("a.tile").forEach((a) => {
        a.hidden = button.dataset.topic !== "" && a.dataset.topic !== button.dataset.topic;
      });
    }),
  );
  set((navigator.language || "en").startsWith("zh") ? "zh" : "en");
})();
