"""A reward model from comparisons (Bradley and Terry 1952; Stiennon et al., 2009.01325; InstructGPT
2203.02155, equation 1).

Symbols: of two answers to a prompt w was preferred to l; r_w, r_l are the model's numbers for them.

    P(w is preferred to l) = σ(r_w − r_l)           L = − mean log σ(r_w − r_l)

Only differences are seen, so a reward is known up to a constant, and what its scale is against a KL in nats
nobody said. So it is standardized on answers of the policy that will be tuned: mean 0, variance 1 (Ziegler et
al., 1909.08593, section 2). But: InstructGPT compares all pairs of K = 4 to 9 ranked answers in one step;
here a pair is a pair.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def loss(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """Negative log-likelihood of the comparisons -> scalar."""
    return -logsigmoid(chosen_B - rejected_B).mean()


def agreement(chosen_B: Tensor, rejected_B: Tensor) -> float:
    """Share of comparisons where the model prefers what was preferred."""
    return float((chosen_B > rejected_B).double().mean())


@torch.no_grad()
def standardize(head: Any, scores_B: Tensor) -> None:
    """Change a scalar head in place so that these scores of its model would have mean 0 and variance 1."""
    scale = scores_B.std()
    head.scalar_weight.div_(scale)
    head.scalar_bias.sub_(scores_B.mean()).div_(scale)
