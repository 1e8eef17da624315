"""Group relative policy optimization: the mean reward of a prompt's answers is the baseline, not a critic.

Follows DeepSeekMath (Shao et al., 2402.03300, section 4.1). Symbols: Q prompts, G answers o_i of |o_i| tokens
to each, rewards r_1 ... r_G of one prompt's answers, β weight of the KL to the reference, ε clip range, ratio
ρ_t = π_θ / π_old of a token as in ppo.py.

    A_i = (r_i − mean(r)) / std(r)                     advantage of each token of o_i            section 4.1.2
    k_t = π_ref/π_θ − log(π_ref/π_θ) − 1               ≥ 0, mean over π_θ's samples: the KL      equation 4
    L = − mean over answers  1/|o_i| Σ_t [ min(ρ_t A_i, clip(ρ_t, 1 − ε, 1 + ε) A_i) − β k_t ]  equation 3

Without a critic a rank saves 16Ψ bytes compared with PPO. The KL is in the loss, not in the reward. The
standard deviation divides by G and has 1e-6 added; where all answers of a prompt have the same reward, every
advantage is 0 and the prompt teaches nothing.

But: 1/|o_i| gives tokens of long answers less weight, and 1/std(r) gives prompts that are nearly solved more
weight (Liu et al., 2503.20783).
"""

from __future__ import annotations

import torch
from torch import Tensor

from glasscluster.strategies.preference.ppo import ratios


def advantages(rewards_QG: Tensor) -> Tensor:
    """Rewards of G answers to each of Q prompts, normalized within each group: [Q, G] -> [Q, G]."""
    centred = rewards_QG - rewards_QG.mean(1, keepdim=True)
    return centred / (rewards_QG.std(1, correction=0, keepdim=True) + 1e-6)


def kl(new_BT: Tensor, reference_BT: Tensor) -> Tensor:
    """k_t, an estimate of KL(π_θ ‖ π_ref) from one sample, never negative, from log-probabilities [B, T]."""
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
    """The GRPO loss, a scalar: the mean over answers of each answer's mean over its tokens.

    Args:
        new_BT: log-probabilities of the answers' tokens under the policy that is trained.
        old_BT: under the policy that wrote the answers.
        reference_BT: under the reference.
        advantages_B: one for each answer.
        mask_BT: 1 for tokens of an answer, 0 for padding.
        clip: ε, how far a ratio may be from 1 before its gradient is cut off.
        beta: weight of the KL to the reference.
    """
    ratio, a = ratios(new_BT, old_BT), advantages_B[:, None]
    gained = torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a) - beta * kl(new_BT, reference_BT)
    return -((gained * mask_BT).sum(1) / mask_BT.sum(1).clamp(min=1)).mean()  # an empty answer's mean is 0
