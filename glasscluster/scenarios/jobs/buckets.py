"""The bucket sweep: a plan is recorded dry once for each bucket size, and replayed on as many links as you
like.

Nothing is fitted: every point is a recording. The sizes worth trying follow from the parameters (overlap.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glasscluster.model.config import ModelConfig
from glasscluster.sim.ranks.mesh import GROUP_IDS
from glasscluster.sim.recording.events import BEGIN, COLLECTIVE, PURPOSES
from glasscluster.sim.run import Cluster, Run
from glasscluster.sim.time.hardware import Hardware, hardware
from glasscluster.sim.time.timeline import Timeline
from glasscluster.strategies.data import overlap
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.layout.units import units_of
from glasscluster.strategies.plan import Plan
from glasscluster.strategies.trainer import train_rank


@dataclass(frozen=True)
class Swept:
    """One bucket size: how many buckets it makes, when the last is reduced, the step's seconds, and where they
    go: the mean breakdown of the ranks, which adds up to the step.
    """

    size: int
    buckets: int
    end_s: float
    step_s: float
    breakdown_s: dict[str, float]


def every_size(plan: Plan, model: ModelConfig) -> list[int]:
    """The bucket sizes, in bytes, that group this model's parameters differently: one for each grouping."""
    return overlap.bucket_sizes(
        [m.parameter.numel() * m.parameter.element_size() for m in _members(plan, model)]
    )


def _members(plan: Plan, model: ModelConfig) -> list:
    return [m for u in units_of(plan, model, 0) for m in u.members]


def record(plan: Plan, model: ModelConfig, size: int) -> Run:
    """Record a step of the plan dry, with every bucket (the first one too) of one size in bytes."""
    layout = plan.model_copy(update={"bucket": size, "first_bucket": size})
    job = Job(layout, model, steps=1)
    return Cluster("classroom", layout.gpus, "dry", memory_bytes=None).run(
        train_rank, job, info=job_info(job)
    )


def sweep(
    plan: Plan, model: ModelConfig, clusters: Sequence[str | Hardware], sizes: Sequence[int] | None = None
) -> list[list[Swept]]:
    """Time every bucket size on every cluster: a list by cluster of lists by size.

    `sizes` are bytes; None takes every size that makes different buckets.
    """
    runs = [(size, record(plan, model, size)) for size in sizes or every_size(plan, model)]
    return [[_judge(size, run.replay(hardware(cluster))) for size, run in runs] for cluster in clusters]


def best(swept: Sequence[Swept]) -> Swept:
    """The size whose last bucket is reduced soonest; among equals the largest, which sends the fewest
    messages.
    """
    return min(swept, key=lambda s: (s.end_s, -s.size))


def reductions(timeline: Timeline, rank: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A rank's gradient buckets in order: when each was ready and when it was reduced, in seconds, and its
    bytes.
    """
    graph = timeline.graph
    mine = (
        (graph.rank == rank)
        & (graph.group == GROUP_IDS["dp"])
        & (graph.purpose == PURPOSES.index("gradients"))
    )
    begun, done = (
        overlap.in_order(graph, np.flatnonzero(mine & (graph.kind == kind))) for kind in (BEGIN, COLLECTIVE)
    )
    return timeline.start[begun], timeline.end[done], graph.bytes[done]


def _judge(size: int, timeline: Timeline) -> Swept:
    _, done, _ = reductions(timeline)
    of_ranks = [timeline.breakdown(rank) for rank in range(timeline.graph.ranks)]
    mean = {key: float(np.mean([breakdown[key] for breakdown in of_ranks])) for key in of_ranks[0]}
    return Swept(size, len(done), float(done.max()), timeline.makespan, mean)
