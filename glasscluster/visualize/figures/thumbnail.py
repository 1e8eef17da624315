"""Any figure of this folder as a small static SVG, in plain Python without a browser or kaleido. It draws
bars, lines and marks, and no text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from glasscluster.sim.recording.events import PHASES
from glasscluster.visualize.figures.palette import KINDS

if TYPE_CHECKING:
    from glasscluster.sim.time.timeline import Timeline

WIDTH, HEIGHT = 360, 176
LANE, RANKS = 22, 8


def timeline_svg(timeline: Timeline, title: str = "") -> str:
    """Draw a timeline of at most eight ranks from its events: compute above, communication below, idle time
    grey.
    """
    ranks = min(timeline.graph.ranks, RANKS)
    scale = WIDTH / (timeline.makespan or 1.0)
    parts = [
        f'<rect x="0" y="{r * LANE}" width="{WIDTH}" height="12" fill="{KINDS["wait"].fill}"/>'
        for r in range(ranks)
    ]
    for block in timeline.blocks():
        if block["rank"] < ranks:
            x, width = block["start"] * scale, (block["end"] - block["start"]) * scale
            parts.append(_rect(x, block["rank"] * LANE, width, 12, KINDS[PHASES[block["phase"]]].fill))
    for work in timeline.communications():
        if work["rank"] < ranks:
            kind = work["kind"]
            parts.append(
                _rect(
                    work["start"] * scale,
                    work["rank"] * LANE + 13,
                    (work["end"] - work["start"]) * scale,
                    6,
                    KINDS[kind].fill,
                )
            )
    return _svg(parts, ranks * LANE, title)


def figure_svg(figure: Mapping[str, Any], title: str = "") -> str:
    """Draw the `data` and `layout` of a figure that consists of bars and scatters, as all figures of this
    folder do.
    """
    layout, traces = figure["layout"], [t for t in figure["data"] if t.get("visible", True) is True]
    panels: dict[tuple[str, str], _Panel] = {}
    for trace in traces:
        names = trace.get("xaxis", "x"), trace.get("yaxis", "y")
        if names not in panels:
            panels[names] = _Panel(
                _Axis.of(layout, names[0]), _Axis.of(layout, names[1]), layout.get("barmode", "group")
            )
        panels[names].traces.append(trace)
    return _svg([part for panel in panels.values() for part in panel.draw()], HEIGHT, title)


def _svg(parts: Iterable[str], height: float, title: str) -> str:
    label = f"<title>{escape(title)}</title>" if title else ""
    size = f'viewBox="0 0 {WIDTH} {height}" preserveAspectRatio="none" role="img"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{label}{"".join(parts)}</svg>'


def _rect(x: float, y: float, width: float, height: float, fill: str) -> str:
    size = f'width="{max(width, 0.6):.2f}" height="{max(height, 0.6):.2f}"'
    return f'<rect x="{x:.2f}" y="{y:.2f}" {size} fill="{fill}"/>'


@dataclass
class _Axis:
    """An axis: it maps values, or categories by their number, to pixels."""

    domain: Sequence[float]
    vertical: bool
    log: bool
    fixed: Sequence[float] | None
    reverse: bool
    places: dict[Any, float] = field(default_factory=dict)
    low: float = math.inf
    high: float = -math.inf

    @classmethod
    def of(cls, layout: dict[str, Any], name: str) -> _Axis:
        """Make an axis from a plotly layout: "x2" is `xaxis2` there."""
        axis = layout.get(name[0] + "axis" + name[1:], {})
        matches = axis.get("matches")
        if matches:
            axis = {**layout.get(matches[0] + "axis" + matches[1:], {}), **axis}
        fixed = axis.get("range")
        return cls(
            axis.get("domain") or [0, 1],
            name[0] == "y",
            axis.get("type") == "log",
            fixed,
            axis.get("autorange") == "reversed",
        )

    def number(self, value: Any) -> float:
        """Return a value as a number on the axis; categories are numbered in the order in which they come."""
        if isinstance(value, str):
            return self.places.setdefault(value, float(len(self.places)))
        if self.log:
            return math.log10(value) if value and value > 0 else -18.0
        return float(value or 0.0)

    def see(self, *values: float) -> None:
        """Extend the range so that it includes these values."""
        self.low, self.high = min(self.low, *values), max(self.high, *values)

    def pixel(self, value: float) -> float:
        """Return the pixel of a number in the SVG."""
        room = 0.04 * (self.high - self.low)  # so that marks at the ends are not cut off
        low, high = self.fixed or (self.low - room, self.high + room)
        share = (value - low) / ((high - low) or 1.0)
        share = 1 - share if self.reverse else share
        share = self.domain[0] + share * (self.domain[1] - self.domain[0])
        return (1 - share) * HEIGHT if self.vertical else share * WIDTH


@dataclass
class _Panel:
    """A panel: the traces that share one pair of axes."""

    x: _Axis
    y: _Axis
    barmode: str
    traces: list[dict[str, Any]] = field(default_factory=list)

    def draw(self) -> list[str]:
        """Draw bars first, then lines and marks. All positions are collected before anything is placed,
        because each may extend the axes.
        """
        boxes = list(self._bars([t for t in self.traces if t["type"] == "bar"]))
        curves = list(self._curves([t for t in self.traces if t["type"] == "scatter"]))
        parts = []
        for x0, x1, y0, y1, fill in boxes:
            a, b = sorted((self.x.pixel(x0), self.x.pixel(x1)))
            c, d = sorted((self.y.pixel(y0), self.y.pixel(y1)))
            parts.append(_rect(a, c, b - a, d - c, fill))
        for kind, colour, points in curves:
            placed = [(self.x.pixel(px), self.y.pixel(py)) for px, py in points]
            text = " ".join(f"{px:.2f},{py:.2f}" for px, py in placed)
            if kind == "area":
                parts.append(f'<polygon points="{text}" fill="{colour}"/>')
            elif kind == "line":
                parts.append(f'<polyline points="{text}" fill="none" stroke="{colour}" stroke-width="3"/>')
            else:
                parts += [f'<circle cx="{px:.2f}" cy="{py:.2f}" r="4" fill="{colour}"/>' for px, py in placed]
        return parts

    def _bars(self, traces: list[dict[str, Any]]) -> Iterable[tuple[float, float, float, float, str]]:
        tops: dict[float, float] = {}
        for number, trace in enumerate(traces):
            flat = trace.get("orientation") == "h"
            along, across = (self.y, self.x) if flat else (self.x, self.y)
            where, size = (trace["y"], trace["x"]) if flat else (trace["x"], trace["y"])
            share = 0.8 / len(traces) if self.barmode == "group" else 0.72
            for i, (at, length) in enumerate(zip(where, size, strict=True)):
                place = along.number(at)
                base = _pick(
                    trace.get("base"),
                    i,
                    tops.get(place, 0.0) if self.barmode in ("stack", "relative") else 0.0,
                )
                width = _pick(trace.get("width"), i, share)
                if self.barmode == "group" and trace.get("width") is None:
                    place += (number - (len(traces) - 1) / 2) * share
                end = base + float(length or 0.0)
                tops[along.number(at)] = end
                along.see(place - width / 2, place + width / 2)
                across.see(base, end)
                fill = _colour(_pick(trace.get("marker", {}).get("color"), i, "#0072B2"))
                if fill:
                    box = (place - width / 2, place + width / 2)
                    yield (base, end, *box, fill) if flat else (*box, base, end, fill)

    def _curves(self, traces: list[dict[str, Any]]) -> Iterable[tuple[str, str, list[tuple[float, float]]]]:
        below: list[float] = []
        for trace in traces:
            xs, ys = [self.x.number(v) for v in trace["x"]], [self.y.number(v) for v in trace["y"]]
            if trace.get("stackgroup"):
                before = below or [0.0] * len(ys)
                ys = [a + b for a, b in zip(before, ys, strict=True)]
                below = ys
                area = [*zip(xs, ys, strict=True), *reversed(list(zip(xs, before, strict=True)))]
                yield "area", str(trace.get("fillcolor", "#4ea5b7")), area
            self.x.see(*xs)
            self.y.see(*ys)
            colour = trace.get("line", {}).get("color") or trace.get("marker", {}).get("color")
            points = list(zip(xs, ys, strict=True))
            mode = trace.get("mode", "")
            if "lines" in mode:
                yield "line", _colour(_pick(colour, 0, "#0072B2")) or "#0072B2", points
            if "markers" in mode:
                yield "mark", _colour(_pick(colour, 0, "#0072B2")) or "#0072B2", points


def _pick(value: Any, i: int, default: Any) -> Any:
    """Return the i-th entry of a list, a single value as it is, or the default."""
    if value is None:
        return default
    return value[i] if isinstance(value, (list, tuple)) else value


def _colour(value: Any) -> str:
    """Return a fill that an SVG understands; "" for a transparent one."""
    return value if isinstance(value, str) and value.startswith("#") else ""
