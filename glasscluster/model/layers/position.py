"""Positions that are not learned rows: fixed sines, added to the embedding, and numbers added to the scores.

Rotary ones: kernels/rope.py.

    sinusoidal   row m: sin(m / 10000^(2i/h)) in column 2i, cos of the same in column 2i+1
                 (Vaswani et al., 1706.03762, section 3.5)

What is added to the score of query i and key j depends on the distance i - j alone, so a head has 2s - 1
numbers and not s x s: `bias` [a, 2s - 1], in the order of the distances from -(s - 1) to s - 1
(kernels/flash/parts.py says how attention uses them).

    relative     table[bucket(i - j), head]: near distances have a bucket each, farther ones share buckets
                 that grow like their logarithm, all from D on the last (Raffel et al., 1910.10683, section
                 2.1)
    alibi        -slope_head · |i - j|, slopes 2^(-8/a), 2^(-16/a), ...; nothing is learned
                 (Press et al., 2108.12409)

But: a table a layer, where T5 has one for all its layers.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor


def sinusoidal(seq: int, hidden: int) -> Tensor:
    """Fixed sines and cosines of each position: [s, h] in float64."""
    i = torch.arange(0, hidden, 2, dtype=torch.float64)
    angle = torch.arange(seq, dtype=torch.float64)[:, None] / 10000 ** (i / hidden)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :hidden]


def buckets(seq: int, count: int, largest: int, both: bool) -> Tensor:
    """[2s - 1] the bucket of each distance i - j from -(s - 1) on; `largest` is D. both: keys behind the
    query have half of them.
    """

    def bucket(distance: int) -> int:
        n = count // 2 if both else count
        offset = n if both and distance < 0 else 0  # the key is behind
        far = abs(distance) if both else max(distance, 0)
        exact = n // 2
        if far < exact:
            return offset + far
        return offset + min(exact + int(log(far / exact) / log(largest / exact) * (n - exact)), n - 1)

    return torch.tensor([bucket(d) for d in range(1 - seq, seq)])


def slopes(heads: int) -> list[float]:
    """ALiBi's, one a head; between powers of two every other one of twice as many, as the authors' code has
    it.
    """
    power = 1 << (heads.bit_length() - 1)
    first = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return first if power == heads else first + slopes(2 * power)[::2][: heads - power]


def alibi(seq: int, heads: int) -> Tensor:
    """What ALiBi adds to the scores of each head, by distance: [a, 2s - 1] in float64."""
    return (
        -torch.tensor(slopes(heads), dtype=torch.float64)[:, None]
        * torch.arange(1 - seq, seq, dtype=torch.float64).abs()
    )
