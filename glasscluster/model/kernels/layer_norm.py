"""Layer norm as one kernel each way, the same on every device (Ba et al., 1607.06450).

    y = (x - mean) / sqrt(var + eps) * weight + bias        kept for backward: x, mean, 1/sqrt(var + eps)

The two statistics are in the accumulators' type: fp32 for 16-bit inputs, as on a GPU. (torch's CPU kernel
keeps them in 16 bits, its meta kernel in 32: a recording on shapes would differ from the run.) Registered as
library operators.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import Library

from glasscluster.base import operator_costs
from glasscluster.model.kernels.precision import accumulation_dtype

_library = Library("glasscluster", "FRAGMENT")
for _name, _inputs in {
    "layer_norm_forward": "Tensor x, Tensor weight, Tensor? bias, float eps",
    "layer_norm_backward": "Tensor d_out, Tensor x, Tensor mean, Tensor rstd, Tensor weight",
}.items():
    _library.define(f"{_name}({_inputs}) -> (Tensor, Tensor, Tensor)")
    operator_costs.register(f"glasscluster::{_name}")


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    of = accumulation_dtype(x.dtype)
    bias = None if bias is None else bias.to(of)
    out, mean, rstd = torch.native_layer_norm(x.to(of), [x.shape[-1]], weight.to(of), bias, eps)
    return out.to(x.dtype), mean, rstd


def _backward(d_out: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    of = accumulation_dtype(x.dtype)
    gradients = torch.ops.aten.native_layer_norm_backward(
        d_out.to(of), x.to(of), [x.shape[-1]], mean, rstd, weight.to(of), weight.to(of), [True, True, True]
    )
    return tuple(t.to(x.dtype).contiguous() for t in gradients)


def _meta_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_empty((*x.shape[:-1], 1), dtype=accumulation_dtype(x.dtype))
    return torch.empty_like(x), statistics, torch.empty_like(statistics)


def _meta_backward(
    d_out: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
) -> tuple[Tensor, ...]:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


for _device in ("CPU", "CUDA"):
    _library.impl("layer_norm_forward", _forward, _device)
    _library.impl("layer_norm_backward", _backward, _device)
_library.impl("layer_norm_forward", _meta_forward, "Meta")
_library.impl("layer_norm_backward", _meta_backward, "Meta")


class LayerNorm(torch.autograd.Function):
    """Forward and backward side by side."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        out, mean, rstd = torch.ops.glasscluster.layer_norm_forward(x, weight, bias, eps)
        ctx.save_for_backward(x, mean, rstd, weight)
        ctx.bias = bias is not None
        return out

    @staticmethod
    def backward(ctx, d_out: Tensor):
        d_x, d_weight, d_bias = torch.ops.glasscluster.layer_norm_backward(d_out, *ctx.saved_tensors)
        return d_x, d_weight, d_bias if ctx.bias else None, None


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Over the last dimension."""
    return LayerNorm.apply(x, weight, bias, eps)
