"""The arrival plan of a virtual clock: times are those of one clock of the same program, replayed.

arrivals.py has the plan itself and the queue that makes it from such times; the program is
parameter_server.py's.
"""

from __future__ import annotations

import numpy as np

from glasscluster.sim.recording.events import COMPUTE, OPTIMIZER
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import Hardware, hardware
from glasscluster.strategies.exchange.arrivals import Arrivals, Layout, Times, arrive, synchronous
from glasscluster.strategies.exchange.parameter_server import exchange
from glasscluster.strategies.job import Job

ANSWERING = ("clone", "copy_")  # what a server computes to answer: everything else it computes is the update


def virtual(
    job: Job,
    layout: Layout,
    clock: str | Hardware = "classroom",
    *,
    slow_ranks: dict[int, float] | None = None,
    jitter: float = 0.0,
) -> Arrivals:
    """Times from one clock of the same program, recorded dry and replayed on `clock`.

    `slow_ranks`: rank -> how many times as long it computes; `jitter`: each gradient takes 1 + jitter·Exp(1)
    times as long (seeded).
    """
    hw = hardware(clock)
    once = Layout(
        layout.workers, layout.servers, 1, None if layout.staleness is None else 0, layout.own_ranks
    )
    run = Cluster(hw, layout.ranks, "dry", memory_bytes=None).run(
        exchange, job, synchronous(once), info={"precision": job.plan.precision}
    )
    line, graph = run.replay(hw, slow_ranks=slow_ranks), run.graph
    spent, on_server = line.end - line.start, graph.phase == OPTIMIZER
    answers = on_server & np.isin(graph.op, [i for i, n in enumerate(graph.names) if n in ANSWERING])
    width, sizes = {"fp64": 8}.get(job.plan.precision, 4), layout.sizes(job.model.parameters())
    draw = np.random.default_rng([job.seed, 36])
    slowdown = 1 + jitter * draw.exponential(size=(layout.workers, layout.clocks))

    def total(rank: int, rows: np.ndarray) -> float:
        return float(spent[(graph.rank == rank) & (graph.kind == COMPUTE) & rows].sum())

    work = [total(r, ~on_server) for r in range(layout.workers)]
    update = [total(layout.home(k), on_server & ~answers) / layout.workers for k in range(layout.servers)]
    answer = [total(layout.home(k), answers) / layout.workers for k in range(layout.servers)]
    times = Times(
        lambda worker, c: work[worker] * float(slowdown[worker, c]),
        update.__getitem__,
        answer.__getitem__,
        lambda src, dst, shard: (
            hw.link(src, dst).overhead_s + sizes[shard] * width / hw.link(src, dst).bandwidth
        ),
        lambda src, dst: hw.link(src, dst).latency_s,
    )
    made = arrive(layout, times, f"virtual clock of {hw.name}")
    return (
        made
        if not jitter
        else Arrivals(
            layout, made.scripts, made.source + f", jitter {jitter:g}, seed {job.seed}", None, made.applied
        )
    )
