"""The gated activations of an MLP: one kernel each way that keeps its input alone, as in Megatron-LM.

    x = [g | u], gate and value side by side in the last dimension: [..., 2f] -> [..., f]

    swiglu          y = silu(g) · u
    geglu           y = gelu(g) · u, gelu by its tanh
    swiglu-clamped  y = (u' + 1) · g' sigmoid(ALPHA g'), g' = min(g, LIMIT), u' = u between -LIMIT and LIMIT

Written with torch's own operations, autograd would also keep what lies between them: the activated gate, and
of a clamped gate five tensors. Backward makes them anew from x, by the same operations in the same order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import Library

from glasscluster.base import operator_costs

LIMIT, ALPHA = 7.0, 1.702  # of swiglu-clamped: gpt-oss's swiglu_limit, and how steep its sigmoid is

_library = Library("glasscluster", "FRAGMENT")
_library.define("gated_forward(Tensor x, str activation) -> Tensor")
_library.define("gated_backward(Tensor d_y, Tensor x, str activation) -> Tensor")
operator_costs.register("glasscluster::gated_forward")
operator_costs.register("glasscluster::gated_backward")


def _forward(x: Tensor, activation: str) -> Tensor:
    gate, value = x.chunk(2, -1)
    match activation:
        case "swiglu":
            return F.silu(gate) * value
        case "geglu":
            return F.gelu(gate, approximate="tanh") * value
    gate, value = gate.clamp(max=LIMIT), value.clamp(-LIMIT, LIMIT)
    return (value + 1) * (gate * torch.sigmoid(ALPHA * gate))


def _backward(d_y: Tensor, x: Tensor, activation: str) -> Tensor:
    gate, value = x.chunk(2, -1)
    match activation:
        case "swiglu":
            d_value = d_y * F.silu(gate)
            d_gate = torch.ops.aten.silu_backward(d_y * value, gate)
        case "geglu":
            d_value = d_y * F.gelu(gate, approximate="tanh")
            d_gate = torch.ops.aten.gelu_backward(d_y * value, gate, approximate="tanh")
        case _:
            below, above = gate.clamp(max=LIMIT), value.clamp(-LIMIT, LIMIT)
            share = torch.sigmoid(ALPHA * below)
            d_value = torch.where(above == value, d_y * (below * share), 0.0)
            d_product = d_y * (above + 1)
            d_share = torch.ops.aten.sigmoid_backward(d_product * below, share)
            d_gate = torch.where(below == gate, d_product * share + d_share * ALPHA, 0.0)
    return torch.cat([d_gate, d_value], -1)


for _device in ("CPU", "CUDA"):
    _library.impl("gated_forward", _forward, _device)
    _library.impl("gated_backward", _backward, _device)
_library.impl("gated_forward", lambda x, _activation: x.new_empty(*x.shape[:-1], x.shape[-1] // 2), "Meta")
_library.impl("gated_backward", lambda _d_y, x, _activation: x.new_empty(x.shape), "Meta")


class Gated(torch.autograd.Function):
    """[..., 2f] of gates and values -> [..., f]."""

    @staticmethod
    def forward(ctx, x: Tensor, activation: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.activation = activation
        return torch.ops.glasscluster.gated_forward(x, activation)

    @staticmethod
    def backward(ctx, d_y: Tensor):
        (x,) = ctx.saved_tensors
        return torch.ops.glasscluster.gated_backward(d_y, x, ctx.activation), None
