"""Is it the same training? Every tensor of every rank against one device, in float64.

The difference of two tensors is max|a-b| / max(max|b|, floor): for gradients the floor is 1e-3 of the largest
|gradient| of that step (a key bias has a mathematically zero gradient), for weights 1. Nothing is skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from typing import Any

from torch import Tensor

from glasscluster.base.text import Said
from glasscluster.model.adamw import Optimizer
from glasscluster.model.config import ModelConfig
from glasscluster.model.text.mixture import Mixture
from glasscluster.sim.ranks.one_thread import one_thread
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge.single_device import Reference, train_one_device
from glasscluster.strategies.numerics.bad_batch import SkipRule
from glasscluster.strategies.plan import Plan, make_plan
from glasscluster.strategies.result import RankResult

TOLERANCE = 1e-10
CHECKED_STEPS = 3
WHAT = {"gradient": Said("gradient", "梯度"), "weight": Said("weight", "权重"), "loss": Said("loss", "损失")}
# `compare` returns max_rel_SHORT_diff
SHORT = {"gradient": "grad", "weight": "weight", "loss": "loss"}


def check_job(job: Job) -> Job:
    """The same plan in float64 for the first steps, keeping gradients and weights."""
    plan = job.plan.model_copy(update={"precision": "fp64"})
    return replace(job, plan=plan, steps=min(job.steps, CHECKED_STEPS), capture=True)


def reference_for(job: Job) -> Reference:
    """One device's training of a (check) job. Plans that differ only in layout share it."""
    plan = job.plan
    return _reference(
        job.model,
        plan.global_batch,
        job.steps,
        job.data,
        job.seed,
        job.optimizer,
        plan.clip,
        job.weights,
        plan.skip_rule,
        job.files,
    )


@lru_cache(maxsize=2)
def _reference(
    model: ModelConfig,
    global_batch: int,
    steps: int,
    data: str | Mixture | None,
    seed: int,
    optimizer: Optimizer,
    clip: float,
    weights: str | None,
    skip: SkipRule,
    _files: tuple[Any, ...],
) -> Reference:
    with one_thread():
        alone = Job(make_plan(global_batch=global_batch), model, steps, data, seed)
        batches, documents = (
            [alone.batch(s) for s in range(steps)],
            [alone.documents(s) for s in range(steps)],
        )
        return train_one_device(
            model, batches, optimizer, clip, seed, weights=weights, documents=documents, skip=skip
        )


def difference(a: Tensor, b: Tensor, floor: float) -> float:
    """max|a-b| / max(max|b|, floor); infinite when shapes differ or a value is not finite."""
    if a.shape != b.shape:
        return float("inf")
    if not a.numel():
        return 0.0
    scale = max(float(b.abs().max()), floor)
    worst = float((a - b).abs().max()) / scale if scale else float((a - b).abs().max())
    return worst if worst == worst else float("inf")


def largest(differences: Iterable[float]) -> float:
    """The largest; infinite when one is not a number, which `max` would pass over."""
    values = list(differences)
    return float("inf") if any(d != d for d in values) else max(values)


def digest(results: Sequence[RankResult]) -> str:
    """sha256 over every rank's weights after the last checked step: equal on two backends means equal in
    every bit.
    """
    sha = sha256()
    for result in results:
        for name, tensor in sorted(result.weights[-1].items()):
            sha.update(name.encode())
            sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def compare(results: Sequence[RankResult], reference: Reference, plan: Plan) -> dict[str, Any]:
    """Largest differences over ranks, steps and tensors, and which tensor was worst."""
    worst = {"grad": 0.0, "weight": 0.0, "loss": 0.0}
    by_step: dict[str, list[dict[str, float]]] = {
        k: [{} for _ in reference.losses] for k in ("grad", "weight")
    }
    where = {"grad": "", "weight": ""}
    stages: dict[int, set[str]] = {}
    for rank, result in enumerate(results):
        tp_rank, stage, data_rank = (
            rank % plan.tp,
            rank // (plan.data_ranks * plan.tp),
            rank // plan.tp % plan.data_ranks,
        )
        if not len(result.gradients) == len(result.weights) == len(reference.losses):
            raise AssertionError(
                f"rank {rank} brought back {len(result.weights)} steps of {len(reference.losses)}"
            )
        for kind, mine, theirs in (
            ("grad", result.gradients, reference.gradients),
            ("weight", result.weights, reference.weights),
        ):
            for step, (tensors, whole) in enumerate(zip(mine, theirs, strict=True)):
                floor = 1e-3 * max(float(g.abs().max()) for g in whole.values()) if kind == "grad" else 1.0
                for name, tensor in tensors.items():
                    shard = reference.shards[name]
                    expected = (
                        whole[name]
                        if shard is None
                        else shard.take(whole[name], tp_rank, plan.tp, data_rank % plan.ep, plan.ep)
                    )
                    d = difference(tensor.double().cpu(), expected, floor)
                    by_step[kind][step][name] = max(d, by_step[kind][step].get(name, 0.0))
                    if d > worst[kind]:
                        worst[kind], where[kind] = d, f"{name}, rank {rank}, step {step}"
                stages.setdefault(stage, set()).update(tensors)
        for loss, expected_loss in zip(result.losses, reference.losses, strict=True):
            scale = abs(expected_loss) or 1.0  # 0 where no token carries loss
            worst["loss"] = largest([worst["loss"], abs(float(loss) - expected_loss) / scale])
    missing = set(reference.shards) - set().union(*stages.values())
    if missing:
        raise AssertionError(f"no rank holds {sorted(missing)}")
    return {
        "max_rel_loss_diff": worst["loss"],
        "max_rel_grad_diff": worst["grad"],
        "max_rel_weight_diff": worst["weight"],
        "weights_sha256": digest(results),
        "worst_gradient": where["grad"],
        "worst_weight": where["weight"],
        "reference_losses": reference.losses,
        "checked_steps": len(reference.losses),
        "losses": [float(x) for x in results[-1].losses],
        "by_step": by_step,  # kind -> one {tensor: largest difference over ranks} a step
    }
