"""Who talks to whom: bytes a rank sent by axis and purpose, and the rank x rank matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from glasscluster.sim.vocabulary import PURPOSES, SEND
from glasscluster.visualize.memory import _layout, byte_unit
from glasscluster.visualize.words import word

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from glasscluster.sim.graph import ExecutionGraph

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
