"""Dropout as one kernel each way, whose random numbers are hashes of a key and an element's place.

A counter-based generator, as GPUs use (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC
2011), here splitmix64 (Steele et al., OOPSLA 2014): any part of a mask can be drawn, again and anywhere.

    forward    y = x · mask / (1 - p)       kept: the mask, one byte an element (Srivastava et al., JMLR 2014)
    backward  dx = dy · mask / (1 - p)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import Library

from glasscluster.base import operator_costs

_GOLDEN, _FIRST, _SECOND, _ALL = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, (1 << 64) - 1


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def mix(x: int) -> int:
    """splitmix64's finaliser of a 64-bit number."""
    x = ((x ^ (x >> 30)) * _FIRST) & _ALL
    x = ((x ^ (x >> 27)) * _SECOND) & _ALL
    return x ^ (x >> 31)


def _shift(x: Tensor, by: int) -> Tensor:
    """x >> by for numbers without a sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The same as `mix`, of many numbers: int64 multiplication wraps."""
    x = (x ^ _shift(x, 30)) * _signed(_FIRST)
    x = (x ^ _shift(x, 27)) * _signed(_SECOND)
    return x ^ _shift(x, 31)


def key_of(parts: Sequence[int], sequences: Sequence[int]) -> list[int]:
    """One 64-bit key for each sequence, made of what all of them share and of their numbers."""
    key = 0
    for part in parts:
        key = mix((key + part + _GOLDEN) & _ALL)
    return [_signed(mix((key + s * _GOLDEN) & _ALL)) for s in sequences]


def keep_mask(
    keys: list[int],
    shape: torch.Size,
    p: float,
    spans: Sequence[int],
    device: torch.device,
) -> Tensor:
    """True where an element stays, [b, ...] like `shape`.

    spans: which elements of each sequence's whole mask these are, as runs (first, how many, ...).
    """
    runs = zip(spans[::2], spans[1::2], strict=True)
    numbers = [torch.arange(first, first + many, device=device) for first, many in runs]
    counter = (torch.cat(numbers) if len(numbers) > 1 else numbers[0]) * _signed(_GOLDEN)
    bits = _mix(torch.tensor(keys, device=device)[:, None] + counter)
    return (_shift(bits, 11) >= int(p * 2**53)).view(shape)


_library = Library("glasscluster", "FRAGMENT")
_library.define("dropout_forward(Tensor x, int[] keys, float p, int[] spans) -> (Tensor, Tensor)")
_library.define("dropout_backward(Tensor d_out, Tensor mask, float p) -> Tensor")
for _name in ("dropout_forward", "dropout_backward"):
    operator_costs.register(f"glasscluster::{_name}")


def _forward(x: Tensor, keys: list[int], p: float, spans: Sequence[int]) -> tuple[Tensor, Tensor]:
    mask = keep_mask(keys, x.shape, p, spans, x.device)
    return _backward(x, mask, p), mask


def _backward(d_out: Tensor, mask: Tensor, p: float) -> Tensor:
    return (d_out * mask).mul_(1 / (1 - p))


def _meta_forward(x: Tensor, keys: list[int], p: float, spans: Sequence[int]) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)


for _device in ("CPU", "CUDA"):
    _library.impl("dropout_forward", _forward, _device)
    _library.impl("dropout_backward", _backward, _device)
_library.impl("dropout_forward", _meta_forward, "Meta")
_library.impl("dropout_backward", lambda d_out, mask, p: torch.empty_like(d_out), "Meta")


class Dropout(torch.autograd.Function):
    """Forward and backward side by side."""

    @staticmethod
    def forward(ctx, x: Tensor, keys: list[int], p: float, spans: Sequence[int]) -> Tensor:
        out, mask = torch.ops.glasscluster.dropout_forward(x, keys, p, spans)
        ctx.save_for_backward(mask)
        ctx.p = p
        return out

    @staticmethod
    def backward(ctx, d_out: Tensor):
        return torch.ops.glasscluster.dropout_backward(d_out, *ctx.saved_tensors, ctx.p), None, None, None
