"""The kernels of FlashAttention that a GPU runs, in Triton; triton.py starts them.

Follows FlashAttention-2 (Dao, 2307.08691, Algorithms 1 and 2). Four kernels; one program of each:

    forward    a tile of queries stays, tiles of keys and values stream past    out, L
    delta      a tile of rows                                                   D = rowsum(dO * O)
    dK, dV     a tile of keys stays, its group's queries stream past            dV = P^T dO
                                                                                dK = dS^T Q / sqrt(d)
    dQ         a tile of queries stays, tiles of keys stream past               dQ = dS K / sqrt(d)

Every output has one writer, so nothing is added atomically and equal inputs give equal bits; the price is
that P and dS are computed twice, 7 products backward where the paper's have 5. dK and dV of a group of query
heads (2305.13245) are one sum in one program. Exponentials are powers of two, exp(scale · x) = 2^(c x) with
c = scale · log2(e). With a soft cap (scores.py) x becomes cap · tanh(x · scale / cap), and c is log2(e). L is
a natural logarithm as in algorithm.py.

Only tiles at an edge (the causal diagonal, where a window begins, the end of the keys) pay for a mask: a loop
is an unmasked part between masked ones.

    keys ->    .  .  .  #  -        . the loop without a mask     # with one     - never looked at
    queries    .  .  .  .  #
    a window   -  #  .  .  #

Shapes: q, out [b, a, N, d]; k, v [b, a_kv, n, d]; L, D [b, a, N]. Any strides of b, a and N; a head is padded
to a power of two by masks. float16 and bfloat16 multiply on tensor cores and add in float32, float32
multiplies in IEEE precision.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
LOG2 = tl.constexpr(1.4426950408889634)  # log2(e)
LOG_2 = tl.constexpr(0.6931471805599453)  # ln(2)


# ---- tiles -------------------------------------------------------------------------------------------------


@triton.jit
def _place(first, stride, TILE: tl.constexpr, WIDTH: tl.constexpr):
    """Offsets of a tile whose first row is `first`, which is counted in 64 bits; within it 32 are enough."""
    return first.to(tl.int64) * stride + tl.arange(0, TILE)[:, None] * stride + tl.arange(0, WIDTH)[None, :]


@triton.jit
def _inside(first, count, TILE: tl.constexpr, WIDTH: tl.constexpr, HEAD: tl.constexpr):
    """Which elements of a tile exist in a [count, HEAD] matrix."""
    return (first + tl.arange(0, TILE) < count)[:, None] & (tl.arange(0, WIDTH) < HEAD)[None, :]


@triton.jit
def _load(
    x,
    first,
    stride,
    count,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    EDGE: tl.constexpr,
):
    """A tile of rows, zero where there is none; away from an edge and of a whole head it needs no mask."""
    if EDGE or HEAD < WIDTH:
        inside = _inside(first, count, TILE, WIDTH, HEAD)
        return tl.load(x + _place(first, stride, TILE, WIDTH), mask=inside, other=0.0)
    else:
        return tl.load(x + _place(first, stride, TILE, WIDTH))


@triton.jit
def _narrow(x, dtype: tl.constexpr):
    """float32 in a narrower type, to the nearest, ties to even."""
    if INTERPRETED and dtype == tl.bfloat16:  # which cuts the lower bits off: carry first
        bits = x.to(tl.uint32, bitcast=True)
        x = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def _store(x, first, stride, count, value, TILE: tl.constexpr, WIDTH: tl.constexpr, HEAD: tl.constexpr):
    mask = _inside(first, count, TILE, WIDTH, HEAD)
    tl.store(x + _place(first, stride, TILE, WIDTH), _narrow(value, x.dtype.element_ty), mask=mask)


@triton.jit
def _dot(x, y, acc, PRECISION: tl.constexpr):
    """x @ y + acc, added up in float32."""
    if INTERPRETED:
        # its tl.dot takes a bfloat16 for the integer of the same bits; a product of two is exact in float32
        return tl.dot(x.to(tl.float32), y.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(x, y, acc, input_precision=PRECISION)


@triton.jit
def _seen(
    row, col, keys, window,
    ROWS: tl.constexpr, COLS: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Which query of a tile sees which key: [ROWS, COLS]."""
    i, j = row + tl.arange(0, ROWS), col + tl.arange(0, COLS)
    seen = (j < keys)[None, :] & (i >= 0)[:, None]
    if CAUSAL:
        seen = seen & (j[None, :] <= i[:, None])
    if WINDOW:
        seen = seen & (j[None, :] > i[:, None] - window)
    return seen


