"""Memory pictures: peak bars by category, and the step's memory over virtual time. Both from the ledger of live tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from glasscluster.sim.graph import compute_rows
from glasscluster.sim.vocabulary import CATEGORIES
from glasscluster.visualize.layout import LEGEND, QUIET_AXIS, plain_layout
from glasscluster.visualize.palette import MEMORY
from glasscluster.visualize.timeline import time_unit
from glasscluster.visualize.words import word

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from glasscluster.sim.timeline import Timeline
POINTS = 2400  # moments drawn in a curve


def category_word(category: str, lang: str) -> str:
    """A memory category in words (the optimizer's state, not its phase)."""
    return word("optimizer_state" if category == "optimizer" else category, lang)


def byte_unit(largest: float) -> tuple[float, str]:
    """Divisor and name of the unit in which bytes read well."""
    for limit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if largest >= limit:
            return limit, name
    return 1.0, "B"


def memory_bars(peaks: Sequence[tuple[int, dict[str, int]]], lang: str = "en", title: str | None = None) -> Figure:
    """Peak bytes of each rank, split by category at that instant; the parts add up to the peak."""
    import plotly.graph_objects as go

    divisor, unit = byte_unit(max((total for total, _ in peaks), default=0))
    figure = go.Figure()
    for category in CATEGORIES:
        values = [split[category] / divisor for _, split in peaks]
        figure.add_trace(_bar(go, category, [f"{word('rank', lang)} {r}" for r in range(len(peaks))], values, unit, lang))
    totals = [total / divisor for total, _ in peaks]
    figure.update_layout(**_layout(title if title is not None else word("peak_memory", lang), f"{unit}", 380))
    figure.update_layout(barmode="stack", annotations=_totals(totals, unit), yaxis_range=[0, max(totals, default=1.0) * 1.12])
    return figure


def _bar(go: Any, category: str, names: list[str], values: list[float], unit: str, lang: str) -> Any:
    look = MEMORY[category]
    return go.Bar(
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
    """The sum above each stack, unless there are too many to read."""
    if len(totals) > 16:
        return []
    return [
        {"x": i, "y": t, "text": f"{t:.3g} {unit}", "showarrow": False, "yanchor": "bottom", "yshift": 3, "font": {"size": 14}}
        for i, t in enumerate(totals)
    ]


@dataclass(frozen=True)
class StateBook:
    """Bytes of states a GPU holds (mean over ranks), counted and by the formula, for one strategy."""

    name: str
    counted: dict[str, float]
    predicted: dict[str, float]


def memory_by_strategy(books: Sequence[StateBook], lang: str = "en") -> Figure:
    """Stacked bars of what was counted, one a strategy; the formula's total as a mark on each."""
    import plotly.graph_objects as go

    totals = [sum(b.predicted.values()) for b in books]
    divisor, unit = byte_unit(max([*totals, *(sum(b.counted.values()) for b in books)], default=0.0))
    names = [b.name for b in books]
    figure = go.Figure()
    for category in ("parameters", "gradients", "optimizer"):
        values = [b.counted[category] / divisor for b in books]
        figure.add_trace(_bar(go, category, names, values, unit, lang))
    theory = [float(f"{t / divisor:.6g}") for t in totals]
    figure.add_trace(
        go.Scatter(
            name=word("by_formula", lang),
            x=names,
            y=theory,
            mode="markers",
            marker={"symbol": "line-ew", "size": 56, "line": {"width": 4, "color": "#000000"}},
            hovertemplate=f"%{{x}}<br>{word('by_formula', lang)}: %{{y:.4g}} {unit}<extra></extra>",
        )
    )
    figure.update_layout(**_layout(word("states_by_strategy", lang), unit, 380))
    figure.update_layout(barmode="stack", annotations=_totals(theory, unit), yaxis_range=[0, max(theory, default=1.0) * 1.16])
    return figure


def memory_over_time(timeline: Timeline, rank: int, lang: str = "en", title: str | None = None) -> Figure:
    """Live bytes of a rank by category, against the virtual time of the operation that changed them."""
    import plotly.graph_objects as go

    times, levels = _thinned(*_levels(timeline, rank))
    factor, time_name = time_unit(timeline.makespan)
    divisor, unit = byte_unit(float(levels.sum(axis=1).max(initial=0.0)))
    figure = go.Figure()
    for i, category in enumerate(CATEGORIES):
        figure.add_trace(
            go.Scatter(
                name=category_word(category, lang),
                x=[float(f"{t * factor:.6g}") for t in times],
                y=[float(f"{v / divisor:.5g}") for v in levels[:, i]],
                stackgroup="memory",
                line={"shape": "hv", "width": 0.5, "color": MEMORY[category].fill},
                fillcolor=MEMORY[category].fill,
                hovertemplate=f"{category_word(category, lang)}: %{{y:.4g}} {unit}<extra></extra>",
            )
        )
    heading = title if title is not None else word("memory_over_time", lang, rank=rank)
    figure.update_layout(**_layout(heading, unit, 380), hovermode="x unified")
    figure.update_xaxes(title_text=f"{word('virtual_time', lang)} ({time_name}) · {timeline.hardware.name}")
    return figure


def _thinned(times: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most POINTS moments: of each stretch of time its fullest and its last, so that no peak is lost."""
    if len(times) <= POINTS:
        return times, levels
    stretch = np.minimum((times / max(float(times[-1]), 1e-300) * (POINTS // 2)).astype(int), POINTS // 2 - 1)
    total, keep = levels.sum(axis=1), []
    for part in np.split(np.arange(len(times)), np.flatnonzero(np.diff(stretch)) + 1):
        keep += sorted({int(part[np.argmax(total[part])]), int(part[-1])})
    return times[keep], levels[keep]


def _levels(timeline: Timeline, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct moments and bytes by category at each [moments, categories]; of several changes at a moment, the fullest."""
    memory = timeline.graph.memory[rank]
    log = np.asarray(memory["log"], dtype=np.int64).reshape(-1, 3)
    rows = compute_rows(timeline.graph, rank)
    moments = np.append(timeline.start[rows], timeline.makespan)
    changes = np.zeros((len(log) + 1, len(CATEGORIES)))
    changes[0] = memory["base"]
    changes[np.arange(1, len(log) + 1), log[:, 1]] = log[:, 2]
    levels = changes.cumsum(axis=0)
    when = np.append(0.0, moments[np.minimum(log[:, 0], len(rows))])
    total, keep = levels.sum(axis=1), []
    edges = np.flatnonzero(np.diff(when)) + 1
    for part in np.split(np.arange(len(when)), edges):
        keep.append(part[int(np.argmax(total[part]))])
        if keep[-1] != part[-1]:
            keep.append(part[-1])
    return when[keep], levels[keep]


def _layout(title: str, unit: str, height: int) -> dict[str, Any]:
    return {
        **plain_layout(height, left=72, right=16, top=48, bottom=84),
        "title": {"text": title, "x": 0, "xref": "paper", "font": {"size": 18}},
        "yaxis": {"title": {"text": unit}, "rangemode": "tozero", **QUIET_AXIS},
        "xaxis": {"zeroline": False},
        "legend": {**LEGEND, "traceorder": "normal"},
        "bargap": 0.35,
    }
