"""Several timelines on one time axis, so that one sees how much time a schedule or a strategy saves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glasscluster.base.breakdown import PAPERS
from glasscluster.visualize.figures.layout import CELL_AXIS, QUIET_AXIS, plain_layout
from glasscluster.visualize.figures.palette import KINDS
from glasscluster.visualize.figures.picture import Picture, trace
from glasscluster.visualize.figures.timeline import (
    COMPUTE_HEIGHT,
    Bar,
    _numbers,
    communication_bars,
    compute_bars,
    time_unit,
)
from glasscluster.visualize.words import word

if TYPE_CHECKING:
    from glasscluster.sim.time.timeline import Timeline

MOST = 6  # the most timelines in one figure
GAP = 1.0  # empty rows between two timelines, for the name


def side_by_side_figure(runs: Sequence[tuple[str, Timeline]], lang: str = "en") -> Picture:
    """Draw two to six timelines below each other, aligned at their start, with one row for each rank and each
    timeline's makespan written beside it.
    """

    runs = list(runs)[:MOST]
    factor, unit = time_unit(max(t.makespan for _, t in runs))
    figure, ticks, labels, top, notes = Picture(), [], [], 0.0, []
    by_kind: dict[str, list[Bar]] = {}
    for name, timeline in runs:
        notes.append(_note(name, timeline, top + 0.62, factor, unit, lang))
        top += GAP
        for bar in [
            *compute_bars(timeline, lang, factor, unit),
            *communication_bars(timeline, lang, factor, unit),
        ]:
            bar.y += top
            by_kind.setdefault(bar.kind, []).append(bar)
        ticks += [top + r + COMPUTE_HEIGHT / 2 for r in range(timeline.graph.ranks)]
        labels += [f"{word('rank', lang)} {r}" for r in range(timeline.graph.ranks)]
        top += timeline.graph.ranks
    for kind in KINDS:
        if kind in by_kind:
            figure.add_trace(_bars(kind, by_kind[kind], factor, lang))
    longest = max(t.makespan for _, t in runs) * factor
    figure.update_layout(**plain_layout(min(120 + 30 * top, 1200), left=80, top=8))
    title = f"{word('virtual_time', lang)} ({unit}) · {runs[0][1].hardware.name}"
    figure.update_layout(
        barmode="overlay",
        bargap=0,
        uniformtext={"minsize": 10, "mode": "hide"},
        xaxis={"title": {"text": title}, "range": [0, float(f"{longest * 1.01:.6g}")], **QUIET_AXIS},
        yaxis={"tickvals": _numbers(ticks), "ticktext": labels, "range": [top, 0], **CELL_AXIS},
        annotations=notes,
    )
    return figure


def _bars(kind: str, bars: list[Bar], factor: float, lang: str) -> Any:
    look = KINDS[kind]
    return trace(
        "bar",
        name=word(kind, lang),
        meta=kind,
        orientation="h",
        base=_numbers(b.start * factor for b in bars),
        x=_numbers((b.end - b.start) * factor for b in bars),
        y=_numbers(b.y for b in bars),
        width=_numbers(b.height for b in bars),
        text=[b.text for b in bars],
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        textfont={"color": look.text},
        customdata=["<br>".join(b.hover) for b in bars],
        hovertemplate="%{customdata}<extra></extra>",
        marker={
            "color": look.fill,
            "line": {"color": "#ffffff", "width": 0.5},
            "pattern": {"shape": look.hatch, "fgcolor": look.ink, "size": 6, "solidity": 0.25},
        },
    )


def _note(name: str, timeline: Timeline, y: float, factor: float, unit: str, lang: str) -> dict[str, Any]:
    papers = timeline.bubble()["bubble_fraction"]
    text = f"<b>{name}</b>: {timeline.makespan * factor:.4g} {unit}"
    text += "" if papers is None else f", {PAPERS['bubble_fraction'][0].in_(lang)} {papers:.1%}"
    return {
        "text": text,
        "x": 0,
        "xref": "paper",
        "xanchor": "left",
        "y": y,
        "showarrow": False,
        "font": {"size": 15},
    }