@triton.jit
def _tanh(x):
    """tanh: a polynomial near 0 (Cephes' tanhf), where 1 - 2 / (e^2x + 1) would lose digits."""
    z = x * x
    p = ((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1
    far = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(x)) + 1.0)
    return tl.where(z < 0.390625, x + x * z * (p * z - 3.33332819422e-1), tl.where(x < 0.0, -far, far))


@triton.jit
def _spans(
    row, keys, window, ROWS: tl.constexpr, COLS: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr
):
    """For a tile of queries: the first key, from which to which key no mask is needed, the end of the keys."""
    first, clear = 0, 0
    end = keys
    whole = keys // COLS * COLS
    if CAUSAL:
        end = tl.minimum(row + ROWS, keys)
        whole = row // COLS * COLS
    if WINDOW:
        first = tl.maximum(row - window + 1, 0) // COLS * COLS
        clear = (tl.maximum(row + ROWS - window, 0) + COLS - 1) // COLS * COLS
        clear = tl.maximum(first, tl.minimum(clear, whole))
        whole = tl.maximum(whole, clear)
    return first, clear, whole, end


# ---- forward -----------------------------------------------------------------------------------------------


@triton.jit
def _attend(
    acc,
    total,
    m,
    q,
    k,
    v,
    row,
    first,
    last,
    keys,
    k_n,
    v_n,
    c,
    turn,
    cap,
    window,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
    EDGE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Keys `first` to `last` stream past a tile of queries: online softmax, m the largest c·score so far."""
    for col in range(first, last, COLS):
        col = tl.multiple_of(col, COLS)
        k_t = _load(k, col, k_n, keys, COLS, WIDTH, HEAD, EDGE)
        scores = _dot(q, tl.trans(k_t), None, PRECISION)
        if CAP:
            scores = cap * _tanh(scores * turn)
        if EDGE:
            seen = _seen(row, col, keys, window, ROWS, COLS, CAUSAL, WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
        m_new = tl.maximum(m, tl.max(scores, 1) * c)
        if WINDOW:  # a row may see nothing of a tile
            m_new = tl.maximum(m_new, -1e30)
        p = tl.exp2(scores * c - m_new[:, None])
        shrink = tl.exp2(m - m_new)
        total = total * shrink + tl.sum(p, 1)
        v_t = _load(v, col, v_n, keys, COLS, WIDTH, HEAD, EDGE)
        acc = _dot(_narrow(p, v_t.dtype), v_t, acc * shrink[:, None], PRECISION)
        m = m_new
    return acc, total, m


@triton.jit
def forward_kernel(
    q, k, v, out, lse, scale, cap, window, n, keys,
    q_b, q_a, q_n, k_b, k_a, k_n, v_b, v_a, v_n, out_b, out_a, out_n,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, CAP: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip  # in groups: one argument a line would be a screen of names
    """One tile of one head's queries; grid (tiles, a, b). The causal mask's longest rows start first."""
    tile = tl.program_id(0)
    if CAUSAL:
        tile = tl.num_programs(0) - 1 - tile
    row, head, b = tile * ROWS, tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    q += b * q_b + head * q_a
    k += b * k_b + head // GROUP * k_a
    v += b * v_b + head // GROUP * v_a
    out += b * out_b + head * out_a
    lse += (b * tl.num_programs(1) + head) * n
    c = LOG2 if CAP else scale * LOG2
    turn = scale / cap if CAP else scale

    q_t = _load(q, row, q_n, n, ROWS, WIDTH, HEAD, True)
    m = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    first, clear, whole, end = _spans(row, keys, window, ROWS, COLS, CAUSAL, WINDOW)
    if WINDOW:
        acc, total, m = _attend(
            acc, total, m, q_t, k, v, row, first, clear, keys, k_n, v_n, c, turn, cap, window,
            HEAD, WIDTH, ROWS, COLS, CAUSAL, WINDOW, CAP, True, PRECISION,
        )  # fmt: skip
    acc, total, m = _attend(
        acc, total, m, q_t, k, v, row, clear, whole, keys, k_n, v_n, c, turn, cap, window,
        HEAD, WIDTH, ROWS, COLS, CAUSAL, WINDOW, CAP, False, PRECISION,
    )  # fmt: skip
    acc, total, m = _attend(
        acc, total, m, q_t, k, v, row, whole, end, keys, k_n, v_n, c, turn, cap, window,
        HEAD, WIDTH, ROWS, COLS, CAUSAL, WINDOW, CAP, True, PRECISION,
    )  # fmt: skip
    _store(out, row, out_n, n, acc / total[:, None], ROWS, WIDTH, HEAD)
    i = row + tl.arange(0, ROWS)
    tl.store(lse + i, (m + tl.log2(total)) * LOG_2, mask=i < n)


# ---- backward ----------------------------------------------------------------------------------------------


@triton.jit
def delta_kernel(
    d_out,
    out,
    delta,
    n,
    do_b,
    do_a,
    do_n,
    out_b,
    out_a,
    out_n,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    """D = rowsum(dO * O) of one tile; grid (tiles, a, b)."""
    row, head, b = tl.program_id(0) * ROWS, tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    do_t = _load(d_out + b * do_b + head * do_a, row, do_n, n, ROWS, WIDTH, HEAD, True).to(tl.float32)
    out_t = _load(out + b * out_b + head * out_a, row, out_n, n, ROWS, WIDTH, HEAD, True).to(tl.float32)
    i = row + tl.arange(0, ROWS)
    tl.store(delta + (b * tl.num_programs(1) + head) * n + i, tl.sum(do_t * out_t, 1), mask=i < n)


@triton.jit
def _gather(
    dk,
    dv,
    k,
    v,
    q,
    d_out,
    lse,
    delta,
    col,
    first,
    last,
    n,
    keys,
    q_n,
    do_n,
    c,
    turn,
    cap,
    window,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
    EDGE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Queries `first` to `last` stream past a tile of keys; scores stand transposed, [COLS, ROWS].

    A row behind the last has L = inf, so P = 0; a key behind the last spoils its own row only, which is not
    stored.
    """
    for row in range(first, last, ROWS):
        row = tl.multiple_of(row, ROWS)
        i = row + tl.arange(0, ROWS)
        q_t = _load(q, row, q_n, n, ROWS, WIDTH, HEAD, True)
        lse_t = tl.load(lse + i, mask=i < n, other=float("inf"))
        scores = _dot(k, tl.trans(q_t), None, PRECISION)
        if CAP:
            t = _tanh(scores * turn)
            scores = cap * t
        p = tl.exp2(scores * c - (lse_t * LOG2)[None, :])
        if CAUSAL and EDGE:
            p = tl.where((col + tl.arange(0, COLS))[:, None] <= i[None, :], p, 0.0)
        if WINDOW and EDGE:
            p = tl.where((col + tl.arange(0, COLS))[:, None] > i[None, :] - window, p, 0.0)
        do_t = _load(d_out, row, do_n, n, ROWS, WIDTH, HEAD, True)
        dv = _dot(_narrow(p, do_t.dtype), do_t, dv, PRECISION)
        dp = _dot(v, tl.trans(do_t), None, PRECISION)
        ds = p * (dp - tl.load(delta + i, mask=i < n, other=0.0)[None, :])
        if CAP:
            ds = ds * (1.0 - t * t)
        dk = _dot(_narrow(ds, q_t.dtype), q_t, dk, PRECISION)
    return dk, dv


@triton.jit
def dkdv_kernel(
    q, k, v, d_out, lse, delta, dk, dv, scale, cap, window, n, keys,
    q_b, q_a, q_n, k_b, k_a, k_n, v_b, v_a, v_n, do_b, do_a, do_n, dk_b, dk_a, dk_n, dv_b, dv_a, dv_n,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, CAP: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip  # in groups: one argument a line would be a screen of names
    """dK and dV of one tile of one key head, summed over its group of query heads; grid (tiles, a_kv, b)."""
    col, head, b = tl.program_id(0) * COLS, tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    c = LOG2 if CAP else scale * LOG2
    turn = scale / cap if CAP else scale
    k_t = _load(k + b * k_b + head * k_a, col, k_n, keys, COLS, WIDTH, HEAD, True)
    v_t = _load(v + b * v_b + head * v_a, col, v_n, keys, COLS, WIDTH, HEAD, True)
    dk_t = tl.zeros([COLS, WIDTH], tl.float32)
    dv_t = tl.zeros([COLS, WIDTH], tl.float32)
    begin = 0
    clear = 0  # queries from here on see the whole tile
    far, stop = n, n  # from here on they no longer see all of it, and nothing
    if CAUSAL:
        begin = col // ROWS * ROWS
        clear = tl.minimum((col + COLS + ROWS - 1) // ROWS * ROWS, (n + ROWS - 1) // ROWS * ROWS)
    if WINDOW:
        stop = tl.minimum(n, col + COLS - 1 + window)
        clear = tl.minimum(clear, (stop + ROWS - 1) // ROWS * ROWS)
        far = tl.maximum(clear, (col + window) // ROWS * ROWS)
        far = tl.minimum(far, (stop + ROWS - 1) // ROWS * ROWS)
    for member in range(GROUP):
        query_head = head * GROUP + member
        q_h, do_h = q + b * q_b + query_head * q_a, d_out + b * do_b + query_head * do_a
        at = (b * tl.num_programs(1) * GROUP + query_head) * n
        if CAUSAL:
            dk_t, dv_t = _gather(
                dk_t, dv_t, k_t, v_t, q_h, do_h, lse + at, delta + at, col, begin, clear, n, keys, q_n, do_n,
                c, turn, cap, window, HEAD, WIDTH, ROWS, COLS, CAUSAL, WINDOW, CAP, True, PRECISION,
            )  # fmt: skip
        dk_t, dv_t = _gather(
            dk_t, dv_t, k_t, v_t, q_h, do_h, lse + at, delta + at, col, clear, far, n, keys, q_n, do_n,
            c, turn, cap, window, HEAD, WIDTH, ROWS, COLS, CAUSAL, WINDOW, CAP, False, PRECISION,
        )  # fmt: skip
        if WINDOW:
            dk_t, dv_t = _gather(
                dk_t, dv_t, k_t, v_t, q_h, do_h, lse + at, delta + at, col, far, stop, n, keys, q_n, do_n,
                c, turn, cap, window, HEAD, WIDTH, ROWS, COLS, CAUSAL, WINDOW, CAP, True, PRECISION,
            )  # fmt: skip
    _store(dk + b * dk_b + head * dk_a, col, dk_n, keys, dk_t * scale, COLS, WIDTH, HEAD)
    _store(dv + b * dv_b + head * dv_a, col, dv_n, keys, dv_t, COLS, WIDTH, HEAD)


@triton.jit
def _descend(
    dq,
    q,
    d_out,
    k,
    v,
    lse,
    delta,
    row,
    first,
    last,
    keys,
    k_n,
    v_n,
    c,
    turn,
    cap,
    window,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
    EDGE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Keys `first` to `last` stream past a tile of queries and its dO."""
    for col in range(first, last, COLS):
        col = tl.multiple_of(col, COLS)
        k_t = _load(k, col, k_n, keys, COLS, WIDTH, HEAD, EDGE)
        v_t = _load(v, col, v_n, keys, COLS, WIDTH, HEAD, EDGE)
        scores = _dot(q, tl.trans(k_t), None, PRECISION)
        if CAP:
            t = _tanh(scores * turn)
            scores = cap * t
        p = tl.exp2(scores * c - lse[:, None])
        if EDGE:
            p = tl.where(_seen(row, col, keys, window, ROWS, COLS, CAUSAL, WINDOW), p, 0.0)
        ds = p * (_dot(d_out, tl.trans(v_t), None, PRECISION) - delta[:, None])
        if CAP:
            ds = ds * (1.0 - t * t)
        dq = _dot(_narrow(ds, k_t.dtype), k_t, dq, PRECISION)
    return dq


@triton.jit
def dq_kernel(
    q, k, v, d_out, lse, delta, dq, scale, cap, window, n, keys,
    q_b, q_a, q_n, k_b, k_a, k_n, v_b, v_a, v_n, do_b, do_a, do_n, dq_b, dq_a, dq_n,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, CAP: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip  # in groups: one argument a line would be a screen of names
    """dQ of one tile of one head; grid (tiles, a, b)."""
    tile = tl.program_id(0)
    if CAUSAL:
        tile = tl.num_programs(0) - 1 - tile
    row, head, b = tile * ROWS, tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    k += b * k_b + head // GROUP * k_a
    v += b * v_b + head // GROUP * v_a
    q_t = _load(q + b * q_b + head * q_a, row, q_n, n, ROWS, WIDTH, HEAD, True)
    do_t = _load(d_out + b * do_b + head * do_a, row, do_n, n, ROWS, WIDTH, HEAD, True)
    i = row + tl.arange(0, ROWS)
    at = (b * tl.num_programs(1) + head) * n
    lse_t = tl.load(lse + at + i, mask=i < n, other=float("inf")) * LOG2
    delta_t = tl.load(delta + at + i, mask=i < n, other=0.0)
    dq_t = tl.zeros([ROWS, WIDTH], tl.float32)
    first, clear, whole, end = _spans(row, keys, window, ROWS, COLS, CAUSAL, WINDOW)
    c = LOG2 if CAP else scale * LOG2
    turn = scale / cap if CAP else scale
    if WINDOW:
        dq_t = _descend(
            dq_t, q_t, do_t, k, v, lse_t, delta_t, row, first, clear, keys, k_n, v_n, c, turn, cap, window,
            HEAD, WIDTH, ROWS, COLS, CAUSAL, WINDOW, CAP, True, PRECISION,
        )  # fmt: skip
    dq_t = _descend(
        dq_t, q_t, do_t, k, v, lse_t, delta_t, row, clear, whole, keys, k_n, v_n, c, turn, cap, window,
        HEAD, WIDTH, ROWS, COLS, CAUSAL, WINDOW, CAP, False, PRECISION,
    )  # fmt: skip
    dq_t = _descend(
        dq_t, q_t, do_t, k, v, lse_t, delta_t, row, whole, end, keys, k_n, v_n, c, turn, cap, window,
        HEAD, WIDTH, ROWS, COLS, CAUSAL, WINDOW, CAP, True, PRECISION,
    )  # fmt: skip
    _store(dq + b * dq_b + head * dq_a, row, dq_n, n, dq_t * scale, ROWS, WIDTH, HEAD)
