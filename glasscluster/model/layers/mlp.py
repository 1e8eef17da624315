"""The MLP of a block: up, activation, down (1706.03762, section 3.3), or with a gate (SwiGLU and GEGLU,
Shazeer 2002.05202).

    gelu, gelu-tanh, relu  y = act(x A + a) B + b                         A [h, f] by columns, B [f, h]
                                                                          by rows over tensor ranks
    swiglu                 y = (silu(x A_g + a_g) · (x A_u + a_u)) B + b  A_g and A_u lie in one matrix:
                                                                          one product
    geglu                  the same with gelu-tanh for silu (Gemma, 2403.08295)
    swiglu-clamped         y = (g · sigmoid(1.702 g) · (u + 1)) B + b     g the gate, at most 7, u the value,
                                                                          between -7 and 7 (gpt-oss)

The activation sees whole columns, so cutting columns needs no communication before the second matrix
(1909.08053, section 3).
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from glasscluster.model.kernels.gated import Gated
from glasscluster.model.parallel import Shard, plus


def activate(x: Tensor, activation: str) -> Tensor:
    """The MLP's inner step: [..., f] -> [..., f], or of gate and value [..., 2f] -> [..., f]."""
    match activation:
        case "swiglu" | "geglu" | "swiglu-clamped":
            return Gated.apply(x, activation)
        case "relu":
            return F.relu(x)
        case "gelu-tanh":
            return F.gelu(x, approximate="tanh")
    return F.gelu(x)


def declare(block: Any, name: str = "", width: int | None = None) -> None:
    """An MLP's parameters; `name` before theirs, `width` if it is not the model's."""
    config, f = block.config, width or block.config.width
    blocks = (f,) * config.gates
    block.weight(f"{name}up_weight", sum(blocks), config.hidden, std=config.init_std, shard=Shard(0, blocks))
    block.bias(f"{name}up_bias", sum(blocks), shard=Shard(0, blocks))
    block.weight(f"{name}down_weight", config.hidden, f, std=block.out_std, shard=Shard(1))
    block.bias(f"{name}down_bias", config.hidden)


def mlp(block: Any, x: Tensor, name: str = "") -> Tensor:
    """[b, s, h] -> [b, s, h]."""
    up, up_bias, down, down_bias = (
        block.get(name + n) for n in ("up_weight", "up_bias", "down_weight", "down_bias")
    )
    y = activate(block.parallel.column(x, up, up_bias), block.config.activation)
    return plus(block.parallel.row(y, down), down_bias)
