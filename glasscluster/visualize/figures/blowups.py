"""Loss curves of many trainings, each in three states: as it should be, with a fault, and cured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from glasscluster.visualize.figures.layout import QUIET_AXIS, plain_layout
from glasscluster.visualize.figures.palette import SERIES
from glasscluster.visualize.words import word

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLUMNS = 3
TICKS = (2, 2.5, 3, 4, 5, 7, 10, 20, 40)
LOOKS = {"healthy": (SERIES[0], "solid"), "broken": (SERIES[1], "dash"), "cured": (SERIES[2], "dot")}
NAMES = {"healthy": "patient_healthy", "broken": "patient_broken", "cured": "patient_cured"}


def clinic_figure(curves: Mapping[tuple[str, str], Mapping[str, Sequence[float]]], lang: str) -> Figure:
    """Draw a panel for each cause (its title in both languages) with a line for each state. Every panel has a
    logarithmic loss axis of its own.
    """
    from plotly import graph_objects as go
    from plotly.subplots import make_subplots

    lines = -(-len(curves) // COLUMNS)
    figure: Figure = make_subplots(
        rows=lines,
        cols=COLUMNS,
        subplot_titles=[t[lang == "zh"] for t in curves],
        vertical_spacing=0.09,
        horizontal_spacing=0.07,
    )
    for number, states in enumerate(curves.values()):
        for state, losses in states.items():
            colour, dash = LOOKS[state]
            trace = go.Scatter(
                name=word(NAMES[state], lang),
                legendgroup=state,
                showlegend=number == 0,
                x=list(range(len(losses))),
                y=[float(f"{v:.5g}") for v in losses],
                mode="lines",
                line={"color": colour, "dash": dash, "width": 2.5},
                hovertemplate=f"{word(NAMES[state], lang)}<br>%{{x}}: %{{y:.3f}}<extra></extra>",
            )
            figure.add_trace(trace, row=number // COLUMNS + 1, col=number % COLUMNS + 1)
    figure.update_layout(**plain_layout(90 + 190 * lines, left=64, right=16, top=40, bottom=90, size=14))
    figure.update_yaxes(type="log", tickvals=TICKS, ticktext=[f"{t:g}" for t in TICKS], **QUIET_AXIS)
    figure.update_xaxes(**QUIET_AXIS)
    figure.update_xaxes(title={"text": word("training_step", lang)}, row=lines)
    figure.update_yaxes(title={"text": word("loss_nats", lang)}, col=1)
    figure.update_annotations(font_size=14)
    return figure
