"""What is done with a policy: sample answers, measure its reward and its KL, make comparisons."""

from __future__ import annotations

import torch
from torch import Tensor

from glasscluster.model.decoding.generate import Generator, Sampling, listed
from glasscluster.model.gpt import GPTStage
from glasscluster.strategies.preference.rewards import SortTask
from glasscluster.strategies.preference.sequences import log_probs, log_softmax


def prompts_of(task: SortTask, count: int, group: int, seed: int) -> Tensor:
    """`count` prompts of the task, each repeated `group` times in a row: [count · group, P]."""
    return task.draw(count, torch.Generator().manual_seed(seed)).repeat_interleave(group, 0)


def sample(stage: GPTStage, prompts: Tensor, tokens: int, seed: int) -> Tensor:
    """Sample answers of `tokens` tokens from the policy: prompts [B, P] -> [B, P + tokens].

    The temperature is 1, so answers come from the policy's own distribution. There is no key-value cache, as
    answers are short.
    """
    steps = Generator(stage, prompts.tolist(), tokens, sampling=Sampling(temperature=1.0, seed=seed))
    chosen = [listed(c) for _, c in steps]
    return torch.cat([prompts, torch.tensor(chosen).T], 1)


def expected_reward(stage: GPTStage, task: SortTask) -> float:
    """The exact expected reward on the held-out prompts.

    Of a prompt exactly one answer is right, so it is the mean probability of the right answers.
    """
    prompts = task.prompts(held_out=True)
    with torch.no_grad():
        right = log_probs(stage, torch.cat([prompts, task.answers(prompts)], 1), task.answer)
    return float(right.double().sum(1).exp().mean())


def divergence(stage: GPTStage, reference: GPTStage, task: SortTask, seed: int = 0) -> float:
    """KL(policy ‖ reference) of whole answers to the held-out prompts, in nats.

    One answer to each prompt is sampled from the policy; at each of its tokens the KL over the vocabulary is
    exact, given the tokens before it.
    """
    tokens = sample(stage, task.prompts(held_out=True), task.answer, seed)
    with torch.no_grad():
        mine, other = (log_softmax(s, tokens, task.answer).double() for s in (stage, reference))
    return float((mine.exp() * (mine - other)).sum(-1).sum(1).mean())


def compared(
    stage: GPTStage, task: SortTask, prompts: int, seed: int, tries: int = 8
) -> tuple[Tensor, Tensor]:
    """Make comparisons: sample `tries` answers a prompt, and pair each wrong one with the first right one.

    The task's rule says which are right. A prompt whose answers are all right or all wrong gives no pair,
    another one up to tries - 1 (InstructGPT, 2203.02155, section 3.5, also takes all pairs of a prompt).

    Returns:
        preferred [N, S] and rejected [N, S] sequences of prompt and answer.
    """
    tokens = sample(stage, prompts_of(task, prompts, tries, seed), task.answer, seed).view(prompts, tries, -1)
    right = task.reward(tokens.flatten(0, 1)).view(prompts, tries)
    prompt, worse = torch.nonzero(right < right.amax(1, keepdim=True), as_tuple=True)
    return tokens[prompt, right.argmax(1)[prompt]], tokens[prompt, worse]
