"""One iteration of the methods that learn from a fixed data set: SFT, the reward model, and DPO."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glasscluster.strategies.preference import dpo, reward_model, sft
from glasscluster.strategies.preference.cast import Cast
from glasscluster.strategies.preference.job import Tuning
from glasscluster.strategies.preference.policy import prompts_of
from glasscluster.strategies.preference.sequences import log_probs, scores


def sft_iteration(cast: Cast, iteration: int) -> None:
    """Train the actor on demonstrations of this iteration's prompts."""
    job, n = cast.job, cast.job.task.answer
    with cast.gpu.unrecorded():
        tokens = demonstrations(job, iteration).to(cast.gpu.device)
    cast.learn("actor", 0, lambda model: sft.loss(log_probs(model, tokens, n), cast.mask))


def demonstrations(job: Tuning, iteration: int) -> Tensor:
    """An iteration's prompts, each followed by a demonstrated answer (which may be wrong): [B, S]."""
    seed = job.sampling_seed(iteration)
    return job.task.demonstrations(
        prompts_of(job.task, job.prompts, job.group, seed), torch.Generator().manual_seed(seed + 1)
    )


def pairs_of(job: Tuning, iteration: int) -> tuple[Tensor, Tensor]:
    """This iteration's comparisons, drawn with repetition: [prompts, S] preferred and rejected."""
    assert job.pairs is not None
    generator = torch.Generator().manual_seed(job.sampling_seed(iteration))
    rows = torch.randint(len(job.pairs[0]), (job.prompts,), generator=generator)
    return job.pairs[0][rows], job.pairs[1][rows]


def reward_model_iteration(cast: Cast, iteration: int) -> None:
    """Train the reward model on comparisons; both answers of a pair are in one batch."""
    with cast.gpu.unrecorded():
        tokens = torch.cat(pairs_of(cast.job, iteration)).to(cast.gpu.device)

    def loss(model: Any) -> Tensor:
        chosen, rejected = scores(model, tokens).chunk(2)
        return reward_model.loss(chosen, rejected)

    cast.learn("reward", 0, loss)


def dpo_iteration(cast: Cast, iteration: int) -> None:
    """Train the actor on comparisons, with the reference's log-probabilities of both answers of each pair."""
    job, n = cast.job, cast.job.task.answer
    with cast.gpu.unrecorded():
        tokens = torch.cat(pairs_of(job, iteration)).to(cast.gpu.device)
    frozen = cast.on("reference", 0, lambda model: log_probs(model, tokens, n).sum(1))
    frozen = cast.hand(frozen, (2 * job.prompts,), "reference", "actor", "reference log-probabilities")

    def loss(model: Any) -> Tensor:
        each = log_probs(model, tokens, n)
        (w, l), (reference_w, reference_l) = each.sum(1).chunk(2), frozen.chunk(2)
        made = dpo.loss(w, l, reference_w, reference_l, job.beta)
        return made + job.imitation * sft.loss(each[: job.prompts], cast.mask) if job.imitation else made

    cast.learn("actor", 0, loss)
