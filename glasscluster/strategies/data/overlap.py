"""Overlap of backward and the reduction of buckets: when the last bucket is reduced, and the best buckets.

Follows PyTorch DDP (Li et al., 2006.15704), section 3.2; Eq 14. Symbols: bucket i becomes ready at r_i and
takes c_i on the wire (seconds); T_b is the end of backward, T_end the end of the last reduction.

    compute  ── backward ──r_1────r_2──────r_3│           T_b = r_last: backward is over
    wire                    [c_1 ] [  c_2  ]  [ c_3 ]     end_i = max(r_i, end_{i-1}) + c_i,  T_end = end_last
                                              └─────┘ exposed

Buckets are reduced one after the other on one communication lane. A bucket is ready when its last gradient
is. For any division of the gradients into buckets, T_end is bounded by

    max(T_b + c_last, r_1 + Σc)  ≤  T_end  ≤  T_b + Σc

end_i grows with end_{i-1}, so in a best division of the first j gradients those before the last bucket are
also divided best. Dynamic programming thus finds the best of all 2^(n-1) ways to divide n gradients in n²
steps.

But: communication does not slow computation down, and all ranks are ready at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from glasscluster.base.link import Link
from glasscluster.base.text import Said
from glasscluster.sim.ranks.collectives import ring
from glasscluster.sim.ranks.mesh import GROUP_IDS
from glasscluster.sim.recording.events import BEGIN, COLLECTIVE
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.time.timeline import Timeline
from glasscluster.strategies.layout.judged import NOT_A_RING, on_rings
from glasscluster.strategies.layout.units import cut

if TYPE_CHECKING:
    from glasscluster.strategies.plan import Plan

Cost = Callable[[float], float]  # bytes of a bucket -> seconds on the wire


def end_of_chain(ready: Sequence[float], cost: Sequence[float]) -> float:
    """T_end (seconds) of buckets that become ready at `ready` and take `cost` on the wire."""
    end = 0.0
    for r, c in zip(ready, cost, strict=True):
        end = max(r, end) + c
    return end


def bounds(ready: Sequence[float], cost: Sequence[float]) -> tuple[float, float]:
    """The bounds of T_end, lowest and highest, for buckets ready at `ready` that take `cost` (seconds)."""
    return max(ready[-1] + cost[-1], ready[0] + sum(cost)), ready[-1] + sum(cost)


def end_of_buckets(
    buckets: Sequence[Sequence[int]], ready: Sequence[float], sizes: Sequence[float], cost: Cost
) -> float:
    """T_end of a division of gradients into buckets.

    Args:
        buckets: each a list of indices of consecutive gradients.
        ready: when each gradient is ready, in seconds.
        sizes: bytes of each gradient.
        cost: seconds that a bucket of some bytes takes on the wire.
    """
    return end_of_chain([ready[b[-1]] for b in buckets], [cost(sum(sizes[i] for i in b)) for b in buckets])


def bucket_sizes(sizes: Sequence[int]) -> list[int]:
    """The bucket sizes (bytes) worth trying: one for each different division into buckets."""
    sums = {0, *(int(s) for i in range(len(sizes)) for s in np.cumsum(sizes[i:]))}
    limit_of_cut: dict[tuple[tuple[int, ...], ...], int] = {}
    for size in sorted(sums):
        limit_of_cut[tuple(map(tuple, cut(sizes, size, size)))] = max(size, 1)
    return sorted(limit_of_cut.values())


def best_buckets(ready: Sequence[float], sizes: Sequence[float], cost: Cost) -> tuple[float, list[list[int]]]:
    """The least T_end over all ways to divide gradients into buckets, and buckets that reach it."""
    best: list[tuple[float, list[list[int]]]] = [(0.0, [])]
    for j in range(1, len(sizes) + 1):
        ways = [(max(ready[j - 1], best[i][0]) + cost(sum(sizes[i:j])), i) for i in range(j)]
        end, i = min(ways)
        best.append((end, [*best[i][1], list(range(i, j))]))
    return best[-1]


# ---- theory ----------------------------------------------------------------------------------------------

# why Eq 14 does not apply to a run
AT_THE_END = Said(
    "buckets are launched when backward is over (--no-overlap): there is no chain beside it",
    "各桶在反向结束后才发起（--no-overlap）：没有与反向并行的链",
)
IN_TURN = Said(
    "with ZeRO-2 and 3 buckets also wait for each other on the compute lane",
    "ZeRO-2 与 ZeRO-3 的桶还会在计算通道上互相等待",
)
SEVERAL_GROUPS = Said(
    "gradients are reduced over several kinds of groups (sharding groups, experts)",
    "梯度在多种组内归约（分片组、专家组）",
)
A_LIBRARY = Said(
    "a library's own collectives ran: their steps are not known", "运行的是库自带的集合通信，其步骤未知"
)
SHARED_LINKS = Said("messages share links in this replay", "本次回放中消息共享链路")
OTHER_REPLAY = Said(
    "in this replay messages wait for their receivers, or some events are faster",
    "本次回放中消息等待接收方，或部分事件被加速",
)
SEVERAL_LINKS = Said(
    "the ranks of a group are joined by links of several kinds", "组内 rank 之间的链路不是同一种"
)
UNEQUAL = Said("a bucket does not divide evenly by the ranks", "有的桶不能被 rank 数整除")
LATE_RANK = Said("the ranks are not ready at the same moment", "各 rank 不是同时就绪")


def predict_last_bucket(plan: Plan, timeline: Timeline) -> tuple[float, float] | Said:
    """T_end of the data-parallel group that ends last, by Eq 14 and as replayed (seconds).

    The r_i are read from the replay, the c_i computed from the hardware. Where Eq 14 does not apply, the
    reason is returned instead.
    """
    graph, hw, n = timeline.graph, timeline.hardware, plan.shards
    mine = graph.where(purpose="gradients", group=GROUP_IDS["dp"])
    for off, why in (
        (not plan.overlap, AT_THE_END),
        (plan.zero > 1, IN_TURN),
        (n != plan.data_ranks or plan.ep > 1, SEVERAL_GROUPS),
        (graph.has_native, A_LIBRARY),
        (not on_rings(graph, mine), NOT_A_RING),
        (timeline.shared is not None, SHARED_LINKS),
        (
            bool(timeline.replay_options.get("rendezvous") or timeline.replay_options.get("faster")),
            OTHER_REPLAY,
        ),
    ):
        if off:
            return why
    ends: list[tuple[float, float]] = []
    for members in {tuple(groups[GROUP_IDS["dp"]][1]) for groups in graph.groups.values()}:
        links = {hw.link(a, b) for a, b in zip(members, [*members[1:], members[0]], strict=True)}
        here = mine & np.isin(graph.rank, members)
        begun, done = (
            np.flatnonzero(here & (graph.kind == BEGIN)),
            np.flatnonzero(here & (graph.kind == COLLECTIVE)),
        )
        ready, ended, nbytes = (
            timeline.start[in_order(graph, begun)],
            timeline.end[done],
            graph.bytes[in_order(graph, done)][::n],
        )
        ready = ready.reshape(-1, n)  # [bucket, rank]
        equal = not (nbytes % (n * plan.gradient_width)).any()
        if len(links) != 1:
            return SEVERAL_LINKS
        if not equal:
            return UNEQUAL
        if np.ptp(ready, axis=1).max() > 1e-12 * timeline.makespan:
            return LATE_RANK
        cost = on_a_ring("reduce_scatter" if plan.zero else "all_reduce", n, links.pop(), hw.gpu.reduce_rate)
        ends.append(
            (end_of_chain(ready.max(axis=1).tolist(), [cost(int(b)) for b in nbytes]), float(ended.max()))
        )
    return max(p for p, _ in ends), max(s for _, s in ends)


def in_order(graph: ExecutionGraph, rows: np.ndarray) -> np.ndarray:
    """Sort rows of the graph that belong to one communicator: by collective, then by rank."""
    return rows[np.lexsort((graph.rank[rows], graph.sequence[rows]))]


def on_a_ring(operation: str, n: int, link: Link, reduce_rate: float = float("inf")) -> Cost:
    """The seconds of a bucket on a ring of n ranks, for buckets whose elements n divides.

    They are the ring's steps (Eq 8) and N - 1 additions of 1/N of the bucket, at γ = `reduce_rate` bytes a
    second.
    """

    def seconds(nbytes: float) -> float:
        moved = ring.predict(operation, n, nbytes, link).time_s
        assert moved is not None
        return moved + (n - 1) * nbytes / n / reduce_rate

    return seconds
