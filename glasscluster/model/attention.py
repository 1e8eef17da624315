"""Textbook attention, beside the flash kernel: it writes the N x N scores down (1706.03762, section 3.2.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from glasscluster.model.flash_attention import flash_attention


def unfused_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V over q, k, v [b, a, N, d]; materialises [b, a, N, N]."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if causal:
        n = scores.shape[-1]
        future = torch.ones(n, n, dtype=torch.bool, device=q.device).triu_(1)
        scores = scores.masked_fill(future, float("-inf"))
    return scores.softmax(-1) @ v


ATTENTION = {"flash": flash_attention, "unfused": unfused_attention}
