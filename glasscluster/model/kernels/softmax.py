"""Scale, cap, bias, masks and softmax of textbook attention's scores: one kernel each way, as in Megatron-LM.

    P = softmax(scores · scale + bias, hidden where not seen)       kept for backward: P alone
    dS = scale · P · (dP - rowsum(dP · P))              dbias = the same without the scale, along diagonals

    with a cap c    y = c tanh(scores · scale / c)      dS times 1 - (y / c)^2; the scores are kept as well
    with a sink     p = e^sink / (e^sink + sum e^y)     dsink = - sum over rows of p · rowsum(dP · P); p stays

What these are is in scores.py. Sums are in the accumulation type; registered as library operators.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import Library

from glasscluster.base import operator_costs
from glasscluster.model.kernels.flash.bias import diagonal_sums
from glasscluster.model.kernels.precision import accumulation_dtype
from glasscluster.model.kernels.scores import Scores, cap_slope, soft_cap

_library = Library("glasscluster", "FRAGMENT")
_inputs = "Tensor scores, float scale, bool causal, int prefix, Tensor? bias"
_more = "int window=0, float cap=0."
_capped = "Tensor? scores=None, float cap=0."
_library.define(f"softmax_forward({_inputs}, {_more}) -> Tensor")
_library.define(f"softmax_sink_forward({_inputs}, Tensor sink, {_more}) -> (Tensor, Tensor)")
_library.define(f"softmax_backward(Tensor d_p, Tensor p, float scale, {_capped}) -> Tensor")
_library.define(f"softmax_biased_backward(Tensor d_p, Tensor p, float scale, {_capped}) -> (Tensor, Tensor)")
for _name in ("softmax_forward", "softmax_sink_forward", "softmax_backward", "softmax_biased_backward"):
    operator_costs.register(f"glasscluster::{_name}")


def _prepared(
    scores: Tensor,
    scale: float,
    causal: bool,
    prefix: int,
    bias: Tensor | None,
    window: int = 0,
    cap: float = 0.0,
) -> Tensor:
    """What the softmax is of, in the accumulation type."""
    scores = scores.to(accumulation_dtype(scores.dtype), copy=True).mul_(scale)
    n, keys = scores.shape[-2:]
    if cap:
        soft_cap(scores, cap)
    if bias is not None:
        scores += bias.unfold(-1, keys, 1).flip(-1)  # row i begins one number later, and runs backwards
    if causal:
        future = torch.ones(n, keys, dtype=torch.bool, device=scores.device).triu_(1)
        future[:, :prefix] = False
        scores.masked_fill_(future, float("-inf"))
    if window:
        past = torch.ones(n, keys, dtype=torch.bool, device=scores.device).tril_(-window)
        scores.masked_fill_(past, float("-inf"))
    return scores


def _forward(scores: Tensor, *how) -> Tensor:
    return _prepared(scores, *how).softmax(-1).to(scores.dtype)


def _sink_forward(
    scores: Tensor, scale: float, causal: bool, prefix: int, bias, sink: Tensor, *more
) -> tuple[Tensor, Tensor]:
    """P, and the sink's probability [b, a, N] in the accumulation type."""
    x = _prepared(scores, scale, causal, prefix, bias, *more)
    one = sink.to(x.dtype)[:, None, None].expand(*x.shape[:-1], 1)
    p = torch.cat([x, one], -1).softmax(-1)
    return p[..., :-1].to(scores.dtype, memory_format=torch.contiguous_format, copy=True), p[..., -1].clone()


def _d_scores(d_p: Tensor, p: Tensor) -> Tensor:
    d_p, p = d_p.to(accumulation_dtype(p.dtype)), p.to(accumulation_dtype(p.dtype))
    return (d_p - (d_p * p).sum(-1, keepdim=True)).mul_(p)


def _times_slope(d: Tensor, scale: float, scores: Tensor | None = None, cap: float = 0.0) -> Tensor:
    """The gradient of the products, from that of what the softmax is of."""
    d = d.mul_(scale)
    if scores is not None:
        d.mul_(cap_slope(soft_cap(scores.to(d.dtype, copy=True).mul_(scale), cap), cap))
    return d


def _backward(d_p: Tensor, p: Tensor, *how) -> Tensor:
    return _times_slope(_d_scores(d_p, p), *how).to(p.dtype)


def _biased_backward(d_p: Tensor, p: Tensor, *how) -> tuple[Tensor, Tensor]:
    d = _d_scores(d_p, p)
    d_bias = diagonal_sums(d.sum(0))
    return _times_slope(d, *how).to(p.dtype), d_bias


def _meta_sink_forward(scores: Tensor, *_how) -> tuple[Tensor, Tensor]:
    return torch.empty_like(scores), scores.new_empty(
        scores.shape[:-1], dtype=accumulation_dtype(scores.dtype)
    )


def _meta_biased_backward(d_p: Tensor, p: Tensor, *_how) -> tuple[Tensor, Tensor]:
    distances = sum(p.shape[2:]) - 1
    return torch.empty_like(p), p.new_empty(p.shape[1], distances, dtype=accumulation_dtype(p.dtype))


for _device in ("CPU", "CUDA"):
    _library.impl("softmax_forward", _forward, _device)
    _library.impl("softmax_sink_forward", _sink_forward, _device)
    _library.impl("softmax_backward", _backward, _device)
    _library.impl("softmax_biased_backward", _biased_backward, _device)
_library.impl("softmax_forward", lambda scores, *_how: torch.empty_like(scores), "Meta")
_library.impl("softmax_sink_forward", _meta_sink_forward, "Meta")
_library.impl("softmax_backward", lambda d_p, p, *_how: torch.empty_like(p), "Meta")
_library.impl("softmax_biased_backward", _meta_biased_backward, "Meta")


class Softmax(torch.autograd.Function):
    """softmax(scores · scale + bias) with what is not seen hidden: there probability and gradient are 0."""

    @staticmethod
    def forward(
        ctx,
        scores: Tensor,
        how: Scores,
        causal: bool,
        prefix: int,
        bias: Tensor | None,
        sink: Tensor | None = None,
    ) -> Tensor:
        assert how.scale is not None
        inputs, more, p_sink = (scores, how.scale, causal, prefix, bias), (how.window, how.cap), None
        if sink is None:
            p = torch.ops.glasscluster.softmax_forward(*inputs, *more)
        else:
            p, p_sink = torch.ops.glasscluster.softmax_sink_forward(*inputs, sink, *more)
        ctx.save_for_backward(p, scores if how.cap else None, p_sink, sink)
        ctx.how = how
        return p

    @staticmethod
    def backward(ctx, d_p: Tensor):
        p, scores, p_sink, sink = ctx.saved_tensors
        how, d_bias, d_sink = (ctx.how.scale, scores, ctx.how.cap), None, None
        if ctx.needs_input_grad[4]:
            d_scores, d_bias = torch.ops.glasscluster.softmax_biased_backward(d_p, p, *how)
        else:
            d_scores = torch.ops.glasscluster.softmax_backward(d_p, p, *how)
        if sink is not None:
            d = (d_p.to(p_sink.dtype) * p.to(p_sink.dtype)).sum(-1)
            d_sink = (p_sink * d).sum((0, 2)).neg_().to(sink.dtype)
        return d_scores, None, None, None, d_bias, d_sink
