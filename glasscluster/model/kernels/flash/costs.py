"""What the kernels of FlashAttention cost: FLOPs and slow-memory bytes, registered for the recorder.

A counting run of algorithm.py proves the formulas in tests. On a GPU triton.py works in tiles of its own;
what is recorded there is still what the torch version's tiles cost.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from glasscluster.base import operator_costs
from glasscluster.model.kernels.flash.parts import Rectangle
from glasscluster.model.kernels.flash.tiles import STRIP, TILE, keys_seen, queries_seeing, tiles
from glasscluster.model.kernels.precision import accumulation_dtype
from glasscluster.model.kernels.scores import Scores


def tile_pairs(n: int, causal: bool, tile: int = TILE, keys: int | None = None, window: int = 0) -> int:
    """Query-key pairs of one head that are computed, in whole tiles.

    n·keys without a mask; about half of it under a causal mask, exactly n(n+1)/2 in tiles of 1 x 1. With a
    window of w besides, n·w - w(w-1)/2 in tiles of 1 x 1.
    """
    keys = n if keys is None else keys
    seen = ((rows, keys_seen(rows, keys, causal, window, tile)) for rows in tiles(n, tile))
    return sum((r1 - r0) * (last - first) for (r0, r1), (first, last) in seen)


def pairs(parts: Sequence[Rectangle], tile: int = TILE) -> int:
    """Query-key pairs of one head that are computed in all parts (parts.py), in whole tiles."""
    sizes = ((p.queries.stop - p.queries.start, p.keys.stop - p.keys.start, p) for p in parts)
    return sum(tile_pairs(queries, p.causal, tile, keys, p.window) for queries, keys, p in sizes)


def forward_traffic(
    n: int,
    d: int,
    causal: bool,
    size: int = 1,
    accumulator: int = 1,
    tile: int = TILE,
    keys: int | None = None,
    group: int = 1,
    window: int = 0,
    d_v: int | None = None,
) -> int:
    """Slow-memory bytes of one key head and its `group` of query heads, forward.

    size, accumulator: bytes of an element of the inputs' type and of the accumulation type; where both are 1,
    elements are counted. Eq 7: 2Nd + 2 ceil(N/B) Nd + N for one head of N keys, not causal. Every query head
    has Q, O and L; the group reads K and V once. d_v: columns of values and output (None: d, as the rest).
    """
    both = d + (d if d_v is None else d_v)
    keys = n if keys is None else keys
    spans = (keys_seen(rows, keys, causal, window, tile) for rows in tiles(n, tile))
    read = sum(last - first for first, last in spans)
    return (n * both * group + read * both) * size + n * group * accumulator


def backward_traffic(
    n: int,
    d: int,
    causal: bool,
    size: int = 1,
    accumulator: int = 1,
    tile: int = TILE,
    keys: int | None = None,
    group: int = 1,
    window: int = 0,
    d_v: int | None = None,
) -> int:
    """Slow-memory bytes of one key head and its `group` of query heads, backward.

    Q, dO, L, D and dQ (read and written) of every query head once for each tile of keys; K, V, dK and dV
    once. d_v: as forward.
    """
    d_v = d if d_v is None else d_v
    keys = n if keys is None else keys
    spans = (queries_seeing(cols, n, causal, window, tile) for cols in tiles(keys, tile))
    queries = sum(last - first for first, last in spans)
    before = 2 * n * d_v * size + (n + n * d) * accumulator
    rounded = n * d * (size + accumulator) if size != accumulator else 0
    each = (d + d_v) * size + (2 * d + 2) * accumulator
    return group * (before + queries * each + rounded) + 2 * keys * (d + d_v) * size


def bias_steps(
    n: int, causal: bool, tile: int = TILE, keys: int | None = None, window: int = 0
) -> tuple[int, int]:
    """Numbers of a bias that one head reads forward and backward: rows + columns - 1 in each step."""
    keys, strip = n if keys is None else keys, STRIP * tile
    seen = {rows: keys_seen(rows, keys, causal, window, tile) for rows in tiles(n, tile)}
    forward = [(rows, cols) for rows, (first, last) in seen.items() for cols in tiles(last, strip, first)]
    seeing = {cols: queries_seeing(cols, n, causal, window, tile) for cols in tiles(keys, tile)}
    backward = [(rows, cols) for cols, (first, last) in seeing.items() for rows in tiles(last, strip, first)]
    a, b = (sum(r1 - r0 + c1 - c0 - 1 for (r0, r1), (c0, c1) in steps) for steps in (forward, backward))
    return a, b


# ---- of one call of an operator: its arguments, its result -------------------------------------------------


def _shape(q: Tensor, k: Tensor) -> tuple[int, int, int, int, int, int]:
    """Sequences, query heads and key heads, queries, keys, head size."""
    return q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3]


def _forward_flops(args, out) -> int:
    b, a, _, n, keys, d = _shape(*args[:2])
    pairs_seen = tile_pairs(n, args[3], keys=keys, window=Scores(*args[4:]).window)
    return 2 * b * a * pairs_seen * (d + args[2].shape[3])  # Q K^T, P V


def _forward_bytes(args, out) -> int:
    b, a, heads, n, keys, d = _shape(*args[:2])
    sizes, more = _sizes(args[0]), {"window": Scores(*args[4:]).window, "d_v": args[2].shape[3]}
    return b * heads * forward_traffic(n, d, args[3], *sizes, keys=keys, group=a // heads, **more)


def _backward_flops(args, out) -> int:
    b, a, _, n, keys, d = _shape(*args[1:3])
    pairs_seen = tile_pairs(n, args[6], keys=keys, window=Scores(*args[7:]).window)
    return 2 * b * a * pairs_seen * (3 * d + 2 * args[3].shape[3])  # Q K^T, dQ, dK; dV, dP


def _backward_bytes(args, out) -> int:
    b, a, heads, n, keys, d = _shape(*args[1:3])
    sizes, more = _sizes(args[1]), {"window": Scores(*args[7:]).window, "d_v": args[3].shape[3]}
    return b * heads * backward_traffic(n, d, args[6], *sizes, keys=keys, group=a // heads, **more)


def _sizes(x: Tensor) -> tuple[int, int]:
    """Bytes of an element of a tensor, and of the type in which it is summed."""
    return x.element_size(), accumulation_dtype(x.dtype).itemsize


def _biased_forward_bytes(args, out) -> int:
    q, k, v, bias, causal, *how = args
    read = bias_steps(q.shape[2], causal, keys=k.shape[2], window=Scores(*how).window)[0]
    return _forward_bytes((q, k, v, causal, *how), out) + len(bias) * bias.element_size() * read


def _biased_backward_bytes(args, out) -> int:
    """Besides, the bias's sums are set to zero once, and read and written in each step."""
    q, k, (bias, causal, wanted, *how) = args[1], args[2], args[6:]
    read = bias_steps(q.shape[2], causal, keys=k.shape[2], window=Scores(*how).window)[1]
    numbers = 3 * read + bias.shape[1] if wanted else read
    return _backward_bytes((*args[:6], causal, *how), out) + len(bias) * bias.element_size() * numbers


def _biased_forward_flops(args, out) -> int:
    return _forward_flops((*args[:3], *args[4:]), out)


def _biased_backward_flops(args, out) -> int:
    return _backward_flops((*args[:6], args[7], *args[9:]), out)


operator_costs.register("glasscluster::flash_forward", _forward_flops, _forward_bytes)
operator_costs.register("glasscluster::flash_backward", _backward_flops, _backward_bytes)
operator_costs.register("glasscluster::flash_biased_forward", _biased_forward_flops, _biased_forward_bytes)
operator_costs.register("glasscluster::flash_biased_backward", _biased_backward_flops, _biased_backward_bytes)
