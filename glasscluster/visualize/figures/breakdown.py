"""Where a step's time goes: what each rank did, why it was idle, and what the critical path consists of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from glasscluster.base.breakdown import BUSY, ENTRIES, capital, entry_of, in_order
from glasscluster.sim.recording.events import PHASES
from glasscluster.sim.time.what_if import critical_seconds, makespans_if_faster
from glasscluster.visualize.figures.layout import plain_layout
from glasscluster.visualize.figures.palette import KINDS, SPLIT, Look, look_of
from glasscluster.visualize.figures.picture import Picture, panels, trace
from glasscluster.visualize.figures.timeline import time_unit
from glasscluster.visualize.words import word

if TYPE_CHECKING:
    from glasscluster.sim.time.timeline import Timeline

MOST_RANKS = 64  # at most so many ranks get a bar


def split_figure(timeline: Timeline, lang: str = "en") -> Picture:
    """Draw each rank's makespan as a stack of seconds that add up to it exactly (Timeline.split)."""
    return _per_rank(timeline, timeline.split()[:MOST_RANKS], lang)


def idle_figure(timeline: Timeline, lang: str = "en") -> Picture:
    """Draw each rank's idle time by reason: the breakdown without what works, so that small waits are seen."""
    ranks = range(min(timeline.graph.ranks, MOST_RANKS))
    parts = [timeline.breakdown(rank) for rank in ranks]
    return _per_rank(timeline, [{k: v for k, v in p.items() if k not in BUSY} for p in parts], lang)


def series(
    breakdowns: Sequence[Mapping[str, float]], lang: str, factor: float = 1.0
) -> dict[str, tuple[Look, list[float]]]:
    """Breakdowns as stacked bars: by name of entry, how it is drawn and its value in each breakdown.

    Entries that are zero everywhere are left out; values are multiplied by `factor`.
    """
    keys = in_order({key for breakdown in breakdowns for key in breakdown if key not in SPLIT})
    halves = [key for key in SPLIT if any(key in breakdown for breakdown in breakdowns)]
    shown = {}
    for key in [*halves, *keys]:
        values = [factor * breakdown.get(key, 0.0) for breakdown in breakdowns]
        if any(values):
            shown[legend(key, lang)] = (look(key), values)
    return shown


def legend(key: str, lang: str) -> str:
    """What a legend calls an entry of the breakdown, or of Timeline.split."""
    return word(key, lang) if key in SPLIT else capital(entry_of(key).name.in_(lang))


def look(key: str) -> Look:
    """How an entry of the breakdown, or of Timeline.split, is drawn."""
    return SPLIT[key] if key in SPLIT else look_of(entry_of(key))


def critical_figure(timeline: Timeline, lang: str = "en", factor: float = 2.0) -> Picture:
    """Draw, on the left, what the critical path consists of, and on the right, how much time would be saved
    if one kind of work were `factor` times as fast.
    """

    scale, unit = time_unit(timeline.makespan)
    on_path = critical_seconds(timeline)
    faster = makespans_if_faster(timeline, factor)
    kinds = [
        k
        for k in faster
        if k != "latency" or (len(timeline.graph.axis) and (timeline.graph.axis != "").any())
    ]
    names = [kind_name(k, lang) for k in kinds]
    titles = [word("on_path", lang), word("if_faster", lang, factor=f"{factor:g}")]
    figure = panels(1, 2, shared_yaxes=True, horizontal_spacing=0.06, subplot_titles=titles)
    spent = [on_path.get(k, 0.0) for k in kinds]
    saved = [timeline.makespan - faster[k] for k in kinds]
    for column, values, label in ((1, spent, word("on_path", lang)), (2, saved, word("saved", lang))):
        text = [
            f"{v * scale:.3g} ({v / timeline.makespan:.0%})" if timeline.makespan else ""  # in the axis' unit
            for v in values
        ]
        figure.add_trace(
            trace(
                "bar",
                name=label,
                orientation="h",
                y=names,
                x=[float(f"{v * scale:.6g}") for v in values],
                text=text,
                textposition="outside",
                cliponaxis=False,
                marker={"color": [_look(k).fill for k in kinds], "line": {"color": "#52606d", "width": 1}},
                hovertemplate=f"%{{y}}: %{{text}} {unit}<extra></extra>",
                showlegend=False,
            ),
            row=1,
            col=column,
        )
    for column, values in ((1, spent), (2, saved)):
        top = max(values, default=0.0) * scale * 1.45 or 1.0
        figure.update_xaxes(
            title_text=f"{unit} · {timeline.hardware.name}", range=[0, float(f"{top:.4g}")], row=1, col=column
        )
    figure.update_xaxes(gridcolor="#e4e7eb", zeroline=False)
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_layout(**plain_layout(130 + 38 * len(kinds)))
    return figure


def kind_name(kind: str, lang: str) -> str:
    """Return the words for a kind of work: a phase, the messages of an axis, or latency."""
    if kind in PHASES:
        return word(kind, lang)
    return word("latency", lang) if kind == "latency" else word("messages_of", lang, axis=kind)


def _look(kind: str) -> Look:
    return KINDS[kind] if kind in KINDS else KINDS["other"] if kind == "latency" else KINDS["collective"]


def _per_rank(timeline: Timeline, breakdowns: Sequence[Mapping[str, float]], lang: str) -> Picture:

    factor, unit = time_unit(timeline.makespan)
    ranks = len(breakdowns)
    names = [f"{word('rank', lang)} {r}" for r in range(ranks)]
    meanings = {legend(key, lang): entry.meaning.in_(lang) for key, entry in ENTRIES.items()}
    figure = Picture()
    for label, (look_, values) in series(breakdowns, lang).items():
        shares = [f"{v / timeline.makespan:.1%}" for v in values]
        means = f"<br>{meanings[label]}" if label in meanings else ""
        figure.add_trace(
            trace(
                "bar",
                name=label,
                orientation="h",
                y=names,
                x=[float(f"{v * factor:.7g}") for v in values],
                text=shares,
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                textfont={"color": look_.text},
                marker={
                    "color": look_.fill,
                    "pattern": {"shape": look_.hatch, "fgcolor": look_.ink, "size": 7, "solidity": 0.2},
                    "line": {"color": "#ffffff", "width": 1},
                },
                hovertemplate=f"%{{y}}<br>{label}: %{{x:.5g}} {unit} (%{{text}}){means}<extra></extra>",
            )
        )
    figure.update_layout(
        **plain_layout(128 + 30 * ranks),
        legend_traceorder="normal",
        barmode="stack",
        bargap=0.25,
        uniformtext={"minsize": 12, "mode": "hide"},
    )
    if not figure.data:
        figure.add_annotation(text=word("never_idle", lang), showarrow=False, font={"size": 16})
    time = word("measured_time" if timeline.measured else "virtual_time", lang)
    figure.update_xaxes(
        title_text=f"{time} ({unit}) · {timeline.hardware.name}", gridcolor="#e4e7eb", zeroline=False
    )
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure
