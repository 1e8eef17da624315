"use strict";
/* The figures: drawn by plotly for the page, for a narrow screen, or large for the back of a room; and what
   the tool bar under each does. Nothing here opens a connection: plotly's own bar, one of whose buttons
   uploads the figure, is never shown. */
const GlassFigures = function (page) {
  const OPTIONS = { responsive: true, displayModeBar: false, scrollZoom: false, plotlyServerURL: "" };
  const TYPE = 1.8; // how much larger letters are in presentation mode,
  const LEAST = 25; // and the least, in pixels, that is read from the back of a room
  const SMALLEST = 14; // of what stands inside bars
  const WIDTHS = [900, 1100, 1400]; // tried where labels lie on each other
  const touched = matchMedia("(pointer: coarse)").matches;

  /* A figure's data and layout in the language of the page; a copy. */
  function content(id) {
    const { data, layout, zh } = JSON.parse(JSON.stringify(page.data.figures[id]));
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
    if (slide) enlarge({ data, layout }, slide);
    element.style.minWidth = slide ? "0" : "";
    const first = !element._fullLayout;
    const drawing = moduleName.react(element, data, layout, OPTIONS);
    if (first) element.on("plotly_afterplot", () => legible(element));
    await drawing;
    await (slide ? settle(element, slide) : widen(element));
    return element;
  }

  // ---- large, for presentation mode
  const large = (size) => Math.max(LEAST, Math.round(TYPE * size));
  const LENGTHS = ["xshift", "yshift", "standoff", "ticklen"]; // that keep text off something

  function enlarge({ data, layout }, slide) {
    data.forEach(grow);
    grow(layout);
    const { l, r, t, b } = layout.margin;
    const top = layout.title && layout.title.text ? t - 24 : t; // the title stands above the slide
    layout.title = { text: "" };
    layout.margin = { l: TYPE * l, r: TYPE * r, t: TYPE * Math.max(top, 8), b: TYPE * b };
    layout.height = slide.height;
    delete layout.uniformtext; // what is wide has large letters, whatever the narrow ones have
    Object.keys(layout)
      .filter((key) => /^[xy]axis\d*$/.test(key))
      .forEach((key) => {
        const off = { ticks: "outside", ticklen: 8, tickcolor: "rgba(0,0,0,0)" }; // numbers off the plot
        layout[key] = Object.assign({}, layout[key].ticks ? {} : off, layout[key], { automargin: true });
      });
  }

  /* Fonts, lines, marks and small distances, wherever they stand in a part of a figure; the outlines of
     bars stay, or thin bars would be nothing else. */
  function grow(part) {
    for (const [key, value] of Object.entries(part)) {
      const tail = (key === "ax" || key === "ay") && (part[key + "ref"] || "pixel") === "pixel";
      if (tail) part[key] = TYPE * value;
      if (LENGTHS.includes(key) && typeof value === "number") part[key] = TYPE * value;
      if (value === null || typeof value !== "object") continue;
      if (Array.isArray(value) && typeof value[0] !== "object") continue;
      if (/font$/.test(key) && value.size)
        value.size = Array.isArray(value.size) ? value.size.map(large) : large(value.size);
      if (key === "marker") {
        if (typeof value.size === "number") value.size *= 1.5;
      } else {
        if (key === "line" && typeof value.width === "number") value.width *= 1.5;
        grow(value);
      }
    }
  }

  /* What is known only after a first drawing: how many rows the legend has, whether labels touch. */
  async function settle(element, slide) {
    const layout = element._fullLayout;
    const change = {};
    const rows = lines(element) * LEAST * 1.4 + layout.margin.t + layout.margin.b;
    if (rows > slide.height) change.height = rows; // the slide scrolls
    thin(layout, change);
    shorten(element, change);
    const below = under(element);
    if (below > layout._size.b + 1) change["margin.b"] = below;
    if (touching(element, ".annotation-text"))
      layout.annotations.forEach((a, i) => {
        if (!a.showarrow && a.xref !== "paper") change["annotations[" + i + "].textangle"] = -90;
      });
    if (Object.keys(change).length) await moduleName.relayout(element, change);
    legible(element);
  }

  /* Of the texts in bars, those that shrank too much to be read are not shown. */
  function legible(element) {
    element.querySelectorAll(".bartext").forEach((text) => {
      const small = text.getBoundingClientRect().height < SMALLEST;
      text.style.visibility = small && element.closest(".slide.shown") ? "hidden" : "";
    });
  }

  /* The pixels that tick labels, axis titles and the legend take below the plot. */
  function under(element) {
    const layout = element._fullLayout;
    const bottom = element.getBoundingClientRect().top + layout._size.t + layout._size.h;
    const lowest = (query) =>
      Array.from(element.querySelectorAll(query)).reduce(
        (most, text) => Math.max(most, text.getBoundingClientRect().bottom - bottom),
        0,
      );
    const legend = element.querySelector(".legend .bg");
    const beneath = legend && layout.legend.yref === "container";
    const room = beneath ? legend.getBoundingClientRect().height + 8 : 0;
    return Math.max(lowest("[class*=xtick] text"), lowest("[class*=xtitle]")) + room;
  }

  /* How many lines of text a figure needs below each other: one a category, and where a heading stands
     between the rows of ranks, one a row. */
  function lines(element) {
    const { yaxis, annotations } = element._fullLayout;
    if (!yaxis) return 0;
    if (yaxis.type === "category") return yaxis._categories.length;
    const headed = (annotations || []).some((a) => a.xref === "paper" && a.yref === "y");
    return headed ? Math.abs(yaxis.range[1] - yaxis.range[0]) : 0;
  }

  /* Of tick labels that are given by hand, keep those that have room. */
  function thin(layout, change) {
    const { tickvals, ticktext, range, type, tickfont } = layout.yaxis || {};
    if (!tickvals || !ticktext || type !== "linear") return;
    const pixels = layout._size.h / Math.abs(range[1] - range[0]);
    let last = -Infinity;
    const kept = tickvals.map((at) => {
      const fits = (at - last) * pixels >= 1.25 * tickfont.size;
      if (fits) last = at;
      return fits;
    });
    if (kept.every(Boolean)) return;
    change["yaxis.tickvals"] = tickvals.filter((_, i) => kept[i]);
    change["yaxis.ticktext"] = ticktext.filter((_, i) => kept[i]);
  }

  /* Bars whose text stands behind them leave room for it: the axis is made longer. */
  function shorten(element, change) {
    element.querySelectorAll(".cartesianlayer .subplot").forEach((panel) => {
      const axis = element._fullLayout[panel.classList[1].replace(/^x(\d*)y.*$/, "xaxis$1")];
      if (!axis || axis.type !== "linear" || !panel.querySelector(".bars")) return;
      const end = element.getBoundingClientRect().left + axis._offset + axis._length;
      const over = Array.from(panel.querySelectorAll(".bartext")).reduce(
        (most, text) => Math.max(most, text.getBoundingClientRect().right - end),
        0,
      );
      if (over < 1) return;
      const [low, high] = axis.range;
      const longer = axis._length / (axis._length - 1.2 * over - 12);
      change[axis._name + ".range"] = [low, low + (high - low) * longer];
    });
  }

  // ---- on a narrow screen
  /* Give a figure more width, inside its scrolling frame, while its labels lie on each other. */
  async function widen(element) {
    if (element.closest(".stage") || element.offsetWidth >= WIDTHS[2]) return;
    for (const width of WIDTHS.filter((w) => w > element.offsetWidth)) {
      if (!touching(element, ".annotation-text") && !touching(element, "[class*=xtick] text")) return;
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

  /* Whether two of these texts lie on each other. */
  function touching(element, query) {
    const boxes = Array.from(element.querySelectorAll(query), (text) => text.getBoundingClientRect())
      .filter((box) => box.width > 0)
      .sort((a, b) => a.left - b.left);
    return boxes.some((a, i) => {
      for (let k = i + 1; k < boxes.length && boxes[k].left < a.right - 1; k++)
        if (boxes[k].top < a.bottom - 1 && boxes[k].bottom > a.top + 1) return true;
      return false;
    });
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
