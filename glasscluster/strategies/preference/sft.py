"""Supervised fine-tuning: imitate demonstrations (InstructGPT, Ouyang et al., 2203.02155, section 3.5).

Symbols: prompt q, answer o of tokens o_1 ... o_T, policy π_θ.

    L = − Σ log π_θ(o_t | q, o_<t)  /  answer tokens

Tokens of the prompt have no loss: the model learns to answer, not to ask.

But: every token of a demonstration counts the same, whether the answer is right or wrong, so the model
imitates the average demonstration.
"""

from __future__ import annotations

from torch import Tensor


def loss(log_probs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean negative log-probability over all answer tokens of the batch, a scalar; 0 if there are none.

    Both arguments are [B, T]; the mask is 1 for tokens of an answer and 0 for padding.
    """
    return -(log_probs_BT * mask_BT).sum() / mask_BT.sum().clamp(min=1)
