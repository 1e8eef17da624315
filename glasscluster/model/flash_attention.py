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

Shapes: q, k, v [b, a, N, d]; L [b, a, N]. Registered as two low-level library operators, so that a recorder
sees one kernel each way; `COSTS` has their FLOPs and slow-memory bytes, proven by a counting run in tests.
But: tiles above the causal diagonal are skipped, the ones on it are computed whole; no dropout.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.library import Library

TILE = 128

Meter = Callable[[str, int], None]


def _tiles(n: int, tile: int) -> list[tuple[int, int]]:
    return [(a, min(a + tile, n)) for a in range(0, n, tile)]


def _mask(scores: Tensor, rows: tuple[int, int], cols: tuple[int, int]) -> Tensor:
    """-inf above the diagonal, for a tile that the diagonal crosses."""
    i = torch.arange(*rows, device=scores.device)[:, None]
    j = torch.arange(*cols, device=scores.device)[None, :]
    return scores.masked_fill(j > i, float("-inf"))


def _ignore(_what: str, _bytes: int) -> None:
    return None


def wide(dtype: torch.dtype) -> torch.dtype:
    """What a kernel accumulates in: float32 for 16-bit types, as on a GPU; otherwise the type itself."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _load(x: Tensor, span: tuple[int, int], meter: Meter) -> Tensor:
    """A tile from slow memory, in the type of the accumulators."""
    tile = x[:, :, span[0] : span[1]]
    meter("read", tile.numel() * tile.element_size())
    return tile.to(wide(x.dtype))


def _store(into: Tensor, span: tuple[int, int], value: Tensor, meter: Meter) -> None:
    """A tile to slow memory."""
    tile = into[:, :, span[0] : span[1]]
    tile.copy_(value)
    meter("write", tile.numel() * tile.element_size())


def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, tile: int = TILE, meter: Meter = _ignore) -> tuple[Tensor, Tensor]:
    """Output [b, a, N, d] and log-sum-exp L [b, a, N]. `meter("read" | "write", bytes)` hears slow-memory traffic."""
    n, scale = q.shape[2], q.shape[3] ** -0.5
    out, lse = _forward_like(q)
    for rows in _tiles(n, tile):
        q_t = _load(q, rows, meter) * scale
        m = q_t.new_full((*q_t.shape[:3], 1), float("-inf"))
        total, acc = torch.zeros_like(m), torch.zeros_like(q_t)
        for cols in _tiles(n, tile):
            if causal and cols[0] >= rows[1]:
                break
            k_t, v_t = _load(k, cols, meter), _load(v, cols, meter)
            scores = q_t @ k_t.transpose(-1, -2)
            if causal and cols[1] > rows[0] + 1:
                scores = _mask(scores, rows, cols)
            m_new = torch.maximum(m, scores.amax(-1, keepdim=True))
            p = torch.exp(scores.sub_(m_new))
            shrink = torch.exp(m - m_new)
            total = total.mul_(shrink).add_(p.sum(-1, keepdim=True))
            acc = acc.mul_(shrink).add_(p @ v_t)
            m = m_new
        _store(out, rows, acc / total, meter)
        _store(lse, rows, (m + total.log()).squeeze(-1), meter)
    return out, lse


def backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, tile: int = TILE, meter: Meter = _ignore
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v; P is recomputed tile by tile from L."""
    n, scale, whole = q.shape[2], q.shape[3] ** -0.5, (0, q.shape[2])
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    delta = torch.empty_like(lse)
    _store(delta, whole, (_load(d_out, whole, meter) * _load(out, whole, meter)).sum(-1), meter)
    dq_acc = torch.empty_like(q, dtype=lse.dtype)  # a row of dQ is added to by every tile of keys
    _store(dq_acc, whole, torch.zeros_like(dq_acc), meter)
    for cols in _tiles(n, tile):
        k_t, v_t = _load(k, cols, meter), _load(v, cols, meter)
        dk_t, dv_t = torch.zeros_like(k_t), torch.zeros_like(v_t)
        for rows in _tiles(n, tile):
            if causal and rows[1] <= cols[0]:
                continue
            q_t, do_t = _load(q, rows, meter), _load(d_out, rows, meter)
            scores = (q_t * scale) @ k_t.transpose(-1, -2)
            if causal and cols[1] > rows[0] + 1:
                scores = _mask(scores, rows, cols)
            p = torch.exp(scores.sub_(_load(lse, rows, meter)[..., None]))
            dv_t += p.transpose(-1, -2) @ do_t
            ds = (do_t @ v_t.transpose(-1, -2)).sub_(_load(delta, rows, meter)[..., None]).mul_(p).mul_(scale)
            _store(dq_acc, rows, _load(dq_acc, rows, meter) + ds @ k_t, meter)
            dk_t += ds.transpose(-1, -2) @ q_t
        _store(dk, cols, dk_t, meter)
        _store(dv, cols, dv_t, meter)
    if dq_acc.dtype == dq.dtype:
        return dq_acc, dk, dv
    _store(dq, whole, _load(dq_acc, whole, meter), meter)
    return dq, dk, dv


