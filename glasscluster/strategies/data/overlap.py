"""Overlap: when the last bucket is reduced, and which buckets end soonest (F14).

Follows PyTorch DDP (Li et al., 2006.15704), section 3.2. Symbols: bucket i becomes ready at r_i and takes c_i on the wire.

    compute   ── backward ──r_1────r_2──────r_3│                      T_b = r_last: backward is over
    wire                     [c_1 ] [  c_2  ]  [ c_3 ]                end_i = max(r_i, end_{i-1}) + c_i,  T_end = end_last
                                               └─────┘ exposed

Buckets use one communication lane, in order. A bucket is ready when its last gradient is. Bounds, whatever the buckets:

    max(T_b + c_last, r_1 + Σc)  ≤  T_end  ≤  T_b + Σc

The chain is monotone in end_{i-1}: to end the first j gradients soonest, end the first i < j soonest and make one bucket
of the rest. So the best of all 2^(n-1) ways to cut n gradients into buckets takes n² steps to find.
But: compute is not slowed by communication, and all ranks become ready at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from glasscluster.sim.ranks.collectives import ring
from glasscluster.sim.ranks.mesh import GROUP_IDS
from glasscluster.sim.recording.events import BEGIN, COLLECTIVE, PURPOSES
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.time.hardware import Link
from glasscluster.sim.time.timeline import Timeline
from glasscluster.strategies.layout.units import cut

if TYPE_CHECKING:
    from glasscluster.strategies.plan import Plan

Cost = Callable[[float], float]  # bytes of a bucket -> seconds on the wire


def end_of_chain(ready: Sequence[float], cost: Sequence[float]) -> float:
    """T_end."""
    end = 0.0
    for r, c in zip(ready, cost, strict=True):
        end = max(r, end) + c
    return end


def bounds(ready: Sequence[float], cost: Sequence[float]) -> tuple[float, float]:
    """The least and the most that T_end can be."""
    return max(ready[-1] + cost[-1], ready[0] + sum(cost)), ready[-1] + sum(cost)


def end_of_buckets(buckets: Sequence[Sequence[int]], ready: Sequence[float], sizes: Sequence[float], cost: Cost) -> float:
    """T_end when gradients, ready at `ready` and of `sizes` bytes, are cut into `buckets` of their indices."""
    return end_of_chain([ready[b[-1]] for b in buckets], [cost(sum(sizes[i] for i in b)) for b in buckets])


def bucket_sizes(sizes: Sequence[int]) -> list[int]:
    """Every bucket size that makes other buckets than the next smaller one: no other size need be tried."""
    sums = {0, *(int(s) for i in range(len(sizes)) for s in np.cumsum(sizes[i:]))}
    found: dict[tuple[tuple[int, ...], ...], int] = {}
    for size in sorted(sums):
        found[tuple(map(tuple, cut(sizes, size, size)))] = max(size, 1)
    return sorted(found.values())


def best_buckets(ready: Sequence[float], sizes: Sequence[float], cost: Cost) -> tuple[float, list[list[int]]]:
    """The least T_end over all ways to cut gradients into buckets, and one that has it."""
    best: list[tuple[float, list[list[int]]]] = [(0.0, [])]
    for j in range(1, len(sizes) + 1):
        ways = [(max(ready[j - 1], best[i][0]) + cost(sum(sizes[i:j])), i) for i in range(j)]
        end, i = min(ways)
        best.append((end, [*best[i][1], list(range(i, j))]))
    return best[-1]


# ---- theory --------------------------------------------------------------------------------------------------------


def predict(plan: Plan, timeline: Timeline) -> tuple[float, float] | None:
    """T_end of the latest data-parallel group, by the chain and as replayed; the r_i are read from the replay.

    None off its domain: no overlap, ZeRO 2 or 3 (buckets wait for each other on the compute lane), a library's collectives,
    ranks that are not ready at once, links of several kinds, buckets that do not divide by N.
    """
    graph, hw, n = timeline.graph, timeline.hardware, plan.shards
    if (
        plan.data_ranks == 1
        or n != plan.data_ranks
        or plan.ep > 1
        or not plan.overlap
        or plan.zero > 1
        or graph.has_native
        or timeline.shared is not None
    ):
        return None
    if timeline.asked.get("rendezvous") or timeline.asked.get("faster"):
        return None
    mine = (graph.group == GROUP_IDS["dp"]) & (graph.purpose == PURPOSES.index("gradients"))
    ends: list[tuple[float, float]] = []
    for members in {tuple(groups[GROUP_IDS["dp"]][1]) for groups in graph.groups.values()}:
        links = {hw.link(a, b) for a, b in zip(members, [*members[1:], members[0]], strict=True)}
        here = mine & np.isin(graph.rank, members)
        begun, done = np.flatnonzero(here & (graph.kind == BEGIN)), np.flatnonzero(here & (graph.kind == COLLECTIVE))
        ready, ended, nbytes = timeline.start[in_order(graph, begun)], timeline.end[done], graph.bytes[in_order(graph, done)][::n]
        ready = ready.reshape(-1, n)  # [bucket, rank]
        equal = not (nbytes % (n * plan.gradient_width)).any()
        if len(links) != 1 or np.ptp(ready, axis=1).max() > 1e-12 * timeline.makespan or not equal:
            return None
        cost = on_a_ring("reduce_scatter" if plan.zero else "all_reduce", n, links.pop(), hw.gpu.reduce_rate)
        ends.append((end_of_chain(ready.max(axis=1).tolist(), [cost(int(b)) for b in nbytes]), float(ended.max())))
    return max(p for p, _ in ends), max(s for _, s in ends)


def in_order(graph: ExecutionGraph, rows: np.ndarray) -> np.ndarray:
    """Rows of one communicator by collective, then by rank."""
    return rows[np.lexsort((graph.rank[rows], graph.sequence[rows]))]


def on_a_ring(operation: str, n: int, link: Link, reduce_rate: float = float("inf")) -> Cost:
    """c of a bucket that N divides: the ring's steps (F8), and its N-1 additions of 1/N at γ."""

    def seconds(nbytes: float) -> float:
        moved = ring.predict(operation, n, nbytes, link).time_s
        assert moved is not None
        return moved + (n - 1) * nbytes / n / reduce_rate

    return seconds
