"""Proximal policy optimization for language models, with a reward that contains the KL to a reference.

Follows Schulman et al. (1707.06347), Ziegler et al. (1909.08593) and InstructGPT (2203.02155). Symbols: token
t of T in an answer, π_θ the policy that is trained, π_old the one that sampled the answer, π_ref the
reference, v_t the critic's value before token t, R the score of the whole answer, β weight of the KL, ε clip
range, γ discount, λ of generalized advantage estimation (GAE).

    r_t = − β (log π_old(o_t) − log π_ref(o_t)) + [t = T] R                     2203.02155, section 3.5
    δ_t = r_t + γ v_{t+1} − v_t  A_t = δ_t + γ λ A_{t+1}  target_t = A_t + v_t  GAE, 1506.02438, equation 16
    ρ_t = π_θ(o_t) / π_old(o_t)
    L_policy = − mean min(ρ_t A_t, clip(ρ_t, 1 − ε, 1 + ε) A_t)                 1707.06347, equation 7
    L_value  = ½ mean max((v − target)², (clip(v, v_old ± ε_v) − target)²)      openai/lm-human-preferences,
                                                                                train_policy.py

Where ρ_t has left the clip range in the direction that increases the advantage term, the minimum is constant:
the token has no gradient and the policy moves no further. A mask [B, T] is 1 for tokens of an answer and 0
for padding, which comes last. Means are over all answer tokens of the batch.

But: no entropy bonus, no adaptive β.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of x over the elements where the mask is 1, or 0 if there are none: a scalar."""
    return (x * mask).sum() / mask.sum().clamp(min=1)


def token_rewards(
    scores_B: Tensor, old_BT: Tensor, reference_BT: Tensor, mask_BT: Tensor, beta: float
) -> Tensor:
    """r_t: the KL penalty on every token, and the answer's score added on its last one: [B, T].

    `scores_B` [B] are of whole answers; `old_BT` and `reference_BT` are log-probabilities [B, T]. An empty
    answer has no token that could be rewarded.
    """
    rewards = -beta * (old_BT - reference_BT) * mask_BT
    last = (mask_BT.sum(1, keepdim=True).long() - 1).clamp(min=0)
    return rewards.scatter_add(1, last, scores_B[:, None].to(rewards.dtype)) * mask_BT


def advantages(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation, computed from the last token backwards.

    Returns:
        The advantages A [B, T] and the critic's targets [B, T].
    """
    steps, after, value_after = [], torch.zeros_like(rewards_BT[:, 0]), torch.zeros_like(rewards_BT[:, 0])
    for t in range(rewards_BT.shape[1] - 1, -1, -1):
        here = mask_BT[:, t]
        delta = rewards_BT[:, t] + gamma * value_after - values_BT[:, t]
        after = (delta + gamma * lam * after) * here
        value_after = values_BT[:, t] * here
        steps.append(after)
    made = torch.stack(steps[::-1], 1)
    return made, made + values_BT * mask_BT


def whitened(x: Tensor, mask: Tensor) -> Tensor:
    """Scale x to mean 0 and variance 1 over the elements where the mask is 1.

    The size of a step then does not depend on the scale of the rewards.
    """
    centred = (x - masked_mean(x, mask)) * mask
    return centred * torch.rsqrt(masked_mean(centred**2, mask) + 1e-8)


def ratios(new_BT: Tensor, old_BT: Tensor) -> Tensor:
    """ρ_t = π_θ / π_old of each token, from log-probabilities [B, T]."""
    return (new_BT - old_BT).exp()


def policy_loss(
    new_BT: Tensor, old_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, clip: float
) -> Tensor:
    """The policy's loss, a scalar: minus the clipped surrogate objective, from log-probabilities [B, T]."""
    ratio = ratios(new_BT, old_BT)
    return -masked_mean(
        torch.minimum(ratio * advantages_BT, ratio.clamp(1 - clip, 1 + clip) * advantages_BT), mask_BT
    )


def value_loss(new_BT: Tensor, old_BT: Tensor, targets_BT: Tensor, mask_BT: Tensor, clip: float) -> Tensor:
    """The critic's loss, a scalar, from values and targets [B, T].

    For each token it takes the larger of two squared errors: that of the new value, and that of the new value
    clipped to within `clip` of the old one.
    """
    held = old_BT + (new_BT - old_BT).clamp(-clip, clip)
    return 0.5 * masked_mean(torch.maximum((new_BT - targets_BT) ** 2, (held - targets_BT) ** 2), mask_BT)
