"""Idle time: every gap in a rank's compute lane, what it waited for, and where a rank's seconds went.

    compute lane    | forward |....gap....| backward |      a gap ends when what it waited for has ended
    message                     begun ==== arrived          `comm`: how much of the gap it was under way

The report page has a copy of `gaps` and `exposed_comm`, visualize/templates/idle.js, which the tests hold
equal to this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from glasscluster.sim.recording.events import BEGIN, COLLECTIVE, COMPUTE, OPTIMIZER
from glasscluster.sim.recording.graph import compute_rows
from glasscluster.sim.time.critical_path import latest

if TYPE_CHECKING:
    from glasscluster.sim.time.timeline import Timeline

IDLE_CAUSES = ("communication", "dependency", "warm-up", "drain")


@dataclass(frozen=True)
class Gap:
    """A time at which a rank's compute lane was idle.

    Attributes:
        cause: communication (for most of it the awaited message was on the wire), dependency (the partner was
            not ready), warm-up (nothing was computed before) or drain (nothing was computed after).
        comm: the seconds of it for which the awaited message was on the wire.
        row: the event whose end closed the gap; -1: there is none.
    """

    rank: int
    start: float
    end: float
    cause: str
    axis: str
    comm: float
    row: int

    @property
    def length(self) -> float:
        """The gap's length in seconds."""
        return self.end - self.start


# ---- gaps --------------------------------------------------------------------------------------------------
def gaps(timeline: Timeline, rank: int) -> list[Gap]:
    """Return the gaps of a rank's compute lane, from 0 to the makespan, in order of time and with their
    causes.
    """
    graph, start, end = timeline.graph, timeline.start, timeline.end
    idle: list[Gap] = []
    clock = 0.0
    for number, row in enumerate(compute_rows(graph, rank).tolist()):
        if start[row] > clock:
            awaited = _blocker(timeline, row)
            idle += _waits(timeline, rank, clock, float(start[row]), awaited, first=number == 0)
        clock = float(end[row])
    if timeline.makespan > clock:
        own = np.flatnonzero((graph.rank == rank) & (graph.kind != COMPUTE) & (end > clock))
        if len(own):
            last = latest(timeline, own)
            idle.append(_gap(timeline, rank, clock, float(end[last]), last))
            clock = float(end[last])
        if timeline.makespan > clock:
            idle.append(Gap(rank, clock, timeline.makespan, "drain", "", 0.0, -1))
    return idle


def _blocker(timeline: Timeline, row: int) -> int:
    """Return the communication event whose end let `row` start: the latest of those it depends on, or -1."""
    deps = timeline.dependencies(row)
    return latest(timeline, deps[~np.isin(timeline.graph.kind[deps], (COMPUTE, BEGIN))])


def _waits(timeline: Timeline, rank: int, start: float, end: float, row: int, first: bool) -> list[Gap]:
    """Cut an idle interval into gaps at the moment at which the event that ended it was launched.

    Before that moment the lane waited for something else.
    """
    cuts: list[Gap] = []
    while row >= 0 and timeline.graph.kind[row] == COLLECTIVE:
        launch = timeline.launch(row)
        launched = float(timeline.start[launch])
        if launched <= start:
            break
        cuts.append(_gap(timeline, rank, launched, end, row))
        end, row = launched, _blocker(timeline, launch)
    return [*cuts, _gap(timeline, rank, start, end, row, first)][::-1]


def _gap(timeline: Timeline, rank: int, start: float, end: float, row: int, first: bool = False) -> Gap:
    """Return the gap that ended with `row`. `first`: whether nothing was computed before it."""
    if row < 0:
        return Gap(rank, start, end, "warm-up" if first else "dependency", "", 0.0, -1)
    comm = max(0.0, min(end, float(timeline.end[row])) - max(start, timeline.under_way(row)))
    cause = "communication" if comm >= (end - start) / 2 else "warm-up" if first else "dependency"
    axis = timeline.graph.axis_of(rank, int(timeline.graph.group[row]))
    return Gap(rank, start, end, cause, axis, comm, row)


# ---- sums over gaps ----------------------------------------------------------------------------------------
def exposed_comm(timeline: Timeline) -> list[float]:
    """Return, for each rank, the seconds for which its compute lane was idle with the awaited message on the
    wire.
    """
    exposed = [0.0] * timeline.graph.ranks
    for gap in timeline.all_gaps:
        exposed[gap.rank] += gap.comm
    return exposed


def idle_causes(timeline: Timeline) -> list[dict[str, float]]:
    """Return the idle seconds of each rank by cause. While the awaited message is on the wire the cause is
    `communication`.
    """
    seconds = [dict.fromkeys(IDLE_CAUSES, 0.0) for _ in range(timeline.graph.ranks)]
    for gap in timeline.all_gaps:
        rest = "dependency" if gap.cause == "communication" else gap.cause
        seconds[gap.rank]["communication"] += gap.comm
        seconds[gap.rank][rest] += gap.length - gap.comm
    return seconds


def breakdown(timeline: Timeline, rank: int) -> dict[str, float]:
    """Divide a rank's makespan into seconds of compute, of waiting for each axis, of other waiting, and of
    the optimizer.
    """
    rows = compute_rows(timeline.graph, rank)
    spent = timeline.end[rows] - timeline.start[rows]
    optimizer = timeline.graph.phase[rows] == OPTIMIZER
    out = {"compute": float(spent[~optimizer].sum())}
    out |= {f"exposed_{axis}": 0.0 for axis in ("tp", "pp", "dp", "cp", "ep")}
    out |= {"bubble": 0.0, "optimizer": float(spent[optimizer].sum())}
    for gap in gaps(timeline, rank):
        key = f"exposed_{gap.axis}"
        out[key] = out.get(key, 0.0) + gap.comm
        out["bubble"] += gap.length - gap.comm
    out.pop("exposed_", None)
    return out


def split(timeline: Timeline) -> list[dict[str, float]]:
    """Divide each rank's makespan into five kinds of seconds that add up to it.

    `alone` and `overlapped` are forward, backward and other compute while nothing, or something, is
    communicated; `exposed` is waiting while the awaited message is on the wire; `bubble` is all other
    waiting.
    """
    graph = timeline.graph
    moving: list[list[tuple[float, float]]] = [[] for _ in range(graph.ranks)]
    for work in timeline.communications():
        moving[work["rank"]].append((work["start"], work["end"]))
    seconds = []
    for rank in range(graph.ranks):
        rows = compute_rows(graph, rank)
        start, end = timeline.start[rows], timeline.end[rows]
        optimizer = graph.phase[rows] == OPTIMIZER
        spent = end - start
        idle = timeline.gaps(rank)
        exposed = sum(gap.comm for gap in idle)
        covered = _covered(start[~optimizer], end[~optimizer], moving[rank])
        seconds.append(
            {
                "alone": float(spent[~optimizer].sum()) - covered,
                "overlapped": covered,
                "optimizer": float(spent[optimizer].sum()),
                "exposed": exposed,
                "bubble": sum(gap.length for gap in idle) - exposed,
            }
        )
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
