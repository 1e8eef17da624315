"""What a layer keeps for backward, tensor by tensor: each bar begins where the one above ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from glasscluster.visualize.layout import QUIET_AXIS, plain_layout
from glasscluster.visualize.palette import SERIES

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def waterfall(rows: Sequence[tuple[str, str, float, bool]], x: str, total: str, kinds: tuple[str, str]) -> Figure:
    """Rows are (name, term, size, grows with s²); the last bar is their sum. `kinds` names the two colours."""
    import plotly.graph_objects as go

    ends = [0.0]
    for _, _, size, _ in rows:
        ends.append(ends[-1] + size)
    figure = go.Figure()
    for quadratic, hatch in ((False, ""), (True, "/")):
        chosen = [i for i, row in enumerate(rows) if row[3] is quadratic]
        figure.add_trace(
            go.Bar(
                name=kinds[quadratic],
                orientation="h",
                y=[f"{rows[i][0]}  ({rows[i][1]})" for i in chosen],
                base=[float(f"{ends[i]:.7g}") for i in chosen],
                x=[float(f"{rows[i][2]:.7g}") for i in chosen],
                text=[f"{rows[i][2]:.3g}" for i in chosen],
                textposition="outside",
                cliponaxis=False,
                marker={"color": SERIES[quadratic], "pattern": {"shape": hatch, "fgcolor": "#ffffff", "size": 7, "solidity": 0.2}},
                hovertemplate="%{y}: %{x:.4g}<extra></extra>",
            )
        )
    figure.add_trace(
        go.Bar(
            name=total,
            orientation="h",
            y=[total],
            x=[float(f"{ends[-1]:.7g}")],
            text=[f"{ends[-1]:.3g}"],
            textposition="inside",
            insidetextanchor="end",
            textfont={"color": "#ffffff", "size": 16},
            marker={"color": "#404040"},
            showlegend=False,
            hovertemplate="%{y}: %{x:.4g}<extra></extra>",
        )
    )
    order = [f"{name}  ({term})" for name, term, _, _ in rows] + [total]
    figure.update_layout(
        **plain_layout(120 + 30 * len(order), left=10, right=40, top=20, bottom=90, size=14), barmode="overlay", bargap=0.2
    )
    figure.update_xaxes(title={"text": x}, **QUIET_AXIS)
    figure.update_yaxes(categoryorder="array", categoryarray=order[::-1], automargin=True)
    return figure
