"""Idle time: every gap in a rank's compute lane, what it waited for, and where a rank's seconds went.

    compute lane    | forward |..bubble..|.exposed_pp.| backward |    a gap ends when what it waited for has
    message                              begun === arrived            ended, and is cut where that began

The words are those of base/breakdown.py. The report page has a copy of this file but for `split`,
visualize/templates/idle.js, which the tests hold equal to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from glasscluster.base import breakdown as entries
from glasscluster.base.breakdown import BUBBLE, EXPOSED, WAIT, in_order
from glasscluster.sim.recording.events import BEGIN, COLLECTIVE, COMPUTE, HOST, OPTIMIZER, RECOMPUTE
from glasscluster.sim.recording.graph import ExecutionGraph, compute_rows
from glasscluster.sim.time.critical_path import latest

if TYPE_CHECKING:
    from glasscluster.sim.time.timeline import Timeline


@dataclass(frozen=True)
class Gap:
    """A time at which a rank's compute lane was idle, for one reason.

    Attributes:
        rank: whose lane.
        start, end: seconds.
        entry: where the time goes in the breakdown: exposed_AXIS, host, bubble or wait.
        axis: the axis of what was awaited; empty where nothing was.
        awaited: the rank that was waited for; -1: none.
        row: the event whose end closed the gap, or a later gap that follows it at once; -1: there is none.
    """

    rank: int
    start: float
    end: float
    entry: str
    axis: str
    awaited: int
    row: int

    @property
    def length(self) -> float:
        """The gap's length in seconds."""
        return self.end - self.start

    @property
    def in_flight(self) -> bool:
        """Whether the awaited message was in flight, so that the gap is exposed communication."""
        return self.entry.startswith(f"{EXPOSED}_")


# ---- gaps --------------------------------------------------------------------------------------------------
def gaps(timeline: Timeline, rank: int) -> list[Gap]:
    """Return the gaps of a rank's compute lane, from 0 to the makespan, in order of time; each has one entry
    of the breakdown.
    """
    graph, start, end = timeline.graph, timeline.start, timeline.end
    idle: list[Gap] = []
    clock = 0.0
    for row in compute_rows(graph, rank).tolist():
        if start[row] > clock:
            idle += _waits(timeline, rank, clock, float(start[row]), _blocker(timeline, row))
        clock = float(end[row])
    if timeline.makespan > clock:
        own = np.flatnonzero((graph.rank == rank) & (graph.kind != COMPUTE) & (end > clock))
        if len(own):
            last = latest(timeline, own)
            idle += _cut(timeline, rank, clock, float(end[last]), last)
            clock = float(end[last])
        if timeline.makespan > clock:
            awaited = timeline.last_rank()
            entry = _without_message(timeline, rank, awaited)
            idle.append(Gap(rank, clock, timeline.makespan, entry, "", awaited, -1))
    return idle


def _blocker(timeline: Timeline, row: int) -> int:
    """Return the communication event whose end let `row` start: the latest of those it depends on, or -1."""
    deps = timeline.dependencies(row)
    return latest(timeline, deps[~np.isin(timeline.graph.kind[deps], (COMPUTE, BEGIN))])


def _waits(timeline: Timeline, rank: int, start: float, end: float, row: int) -> list[Gap]:
    """Cut an idle interval at the moment at which the event that ended it was launched.

    Before that moment the lane waited for something else.
    """
    cuts: list[list[Gap]] = []  # the last first
    while row >= 0 and timeline.graph.kind[row] == COLLECTIVE:
        launch = timeline.launch(row)
        launched = float(timeline.start[launch])
        if launched <= start:
            break
        cuts.append(_cut(timeline, rank, launched, end, row))
        end, row = launched, _blocker(timeline, launch)
    cuts.append(_cut(timeline, rank, start, end, row))
    return [gap for pieces in reversed(cuts) for gap in pieces]


def _cut(timeline: Timeline, rank: int, start: float, end: float, row: int) -> list[Gap]:
    """Cut the idle interval that ended with `row` where its message set off, and where it had arrived."""
    if row < 0:
        return [Gap(rank, start, end, WAIT, "", -1, -1)]
    graph = timeline.graph
    axis = graph.axis_of(rank, int(graph.group[row]))
    awaited, begun = timeline.awaited(row), timeline.under_way(row)
    moving = entries.HOST if graph.kind[row] == HOST else f"{EXPOSED}_{axis}"
    set_off = min(max(start, begun), end)
    arrived = max(set_off, min(end, float(timeline.end[row])))
    pieces = (
        (start, set_off, _without_message(timeline, rank, awaited)),
        (set_off, arrived, moving),
        (arrived, end, WAIT),
    )
    return [Gap(rank, a, b, entry, axis, awaited, row) for a, b, entry in pieces if b > a]


