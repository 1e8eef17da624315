"""Preference tuning as an SPMD program, and what theory says of its memory and messages."""

from __future__ import annotations

from collections.abc import Callable

from glasscluster.sim.ranks.gpu import GPU
from glasscluster.strategies.preference.cast import Cast, Tuned
from glasscluster.strategies.preference.job import LEARNS, ONLINE, Tuning
from glasscluster.strategies.preference.offline import dpo_iteration, reward_model_iteration, sft_iteration
from glasscluster.strategies.preference.online import grpo_iteration, ppo_iteration

ITERATIONS: dict[str, Callable[[Cast, int], None]] = {
    "sft": sft_iteration,
    "reward-model": reward_model_iteration,
    "dpo": dpo_iteration,
    "ppo": ppo_iteration,
    "grpo": grpo_iteration,
}


def tune_rank(gpu: GPU, job: Tuning) -> Tuned:
    """Tune on this rank (an SPMD program: every rank runs it, on every backend).

    Each iteration starts a new recording, so that it shows the last one.
    """
    cast = Cast(gpu, job)
    iteration = ITERATIONS[job.method]
    for number in range(job.iterations):
        gpu.start_step()
        iteration(cast, number)
    return cast.bring_back()


# ---- theory ------------------------------------------------------------------------------------------------
def predict_state(job: Tuning) -> dict[str, int]:
    """Eq 39: bytes of model state of each role.

    For Ψ parameters a role that learns holds 16Ψ bytes in bf16 and fp32 (32Ψ in fp64), a frozen one 2Ψ in
    bf16, 4Ψ in fp32, 8Ψ in fp64. A critic and a reward model have a scalar head of h + 1 parameters in
    addition to the trunk, and lack an untied head's V·h. A rollout on a rank of its own has a copy of the
    weights; one on the actor's rank holds nothing.
    """
    width = {"fp64": 8, "fp32": 4, "bf16": 2}[job.precision]
    learning = 4 * width if job.precision != "bf16" else 2 + 2 + 4 + 4 + 4
    psi, model = job.model.parameters(), job.model
    scalar = psi + model.hidden + 1 - (0 if model.tied else model.vocab * model.hidden)
    each = {role: scalar if role in ("critic", "reward") else psi for role in job.roles}
    if job.method in ONLINE and job.where["rollout"] == job.where["actor"]:
        each["rollout"] = 0
    return {role: n * (learning if role in LEARNS[job.method] else width) for role, n in each.items()}


def predict_traffic(job: Tuning) -> dict[str, int]:
    """Bytes that all ranks send in an iteration, by the label of their messages."""
    width = {"fp64": 8, "fp32": 4, "bf16": 2}[job.precision]
    wide, b, t, where = max(width, 4), job.answers, job.task.answer, job.where

    def between(a: str, c: str, nbytes: int) -> int:
        return nbytes if a in where and c in where and where[a] != where[c] else 0

    if job.method not in ONLINE:
        return {"reference log-probabilities": between("reference", "actor", 2 * job.prompts * wide)}
    return {
        "weights": between("actor", "rollout", job.model.parameters() * width),
        "answers": (job.ranks - 1) * b * job.task.length * 8,
        "reference log-probabilities": between("reference", "actor", b * t * wide),
        "scores": between("reward", "actor", b * wide),
        "values": between("critic", "actor", b * t * wide),
        "targets": between("actor", "critic", b * t * wide),
    }
