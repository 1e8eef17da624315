"""FlashAttention in plain torch: tiles, online softmax, recomputation in backward, never an N x N tensor.

Follows FlashAttention-2 (Dao, 2307.08691, Algorithms 1 and 2). Symbols: N tokens, d head size, tiles of B rows.

    forward, per tile of queries         backward, per tile of keys and values
      for each tile of keys, values        for each tile of queries
        S = Q K^T / sqrt(d)                  P = exp(Q K^T / sqrt(d) - L)       (recomputed)
        m' = max(m, rowmax S)                dV += P^T dO
        P = exp(S - m')                      dS = P * (dO V^T - D),  D = rowsum(dO * O)
        l = exp(m - m') l + rowsum P         dQ += dS K / sqrt(d);  dK += dS^T Q / sqrt(d)
        O = exp(m - m') O + P V
      O = O / l;  L = m + log l            kept for backward: Q, K, V, O and L only

Grouped-query heads (Ainslie et al., 2305.13245): a query heads in groups of g = a / a_kv, of which each reads one key head.

    rows of a tile of queries = its B tokens, each in the g heads: [b · a_kv, B·g, d]

so one product serves the group, K and V are loaded once for it and never repeated, and its sum over rows makes dK and dV.
Shapes: q, out [b, a, N, d]; k, v [b, a_kv, n, d]; L [b, a, N]. N and n may differ where nothing is masked (a block of ring
attention); the causal mask wants a square. Registered as two low-level library operators, so that a recorder sees one kernel each
way; `COSTS` has their FLOPs and slow-memory bytes, proven by a counting run in tests. On NVIDIA GPUs `flash_triton.py` does the work,
in tiles of its own; what is recorded there are still the costs of these.
What is added to the scores may depend on the distance of query and key (T5's table, ALiBi): `bias` holds one number a head and distance,
a tile of it is made from rows + columns - 1 of them, and its gradient is dS summed along diagonals.
But: tiles above the causal diagonal are skipped, the ones on it are computed whole; no dropout. What is laid out anew once a head (Q
scaled, K transposed, outputs turned back) is not metered: the tiles are.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

TILE = 128  # rows that stay while others stream past: of queries forward, of keys backward; the B of F7
STRIP = 8  # tiles that stream past in one step: longer operations, same traffic and work
ROOM = 2**18  # scores a thread has in a step that heads share: in float32 the megabyte that a core's cache holds

Meter = Callable[[str, int], None]


# ---- tiles, and where they stand -------------------------------------------------------------------------------------


def _tiles(n: int, tile: int, first: int = 0) -> list[tuple[int, int]]:
    return [(a, min(a + tile, n)) for a in range(first, n, tile)]


def _ignore(_what: str, _bytes: int) -> None:
    return None


def wide(dtype: torch.dtype) -> torch.dtype:
    """What a kernel accumulates in: float32 for 16-bit types, as on a GPU; otherwise the type itself."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _folded(x: Tensor, heads: int) -> Tensor:
    """[b, a, N, d] -> [b · a_kv, N·g, d] in the accumulators' type: a token's rows of a whole group stand together."""
    x = x.to(wide(x.dtype))
    if x.shape[1] > heads:
        x = x.view(len(x), heads, -1, *x.shape[2:]).transpose(2, 3)
    return x.reshape(len(x) * heads, -1, x.shape[-1])


def _unfold(x: Tensor, into: Tensor, heads: int) -> None:
    """The way back, into [b, a, N, d]."""
    if into.shape[1] > heads:
        into = into.view(len(into), heads, -1, *into.shape[2:]).transpose(2, 3)
    into.copy_(x.view(into.shape))


def _bytes(size: int, *tiles: Tensor) -> int:
    return size * sum(x.numel() for x in tiles)


