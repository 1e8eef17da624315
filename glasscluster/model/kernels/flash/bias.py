"""Numbers added to the scores, one for each head and distance i - j of query and key (T5's table, ALiBi).

`bias` [a, N + n - 1] in the accumulation type: what belongs to query i and key j stands at i - j + n - 1. A
tile of scores needs rows + columns - 1 of these numbers, and its share of their gradient is dS summed along
its diagonals.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glasscluster.model.kernels.flash.tiles import Meter, Span, nbytes


def _numbers_of(bias: Tensor, rows: Span, cols: Span, keys: int) -> Tensor:
    """The rows + columns - 1 numbers of a bias that a tile needs, for each head."""
    return bias[:, rows[0] - cols[1] + keys : rows[1] - cols[0] + keys - 1]


def _by_head(scores: Tensor, heads: int, rows: Span) -> Tensor:
    """Scores [b · a_kv, rows·g, columns] as [b, a_kv, g, rows, columns]."""
    n = rows[1] - rows[0]
    group = scores.shape[1] // n
    return scores.view(-1, heads // group, n, group, scores.shape[2]).transpose(2, 3)


def add_bias(scores: Tensor, bias: Tensor, rows: Span, cols: Span, keys: int, meter: Meter) -> None:
    """Add to each score the number of its query's and key's distance."""
    numbers = _numbers_of(bias, rows, cols, keys)
    meter("read", nbytes(numbers.element_size(), numbers))
    # [a, rows, columns]: row i begins one number later than row i - 1, and runs backwards
    tile = numbers.unfold(-1, cols[1] - cols[0], 1).flip(-1)
    by_head = _by_head(scores, len(bias), rows)
    by_head.add_(tile.view(by_head.shape[1:]))


def sum_bias(d_bias: Tensor, ds: Tensor, rows: Span, cols: Span, keys: int, meter: Meter) -> None:
    """Backward of `add_bias`: add a tile's dS, summed along its diagonals, to the bias's gradient."""
    sums = _numbers_of(d_bias, rows, cols, keys)
    sums.add_(diagonal_sums(_by_head(ds, len(d_bias), rows).sum(0).flatten(0, 1)))
    for way in ("read", "write"):
        meter(way, nbytes(sums.element_size(), sums))


def diagonal_sums(x: Tensor) -> Tensor:
    """[a, m, n] -> [a, m + n - 1]: number i - j + n - 1 is the sum of x[:, i, j] over all such i and j."""
    a, m, n = x.shape
    # row i moves i places to the right
    sheared = torch.nn.functional.pad(x.flip(-1), (0, m)).view(a, -1)[:, : m * (m + n - 1)]
    return sheared.view(a, m, m + n - 1).sum(1)
