"""Arrival plans from a virtual clock: what takes how long is read from a dry run on some hardware, replayed.

One clock of parameter_server.py (a gradient of every worker, and its updates) is recorded on the dry backend
and replayed; arrivals.py makes the plan from these times.
"""

from __future__ import annotations

import numpy as np

from glasscluster.sim.recording.events import COMPUTE, OPTIMIZER
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import Hardware, hardware
from glasscluster.strategies.exchange.arrivals import Arrivals, Layout, Times, arrive, synchronous
from glasscluster.strategies.exchange.parameter_server import exchange
from glasscluster.strategies.job import Job

# operations of a server that belong to an answer; all its others belong to the update
ANSWERING = ("clone", "copy_")


def virtual(
    job: Job,
    layout: Layout,
    clock: str | Hardware = "classroom",
    *,
    slow_ranks: dict[int, float] | None = None,
    jitter: float = 0.0,
) -> Arrivals:
    """Make an arrival plan from the times of one clock, recorded on the dry backend and replayed on `clock`.

    Args:
        job: what is trained.
        layout: workers, shards, clocks and staleness.
        clock: the hardware, by name or as it is.
        slow_ranks: rank -> how many times as long it computes.
        jitter: each gradient takes 1 + jitter·Exp(1) times as long, drawn from the job's seed.

    Returns:
        The plan. It says how long the run takes (in seconds), unless there is jitter.
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
