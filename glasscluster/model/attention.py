"""Textbook attention, beside the flash kernel: it writes the N x N scores down (1706.03762, section 3.2.1).

    S = Q K^T        P = softmax(S / sqrt(d), future hidden)        O = dropout(P) V

What stays for backward is what Korthikanti et al. (2205.05198, section 4.1) list: Q, K, V, P, the dropout's mask and the
dropped P. Scale, mask and softmax are one kernel that keeps only its output, as in Megatron-LM. The query heads that share a
key head (grouped-query attention) stand below each other in one product, so K and V are never repeated.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.library import Library

from glasscluster.model.flash_attention import check_shapes, flash_attention, wide

_library = Library("glasscluster", "FRAGMENT")
_library.define("softmax_forward(Tensor scores, float scale, bool causal) -> Tensor")
_library.define("softmax_backward(Tensor d_p, Tensor p, float scale) -> Tensor")


def _forward(scores: Tensor, scale: float, causal: bool) -> Tensor:
    scores = scores.to(wide(scores.dtype), copy=True).mul_(scale)
    if causal:
        n = scores.shape[-1]
        scores.masked_fill_(torch.ones(n, n, dtype=torch.bool, device=scores.device).triu_(1), float("-inf"))
    return scores.softmax(-1)


def _backward(d_p: Tensor, p: Tensor, scale: float) -> Tensor:
    d_p, p = d_p.to(wide(p.dtype)), p.to(wide(p.dtype))
    return (d_p - (d_p * p).sum(-1, keepdim=True)).mul_(p).mul_(scale)


for _device in ("CPU", "CUDA"):
    _library.impl("softmax_forward", lambda s, scale, causal: _forward(s, scale, causal).to(s.dtype), _device)
    _library.impl("softmax_backward", lambda d, p, scale: _backward(d, p, scale).to(p.dtype), _device)
_library.impl("softmax_forward", lambda s, scale, causal: torch.empty_like(s), "Meta")
_library.impl("softmax_backward", lambda d, p, scale: torch.empty_like(p), "Meta")


class Softmax(torch.autograd.Function):
    """softmax(scores · scale) with the future hidden; a hidden score has probability 0 and so gradient 0."""

    @staticmethod
    def forward(ctx, scores: Tensor, scale: float, causal: bool) -> Tensor:
        p = torch.ops.glasscluster.softmax_forward(scores, scale, causal)
        ctx.save_for_backward(p)
        ctx.scale = scale
        return p

    @staticmethod
    def backward(ctx, d_p: Tensor):
        return torch.ops.glasscluster.softmax_backward(d_p, *ctx.saved_tensors, ctx.scale), None, None


def unfused_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = True, drop: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Attention over q [b, a, N, d] and k, v [b, a_kv, n, d]; materialises [b, a, N, n]. `drop` is dropout of the probabilities."""
    check_shapes(q, k, causal)
    (b, a, n, d), (heads, keys) = q.shape, k.shape[1:3]
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()  # three tensors, each of which backward needs
    scores = q.view(b, heads, -1, d) @ k.transpose(-1, -2)
    p = Softmax.apply(scores.view(b, a, n, keys), d**-0.5, causal)
    p = drop(p) if drop else p
    return (p.view(b, heads, -1, keys) @ v).view(b, a, n, d)


ATTENTION = {"flash": flash_attention, "unfused": unfused_attention}