def _without_message(timeline: Timeline, rank: int, awaited: int) -> str:
    """The entry of a wait for a rank while no message is in flight."""
    stages = timeline.graph.stages
    return BUBBLE if stages[awaited] != stages[rank] else WAIT


# ---- sums over gaps ----------------------------------------------------------------------------------------
def exposed_comm(timeline: Timeline) -> list[float]:
    """Return, for each rank, the seconds for which its compute lane was idle with the awaited message in
    flight, on any axis.
    """
    exposed = [0.0] * timeline.graph.ranks
    for gap in timeline.all_gaps:
        if gap.in_flight:
            exposed[gap.rank] += gap.length
    return exposed


def breakdown(timeline: Timeline, rank: int) -> dict[str, float]:
    """Divide a rank's makespan into the seconds of each entry of base/breakdown.py; they add up to it."""
    rows = compute_rows(timeline.graph, rank)
    spent = timeline.end[rows] - timeline.start[rows]
    optimizer = timeline.graph.phase[rows] == OPTIMIZER
    recompute = timeline.graph.phase[rows] == RECOMPUTE
    out = dict.fromkeys(entries.ENTRIES, 0.0)
    out[entries.COMPUTE] = float(spent[~optimizer & ~recompute].sum())
    out[entries.RECOMPUTE] = float(spent[recompute].sum())
    out[entries.OPTIMIZER] = float(spent[optimizer].sum())
    for gap in timeline.gaps(rank):
        out[gap.entry] = out.get(gap.entry, 0.0) + gap.length
    return {key: out[key] for key in in_order(out)}


def possible_entries(graph: ExecutionGraph) -> list[str]:
    """The entries that can have any time on some hardware, in order: those that a page has to explain."""
    kinds = set(np.unique(graph.kind).tolist())
    phases = set(np.unique(graph.phase[graph.kind == COMPUTE]).tolist())
    axes = set(np.unique(graph.axis[graph.kind != HOST]).tolist()) - {""}
    there = {
        entries.COMPUTE: bool(phases - {RECOMPUTE, OPTIMIZER}),
        entries.RECOMPUTE: RECOMPUTE in phases,
        **{f"{EXPOSED}_{axis}": True for axis in axes},
        entries.HOST: HOST in kinds,
        BUBBLE: graph.pipelined,
        WAIT: graph.ranks > 1,
        entries.OPTIMIZER: OPTIMIZER in phases,
    }
    return in_order(key for key, is_there in there.items() if is_there)


ALONE, OVERLAPPED = "alone", "overlapped"  # compute, divided further


def split(timeline: Timeline) -> list[dict[str, float]]:
    """Divide each rank's makespan as `breakdown` does, and its compute into two.

    `alone` is compute while nothing of the rank is communicated, `overlapped` while something is.
    """
    graph = timeline.graph
    moving: list[list[tuple[float, float]]] = [[] for _ in range(graph.ranks)]
    for work in timeline.communications():
        moving[work["rank"]].append((work["start"], work["end"]))
    seconds = []
    for rank in range(graph.ranks):
        rows = compute_rows(graph, rank)
        rows = rows[~np.isin(graph.phase[rows], (OPTIMIZER, RECOMPUTE))]
        whole = timeline.breakdown(rank)
        covered = _covered(timeline.start[rows], timeline.end[rows], moving[rank])
        halves = {ALONE: whole.pop(entries.COMPUTE) - covered, OVERLAPPED: covered}
        seconds.append(halves | whole)
    return seconds


def _covered(start: np.ndarray, end: np.ndarray, spans: list[tuple[float, float]]) -> float:
    """Return for how many seconds the intervals [start, end) lie inside the union of `spans`."""
    if not len(start) or not spans:
        return 0.0
    joined: list[list[float]] = []
    for a, b in sorted(spans):
        if joined and a <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], b)
        else:
            joined.append([a, b])
    edges = np.array(joined)
    total = np.concatenate([[0.0], np.cumsum(edges[:, 1] - edges[:, 0])])

    def until(t: np.ndarray) -> np.ndarray:
        """Return the covered seconds before t."""
        at = np.searchsorted(edges[:, 0], t, side="right")
        over = np.where(at > 0, np.maximum(0.0, edges[np.maximum(at - 1, 0), 1] - t), 0.0)
        return total[at] - over

    return float((until(end) - until(start)).sum())
