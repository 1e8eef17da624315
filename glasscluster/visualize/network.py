"""Who talks to whom: bytes a rank sent by axis and purpose, and the rank x rank matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from glasscluster.sim.vocabulary import PURPOSES, SEND
from glasscluster.visualize.layout import CELL_AXIS, grid_cells
from glasscluster.visualize.memory import _layout, byte_unit
from glasscluster.visualize.timeline import size_text
from glasscluster.visualize.words import word

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from glasscluster.sim.graph import ExecutionGraph

MOST_RANKS = 32  # cells of more ranks cannot be read
HATCH = {"gradients": "/", "parameters": "", "activations": ".", "scalars": "x", "data": "-"}
FILL = {"dp": "#0072B2", "tp": "#D55E00", "pp": "#CC79A7", "cp": "#009E73", "ep": "#56B4E9"}


def matrix(graph: ExecutionGraph) -> np.ndarray:
    """Bytes from rank (row) to rank (column)."""
    total = np.zeros((graph.ranks, graph.ranks), dtype=np.int64)
    sends = graph.kind == SEND
    np.add.at(total, (graph.rank[sends], graph.peer[sends]), graph.bytes[sends])
    return total


def sent_figure(graph: ExecutionGraph, lang: str = "en") -> Figure | None:
    """Stacked bars: bytes sent per rank, one colour an axis, one hatch a purpose. None when nothing was sent."""
    import plotly.graph_objects as go

    totals = graph.bytes_sent()
    if not sum(totals):
        return None
    divisor, unit = byte_unit(max(totals))
    names = [f"{word('rank', lang)} {r}" for r in range(graph.ranks)]
    figure = go.Figure()
    for axis in dict.fromkeys(graph.axis[graph.kind == SEND].tolist()):
        for purpose in PURPOSES:
            values = graph.bytes_sent(axis=axis, purpose=purpose)
            if sum(values):
                figure.add_trace(_bar(go, axis, purpose, names, [v / divisor for v in values], unit))
    figure.update_layout(**_layout(word("sent", lang), unit, 360), barmode="stack")
    return figure


def traffic_figure(graph: ExecutionGraph, lang: str = "en") -> Figure | None:
    """Rank x rank: bytes from row to column, of all axes or one. None when nothing was sent or no cell could be read."""
    import plotly.graph_objects as go

    n = graph.ranks
    sends = graph.kind == SEND
    if not sends.any() or n > MOST_RANKS:
        return None
    axes = list(dict.fromkeys(graph.axis[sends].tolist()))
    choices = [("", word("all_axes", lang)), *((a, a or "world") for a in axes)] if len(axes) > 1 else [("", word("all_axes", lang))]
    cells = [_cells(graph, axis, lang) for axis, _ in choices]
    figure = go.Figure(
        go.Bar(
            **grid_cells(n, n),
            marker={"color": cells[0]["colour"], "line": {"color": "#d9e2ec", "width": 1}},
            text=cells[0]["text"],
            textfont={"color": "#000000"},
            customdata=cells[0]["hover"],
        )
    )
    buttons = [
        {"label": label, "method": "restyle", "args": [{"marker.color": [c["colour"]], "text": [c["text"]], "customdata": [c["hover"]]}]}
        for (_, label), c in zip(choices, cells, strict=True)
    ]
    ticks = {"tickvals": list(range(n)), **CELL_AXIS}
    menu = {"buttons": buttons, "type": "buttons", "direction": "right", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"}
    figure.update_layout(**_layout(word("matrix", lang), "", 170 + 38 * n))
    figure.update_layout(
        xaxis={"title": {"text": word("receiver", lang)}, "range": [-0.5, n - 0.5], **ticks},
        yaxis={"title": {"text": word("sender", lang)}, "range": [n - 0.5, -0.5], **ticks},
        uniformtext={"minsize": 10, "mode": "hide"},
        updatemenus=[menu] if len(choices) > 1 else [],
    )
    return figure


def _cells(graph: ExecutionGraph, axis: str, lang: str) -> dict[str, list[str]]:
    """Colour, text and hover of every cell, for one axis ("" for all)."""
    total = np.zeros((graph.ranks, graph.ranks), dtype=np.int64)
    chosen = graph.kind == SEND
    if axis:
        chosen &= graph.axis == axis
    np.add.at(total, (graph.rank[chosen], graph.peer[chosen]), graph.bytes[chosen])
    largest = max(int(total.max(initial=0)), 1)
    flat = [(r, c, int(total[r, c])) for r in range(graph.ranks) for c in range(graph.ranks)]
    return {
        "colour": [_amber(v / largest) for _, _, v in flat],
        "text": [size_text(v) if v else "" for _, _, v in flat],
        "hover": [f"{word('rank', lang)} {r} → {word('rank', lang)} {c}<br>{v:,} B" for r, c, v in flat],
    }


def _amber(share: float) -> str:
    """White to the palette's orange; black text stays readable on all of it."""
    return "#" + "".join(f"{round(255 + (b - 255) * share):02x}" for b in (230, 159, 0))


def _bar(go: Any, axis: str, purpose: str, names: list[str], values: list[float], unit: str) -> Any:
    return go.Bar(
        name=f"{axis or '-'} · {purpose}",
        x=names,
        y=[float(f"{v:.6g}") for v in values],
        marker={
            "color": FILL.get(axis, "#7b8794"),
            "pattern": {"shape": HATCH[purpose], "fgcolor": "#ffffff", "size": 7, "solidity": 0.2},
            "line": {"color": "#ffffff", "width": 1},
        },
        hovertemplate=f"%{{x}}<br>{axis} · {purpose}: %{{y:.4g}} {unit}<extra></extra>",
    )
