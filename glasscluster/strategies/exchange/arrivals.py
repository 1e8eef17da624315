"""The arrival plan: in which order pushes reach the servers. It is fixed before the run, which thus repeats.

An asynchronous server takes the push that arrives first. Which one that is depends on time, and a recording
has no time. So the order is computed beforehand on a virtual clock, and the program then follows it with real
tensors, on any backend. The times come from one of two sources:

    virtual    one clock of the same program, recorded on the dry backend and replayed on some hardware
               (virtual_clock.py)
    seeded     every computation and message takes a random time

Each rank gets a script, a list of entries that it follows in order: WORK (compute one gradient and push it),
or v (serve worker v's next push). Each server has an order of its own, because nothing synchronizes two
servers: a worker may pull one shard from before and another from after some other worker's push.

A rank does one thing at a time, in the order in which they become ready, and its messages leave one after the
other. Replay has the same rules, so a run that is replayed on the hardware of its plan takes as long as the
plan says.
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
    """Where workers and servers are, and how long they run.

    Attributes:
        workers: W workers, on ranks 0 to W - 1.
        servers: K shards of the weights, each with its server.
        clocks: gradients that each worker pushes.
        staleness: s, how many clocks a worker may be ahead of the slowest; None: synchronous, one update for
            the gradients of all workers.
        own_ranks: whether servers have ranks of their own, after the workers'; else the first K workers have
            them.

    Raises:
        InputError: for numbers that are too small, or more servers than workers to place them on.
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
        """How many ranks there are."""
        return self.workers + (self.servers if self.own_ranks else 0)

    def home(self, shard: int) -> int:
        """The rank of a shard's server."""
        return shard + (self.workers if self.own_ranks else 0)

    def shard_of(self, rank: int) -> int | None:
        """The shard whose server is on a rank; None without one."""
        shard = rank - (self.workers if self.own_ranks else 0)
        return shard if 0 <= shard < self.servers else None

    def push_order(self, worker: int) -> list[int]:
        """The order in which a worker pushes to the shards: each worker begins with a different one."""
        return [(worker + 1 + i) % self.servers for i in range(self.servers)]

    def sizes(self, numel: int) -> list[int]:
        """Elements of each shard; the first ones have one more where K does not divide `numel`."""
        return [numel // self.servers + (k < numel % self.servers) for k in range(self.servers)]


@dataclass(frozen=True)
class Times:
    """What takes how long, in seconds.

    Attributes:
        compute: (worker, clock) -> to compute a gradient.
        update: shard -> to apply a push.
        answer: shard -> to prepare an answer.
        port: (source rank, destination rank, shard) -> for which a message occupies its sender.
        latency: (source rank, destination rank) -> from then until the message is there.
    """

    compute: Callable[[int, int], float]
    update: Callable[[int], float]
    answer: Callable[[int], float]
    port: Callable[[int, int, int], float]
    latency: Callable[[int, int], float]


@dataclass(frozen=True)
class Arrivals:
    """An arrival plan.

    Attributes:
        layout: where workers and servers are.
        scripts: for each rank its entries: WORK, or the worker whose push is served.
        source: where the order comes from, for people.
        makespan: seconds that the run takes on the plan's clock; None if the times mean nothing.
        applied: for each shard, when each push was applied to its weights (seconds).
    """

    layout: Layout
    scripts: tuple[tuple[int, ...], ...]
    source: str
    makespan: float | None = None
    applied: tuple[tuple[float, ...], ...] = field(default=(), compare=False)

    @property
    def info(self) -> dict[str, Any]:
        """What a recording notes in `graph.info`: that its order was fixed by a plan, and by which one.

        Empty with a synchronous server, whose results do not depend on the order.
        """
        return {"order_fixed": True, "order_from": self.source} if self.layout.staleness is not None else {}


def synchronous(layout: Layout) -> Arrivals:
    """The plan of synchronous servers: in each clock all workers compute, then every server takes all pushes.

    It does so in rank order, as the order of arrival makes no difference.
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
    """Simulate a run on a virtual clock, in which every rank does first what is ready first.

    Args:
        layout: workers, servers, clocks and staleness.
        times: what takes how long.
        source: where the times come from, for people.

    Returns:
        The plan, with its makespan.
    """
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
    """A plan from random times: every order that can happen may come out. It says nothing of time."""
    draw = np.random.default_rng([seed, 36])
    some = lambda *_: float(draw.exponential())  # noqa: E731
    made = arrive(layout, Times(lambda *_: 3 * some(), some, some, some, some), f"seed {seed}")
    return Arrivals(layout, made.scripts, made.source)
