"""Figures of memory: the peak of each rank by category, and a step's memory over virtual time.

Both are drawn from the ledger of live tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from glasscluster.sim.recording.events import CATEGORIES
from glasscluster.visualize.figures.layout import LEGEND, QUIET_AXIS, plain_layout
from glasscluster.visualize.figures.palette import MEMORY
from glasscluster.visualize.figures.picture import Picture, trace
from glasscluster.visualize.figures.timeline import time_unit
from glasscluster.visualize.words import word

if TYPE_CHECKING:
    from glasscluster.sim.recording.memory_log import Resident
    from glasscluster.sim.time.memory_history import MemoryCurve
    from glasscluster.sim.time.timeline import Timeline
POINTS, NAMED = 2400, 160  # points of a curve, and how many of them list on hover what holds most
HOLDERS = 5
NEAR = 2.5  # a capacity of up to so many times the peak is drawn as a line
FULL = "#a32a00"


def category_word(category: str, lang: str) -> str:
    """Return the words for a memory category; `optimizer` means the optimizer's state, not the phase."""
    return word("optimizer_state" if category == "optimizer" else category, lang)


def byte_unit(largest: float) -> tuple[float, str]:
    """Return the divisor and the name of the unit in which so many bytes are easy to read."""
    for limit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if largest >= limit:
            return limit, name
    return 1.0, "B"


def memory_bars(
    peaks: Sequence[tuple[int, dict[str, int]]],
    lang: str = "en",
    title: str | None = None,
    capacity: float | None = None,
) -> Picture:
    """Draw the peak of each rank, divided by category at that moment; the categories add up to the peak.

    `capacity` in bytes.
    """

    divisor, unit = byte_unit(max((total for total, _ in peaks), default=0))
    figure = Picture()
    for category in CATEGORIES:
        values = [split[category] / divisor for _, split in peaks]
        figure.add_trace(
            _bar(category, [f"{word('rank', lang)} {r}" for r in range(len(peaks))], values, unit, lang)
        )
    totals = [total / divisor for total, _ in peaks]
    figure.update_layout(
        **_layout(
            title if title is not None else word("peak_memory", lang),
            f"{word('live_memory', lang)} ({unit})",
            400,
        )
    )
    figure.update_layout(
        barmode="stack", annotations=_totals(totals, unit), yaxis_range=[0, max(totals, default=1.0) * 1.12]
    )
    if capacity is not None and peaks:
        names, most = list(figure.data[0]["x"]), max(total for total, _ in peaks)
        _draw_capacity(figure, capacity, most, divisor, unit, names, lang, _totals(totals, unit))
    return figure


def _bar(category: str, names: list[str], values: list[float], unit: str, lang: str) -> Any:
    look = MEMORY[category]
    return trace(
        "bar",
        name=category_word(category, lang),
        x=names,
        y=[float(f"{v:.6g}") for v in values],
        marker={
            "color": look.fill,
            "pattern": {"shape": look.hatch, "fgcolor": "#ffffff", "size": 7, "solidity": 0.2},
            "line": {"color": "#ffffff", "width": 1},
        },
        hovertemplate=f"%{{x}}<br>{category_word(category, lang)}: %{{y:.4g}} {unit}<extra></extra>",
    )


def _totals(totals: list[float], unit: str) -> list[dict[str, Any]]:
    """Write the sum above each stack, unless there are too many stacks to read."""
    if len(totals) > 16:
        return []
    return [
        {
            "x": i,
            "y": t,
            "text": f"{t:.3g} {unit}",
            "showarrow": False,
            "yanchor": "bottom",
            "yshift": 3,
            "font": {"size": 14},
        }
        for i, t in enumerate(totals)
    ]


@dataclass(frozen=True)
class StateBook:
    """The bytes of model states that a GPU holds under one strategy (mean over ranks), counted and by
    formula.

    `more` is what else was alive at the peak, activations and buffers; it is only counted, because no formula
    covers all of it.
    """

    name: str
    counted: dict[str, float]
    predicted: dict[str, float]
    more: dict[str, float] = field(default_factory=dict)


