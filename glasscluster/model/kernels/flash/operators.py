"""Flash attention as torch operators: one kernel each way, forward and backward side by side for autograd.

    flash_attention(q, k, v, causal, prefix, bias)        what a model calls
      FlashAttention                                        one part, nothing added to the scores
      InParts                                               a prefix, a bias or a sink: one kernel a part
        glasscluster::flash_forward, flash_backward             on CPUs algorithm.py, on NVIDIA GPUs triton.py
        glasscluster::flash_biased_forward, flash_biased_backward    algorithm.py everywhere

On the `meta` device (shapes without data) they say what comes out. What they cost is registered in costs.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor
from torch.library import Library

from glasscluster.model.kernels.flash import (
    algorithm,
    costs,  # noqa: F401  registers what these operators cost
)
from glasscluster.model.kernels.flash.parts import Rectangle, distances, merge, piece_of, whole
from glasscluster.model.kernels.scores import PLAIN, Scores, add_sink, sink_gradient

# What CUDA tensors meet where triton is installed and the type is not float64, or "torch" for algorithm.py.
GPU_KERNEL = "triton"

# ---- the library's operators -------------------------------------------------------------------------------

_library = Library("glasscluster", "FRAGMENT")
_READ = "Tensor q, Tensor k, Tensor v"
_KEPT = f"Tensor d_out, {_READ}, Tensor out, Tensor lse"
_GRADS = "Tensor, Tensor, Tensor"
_HOW = "float? scale=None, int window=0, float cap=0."  # the fields of Scores
_BIASED = f"{_KEPT}, Tensor bias, bool causal, bool wanted, {_HOW}"
_library.define(f"flash_forward({_READ}, bool causal, {_HOW}) -> (Tensor, Tensor)")
_library.define(f"flash_backward({_KEPT}, bool causal, {_HOW}) -> ({_GRADS})")
_library.define(f"flash_biased_forward({_READ}, Tensor bias, bool causal, {_HOW}) -> (Tensor, Tensor)")
_library.define(f"flash_biased_backward({_BIASED}) -> ({_GRADS}, Tensor)")


def _module_for(x: Tensor) -> ModuleType:
    """The module whose `forward` and `backward` a CUDA tensor meets."""
    if GPU_KERNEL == "triton" and x.dtype != torch.float64 and find_spec("triton"):
        from glasscluster.model.kernels.flash import triton

        return triton
    return algorithm


# arguments that are as they are by default may be missing
def _forward(
    module: ModuleType, q: Tensor, k: Tensor, v: Tensor, causal: bool, *how
) -> tuple[Tensor, Tensor]:
    return module.forward(q, k, v, causal, how=Scores(*how))


def _backward(module: ModuleType, *args) -> tuple[Tensor, ...]:
    return module.backward(*args[:7], how=Scores(*args[7:]))


def _biased_forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, causal: bool, *how
) -> tuple[Tensor, Tensor]:
    return algorithm.forward(q, k, v, causal, bias=bias, how=Scores(*how))


def _biased_backward(
    d_out,
    q,
    k,
    v,
    out,
    lse,
    bias: Tensor,
    causal: bool,
    wanted: bool,
    *how,
) -> tuple[Tensor, ...]:
    d_bias = torch.empty_like(bias) if wanted else None
    scoring = Scores(*how)
    grads = algorithm.backward(d_out, q, k, v, out, lse, causal, bias=bias, d_bias=d_bias, how=scoring)
    return (*grads, bias.new_empty(0) if d_bias is None else d_bias)


def _meta_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, *how) -> tuple[Tensor, Tensor]:
    algorithm.check_shapes(q, k, causal, Scores(*how).window)
    return algorithm.forward_like(q, v)


def _meta_backward(
    d_out, q: Tensor, k: Tensor, v: Tensor, out, lse, causal: bool, *_how
) -> tuple[Tensor, ...]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _meta_biased_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    causal: bool,
    *how,
) -> tuple[Tensor, Tensor]:
    return _meta_forward(q, k, v, causal, *how)


def _meta_biased_backward(
    d_out,
    q,
    k,
    v,
    out,
    lse,
    bias: Tensor,
    causal: bool,
    wanted: bool,
    *_how,
) -> tuple[Tensor, ...]:
    d_bias = torch.empty_like(bias) if wanted else bias.new_empty(0)
    return (*_meta_backward(d_out, q, k, v, out, lse, causal), d_bias)


# looked up at each call, so that a test can put a broken algorithm in their place
_library.impl("flash_forward", lambda *args: _forward(algorithm, *args), "CPU")
_library.impl("flash_backward", lambda *args: _backward(algorithm, *args), "CPU")
_library.impl("flash_forward", lambda *args: _forward(_module_for(args[0]), *args), "CUDA")
_library.impl("flash_backward", lambda *args: _backward(_module_for(args[0]), *args), "CUDA")
_library.impl("flash_forward", _meta_forward, "Meta")
_library.impl("flash_backward", _meta_backward, "Meta")
for _device in ("CPU", "CUDA"):
    _library.impl("flash_biased_forward", _biased_forward, _device)
    _library.impl("flash_biased_backward", _biased_backward, _device)
_library.impl("flash_biased_forward", _meta_biased_forward, "Meta")
_library.impl("flash_biased_backward", _meta_biased_backward, "Meta")


# ---- one part ----------------------------------------------------------------------------------------------


class FlashAttention(torch.autograd.Function):
    """softmax(scores of Q and K) V, forward and backward side by side."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, causal: bool, how: Scores) -> Tensor:
        out, lse = torch.ops.glasscluster.flash_forward(q, k, v, causal, *how)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.how = causal, *how
        return out

    @staticmethod
    def backward(ctx, d_out: Tensor):
        return (*torch.ops.glasscluster.flash_backward(d_out, *ctx.saved_tensors, *ctx.how), None, None)


