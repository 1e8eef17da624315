"""Scores of models: with confidence intervals, and one model against another item by item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from glasscluster.visualize.figures.layout import QUIET_AXIS, plain_layout
from glasscluster.visualize.figures.palette import SERIES
from glasscluster.visualize.figures.picture import Picture, trace
from glasscluster.visualize.figures.plots import MARK


class Score(NamedTuple):
    """A mean and its standard error."""

    mean: float
    error: float


def interval_figure(
    groups: Sequence[str], series: Mapping[str, Sequence[Score]], x: str, chance: Sequence[float] = ()
) -> Picture:
    """Draw a row for each group and in it a mark for each series with its 95 % interval (1.96 standard
    errors), and a line at the score of guessing.
    """

    figure = Picture()
    spacing = 0.5 / len(series)
    for number, (name, values) in enumerate(series.items()):
        figure.add_trace(
            trace(
                "scatter",
                name=name,
                x=[round(v.mean, 6) for v in values],
                y=[place + (number - (len(series) - 1) / 2) * spacing for place in range(len(groups))],
                error_x={
                    "type": "data",
                    "array": [round(1.96 * v.error, 6) for v in values],
                    "thickness": 3,
                    "width": 8,
                },
                mode="markers",
                marker={
                    "color": SERIES[number % len(SERIES)],
                    "symbol": MARK[number % len(MARK)],
                    "size": 13,
                },
                customdata=[round(v.error, 6) for v in values],
                hovertemplate=f"{name}: %{{x:.3f}} ± %{{customdata:.3f}}<extra></extra>",
            )
        )
    for place, level in enumerate(chance):
        figure.add_shape(
            type="line",
            x0=level,
            x1=level,
            y0=place - 0.45,
            y1=place + 0.45,
            line={"color": "#000000", "dash": "dot"},
        )
    figure.update_layout(
        **plain_layout(150 + 70 * len(groups), left=20, right=24, top=20, bottom=90, size=15)
    )
    figure.update_xaxes(title={"text": x}, range=[0, 1.02], **QUIET_AXIS)
    figure.update_yaxes(
        tickvals=list(range(len(groups))), ticktext=list(groups), autorange="reversed", automargin=True
    )
    return figure


def paired_figure(
    first: Sequence[float], second: Sequence[float], x: str, y: str, names: tuple[str, str, str, str]
) -> Picture:
    """Draw a mark for each item. Its coordinates are by how many nats each of the two models prefers the
    right answer to the best wrong one; a model is right where its coordinate is above 0.

    `names` are the labels for: both right, only the first, only the second, both wrong.
    """

    figure, pairs = Picture(), list(zip(first, second, strict=True))
    kinds = [(True, True), (True, False), (False, True), (False, False)]
    for number, ((a_right, b_right), name) in enumerate(zip(kinds, names, strict=True)):
        here = [(a, b) for a, b in pairs if (a > 0, b > 0) == (a_right, b_right)]
        figure.add_trace(
            trace(
                "scatter",
                name=f"{name}: {len(here)}",
                x=[round(a, 4) for a, _ in here],
                y=[round(b, 4) for _, b in here],
                mode="markers",
                marker={
                    "color": SERIES[number % len(SERIES)],
                    "symbol": MARK[number],
                    "size": 9,
                    "opacity": 0.75,
                },
                hovertemplate=f"{name}<br>%{{x:.2f}}, %{{y:.2f}}<extra></extra>",
            )
        )
    figure.add_vline(x=0, line={"color": "#000000", "width": 1.5})
    figure.add_hline(y=0, line={"color": "#000000", "width": 1.5})
    figure.update_layout(**plain_layout(460, left=80, right=24, top=20, bottom=100, size=15))
    figure.update_xaxes(title={"text": x}, **QUIET_AXIS)
    figure.update_yaxes(title={"text": y}, **QUIET_AXIS)
    return figure