def memory_by_strategy(books: Sequence[StateBook], lang: str = "en", title: str | None = None) -> Picture:
    """Draw one stacked bar of counted bytes for each strategy, with a mark at the height that the formula
    predicts for the states.
    """

    totals = [sum(b.predicted.values()) for b in books]
    heights = [sum(b.counted.values()) + sum(b.more.values()) for b in books]
    divisor, unit = byte_unit(max([*totals, *heights], default=0.0))
    names = [b.name for b in books]
    figure = Picture()
    for category in CATEGORIES:
        if any(category in b.counted or category in b.more for b in books):
            values = [(b.counted.get(category, 0.0) + b.more.get(category, 0.0)) / divisor for b in books]
            figure.add_trace(_bar(category, names, values, unit, lang))
    theory = [float(f"{t / divisor:.6g}") for t in totals]
    figure.add_trace(
        trace(
            "scatter",
            name=word("by_formula", lang),
            x=names,
            y=theory,
            mode="markers",
            marker={
                "symbol": "line-ew",
                "size": 56 if len(books) <= 8 else 36,
                "line": {"width": 4, "color": "#000000"},
            },
            hovertemplate=f"%{{x}}<br>{word('by_formula', lang)}: %{{y:.4g}} {unit}<extra></extra>",
        )
    )
    beside = any(b.more for b in books)
    heading = (
        title if title is not None else word("peak_by_strategy" if beside else "states_by_strategy", lang)
    )
    tops = [max(h / divisor, t) for h, t in zip(heights, theory, strict=True)]
    figure.update_layout(**_layout(heading, f"{word('per_gpu', lang)} ({unit})", 420))
    figure.update_layout(
        barmode="stack", annotations=_totals(tops, unit), yaxis_range=[0, max(tops, default=1.0) * 1.16]
    )
    return figure


def memory_over_time(timeline: Timeline, rank: int, lang: str = "en", title: str | None = None) -> Picture:
    """Draw a rank's live bytes by category over virtual time, with the peak and the GPU's capacity. Hovering
    lists what holds most.
    """

    curve = _thinned(timeline.memory(rank), POINTS)
    factor, time_name = time_unit(timeline.makespan)
    total = curve.levels.sum(axis=1)
    divisor, unit = byte_unit(float(total.max(initial=0)))
    figure, times = Picture(), [float(f"{t * factor:.6g}") for t in curve.times]
    for i, category in enumerate(CATEGORIES):
        look = MEMORY[category]
        figure.add_trace(
            trace(
                "scatter",
                name=category_word(category, lang),
                x=times,
                y=[float(f"{v / divisor:.5g}") for v in curve.levels[:, i]],
                stackgroup="memory",
                line={"shape": "hv", "width": 0.5, "color": look.fill},
                fillcolor=look.fill,
                fillpattern={
                    "shape": look.hatch,
                    "fgcolor": "#ffffff",
                    "bgcolor": look.fill,
                    "size": 9,
                    "solidity": 0.12,
                },
                hovertemplate=f"{category_word(category, lang)}: %{{y:.4g}} {unit}<extra></extra>",
            )
        )
    figure.add_trace(_holders(curve, factor, time_name, divisor, lang))
    heading = title if title is not None else word("memory_over_time", lang, rank=rank)
    figure.update_layout(
        **_layout(heading, f"{word('live_memory', lang)} ({unit})", 420), hovermode="x unified"
    )
    figure.update_xaxes(title_text=f"{word('virtual_time', lang)} ({time_name}) · {timeline.hardware.name}")
    at = int(np.argmax(total))
    peak = _note(
        word("peak_of", lang, size=f"{total[at] / divisor:.4g} {unit}"), x=times[at], y=total[at] / divisor
    )
    left = curve.times[at] > 0.6 * timeline.makespan  # the label goes towards the middle of the figure
    peak |= {
        "showarrow": True,
        "arrowhead": 2,
        "ax": -40 if left else 40,
        "ay": -22,
        "xanchor": "right" if left else "left",
    }
    _draw_capacity(
        figure,
        capacity_of(timeline),
        float(total.max(initial=0)),
        divisor,
        unit,
        [0, times[-1]],
        lang,
        [peak],
    )
    return figure


def capacity_of(timeline: Timeline) -> float:
    """Return the memory of a simulated GPU in bytes: the run's own setting where there is one, else the
    hardware's.
    """
    return float(timeline.graph.info.get("memory_bytes") or timeline.hardware.gpu.memory_bytes)


