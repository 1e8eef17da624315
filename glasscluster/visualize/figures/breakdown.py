"""Where a step's time goes: what each rank did, why it was idle, and what the critical path consists of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from glasscluster.sim.recording.events import PHASES
from glasscluster.sim.time.idle import IDLE_CAUSES
from glasscluster.sim.time.what_if import critical_seconds, makespans_if_faster
from glasscluster.visualize.figures.layout import plain_layout
from glasscluster.visualize.figures.palette import IDLE, KINDS, SPLIT, Look
from glasscluster.visualize.figures.timeline import time_unit
from glasscluster.visualize.words import word

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from glasscluster.sim.time.timeline import Timeline

MOST_RANKS = 64  # at most so many ranks get a bar


def split_figure(timeline: Timeline, lang: str = "en") -> Figure:
    """Draw each rank's makespan as a stack of seconds that add up to it exactly (Timeline.split)."""
    parts = timeline.split()[:MOST_RANKS]
    rows = {key: [p[key] for p in parts] for key in SPLIT}
    return _per_rank(
        timeline, rows, SPLIT, lang, {"alone": "alone", "overlapped": "overlapped", "bubble": "waiting"}
    )


def idle_figure(timeline: Timeline, lang: str = "en") -> Figure:
    """Draw each rank's idle time by cause (Timeline.idle_causes)."""
    causes = timeline.idle_causes()[:MOST_RANKS]
    rows = {key: [c[key] for c in causes] for key in IDLE_CAUSES}
    return _per_rank(timeline, rows, IDLE, lang, {})


def critical_figure(timeline: Timeline, lang: str = "en", factor: float = 2.0) -> Figure:
    """Draw, on the left, what the critical path consists of, and on the right, how much time would be saved
    if one kind of work were `factor` times as fast.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

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
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.06, subplot_titles=titles)
    spent = [on_path.get(k, 0.0) for k in kinds]
    saved = [timeline.makespan - faster[k] for k in kinds]
    for column, values, label in ((1, spent, word("on_path", lang)), (2, saved, word("saved", lang))):
        text = [
            f"{v * scale:.3g} {unit} ({v / timeline.makespan:.0%})" if timeline.makespan else ""
            for v in values
        ]
        figure.add_trace(
            go.Bar(
                name=label,
                orientation="h",
                y=names,
                x=[float(f"{v * scale:.6g}") for v in values],
                text=text,
                textposition="outside",
                cliponaxis=False,
                marker={"color": [_look(k).fill for k in kinds], "line": {"color": "#52606d", "width": 1}},
                hovertemplate="%{y}: %{text}<extra></extra>",
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
    return KINDS[kind] if kind in KINDS else KINDS["bubble"] if kind == "latency" else KINDS["collective"]


def _per_rank(
    timeline: Timeline,
    rows: Mapping[str, Sequence[float]],
    looks: dict[str, Look],
    lang: str,
    words: dict[str, str],
) -> Figure:
    import plotly.graph_objects as go

    factor, unit = time_unit(timeline.makespan)
    ranks = min(timeline.graph.ranks, MOST_RANKS)
    names = [f"{word('rank', lang)} {r}" for r in range(ranks)]
    figure = go.Figure()
    for key, values in rows.items():
        if not any(values):
            continue
        look, label = looks[key], word(words.get(key, key), lang)
        shares = [f"{v / timeline.makespan:.1%}" for v in values]
        figure.add_trace(
            go.Bar(
                name=label,
                orientation="h",
                y=names,
                x=[float(f"{v * factor:.7g}") for v in values],
                text=shares,
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                textfont={"color": look.text},
                marker={
                    "color": look.fill,
                    "pattern": {"shape": look.hatch, "fgcolor": look.ink, "size": 7, "solidity": 0.2},
                    "line": {"color": "#ffffff", "width": 1},
                },
                hovertemplate=f"%{{y}}<br>{label}: %{{x:.5g}} {unit} (%{{text}})<extra></extra>",
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
