"use strict";
/* Bars on a canvas over plotly's axes: what is at least a pixel wide is drawn by itself, the rest is summed
   by pixel column, the largest kind giving the colour and the busy share the opacity. No numbers come from
   here. */
const GlassCanvas = (function () {
  const COMPUTE = 0.52,
    COMM_TOP = 0.6,
    COMM = 0.3; // lane geometry of a rank, as in timeline.py
  const FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans CJK SC', sans-serif";

  /* Top and bottom of every lane in units of ranks; lanes of axes that carried nothing have no height. */
  function lanes(g, bars) {
    const used = new Set();
    for (let i = 0; i < bars.n; i++) if (bars.axis[i] >= 0) used.add(bars.axis[i]);
    const axes = [...used].sort((a, b) => (g.axes[a] < g.axes[b] ? -1 : 1));
    const height = COMM / Math.max(axes.length, 1);
    const spans = [];
    for (let rank = 0; rank < g.ranks; rank++) {
      spans.push([rank, rank + COMPUTE]);
      g.axes.forEach((_, a) => {
        const place = axes.indexOf(a);
        const top = rank + COMM_TOP + place * height;
        spans.push(place < 0 ? null : [top + 0.03 * height, top + 0.97 * height]);
      });
    }
    return spans;
  }

  /* The first bar of a lane that may reach into the view. */
  function firstIn(bars, lane, x0) {
    let low = bars.lanePtr[lane],
      high = bars.lanePtr[lane + 1];
    const begin = low;
    while (low < high) {
      const mid = (low + high) >> 1;
      if (bars.end[mid] <= x0) low = mid + 1;
      else high = mid;
    }
    while (low > begin && bars.end[low - 1] > x0) low--;
    return low;
  }

  const tiles = new Map();
  function hatch(ctx, look) {
    if (!look.hatch) return null;
    const key = look.hatch + look.ink;
    if (!tiles.has(key)) {
      const tile = document.createElement("canvas");
      tile.width = tile.height = 8;
      const t = tile.getContext("2d");
      t.strokeStyle = t.fillStyle = look.ink;
      t.lineWidth = 1.6;
      t.beginPath();
      if ("/x".includes(look.hatch))
        [
          [-2, 2, 2, -2],
          [-2, 10, 10, -2],
          [6, 10, 10, 6],
        ].forEach(([a, b, c, d]) => {
          t.moveTo(a, b);
          t.lineTo(c, d);
        });
      if (look.hatch === "x")
        [
          [-2, 6, 2, 10],
          [-2, -2, 10, 10],
          [6, -2, 10, 2],
        ].forEach(([a, b, c, d]) => {
          t.moveTo(a, b);
          t.lineTo(c, d);
        });
      if (look.hatch === "-") {
        t.moveTo(0, 4);
        t.lineTo(8, 4);
      }
      t.stroke();
      if (look.hatch === ".") {
        t.beginPath();
        t.arc(4, 4, 1.6, 0, 7);
        t.fill();
      }
      tiles.set(key, ctx.createPattern(tile, "repeat"));
    }
    return tiles.get(key);
  }

  const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

  /* view: {x0, x1 seconds, left, top, width, height of the plot in px, yTop, yBottom in ranks, letters in
     px}. Returns how many bars were in view and drawn by themselves. */
  function draw(canvas, g, bars, view, palette, hidden, label) {
    const ratio = window.devicePixelRatio || 1;
    const W = Math.max(1, Math.round(view.width)),
      H = Math.max(1, Math.round(view.height));
    place(canvas, view, W, H, ratio);
    const ctx = canvas.getContext("2d");
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, W, H);
    const spans = lanes(g, bars);
    const scale = W / (view.x1 - view.x0);
    const yOf = (y) => ((y - view.yTop) / (view.yBottom - view.yTop)) * H;
    const kinds = GlassBarArrays.DRAWN;
    const looks = kinds.map((k) => palette[k]);
    const colours = looks.map((look) => rgb(look.fill));
    const patterns = looks.map((look) => hatch(ctx, look));
    const share = new Float32Array(kinds.length * W);
    const strip = document.createElement("canvas");
    strip.width = W;
    strip.height = 1;
    const pen = strip.getContext("2d");
    const image = pen.createImageData(W, 1);
    let single = 0,
      binned = 0;
    const outlined = [];
    ctx.imageSmoothingEnabled = false;
    ctx.font = "600 " + view.letters + "px " + FONT;
    ctx.textAlign = "center";
    ctx.textBaseline = "middle";
    for (let lane = 0; lane < spans.length; lane++) {
      if (!spans[lane]) continue;
      const top = yOf(spans[lane][0]),
        height = yOf(spans[lane][1]) - top;
      const last = bars.lanePtr[lane + 1];
      let small = false;
      const wide = [];
      for (let i = firstIn(bars, lane, view.x0); i < last && bars.start[i] < view.x1; i++) {
        if (hidden.has(bars.kind[i])) continue;
        const a = (bars.start[i] - view.x0) * scale,
          b = (bars.end[i] - view.x0) * scale;
        if (b - a >= 1) {
          wide.push(i);
          continue;
        }
        binned++;
        small = true;
        const from = Math.max(0, Math.floor(a)),
          to = Math.min(W - 1, Math.floor(b));
        for (let c = from; c <= to; c++)
          share[bars.kind[i] * W + c] += Math.max(0, Math.min(b, c + 1) - Math.max(a, c));
      }
      ctx.globalCompositeOperation = "lighter"; // bars that share a pixel each add the part they cover
      if (small) {
        columns(share, colours, image.data, W);
        pen.putImageData(image, 0, 0);
        ctx.drawImage(strip, 0, top, W, height);
      }
      const left = (i) => Math.max(-4, (bars.start[i] - view.x0) * scale),
        right = (i) => Math.min(W + 4, (bars.end[i] - view.x0) * scale);
      for (const i of wide) {
        ctx.fillStyle = looks[bars.kind[i]].fill;
        ctx.fillRect(left(i), top, right(i) - left(i), height);
      }
      single += wide.length;
      ctx.globalCompositeOperation = "source-over";
      for (const i of wide) {
        const [a, b, kind] = [left(i), right(i), bars.kind[i]];
        const edge = bars.axis[i] < 0 && kind < GlassBarArrays.FIRST_IDLE;
        const box = { a, b, top, height, letters: view.letters };
        dress(ctx, box, looks[kind], patterns[kind], edge, () => label(i));
        if (bars.critical[i]) outlined.push([a, top, b - a, height]);
      }
    }
    if (!hidden.has("critical")) {
      ctx.strokeStyle = "#000000";
      ctx.lineWidth = 2;
      outlined.forEach(([x, y, w, h]) => ctx.strokeRect(x + 1, y + 1, Math.max(w - 2, 0.5), h - 2));
    }
    return { single, binned, pixel: 1 / scale };
  }

  /* On a filled bar, where there is room for each: its hatch, a light edge on the left, its label. */
  function dress(ctx, { a, b, top, height, letters }, look, pattern, edge, label) {
    if (pattern && b - a >= 4) {
      ctx.fillStyle = pattern;
      ctx.fillRect(a, top, b - a, height);
    }
    if (edge && b - a >= 5) {
      ctx.fillStyle = "rgba(255,255,255,0.85)";
      ctx.fillRect(a, top, 1, height);
    }
    const text = height >= letters - 1 && b - a >= letters ? label() : "";
    if (text && ctx.measureText(text).width + 4 <= b - a) {
      ctx.fillStyle = look.text;
      ctx.fillText(text, (a + b) / 2, top + height / 2 + 1);
    }
  }

  /* A pixel column takes the colour of the kind that was busy for most of it, as strong as its busy share;
     idle time, in the colour of its commonest reason, is the ground it stands on. */
  function columns(share, colours, pixels, W) {
    const first = GlassBarArrays.FIRST_IDLE;
    for (let c = 0; c < W; c++) {
      const most = [0, first]; // the kind with the largest share: of those that are busy, and of those idle
      const sum = [0, 0];
      for (let k = 0; k < colours.length; k++) {
        const [s, idle] = [share[k * W + c], k < first ? 0 : 1];
        sum[idle] += s;
        if (s > share[most[idle] * W + c]) most[idle] = k;
      }
      const total = sum[0] + sum[1];
      const [busy, ground] = most.map((k) => colours[k]);
      for (let p = 0; p < 3; p++)
        pixels[4 * c + p] = total ? (busy[p] * sum[0] + ground[p] * sum[1]) / total : 0;
      pixels[4 * c + 3] = Math.round(255 * Math.min(1, total));
    }
    share.fill(0);
  }

  function place(canvas, view, W, H, ratio) {
    canvas.style.left = view.left + "px";
    canvas.style.top = view.top + "px";
    canvas.style.width = W + "px";
    canvas.style.height = H + "px";
    if (canvas.width !== Math.round(W * ratio)) canvas.width = Math.round(W * ratio);
    if (canvas.height !== Math.round(H * ratio)) canvas.height = Math.round(H * ratio);
  }

  /* The bar at a time and height (in ranks), -1 when there is none. */
  function hit(g, bars, time, y, slack, hidden) {
    const spans = lanes(g, bars);
    for (let lane = 0; lane < spans.length; lane++) {
      if (!spans[lane] || y < spans[lane][0] || y > spans[lane][1]) continue;
      let best = -1,
        distance = slack;
      for (
        let i = firstIn(bars, lane, time - slack);
        i < bars.lanePtr[lane + 1] && bars.start[i] <= time + slack;
        i++
      ) {
        if (hidden.has(bars.kind[i])) continue;
        const off = Math.max(bars.start[i] - time, time - bars.end[i], 0);
        if (off < distance || (off === 0 && best < 0)) {
          best = i;
          distance = off;
        }
      }
      return best;
    }
    return -1;
  }

  /* Over everything: the chosen bar and lines from what it waited for. */
  function mark(canvas, g, bars, view, chosen, before) {
    const ratio = window.devicePixelRatio || 1;
    const W = Math.max(1, Math.round(view.width)),
      H = Math.max(1, Math.round(view.height));
    place(canvas, view, W, H, ratio);
    const ctx = canvas.getContext("2d");
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, W, H);
    if (chosen < 0) return;
    const spans = lanes(g, bars);
    const xOf = (t) => ((t - view.x0) / (view.x1 - view.x0)) * W;
    const yOf = (y) => ((y - view.yTop) / (view.yBottom - view.yTop)) * H;
    const box = (i) => {
      const [a, b] = spans[bars.lane[i]];
      const x = xOf(bars.start[i]);
      return { x, y: yOf(a), w: Math.max(xOf(bars.end[i]) - x, 3), h: yOf(b) - yOf(a) };
    };
    ctx.strokeStyle = ctx.fillStyle = "#b00020";
    const me = box(chosen);
    before.forEach((i) => {
      const other = box(i);
      ctx.lineWidth = 2;
      ctx.setLineDash([5, 3]);
      ctx.strokeRect(other.x, other.y, other.w, other.h);
      ctx.setLineDash([]);
      const [x1, y1, x2, y2] = [other.x + other.w, other.y + other.h / 2, me.x, me.y + me.h / 2];
      ctx.beginPath();
      ctx.moveTo(x1, y1);
      ctx.lineTo(x2, y2);
      ctx.stroke();
      const angle = Math.atan2(y2 - y1, x2 - x1);
      ctx.beginPath();
      ctx.moveTo(x2, y2);
      [2.7, -2.7].forEach((turn) =>
        ctx.lineTo(x2 + 11 * Math.cos(angle + turn), y2 + 11 * Math.sin(angle + turn)),
      );
      ctx.fill();
    });
    ctx.lineWidth = 3.5;
    ctx.strokeRect(me.x, me.y, me.w, me.h);
  }

  return { draw, hit, mark, lanes };
})();
