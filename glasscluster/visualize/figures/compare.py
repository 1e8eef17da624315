"""One picture of several runs of the same model: where a step's time goes, how much a GPU sends, and how much
memory it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glasscluster.sim.recording.events import CATEGORIES
from glasscluster.visualize.figures.breakdown import series
from glasscluster.visualize.figures.layout import QUIET_AXIS, plain_layout
from glasscluster.visualize.figures.memory import byte_unit, category_word
from glasscluster.visualize.figures.palette import KINDS, MEMORY
from glasscluster.visualize.figures.picture import Picture, panels, trace
from glasscluster.visualize.figures.timeline import time_unit
from glasscluster.visualize.words import word

if TYPE_CHECKING:
    from glasscluster.sim.time.timeline import Timeline


@dataclass(frozen=True)
class Contender:
    """A run in the comparison: its name in both languages and what the panels show."""

    name: dict[str, str]
    timeline: Timeline
    peak: dict[str, int]
    sent: float


def contender(
    name: dict[str, str], timeline: Timeline, peaks: Sequence[tuple[int, dict[str, int]]]
) -> Contender:
    """Describe a run by the memory of the rank that needs most and the bytes of the rank that sends most."""
    _, split = max(peaks, key=lambda p: p[0])
    return Contender(name, timeline, split, max(timeline.graph.bytes_sent(), default=0))


def comparison_figure(runs: Sequence[Contender], lang: str = "en") -> Picture:
    """Draw three panels side by side, with one row for each run."""

    hardware = runs[0].timeline.hardware.name
    titles = [word("step_time", lang, hardware=hardware), word("sent_gpu", lang), word("memory_gpu", lang)]
    figure = panels(
        1,
        3,
        shared_yaxes=True,
        horizontal_spacing=0.045,
        subplot_titles=titles,
        column_widths=[0.46, 0.2, 0.34],
    )
    names = [r.name[lang] for r in runs]
    time_name = _time_panel(figure, runs, names, lang)
    sent_name = _sent_panel(figure, runs, names, lang)
    memory_name = _memory_panel(figure, runs, names, lang)
    for column, unit in enumerate((time_name, sent_name, memory_name), start=1):
        figure.update_xaxes(title_text=unit, rangemode="tozero", **QUIET_AXIS, row=1, col=column)
    figure.update_yaxes(autorange="reversed", tickfont={"size": 15}, automargin=True)
    figure.update_layout(
        **plain_layout(190 + 58 * len(runs), right=44, bottom=96), barmode="stack", bargap=0.38
    )
    figure.update_layout(legend_traceorder="normal")
    return figure


def _panel(
    figure: Any,
    names: list[str],
    values: list[float],
    label: str,
    look: Any,
    unit: str,
    column: int,
    total: list[str] | None,
) -> None:

    figure.add_trace(
        trace(
            "bar",
            name=label,
            orientation="h",
            y=names,
            x=[float(f"{v:.6g}") for v in values],
            text=total,
            textposition="outside" if total else None,
            cliponaxis=False,
            marker={
                "color": look.fill,
                "pattern": {"shape": look.hatch, "fgcolor": look.ink, "size": 7, "solidity": 0.2},
                "line": {"color": "#ffffff", "width": 1},
            },
            hovertemplate=f"%{{y}}<br>{label}: %{{x:.4g}} {unit}<extra></extra>",
            showlegend=column != 2,
        ),
        row=1,
        col=column,
    )


def _time_panel(figure: Any, runs: Sequence[Contender], names: list[str], lang: str) -> str:
    factor, unit = time_unit(max(r.timeline.makespan for r in runs))
    rows = series([r.timeline.breakdown() for r in runs], lang, factor)
    totals = [f"{r.timeline.makespan * factor:.3g}" for r in runs]
    for number, (label, (look, values)) in enumerate(rows.items(), start=1):
        _panel(figure, names, values, label, look, unit, 1, totals if number == len(rows) else None)
    return unit


def _sent_panel(figure: Any, runs: Sequence[Contender], names: list[str], lang: str) -> str:
    divisor, unit = byte_unit(max(r.sent for r in runs))
    values = [r.sent / divisor for r in runs]
    _panel(
        figure,
        names,
        values,
        word("sent_gpu", lang),
        KINDS["collective"],
        unit,
        2,
        [f"{v:.3g}" for v in values],
    )
    return unit


def _memory_panel(figure: Any, runs: Sequence[Contender], names: list[str], lang: str) -> str:
    divisor, unit = byte_unit(max(sum(r.peak.values()) for r in runs))
    totals = [f"{sum(r.peak.values()) / divisor:.3g}" for r in runs]
    for category in CATEGORIES:
        last = totals if category == CATEGORIES[-1] else None
        _panel(
            figure,
            names,
            [r.peak[category] / divisor for r in runs],
            category_word(category, lang),
            MEMORY[category],
            unit,
            3,
            last,
        )
    return unit
