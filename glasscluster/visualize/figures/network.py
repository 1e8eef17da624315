"""Who sends to whom: the bytes that each rank sent, by axis and purpose, and the matrix of bytes from rank to
rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from glasscluster.sim.recording.events import PURPOSES, SEND
from glasscluster.visualize.figures.cells import Table, cells_figure
from glasscluster.visualize.figures.layout import CELL_AXIS, grid_cells
from glasscluster.visualize.figures.memory import _layout, byte_unit
from glasscluster.visualize.figures.picture import Picture, trace
from glasscluster.visualize.figures.timeline import size_text
from glasscluster.visualize.words import word

if TYPE_CHECKING:
    from glasscluster.sim.recording.graph import ExecutionGraph

MOST_RANKS = 32  # with more ranks the cells are too small to read
HATCH = {"gradients": "/", "parameters": "", "activations": ".", "scalars": "x", "data": "-"}
FILL = {"dp": "#0072B2", "tp": "#D55E00", "pp": "#CC79A7", "cp": "#009E73", "ep": "#56B4E9"}


def matrix(graph: ExecutionGraph, axis: str = "", label: str = "") -> np.ndarray:
    """Return the bytes sent from rank (row) to rank (column), of all messages or of those of one axis or
    label.
    """
    total = np.zeros((graph.ranks, graph.ranks), dtype=np.int64)
    chosen = graph.kind == SEND
    if axis:
        chosen &= graph.axis == axis
    if label:
        chosen &= graph.label == (graph.names.index(label) if label in graph.names else -1)
    np.add.at(total, (graph.rank[chosen], graph.peer[chosen]), graph.bytes[chosen])
    return total


def matrices_figure(named: Mapping[str, np.ndarray], lang: str = "en", across: int = 2) -> Picture | None:
    """Draw several rank x rank matrices on one colour scale and in one unit. Returns None when nothing was
    sent, or when there are too many ranks to read a cell.
    """
    largest = max((int(m.max(initial=0)) for m in named.values()), default=0)
    if not largest or max(len(m) for m in named.values()) > MOST_RANKS:
        return None
    divisor, unit = byte_unit(largest)
    tables = []
    for name, m in named.items():
        ranks = [str(r) for r in range(len(m))]
        text = [[f"{v / divisor:.3g}" if v else "" for v in row] for row in m.tolist()]
        fill = [[_amber(v / largest) for v in row] for row in m.tolist()]
        tables.append(
            Table(name, ranks, ranks, text, fill, f"{word('receiver', lang)} ({unit})", word("sender", lang))
        )
    figure = cells_figure(tables, min(across, len(tables)))
    if len(tables) == 1:
        figure.update_layout(margin_l=70)
        figure.update_yaxes(automargin=False, title_standoff=16)
    return figure


def sent_figure(graph: ExecutionGraph, lang: str = "en") -> Picture | None:
    """Draw the bytes that each rank sent as stacked bars, with a colour for each axis and a hatch for each
    purpose. Returns None when nothing was sent.
    """

    totals = graph.bytes_sent()
    if not sum(totals):
        return None
    divisor, unit = byte_unit(max(totals))
    names = [f"{word('rank', lang)} {r}" for r in range(graph.ranks)]
    figure = Picture()
    for axis in dict.fromkeys(graph.axis[graph.kind == SEND].tolist()):
        for purpose in PURPOSES:
            values = graph.bytes_sent(axis=axis, purpose=purpose)
            if sum(values):
                figure.add_trace(_bar(axis, purpose, lang, names, [v / divisor for v in values], unit))
    figure.update_layout(**_layout(word("sent", lang), unit, 360), barmode="stack")
    return figure


def traffic_figure(graph: ExecutionGraph, lang: str = "en") -> Picture | None:
    """Draw the rank x rank matrix of bytes from row to column, of all axes or of one. Returns None when
    nothing was sent, or when there are too many ranks to read a cell.
    """

    n = graph.ranks
    sends = graph.kind == SEND
    if not sends.any() or n > MOST_RANKS:
        return None
    axes = list(dict.fromkeys(graph.axis[sends].tolist()))
    choices = (
        [("", word("all_axes", lang)), *((a, a or "world") for a in axes)]
        if len(axes) > 1
        else [("", word("all_axes", lang))]
    )
    cells = [_cells(graph, axis, lang) for axis, _ in choices]
    figure = Picture(
        trace(
            "bar",
            **grid_cells(n, n),
            marker={"color": cells[0]["colour"], "line": {"color": "#d9e2ec", "width": 1}},
            text=cells[0]["text"],
            textfont={"color": "#000000"},
            customdata=cells[0]["hover"],
        )
    )
    buttons = [
        {
            "label": label,
            "method": "restyle",
            "args": [{"marker.color": [c["colour"]], "text": [c["text"]], "customdata": [c["hover"]]}],
        }
        for (_, label), c in zip(choices, cells, strict=True)
    ]
    ticks = {"tickvals": list(range(n)), **CELL_AXIS}
    menu = {
        "buttons": buttons,
        "type": "buttons",
        "direction": "right",
        "x": 1,
        "xanchor": "right",
        "y": 1.02,
        "yanchor": "bottom",
    }
    figure.update_layout(**_layout(word("matrix", lang), "", 170 + 38 * n))
    figure.update_layout(
        xaxis={"title": {"text": word("receiver", lang)}, "range": [-0.5, n - 0.5], **ticks},
        yaxis={"title": {"text": word("sender", lang)}, "range": [n - 0.5, -0.5], **ticks},
        uniformtext={"minsize": 10, "mode": "hide"},
        updatemenus=[menu] if len(choices) > 1 else [],
    )
    return figure


def _cells(graph: ExecutionGraph, axis: str, lang: str) -> dict[str, list[str]]:
    """Return the colour, text and hover of every cell for one axis ("" means all)."""
    total = matrix(graph, axis)
    largest = max(int(total.max(initial=0)), 1)
    flat = [(r, c, int(total[r, c])) for r in range(graph.ranks) for c in range(graph.ranks)]
    return {
        "colour": [_amber(v / largest) for _, _, v in flat],
        "text": [size_text(v) if v else "" for _, _, v in flat],
        "hover": [f"{word('rank', lang)} {r} → {word('rank', lang)} {c}<br>{v:,} B" for r, c, v in flat],
    }


def _amber(share: float) -> str:
    """Return a colour from white to the palette's orange; black text is readable on all of them."""
    return "#" + "".join(f"{round(255 + (b - 255) * share):02x}" for b in (230, 159, 0))


def _bar(axis: str, purpose: str, lang: str, names: list[str], values: list[float], unit: str) -> Any:
    said = word(purpose, lang).lower()
    return trace(
        "bar",
        name=f"{axis or '-'} · {said}",
        x=names,
        y=[float(f"{v:.6g}") for v in values],
        marker={
            "color": FILL.get(axis, "#7b8794"),
            "pattern": {"shape": HATCH[purpose], "fgcolor": "#ffffff", "size": 7, "solidity": 0.2},
            "line": {"color": "#ffffff", "width": 1},
        },
        hovertemplate=f"%{{x}}<br>{axis} · {said}: %{{y:.4g}} {unit}<extra></extra>",
    )
