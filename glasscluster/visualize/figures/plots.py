"""Plain figures for lessons: lines, bars, dots, and the messages of a collective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from glasscluster.sim.recording.events import SEND
from glasscluster.visualize.figures.layout import QUIET_AXIS, plain_layout
from glasscluster.visualize.figures.palette import SERIES, Look
from glasscluster.visualize.figures.picture import Picture, trace
from glasscluster.visualize.figures.timeline import size_text, time_unit
from glasscluster.visualize.words import word

if TYPE_CHECKING:
    from glasscluster.sim.time.timeline import Timeline

DASH = ("solid", "dash", "dot", "dashdot", "longdash")
MARK = ("circle", "square", "diamond", "cross", "triangle-up")
HATCH = ("", "/", "x", ".", "-")


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x: str,
    y: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
) -> Picture:
    """Draw one line for each series; lines differ by colour, dash and mark. x and y are axis titles with
    units.
    """

    figure = Picture()
    for number, (name, (xs, ys)) in enumerate(series.items()):
        figure.add_trace(
            trace(
                "scatter",
                name=name,
                x=_clean(xs),
                y=_clean(ys),
                mode="lines+markers",
                line={"color": SERIES[number % len(SERIES)], "dash": DASH[number % len(DASH)], "width": 3},
                marker={"symbol": MARK[number % len(MARK)], "size": 9},
                hovertemplate=f"{name}<br>{x} %{{x:.4g}}<br>{y} %{{y:.4g}}<extra></extra>",
            )
        )
    figure.update_layout(**_layout(x, y))
    figure.update_xaxes(type="log" if log_x else "linear")
    marked = sorted({float(v) for xs, _ in series.values() for v in xs})
    if log_x and len(marked) <= 10:
        figure.update_xaxes(tickvals=marked, ticktext=[f"{v:g}" for v in marked])
    figure.update_yaxes(type="log" if log_y else "linear", rangemode="normal" if log_y else "tozero")
    return figure


def bars(
    groups: Sequence[str], series: Mapping[str, Sequence[float]], y: str, *, stack: bool = False
) -> Picture:
    """Draw bars over named groups, side by side (with their values written on them) or stacked."""

    figure = Picture()
    for number, (name, values) in enumerate(series.items()):
        figure.add_trace(
            trace(
                "bar",
                name=name,
                x=list(groups),
                y=_clean(values),
                text=None if stack else [f"{v:.3g}" for v in values],
                textposition=None if stack else "outside",
                cliponaxis=False,
                marker={
                    "color": SERIES[number % len(SERIES)],
                    "pattern": {
                        "shape": HATCH[number % len(HATCH)],
                        "fgcolor": "#ffffff",
                        "size": 7,
                        "solidity": 0.2,
                    },
                    "line": {"color": "#ffffff", "width": 1},
                },
                hovertemplate=f"%{{x}}<br>{name}: %{{y:.5g}}<extra></extra>",
            )
        )
    figure.update_layout(**_layout("", y), barmode="stack" if stack else "group", bargap=0.3)
    return figure


def stack(
    groups: Sequence[str],
    parts: Mapping[str, tuple[Look, Sequence[float]]],
    x: str,
    y: str,
    *,
    totals: bool = False,
) -> Picture:
    """Draw stacked bars, each component with its own look (palette.py). With `totals` the sum is written
    above each bar.
    """

    figure = Picture()
    for name, (look, values) in parts.items():
        figure.add_trace(
            trace(
                "bar",
                name=name,
                x=list(groups),
                y=_clean(values),
                marker={
                    "color": look.fill,
                    "pattern": {"shape": look.hatch, "fgcolor": look.ink, "size": 7, "solidity": 0.2},
                    "line": {"color": "#ffffff", "width": 1},
                },
                hovertemplate=f"{x} %{{x}}<br>{name}: %{{y:.5g}} {y}<extra></extra>",
            )
        )
    figure.update_layout(**_layout(x, y), barmode="stack", bargap=0.25, legend_traceorder="normal")
    figure.update_xaxes(type="category")
    for place, heights in enumerate(
        zip(*(values for _, values in parts.values()), strict=True) if totals else ()
    ):
        figure.add_annotation(
            x=place,
            y=sum(heights),
            text=f"<b>{sum(heights):.3g}</b>",
            yanchor="bottom",
            yshift=2,
            showarrow=False,
        )
    return figure


def dots(
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    x: str,
    *,
    least: float,
    limit: float | None = None,
) -> Picture:
    """Draw one row for each group with one mark for each series, on a logarithmic axis, and a line at
    `limit`. Values below `least` are drawn at `least`.
    """

    figure = Picture()
    for number, (name, values) in enumerate(series.items()):
        figure.add_trace(
            trace(
                "scatter",
                name=name,
                x=_clean([max(v, least) for v in values]),
                y=list(groups),
                mode="markers",
                marker={
                    "color": SERIES[number % len(SERIES)],
                    "symbol": MARK[number % len(MARK)],
                    "size": 12,
                },
                customdata=_clean(values),
                hovertemplate=f"%{{y}}<br>{name}: %{{customdata:.3g}}<extra></extra>",
            )
        )
    figure.update_layout(**_layout(x, ""))
    figure.update_layout(height=180 + 34 * len(groups), margin={"l": 20})
    figure.update_xaxes(type="log", exponentformat="power", dtick=2, showgrid=True)
    figure.update_yaxes(autorange="reversed", automargin=True, showgrid=True)
    if limit is not None:
        figure.add_vline(x=limit, line={"color": "#000000", "width": 1.5, "dash": "dash"})
    return figure


def messages(timeline: Timeline, lang: str = "en") -> Picture:
    """Draw every message of each rank from departure to arrival, numbered in the order of sending."""

    graph = timeline.graph
    factor, unit = time_unit(timeline.makespan)
    arrival = np.array(timeline.end)
    received = np.flatnonzero(graph.match >= 0)
    arrival[graph.match[received]] = timeline.end[received]
    figure = Picture()
    for rank in range(graph.ranks):
        rows = np.flatnonzero((graph.kind == SEND) & (graph.rank == rank))
        rows = rows[np.argsort(timeline.start[rows], kind="stable")]
        figure.add_trace(
            trace(
                "bar",
                name=f"{word('rank', lang)} {rank}",
                orientation="h",
                base=_clean(timeline.start[rows] * factor),
                x=_clean((arrival[rows] - timeline.start[rows]) * factor),
                y=[f"{word('rank', lang)} {rank}"] * len(rows),
                text=[str(i) for i in range(len(rows))],
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                customdata=[
                    f"{word('rank', lang)} {rank} → {graph.peer[r]}<br>{size_text(int(graph.bytes[r]))}"
                    for r in rows.tolist()
                ],
                hovertemplate="%{customdata}<extra></extra>",
                marker={"color": SERIES[rank % len(SERIES)], "line": {"color": "#ffffff", "width": 1}},
                textfont={"color": "#ffffff", "size": 14},
                showlegend=False,
            )
        )
    title = f"{word('virtual_time', lang)} ({unit}) · {timeline.hardware.name}"
    figure.update_layout(**_layout(title, ""), barmode="overlay", bargap=0.25)
    figure.update_layout(height=140 + 44 * graph.ranks)
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def _clean(values: Any) -> list[float]:
    return [float(f"{float(v):.7g}") for v in values]


def _layout(x: str, y: str) -> dict[str, Any]:
    return {
        **plain_layout(400, left=76, right=24, top=20, bottom=96, size=15),
        "xaxis": {"title": {"text": x}, **QUIET_AXIS},
        "yaxis": {"title": {"text": y}, **QUIET_AXIS},
    }
