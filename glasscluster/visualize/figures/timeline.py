"""The timeline of all ranks: who computes, communicates or waits when. Each rank has a compute lane and a
communication lane; both are drawn from the events alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from glasscluster.base.breakdown import BUSY, capital, entry_of
from glasscluster.sim.recording.events import COLLECTIVE, COMPUTE, HOST, PHASES, SEND
from glasscluster.sim.time.idle import possible_entries
from glasscluster.visualize.figures.layout import FONT
from glasscluster.visualize.figures.palette import CRITICAL, IDLE_KINDS, KINDS, kind_of_gap
from glasscluster.visualize.figures.picture import Picture, trace
from glasscluster.visualize.words import word

if TYPE_CHECKING:
    from glasscluster.sim.time.timeline import Timeline

DRAWN_SINGLY = 2000  # with more bars than this, those narrower than a pixel are joined
PIXELS = 1200
COMPUTE_HEIGHT, COMM_TOP, COMM_HEIGHT = 0.52, 0.60, 0.30


@dataclass
class Bar:
    """One rectangle: its kind, the centre and height of its lane, start and end in seconds, a digit, and the
    lines that it shows on hover.
    """

    kind: str
    y: float
    height: float
    start: float
    end: float
    text: str = ""
    hover: list[str] = field(default_factory=list)
    critical: bool = False
    joined: int = 1


def time_unit(seconds: float) -> tuple[float, str]:
    """Return the factor and the name of the unit in which a span of time is easy to read."""
    for limit, factor, name in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms")):
        if seconds < limit:
            return factor, name
    return 1.0, "s"


def size_text(nbytes: float) -> str:
    """Write a number of bytes in a unit that is easy to read."""
    for limit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= limit:
            return f"{nbytes / limit:.4g} {name}"
    return f"{nbytes:.0f} B"


def timeline_figure(timeline: Timeline, lang: str = "en", title: str | None = None) -> Picture:
    """Draw a timeline. Every rectangle is one recorded event or several consecutive ones; the gaps are idle
    time.
    """

    factor, unit = time_unit(timeline.makespan)
    bars = [*compute_bars(timeline, lang, factor, unit), *communication_bars(timeline, lang, factor, unit)]
    idle = idle_bars(timeline, lang, factor, unit)
    shown, note = _legible(bars, timeline, lang, factor, unit)
    idle, _unused = _legible(idle, timeline, lang, factor, unit)
    figure = Picture()
    for kind in (*IDLE_KINDS, *(k for k in KINDS if k not in IDLE_KINDS)):
        mine = [b for b in (idle if kind in IDLE_KINDS else shown) if b.kind == kind]
        if mine:
            figure.add_trace(_trace(mine, kind, lang, factor))
    critical = [b for b in shown if b.critical]
    if critical:
        figure.add_trace(_outline(critical, lang, factor))
    figure.update_layout(**_layout(timeline, lang, title, unit, factor, note))
    return figure


def bar_count(timeline: Timeline) -> int:
    """Return how many bars the figure would have if none were joined, without those of idle time."""
    return len(timeline.blocks()) + len(timeline.communications())


def timeline_axes(timeline: Timeline, lang: str = "en") -> Picture:
    """Draw only the axes and the legend, which the page puts under its canvas when there are more than
    DRAWN_SINGLY bars.
    """

    factor, unit = time_unit(timeline.makespan)
    graph = timeline.graph
    used = {PHASES[p] for p in np.unique(graph.phase[graph.kind == COMPUTE])}
    used |= {"collective"} if (graph.kind == COLLECTIVE).any() else set()
    used |= {"p2p"} if ((graph.kind == SEND) & (graph.sequence < 0)).any() else set()
    used |= {"host"} if (graph.kind == HOST).any() else set()
    figure = Picture()
    idle = [kind_of_gap(key) for key in possible_entries(graph) if key not in BUSY]
    for kind in (*idle, *(k for k in KINDS if k in used)):
        figure.add_trace(_trace([], kind, lang, factor))
    figure.add_trace(_outline([], lang, factor))
    figure.update_layout(**_layout(timeline, lang, None, unit, factor, ""))
    return figure


# ---- what there is to draw ---------------------------------------------------------------------------------
def _span(bar_start: float, bar_end: float, lang: str, factor: float, unit: str) -> list[str]:
    begun, length = bar_start * factor, (bar_end - bar_start) * factor
    return [f"{word('from_to', lang)} {begun:.5g} {unit}", f"{word('length', lang)} {length:.5g} {unit}"]


def compute_bars(timeline: Timeline, lang: str, factor: float, unit: str) -> Iterable[Bar]:
    for block in timeline.blocks():
        kind = PHASES[block["phase"]]
        micro = block["micro_batch"]
        numbered = kind not in ("optimizer", "other") and micro >= 0
        text = (
            f"{micro}w"
            if numbered and kind == "weight"
            else str(micro)
            if numbered
            else word("opt", lang)
            if kind == "optimizer"
            else ""
        )
        hover = [f"<b>{word('rank', lang)} {block['rank']} · {word(kind, lang)}</b>"]
        hover += [f"{word('micro_batch', lang)} {micro}"] if numbered else []
        hover += _span(block["start"], block["end"], lang, factor, unit)
        hover.append(f"{block['events']} {word('events', lang)}, {block['flops'] / 1e6:.4g} MFLOP")
        centre = block["rank"] + COMPUTE_HEIGHT / 2
        yield Bar(kind, centre, COMPUTE_HEIGHT, block["start"], block["end"], text, hover, block["critical"])


def communication_bars(timeline: Timeline, lang: str, factor: float, unit: str) -> Iterable[Bar]:
    """Make the bars of the communication lane, which has a sub-lane for each axis that sent anything."""
    works = timeline.communications()
    axes = sorted({w["axis"] for w in works})
    height = COMM_HEIGHT / max(len(axes), 1)
    for work in works:
        kind = work["kind"]
        hover = [f"<b>{word('rank', lang)} {work['rank']} · {work['op']}</b> {work['label']}"]
        hover += [f"{word('to_rank', lang)} {work['peer']}"] if work["peer"] >= 0 else []
        hover += (
            [f"{word('launched', lang)} {work['launched'] * factor:.5g} {unit}"] if work["collective"] else []
        )
        hover += _span(work["start"], work["end"], lang, factor, unit)
        hover.append(f"{size_text(work['bytes'])}, {word('axis', lang)} {work['axis']}")
        centre = work["rank"] + COMM_TOP + height * (axes.index(work["axis"]) + 0.5)
        yield Bar(kind, centre, height * 0.94, work["start"], work["end"], "", hover, work["critical"])


def idle_bars(timeline: Timeline, lang: str, factor: float, unit: str) -> list[Bar]:
    """Make the bars of idle time: one for each gap, of the kind of its reason."""
    bars = []
    for gap in timeline.all_gaps:
        name = capital(entry_of(gap.entry).name.in_(lang))
        hover = [f"<b>{word('rank', lang)} {gap.rank} · {name}</b>"]
        hover += _span(gap.start, gap.end, lang, factor, unit)
        if gap.awaited not in (-1, gap.rank):
            hover.append(f"{word('follows', lang)}: {word('rank', lang)} {gap.awaited}")
        kind, centre = kind_of_gap(gap.entry), gap.rank + COMPUTE_HEIGHT / 2
        bars.append(Bar(kind, centre, COMPUTE_HEIGHT, gap.start, gap.end, "", hover))
    return bars


def _legible(
    bars: list[Bar], timeline: Timeline, lang: str, factor: float, unit: str
) -> tuple[list[Bar], str]:
    """If there are too many bars, join neighbours in a lane that are narrower than a pixel. The joined bar
    has the kind of the longest of them.
    """
    if len(bars) <= DRAWN_SINGLY:
        return bars, ""
    pixel = timeline.makespan / PIXELS
    out = [b for b in bars if b.end - b.start >= pixel]
    joined, current = 0, None
    for bar in sorted((b for b in bars if b.end - b.start < pixel), key=lambda b: (b.y, b.start)):
        joined += 1
        if current and current.y == bar.y and bar.end - current.start < pixel:
            current.end, current.joined, current.critical = (
                max(current.end, bar.end),
                current.joined + 1,
                current.critical or bar.critical,
            )
        else:
            current = Bar(bar.kind, bar.y, bar.height, bar.start, bar.end, "", list(bar.hover), bar.critical)
            out.append(current)
    for bar in out:
        if bar.joined > 1:
            bar.hover = [
                f"<b>{bar.joined} × {word('events', lang)}</b>",
                *_span(bar.start, bar.end, lang, factor, unit),
            ]
    text = word(
        "binned",
        lang,
        events=f"{len(timeline.graph):,}",
        drawn=len(bars) - joined,
        binned=joined,
        pixel=f"{pixel * factor:.3g} {unit}",
    )
    return out, text


# ---- traces ------------------------------------------------------------------------------------------------
def _numbers(values: Iterable[float]) -> list[float]:
    """Round to six significant digits, which is far finer than a pixel."""
    return [float(f"{v:.7g}") for v in values]


def _trace(bars: list[Bar], kind: str, lang: str, factor: float) -> Any:
    look = KINDS[kind]
    lanes = kind in ("collective", "p2p", "host")
    means = f"<br>{word(f'means_{kind}', lang)}" if kind in IDLE_KINDS else ""
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
        textfont={"color": look.text, "size": 14},
        cliponaxis=True,
        customdata=["<br>".join(b.hover) for b in bars],
        hovertemplate=f"%{{customdata}}{means}<extra></extra>",
        marker={
            "color": look.fill,
            "line": {"color": "#ffffff", "width": 0 if lanes or kind in IDLE_KINDS else 1},
            "pattern": {"shape": look.hatch, "fgcolor": look.ink, "size": 6, "solidity": 0.25},
        },
    )


def _outline(bars: list[Bar], lang: str, factor: float) -> Any:
    return trace(
        "bar",
        name=word("critical", lang),
        meta="critical",
        orientation="h",
        base=_numbers(b.start * factor for b in bars),
        x=_numbers((b.end - b.start) * factor for b in bars),
        y=_numbers(b.y for b in bars),
        width=_numbers(b.height for b in bars),
        hoverinfo="skip",
        marker={"color": "rgba(0,0,0,0)", "line": {"color": CRITICAL, "width": 2.5}},
    )


def _layout(
    timeline: Timeline, lang: str, title: str | None, unit: str, factor: float, note: str
) -> dict[str, Any]:
    ranks = timeline.graph.ranks
    every = max(1, ranks // 16)
    ticks, labels = [], []
    for rank in range(0, ranks, every):
        ticks += [rank + COMPUTE_HEIGHT / 2, rank + COMM_TOP + COMM_HEIGHT / 2]
        labels += [f"{word('rank', lang)} {rank} {word('lane_compute', lang)}", word("lane_comm", lang)]
    time = word("measured_time" if timeline.measured else "virtual_time", lang)
    annotations = [_small(note)] if note else []
    return {
        "barmode": "overlay",
        "bargap": 0,
        "height": int(min(150 + 92 * ranks, 1100)),
        "title": {"text": title or "", "x": 0, "xref": "paper", "font": {"size": 18}},
        "font": {"family": FONT, "size": 14, "color": "#1f2933"},
        "margin": {"l": 130, "r": 16, "t": 44 if title else 16, "b": 92 + (16 if note else 0)},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "hoverlabel": {
            "align": "left",
            "bgcolor": "#ffffff",
            "bordercolor": "#52606d",
            "font": {"color": "#1f2933"},
        },
        "uniformtext": {"minsize": 11, "mode": "hide"},
        "dragmode": "pan",
        "xaxis": {
            "title": {"text": f"{time} ({unit}) · {timeline.hardware.name}", "standoff": 8},
            "range": [0, float(f"{timeline.makespan * factor * 1.004:.7g}")],
            "showgrid": True,
            "gridcolor": "#e4e7eb",
            "zeroline": False,
            "ticks": "outside",
        },
        "yaxis": {
            "tickvals": _numbers(ticks),
            "ticktext": labels,
            "range": [ranks - 0.02, -0.06],
            "fixedrange": True,
            "showgrid": False,
            "zeroline": False,
        },
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
            "font": {"size": 14},
        },
        "annotations": annotations,
    }


def _small(text: str) -> dict[str, Any]:
    return {
        "text": text,
        "xref": "paper",
        "yref": "paper",
        "x": 0,
        "y": 1,
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"size": 12, "color": "#52606d"},
    }
