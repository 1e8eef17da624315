"""The timeline: when everything happened, and questions of it.

A predicted and a measured timeline are the same type: a graph with a start and an end for every event. Bubble,
exposed communication, idle causes, the critical path and MFU are all computed from these arrays, never drawn by
rules of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from glasscluster.base.display import renderer
from glasscluster.sim.recording.events import (
    BACKWARD,
    BEGIN,
    COLLECTIVE,
    COMPUTE,
    FORWARD,
    HOST,
    OPTIMIZER,
    PHASES,
    RECOMPUTE,
    RECV,
    SEND,
    WEIGHT,
)
from glasscluster.sim.recording.graph import ExecutionGraph, compute_rows
from glasscluster.sim.time.hardware import Hardware
from glasscluster.sim.time.history import MemoryCurve, MemoryHistory

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from glasscluster.sim.time.contention import ContendedReplay

IDLE_CAUSES = ("communication", "dependency", "warm-up", "drain")
USEFUL = (FORWARD, BACKWARD, WEIGHT, RECOMPUTE)


def _covered(start: np.ndarray, end: np.ndarray, spans: list[tuple[float, float]]) -> float:
    """Seconds of the intervals [start, end) that lie inside the union of `spans`."""
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
        """Covered seconds before t."""
        at = np.searchsorted(edges[:, 0], t, side="right")
        over = np.where(at > 0, np.maximum(0.0, edges[np.maximum(at - 1, 0), 1] - t), 0.0)
        return total[at] - over

    return float((until(end) - until(start)).sum())


@dataclass(frozen=True)
class Gap:
    """Idle time of a rank's compute lane, `comm` seconds of it with the awaited message on the wire.

    `cause`: communication (mostly on the wire) | dependency (the partner had not got there yet) | warm-up | drain.
    `row` is the event that ended the gap's wait, -1 when there is none.
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
        """Seconds."""
        return self.end - self.start


