"""Textbook attention, beside the flash kernel: it writes the N x N scores down (1706.03762, section 3.2.1).

    S = Q K^T        P = softmax(S / sqrt(d) + bias, future hidden)        O = dropout(P) V

What stays for backward is what Korthikanti et al. (2205.05198, section 4.1) list: Q, K, V, P, the dropout's mask and the
dropped P. Scale, mask and softmax are one kernel that keeps only its output, as in Megatron-LM. The query heads that share a
key head (grouped-query attention) stand below each other in one product, so K and V are never repeated.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.library import Library

from glasscluster.model.kernels.flash.algorithm import check_shapes, diagonal_sums, flash_attention, wide

_library = Library("glasscluster", "FRAGMENT")
_library.define("softmax_forward(Tensor scores, float scale, bool causal, int prefix, Tensor? bias) -> Tensor")
_library.define("softmax_backward(Tensor d_p, Tensor p, float scale) -> Tensor")
_library.define("softmax_biased_backward(Tensor d_p, Tensor p, float scale) -> (Tensor, Tensor)")


def _forward(scores: Tensor, scale: float, causal: bool, prefix: int, bias: Tensor | None) -> Tensor:
    scores = scores.to(wide(scores.dtype), copy=True).mul_(scale)
    n, keys = scores.shape[-2:]
    if bias is not None:
        scores += bias.unfold(-1, keys, 1).flip(-1)  # row i begins one number later, and runs backwards
    if causal:
        future = torch.ones(n, keys, dtype=torch.bool, device=scores.device).triu_(1)
        future[:, :prefix] = False
        scores.masked_fill_(future, float("-inf"))
    return scores.softmax(-1)


def _d_scores(d_p: Tensor, p: Tensor) -> Tensor:
    d_p, p = d_p.to(wide(p.dtype)), p.to(wide(p.dtype))
    return (d_p - (d_p * p).sum(-1, keepdim=True)).mul_(p)


def _biased_backward(d_p: Tensor, p: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    d = _d_scores(d_p, p)
    d_bias = diagonal_sums(d.sum(0))
    return d.mul_(scale).to(p.dtype), d_bias


def _meta_biased_backward(d_p: Tensor, p: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(p), p.new_empty(p.shape[1], sum(p.shape[2:]) - 1, dtype=wide(p.dtype))


for _device in ("CPU", "CUDA"):
    _library.impl("softmax_forward", lambda s, *how: _forward(s, *how).to(s.dtype), _device)
    _library.impl("softmax_backward", lambda d, p, scale: _d_scores(d, p).mul_(scale).to(p.dtype), _device)
    _library.impl("softmax_biased_backward", _biased_backward, _device)
_library.impl("softmax_forward", lambda s, scale, causal, prefix, bias: torch.empty_like(s), "Meta")
_library.impl("softmax_backward", lambda d, p, scale: torch.empty_like(p), "Meta")
_library.impl("softmax_biased_backward", _meta_biased_backward, "Meta")


class Softmax(torch.autograd.Function):
    """softmax(scores · scale + bias) with the future hidden; a hidden score has probability 0 and so gradient 0."""

    @staticmethod
    def forward(ctx, scores: Tensor, scale: float, causal: bool, prefix: int, bias: Tensor | None) -> Tensor:
        p = torch.ops.glasscluster.softmax_forward(scores, scale, causal, prefix, bias)
        ctx.save_for_backward(p)
        ctx.scale = scale
        return p

    @staticmethod
    def backward(ctx, d_p: Tensor):
        if not ctx.needs_input_grad[4]:
            return torch.ops.glasscluster.softmax_backward(d_p, *ctx.saved_tensors, ctx.scale), None, None, None, None
        d_scores, d_bias = torch.ops.glasscluster.softmax_biased_backward(d_p, *ctx.saved_tensors, ctx.scale)
        return d_scores, None, None, None, d_bias


def unfused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    drop: Callable[[Tensor], Tensor] | None = None,
    prefix: int = 0,
    bias: Tensor | None = None,
) -> Tensor:
    """Attention over q [b, a, N, d] and k, v [b, a_kv, n, d]; materialises [b, a, N, n]. `drop` is dropout of the probabilities.

    With a prefix, all see its keys; bias [a, N + n - 1] by distance (parts.py).
    """
    check_shapes(q, k, causal)
    (b, a, n, d), (heads, keys) = q.shape, k.shape[1:3]
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()  # three tensors, each of which backward needs
    scores = q.view(b, heads, -1, d) @ k.transpose(-1, -2)
    p = Softmax.apply(scores.view(b, a, n, keys), d**-0.5, causal, prefix, bias)
    p = drop(p) if drop else p
    return (p.view(b, heads, -1, keys) @ v).view(b, a, n, d)


ATTENTION = {"flash": flash_attention, "unfused": unfused_attention}