# ---- the two operators ---------------------------------------------------------------------------------------------

_library = Library("glasscluster", "DEF")
_library.define("flash_forward(Tensor q, Tensor k, Tensor v, bool causal) -> (Tensor, Tensor)")
_library.define(
    "flash_backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, bool causal) -> (Tensor, Tensor, Tensor)"
)


def _forward_like(q: Tensor) -> tuple[Tensor, Tensor]:
    """Room for the output and for L, which is kept in the accumulators' type."""
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=wide(q.dtype))


def _meta_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    return _forward_like(q)


def _meta_backward(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


for _device in ("CPU", "CUDA"):
    _library.impl("flash_forward", lambda q, k, v, causal: forward(q, k, v, causal), _device)
    _library.impl("flash_backward", lambda *args: backward(*args), _device)
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


def flash_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    """Attention over q, k, v [b, a, N, d]."""
    return FlashAttention.apply(q, k, v, causal)


# ---- what the kernels cost -----------------------------------------------------------------------------------------


def tile_pairs(n: int, causal: bool, tile: int = TILE) -> int:
    """Sum over computed tiles of rows x columns: N^2, or about half of it under a causal mask."""
    return sum((r1 - r0) * (c1 - c0) for r0, r1 in _tiles(n, tile) for c0, c1 in _tiles(n, tile) if not causal or c0 < r1)


def forward_traffic(n: int, d: int, causal: bool, size: int = 1, accumulator: int = 1, tile: int = TILE) -> int:
    """Slow-memory bytes of one head, forward; elements when both sizes are 1 (F7: 2Nd + 2 ceil(N/B) Nd + N, not causal)."""
    keys = sum(c1 - c0 for r0, r1 in _tiles(n, tile) for c0, c1 in _tiles(n, tile) if not causal or c0 < r1)
    return (2 * n * d + 2 * keys * d) * size + n * accumulator


def backward_traffic(n: int, d: int, causal: bool, size: int = 1, accumulator: int = 1, tile: int = TILE) -> int:
    """Slow-memory bytes of one head, backward: Q, dO, L, D and dQ (read and written) once for every tile of keys."""
    queries = sum(r1 - r0 for c0, c1 in _tiles(n, tile) for r0, r1 in _tiles(n, tile) if not causal or r1 > c0)
    before = 2 * n * d * size + (n + n * d) * accumulator
    rounded = n * d * (size + accumulator) if size != accumulator else 0
    return before + 4 * n * d * size + queries * (2 * d * size + (2 * d + 2) * accumulator) + rounded


def _forward_flops(args, out) -> int:
    b, a, n, d = args[0].shape
    return b * a * 4 * tile_pairs(n, args[3]) * d


def _forward_bytes(args, out) -> int:
    b, a, n, d = args[0].shape
    return b * a * forward_traffic(n, d, args[3], args[0].element_size(), wide(args[0].dtype).itemsize)


def _backward_flops(args, out) -> int:
    b, a, n, d = args[1].shape
    return b * a * 10 * tile_pairs(n, args[6]) * d


def _backward_bytes(args, out) -> int:
    b, a, n, d = args[1].shape
    return b * a * backward_traffic(n, d, args[6], args[1].element_size(), wide(args[1].dtype).itemsize)


COSTS = {
    "glasscluster::flash_forward": (_forward_flops, _forward_bytes),
    "glasscluster::flash_backward": (_backward_flops, _backward_bytes),
}
