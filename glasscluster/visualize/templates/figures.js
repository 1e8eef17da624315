"use strict";
/* The figures: drawn by plotly for the page, for a narrow screen, or large (large.js); and what the tool bar
   under each does. Nothing here opens a connection: plotly's own bar, one of whose buttons
   uploads the figure, is never shown. */
const GlassFigures = function (page) {
  const OPTIONS = { responsive: true, displayModeBar: false, scrollZoom: false, plotlyServerURL: "" };
  const WIDTHS = [900, 1100, 1400]; // tried where labels lie on each other
  const touched = matchMedia("(pointer: coarse)").matches;

  /* A figure's data and layout in the language of the page, with the page's template unless it has one of its
     own; a copy. */
  function content(id) {
    const { template, figures } = page.data;
    const { data, layout, zh } = JSON.parse(JSON.stringify(figures[id]));
    layout.template ||= JSON.parse(JSON.stringify(template));
    if (page.state().lang === "en") return { data, layout };
    return {
      data: data.map((trace, i) => Object.assign(trace, zh.data[i])),
      layout: Object.assign(layout, zh.layout),
    };
  }

  /* How a figure stands now: large in a room of so many pixels, or, as "", in the page. */
  function shape(id) {
    const slide = page.slide(id);
    return slide ? slide.width + "x" + slide.height : "";
  }

  /* Draw a figure into its element as it is to stand now. `made`: another content than the page's data. */
  async function draw(id, made) {
    const { data, layout } = made || content(id);
    const element = document.getElementById("fig-" + id);
    const slide = page.slide(id);
    if (touched) layout.dragmode = false; // a finger scrolls; it does not zoom
    if (slide) GlassLarge.enlarge({ data, layout }, slide);
    element.style.minWidth = slide ? "0" : "";
    const first = !element._fullLayout;
    const drawing = moduleName.react(element, data, layout, OPTIONS);
    if (first) element.on("plotly_afterplot", () => GlassLarge.legible(element));
    await drawing;
    await (slide ? GlassLarge.settle(element, slide) : widen(element));
    return element;
  }

  // ---- on a narrow screen
  /* Give a figure more width, inside its scrolling frame, while its labels lie on each other. */
  async function widen(element) {
    if (element.closest(".stage") || element.offsetWidth >= WIDTHS[2]) return;
    for (const width of WIDTHS.filter((w) => w > element.offsetWidth)) {
      const meet = (query) => GlassLarge.touching(Array.from(element.querySelectorAll(query)));
      if (!meet(".annotation-text") && !meet("[class*=xtick] text")) return;
      element.style.minWidth = width + "px";
      await moduleName.Plots.resize(element);
    }
  }

  /* The same again for a screen of another width. */
  async function refit(figure) {
    const element = figure.querySelector(".plot");
    element.style.minWidth = "";
    await moduleName.Plots.resize(element);
    await widen(element);
  }

  /* A frame shows on which side there is more. */
  function watch(scroller) {
    const tell = () => {
      const rest = scroller.scrollWidth - scroller.clientWidth;
      const left = rest > 2 && scroller.scrollLeft > 2 ? "left " : "";
      const right = rest > 2 && scroller.scrollLeft < rest - 2 ? "right" : "";
      scroller.parentElement.dataset.more = left + right;
      scroller.parentElement.toggleAttribute("data-scrolls", rest > 2);
    };
    scroller.addEventListener("scroll", tell, { passive: true });
    const observer = new ResizeObserver(tell);
    observer.observe(scroller);
    Array.from(scroller.children).forEach((child) => observer.observe(child));
  }

  // ---- the tool bar
  /* The figure as it stands, twice as fine, the canvas of a timeline included; a data URL. */
  async function picture(figure) {
    const plot = figure.querySelector(".plot");
    const { width, height } = plot._fullLayout;
    const drawn = await moduleName.toImage(plot, { format: "png", width, height, scale: 2 });
    const layers = Array.from(figure.querySelectorAll(".stage canvas")).filter((c) => !c.hidden);
    if (!layers.length) return drawn;
    const image = Object.assign(new Image(), { src: drawn });
    await image.decode();
    const paper = Object.assign(document.createElement("canvas"), { width: 2 * width, height: 2 * height });
    const pen = paper.getContext("2d");
    pen.drawImage(image, 0, 0);
    layers.forEach((c) => {
      const [x, y, w, h] = ["left", "top", "width", "height"].map((side) => 2 * parseFloat(c.style[side]));
      pen.drawImage(c, x, y, w, h);
    });
    return paper.toDataURL("image/png");
  }

  async function save(figure) {
    const link = document.createElement("a");
    link.href = await picture(figure);
    link.download = "glasscluster-" + figure.dataset.fig + ".png";
    link.click();
  }

  return { content, draw, refit, shape, save, watch };
};
