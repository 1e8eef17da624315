"use strict";
/* Presentation mode: one figure a screen, for a class. Slides are the question of a lesson and every figure
   of the chosen run, in the order of the tabs. Which one is shown is in the page's state, so in its link. */
const GlassPresentation = function (page) {
  const root = document.documentElement;
  const bar = document.getElementById("slide-bar");
  const at = (id) => document.getElementById(id);
  const NEXT = ["ArrowRight", "PageDown", " "];
  const BACK = ["ArrowLeft", "PageUp"];
  const idOf = (slide) => slide.dataset.fig || "question";

  /* The slides of the chosen run and hardware. */
  function chosen() {
    const { run, hw } = page.state();
    return Array.from(document.querySelectorAll(".slide")).filter((slide) => {
      const view = slide.closest(".view");
      return !view || (view.dataset.run === run && (view.dataset.hw === undefined || view.dataset.hw === hw));
    });
  }
  /* Those of them that can be shown now: a lesson keeps its answers closed before a prediction. */
  const slides = () =>
    chosen().filter((slide) => root.dataset.locked === undefined || !slide.closest(".answer"));
  const find = (id) => slides().find((slide) => idOf(slide) === id);
  const shown = () => document.querySelector(".slide.shown");

  /* The size of a figure that is shown large, in pixels; null of any other figure. */
  function room(id) {
    const slide = shown();
    if (!slide || slide.dataset.fig !== id) return null;
    const tools = slide.querySelector(".tool-bar:has([data-step])");
    const below = tools ? tools.offsetHeight + 10 : 0;
    return { width: innerWidth, height: innerHeight - bar.offsetHeight - below - 8 };
  }

  /* Show the slide that the state names, or the page. */
  function apply() {
    const before = shown();
    const wanted = page.state().show;
    const slide = wanted ? find(wanted) : undefined;
    root.toggleAttribute("data-presenting", Boolean(slide));
    bar.hidden = !slide;
    if (before && before !== slide) before.classList.remove("shown");
    if (!slide) {
      if (before) before.scrollIntoView({ block: "center" });
      return;
    }
    slide.classList.add("shown");
    slide.scrollTop = 0;
    const all = slides();
    at("slide-title").textContent = titleOf(slide);
    at("slide-place").textContent = all.indexOf(slide) + 1 + " / " + all.length;
  }

  /* The run, the heading above it and its own title, as far as they differ. */
  function titleOf(slide) {
    if (!slide.dataset.fig) return textOf(document.querySelector("h1"));
    const view = slide.closest(".view");
    const picker = document.querySelector('select[data-pick="run"]');
    const parts = view && picker.options.length > 1 ? [picker.selectedOptions[0].textContent] : [];
    let above = slide.previousElementSibling;
    while (above && !above.matches("h2, h3, .above-figure, .slide")) above = above.previousElementSibling;
    if (above && !above.matches(".slide")) parts.push(textOf(above.querySelector("h2") || above));
    const title = page.content(slide.dataset.fig).layout.title;
    if (title && title.text) parts.push(title.text.replace(/<[^>]*>/g, " "));
    if (above && above.matches(".above-figure"))
      parts.push(...Array.from(above.querySelectorAll("dl div"), textOf).slice(0, 2)); // step, bubble
    if (!parts.length) parts.push(textOf(at("tab-" + tabOf(idOf(slide)))));
    return [...new Set(parts)].join(" · ");
  }

  /* The words of a heading, without badges and without those of the other language. */
  const textOf = (heading) =>
    Array.from(heading.childNodes)
      .filter((part) => !part.tagName || !part.matches(".badge") )
      .map((part) => (part.children && part.children.length ? textOf(part) : inLanguage(part)))
      .join(" ")
      .replace(/\s+/g, " ")
      .trim();
  const inLanguage = (part) => (part.lang && part.lang !== page.state().lang ? "" : part.textContent);

  // ---- in, out, on
  function enter(slide) {
    if (!slide) return;
    if (!shown() && root.requestFullscreen) root.requestFullscreen().catch(() => {});
    if (document.activeElement) document.activeElement.blur();
    page.go({ show: idOf(slide), tab: tabOf(idOf(slide)) });
  }
  function leave() {
    if (document.fullscreenElement) document.exitFullscreen().catch(() => {});
    page.go({ show: "" });
  }
  function turn(by) {
    const all = slides();
    enter(all[Math.min(Math.max(all.indexOf(shown()) + by, 0), all.length - 1)]);
  }
  /* Begin with the figure that the reader sees, or else with the first of this tab. */
  function begin() {
    const all = slides();
    const here = all.filter((slide) => slide.getClientRects().length > 0);
    enter(here.find((s) => s.getBoundingClientRect().bottom > innerHeight / 3) || here[0] || all[0]);
  }

  /* Whether a key was meant for the presentation; then it has been obeyed. */
  function press(event) {
    if (!shown()) {
      if (event.key !== "p") return false;
      begin();
    } else if (event.key === "Escape" || event.key === "p") leave();
    else if (event.shiftKey && event.key === " ") turn(-1);
    else if (event.target.tagName === "BUTTON" && event.key === " ") return false;
    else if (!event.shiftKey && NEXT.includes(event.key)) turn(1);
    else if (!event.shiftKey && BACK.includes(event.key)) turn(-1);
    else if (event.key === "ArrowDown") shown().scrollBy({ top: innerHeight / 2 });
    else if (event.key === "ArrowUp") shown().scrollBy({ top: -innerHeight / 2 });
    else return false;
    return true;
  }

  bar.querySelectorAll("[data-turn]").forEach((button) =>
    button.addEventListener("click", () => turn(Number(button.dataset.turn))),
  );
  at("slide-end").addEventListener("click", leave);
  at("present").addEventListener("click", begin);
  document.addEventListener("fullscreenchange", () => {
    if (!document.fullscreenElement && shown()) leave(); // Esc, taken by the browser
  });

  /* The tab that holds a slide; "" for what is none. */
  function tabOf(id) {
    const slide = chosen().find((one) => idOf(one) === id);
    return slide ? slide.closest('[role="tabpanel"]').id.slice("panel-".length) : "";
  }

  return { apply, press, enter, room, shown, tabOf };
};
