"""The arrival plan: in which order pushes reach the servers, fixed before the run, so that a run repeats on
any backend.

An asynchronous program does what comes first, and what comes first depends on time, which no recording knows.
So the order is computed beforehand on a virtual clock, and the program then follows it with real tensors. Two
sources of the times:

    virtual    one clock of the same program, recorded dry and replayed on some hardware (virtual_clock.py)
    seeded     every computation and message takes a random time

Each rank gets a script, which it follows from first to last:  WORK (one gradient)  |  v (serve worker v's
next push). Every shard has an order of its own, as nothing orders two servers: what a worker pulls may mix
versions of two shards. A rank does one thing at a time, in the order in which things become ready; its
messages leave one after the other. These are the rules of replay, so what is recorded, replayed on the
hardware the order was drawn from, takes as long as this says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from glasscluster.base.errors import InputError

WORK = -1


@dataclass(frozen=True)
class Layout:
    """W workers on ranks 0..W-1, K shards: with `own_ranks` on ranks of their own after them, else on the
    first K workers.

    `staleness` s: how many clocks a worker may be ahead of the slowest; None: synchronous, one update a
    clock.
    """

    workers: int
    servers: int
    clocks: int
    staleness: int | None = None
    own_ranks: bool = False

    def __post_init__(self) -> None:
        if not self.own_ranks and self.servers > self.workers:
            raise InputError(
                "servers",
                self.servers,
                f"shards stand on the {self.workers} workers",
                range(1, self.workers + 1),
            )
        if min(self.workers, self.servers, self.clocks) < 1:
            raise InputError(
                "servers", self.servers, "needs at least one worker, one server and one clock", [1]
            )
        if self.staleness is not None and self.staleness < 0:
            raise InputError("staleness", self.staleness, "must not be negative (0: nobody runs ahead)", [0])

    @property
    def ranks(self) -> int:
        """World size."""
        return self.workers + (self.servers if self.own_ranks else 0)

    def home(self, shard: int) -> int:
        """The rank a shard stands on."""
        return shard + (self.workers if self.own_ranks else 0)

    def shard_of(self, rank: int) -> int | None:
        """The shard on a rank, if any."""
        shard = rank - (self.workers if self.own_ranks else 0)
        return shard if 0 <= shard < self.servers else None

    def push_order(self, worker: int) -> list[int]:
        """The order in which a worker pushes its shards: each worker begins with another one."""
        return [(worker + 1 + i) % self.servers for i in range(self.servers)]

    def sizes(self, numel: int) -> list[int]:
        """Elements of each shard: the first ones are an element longer where it does not divide."""
        return [numel // self.servers + (k < numel % self.servers) for k in range(self.servers)]


@dataclass(frozen=True)
class Times:
    """Seconds: of a worker's clock `compute`; of a shard `update` and `answer`; of its messages `port`
    (occupies the sender), `latency`.
    """

    compute: Callable[[int, int], float]
    update: Callable[[int], float]
    answer: Callable[[int], float]
    port: Callable[[int, int, int], float]
    latency: Callable[[int, int], float]


@dataclass(frozen=True)
class Arrivals:
    """A script a rank, where it came from, and how long it says the run takes (None: it says nothing of
    time).
    """

    layout: Layout
    scripts: tuple[tuple[int, ...], ...]
    source: str
    makespan: float | None = None
    applied: tuple[tuple[float, ...], ...] = field(
        default=(), compare=False
    )  # shard -> when each push was in its weights

    @property
    def info(self) -> dict[str, Any]:
        """For graph.info: the order in this recording is fixed, though elsewhere it would be another."""
        return {"order_fixed": True, "order_from": self.source} if self.layout.staleness is not None else {}


def synchronous(layout: Layout) -> Arrivals:
    """Everybody works, every server takes all pushes in rank order: the order of arrival makes no
    difference.
    """
    everyone = tuple(range(layout.workers))
    scripts = []
    for rank in range(layout.ranks):
        clock = ((WORK,) if rank < layout.workers else ()) + (
            everyone if layout.shard_of(rank) is not None else ()
        )
        scripts.append(clock * layout.clocks)
    return Arrivals(layout, tuple(scripts), "rank order")


def arrive(layout: Layout, times: Times, source: str) -> Arrivals:
    """Run the clock: who is served when, if everybody does what is ready first."""
    w, k, s = layout.workers, layout.servers, layout.staleness or 0
    free, lane, scripts = (
        [0.0] * layout.ranks,
        [0.0] * layout.ranks,
        [list[int]() for _ in range(layout.ranks)],
    )
    done, missing, clock = (
        np.zeros((k, w), int),
        [0] * w,
        [0] * w,
    )  # pushes served; answers a worker waits for
    waiting: list[set[int]] = [set() for _ in range(k)]  # served and not yet answered
    ready, applied, last = [0.0] * w, [list[float]() for _ in range(k)], 0.0
    queue: list[tuple[float, int, int]] = [(0.0, worker, WORK) for worker in range(w)]  # ready, rank, what

    def send(shard: int, src: int, dst: int, at: float) -> float:
        if src == dst:
            return at
        lane[src] = max(lane[src], at) + times.port(src, dst, shard)
        return lane[src] + times.latency(src, dst)

    while queue:
        task = min(queue, key=lambda t: (max(free[t[1]], t[0]), *t))
        queue.remove(task)
        at, rank, what = max(free[task[1]], task[0]), task[1], task[2]
        scripts[rank].append(what)
        if what == WORK:
            at += times.compute(rank, clock[rank])
            clock[rank], missing[rank] = clock[rank] + 1, k
            queue += [
                (send(shard, rank, layout.home(shard), at), layout.home(shard), rank)
                for shard in layout.push_order(rank)
            ]
        else:
            shard = layout.shard_of(rank)
            assert shard is not None
            at += times.update(shard)
            applied[shard].append(at)
            done[shard, what] += 1
            waiting[shard].add(what)
            for v in [v for v in sorted(waiting[shard]) if done[shard, v] - done[shard].min() <= s]:
                waiting[shard].remove(v)
                at += times.answer(shard)
                ready[v], missing[v] = max(ready[v], send(shard, rank, v, at)), missing[v] - 1
                last = max(last, ready[v])
                if not missing[v] and clock[v] < layout.clocks:
                    queue.append((ready[v], v, WORK))
        free[rank] = at
    return Arrivals(layout, tuple(map(tuple, scripts)), source, max(last, *free), tuple(map(tuple, applied)))


def seeded(layout: Layout, seed: int) -> Arrivals:
    """Random times: any order that can happen may come out."""
    draw = np.random.default_rng([seed, 36])
    some = lambda *_: float(draw.exponential())  # noqa: E731
    made = arrive(layout, Times(lambda *_: 3 * some(), some, some, some, some), f"seed {seed}")
    return Arrivals(layout, made.scripts, made.source)
