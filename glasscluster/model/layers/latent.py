"""Multi-head latent attention: keys and values of all heads from one short vector a token (DeepSeek-V2,
2405.04434, section 2.1).

Symbols: h hidden, a heads of d elements, d_c latent of keys and values, d_c' latent of queries (0: none), d_R
decoupled rotary elements.

    c = norm(W_DKV x)  [d_c]   k_C, v = W_UK c, W_UV c  [a, d] each  k_R = RoPE(W_KR x)   [d_R], for all heads
    c' = norm(W_DQ x)  [d_c']  q_C = W_UQ c'            [a, d]       q_R = RoPE(W_QR c')  [a, d_R]

        scores = (q_C · k_C + q_R · k_R) / sqrt(d + d_R)  what generation has to keep of a token: c and k_R,
                                                          d_c + d_R numbers (Eq 3)

Rotations stand apart because a rotated k_C would need its W_UK between rotations of two positions, and could
not be absorbed. Where positions are not rotary, d_R = 0. Over tensor ranks heads are cut; the way down is
whole on all of them and done by each: what a rank's heads say about it is a part of its gradient (`partial`).
But: where a sequence is cut over ranks, V is filled up with zeros to d + d_R columns, as Q and K have them, so
that keys and values travel in one message; and a ring sends keys and values, not latents.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glasscluster.model.layers import norms
from glasscluster.model.parallel import Shard


def declare(block: Any) -> None:
    """The way down (latent of K and V, rotary key, latent of Q: one matrix), the norms of the latents, and
    the ways up by heads.
    """
    config, h, std = block.config, block.config.hidden, block.config.init_std
    down = config.kv_latent + config.rotary + config.q_latent
    block.weight("down_to_latents_weight", down, h, std=std, partial=True)
    block.bias("down_to_latents_bias", down, partial=True)
    norms.declare(block, "kv_latent_norm", config.kv_latent, partial=True)
    if config.q_latent:
        norms.declare(block, "q_latent_norm", config.q_latent, partial=True)
    rows = {
        "kv_up": (2 * config.head_dim, config.kv_latent),
        "q_up": (config.head_dim + config.rotary, config.q_latent or h),
    }
    for name, (each, into) in rows.items():  # a head's rows lie together: k_C and v; q_C and q_R
        block.weight(f"{name}_weight", config.heads * each, into, std=std, shard=Shard(0))
        block.bias(f"{name}_bias", config.heads * each, shard=Shard(0))


def queries_keys_values(
    block: Any, x: Tensor, latents: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """x [b, s outside, h] -> this rank's heads of each: [b, s, a, d + d_R], of values [b, s, a, d] where the
    sequence is whole. `keep` hears what they are made from.

    latents: what `down` gave, if it was computed before; then x is [b, s, h], and read only where queries have
    no latent.
    """
    config, linear, d = block.config, block.parallel.linear, block.config.head_dim
    y = block.parallel.f(x) if latents is None else x
    if latents is None:
        latents = down(block, y)
    c, k_rotary, c_queries = latents.split([config.kv_latent, config.rotary, config.q_latent], -1)
    c = norms.norm(block, "kv_latent_norm", c.contiguous())
    kv = linear(c, block.kv_up_weight, block.get("kv_up_bias")).unflatten(-1, (-1, 2 * d))
    from_latent = norms.norm(block, "q_latent_norm", c_queries.contiguous()) if config.q_latent else y
    q = linear(from_latent, block.q_up_weight, block.get("q_up_bias")).unflatten(-1, (-1, d + config.rotary))
    k, v = kv.split(d, -1)
    if not config.rotary:
        block.keep.latent(c, None)
        return q, k, v
    q = torch.cat([q[..., :d], block.rotate(q[..., d:])], -1)
    k_rotary = block.rotate(k_rotary.unsqueeze(2))
    block.keep.latent(c, k_rotary)
    k = torch.cat([k, k_rotary.expand(-1, -1, k.shape[2], -1)], -1)
    whole = block.parallel.context.size == 1  # a copy, or the products that v is a part of would be kept
    return q, k, v.contiguous() if whole else torch.nn.functional.pad(v, (0, config.rotary))


def down(block: Any, y: Tensor) -> Tensor:
    """The way down: y [b, s, h] -> [b, s, d_c + d_R + d_c'], which every rank computes."""
    return block.parallel.linear(y, block.down_to_latents_weight, block.get("down_to_latents_bias"))


def up(block: Any, given: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The way up of `start`: this rank's queries, keys and values."""
    return queries_keys_values(block, *given)


def start(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """What it takes to make queries, keys and values: x where queries have no latent, and what `down` gave."""
    y = block.parallel.f(x)
    latents = down(block, y)
    return latents if block.config.q_latent else y, latents


# ---- theory ------------------------------------------------------------------------------------------------


def predict_cache(layers: int, kv_latent: int, rotary: int, tokens: int, sequences: int, width: int) -> int:
    """Eq 3: bytes that generation keeps, L (d_c + d_R) s B w, where multi-head attention keeps 2
    L a d s B w.
    """
    return layers * (kv_latent + rotary) * tokens * sequences * width
