"""What a block asks of tensor parallelism, and the answer of one device.

The model knows nothing of clusters: each block calls `f` before and `g` after its matrices (the names of
Megatron-LM, 1909.08053 section 3) and takes its share of the rows or columns. On one device both are the
identity. `strategies/tensor_parallel.py` has the version that talks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glasscluster.model.flash_attention import wide

IGNORE = -100  # a target that carries no loss


@dataclass(frozen=True)
class Shard:
    """How a parameter is cut over tensor-parallel ranks: along `dim`, which holds `groups` equal blocks (QKV: 3)."""

    dim: int
    groups: int = 1

    def take(self, full: Tensor, rank: int, size: int) -> Tensor:
        """This rank's part of a full parameter."""
        blocks = full.unflatten(self.dim, (self.groups, size, -1)).select(self.dim + 1, rank)
        return blocks.flatten(self.dim, self.dim + 1)

    def shape(self, full: tuple[int, ...], size: int) -> tuple[int, ...]:
        """Shape of a rank's part."""
        return tuple(n // size if i == self.dim else n for i, n in enumerate(full))


class Unsharded:
    """One device: everything is whole."""

    size, rank = 1, 0
    place = 0  # which piece of every sequence this rank has outside the matrices: all of it

    def cut(self, x: Tensor) -> Tensor:
        """This rank's tokens of [s, ...]."""
        return x

    def column(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Into the parallel region and through its first matrix."""
        return F.linear(self.f(x), weight, bias)

    def f(self, x: Tensor) -> Tensor:
        """Into the parallel region."""
        return x

    def g(self, x: Tensor) -> Tensor:
        """Out of the parallel region."""
        return x

    def embed(self, tokens: Tensor, table: Tensor) -> Tensor:
        """Rows of the table: [b, s] -> [b, s, h]."""
        return F.embedding(tokens, table)

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Sum over tokens of -log p(target), in fp32 of 16-bit logits; logits [b, s, V], targets [b, s]; IGNORE counts nothing."""
        return F.cross_entropy(logits.flatten(0, 1).to(wide(logits.dtype)), targets.flatten(), reduction="sum", ignore_index=IGNORE)


class KeepAll:
    """Everything that backward needs stays. `strategies/recompute.py` has the versions that let go and compute again."""

    active = False  # computing again just now

    def layers(self, blocks: Sequence[Any], x: Tensor, draw: Any) -> Tensor:
        """Consecutive blocks."""
        for block in blocks:
            x = block(x, draw)
        return x

    def core(self, attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Scores, softmax, its dropout, and the sum over V."""
        return attention(q, k, v)


def local_parameter(
    name: str, shape: tuple[int, ...], std: float, mean: float, shard: Shard | None, parallel: Unsharded, seed: int, like: Tensor
) -> torch.nn.Parameter:
    """A parameter's local part. The full tensor depends on (seed, name) alone, so every layout starts equal.

    `like` gives dtype and device. Values are drawn in float64 and rounded, so precisions start equal too.
    """
    import zlib

    local = shard.shape(shape, parallel.size) if shard else shape
    if like.device.type == "meta":
        return torch.nn.Parameter(torch.empty(local, dtype=like.dtype, device="meta"))
    generator = torch.Generator().manual_seed((seed << 32) ^ zlib.crc32(name.encode()))
    full = torch.randn(shape, generator=generator, dtype=torch.float64) * std + mean
    part = shard.take(full, parallel.rank, parallel.size) if shard else full
    return torch.nn.Parameter(part.to(like.dtype, copy=True).to(like.device).contiguous())
