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
makes dK and dV. Shapes: q, out [b, a, N, d]; k, v [b, a_kv, n, d]; L [b, a, N]. v may have fewer columns than
q and k (latent attention); then out has as few. N and n may differ where nothing is masked (a block of ring
attention); the causal mask wants a square. How products become scores (another scale, a soft cap, a window)
is in scores.py, what may be added to them in bias.py, what all of it costs in costs.py, proven by a counting
run in tests: `meter` hears every tile that is read or written. But: tiles above the causal diagonal or
before all windows are skipped, the ones at an edge are computed whole; no dropout. What is laid out anew
once a head (Q scaled, K transposed, outputs transposed back) is not metered: the tiles are.
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
    hide_past,
    keys_seen,
    nbytes,
    no_meter,
    product_into,
    queries_seeing,
    tiles,
    unfold_heads,
)
from glasscluster.model.kernels.precision import accumulation_dtype
from glasscluster.model.kernels.scores import PLAIN, Scores, cap_slope, soft_cap


def check_shapes(q: Tensor, k: Tensor, causal: bool, window: int = 0) -> None:
    """Raise ValueError unless query heads come in whole groups, a causal mask is over a square, and every
    query sees a key.
    """
    if window and q.shape[2] > k.shape[2] + window - 1:
        raise ValueError(f"{q.shape[2]} queries, {k.shape[2]} keys, {window = }: the last query sees no key")
    if q.shape[1] % k.shape[1] or q.shape[3] != k.shape[3] or (causal and q.shape[2] != k.shape[2]):
        rule = "heads come in whole groups, a causal mask is over a square"
        raise ValueError(f"attention of {tuple(q.shape)} to {tuple(k.shape)}, {causal = }: {rule}")


