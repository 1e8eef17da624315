"""Attention in parts: which queries see which keys, as rectangles and triangles that flash attention computes one by one.

    causal        a query sees the keys up to its own       prefix P: and the first P keys, which so see each other
    bidirectional   it sees all                              (UniLM, 1905.03197; T5, 1910.10683, section 3.2.1)

        keys     P                   a prefix is two parts:
              # │ . . .              all queries with the first P keys       rectangle
        P     # │ . . .              the other queries with the other keys   triangle
              # │ ◣ . .
              # │ # ◣ .              and their outputs are merged by their log-sum-exp (F6), as a ring merges its blocks:
              # │ # # ◣              share = sigmoid(L_part - L)    O += share (O_part - O)    L = log(e^L + e^L_part)

Packed documents (packing.py) are a triangle each, and nothing else: no two share queries or keys, so there is nothing to merge.

    # doc 1   ◣
    # doc 2   . ◣        what lies left of a triangle is never computed
    # doc 3   . . ◣

What is added to the scores depends on the distance i - j alone (positions.py): one number a head and distance, `bias` [a, 2s - 1],
in the order of the distances from -(s - 1) to s - 1. A part is handed its own piece of it. Nothing of N x N is ever made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from glasscluster.model.kernels.flash.algorithm import TILE, tile_pairs


class Rectangle(NamedTuple):
    """The part of a block that is computed: some queries with some of the keys, under a causal mask or all."""

    queries: slice
    keys: slice
    causal: bool


def with_prefix(base: Rectangle | None, tokens: int, prefix: int) -> list[Rectangle]:
    """A causal block of `tokens` queries and keys, of which the first `prefix` keys are seen by all; `base` is it without them."""
    if not prefix:
        return [base] if base else []
    parts = [Rectangle(slice(0, tokens), slice(0, prefix), False)]
    if base is not None:
        rows, cols = base.queries, base.keys
        hidden = max(0, prefix - cols.start)  # keys that the first part has
        parts.append(Rectangle(slice(rows.start + hidden * base.causal, rows.stop), slice(cols.start + hidden, cols.stop), base.causal))
    return [p for p in parts if p.queries.start < p.queries.stop and p.keys.start < p.keys.stop]


def whole(tokens: int, causal: bool, prefix: int) -> list[Rectangle]:
    """A whole sequence. The first part has all queries."""
    everything = slice(0, tokens)
    return with_prefix(Rectangle(everything, everything, causal), tokens, prefix if causal else 0)


def by_document(
    attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, documents: Sequence[Sequence[int]], bias: Tensor | None
) -> Tensor:
    """Causal attention of each document to itself. q [b, a, s, d], k and v [b, a_kv, s, d]; documents[i]: lengths in row i, s together.

    bias [a, 2s - 1] by distance, of which a document of n tokens needs the middle 2n - 1.
    """
    b, _, s, _ = q.shape
    if any(sum(row) != s for row in documents) or len(documents) != b:
        raise ValueError(f"documents of {documents} tokens in {b} rows of {s}")
    q, k, v = (x.transpose(0, 1).flatten(1, 2).unsqueeze(0) for x in (q, k, v))  # one row [1, heads, b·s, d]
    lengths = [n for row in documents for n in row]
    biases = (None if bias is None else bias[:, s - n : s + n - 1] for n in lengths)
    alone = zip(*(x.split(lengths, 2) for x in (q, k, v)), biases, strict=True)
    out = torch.cat([attention(q, k, v, causal=True, bias=piece) for q, k, v, piece in alone], 2)
    return out.squeeze(0).unflatten(1, (b, s)).transpose(0, 1)


def halves(part: Rectangle, middle: int) -> list[Rectangle]:
    """The same cut where queries and keys jump, at `middle`: inside a piece, neighbours are equally far apart."""

    def cut(span: slice) -> list[slice]:
        pieces = [slice(span.start, min(span.stop, middle)), slice(max(span.start, middle), span.stop)]
        return [p for p in pieces if p.start < p.stop]

    found = [(q, k) for q in cut(part.queries) for k in cut(part.keys)]
    if not part.causal:
        return [Rectangle(q, k, False) for q, k in found]
    return [Rectangle(q, k, q.start == k.start) for q, k in found if q.start >= k.start]


def merge(out: Tensor, lse: Tensor, block_out: Tensor, block_lse: Tensor) -> None:
    """F6: outputs over two disjoint sets of keys, each with its log-sum-exp, as the output over both; in place."""
    share = torch.sigmoid(block_lse - lse)  # e^L_block / (e^L + e^L_block)
    out.lerp_(block_out.to(out.dtype), share.unsqueeze(-1))
    lse.copy_(torch.logaddexp(lse, block_lse))


def distances(part: Rectangle, queries: Sequence[int], keys: Sequence[int], seq: int) -> slice:
    """Which of a bias's 2s - 1 columns a part needs. Inside it, queries and keys at these positions are equally far apart."""
    rows, cols = queries[part.queries], keys[part.keys]
    step = rows[1] - rows[0] if len(rows) > 1 else cols[1] - cols[0] if len(cols) > 1 else 1
    first = rows[0] - cols[-1] + seq - 1
    return slice(first, first + step * (len(rows) + len(cols) - 2) + 1, step)


