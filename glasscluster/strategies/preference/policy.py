"""A policy writes answers, and is judged without sampling where that is possible."""

from __future__ import annotations

import torch
from torch import Tensor

from glasscluster.model.decoding.generate import Generator, Sampling, listed
from glasscluster.model.gpt import GPTStage
from glasscluster.strategies.preference.rewards import SortTask
from glasscluster.strategies.preference.sequences import log_probs, log_softmax


def prompts_of(task: SortTask, count: int, group: int, seed: int) -> Tensor:
    """[count · group, P]: each prompt `group` times in a row."""
    return task.draw(count, torch.Generator().manual_seed(seed)).repeat_interleave(group, 0)


def sample(stage: GPTStage, prompts: Tensor, tokens: int, seed: int) -> Tensor:
    """Answers at temperature 1, the policy's own distribution: prompts [B, P] -> [B, P + tokens]. So few
    tokens need no cache.
    """
    steps = Generator(stage, prompts.tolist(), tokens, sampling=Sampling(temperature=1.0, seed=seed))
    chosen = [listed(c) for _, c in steps]
    return torch.cat([prompts, torch.tensor(chosen).T], 1)


def expected_reward(stage: GPTStage, task: SortTask) -> float:
    """Exact on the held-out prompts: one answer is right, so it is the mean probability of that answer."""
    prompts = task.prompts(held_out=True)
    with torch.no_grad():
        right = log_probs(stage, torch.cat([prompts, task.answers(prompts)], 1), task.answer)
    return float(right.double().sum(1).exp().mean())


def divergence(stage: GPTStage, reference: GPTStage, task: SortTask, seed: int = 0) -> float:
    """KL(policy ‖ reference) of whole answers to the held-out prompts, in nats.

    Prefixes are sampled from the policy, one answer a prompt; at each of its tokens the KL over the
    vocabulary is exact.
    """
    tokens = sample(stage, task.prompts(held_out=True), task.answer, seed)
    with torch.no_grad():
        mine, other = (log_softmax(s, tokens, task.answer).double() for s in (stage, reference))
    return float((mine.exp() * (mine - other)).sum(-1).sum(1).mean())


def compared(
    stage: GPTStage, task: SortTask, prompts: int, seed: int, tries: int = 8
) -> tuple[Tensor, Tensor]:
    """Comparisons: of `tries` answers to a prompt, each that the rule calls wrong beside the first that it
    calls right.

    Returns (preferred [N, S], rejected [N, S]): a prompt whose answers are all alike gives no pair, another
    up to tries - 1 of them (InstructGPT 2203.02155, section 3.5, takes all pairs of a prompt too).
    """
    tokens = sample(stage, prompts_of(task, prompts, tries, seed), task.answer, seed).view(prompts, tries, -1)
    right = task.reward(tokens.flatten(0, 1)).view(prompts, tries)
    prompt, worse = torch.nonzero(right < right.amax(1, keepdim=True), as_tuple=True)
    return tokens[prompt, right.argmax(1)[prompt]], tokens[prompt, worse]