def forward_like(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Uninitialised output, as wide as the values, and L in the accumulation type."""
    return torch.empty_like(q[..., : v.shape[3]]), q.new_empty(q.shape[:3], dtype=accumulation_dtype(q.dtype))


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    tile: int = TILE,
    meter: Meter = no_meter,
    bias: Tensor | None = None,
    how: Scores = PLAIN,
) -> tuple[Tensor, Tensor]:
    """Output [b, a, N, d] in q's type and log-sum-exp L [b, a, N] in the accumulation type.

    `meter("read" | "write", bytes)` hears slow-memory traffic; bias [a, N + n - 1] as in bias.py.
    """
    check_shapes(q, k, causal, how.window)
    out, lse = forward_like(q, v)
    shares, scores = head_shares(q, k, tile)
    workspace = out.new_empty(scores, dtype=lse.dtype)
    for of_q, of_k in shares:
        inputs = q[:, of_q], k[:, of_k], v[:, of_k], None if bias is None else bias[of_q]
        _forward(inputs, (out[:, of_q], lse[:, of_q]), causal, how, tile, meter, workspace)
    return out, lse


def _forward(
    inputs: tuple, outputs: tuple, causal: bool, how: Scores, tile: int, meter: Meter, workspace: Tensor
) -> None:
    """Algorithm 1 for some heads, into out and lse."""
    (q, k, v, bias), (out, lse) = inputs, outputs
    heads, group, n, keys = k.shape[1], q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    product, future = product_into(workspace), future_mask(min(tile, n) if causal else 0, group, lse)
    q_f, k_f, v_f = (fold_heads(x, heads) for x in (q, k, v))
    o_f, l_f = (q_f.new_empty(*q_f.shape[:2], columns) for columns in (v.shape[3], 1))
    of_queries = (x.split(tile * group, 1) for x in (q_f * how.scale_of(q.shape[3]), o_f, l_f))
    k_f = k_f.mT.contiguous()  # once: products read it faster so
    lowest = torch.finfo(lse.dtype).min
    for q_t, o_t, l_t, rows in zip(*of_queries, tiles(n, tile), strict=True):
        meter("read", nbytes(q.element_size(), q_t))
        first, last = keys_seen(rows, keys, causal, how.window, tile)
        for cols in tiles(last, STRIP * tile, first):
            k_t, v_t = k_f[:, :, slice(*cols)], v_f[:, slice(*cols)]
            meter("read", nbytes(k.element_size(), k_t, v_t))
            scores = product(q_t, k_t)
            if how.cap:
                soft_cap(scores, how.cap)
            if bias is not None:
                add_bias(scores, bias, rows, cols, keys, meter)
            if causal and cols[1] == rows[1]:
                hide_future(scores[:, :, rows[0] - cols[0] :], future)
            if how.window:
                hide_past(scores, rows, cols, how.window)
            highest = scores.amax(-1, keepdim=True)
            if how.window:  # a row may see nothing of a strip
                highest.clamp_(min=lowest)
            if cols[0] == first:  # the first strip: nothing to shrink yet
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
    how: Scores = PLAIN,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; P is recomputed tile by tile from L.

    d_bias: if given, the bias's gradient is written to it.
    k and v may be a block of the keys that made `out` and L: dK and dV are then the block's, dQ is its
    summand.
    """
    check_shapes(q, k, causal, how.window)
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    shares, scores = head_shares(q, k, tile)
    workspace = q.new_empty(3 if how.cap else 2, scores, dtype=lse.dtype)
    for of_q, of_k in shares:
        of_queries = (x[:, of_q] for x in (d_out, q, out, lse))
        inputs = *of_queries, k[:, of_k], v[:, of_k], None if bias is None else bias[of_q]
        outputs = dq[:, of_q], dk[:, of_k], dv[:, of_k], None if d_bias is None else d_bias[of_q]
        _backward(inputs, outputs, causal, how, tile, meter, workspace)
    return dq, dk, dv


def _backward(
    inputs: tuple,
    outputs: tuple,
    causal: bool,
    how: Scores,
    tile: int,
    meter: Meter,
    workspace: Tensor,
) -> None:
    """Algorithm 2 for some heads, into dq, dk, dv and, where it is given, d_bias."""
    (d_out, q, out, lse, k, v, bias), (dq, dk, dv, d_bias) = inputs, outputs
    heads, group, n, keys = k.shape[1], q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    scores_product, ds_product = map(product_into, workspace[:2])
    future = future_mask(min(tile, n) if causal else 0, group, lse)
    scale, size, accumulator = how.scale_of(q.shape[3]), q.element_size(), lse.element_size()
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
        first, last = queries_seeing(cols, n, causal, how.window, tile)
        for rows in tiles(last, STRIP * tile, first):
            q_t, do_t, l_t, d_t, dq_t = (x[:, rows[0] * group : rows[1] * group] for x in of_queries)
            meter("read", nbytes(size, q_t, do_t) + nbytes(accumulator, l_t, d_t, dq_t))
            scores = scores_product(q_t, k_t.mT)
            if how.cap:
                slope = workspace[2, : scores.numel()].view(scores.shape)
                cap_slope(soft_cap(scores, how.cap), how.cap, slope)
            if bias is not None:
                add_bias(scores, bias, rows, cols, keys, meter)
            if causal and rows[0] == cols[0]:  # the first strip begins with the tile on the diagonal
                hide_future(scores[:, : group * (cols[1] - cols[0])], future)
            if how.window:
                hide_past(scores, rows, cols, how.window)
            p = scores.sub_(l_t).exp_()
            dv_t.baddbmm_(p.mT, do_t)
            ds = ds_product(do_t, v_t.mT).sub_(d_t).mul_(p)
            if d_bias is not None:
                sum_bias(d_bias, ds, rows, cols, keys, meter)
            if how.cap:
                ds.mul_(slope)
            dq_t.baddbmm_(ds, k_t, alpha=scale)
            dk_t.baddbmm_(ds.mT, q_t)
            meter("write", nbytes(accumulator, dq_t))
        meter("write", nbytes(size, dk_t, dv_t))
    for x, into in ((dq_f, dq), (dk_f, dk), (dv_f, dv)):
        unfold_heads(x, into, heads)
    if size != accumulator:  # dQ's sums are rounded at the end
        meter("read", nbytes(accumulator, dq_f))
        meter("write", nbytes(size, dq_f))
