"""FlashAttention in plain torch: tiles, online softmax, recomputation in backward, never an N x N tensor.

Follows FlashAttention-2 (Dao, 2307.08691, Algorithms 1 and 2). Symbols: N tokens, d head size, tiles of B
rows.

    forward, per tile of queries         backward, per tile of keys and values
      for each tile of keys, values        for each tile of queries
        S = Q K^T / sqrt(d)                  P = exp(Q K^T / sqrt(d) - L)       (recomputed)
        m' = max(m, rowmax S)                dV += P^T dO
        P = exp(S - m')                      dS = P * (dO V^T - D),  D = rowsum(dO * O)
        l = exp(m - m') l + rowsum P         dQ += dS K / sqrt(d);  dK += dS^T Q / sqrt(d)
        O = exp(m - m') O + P V
      O = O / l;  L = m + log l            kept for backward: Q, K, V, O and L only

Grouped-query heads (Ainslie et al., 2305.13245): a query heads in groups of g = a / a_kv; each group reads
one key head.

    rows of a tile of queries = its B tokens, each in the g heads: [b · a_kv, B·g, d]

so one product serves the group, K and V are loaded once for it and never repeated, and its sum over rows
makes dK and dV. Shapes: q, out [b, a, N, d]; k, v [b, a_kv, n, d]; L [b, a, N]. N and n may differ where
nothing is masked (a block of ring attention); the causal mask wants a square. What may be added to the scores
is in bias.py, what all of it costs in costs.py, proven by a counting run in tests: `meter` hears every tile
that is read or written.
But: tiles above the causal diagonal are skipped, the ones on it are computed whole; no dropout. What is laid
out anew once a head (Q scaled, K transposed, outputs transposed back) is not metered: the tiles are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glasscluster.model.kernels.flash.bias import add_bias, sum_bias
from glasscluster.model.kernels.flash.tiles import (
    STRIP,
    TILE,
    Meter,
    fold_heads,
    future_mask,
    head_shares,
    hide_future,
    nbytes,
    no_meter,
    product_into,
    tiles,
    unfold_heads,
)
from glasscluster.model.kernels.precision import accumulation_dtype


def check_shapes(q: Tensor, k: Tensor, causal: bool) -> None:
    """Raise ValueError unless query heads come in whole groups and a causal mask is over a square."""
    if q.shape[1] % k.shape[1] or q.shape[3] != k.shape[3] or (causal and q.shape[2] != k.shape[2]):
        rule = "heads come in whole groups, a causal mask is over a square"
        raise ValueError(f"attention of {tuple(q.shape)} to {tuple(k.shape)}, {causal = }: {rule}")


def forward_like(q: Tensor) -> tuple[Tensor, Tensor]:
    """Uninitialised output, and L in the accumulation type."""
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=accumulation_dtype(q.dtype))


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    tile: int = TILE,
    meter: Meter = no_meter,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Output [b, a, N, d] in q's type and log-sum-exp L [b, a, N] in the accumulation type.

    `meter("read" | "write", bytes)` hears slow-memory traffic; bias [a, N + n - 1] as in bias.py.
    """
    check_shapes(q, k, causal)
    out, lse = forward_like(q)
    shares, scores = head_shares(q, k, tile)
    workspace = out.new_empty(scores, dtype=lse.dtype)
    for of_q, of_k in shares:
        inputs = q[:, of_q], k[:, of_k], v[:, of_k], None if bias is None else bias[of_q]
        _forward(inputs, (out[:, of_q], lse[:, of_q]), causal, tile, meter, workspace)
    return out, lse


def _forward(inputs: tuple, outputs: tuple, causal: bool, tile: int, meter: Meter, workspace: Tensor) -> None:
    """Algorithm 1 for some heads, into out and lse."""
    (q, k, v, bias), (out, lse) = inputs, outputs
    heads, group, n, keys = k.shape[1], q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    product, future = product_into(workspace), future_mask(min(tile, n) if causal else 0, group, lse)
    q_f, k_f, v_f = (fold_heads(x, heads) for x in (q, k, v))
    o_f, l_f = torch.empty_like(q_f), q_f.new_empty(*q_f.shape[:2], 1)
    of_queries = (x.split(tile * group, 1) for x in (q_f * q.shape[3] ** -0.5, o_f, l_f))
    # K is transposed once: products read it faster so
    of_keys = k_f.mT.contiguous().split(STRIP * tile, 2), v_f.split(STRIP * tile, 1)
    for q_t, o_t, l_t, rows in zip(*of_queries, tiles(n, tile), strict=True):
        meter("read", nbytes(q.element_size(), q_t))
        for k_t, v_t, cols in zip(*of_keys, tiles(rows[1] if causal else keys, STRIP * tile), strict=False):
            width = cols[1] - cols[0]
            if width < len(v_t[0]):  # under a causal mask the last strip ends with the tile on the diagonal
                k_t, v_t = k_t[:, :, :width], v_t[:, :width]
            meter("read", nbytes(k.element_size(), k_t, v_t))
            scores = product(q_t, k_t)
            if bias is not None:
                add_bias(scores, bias, rows, cols, keys, meter)
            if causal and cols[1] == rows[1]:
                hide_future(scores[:, :, rows[0] - cols[0] :], future)
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
        meter("write", nbytes(out.element_size(), o_t) + nbytes(lse.element_size(), l_t))
    unfold_heads(o_f, out, heads)
    unfold_heads(l_f, lse.unsqueeze(-1), heads)


def backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    tile: int = TILE,
    meter: Meter = no_meter,
    bias: Tensor | None = None,
    d_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; P is recomputed tile by tile from L.

    d_bias: if given, the bias's gradient is written to it.
    k and v may be a block of the keys that made `out` and L: dK and dV are then the block's, dQ is its
    summand.
    """
    check_shapes(q, k, causal)
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    shares, scores = head_shares(q, k, tile)
    workspace = q.new_empty(2, scores, dtype=lse.dtype)
    for of_q, of_k in shares:
        of_queries = (x[:, of_q] for x in (d_out, q, out, lse))
        inputs = *of_queries, k[:, of_k], v[:, of_k], None if bias is None else bias[of_q]
        outputs = dq[:, of_q], dk[:, of_k], dv[:, of_k], None if d_bias is None else d_bias[of_q]
        _backward(inputs, outputs, causal, tile, meter, workspace)
    return dq, dk, dv


def _backward(
    inputs: tuple,
    outputs: tuple,
    causal: bool,
    tile: int,
    meter: Meter,
    workspace: Tensor,
) -> None:
    """Algorithm 2 for some heads, into dq, dk, dv and, where it is given, d_bias."""
    (d_out, q, out, lse, k, v, bias), (dq, dk, dv, d_bias) = inputs, outputs
    heads, group, n, keys = k.shape[1], q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    scores_product, ds_product = map(product_into, workspace)
    future = future_mask(min(tile, n) if causal else 0, group, lse)
    scale, size, accumulator = q.shape[3] ** -0.5, q.element_size(), lse.element_size()
    do_f, q_f, out_f, l_f, k_f, v_f = (fold_heads(x, heads) for x in (d_out, q, out, lse.unsqueeze(-1), k, v))
    d_f = (do_f * out_f).sum(-1, keepdim=True)
    # every tile of keys adds to a row of dQ
    dq_f, dk_f, dv_f = (torch.zeros_like(x) for x in (q_f, k_f, v_f))
    meter("read", nbytes(size, do_f, out_f))
    meter("write", nbytes(accumulator, d_f, dq_f))
    if d_bias is not None:
        meter("write", nbytes(accumulator, d_bias.zero_()))
    of_queries = q_f * scale, do_f, l_f, d_f, dq_f
    of_keys = (x.split(tile, 1) for x in (k_f, v_f, dk_f, dv_f))
    for k_t, v_t, dk_t, dv_t, cols in zip(*of_keys, tiles(keys, tile), strict=True):
        meter("read", nbytes(size, k_t, v_t))
        for rows in tiles(n, STRIP * tile, cols[0] if causal else 0):
            q_t, do_t, l_t, d_t, dq_t = (x[:, rows[0] * group : rows[1] * group] for x in of_queries)
            meter("read", nbytes(size, q_t, do_t) + nbytes(accumulator, l_t, d_t, dq_t))
            scores = scores_product(q_t, k_t.mT)
            if bias is not None:
                add_bias(scores, bias, rows, cols, keys, meter)
            if causal and rows[0] == cols[0]:  # the first strip begins with the tile on the diagonal
                hide_future(scores[:, : group * (cols[1] - cols[0])], future)
            p = scores.sub_(l_t).exp_()
            dv_t.baddbmm_(p.mT, do_t)
            ds = ds_product(do_t, v_t.mT).sub_(d_t).mul_(p)
            dq_t.baddbmm_(ds, k_t, alpha=scale)
            dk_t.baddbmm_(ds.mT, q_t)
            if d_bias is not None:
                sum_bias(d_bias, ds, rows, cols, keys, meter)
            meter("write", nbytes(accumulator, dq_t))
        meter("write", nbytes(size, dk_t, dv_t))
    for x, into in ((dq_f, dq), (dk_f, dk), (dv_f, dv)):
        unfold_heads(x, into, heads)
    if size != accumulator:  # dQ's sums are rounded at the end
        meter("read", nbytes(accumulator, dq_f))
        meter("write", nbytes(size, dq_f))
