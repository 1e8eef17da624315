"""Scale, bias, mask and softmax of textbook attention's scores as one kernel each way, as in Megatron-LM.

    P = softmax(S · scale + bias, future hidden)        kept for backward: P alone
    dS = scale · P · (dP - rowsum(dP · P))              dbias = the same without the scale, along diagonals

Sums are in the accumulation type; registered as library operators.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import Library

from glasscluster.base import operator_costs
from glasscluster.model.kernels.flash.bias import diagonal_sums
from glasscluster.model.kernels.precision import accumulation_dtype

_library = Library("glasscluster", "FRAGMENT")
_inputs = "Tensor scores, float scale, bool causal, int prefix, Tensor? bias"
_library.define(f"softmax_forward({_inputs}) -> Tensor")
_library.define("softmax_backward(Tensor d_p, Tensor p, float scale) -> Tensor")
_library.define("softmax_biased_backward(Tensor d_p, Tensor p, float scale) -> (Tensor, Tensor)")
for _name in ("softmax_forward", "softmax_backward", "softmax_biased_backward"):
    operator_costs.register(f"glasscluster::{_name}")


def _forward(scores: Tensor, scale: float, causal: bool, prefix: int, bias: Tensor | None) -> Tensor:
    scores = scores.to(accumulation_dtype(scores.dtype), copy=True).mul_(scale)
    n, keys = scores.shape[-2:]
    if bias is not None:
        scores += bias.unfold(-1, keys, 1).flip(-1)  # row i begins one number later, and runs backwards
    if causal:
        future = torch.ones(n, keys, dtype=torch.bool, device=scores.device).triu_(1)
        future[:, :prefix] = False
        scores.masked_fill_(future, float("-inf"))
    return scores.softmax(-1)


def _d_scores(d_p: Tensor, p: Tensor) -> Tensor:
    d_p, p = d_p.to(accumulation_dtype(p.dtype)), p.to(accumulation_dtype(p.dtype))
    return (d_p - (d_p * p).sum(-1, keepdim=True)).mul_(p)


def _biased_backward(d_p: Tensor, p: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    d = _d_scores(d_p, p)
    d_bias = diagonal_sums(d.sum(0))
    return d.mul_(scale).to(p.dtype), d_bias


def _meta_biased_backward(d_p: Tensor, p: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    distances = sum(p.shape[2:]) - 1
    return torch.empty_like(p), p.new_empty(p.shape[1], distances, dtype=accumulation_dtype(p.dtype))


for _device in ("CPU", "CUDA"):
    _library.impl("softmax_forward", lambda s, *how: _forward(s, *how).to(s.dtype), _device)
    _library.impl("softmax_backward", lambda d, p, scale: _d_scores(d, p).mul_(scale).to(p.dtype), _device)
    _library.impl("softmax_biased_backward", _biased_backward, _device)
_library.impl("softmax_forward", lambda s, scale, causal, prefix, bias: torch.empty_like(s), "Meta")
_library.impl("softmax_backward", lambda d, p, scale: torch.empty_like(p), "Meta")
_library.impl("softmax_biased_backward", _meta_biased_backward, "Meta")


class Softmax(torch.autograd.Function):
    """softmax(scores · scale + bias) with the future hidden: there probability and gradient are 0."""

    @staticmethod
    def forward(ctx, scores: Tensor, scale: float, causal: bool, prefix: int, bias: Tensor | None) -> Tensor:
        p = torch.ops.glasscluster.softmax_forward(scores, scale, causal, prefix, bias)
        ctx.save_for_backward(p)
        ctx.scale = scale
        return p

    @staticmethod
    def backward(ctx, d_p: Tensor):
        if not ctx.needs_input_grad[4]:
            d_scores = torch.ops.glasscluster.softmax_backward(d_p, *ctx.saved_tensors, ctx.scale)
            return d_scores, None, None, None, None
        d_scores, d_bias = torch.ops.glasscluster.softmax_biased_backward(d_p, *ctx.saved_tensors, ctx.scale)
        return d_scores, None, None, None, d_bias
