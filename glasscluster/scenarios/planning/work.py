"""What a micro-batch costs a rank at least, layer by layer: from FLOPs alone, or from the kernels that run.

    by FLOPs      the products of matrices at the GPU's peak, what the causal mask hides deducted
    by kernels    the layers of each kind are recorded dry, one micro-batch on tp·cp·ep ranks, and replayed
    by relatives  the kernels of another layout that is cheaper for each sequence: one recording serves many

All are less than what any layout takes that has the same tp, cp, ep, micro-batch and recomputation:
adding up gradients is left out (ZeRO stages differ in it); what tensor-parallel collectives expose counts
where ranks do the same, and with cp or ep computing alone counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from glasscluster.model.config import ModelConfig
from glasscluster.scenarios.jobs.prediction import recorded_plan
from glasscluster.sim.recording.events import COMPUTE, PHASES
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import Hardware
from glasscluster.sim.time.timeline import Timeline
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.plan import Plan
from glasscluster.strategies.trainer import train_rank

OPTIMIZER_PHASE = PHASES.index("optimizer")
FORWARD = PHASES.index("forward")
UPDATES = ("mul_.Tensor", "add_.Tensor", "addcmul_", "mul.Tensor", "div.Tensor", "sqrt_", "addcdiv_")
ADDS_UP = "add_.Tensor"  # in backward: a gradient is added to that of earlier micro-batches


@dataclass(frozen=True)
class Work:
    """Seconds of one micro-batch on one rank.

    Attributes:
        forward, backward: of each layer of the model.
        embedding, head: forward and backward of the model's ends.
        update: of the optimizer, for each parameter that a rank owns.
    """

    forward: tuple[float, ...]
    backward: tuple[float, ...]
    embedding: tuple[float, float] = (0.0, 0.0)
    head: tuple[float, float] = (0.0, 0.0)
    update: float = 0.0

    def scaled(self, factor: float) -> Work:
        """The same of more or fewer sequences; the update is the same."""
        return Work(
            tuple(factor * f for f in self.forward),
            tuple(factor * b for b in self.backward),
            (factor * self.embedding[0], factor * self.embedding[1]),
            (factor * self.head[0], factor * self.head[1]),
            self.update,
        )

    def stage(self, layers: Sequence[int], first: bool, last: bool) -> tuple[float, float]:
        """Forward and backward of a pipeline stage."""
        both = []
        for side, each in enumerate((self.forward, self.backward)):
            ends = self.embedding[side] * first + self.head[side] * last
            both.append(sum(each[layer] for layer in layers) + ends)
        return both[0], both[1]


def by_flops(plan: Plan, model: ModelConfig, hw: Hardware) -> Work:
    """Work from the products of matrices alone."""
    rate = hw.gpu.peak(plan.precision) * plan.tp * plan.cp / plan.micro_batch
    head, *layers = (flops / rate for flops in _flops_of_a_sequence(model))
    again = 1 if plan.recompute == "full" and plan.recompute_nth == 1 else 0
    return Work(tuple(layers), tuple((2 + again) * f for f in layers), (0.0, 0.0), (head, 2 * head))


@lru_cache(maxsize=64)
def _flops_of_a_sequence(model: ModelConfig) -> tuple[float, ...]:
    """Forward's FLOPs of the head, and of each layer."""
    head = 2 * model.hidden * model.vocab * model.seq
    upto = [_part(model, n).causal_flops(model.seq) / 3 for n in range(1, model.layers + 1)]
    return head, *(float(x) for x in np.diff([head, *upto]))


def relative_of(plan: Plan) -> dict[str, Any]:
    """What changes a plan into one that costs less for each sequence: without recomputation, and with a whole
    step in one micro-batch, where launches and what is read once weigh least.
    """
    changed: dict[str, Any] = {"micro_batch": plan.global_batch, "recompute": "none"}
    return changed | {"recompute_modules": "core_attn", "recompute_nth": 1}


