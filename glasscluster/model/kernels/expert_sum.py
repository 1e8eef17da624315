"""What a token's experts said, times their weights and added up: one kernel each way.

    y_t = sum_j w_tj · (row of the j-th choice of token t; zero if it was dropped)

    rows [A, h] lie by expert; order [A] says which of the n·k choices each one is: number t·k + j

    d_row  = w_tj · dy_t            kept for backward: rows, order and weights, each once
    d_w_tj = <dy_t, row>            (zero of a dropped choice)

Written with torch's own operations the rows would be kept twice, as they come and in the order of the tokens,
and their products with the weights would be n·k rows in the accumulation type. Here a token's sum grows
choice by choice, best first.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import Library

from glasscluster.base import operator_costs

_library = Library("glasscluster", "FRAGMENT")
_library.define("expert_sum_forward(Tensor rows, Tensor order, Tensor weights) -> Tensor")
_library.define(
    "expert_sum_backward(Tensor d_y, Tensor rows, Tensor order, Tensor weights) -> (Tensor, Tensor)"
)
operator_costs.register("glasscluster::expert_sum_forward")
operator_costs.register("glasscluster::expert_sum_backward")


def _forward(rows: Tensor, order: Tensor, weights: Tensor) -> Tensor:
    k, of_row = weights.shape[-1], weights.flatten()[order].unsqueeze(-1)
    y = weights.new_zeros(*weights.shape[:-1], rows.shape[-1])  # in the accumulation type, as weights are
    of_token = y.flatten(0, -2)
    for j in range(k):
        (here,) = torch.where(order % k == j)  # each token at most once
        of_token.index_add_(0, order[here] // k, rows[here] * of_row[here])
    return y.to(rows.dtype)


def _backward(d_y: Tensor, rows: Tensor, order: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    k, of_row = weights.shape[-1], weights.flatten()[order].unsqueeze(-1)
    d_rows, d_weights = torch.empty_like(rows), torch.zeros_like(weights)
    d_y = d_y.reshape(-1, rows.shape[-1])
    for j in range(k):
        (here,) = torch.where(order % k == j)
        d = d_y[order[here] // k].to(weights.dtype)
        d_rows[here] = (d * of_row[here]).to(rows.dtype)
        d_weights.view(-1)[order[here]] = (d * rows[here]).sum(-1)
    return d_rows, d_weights


def _meta_forward(rows: Tensor, order: Tensor, weights: Tensor) -> Tensor:
    return rows.new_empty(*weights.shape[:-1], rows.shape[-1])


def _meta_backward(d_y: Tensor, rows: Tensor, order: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rows), torch.empty_like(weights)


for _device in ("CPU", "CUDA"):
    _library.impl("expert_sum_forward", _forward, _device)
    _library.impl("expert_sum_backward", _backward, _device)
_library.impl("expert_sum_forward", _meta_forward, "Meta")
_library.impl("expert_sum_backward", _meta_backward, "Meta")


class ExpertSum(torch.autograd.Function):
    """rows [A, h], order [A], weights [b, s, k] in the accumulation type -> [b, s, h] in the rows' type."""

    @staticmethod
    def forward(ctx, rows: Tensor, order: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(rows, order, weights)
        return torch.ops.glasscluster.expert_sum_forward(rows, order, weights)

    @staticmethod
    def backward(ctx, d_y: Tensor):
        d_rows, d_weights = torch.ops.glasscluster.expert_sum_backward(d_y, *ctx.saved_tensors)
        return d_rows, None, d_weights
