"""Attention in parts: which queries see which keys, as rectangles and triangles that are computed one by one.

    causal          a query sees the keys up to its own
    prefix P        and the first P keys, which see each other (1905.03197; 1910.10683, section 3.2.1)
    bidirectional   it sees all

        keys     P                   a prefix is two parts:
              # │ . . .              all queries with the first P keys       rectangle
        P     # │ . . .              the other queries with the other keys   triangle
              # │ ◣ . .
              # │ # ◣ .              and outputs are merged by log-sum-exp (Eq 6), as a ring merges blocks:
              # │ # # ◣              s = sigmoid(L_part - L);  O += s (O_part - O);  L = log(e^L + e^L_part)

A window w is a part's own: query i of the part sees keys j > i - w. In a whole sequence this is what the
model says; in a block of a ring, whose first query stands d tokens behind its first key, it is w - d, and
keys or queries that are left with nothing are cut off (`within`).

Packed documents (packing.py) are a triangle each, and nothing else: no two share queries or keys, so there is
nothing to merge.

    # doc 1   ◣
    # doc 2   . ◣        what lies left of a triangle is never computed
    # doc 3   . . ◣

What is added to the scores depends on the distance i - j alone (position.py): one number for each head and
distance, `bias` [a, 2s - 1], in the order of the distances from -(s - 1) to s - 1. A part is handed its own
piece of it. Nothing of N x N is ever made. This file says which parts there are and how outputs are merged;
operators.py computes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Rectangle(NamedTuple):
    """A part of attention: some queries with some of the keys, under a causal mask or all.

    With a window query i sees only keys j > i - window, both counted from the part's first; 0: none.
    """

    queries: slice
    keys: slice
    causal: bool
    window: int = 0


def with_prefix(base: Rectangle | None, tokens: int, prefix: int) -> list[Rectangle]:
    """A causal block of `tokens` queries and keys whose first `prefix` keys are seen by all queries.

    base: what the block computes without a prefix; None: nothing.
    """
    if not prefix:
        return [base] if base else []
    parts = [Rectangle(slice(0, tokens), slice(0, prefix), False)]
    if base is not None:
        rows, cols = base.queries, base.keys
        done = max(0, prefix - cols.start)  # keys that the first part has
        queries = slice(rows.start + done * base.causal, rows.stop)
        parts.append(Rectangle(queries, slice(cols.start + done, cols.stop), base.causal))
    return [p for p in parts if p.queries.start < p.queries.stop and p.keys.start < p.keys.stop]


def whole(tokens: int, causal: bool, prefix: int, window: int = 0) -> list[Rectangle]:
    """A whole sequence. The first part has all queries."""
    everything = slice(0, tokens)
    return with_prefix(Rectangle(everything, everything, causal, window), tokens, prefix if causal else 0)


def within(part: Rectangle, queries: Sequence[int], keys: Sequence[int], window: int) -> Rectangle | None:
    """What a window leaves of a part; None: nothing.

    queries, keys: positions of all queries and keys, as in `distances`: neighbours inside the part are
    equally far apart. Where they are s apart, query a of the part sees key b if
    a - b < (window - distance of the first query from the first key) / s.
    """
    rows, cols = queries[part.queries], keys[part.keys]
    step = rows[1] - rows[0] if len(rows) > 1 else cols[1] - cols[0] if len(cols) > 1 else 1
    reach = -((rows[0] - cols[0] - window) // step)  # keys b > a - reach are seen
    n = min(len(rows), len(cols) - 1 + reach)  # queries that see the last key
    if n <= 0 or (part.causal and reach <= 0):
        return None
    first = max(0, 1 - reach)  # the first key that the first query sees
    reach += first
    seen = slice(part.queries.start, part.queries.start + n), slice(part.keys.start + first, part.keys.stop)
    return Rectangle(*seen, part.causal, reach if reach < n else 0)


def by_document(
    attention: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Sequence[Sequence[int]],
    bias: Tensor | None,
) -> Tensor:
    """Causal attention of each document to itself.

    q [b, a, s, d]; k, v [b, a_kv, s, d]; documents[i]: lengths of the documents in row i, which add up to s.
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
    """A part cut at `middle`, where positions of queries and keys jump.

    Inside each piece neighbours are equally far apart.
    """

    def cut(span: slice) -> list[slice]:
        pieces = [slice(span.start, min(span.stop, middle)), slice(max(span.start, middle), span.stop)]
        return [p for p in pieces if p.start < p.stop]

    quarters = [(q, k) for q in cut(part.queries) for k in cut(part.keys)]
    if not part.causal:
        return [Rectangle(q, k, False) for q, k in quarters]
    return [Rectangle(q, k, q.start == k.start) for q, k in quarters if q.start >= k.start]


def merge(out: Tensor, lse: Tensor, block_out: Tensor, block_lse: Tensor) -> None:
    """Eq 6: turn the output over some keys into that over these and a block of others, with log-sum-exps.

    out [..., N, d] and lse [..., N] are changed in place.
    """
    share = torch.sigmoid(block_lse - lse)  # e^L_block / (e^L + e^L_block)
    out.lerp_(block_out.to(out.dtype), share.unsqueeze(-1))
    lse.copy_(torch.logaddexp(lse, block_lse))


def distances(part: Rectangle, queries: Sequence[int], keys: Sequence[int], seq: int) -> slice:
    """Which of a bias's 2s - 1 columns a part needs.

    queries, keys: positions of all queries and keys; inside the part neighbours are equally far apart.
    """
    rows, cols = queries[part.queries], keys[part.keys]
    step = rows[1] - rows[0] if len(rows) > 1 else cols[1] - cols[0] if len(cols) > 1 else 1
    first = rows[0] - cols[-1] + seq - 1
    return slice(first, first + step * (len(rows) + len(cols) - 2) + 1, step)


def piece_of(bias: Tensor | None, columns: slice) -> Tensor | None:
    """A part's piece of a bias, where there is one."""
    return None if bias is None else bias[:, columns]
