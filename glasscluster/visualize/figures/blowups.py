"""Loss curves of many trainings on one page: each in three states (as it should be, with a fault, and
cured), or each with its loss on held-out text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glasscluster.visualize.figures.layout import QUIET_AXIS, plain_layout
from glasscluster.visualize.figures.palette import SERIES
from glasscluster.visualize.figures.picture import Picture, panels, trace
from glasscluster.visualize.words import word

COLUMNS = 3
TICKS = (2, 2.5, 3, 4, 5, 7, 10, 20, 40)
TOP = 7  # nats: of the axis on which runs are compared by eye
LOOKS = {"healthy": (SERIES[0], "solid"), "broken": (SERIES[1], "dash"), "cured": (SERIES[2], "dot")}
NAMES = {"healthy": "patient_healthy", "broken": "patient_broken", "cured": "patient_cured"}


def clinic_figure(curves: Mapping[tuple[str, str], Mapping[str, Sequence[float]]], lang: str) -> Picture:
    """Draw a panel for each cause (its title in both languages) with a line for each state. Every panel has a
    logarithmic loss axis of its own.
    """

    lines = -(-len(curves) // COLUMNS)
    figure = panels(
        rows=lines,
        cols=COLUMNS,
        subplot_titles=[t[lang == "zh"] for t in curves],
        vertical_spacing=0.09,
        horizontal_spacing=0.07,
    )
    for number, states in enumerate(curves.values()):
        for state, losses in states.items():
            colour, dash = LOOKS[state]
            line = trace(
                "scatter",
                name=word(NAMES[state], lang),
                legendgroup=state,
                showlegend=number == 0,
                x=list(range(len(losses))),
                y=[float(f"{v:.5g}") for v in losses],
                mode="lines",
                line={"color": colour, "dash": dash, "width": 2.5},
                hovertemplate=f"{word(NAMES[state], lang)}<br>%{{x}}: %{{y:.3f}}<extra></extra>",
            )
            figure.add_trace(line, row=number // COLUMNS + 1, col=number % COLUMNS + 1)
    figure.update_layout(**plain_layout(90 + 190 * lines, left=64, right=16, top=40, bottom=90, size=14))
    figure.update_yaxes(type="log", tickvals=TICKS, ticktext=[f"{t:g}" for t in TICKS], **QUIET_AXIS)
    figure.update_xaxes(**QUIET_AXIS)
    figure.update_xaxes(title={"text": word("training_step", lang)}, row=lines)
    figure.update_yaxes(title={"text": word("loss_nats", lang)}, col=1)
    figure.update_annotations(font_size=14)
    return figure


Points = tuple[Sequence[float], Sequence[float]]  # steps, losses


def curves_figure(
    curves: Mapping[str, tuple[Points, Points]],
    lang: str,
    names: tuple[str, str],
    sound: Points | None = None,
) -> Picture:
    """Draw a panel for each run by its title: training loss as a line, held-out loss as marks. All panels
    have the same axes; a loss above their top leaves the panel.

    Args:
        curves: title -> (training loss, held-out loss).
        lang: en or zh.
        names: of the two in the legend.
        sound: the sound run, drawn thin behind every other.

    Returns:
        The figure.
    """

    lines = -(-len(curves) // COLUMNS)
    figure = panels(
        rows=lines,
        cols=COLUMNS,
        subplot_titles=list(curves),
        shared_xaxes=True,
        shared_yaxes=True,
        vertical_spacing=0.07,
        horizontal_spacing=0.04,
    )
    looks: tuple[dict[str, Any], ...] = (
        {"mode": "lines", "line": {"color": SERIES[0], "width": 3}},
        {"mode": "markers", "marker": {"color": SERIES[1], "symbol": "diamond", "size": 9}},
    )
    for number, points in enumerate(curves.values()):
        place = {"row": number // COLUMNS + 1, "col": number % COLUMNS + 1}
        if sound is not None:
            behind = trace(
                "scatter",
                x=list(sound[0]),
                y=[float(f"{v:.5g}") for v in sound[1]],
                mode="lines",
                line={"color": "#767676", "width": 1.5, "dash": "dot"},
                hoverinfo="skip",
                showlegend=False,
            )
            figure.add_trace(behind, **place)
        for name, (xs, ys), look in zip(names, points, looks, strict=True):
            drawn = trace(
                "scatter",
                name=name,
                legendgroup=name,
                showlegend=number == 0,
                x=list(xs),
                y=[float(f"{v:.5g}") for v in ys],
                hovertemplate=f"{name}<br>%{{x}}: %{{y:.3f}}<extra></extra>",
                **look,
            )
            figure.add_trace(drawn, **place)
    figure.update_layout(**plain_layout(90 + 200 * lines, left=64, right=16, top=40, bottom=90, size=15))
    figure.update_yaxes(range=[0, TOP], dtick=2, **QUIET_AXIS)
    figure.update_xaxes(**QUIET_AXIS)
    figure.update_xaxes(title={"text": word("training_step", lang)}, row=lines)
    figure.update_yaxes(title={"text": word("loss_nats", lang)}, col=1)
    figure.update_annotations(font_size=15)
    return figure
