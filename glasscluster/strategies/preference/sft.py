"""Supervised fine-tuning: imitate demonstrations (InstructGPT, Ouyang et al., 2203.02155, section 3.5).

Symbols: prompt q, answer o of tokens o_1 ... o_T, policy π_θ.

    L = − Σ log π_θ(o_t | q, o_<t)  /  answer tokens

The prompt is read and carries no loss: nobody asks the model to write questions.
But: the whole answer counts alike, right or wrong; what is imitated is the average demonstration.
"""

from __future__ import annotations

from torch import Tensor


def loss(log_probs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over all answer tokens of the batch (mask 1: a token of an answer, 0: padding), 0 of none ->
    scalar.
    """
    return -(log_probs_BT * mask_BT).sum() / mask_BT.sum().clamp(min=1)