def forward_part(q: Tensor, k: Tensor, v: Tensor, part: Rectangle, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of a part's queries over its keys; bias is the part's piece."""
    q, k, v = q[:, :, part.queries], k[:, :, part.keys], v[:, :, part.keys]
    if bias is None:
        return torch.ops.glasscluster.flash_forward(q, k, v, part.causal)
    return torch.ops.glasscluster.flash_biased_forward(q, k, v, bias.contiguous(), part.causal)


def backward_part(
    of_queries: Sequence[Tensor], k: Tensor, v: Tensor, part: Rectangle, bias: Tensor | None, wanted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The part's share of the gradients of q, k, v and, if wanted, of its piece of the bias. of_queries: dO, q, O, L, of all parts."""
    d_out, q, out, lse = (x[:, :, part.queries] for x in of_queries)
    k, v = k[:, :, part.keys], v[:, :, part.keys]
    if bias is None:
        return (*torch.ops.glasscluster.flash_backward(d_out, q, k, v, out, lse, part.causal), None)
    *found, d_bias = torch.ops.glasscluster.flash_biased_backward(d_out, q, k, v, out, lse, bias.contiguous(), part.causal, wanted)
    return (*found, d_bias if wanted else None)


class InParts(torch.autograd.Function):
    """softmax(Q K^T / sqrt(d) + bias) V of a whole sequence in parts; forward and backward side by side."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, prefix: int) -> Tensor:
        ctx.parts = whole(q.shape[2], causal, prefix)
        ctx.pieces = [distances(p, range(q.shape[2]), range(q.shape[2]), q.shape[2]) for p in ctx.parts]
        out, lse = forward_part(q, k, v, ctx.parts[0], piece_of(bias, ctx.pieces[0]))
        if len(ctx.parts) > 1:
            out = out.to(lse.dtype)
            for part, piece in zip(ctx.parts[1:], ctx.pieces[1:], strict=True):
                rows = part.queries
                merge(out[:, :, rows], lse[:, :, rows], *forward_part(q, k, v, part, piece_of(bias, piece)))
            out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse, bias)
        return out

    @staticmethod
    def backward(ctx, d_out: Tensor):
        q, k, v, out, lse, bias = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3]
        dq, dk, dv = (torch.zeros_like(x, dtype=lse.dtype) for x in (q, k, v))
        d_bias = torch.zeros_like(bias) if wanted else None
        for part, piece in zip(ctx.parts, ctx.pieces, strict=True):
            d_q, d_k, d_v, d_piece = backward_part((d_out, q, out, lse), k, v, part, piece_of(bias, piece), wanted)
            dq[:, :, part.queries] += d_q
            dk[:, :, part.keys] += d_k
            dv[:, :, part.keys] += d_v
            if d_bias is not None:
                assert d_piece is not None
                d_bias[:, piece] += d_piece
        return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype), d_bias, None, None


def piece_of(bias: Tensor | None, columns: slice) -> Tensor | None:
    """A part's piece of a bias, where there is one."""
    return None if bias is None else bias[:, columns]


# ---- theory --------------------------------------------------------------------------------------------------------


def pairs(parts: Sequence[Rectangle], tile: int = TILE) -> int:
    """Query-key pairs that are computed of one head, in tiles."""
    return sum(tile_pairs(p.queries.stop - p.queries.start, p.causal, tile, p.keys.stop - p.keys.start) for p in parts)