# ---- several parts -----------------------------------------------------------------------------------------


def forward_part(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    part: Rectangle,
    bias: Tensor | None,
    how: Scores = PLAIN,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of a part's queries over its keys; `bias` is the part's piece.

    The window is the part's own, not that of `how`.
    """
    q, k, v = q[:, :, part.queries], k[:, :, part.keys], v[:, :, part.keys]
    how = how._replace(window=part.window)
    if bias is None:
        return torch.ops.glasscluster.flash_forward(q, k, v, part.causal, *how)
    return torch.ops.glasscluster.flash_biased_forward(q, k, v, bias.contiguous(), part.causal, *how)


def backward_part(
    of_queries: Sequence[Tensor],
    k: Tensor,
    v: Tensor,
    part: Rectangle,
    bias: Tensor | None,
    wanted: bool,
    how: Scores = PLAIN,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The part's summand of the gradients of q, k, v and, if it is wanted, of its piece of the bias.

    of_queries: dO, q, O and L, of all parts. The window is the part's own.
    """
    how = how._replace(window=part.window)
    d_out, q, out, lse = (x[:, :, part.queries] for x in of_queries)
    k, v = k[:, :, part.keys], v[:, :, part.keys]
    if bias is None:
        return (*torch.ops.glasscluster.flash_backward(d_out, q, k, v, out, lse, part.causal, *how), None)
    biased = bias.contiguous(), part.causal, wanted, *how
    *grads, d_bias = torch.ops.glasscluster.flash_biased_backward(d_out, q, k, v, out, lse, *biased)
    return (*grads, d_bias if wanted else None)


class InParts(torch.autograd.Function):
    """softmax(scores of Q and K + bias) V of a whole sequence in parts, with a sink or without; forward and
    backward side by side.
    """

    @staticmethod
    def forward(
        ctx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        sink: Tensor | None,
        causal: bool,
        prefix: int,
        how: Scores,
    ) -> Tensor:
        positions, ctx.how = range(q.shape[2]), how
        ctx.parts = whole(q.shape[2], causal, prefix, how.window)
        ctx.pieces = [distances(part, positions, positions, q.shape[2]) for part in ctx.parts]
        out, lse = forward_part(q, k, v, ctx.parts[0], piece_of(bias, ctx.pieces[0]), how)
        if len(ctx.parts) > 1:
            out = out.to(lse.dtype)
            for part, piece in zip(ctx.parts[1:], ctx.pieces[1:], strict=True):
                rows = part.queries
                merge(
                    out[:, :, rows],
                    lse[:, :, rows],
                    *forward_part(q, k, v, part, piece_of(bias, piece), how),  # let go at once
                )
        if sink is not None:
            add_sink(out, lse, sink)
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse, bias, sink)
        return out

    @staticmethod
    def backward(ctx, d_out: Tensor):
        q, k, v, out, lse, bias, sink = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3]
        dq, dk, dv = (torch.zeros_like(x, dtype=lse.dtype) for x in (q, k, v))
        d_bias = torch.zeros_like(bias) if wanted else None
        for part, piece in zip(ctx.parts, ctx.pieces, strict=True):
            of_queries = d_out, q, out, lse
            d_q, d_k, d_v, d_piece = backward_part(
                of_queries, k, v, part, piece_of(bias, piece), wanted, ctx.how
            )
            dq[:, :, part.queries] += d_q
            dk[:, :, part.keys] += d_k
            dv[:, :, part.keys] += d_v
            if d_bias is not None:
                assert d_piece is not None
                d_bias[:, piece] += d_piece
        d_sink = None if sink is None else sink_gradient(d_out, out, lse, sink)
        return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype), d_bias, d_sink, None, None, None


# ---- what a model calls ------------------------------------------------------------------------------------


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    prefix: int = 0,
    bias: Tensor | None = None,
    how: Scores = PLAIN,
    sink: Tensor | None = None,
) -> Tensor:
    """softmax(scores of Q and K + bias) V without ever holding N x N scores.

    Args:
        q: [b, a, N, d].
        k, v: [b, a_kv, n, d]; a is a multiple of a_kv. v may have fewer columns, d_v.
        causal: a query sees the keys up to its own; wants N = n.
        prefix: so many first keys are seen by all queries; wants N = n.
        bias: [a, 2N - 1] in the accumulation type, added to the scores by distance (bias.py); wants N = n.
        how: scale, cap and window of the scores (scores.py); a window goes without a prefix.
        sink: [a], a number of each head that joins the softmax's denominator (scores.py).

    Returns:
        [b, a, N, d] in q's type; with d_v columns where v has as many.

    Raises:
        ValueError: heads do not come in whole groups, or a causal mask is not over a square.
    """
    if not prefix and bias is None and sink is None:
        return FlashAttention.apply(q, k, v, causal, how)
    return InParts.apply(q, k, v, bias, sink, causal, prefix, how)
