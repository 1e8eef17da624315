"""RMSNorm and ScaleNorm, each one kernel each way: a norm without a mean, and one with a single weight.

    RMSNorm     y = x r · weight      r = 1 / sqrt(mean(x²) + eps)      Zhang and Sennrich, 1910.07467
    ScaleNorm   y = x r · g           r = 1 / max(|x|, eps)             Nguyen and Salazar, 1910.05895
                                      one g, which starts at sqrt(h)

    backward    x̂ = x r     dx̂ = dy · weight     dx = r (dx̂ - x̂ · <dx̂, x̂> / n)     dweight = sum dy · x̂
    of both     n = h for RMSNorm, 1 for ScaleNorm: their x̂ has the length sqrt(h), and 1

Kept for backward: x and r, one number a row, where layer norm has two; r is in the accumulators' type.
Registered as library operators. Gradients come out contiguous, however the upstream one lies: a recording on
shapes must equal the run.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import Library

from glasscluster.base import operator_costs
from glasscluster.model.kernels.precision import accumulation_dtype

_library = Library("glasscluster", "FRAGMENT")
for _name in ("rms_norm", "scale_norm"):
    _library.define(f"{_name}_forward(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)")
    _kept = "Tensor d_out, Tensor x, Tensor r, Tensor weight, float eps"
    _library.define(f"{_name}_backward({_kept}) -> (Tensor, Tensor)")
    operator_costs.register(f"glasscluster::{_name}_forward")
    operator_costs.register(f"glasscluster::{_name}_backward")


def _scaled(x: Tensor, r: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return (x.to(r.dtype) * r).mul_(weight.to(r.dtype)).to(x.dtype), r


def _rms_forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    r = x.to(accumulation_dtype(x.dtype)).square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return _scaled(x, r, weight)


def _rms_backward(d_out: Tensor, x: Tensor, r: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    d, normed = d_out.to(r.dtype), x.to(r.dtype) * r
    d_weight = (d * normed).flatten(0, -2).sum(0)
    d = d * weight.to(r.dtype)
    d_x = d.sub_(normed * (d * normed).mean(-1, keepdim=True)).mul_(r)
    return d_x.to(x.dtype).contiguous(), d_weight.to(weight.dtype)


def _scale_forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    r = x.to(accumulation_dtype(x.dtype)).norm(dim=-1, keepdim=True).clamp_(min=eps).reciprocal_()
    return _scaled(x, r, weight)


def _scale_backward(d_out: Tensor, x: Tensor, r: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    d, normed = d_out.to(r.dtype), x.to(r.dtype) * r
    along = (d * normed).sum(-1, keepdim=True)
    moving = along.masked_fill(r >= 1 / eps, 0.0)  # where eps stood in, r is a constant
    d_x = (d - normed * moving).mul_(r).mul_(weight.to(r.dtype))
    return d_x.to(x.dtype).contiguous(), along.sum().view(1).to(weight.dtype)


def _meta_forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    r = x.new_empty((*x.shape[:-1], 1), dtype=accumulation_dtype(x.dtype))
    return torch.empty_like(x, memory_format=torch.contiguous_format), r


def _meta_backward(d_out: Tensor, x: Tensor, r: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(weight)


for _name, _ways in {
    "rms_norm": (_rms_forward, _rms_backward),
    "scale_norm": (_scale_forward, _scale_backward),
}.items():
    for _device in ("CPU", "CUDA"):
        _library.impl(f"{_name}_forward", _ways[0], _device)
        _library.impl(f"{_name}_backward", _ways[1], _device)
    _library.impl(f"{_name}_forward", _meta_forward, "Meta")
    _library.impl(f"{_name}_backward", _meta_backward, "Meta")


class RMSNorm(torch.autograd.Function):
    """Forward and backward side by side."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, r = torch.ops.glasscluster.rms_norm_forward(x, weight, eps)
        ctx.save_for_backward(x, r, weight)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx, d_out: Tensor):
        return (*torch.ops.glasscluster.rms_norm_backward(d_out, *ctx.saved_tensors, ctx.eps), None)


class ScaleNorm(torch.autograd.Function):
    """Forward and backward side by side."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, r = torch.ops.glasscluster.scale_norm_forward(x, weight, eps)
        ctx.save_for_backward(x, r, weight)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx, d_out: Tensor):
        return (*torch.ops.glasscluster.scale_norm_backward(d_out, *ctx.saved_tensors, ctx.eps), None)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Over the last dimension h; weight [h]."""
    return RMSNorm.apply(x.contiguous(), weight, eps)


def scale_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Over the last dimension; weight [1]."""
    return ScaleNorm.apply(x.contiguous(), weight, eps)
