"use strict";
/* A figure for the back of a room: its letters are larger, and what then touches or has no room is arranged
   anew. */
const GlassLarge = (function () {
  const TYPE = 1.8; // how much larger letters are in presentation mode,
  const LEAST = 25; // and the least, in pixels, that is read from the back of a room
  const TITLE = 1.2 * LEAST; // of an axis, which plotly writes larger than its numbers
  const SMALLEST = 14; // of what stands inside bars
  const isAxis = ([key]) => /^[xy]axis\d*$/.test(key);

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
    Object.entries(layout)
      .filter(isAxis)
      .forEach(([key]) => {
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
    thin(layout, change);
    shorten(element, change);
    breakTitles(element, slide, change);
    const below = Math.max(under(element) + 1.3 * TITLE * (change.lower || 0), layout._size.b);
    delete change.lower;
    if (below > layout._size.b + 1) change["margin.b"] = below;
    const rows = lines(element) * LEAST * 1.4 + layout._size.t + below;
    const tall = rows > 1.05 * slide.height; // then the slide scrolls
    if (tall) change.height = rows;
    element.closest(".slide").toggleAttribute("data-tall", tall);
    separate(element, change);
    if (Object.keys(change).length) await moduleName.relayout(element, change);
    legible(element);
  }

  /* Notes that lie on each other: those over panels take two lines, those at bars stand upright. */
  function separate(element, change) {
    const { annotations, _size } = element._fullLayout;
    const of = (keep) =>
      Array.from(element.querySelectorAll(".annotation"), (g) => [g, Number(g.dataset.index)]).filter(
        ([, i]) => annotations[i] && !annotations[i].showarrow && keep(annotations[i]),
      );
    const headings = of((a) => a.xref === "paper");
    if (touching(headings.map(([g]) => g)) || headings.some(([g]) => right(g) > innerWidth)) {
      headings.forEach(([, i]) => {
        change["annotations[" + i + "].text"] = annotations[i].text.replace(/\s+(?=[(（])/, "<br>");
      });
      change["margin.t"] = _size.t + 1.4 * LEAST;
    }
    const sums = of((a) => a.xref !== "paper");
    if (touching(sums.map(([g]) => g)))
      sums.forEach(([, i]) => {
        change["annotations[" + i + "].textangle"] = -90;
      });
  }
  const right = (element) => element.getBoundingClientRect().right;

  /* An axis title that is longer than its axis takes two lines. */
  function breakTitles(element, slide, change) {
    Object.entries(element._fullLayout)
      .filter(isAxis)
      .forEach(([key, axis]) => {
        const drawn = element.querySelector("text." + axis._id + "title");
        if (!drawn || axis.title.text.includes("<br>")) return;
        const box = drawn.getBoundingClientRect();
        const across = axis._id[0] === "x";
        const inside = across ? box.right <= slide.width && box.left >= 0 : true;
        if (inside && (across ? box.width : box.height) <= 1.1 * axis._length) return;
        const { text } = axis.title;
        const gaps = Array.from(text.matchAll(/[ ，（]/g), (gap) => gap.index);
        if (!gaps.length) return;
        const middle = gaps.reduce((best, at) =>
          Math.abs(at - text.length / 2) < Math.abs(best - text.length / 2) ? at : best,
        );
        change[key + ".title.text"] = text.slice(0, middle + 1) + "<br>" + text.slice(middle + 1);
        if (across) change.lower = 1;
      });
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

  /* How many lines of text a figure needs below each other: one a category, and where headings stand between
     the rows of ranks, so many that the narrowest gap holds its heading. */
  function lines(element) {
    const { yaxis, annotations } = element._fullLayout;
    if (!yaxis) return 0;
    if (yaxis.type === "category") return yaxis._categories.length;
    const headings = (annotations || []).filter((a) => a.xref === "paper" && a.yref === "y" && !a.showarrow);
    if (!headings.length) return 0;
    const edges = element._fullData
      .filter((trace) => trace.type === "bar" && trace.orientation === "h")
      .flatMap(({ y, width }) =>
        Array.from(y).flatMap((at, i) => {
          const half = (width && width.length ? width[i] : width || 0.8) / 2;
          return [at - half, at + half];
        }),
      );
    const gap = headings.reduce(
      (least, { y }) => edges.reduce((near, edge) => Math.min(near, 2 * Math.abs(edge - y)), least),
      Infinity,
    );
    return (0.7 * Math.abs(yaxis.range[1] - yaxis.range[0])) / Math.max(gap, 0.4);
  }

  /* Of tick labels that are given by hand, keep those that have room. On a logarithmic axis plotly writes
     small digits between the powers of ten; here 1, 2 and 5 of each power are written in full. */
  function thin(layout, change) {
    Object.entries(layout)
      .filter(isAxis)
      .filter(([, axis]) => axis.type === "log" && axis.tickmode === "auto")
      .filter(([, axis]) => axis.exponentformat !== "power")
      .forEach(([key, axis]) => {
        const decade = axis._length / Math.abs(axis.range[1] - axis.range[0]);
        const room = key[0] === "y" ? 1.4 * axis.tickfont.size : 3.2 * axis.tickfont.size;
        const steps = decade * Math.log10(2) > room ? [1, 2, 5] : [1];
        const values = [];
        for (let power = Math.floor(axis.range[0]); power <= axis.range[1]; power++)
          steps.forEach((step) => values.push(step * 10 ** power));
        const [low, high] = axis.range;
        const seen = values.filter((v) => Math.log10(v) >= low && Math.log10(v) <= high);
        if (seen.length < 2) return;
        change[key + ".tickvals"] = seen;
        change[key + ".ticktext"] = seen.map(short);
      });
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

  /* A round number in few letters: 20k, 5M, 0.02, 10⁻⁶ for what is smaller. */
  function short(value) {
    for (const [least, letter] of [
      [1e9, "G"],
      [1e6, "M"],
      [1e3, "k"],
    ])
      if (value >= least) return Number((value / least).toPrecision(3)) + letter;
    if (value >= 1e-3) return String(Number(value.toPrecision(3)));
    const power = Math.floor(Math.log10(value) + 1e-9);
    const factor = Math.round(value / 10 ** power);
    return (factor === 1 ? "" : factor + "·") + "10<sup>" + power + "</sup>";
  }

  /* Whether two of these texts lie on each other. */
  function touching(texts) {
    const boxes = texts
      .map((text) => text.getBoundingClientRect())
      .filter((box) => box.width > 0)
      .sort((a, b) => a.left - b.left);
    return boxes.some((a, i) => {
      for (let k = i + 1; k < boxes.length && boxes[k].left < a.right - 1; k++)
        if (boxes[k].top < a.bottom - 1 && boxes[k].bottom > a.top + 1) return true;
      return false;
    });
  }

  return { enlarge, settle, legible, touching };
})();
