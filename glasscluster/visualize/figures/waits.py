"""The wait-for graph: ranks on a circle, with an arrow from each rank that waits to the rank it waits for.

A cycle of arrows is a deadlock.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glasscluster.visualize.figures.layout import CELL_AXIS, plain_layout
from glasscluster.visualize.figures.palette import KINDS
from glasscluster.visualize.figures.picture import Picture, trace

if TYPE_CHECKING:
    from glasscluster.sim.ranks.deadlock import Wait

SIDE, NODE = 270, 0.34  # size of a panel in pixels; radius of a rank, the circle's being 1
STUCK, OVER, IDLE = KINDS["collective"].fill, "#5f6b76", KINDS["forward"].fill


@dataclass(frozen=True)
class Panel:
    """One program: which ranks wait, which have finished, and the cycle if there is one."""

    title: str
    ranks: int
    waits: Sequence[Wait]
    finished: Collection[int] = ()
    cycle: Collection[int] = ()


def waits_figure(panels: Sequence[Panel], lang: str = "en", across: int = 3) -> Picture:
    """Draw the panels, `across` of them in a row.

    Ranks in the cycle differ by colour and shape from ranks that wait outside it.
    """

    figure, deep = Picture(), -(-len(panels) // across)
    titles = []
    for i, panel in enumerate(panels):
        down, right = divmod(i, across)
        number = "" if i == 0 else str(i + 1)
        x, y = (
            [right / across + 0.02, (right + 1) / across - 0.02],
            [1 - (down + 1) / deep, 1 - down / deep - 30 / (deep * SIDE)],
        )
        look = {**CELL_AXIS, "showticklabels": False, "range": [-1.4, 1.4]}
        square = {"scaleanchor": f"x{number}"}
        figure.update_layout(
            {
                f"xaxis{number}": {**look, "domain": x, "anchor": f"y{number}"},
                f"yaxis{number}": {**look, "domain": y, "anchor": f"x{number}", **square},
            }
        )
        for arrow in _arrows(panel, number, lang):
            figure.add_trace(arrow)
        titles.append(
            {
                "text": f"<b>{panel.title}</b>",
                "x": sum(x) / 2,
                "y": y[1],
                "xref": "paper",
                "yref": "paper",
                "xanchor": "center",
                "yanchor": "bottom",
                "showarrow": False,
            }
        )
    for name, colour, symbol in _legend(lang):
        marker = {"color": colour, "symbol": symbol, "size": 14}
        figure.add_trace(trace("scatter", x=[None], y=[None], mode="markers", name=name, marker=marker))
    figure.update_layout(
        **plain_layout(deep * SIDE + 62, left=10, right=10, top=6, bottom=56, size=15), annotations=titles
    )
    return figure


def _legend(lang: str) -> tuple[tuple[str, str, str], ...]:
    stuck, waits, over = {"en": ("in the cycle", "waits", "finished"), "zh": ("在环中", "等待", "已结束")}[
        lang
    ]
    return (stuck, STUCK, "circle"), (waits, IDLE, "square"), (over, OVER, "diamond")


def _arrows(panel: Panel, number: str, lang: str) -> list[Any]:
    """Draw an arrow for each wait, then the ranks. Arrows are bent a little, so that those between two ranks
    which wait for each other do not overlap.
    """
    places = [
        (math.sin(2 * math.pi * r / panel.ranks), math.cos(2 * math.pi * r / panel.ranks))
        for r in range(panel.ranks)
    ]
    common = {"xaxis": f"x{number}", "yaxis": f"y{number}", "showlegend": False}
    traces = []
    for wait in panel.waits:
        colour = STUCK if wait.rank in panel.cycle and wait.peer in panel.cycle else IDLE
        xs, ys = _bent(places[wait.rank], places[wait.peer])
        sizes = [0] * (len(xs) - 1) + [19]
        marker = {
            "symbol": "arrow",
            "angleref": "previous",
            "size": sizes,
            "color": colour,
            "opacity": 1,
            "line": {"width": 0},
        }
        verb = {"en": f"waits in {wait.kind}", "zh": f"在 {wait.kind} 中等待"}[lang]
        template = f"rank {wait.rank} {verb}: rank {wait.peer}<extra></extra>"
        traces.append(
            trace(
                "scatter",
                x=xs,
                y=ys,
                mode="lines+markers",
                line={"color": colour, "width": 4},
                marker=marker,
                hovertemplate=template,
                **common,
            )
        )
    shapes, colours, names = [], [], []
    for rank in range(panel.ranks):
        kind = 0 if rank in panel.cycle else 2 if rank in panel.finished else 1
        _, colour, symbol = _legend(lang)[kind]
        shapes.append(symbol)
        colours.append(colour)
        names.append(str(rank))
    marker = {"symbol": shapes, "color": colours, "size": 40, "line": {"color": "#ffffff", "width": 2}}
    font = {"color": ["#000000" if c == STUCK else "#ffffff" for c in colours], "size": 20}
    traces.append(
        trace(
            "scatter",
            x=[p[0] for p in places],
            y=[p[1] for p in places],
            mode="markers+text",
            text=names,
            textfont=font,
            marker=marker,
            hovertemplate="rank %{text}<extra></extra>",
            **common,
        )
    )
    return traces


def _bent(
    a: tuple[float, float], b: tuple[float, float], points: int = 9, bend: float = 0.14
) -> tuple[list[float], list[float]]:
    """Return points of an arc from the rim of one rank to the rim of another, to the right of the straight
    line between them.
    """
    far = math.hypot(b[0] - a[0], b[1] - a[1])
    along, aside = ((b[0] - a[0]) / far, (b[1] - a[1]) / far), ((b[1] - a[1]) / far, -(b[0] - a[0]) / far)
    xs, ys = [], []
    for k in range(points):
        s = NODE + (far - 2 * NODE) * k / (points - 1)
        lift = bend * far * 4 * (s / far) * (1 - s / far) / 2
        xs.append(round(a[0] + along[0] * s + aside[0] * lift, 4))
        ys.append(round(a[1] + along[1] * s + aside[1] * lift, 4))
    return xs, ys
