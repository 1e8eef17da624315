"""How the product of a query and a key becomes a score, for every kernel of attention.

    scale     x = scale · q k^T        scale is 1 / sqrt(d) unless it is given
    cap       y = c · tanh(x / c)      a soft cap: |y| < c, and small scores stay as they are (Gemma 2,
                                       2408.00118, section 2); backward dx = (1 - (y / c)^2) dy
    bias      y + what is added by distance (flash/bias.py)
    window    query i sees the keys i - w + 1 ... i (Beltagy et al., 2004.05150)
    sink      a learned number of each head joins the softmax's denominator and has no value (gpt-oss,
              2508.10925): P = exp(y) / (e^sink + sum exp(y))

A sink is one key more whose value is zero. So what attention gave without it, O and its log-sum-exp L, is
merged with a block of log-sum-exp `sink` and output 0, as a ring merges blocks (Eq 6):

    L' = log(e^L + e^sink)    O' = O e^(L - L')    dsink = - sum over rows of e^(sink - L') · rowsum(dO' * O')
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Scores(NamedTuple):
    """What a kernel makes of the products.

    scale: None: 1 / sqrt(d). window: keys that a query sees, of which its own is the last; 0: all. In a part
    of attention query i sees keys j > i - window, both counted from the part's first. cap: 0: none.
    """

    scale: float | None = None
    window: int = 0
    cap: float = 0.0

    def scale_of(self, head: int) -> float:
        """What products of `head` elements are multiplied by."""
        return head**-0.5 if self.scale is None else self.scale


PLAIN = Scores()


def soft_cap(scores: Tensor, cap: float) -> Tensor:
    """cap · tanh(scores / cap), in place."""
    return scores.div_(cap).tanh_().mul_(cap)


def cap_slope(capped: Tensor, cap: float, out: Tensor | None = None) -> Tensor:
    """The derivative of `soft_cap`, from what it gave: 1 - (y / cap)^2."""
    return torch.mul(capped, capped, out=out).mul_(-1 / cap**2).add_(1)


# ---- a sink ------------------------------------------------------------------------------------------------
def add_sink(out: Tensor, lse: Tensor, sink: Tensor) -> None:
    """Turn attention without a sink into attention with one, in place.

    out [b, a, N, d], lse [b, a, N], sink [a].
    """
    sink = sink.to(lse.dtype)[:, None]
    out.mul_(torch.sigmoid(lse - sink).unsqueeze(-1))
    lse.copy_(torch.logaddexp(lse, sink))


def sink_gradient(d_out: Tensor, out: Tensor, lse: Tensor, sink: Tensor) -> Tensor:
    """The gradient of the sinks [a], from the output and log-sum-exp that have them."""
    d = (d_out.to(lse.dtype) * out.to(lse.dtype)).sum(-1)
    return (d * (sink.to(lse.dtype)[:, None] - lse).exp()).sum((0, 2)).neg_().to(sink.dtype)
