"""Textbook attention, beside the flash kernel: it writes the N x N scores down (1706.03762, section 3.2.1).

    S = Q K^T        P = softmax(scale · S + bias, hidden where not seen)        O = dropout(P) V

What stays for backward is what Korthikanti et al. (2205.05198, section 4.1) list: Q, K, V, P, the dropout's
mask and the dropped P. Scale, cap, mask and softmax are one kernel that keeps only its output
(kernels/softmax.py). The query heads that share a key head (grouped-query attention) stand below each other
in one product: K and V are never repeated.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from glasscluster.model.kernels.flash.algorithm import check_shapes
from glasscluster.model.kernels.flash.operators import flash_attention
from glasscluster.model.kernels.scores import PLAIN, Scores
from glasscluster.model.kernels.softmax import Softmax


def unfused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    drop: Callable[[Tensor], Tensor] | None = None,
    prefix: int = 0,
    bias: Tensor | None = None,
    how: Scores = PLAIN,
    sink: Tensor | None = None,
) -> Tensor:
    """Attention over q [b, a, N, d] and k, v [b, a_kv, n, d], which writes scores [b, a, N, n] down.

    drop: dropout of the probabilities; prefix: so many first keys are seen by all queries; bias [a, N + n -
    1]: added to the scores by distance (kernels/flash/bias.py); how: scale, cap and window of the scores,
    sink [a]: a number of each head that joins the denominator (kernels/scores.py).
    """
    check_shapes(q, k, causal, how.window)
    (b, a, n, d), (heads, keys) = q.shape, k.shape[1:3]
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()  # three tensors, each of which backward needs
    scores = q.view(b, heads, -1, d) @ k.transpose(-1, -2)
    how = how._replace(scale=how.scale_of(d))
    p = Softmax.apply(scores.view(b, a, n, keys), how, causal, prefix, bias, sink)
    p = drop(p) if drop else p
    return (p.view(b, heads, -1, keys) @ v).view(b, a, n, -1)


ATTENTION = {"flash": flash_attention, "unfused": unfused_attention}
