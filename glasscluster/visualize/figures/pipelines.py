"""Schedules beside each other on one time axis, and how many chunks each rank holds while they run.

Each rank has a row, each action a bar. The recording knows phases and micro-batches but not stages, so the
schedule's own list of actions says which recorded operations belong to which action. The first model chunk of
a rank is in full colour; further chunks are lighter, with their number in brackets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glasscluster.sim.recording.events import PHASES
from glasscluster.sim.recording.graph import compute_rows
from glasscluster.visualize.figures.layout import CELL_AXIS, INK, QUIET_AXIS, plain_layout
from glasscluster.visualize.figures.palette import KINDS, SERIES, Look, contrast
from glasscluster.visualize.figures.picture import Picture, trace
from glasscluster.visualize.figures.plots import DASH
from glasscluster.visualize.figures.timeline import time_unit
from glasscluster.visualize.words import word

if TYPE_CHECKING:
    from glasscluster.sim.time.timeline import Timeline

PHASE = {"F": "forward", "B": "backward", "I": "backward", "W": "weight"}
PARTS = {"F": 1, "B": 2, "I": 1, "W": 1}
# height in pixels of a rank's row and of a title; the most schedules in one figure
ROW, HEAD, MOST = 26, 34, 6
PALER = 0.45  # how much lighter each further chunk of a rank is


@dataclass(frozen=True)
class Bar:
    """An action as it ran. `chunk` numbers the stages of its rank from 0."""

    rank: int
    kind: str
    chunk: int
    micro_batch: int
    begin: float
    end: float


@dataclass(frozen=True)
class ScheduleRun:
    """A schedule that ran: its title and its bars."""

    title: str
    bars: list[Bar]

    @property
    def ranks(self) -> int:
        """How many ranks the schedule has."""
        return 1 + max(b.rank for b in self.bars)

    @property
    def end(self) -> float:
        """Seconds until the last action has ended."""
        return max(b.end for b in self.bars)


def bars_of(
    timeline: Timeline, actions: Sequence[Sequence[Any]], stages_of: Sequence[Sequence[int]]
) -> list[Bar]:
    """Return a bar for every action that ran. actions[rank] is the schedule's list; stages_of[rank] are the
    stages on that rank.

    Where actions of one phase and micro-batch follow each other, as on the last rank of a V-shaped schedule,
    the recording does not show where one ends. Its operations are then divided equally: a whole backward gets
    two shares, every other action one. That is right because stages are equal.
    """
    graph, bars = timeline.graph, []
    for rank, listed in enumerate(actions):
        rows = [r for r in compute_rows(graph, rank).tolist() if timeline.end[r] > timeline.start[r]]
        place = 0
        for same in _alike(listed):
            key = PHASES.index(PHASE[same[0].kind]), same[0].micro_batch
            last = place
            while last < len(rows) and (graph.phase[rows[last]], graph.micro_batch[rows[last]]) == key:
                last += 1
            each, rest = divmod(last - place, sum(PARTS[a.kind] for a in same))
            if last == place or (len(same) > 1 and rest):
                raise ValueError(
                    f"rank {rank} recorded {last - place} operations where the schedule has "
                    f"{' '.join(map(str, same))}"
                )
            for action in same:
                end = place + each * PARTS[action.kind] if len(same) > 1 else last
                chunk = list(stages_of[rank]).index(action.stage)
                span = float(timeline.start[rows[place]]), float(timeline.end[rows[end - 1]])
                bars.append(Bar(rank, action.kind, chunk, action.micro_batch, *span))
                place = end
    return bars


def _alike(actions: Sequence[Any]) -> list[list[Any]]:
    """Group neighbouring actions of one phase and micro-batch, which a recording cannot distinguish."""
    groups: list[list[Any]] = []
    for action in actions:
        if groups and (PHASE[action.kind], action.micro_batch) == (
            PHASE[groups[-1][0].kind],
            groups[-1][0].micro_batch,
        ):
            groups[-1].append(action)
        else:
            groups.append([action])
    return groups


def comparison_figure(
    runs: Sequence[ScheduleRun], lang: str = "en", hardware: str = "", axis: str | None = None
) -> Picture:
    """Draw one to six schedules below each other, all starting at time 0: F, and B or its two halves I and W,
    each with its micro-batch. `axis` is the time axis's title where times are not seconds.
    """

    runs = list(runs)[:MOST]
    longest = max(r.end for r in runs)
    factor, unit = time_unit(longest) if axis is None else (1.0, "")
    traces: dict[tuple[str, int], list[tuple[float, Bar]]] = {}
    ticks, labels, notes, top = [], [], [], 0.0
    for run in runs:
        notes.append(
            {
                "text": run.title,
                "x": 0,
                "xref": "paper",
                "xanchor": "left",
                "y": top + 0.62,
                "showarrow": False,
                "font": {"size": 16},
            }
        )
        top += HEAD / ROW
        for bar in run.bars:
            traces.setdefault((PHASE[bar.kind], bar.chunk), []).append((top + bar.rank + 0.5, bar))
        ticks += [top + r + 0.5 for r in range(run.ranks)]
        labels += [f"{word('rank', lang)} {r} " for r in range(run.ranks)]
        top += run.ranks + 0.15
    figure = Picture()
    for kind, chunk in sorted(traces, key=lambda k: (k[1], list(KINDS).index(k[0]))):
        figure.add_trace(_trace(kind, chunk, traces[kind, chunk], factor, unit, lang))
    figure.update_layout(**plain_layout(ROW * top + 150, left=84, right=16, top=6, bottom=118, size=15))
    title = axis or f"{word('virtual_time', lang)} ({unit})" + (f" · {hardware}" if hardware else "")
    figure.update_layout(
        barmode="overlay",
        bargap=0,
        uniformtext={"minsize": 10, "mode": "hide"},
        plot_bgcolor="#f2f2f2",
        xaxis={
            "title": {"text": title},
            "range": [0, float(f"{longest * factor * 1.003:.6g}")],
            **QUIET_AXIS,
        },
        yaxis={"tickvals": ticks, "ticktext": labels, "range": [top, 0], **CELL_AXIS},
        annotations=notes,
        shapes=[_band(y - 0.5 * ROW / ROW) for y in _heads(runs)],
    )
    return figure


def _heads(runs: Sequence[ScheduleRun]) -> list[float]:
    """Return the heights at which the titles are written. Titles have a white background, idle time a grey
    one.
    """
    tops, top = [], 0.0
    for run in runs:
        tops.append(top + 0.5)
        top += HEAD / ROW + run.ranks + 0.15
    return tops


def _band(y: float) -> dict[str, Any]:
    return {
        "type": "rect",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": y - 0.15,
        "y1": y + HEAD / ROW,
        "fillcolor": "#ffffff",
        "line": {"width": 0},
        "layer": "below",
    }


def _trace(kind: str, chunk: int, bars: list[tuple[float, Bar]], factor: float, unit: str, lang: str) -> Any:
    look = chunk_look(kind, chunk)
    of = f"{word('chunk', lang)} {chunk}"
    hover = [
        f"<b>{word('rank', lang)} {b.rank} · {b.kind} · {of}</b><br>{word('micro_batch', lang)} "
        f"{b.micro_batch}"
        f"<br>{word('from_to', lang)} {b.begin * factor:.5g} {unit}<br>{word('length', lang)} "
        f"{(b.end - b.begin) * factor:.5g} {unit}"
        for _, b in bars
    ]
    name = word(kind, lang)
    return trace(
        "bar",
        name=name if chunk == 0 else f"{name}, {of}",
        meta=kind,
        orientation="h",
        base=[float(f"{b.begin * factor:.7g}") for _, b in bars],
        x=[float(f"{(b.end - b.begin) * factor:.7g}") for _, b in bars],
        y=[y for y, _ in bars],
        width=0.9,
        text=[f"{b.micro_batch}{'w' if b.kind == 'W' else ''}" for _, b in bars],
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        textfont={"color": look.text, "size": 13},
        customdata=hover,
        hovertemplate="%{customdata}<extra></extra>",
        marker={
            "color": look.fill,
            "line": {"color": "#ffffff", "width": 1},
            "pattern": {"shape": look.hatch, "fgcolor": look.ink, "size": 6, "solidity": 0.25},
        },
    )


def chunk_look(kind: str, chunk: int) -> Look:
    """Return how an action looks: each further chunk of a rank is lighter by the same step."""
    look = KINDS[kind]
    keep = (1 - PALER) ** chunk
    fill = "#" + "".join(
        f"{round(255 - (255 - int(look.fill[i : i + 2], 16)) * keep):02x}" for i in (1, 3, 5)
    )
    text = "#ffffff" if contrast("#ffffff", fill) > contrast("#000000", fill) else "#000000"
    return Look(fill, look.text if not chunk else text, look.hatch, look.ink if not chunk else fill)


def held(bars: Sequence[Bar], rank: int) -> tuple[list[float], list[int]]:
    """Return how many micro-batches' activations a rank holds, from a forward until its B, or its I and W, is
    done: the times at which the number changes, and the number from then on.
    """
    change: dict[float, int] = {}
    for bar in bars:
        if bar.rank == rank and bar.kind in "FBW":
            at = bar.begin if bar.kind == "F" else bar.end
            change[at] = change.get(at, 0) + (1 if bar.kind == "F" else -1)
    times, counts, now = [0.0], [0], 0
    for at in sorted(change):
        now += change[at]
        if at == times[-1]:
            counts[-1] = now
        else:
            times.append(at)
            counts.append(now)
    return times, counts


def staircase_figure(
    runs: Sequence[ScheduleRun], lang: str = "en", hardware: str = "", axis: str | None = None
) -> Picture:
    """Draw how many micro-batches' activations each rank holds over time: a panel for each schedule, a line
    for each rank, and one scale for all. `axis` is the time axis's title where times are not seconds.
    """

    longest = max(r.end for r in runs)
    factor, unit = time_unit(longest) if axis is None else (1.0, "")
    figure, notes, most = Picture(), [], 0
    for i, run in enumerate(runs):
        number = "" if i == 0 else str(i + 1)
        x = [i / len(runs) + (0.04 if i else 0.0), (i + 1) / len(runs) - 0.01]
        for rank in range(run.ranks):
            times, counts = held(run.bars, rank)
            most = max(most, *counts)
            figure.add_trace(
                trace(
                    "scatter",
                    name=f"{word('rank', lang)} {rank}",
                    legendgroup=str(rank),
                    showlegend=i == 0,
                    x=[float(f"{t * factor:.7g}") for t in [*times, longest]],
                    y=[*counts, counts[-1]],
                    xaxis=f"x{number}",
                    yaxis=f"y{number}",
                    mode="lines",
                    line={
                        "shape": "hv",
                        "color": SERIES[rank % len(SERIES)],
                        "dash": DASH[rank % len(DASH)],
                        "width": 3,
                    },
                    hovertemplate=f"{word('rank', lang)} {rank}<br>%{{x:.4g}} {unit}: %{{y}}<extra></extra>",
                )
            )
        title = axis or f"{word('virtual_time', lang)} ({unit})" + (f" · {hardware}" if hardware else "")
        figure.update_layout(
            {
                f"xaxis{number}": {
                    "domain": x,
                    "anchor": f"y{number}",
                    "title": {"text": title},
                    "range": [0, longest * factor],
                    **QUIET_AXIS,
                },
                f"yaxis{number}": {
                    "anchor": f"x{number}",
                    "title": {"text": word("held_chunks", lang) if i == 0 else ""},
                    **QUIET_AXIS,
                },
            }
        )
        where = {
            "x": x[0],
            "y": 1,
            "xref": "paper",
            "yref": "paper",
            "xanchor": "left",
            "yanchor": "bottom",
            "showarrow": False,
        }
        notes.append({"text": run.title, "font": {"size": 16, "color": INK}, **where})
    figure.update_layout(
        **plain_layout(400, left=76, right=16, top=40, bottom=96, size=15), annotations=notes
    )
    for i in range(len(runs)):
        figure.update_layout(
            {f"yaxis{'' if i == 0 else i + 1}": {"range": [0, most * 1.08], "dtick": max(1, round(most / 8))}}
        )
    return figure
