"""The roofline: the FLOP/s that a GPU can reach at each arithmetic intensity, and those that were reached
(Williams, Waterman and Patterson, CACM 2009).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10
from typing import TYPE_CHECKING, Any, NamedTuple

from glasscluster.visualize.figures.layout import QUIET_AXIS, plain_layout
from glasscluster.visualize.figures.palette import SERIES
from glasscluster.visualize.figures.picture import Picture, trace
from glasscluster.visualize.figures.plots import MARK
from glasscluster.visualize.words import word

if TYPE_CHECKING:
    from glasscluster.sim.time.hardware import GPU


class Dot(NamedTuple):
    """A piece of work: its name, its FLOPs, the bytes that it moved to and from slow memory, and the seconds
    it took.
    """

    name: str
    flops: float
    bytes: float
    seconds: float


def roofline_figure(
    gpu: GPU, precision: str, series: Mapping[str, Sequence[Dot]], lang: str = "en"
) -> Picture:
    """Draw min(peak, intensity x bandwidth), the ridge where the two meet, and the dots of each series joined
    by a line.
    """

    peak, bandwidth = gpu.peak(precision), gpu.memory_bandwidth
    ridge = peak / bandwidth
    at = [dot.flops / dot.bytes for dots in series.values() for dot in dots]
    low, high = min([*at, ridge]) / 2, max([*at, ridge]) * 4
    figure = Picture()
    roof: dict[str, Any] = {"mode": "lines", "line": {"color": "#333333", "width": 3}, "hoverinfo": "skip"}
    figure.add_trace(
        trace(
            "scatter", x=[low, ridge, high], y=[low * bandwidth, peak, peak], name=word("roof", lang), **roof
        )
    )
    for number, (name, dots) in enumerate(series.items()):
        figure.add_trace(
            trace(
                "scatter",
                name=name,
                x=[dot.flops / dot.bytes for dot in dots],
                y=[dot.flops / dot.seconds for dot in dots],
                text=[dot.name for dot in dots],
                mode="lines+markers+text",
                textposition="bottom right" if number % 2 == 0 else "top left",
                line={"color": SERIES[number % len(SERIES)], "width": 1.5, "dash": "dot"},
                marker={
                    "symbol": MARK[number % len(MARK)],
                    "size": 11,
                    "color": SERIES[number % len(SERIES)],
                },
                cliponaxis=False,
                hovertemplate=f"{name}, %{{text}}<br>%{{x:.4g}} FLOPs/B<br>%{{y:.4s}}FLOP/s<extra></extra>",
            )
        )
    figure.add_vline(x=ridge, line={"color": "#777777", "dash": "dash", "width": 1})
    figure.update_layout(**plain_layout(480, left=76, right=60, top=20, bottom=110))
    figure.update_xaxes(type="log", title={"text": word("intensity", lang)}, **QUIET_AXIS)
    figure.update_yaxes(type="log", title={"text": "FLOP/s"}, exponentformat="SI", **QUIET_AXIS)
    note = word("ridge_at", lang, ridge=ridge, precision=precision)
    figure.add_annotation(
        x=log10(ridge), y=0.02, yref="paper", text=note, showarrow=False, xanchor="right", xshift=-6
    )
    return figure
