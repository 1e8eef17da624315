"""Group relative policy optimization: the other answers to a prompt are the baseline (DeepSeekMath, Shao et
al., 2402.03300, section 4.1).

Symbols: Q prompts, G answers to each, o_i of |o_i| tokens, rewards r_1 ... r_G of one prompt, β, clip range
ε; ρ as in ppo.py.

    A_i = (r_i − mean(r)) / std(r)                     every token of o_i has the same           section 4.1.2
    k_t = π_ref/π_θ − log(π_ref/π_θ) − 1               ≥ 0, mean over π_θ's samples: the KL      equation 4
    L = − mean over answers  1/|o_i| Σ_t [ min(ρ_t A_i, clip(ρ_t, 1 − ε, 1 + ε) A_i) − β k_t ]  equation 3

No critic: 16Ψ bytes fewer than PPO, and the KL is in the loss, not in the reward. std is of all G (divided by
G), plus 1e-6: a group whose answers are all right or all wrong teaches nothing. But: 1/|o_i| makes tokens of
long answers weigh less, and std makes nearly solved prompts weigh more (Liu et al., 2503.20783).
"""

from __future__ import annotations

import torch
from torch import Tensor

from glasscluster.strategies.preference.ppo import ratios


def advantages(rewards_QG: Tensor) -> Tensor:
    """Within each group: [Q, G] -> [Q, G]."""
    centred = rewards_QG - rewards_QG.mean(1, keepdim=True)
    return centred / (rewards_QG.std(1, correction=0, keepdim=True) + 1e-6)


def kl(new_BT: Tensor, reference_BT: Tensor) -> Tensor:
    """k_t, an estimate of KL(π_θ ‖ π_ref) from one sample that is never negative: [B, T]."""
    log_ratio = reference_BT - new_BT
    return log_ratio.exp() - log_ratio - 1


def loss(
    new_BT: Tensor,
    old_BT: Tensor,
    reference_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    clip: float,
    beta: float,
) -> Tensor:
    """Mean over answers of their own mean over tokens, to be minimized -> scalar."""
    ratio, a = ratios(new_BT, old_BT), advantages_B[:, None]
    gained = torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a) - beta * kl(new_BT, reference_BT)
    return -((gained * mask_BT).sum(1) / mask_BT.sum(1).clamp(min=1)).mean()  # an empty answer's mean is 0