def _shares(q: Tensor, k: Tensor, tile: int) -> tuple[list[tuple[slice, slice]], int]:
    """Heads that are computed together, of queries and of keys: as many as have room; and the scores of one step of theirs."""
    heads, group = k.shape[1], q.shape[1] // k.shape[1]
    narrow, long = min(tile, max(q.shape[2], k.shape[2])), min(STRIP * tile, max(q.shape[2], k.shape[2]))
    one = len(q) * group * narrow * long
    together = min(heads, max(1, ROOM * torch.get_num_threads() // one))
    return [(slice(a * group, b * group), slice(a, b)) for a, b in _tiles(heads, together)], together * one


def _rooms(space: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """x @ y, written where the last step's scores were: fresh memory would cost as much as the exponentials."""
    room = cache(lambda *shape: space[: math.prod(shape)].view(shape))
    return lambda x, y: torch.bmm(x, y, out=room(len(x), x.shape[1], y.shape[2]))


def _future(n: int, group: int, like: Tensor) -> Tensor:
    """What the tile on the diagonal adds to its scores: [n·g, n], -inf above the diagonal, 0 elsewhere (a mask takes ten times as long)."""
    above = torch.full((n, n), float("-inf"), dtype=like.dtype, device=like.device).triu_(1)
    return above[:, None].expand(n, group, n).reshape(n * group, n) if group > 1 else above


def _hide(square: Tensor, future: Tensor) -> None:
    """A tile on the diagonal, which at the end of the sequence is smaller, sees no future."""
    square.add_(future if square.shape[1:] == future.shape else future[: square.shape[1], : square.shape[2]])


# ---- what is added to the scores -------------------------------------------------------------------------------------


def _needed(bias: Tensor, rows: tuple[int, int], cols: tuple[int, int], keys: int) -> Tensor:
    """The rows + columns - 1 numbers of a bias that a tile needs, for each head."""
    return bias[:, rows[0] - cols[1] + keys : rows[1] - cols[0] + keys - 1]


def _by_head(scores: Tensor, heads: int, rows: tuple[int, int]) -> Tensor:
    """Scores [b · a_kv, rows·g, columns] as [b, a_kv, g, rows, columns]."""
    n = rows[1] - rows[0]
    group = scores.shape[1] // n
    return scores.view(-1, heads // group, n, group, scores.shape[2]).transpose(2, 3)


def _add_bias(scores: Tensor, bias: Tensor, rows: tuple[int, int], cols: tuple[int, int], keys: int, meter: Meter) -> None:
    """To scores what belongs to the distance of each query and key."""
    numbers = _needed(bias, rows, cols, keys)
    meter("read", _bytes(numbers.element_size(), numbers))
    tile = numbers.unfold(-1, cols[1] - cols[0], 1).flip(-1)  # [a, rows, columns]: row i begins one number later, and runs backwards
    by_head = _by_head(scores, len(bias), rows)
    by_head.add_(tile.view(by_head.shape[1:]))


def _sum_bias(d_bias: Tensor, ds: Tensor, rows: tuple[int, int], cols: tuple[int, int], keys: int, meter: Meter) -> None:
    """The way back: dS summed along its diagonals."""
    sums = _needed(d_bias, rows, cols, keys)
    sums.add_(diagonal_sums(_by_head(ds, len(d_bias), rows).sum(0).flatten(0, 1)))
    for way in ("read", "write"):
        meter(way, _bytes(sums.element_size(), sums))


def diagonal_sums(x: Tensor) -> Tensor:
    """[a, m, n] -> [a, m + n - 1]: number i - j + n - 1 is the sum of x[:, i, j] over all such i and j."""
    a, m, n = x.shape
    sheared = torch.nn.functional.pad(x.flip(-1), (0, m)).view(a, -1)[:, : m * (m + n - 1)]  # row i moves i to the right
    return sheared.view(a, m, m + n - 1).sum(1)


# ---- the two algorithms ----------------------------------------------------------------------------------------------


def check_shapes(q: Tensor, k: Tensor, causal: bool) -> None:
    """Heads come in whole groups, and a causal mask is over a square."""
    if q.shape[1] % k.shape[1] or q.shape[3] != k.shape[3] or (causal and q.shape[2] != k.shape[2]):
        raise ValueError(
            f"attention of {tuple(q.shape)} to {tuple(k.shape)}, {causal = }: heads come in whole groups, a causal mask is over a square"
        )


def forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, tile: int = TILE, meter: Meter = _ignore, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Output [b, a, N, d] and log-sum-exp L [b, a, N]. `meter("read" | "write", bytes)` hears slow-memory traffic.

    bias [a, N + n - 1] in the accumulators' type: what is added to the score of query i and key j stands at i - j + n - 1.
    """
    check_shapes(q, k, causal)
    out, lse = forward_like(q)
    shares, scores = _shares(q, k, tile)
    space = out.new_empty(scores, dtype=lse.dtype)
    for of_q, of_k in shares:
        mine = None if bias is None else bias[of_q]
        _forward((q[:, of_q], k[:, of_k], v[:, of_k], mine), (out[:, of_q], lse[:, of_q]), causal, tile, meter, space)
    return out, lse


def _forward(given: tuple, wanted: tuple, causal: bool, tile: int, meter: Meter, space: Tensor) -> None:
    """Algorithm 1 for some heads, into out and lse."""
    (q, k, v, bias), (out, lse) = given, wanted
    heads, group, n, keys = k.shape[1], q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    product, future = _rooms(space), _future(min(tile, n) if causal else 0, group, lse)
    q_f, k_f, v_f = (_folded(x, heads) for x in (q, k, v))
    o_f, l_f = torch.empty_like(q_f), q_f.new_empty(*q_f.shape[:2], 1)
    of_queries = (x.split(tile * group, 1) for x in (q_f * q.shape[3] ** -0.5, o_f, l_f))
    of_keys = k_f.mT.contiguous().split(STRIP * tile, 2), v_f.split(STRIP * tile, 1)  # K^T once: products read it faster
    for q_t, o_t, l_t, rows in zip(*of_queries, _tiles(n, tile), strict=True):
        meter("read", _bytes(q.element_size(), q_t))
        for k_t, v_t, cols in zip(*of_keys, _tiles(rows[1] if causal else keys, STRIP * tile), strict=False):
            if cols[1] - cols[0] < len(v_t[0]):  # under a causal mask a row's last strip ends with the tile on the diagonal
                k_t, v_t = k_t[:, :, : cols[1] - cols[0]], v_t[:, : cols[1] - cols[0]]
            meter("read", _bytes(k.element_size(), k_t, v_t))
            scores = product(q_t, k_t)
            if bias is not None:
                _add_bias(scores, bias, rows, cols, keys, meter)
            if causal and cols[1] == rows[1]:
                _hide(scores[:, :, rows[0] - cols[0] :], future)
            highest = scores.amax(-1, keepdim=True)
            if not cols[0]:  # the first strip: nothing to shrink yet
                m = highest
                p = scores.sub_(m).exp_()
                total, acc = p.sum(-1, keepdim=True), torch.bmm(p, v_t)
            else:
                m_new = torch.maximum(m, highest)
                p, shrink = scores.sub_(m_new).exp_(), m.sub_(m_new).exp_()
                total = p.sum(-1, keepdim=True).addcmul_(shrink, total)
                acc.mul_(shrink).baddbmm_(p, v_t)
                m = m_new
        torch.div(acc, total, out=o_t)
        torch.add(m, total.log_(), out=l_t)
        meter("write", _bytes(out.element_size(), o_t) + _bytes(lse.element_size(), l_t))
    _unfold(o_f, out, heads)
    _unfold(l_f, lse.unsqueeze(-1), heads)


def backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, tile: int = TILE, meter: Meter = _ignore,
    bias: Tensor | None = None, d_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v; P is recomputed tile by tile from L. The bias's is written to d_bias where that is given.

    Of a block of keys the share of it: with O and L of all keys, dK and dV are the block's and dQ is its summand.
    """
    check_shapes(q, k, causal)
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    shares, scores = _shares(q, k, tile)
    spaces = q.new_empty(2, scores, dtype=lse.dtype)
    for of_q, of_k in shares:
        given = *(x[:, of_q] for x in (d_out, q, out, lse)), k[:, of_k], v[:, of_k], None if bias is None else bias[of_q]
        wanted = dq[:, of_q], dk[:, of_k], dv[:, of_k], None if d_bias is None else d_bias[of_q]
        _backward(given, wanted, causal, tile, meter, spaces)
    return dq, dk, dv


def _backward(given: tuple, wanted: tuple, causal: bool, tile: int, meter: Meter, spaces: Tensor) -> None:
    """Algorithm 2 for some heads, into dq, dk and dv."""
    (d_out, q, out, lse, k, v, bias), (dq, dk, dv, d_bias) = given, wanted
    heads, group, n, keys = k.shape[1], q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    product, another = map(_rooms, spaces)
    future = _future(min(tile, n) if causal else 0, group, lse)
    scale, size, accumulator = q.shape[3] ** -0.5, q.element_size(), lse.element_size()
    do_f, q_f, out_f, l_f, k_f, v_f = (_folded(x, heads) for x in (d_out, q, out, lse.unsqueeze(-1), k, v))
    d_f = (do_f * out_f).sum(-1, keepdim=True)
    dq_f, dk_f, dv_f = (torch.zeros_like(x) for x in (q_f, k_f, v_f))  # every tile of keys adds to a row of dQ
    meter("read", _bytes(size, do_f, out_f))
    meter("write", _bytes(accumulator, d_f, dq_f))
    if d_bias is not None:
        meter("write", _bytes(accumulator, d_bias.zero_()))
    of_queries = q_f * scale, do_f, l_f, d_f, dq_f
    of_keys = (x.split(tile, 1) for x in (k_f, v_f, dk_f, dv_f))
    for k_t, v_t, dk_t, dv_t, cols in zip(*of_keys, _tiles(keys, tile), strict=True):
        meter("read", _bytes(size, k_t, v_t))
        for rows in _tiles(n, STRIP * tile, cols[0] if causal else 0):
            q_t, do_t, l_t, d_t, dq_t = (x[:, rows[0] * group : rows[1] * group] for x in of_queries)
            meter("read", _bytes(size, q_t, do_t) + _bytes(accumulator, l_t, d_t, dq_t))
            scores = product(q_t, k_t.mT)
            if bias is not None:
                _add_bias(scores, bias, rows, cols, keys, meter)
            if causal and rows[0] == cols[0]:  # the first strip begins with the tile on the diagonal
                _hide(scores[:, : group * (cols[1] - cols[0])], future)
            p = scores.sub_(l_t).exp_()
            dv_t.baddbmm_(p.mT, do_t)
            ds = another(do_t, v_t.mT).sub_(d_t).mul_(p)
            dq_t.baddbmm_(ds, k_t, alpha=scale)
            dk_t.baddbmm_(ds.mT, q_t)
            if d_bias is not None:
                _sum_bias(d_bias, ds, rows, cols, keys, meter)
            meter("write", _bytes(accumulator, dq_t))
        meter("write", _bytes(size, dk_t, dv_t))
    for x, into in ((dq_f, dq), (dk_f, dk), (dv_f, dv)):
        _unfold(x, into, heads)
    if size != accumulator:  # dQ's sums are rounded at the end
        meter("read", _bytes(accumulator, dq_f))
        meter("write", _bytes(size, dq_f))


# ---- the operators ---------------------------------------------------------------------------------------------------

_library = Library("glasscluster", "DEF")
_library.define("flash_forward(Tensor q, Tensor k, Tensor v, bool causal) -> (Tensor, Tensor)")
_library.define(
    "flash_backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, bool causal) -> (Tensor, Tensor, Tensor)"
)


_library.define("flash_biased_forward(Tensor q, Tensor k, Tensor v, Tensor bias, bool causal) -> (Tensor, Tensor)")
_library.define(
    "flash_biased_backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor bias, bool causal, bool wanted)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)


def forward_like(q: Tensor) -> tuple[Tensor, Tensor]:
    """Room for the output and for L, which is kept in the accumulators' type."""
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=wide(q.dtype))


def _meta_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    check_shapes(q, k, causal)
    return forward_like(q)


def _meta_backward(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _biased_backward(d_out, q, k, v, out, lse, bias: Tensor, causal: bool, wanted: bool) -> tuple[Tensor, ...]:
    d_bias = torch.empty_like(bias) if wanted else bias.new_empty(0)
    return (*backward(d_out, q, k, v, out, lse, causal, bias=bias, d_bias=d_bias if wanted else None), d_bias)


def _meta_biased_backward(d_out, q, k, v, out, lse, bias: Tensor, causal: bool, wanted: bool) -> tuple[Tensor, ...]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), torch.empty_like(bias) if wanted else bias.new_empty(0)


for _device in ("CPU", "CUDA"):
    _library.impl("flash_biased_forward", lambda q, k, v, bias, causal: forward(q, k, v, causal, bias=bias), _device)
    _library.impl("flash_biased_backward", _biased_backward, _device)
_library.impl("flash_biased_forward", lambda q, k, v, bias, causal: _meta_forward(q, k, v, causal), "Meta")
_library.impl("flash_biased_backward", _meta_biased_backward, "Meta")


GPU_KERNEL = "triton"  # what CUDA tensors meet, where triton is installed and the type is not float64; or "torch", this file


def _kernels(x: Tensor) -> Any:
    """The module whose `forward` and `backward` a tensor meets."""
    if GPU_KERNEL == "triton" and x.dtype != torch.float64 and find_spec("triton"):
        return import_module("glasscluster.model.kernels.flash.triton")
    return sys.modules[__name__]


_library.impl("flash_forward", lambda q, k, v, causal: forward(q, k, v, causal), "CPU")
_library.impl("flash_backward", lambda *args: backward(*args), "CPU")
_library.impl("flash_forward", lambda *args: _kernels(args[0]).forward(*args), "CUDA")
_library.impl("flash_backward", lambda *args: _kernels(args[0]).backward(*args), "CUDA")
_library.impl("flash_forward", _meta_forward, "Meta")
_library.impl("flash_backward", _meta_backward, "Meta")


class FlashAttention(torch.autograd.Function):
    """softmax(Q K^T / sqrt(d)) V, forward and backward side by side."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        out, lse = torch.ops.glasscluster.flash_forward(q, k, v, causal)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.causal = causal
        return out

    @staticmethod
    def backward(ctx, d_out: Tensor):
        return (*torch.ops.glasscluster.flash_backward(d_out, *ctx.saved_tensors, ctx.causal), None)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = True, prefix: int = 0, bias: Tensor | None = None) -> Tensor:
    """Attention over q [b, a, N, d] and k, v [b, a_kv, n, d].

    With a prefix, all see its keys; bias [a, 2N - 1] by distance (parts.py): both of a whole sequence, N = n.
    """
    if not prefix and bias is None:
        return FlashAttention.apply(q, k, v, causal)
    from glasscluster.model.kernels.flash.parts import InParts

    return InParts.apply(q, k, v, bias, causal, prefix)


# ---- what the kernels cost -----------------------------------------------------------------------------------------


def tile_pairs(n: int, causal: bool, tile: int = TILE, keys: int | None = None) -> int:
    """Sum over computed tiles of rows x columns: n·keys (n^2), or about half of it under a causal mask; exactly n(n+1)/2 of 1 x 1."""
    keys = n if keys is None else keys
    return sum((r1 - r0) * (min(-(-r1 // tile) * tile, keys) if causal else keys) for r0, r1 in _tiles(n, tile))


def forward_traffic(
    n: int, d: int, causal: bool, size: int = 1, accumulator: int = 1, tile: int = TILE, keys: int | None = None, group: int = 1
) -> int:
    """Slow-memory bytes of one key head and its `group` of query heads, forward; elements when both sizes are 1.

    F7: 2Nd + 2 ceil(N/B) Nd + N for one head of N keys, not causal. Q, O and L are every query head's; K and V the group reads once.
    """
    keys = n if keys is None else keys
    read = sum(min(-(-r1 // tile) * tile, keys) if causal else keys for _, r1 in _tiles(n, tile))
    return (2 * n * d * group + 2 * read * d) * size + n * group * accumulator


def backward_traffic(
    n: int, d: int, causal: bool, size: int = 1, accumulator: int = 1, tile: int = TILE, keys: int | None = None, group: int = 1
) -> int:
    """Slow-memory bytes of one key head and its `group` of query heads, backward.

    Q, dO, L, D and dQ (read and written) of every query head once for each tile of keys; K, V, dK and dV once.
    """
    keys = n if keys is None else keys
    queries = sum(n - c0 if causal else n for c0, _ in _tiles(keys, tile))
    before = 2 * n * d * size + (n + n * d) * accumulator
    rounded = n * d * (size + accumulator) if size != accumulator else 0
    return group * (before + queries * (2 * d * size + (2 * d + 2) * accumulator) + rounded) + 4 * keys * d * size


def bias_steps(n: int, causal: bool, tile: int = TILE, keys: int | None = None) -> tuple[int, int]:
    """Numbers of a bias that one head reads forward, and backward: rows + columns - 1 for each step of the loops."""
    keys, strip = n if keys is None else keys, STRIP * tile
    forward = [(rows, cols) for rows in _tiles(n, tile) for cols in _tiles(rows[1] if causal else keys, strip)]
    backward = [(rows, cols) for cols in _tiles(keys, tile) for rows in _tiles(n, strip, cols[0] if causal else 0)]
    a, b = (sum(r1 - r0 + c1 - c0 - 1 for (r0, r1), (c0, c1) in steps) for steps in (forward, backward))
    return a, b


def _shape(q: Tensor, k: Tensor) -> tuple[int, int, int, int, int, int]:
    """Sequences, query heads and key heads, queries, keys, head size."""
    return q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3]


def _forward_flops(args, out) -> int:
    b, a, _, n, keys, d = _shape(*args[:2])
    return b * a * 4 * tile_pairs(n, args[3], keys=keys) * d


def _forward_bytes(args, out) -> int:
    b, a, heads, n, keys, d = _shape(*args[:2])
    sizes = args[0].element_size(), wide(args[0].dtype).itemsize
    return b * heads * forward_traffic(n, d, args[3], *sizes, keys=keys, group=a // heads)


def _backward_flops(args, out) -> int:
    b, a, _, n, keys, d = _shape(*args[1:3])
    return b * a * 10 * tile_pairs(n, args[6], keys=keys) * d


def _backward_bytes(args, out) -> int:
    b, a, heads, n, keys, d = _shape(*args[1:3])
    sizes = args[1].element_size(), wide(args[1].dtype).itemsize
    return b * heads * backward_traffic(n, d, args[6], *sizes, keys=keys, group=a // heads)


def _bias_bytes(args, out) -> int:
    q, k, v, bias, causal = args
    read = bias_steps(q.shape[2], causal, keys=k.shape[2])[0]
    return _forward_bytes((q, k, v, causal), out) + len(bias) * bias.element_size() * read


def _bias_backward_bytes(args, out) -> int:
    """Its own sums are set to zero, and in each step read and written."""
    q, k, bias, causal, wanted = args[1], args[2], args[6], args[7], args[8]
    read = bias_steps(q.shape[2], causal, keys=k.shape[2])[1]
    numbers = 3 * read + bias.shape[1] if wanted else read
    return _backward_bytes((*args[:6], causal), out) + len(bias) * bias.element_size() * numbers


COSTS = {
    "glasscluster::flash_forward": (_forward_flops, _forward_bytes),
    "glasscluster::flash_backward": (_backward_flops, _backward_bytes),
    "glasscluster::flash_biased_forward": (lambda args, out: _forward_flops((*args[:3], args[4]), out), _bias_bytes),
    "glasscluster::flash_biased_backward": (lambda args, out: _backward_flops((*args[:6], args[7]), out), _bias_backward_bytes),
}
