"""A timeline as a picture without a script: for a notebook's cell, where every display is stored in the file.

It is an SVG with the bars, their digits, axis and legend; resting the pointer on a bar says what it is. The
figure that zooms is `Timeline.show()`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from glasscluster.visualize.figures.layout import FONT, GRID, INK
from glasscluster.visualize.figures.palette import CRITICAL, KINDS
from glasscluster.visualize.figures.timeline import (
    COMM_HEIGHT,
    COMM_TOP,
    COMPUTE_HEIGHT,
    DRAWN_SINGLY,
    Bar,
    communication_bars,
    compute_bars,
    idle_bars,
    time_unit,
)
from glasscluster.visualize.words import word

if TYPE_CHECKING:
    from glasscluster.sim.time.timeline import Timeline

WIDTH, LEFT, RIGHT, TOP = 960, 118, 12, 8  # pixels, of which the plot is what lies between LEFT and RIGHT
ROW = 72  # pixels of a rank; fewer where there are many ranks
TALLEST = 900  # pixels of all ranks together
SHADES = 5  # steps of how busy a pixel column is
HATCHES = {  # plotly's pattern shapes as SVG paths in a tile of 8 by 8 pixels
    "/": "M-2 2L2-2M-2 10L10-2M6 10L10 6",
    "x": "M-2 2L2-2M-2 10L10-2M6 10L10 6M-2 6L2 10M-2-2L10 10M6-2L10 2",
    "-": "M0 4H8",
    ".": "M3 4a1.4 1.4 0 1 0 2.8 0a1.4 1.4 0 1 0-2.8 0",
}


def timeline_still(timeline: Timeline, lang: str = "en") -> str:
    """Draw a timeline as one SVG element, some ten to a hundred kB.

    Above 2,000 bars those narrower than a pixel are summed by pixel column, and no bar names itself.
    """
    factor, unit = time_unit(timeline.makespan)
    bars = [*compute_bars(timeline, lang, factor, unit), *communication_bars(timeline, lang, factor, unit)]
    single = len(bars) <= DRAWN_SINGLY
    ranks = timeline.graph.ranks
    row = min(ROW, TALLEST / ranks)
    across = (WIDTH - LEFT - RIGHT) / (timeline.makespan or 1.0)

    def place(bar: Bar) -> tuple[float, float, float, float]:
        top, height = TOP + (bar.y - bar.height / 2) * row, bar.height * row
        return LEFT + bar.start * across, top, (bar.end - bar.start) * across, height

    kinds = [k for k in KINDS if k == "bubble" or any(b.kind == k for b in bars)]
    key = "t" + hashlib.sha256(repr((timeline.makespan, ranks, len(bars))).encode()).hexdigest()[:8]
    parts = [f"<defs>{''.join(_pattern(k, key) for k in kinds)}</defs>"]
    bottom = TOP + ranks * row
    parts += _axis(timeline.makespan * factor, bottom)
    parts += _ranks(ranks, row, lang)
    if single:
        idle = idle_bars(timeline, lang, factor, unit)
        parts += _one_by_one([(b, place(b)) for b in [*idle, *bars]], key)
    else:
        parts += _in_columns([(b, place(b)) for b in bars], ranks, row, key)
    time = word("measured_time" if timeline.measured else "virtual_time", lang)
    title = f"{time} ({unit}) · {timeline.hardware.name}"
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, bottom + 40, title, "middle", size=15))
    outlined = ["critical"] if single and any(b.critical for b in bars) else []
    legend, bottom = _legend([*kinds, *outlined], key, bottom + 66, lang)
    parts += legend
    note = (
        word("still_note", lang) if single else word("still_binned", lang, events=f"{len(timeline.graph):,}")
    )
    parts.append(_text(LEFT, bottom + 24, note, fill="#52606d"))
    height = bottom + 34
    style = f"width:100%;max-width:{WIDTH + 240}px;background:#fff;font:13px {FONT}"
    box = f'viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box} style="{escape(style)}">{"".join(parts)}</svg>'


# ---- bars --------------------------------------------------------------------------------------------------
Placed = tuple[
    Bar, tuple[float, float, float, float]
]  # a bar; the left, top, width and height of its rectangle


def _one_by_one(placed: Iterable[Placed], key: str) -> Iterator[str]:
    """Each bar by itself, with its digit where there is room, and with words for the pointer."""
    outlines = []
    for bar, (x, y, width, height) in placed:
        says = escape("\n".join(line.replace("<b>", "").replace("</b>", "") for line in bar.hover))
        size = f'x="{x:.2f}" y="{y:.1f}" width="{max(width, 0.4):.2f}" height="{height:.1f}"'
        yield f'<rect {size} fill="{_fill(bar.kind, key)}"><title>{says}</title></rect>'
        if bar.text and width >= 8 * len(bar.text) + 3 and height >= 13:
            middle = x + width / 2, y + height / 2 + 4.5
            yield _text(*middle, bar.text, "middle", fill=KINDS[bar.kind].text)
        if bar.critical:
            outlines.append(f'<rect {size} fill="none" stroke="{CRITICAL}" stroke-width="2"/>')
    yield from outlines


def _in_columns(placed: Iterable[Placed], ranks: int, row: float, key: str) -> Iterator[str]:
    """What is a pixel wide as it is; the rest summed by pixel column, as strong as the part of it that was
    busy, over lanes that are idle.
    """
    lanes = "".join(
        f"M{LEFT} {TOP + r * row:.1f}h{WIDTH - LEFT - RIGHT}v{COMPUTE_HEIGHT * row:.1f}H{LEFT}z"
        for r in range(ranks)
    )
    yield f'<path d="{lanes}" fill="{_fill("bubble", key)}"/>'
    paths: dict[tuple[str, int], list[str]] = {}
    busy: dict[tuple[str, float, float], np.ndarray] = {}
    for bar, (x, y, width, height) in placed:
        if width >= 1:
            whole = f"M{x:.1f} {y:.1f}h{width:.1f}v{height:.1f}h{-width:.1f}z"
            paths.setdefault((bar.kind, SHADES), []).append(whole)
            continue
        columns = busy.setdefault((bar.kind, y, height), np.zeros(WIDTH + 1))
        first = int(x)
        beyond = max(x + width - (first + 1), 0.0)  # the part in the next column
        columns[first] += width - beyond
        columns[first + 1] += beyond
    for (kind, y, height), columns in busy.items():
        shades = np.rint(SHADES * np.minimum(columns, 1.0)).astype(int)
        edges = np.flatnonzero(np.diff(shades)) + 1
        for a, b in pairwise([0, *edges.tolist(), len(shades)]):
            if shades[a]:
                run = f"M{a} {y:.1f}h{b - a}v{height:.1f}h{a - b}z"
                paths.setdefault((kind, int(shades[a])), []).append(run)
    for (kind, shade), runs in sorted(paths.items()):
        yield f'<path d="{"".join(runs)}" fill="{_fill(kind, key)}" fill-opacity="{shade / SHADES:g}"/>'


def _fill(kind: str, key: str) -> str:
    return f"url(#{key}-{kind})" if KINDS[kind].hatch else KINDS[kind].fill


def _pattern(kind: str, key: str) -> str:
    look = KINDS[kind]
    if not look.hatch:
        return ""
    ink = f'fill="{look.ink}"' if look.hatch == "." else f'stroke="{look.ink}" stroke-width="1.5" fill="none"'
    tile = f'<rect width="8" height="8" fill="{look.fill}"/><path d="{HATCHES[look.hatch]}" {ink}/>'
    size = 'width="8" height="8" patternUnits="userSpaceOnUse"'
    return f'<pattern id="{key}-{kind}" {size}>{tile}</pattern>'


# ---- what stands around them -------------------------------------------------------------------------------
def _text(x: float, y: float, text: str, anchor: str = "start", *, size: int = 13, fill: str = INK) -> str:
    look = f'text-anchor="{anchor}" font-size="{size}" fill="{fill}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look} pointer-events="none">{escape(text)}</text>'


def _axis(longest: float, bottom: float) -> Iterator[str]:
    """Lines at round times, with their numbers below."""
    step = 10.0 ** np.floor(np.log10(longest / 4)) if longest > 0 else 1.0
    step *= next((k for k in (1, 2, 5) if longest / (k * step) <= 8), 10)
    for i in range(int(longest / step) + 1):
        x = LEFT + (WIDTH - LEFT - RIGHT) * (i * step / longest if longest > 0 else 0.0)
        yield f'<path d="M{x:.1f} {TOP}V{bottom + 4:.1f}" stroke="{GRID}" fill="none"/>'
        yield _text(x, bottom + 19, f"{i * step:.6g}", "middle")


def _ranks(ranks: int, row: float, lang: str) -> Iterator[str]:
    """The names of the lanes, of as many ranks as there is room for."""
    every = max(1, int(np.ceil(16 / row)))
    both = row * (COMM_TOP + COMM_HEIGHT / 2 - COMPUTE_HEIGHT / 2) >= 15
    for rank in range(0, ranks, every):
        name = f"{word('rank', lang)} {rank}"
        if both:
            name += f" {word('lane_compute', lang)}"
            at = TOP + (rank + COMM_TOP + COMM_HEIGHT / 2) * row + 4.5
            yield _text(LEFT - 8, at, word("lane_comm", lang), "end")
        yield _text(LEFT - 8, TOP + (rank + COMPUTE_HEIGHT / 2) * row + 4.5, name, "end")


def _legend(kinds: list[str], key: str, y: float, lang: str) -> tuple[list[str], float]:
    """Swatches with names, in as many rows as they need; with the height of the last row."""
    parts, x = [], float(LEFT)
    for kind in kinds:
        name = word(kind, lang)
        wide = 34 + sum(14 if ord(letter) > 0x2E80 else 7.6 for letter in name)
        if x + wide > WIDTH - RIGHT:
            x, y = float(LEFT), y + 22
        look = (
            f'fill="none" stroke="{CRITICAL}" stroke-width="2"'
            if kind == "critical"
            else f'fill="{_fill(kind, key)}"'
        )
        parts.append(f'<rect x="{x:.1f}" y="{y - 11:.1f}" width="13" height="13" {look}/>')
        parts.append(_text(x + 19, y, name))
        x += wide
    return parts, y