def _draw_capacity(
    figure: Any,
    capacity: float,
    peak: float,
    divisor: float,
    unit: str,
    across: Sequence[Any],
    lang: str,
    notes: list[dict],
) -> None:
    """Draw a line at the capacity, or write it in words where the line would flatten everything below it."""
    size, height = f"{capacity / divisor:.4g} {unit}", max(peak, 1.0) / divisor
    if capacity > NEAR * max(peak, 1.0):
        large, name = byte_unit(capacity)
        far = word(
            "capacity_far",
            lang,
            size=f"{capacity / large:.4g} {name}",
            times=f"{float(f'{capacity / max(peak, 1.0):.3g}'):,g}",
        )
        notes = [
            *notes,
            {
                **_note(far, x=1, y=1.0),
                "xref": "paper",
                "yref": "paper",
                "xanchor": "right",
                "yanchor": "bottom",
            },
        ]
    else:
        line = {"color": FULL, "width": 3, "dash": "dash"}
        value = [float(f"{capacity / divisor:.6g}")] * len(across)
        name = word("capacity", lang, size=size)
        figure.add_trace(
            trace(
                "scatter",
                name=name,
                x=list(across),
                y=value,
                mode="lines",
                line=line,
                hoverinfo="skip",
                showlegend=False,
            )
        )
        notes = [
            *notes,
            {
                **_note(name, x=0.01, y=value[0]),
                "xref": "paper",
                "xanchor": "left",
                "yanchor": "bottom",
                "yshift": 3,
            },
        ]
        height = max(height, capacity / divisor)
    figure.update_layout(annotations=notes, yaxis_range=[0, height * 1.16])


def _note(text: str, x: float, y: float) -> dict[str, Any]:
    return {
        "text": text,
        "x": x,
        "y": y,
        "showarrow": False,
        "font": {"size": 15},
        "bgcolor": "rgba(255,255,255,0.85)",
    }


def _holders(curve: MemoryCurve, factor: float, time_name: str, divisor: float, lang: str) -> Any:
    """Draw an invisible line that lists, on hover, what holds most at the nearest of some moments."""
    few = _thinned(curve, NAMED)
    said = []
    for when, held in zip(few.times, few.residents(HOLDERS), strict=True):
        lines = [f"{resident_words(r, lang)} {size_words(r.bytes)}" for r in held]
        said.append("<br>".join([word("held_at", lang, time=f"{when * factor:.4g} {time_name}"), *lines]))
    return trace(
        "scatter",
        name=word("together", lang),
        x=[float(f"{t * factor:.6g}") for t in few.times],
        y=[float(f"{v / divisor:.5g}") for v in few.levels.sum(axis=1)],
        mode="lines",
        line={"width": 0, "color": "rgba(0,0,0,0)"},
        showlegend=False,
        customdata=said,
        hovertemplate="%{customdata}<extra></extra>",
    )


def size_words(nbytes: float) -> str:
    """Write a number of bytes as people do: `4.2 MB`."""
    divisor, unit = byte_unit(nbytes)
    return f"{nbytes / divisor:.3g} {unit}"


def resident_words(resident: Resident, lang: str) -> str:
    """Describe a resident of memory: its layer, phase and operation, or the name that it was given."""
    many = f" × {resident.count}" if resident.count > 1 else ""
    layer = word("layer_of", lang, layer=resident.layer) if resident.layer >= 0 else ""
    phase = word(resident.phase, lang).lower() if resident.phase else ""
    where = " ".join(p for p in (layer, phase) if p)
    given = resident.name if where else f"{category_word(resident.category, lang)}: {resident.name}"
    return f"{where}: {given}{many}" if where else f"{given}{many}"


def _thinned(curve: MemoryCurve, points: int) -> MemoryCurve:
    """Choose at most so many moments: from each interval of time the one with most bytes and the last one, so
    that no peak is lost.
    """
    if len(curve.times) <= points:
        return curve
    half = points // 2
    interval = np.minimum((curve.times / max(float(curve.times[-1]), 1e-300) * half).astype(int), half - 1)
    total, keep = curve.levels.sum(axis=1), []
    for part in np.split(np.arange(len(curve.times)), np.flatnonzero(np.diff(interval)) + 1):
        keep += sorted({int(part[np.argmax(total[part])]), int(part[-1])})
    return curve[np.array(keep)]


def _layout(title: str, unit: str, height: int) -> dict[str, Any]:
    return {
        **plain_layout(height, left=72, right=16, top=48, bottom=84),
        "title": {"text": title, "x": 0, "xref": "paper", "font": {"size": 18}},
        "yaxis": {"title": {"text": unit}, "rangemode": "tozero", **QUIET_AXIS},
        "xaxis": {"zeroline": False},
        "legend": {**LEGEND, "traceorder": "normal"},
        "bargap": 0.35,
    }
