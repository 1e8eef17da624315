"""The reference: the same tuning in one process, without ranks, messages and flat buffers.

Losses, rewards and weights of a run on ranks must equal its results; `compare` says by how much they differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from glasscluster.sim.ranks.one_thread import one_thread
from glasscluster.strategies.judge.check import difference, largest
from glasscluster.strategies.preference import dpo, grpo, ppo, reward_model, sft
from glasscluster.strategies.preference.cast import Tuned
from glasscluster.strategies.preference.held import make_model
from glasscluster.strategies.preference.job import LEARNS, Tuning
from glasscluster.strategies.preference.offline import demonstrations, pairs_of
from glasscluster.strategies.preference.policy import prompts_of, sample
from glasscluster.strategies.preference.sequences import log_probs, scores, values


@dataclass
class Alone:
    """What the reference computed.

    Attributes:
        losses: role -> the loss of every update.
        rewards: of every iteration, the mean reward by the task's rule.
        kl: of every iteration, the mean of log π_old − log π_ref over whole answers.
        weights: role -> weights at the end by full name, of the roles that learn.
    """

    losses: dict[str, list[float]] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)


@one_thread()
def in_one_process(job: Tuning) -> Alone:
    """Run a job in one process, in float64 whatever its precision, and without a key-value cache."""
    n, out = job.task.answer, Alone()
    models = {role: make_model(role, job, dtype=torch.float64) for role in job.roles if role != "rollout"}
    parameters = {role: [p for p, _ in models[role].full_names().values()] for role in LEARNS[job.method]}
    moments = {
        role: [[torch.zeros_like(p) for _ in range(2)] for p in mine] for role, mine in parameters.items()
    }
    mask = torch.ones(job.answers, n, dtype=torch.float64)

    def update(role: str, loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, parameters[role])
        norm = sum(float((g * g).sum()) for g in gradients) ** 0.5
        factor = min(1.0, job.max_norm / (norm + 1e-6)) if job.max_norm else 1.0
        losses = out.losses.setdefault(role, [])
        losses.append(float(loss.detach()))
        with torch.no_grad():
            for p, g, state in zip(parameters[role], gradients, moments[role], strict=True):
                job.optimizer(role).update(p, g * factor, state, len(losses))

    for i in range(job.iterations):
        if job.method == "sft":
            update("actor", sft.loss(log_probs(models["actor"], demonstrations(job, i), n), mask))
        elif job.method == "reward-model":
            w, l = pairs_of(job, i)
            update("reward", reward_model.loss(scores(models["reward"], w), scores(models["reward"], l)))
        elif job.method == "dpo":
            w, l = pairs_of(job, i)
            with torch.no_grad():
                frozen_w, frozen_l = (log_probs(models["reference"], x, n).sum(1) for x in (w, l))
            policy_w, policy_l = (log_probs(models["actor"], x, n) for x in (w, l))
            preferred = dpo.loss(policy_w.sum(1), policy_l.sum(1), frozen_w, frozen_l, job.beta)
            update("actor", preferred - job.imitation * policy_w.mean())
        else:
            _online(job, i, models, mask, update, out)
    out.weights = {
        r: {k: p.detach() for k, (p, _) in models[r].full_names().items()} for r in LEARNS[job.method]
    }
    return out


def _online(job: Tuning, i: int, models: dict[str, Any], mask: Tensor, update: Any, out: Alone) -> None:
    """Run iteration `i` of PPO or GRPO: sample answers, score them, and `update(role, loss)`."""
    n, actor, seed = job.task.answer, models["actor"], job.sampling_seed(i)
    tokens = sample(actor, prompts_of(job.task, job.prompts, job.group, seed), n, seed)
    right = job.task.reward(tokens)
    with torch.no_grad():
        old, reference = log_probs(actor, tokens, n), log_probs(models["reference"], tokens, n)
        score = right if job.reward == "rule" else scores(models["reward"], tokens)
    out.rewards.append(float(right.mean()))
    out.kl.append(float((old - reference).sum(1).mean()))
    if job.method == "grpo":
        advantages = grpo.advantages(score.view(job.prompts, job.group)).view(-1)
        for _ in range(job.epochs):
            update(
                "actor",
                grpo.loss(log_probs(actor, tokens, n), old, reference, advantages, mask, job.clip, job.beta),
            )
        return
    critic = models["critic"]
    before = values(critic, tokens, n).detach()
    raw, targets = ppo.advantages(
        ppo.token_rewards(score, old, reference, mask, job.beta), before, mask, job.gamma, job.lam
    )
    for _ in range(job.epochs):
        update(
            "actor",
            ppo.policy_loss(log_probs(actor, tokens, n), old, ppo.whitened(raw, mask), mask, job.clip),
        )
        update("critic", ppo.value_loss(values(critic, tokens, n), before, targets, mask, job.clip))


def compare(results: list[Tuned], alone: Alone) -> dict[str, float]:
    """The largest differences between what ranks brought back and the reference.

    Losses are compared relatively, rewards and KL absolutely, weights by check.difference with floor 1.

    Raises:
        AssertionError: if no rank brought back the weights of a role that learns.
    """
    loss, weight, roles = [0.0], [0.0], set()
    for result in results:
        for role, losses in result.losses.items():
            loss += [abs(a - b) / max(abs(b), 1e-3) for a, b in zip(losses, alone.losses[role], strict=True)]
        for role, weights in result.weights.items():
            roles.add(role)
            weight += [difference(t.double(), alone.weights[role][name], 1.0) for name, t in weights.items()]
        for mine, theirs in ((result.rewards, alone.rewards), (result.kl, alone.kl)):
            loss += [abs(a - b) for a, b in zip(mine, theirs, strict=True)] if mine else []
    if roles != set(alone.weights):
        raise AssertionError(f"no rank brought back the weights of {sorted(set(alone.weights) - roles)}")
    return {"max_rel_loss_diff": largest(loss), "max_rel_weight_diff": largest(weight)}