class Timeline:
    """`start` and `end` (seconds) of every row of `graph`, on `hardware` at `precision`."""

    def __init__(self, graph: ExecutionGraph, start: np.ndarray, end: np.ndarray, hardware: Hardware, precision: str) -> None:
        self.graph, self.start, self.end, self.hardware, self.precision = graph, start, end, hardware, precision
        self.measured = False
        self.asked: dict[str, Any] = {}  # slow_ranks, faster, rendezvous, contention: how `replay` was asked for it
        self.shared: ContendedReplay | None = None  # with contention: routes, and the history of rates on them

    def __repr__(self) -> str:
        kind = "measured" if self.measured else "virtual"
        return f"Timeline({self.graph.ranks} ranks, {self.makespan * 1e3:.4g} ms {kind}, {self.hardware.name})"

    @property
    def makespan(self) -> float:
        """Seconds from the first start to the last end."""
        return float(self.end.max(initial=0.0))

    # ---- busy time and bubbles -----------------------------------------------------------------------------------
    @cached_property
    def _useful(self) -> np.ndarray:
        return (self.graph.kind == COMPUTE) & np.isin(self.graph.phase, USEFUL)

    @cached_property
    def window(self) -> tuple[float, float]:
        """From the first forward to the last backward; the whole run when nothing is labelled so."""
        rows = self._useful if self._useful.any() else self.graph.kind == COMPUTE
        if not rows.any():
            return 0.0, self.makespan
        return float(self.start[rows].min()), float(self.end[rows].max())

    def useful(self) -> np.ndarray:
        """Seconds of forward and backward compute of each rank."""
        rows = self._useful if self._useful.any() else self.graph.kind == COMPUTE
        spent = np.zeros(self.graph.ranks)
        # in event order, exactly: a sum of equal pieces must not depend on how numpy pairs them
        np.add.at(spent, self.graph.rank[rows], (self.end - self.start)[rows])
        return spent

    def phase_seconds(self, rank: int) -> dict[tuple[str, int], float]:
        """Busy seconds of a rank by (phase, micro-batch)."""
        spent: dict[tuple[str, int], float] = {}
        for row in compute_rows(self.graph, rank).tolist():
            key = PHASES[self.graph.phase[row]], int(self.graph.micro_batch[row])
            spent[key] = spent.get(key, 0.0) + float(self.end[row] - self.start[row])
        return spent

    def bubble(self) -> dict[str, float]:
        """The three bubble figures of docs/contract.md: of the makespan, over ideal, and of the largest stage's span."""
        first, last = self.window
        useful, span = self.useful(), last - first
        idle = float(self.graph.ranks * span - useful.sum())
        rows = self._useful if self._useful.any() else self.graph.kind == COMPUTE
        spans = []
        for rank in range(self.graph.ranks):
            own = rows & (self.graph.rank == rank)
            spans.append(float(self.end[own].max() - self.start[own].min()) if own.any() else 0.0)
        largest = int(np.argmax(spans)) if spans else 0
        return {
            "bubble_fraction": idle / (self.graph.ranks * span) if span else 0.0,
            "bubble_over_ideal": idle / float(useful.sum()) if useful.sum() else 0.0,
            "stage_span_bubble_fraction": 1 - float(useful[largest]) / spans[largest] if spans and spans[largest] else 0.0,
        }

    # ---- idle time -----------------------------------------------------------------------------------------------
    @cached_property
    def _launch_rows(self) -> dict[tuple[int, int, int], int]:
        g, rows = self.graph, np.flatnonzero(self.graph.kind == BEGIN)
        keys = zip(g.rank[rows].tolist(), g.group[rows].tolist(), g.sequence[rows].tolist(), strict=True)
        return dict(zip(keys, rows.tolist(), strict=True))

    @cached_property
    def _launched(self) -> dict[tuple[int, int, int], float]:
        return {key: float(self.start[row]) for key, row in self._launch_rows.items()}

    def _on_the_wire(self, row: int) -> tuple[float, float, str]:
        """When what `row` stands for was really under way, and on which axis."""
        g, rank, group = self.graph, int(self.graph.rank[row]), int(self.graph.group[row])
        axis, members = g.groups[rank][group]
        if g.kind[row] == RECV:
            return float(self.start[g.match[row]]), float(self.end[row]), axis
        if g.kind[row] == SEND:
            return float(self.start[row]), float(self.end[row]), axis
        if g.kind[row] == HOST:  # waiting for the host, whether its link or its CPU is busy
            return 0.0, float(self.end[row]), axis
        everyone = max(self._launched.get((m, group, int(g.sequence[row])), 0.0) for m in members)
        return everyone, float(self.end[row]), axis

    def under_way(self, row: int) -> float:
        """When a collective or message really began: when everybody had come to it."""
        return self._on_the_wire(row)[0]

    def _blocker(self, row: int) -> int:
        """The communication event whose end let `row` start (the latest one it depends on)."""
        deps = self.graph.dependencies(row)
        return self._latest(deps[~np.isin(self.graph.kind[deps], (COMPUTE, BEGIN))])

    def _latest(self, rows: np.ndarray) -> int:
        """The row that ends last, of equal ones the first in canonical order (so that no build order shows); -1 of none."""
        if not len(rows):
            return -1
        ends = self.end[rows]
        ties = rows[ends == ends.max()]
        return int(ties[np.argmin(self.graph.place[ties])])

    def gaps(self, rank: int) -> list[Gap]:
        """Every idle stretch of a rank's compute lane, from 0 to the makespan, with its cause."""
        rows, found, clock = compute_rows(self.graph, rank), [], 0.0
        for number, row in enumerate(rows.tolist()):
            if self.start[row] > clock:
                found += self._waits(rank, clock, float(self.start[row]), self._blocker(row), first=number == 0)
            clock = float(self.end[row])
        if self.makespan > clock:
            mine = np.flatnonzero((self.graph.rank == rank) & (self.graph.kind != COMPUTE) & (self.end > clock))
            if len(mine):
                last = self._latest(mine)
                found.append(self._gap(rank, clock, float(self.end[last]), last))
                clock = float(self.end[last])
            if self.makespan > clock:
                found.append(Gap(rank, clock, self.makespan, "drain", "", 0.0, -1))
        return found

    def _waits(self, rank: int, start: float, end: float, row: int, first: bool) -> list[Gap]:
        """An idle stretch, cut where what ended it was launched: before that the program waited for something else."""
        g, found = self.graph, list[Gap]()
        while row >= 0 and g.kind[row] == COLLECTIVE:
            launch = self._launch_rows[rank, int(g.group[row]), int(g.sequence[row])]
            if self.start[launch] <= start:
                break
            found.append(self._gap(rank, float(self.start[launch]), end, row))
            end, row = float(self.start[launch]), self._blocker(launch)
        return [*found, self._gap(rank, start, end, row, first)][::-1]

    def _gap(self, rank: int, start: float, end: float, row: int, first: bool = False) -> Gap:
        if row < 0:
            return Gap(rank, start, end, "warm-up" if first else "dependency", "", 0.0, -1)
        begun, finished, axis = self._on_the_wire(row)
        comm = max(0.0, min(end, finished) - max(start, begun))
        cause = "communication" if comm >= (end - start) / 2 else "warm-up" if first else "dependency"
        return Gap(rank, start, end, cause, axis, comm, row)

    @cached_property
    def all_gaps(self) -> list[Gap]:
        """Idle stretches of every rank."""
        return [g for rank in range(self.graph.ranks) for g in self.gaps(rank)]

    def exposed_comm(self) -> list[float]:
        """Seconds each rank's compute lane stood still with the awaited message on the wire."""
        exposed = [0.0] * self.graph.ranks
        for gap in self.all_gaps:
            exposed[gap.rank] += gap.comm
        return exposed

    def breakdown(self, rank: int | None = None) -> dict[str, float]:
        """Where a rank's seconds went; sums to the makespan. Default: the rank that finishes last (lowest on ties)."""
        rank = self.last_rank() if rank is None else rank
        rows = compute_rows(self.graph, rank)
        spent = self.end[rows] - self.start[rows]
        optimizer = self.graph.phase[rows] == OPTIMIZER
        out = {"compute": float(spent[~optimizer].sum())}
        out |= {f"exposed_{axis}": 0.0 for axis in ("tp", "pp", "dp", "cp", "ep")}
        out |= {"bubble": 0.0, "optimizer": float(spent[optimizer].sum())}
        for gap in self.gaps(rank):
            key = f"exposed_{gap.axis}"
            out[key] = out.get(key, 0.0) + gap.comm
            out["bubble"] += gap.length - gap.comm
        out.pop("exposed_", None)
        return out

    def split(self) -> list[dict[str, float]]:
        """Each rank's makespan in parts that add up to it: compute with and without communication under way, the rest.

        `alone` and `overlapped` are forward, backward and other compute; `exposed` is waiting with the awaited message
        on the wire, `bubble` any other waiting.
        """
        moving: list[list[tuple[float, float]]] = [[] for _ in range(self.graph.ranks)]
        for work in self.communications():
            moving[work["rank"]].append((work["start"], work["end"]))
        found = []
        for rank in range(self.graph.ranks):
            rows = compute_rows(self.graph, rank)
            optimizer = self.graph.phase[rows] == OPTIMIZER
            spent = self.end[rows] - self.start[rows]
            gaps = self.gaps(rank)
            exposed = sum(g.comm for g in gaps)
            covered = _covered(self.start[rows][~optimizer], self.end[rows][~optimizer], moving[rank])
            found.append(
                {
                    "alone": float(spent[~optimizer].sum()) - covered,
                    "overlapped": covered,
                    "optimizer": float(spent[optimizer].sum()),
                    "exposed": exposed,
                    "bubble": sum(g.length for g in gaps) - exposed,
                }
            )
        return found

    def idle_causes(self) -> list[dict[str, float]]:
        """Each rank's idle seconds by cause; the part of a gap with its message on the wire is `communication`."""
        found = [dict.fromkeys(IDLE_CAUSES, 0.0) for _ in range(self.graph.ranks)]
        for gap in self.all_gaps:
            rest = "dependency" if gap.cause == "communication" else gap.cause
            found[gap.rank]["communication"] += gap.comm
            found[gap.rank][rest] += gap.length - gap.comm
        return found

    def last_rank(self) -> int:
        """The rank that finishes last (lowest on ties)."""
        if not len(self.graph):
            return 0
        ends = np.zeros(self.graph.ranks)
        np.maximum.at(ends, self.graph.rank, self.end)
        return int(np.argmax(ends))

    # ---- the critical path ---------------------------------------------------------------------------------------
    @cached_property
    def critical_path(self) -> list[int]:
        """Rows, first to last, that hand the makespan on to each other across ranks."""
        if not len(self.graph):
            return []
        g, row, path = self.graph, self._latest(np.arange(len(self.graph))), []
        while True:
            path.append(row)
            if self.start[row] <= 0:
                break
            best = self._latest(g.dependencies(row))
            if g.match[row] >= 0 and (best < 0 or self.end[best] < self.start[row]):
                best = int(g.match[row])
            if best < 0:
                break
            row = best
        return path[::-1]

    # ---- efficiency ----------------------------------------------------------------------------------------------
    def mfu(self, model_flops: float) -> float:
        """Model FLOPs of the step over what all GPUs could do in the makespan."""
        if not self.makespan:
            return 0.0
        return model_flops / (self.makespan * self.graph.ranks * self.hardware.gpu.peak(self.precision))

    def summary(self, model_flops: float = 0.0) -> dict[str, Any]:
        """The timeline keys of `glass train` and `glass replay`."""
        exposed = self.exposed_comm()
        return {
            "makespan_s": self.makespan,
            **self.bubble(),
            "exposed_comm_s": float(np.mean(exposed)) if exposed else 0.0,
            "exposed_comm_per_rank_s": exposed,
            "breakdown_s": self.breakdown(),
            "mfu": self.mfu(model_flops),
            **({"order": "as recorded"} if self.graph.info.get("order_fixed") else {}),
        }

    # ---- memory --------------------------------------------------------------------------------------------------
    def memory(self, rank: int) -> MemoryCurve:
        """Live bytes of a rank by category over virtual time, and what held them."""
        return MemoryHistory(self.graph, rank).over(self)

    # ---- for pictures --------------------------------------------------------------------------------------------
    def blocks(self) -> list[dict[str, Any]]:
        """Compute events joined into what a person sees: one block per (phase, micro-batch) without a gap inside."""
        g, on_path, found = self.graph, set(self.critical_path), []
        for rank in range(g.ranks):
            current: dict[str, Any] | None = None
            for row in compute_rows(g, rank).tolist():
                if self.end[row] <= self.start[row]:
                    continue
                key = (int(g.phase[row]), int(g.micro_batch[row]))
                if current and current["key"] == key and self.start[row] - current["end"] <= 1e-12:
                    current["end"], current["events"] = float(self.end[row]), current["events"] + 1
                    current["flops"] += int(g.flops[row])
                else:
                    current = {
                        "rank": rank,
                        "key": key,
                        "phase": key[0],
                        "micro_batch": key[1],
                        "start": float(self.start[row]),
                        "end": float(self.end[row]),
                        "events": 1,
                        "flops": int(g.flops[row]),
                        "critical": False,
                    }
                    found.append(current)
                current["critical"] |= row in on_path
        return found

    def communications(self) -> list[dict[str, Any]]:
        """Whole collectives, point-to-point sends and what the host does: when launched, and when everybody had come to them."""
        g, on_path, found = self.graph, set(self.critical_path), []
        whole = (g.kind == COLLECTIVE) | ((g.kind == SEND) & (g.sequence < 0)) | (g.kind == HOST)
        path_works = {(int(g.rank[r]), int(g.group[r]), int(g.sequence[r])) for r in on_path if g.sequence[r] >= 0}
        last_end: dict[tuple[int, int], float] = {}  # collectives of one communicator run one after the other
        for row in np.flatnonzero(whole).tolist():
            rank, group, sequence = int(g.rank[row]), int(g.group[row]), int(g.sequence[row])
            launched = begun = float(self.start[row])
            if g.kind[row] == COLLECTIVE:
                launched = float(self._launched[rank, group, sequence])
                begun = max(self._on_the_wire(row)[0], last_end.get((rank, group), 0.0))
                last_end[rank, group] = float(self.end[row])
            found.append(
                {
                    "rank": rank,
                    "launched": launched,
                    "start": begun,
                    "end": float(self.end[row]),
                    "op": g.names[g.op[row]],
                    "axis": g.groups[rank][group][0],
                    "bytes": int(g.bytes[row]),
                    "peer": int(g.peer[row]),
                    "collective": g.kind[row] == COLLECTIVE,
                    "kind": {COLLECTIVE: "collective", HOST: "host"}.get(int(g.kind[row]), "p2p"),
                    "label": g.names[g.label[row]],
                    "critical": row in on_path or (sequence >= 0 and (rank, group, sequence) in path_works),
                }
            )
        return found

    def figure(self, **options: Any) -> Figure:
        """The plotly figure."""
        return renderer("timeline")(self, **options)

    def show(self, **options: Any) -> None:
        """Open the figure (in a notebook: draw it here)."""
        self.figure(**options).show()

    def _repr_html_(self) -> str:
        return renderer("notebook")(self.figure())
