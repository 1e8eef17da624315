"""Tiles of FlashAttention in torch: their sizes, and how rows, heads and memory are laid out for them.

Rows of a tile of queries are its B tokens, each in the g heads that share one key head: [b · a_kv, B·g, d].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from glasscluster.model.kernels.precision import accumulation_dtype

TILE = 128  # rows that stay while others stream past: of queries forward, of keys backward; the B of Eq 7
STRIP = 8  # tiles that stream past in one step: longer operations, same traffic and work
SCORES_PER_THREAD = 2**18  # in one step that heads share: in float32 the megabyte that a core's cache holds

Meter = Callable[[str, int], None]  # hears "read" or "write" and how many bytes went through slow memory
Span = tuple[int, int]  # first row, and the one behind the last


def no_meter(_what: str, _bytes: int) -> None:
    """Nobody listens."""


def nbytes(size: int, *tensors: Tensor) -> int:
    """Bytes of tensors whose elements take `size` bytes in slow memory."""
    return size * sum(x.numel() for x in tensors)


def tiles(n: int, tile: int, first: int = 0) -> list[Span]:
    """Rows `first` to n in tiles; the last may be smaller."""
    return [(a, min(a + tile, n)) for a in range(first, n, tile)]


def keys_seen(rows: Span, keys: int, causal: bool, window: int, tile: int) -> Span:
    """The keys that a tile of queries is computed with: whole tiles from the first that any of them sees."""
    first = max(0, rows[0] - window + 1) // tile * tile if window else 0
    return first, rows[1] if causal else keys


def queries_seeing(cols: Span, n: int, causal: bool, window: int, tile: int) -> Span:
    """The queries that a tile of keys is computed with: whole tiles to the last that sees any of them."""
    last = min(n, -(-(cols[1] + window - 1) // tile) * tile) if window else n
    return cols[0] if causal else 0, last


def fold_heads(x: Tensor, heads: int) -> Tensor:
    """[b, a, N, d] -> [b · a_kv, N·g, d] in the accumulation type: a group's rows of a token side by side."""
    x = x.to(accumulation_dtype(x.dtype))
    if x.shape[1] > heads:
        x = x.view(len(x), heads, -1, *x.shape[2:]).transpose(2, 3)
    return x.reshape(len(x) * heads, -1, x.shape[-1])


def unfold_heads(x: Tensor, into: Tensor, heads: int) -> None:
    """The way back, into [b, a, N, d]."""
    if into.shape[1] > heads:
        into = into.view(len(into), heads, -1, *into.shape[2:]).transpose(2, 3)
    into.copy_(x.view(into.shape))


def head_shares(q: Tensor, k: Tensor, tile: int) -> tuple[list[tuple[slice, slice]], int]:
    """Heads that are computed together (of queries, of keys), and the number of scores in one of their steps.

    As many heads share a step as have scores that fit the threads' caches.
    """
    heads, group = k.shape[1], q.shape[1] // k.shape[1]
    longest = max(q.shape[2], k.shape[2])
    one = len(q) * group * min(tile, longest) * min(STRIP * tile, longest)
    together = min(heads, max(1, SCORES_PER_THREAD * torch.get_num_threads() // one))
    shares = [(slice(a * group, b * group), slice(a, b)) for a, b in tiles(heads, together)]
    return shares, together * one


def product_into(workspace: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """x @ y, written where the last step's scores were: fresh memory costs as much as the exponentials."""
    part = cache(lambda *shape: workspace[: math.prod(shape)].view(shape))
    return lambda x, y: torch.bmm(x, y, out=part(len(x), x.shape[1], y.shape[2]))


def future_mask(n: int, group: int, like: Tensor) -> Tensor:
    """What is added to the scores of the tile on the diagonal: [n·g, n], -inf above it and 0 elsewhere.

    Filling by a boolean mask would take ten times as long.
    """
    above = torch.full((n, n), float("-inf"), dtype=like.dtype, device=like.device).triu_(1)
    return above[:, None].expand(n, group, n).reshape(n * group, n) if group > 1 else above


def hide_past(scores: Tensor, rows: Span, cols: Span, window: int) -> None:
    """Hide the keys of a tile that its queries no longer see: j <= i - window. Elsewhere nothing happens."""
    n, m = rows[1] - rows[0], cols[1] - cols[0]
    if rows[1] - cols[0] > window:
        past = torch.ones(n, m, dtype=torch.bool, device=scores.device).tril_(rows[0] - cols[0] - window)
        scores.view(len(scores), n, -1, m).masked_fill_(past[:, None], float("-inf"))


def hide_future(scores: Tensor, mask: Tensor) -> None:
    """Add the mask to the tile on the diagonal, which is smaller at the end of the sequence."""
    scores.add_(mask if scores.shape[1:] == mask.shape else mask[: scores.shape[1], : scores.shape[2]])
