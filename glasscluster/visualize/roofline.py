"""The roofline (Williams et al. 2009): FLOP/s reached against FLOPs a byte, a roof a GPU, a mark an operation under the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glasscluster.visualize.layout import QUIET_AXIS, plain_layout
from glasscluster.visualize.palette import SERIES
from glasscluster.visualize.plots import DASH
from glasscluster.visualize.words import word

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Spot:
    """An operation: what it computes, and the bytes it moves."""

    name: str
    flops: float
    nbytes: float


def roofline_figure(roofs: Sequence[tuple[str, float, float]], spots: Sequence[Spot], lang: str = "en") -> Figure:
    """roofs: (name, peak in FLOP/s, bandwidth in bytes/s). Each operation stands on the first roof, at its own intensity."""
    import plotly.graph_objects as go

    figure = go.Figure()
    found = sorted(spots, key=lambda s: s.flops / s.nbytes)
    intensities, ridges = [s.flops / s.nbytes for s in found], [peak / bandwidth for _, peak, bandwidth in roofs]
    low, high = min(intensities) / 4, max([*intensities, *ridges]) * 4
    for number, (name, peak, bandwidth) in enumerate(roofs):
        xs = [low, peak / bandwidth, high]
        figure.add_trace(
            go.Scatter(
                name=f"{name}: {peak / 1e12:.4g} TFLOP/s, {bandwidth / 1e12:.3g} TB/s",
                x=[float(f"{x:.7g}") for x in xs],
                y=[float(f"{min(peak, x * bandwidth) / 1e12:.7g}") for x in xs],
                mode="lines",
                line={"color": SERIES[number % len(SERIES)], "dash": DASH[number % len(DASH)], "width": 3},
                hoverinfo="skip",
            )
        )
    _, peak, bandwidth = roofs[0]
    figure.add_trace(
        go.Scatter(
            x=[float(f"{x:.7g}") for x in intensities],
            y=[float(f"{min(peak, x * bandwidth) / 1e12:.7g}") for x in intensities],
            mode="markers+text",
            text=[s.name for s in found],
            textposition=["bottom right" if i % 2 else "top left" for i in range(len(found))],
            textfont={"size": 15},
            marker={"color": "#1f2933", "size": 12},
            hovertemplate="%{text}<br>%{x:.4g} FLOP/B<br>%{y:.4g} TFLOP/s<extra></extra>",
            showlegend=False,
            cliponaxis=False,
        )
    )
    figure.update_layout(**plain_layout(470, left=80, right=40, top=24, bottom=112, size=15))
    figure.update_xaxes(type="log", title={"text": word("intensity", lang)}, **QUIET_AXIS)
    figure.update_yaxes(type="log", title={"text": word("reached", lang)}, **QUIET_AXIS)
    return figure