def by_kernels(plan: Plan, model: ModelConfig, hw: Hardware) -> Work:
    """Work from a dry recording of as few layers as show all kinds, replayed on the hardware."""
    kinds = [(model.routed(layer), model.window_of(layer)) for layer in range(model.layers)]
    few = max(min(2, model.layers), max(kinds.index(kind) for kind in set(kinds)) + 1)
    alone = recorded_plan(plan, hw).model_copy(
        update={
            "dp": plan.ep,
            "pp": 1,
            "zero": 0,
            "schedule": "1f1b",
            "virtual_stages": 1,
            "shard": 0,
            "layers_per_stage": None,
            "global_batch": plan.micro_batch * plan.ep,
            "offload": "none",
        }
    )
    job = Job(alone, _part(model, few), steps=1)
    run = Cluster(hw, alone.gpus, "dry", memory_bytes=None).run(train_rank, job, info=job_info(job))
    timeline = run.replay(hw, precision=plan.precision)
    elements = run.results[0].state_bytes["parameters"] / alone.width
    waits = plan.cp == plan.ep == 1
    ranks = [_rank(timeline, rank, few, waits) for rank in range(0, alone.gpus, plan.tp)]
    slowest = max(ranks, key=lambda seconds: seconds.sum())
    least = {
        kind: slowest[:, [i for i in range(few) if kinds[i] == kind]].min(axis=1) for kind in set(kinds[:few])
    }
    forward, backward = zip(*(tuple(map(float, least[kind])) for kind in kinds), strict=True)
    embedding, head = ((float(f), float(b)) for f, b in slowest[:, few:].T)
    update = 0.0 if plan.offload == "optimizer" else _updates(timeline, hw) / elements
    return Work(forward, backward, embedding, head, update)


def _part(model: ModelConfig, layers: int) -> ModelConfig:
    """The model's first layers."""
    return model.model_copy(update={"layers": layers})


def _rows(timeline: Timeline, rank: int) -> np.ndarray:
    """A rank's computing events, in the order in which they run."""
    graph = timeline.graph
    rows = np.flatnonzero((graph.rank == rank) & (graph.kind == COMPUTE))
    return rows[np.argsort(timeline.start[rows], kind="stable")]


def _rank(timeline: Timeline, rank: int, layers: int, waits: bool) -> np.ndarray:
    """Seconds of [forward, backward] x [each layer, embedding, head] on a rank; with what it waits for."""
    graph, out, before, seen = timeline.graph, np.zeros((2, layers + 2)), 0.0, False
    for row in _rows(timeline, rank):
        start, end, phase = timeline.start[row], timeline.end[row], graph.phase[row]
        if phase == OPTIMIZER_PHASE:
            break
        side, layer = int(phase != FORWARD), int(graph.layer[row])
        seen = (seen or layer >= 0) if side == 0 else seen
        if side and layer >= 0:
            seen = False  # behind the layers, backward has left the head
        column = layer if layer >= 0 else layers + int(seen)
        adds_up = side == 1 and graph.names[graph.op[row]] == ADDS_UP
        out[side, column] += (0.0 if adds_up else end - start) + (max(0.0, start - before) if waits else 0.0)
        before = max(before, end)
    return out


def _updates(timeline: Timeline, hw: Hardware) -> float:
    """Seconds in which the optimizer moves a rank's whole state, without launches."""
    graph, rows = timeline.graph, _rows(timeline, 0)
    mine = [
        row for row in rows if graph.phase[row] == OPTIMIZER_PHASE and graph.names[graph.op[row]] in UPDATES
    ]
    return float(sum(timeline.end[row] - timeline.start[row] - hw.gpu.launch_s for row in mine))


FLOPS, RELATIVES, KERNELS = LEVELS = range(3)  # each as close as the one before it, or closer


class Works:
    """Work by level and by what layouts have in common, each made once.

    Args:
        model: the model.
        hw: the hardware.
    """

    def __init__(self, model: ModelConfig, hw: Hardware) -> None:
        self.model, self.hw = model, hw
        self.made: dict[tuple[object, ...], Work] = {}

    def of(self, plan: Plan, level: int) -> Work:
        """The work of a plan at a level."""
        if level == RELATIVES:  # one recording for all micro-batches
            whole = self.of(plan.model_copy(update=relative_of(plan)), KERNELS)
            return whole.scaled(plan.micro_batch / plan.global_batch)
        same = (plan.tp, plan.cp, plan.ep, plan.sequence_parallel)
        key = (level, *same, plan.micro_batch, plan.recompute)
        if key not in self.made:
            self.made[key] = (by_flops if level == FLOPS else by_kernels)(plan, self.model, self.hw)
        return self.made[key]
