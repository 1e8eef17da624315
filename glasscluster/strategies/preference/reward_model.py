"""A reward model learned from comparisons of two answers to a prompt.

Follows Bradley and Terry (1952), Stiennon et al. (2009.01325) and InstructGPT (2203.02155, equation 1).
Symbols: answer w was preferred to l; r_w and r_l are the model's scores of them.

    P(w is preferred to l) = σ(r_w − r_l)           L = − mean log σ(r_w − r_l)

The loss depends only on differences, so a reward is determined up to a constant, and nothing fixes its scale
relative to a KL in nats. Therefore the scores are standardized to mean 0 and variance 1 on answers of the
policy that will be tuned (Ziegler et al., 1909.08593, section 2).

But: InstructGPT takes all pairs of K = 4 to 9 ranked answers to a prompt in one step; here pairs are drawn
one by one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def loss(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """Mean negative log-likelihood of the comparisons, a scalar, from scores [B] of both answers."""
    return -logsigmoid(chosen_B - rejected_B).mean()


def agreement(chosen_B: Tensor, rejected_B: Tensor) -> float:
    """The share of comparisons, from 0 to 1, in which the preferred answer has the higher score."""
    return float((chosen_B > rejected_B).double().mean())


@torch.no_grad()
def standardize(head: Any, scores_B: Tensor) -> None:
    """Rescale a scalar head in place so that these scores [B] of its model get mean 0 and variance 1."""
    scale = scores_B.std()
    head.scalar_weight.div_(scale)
    head.scalar_bias.sub_(scores_B.mean()).div_(scale)
