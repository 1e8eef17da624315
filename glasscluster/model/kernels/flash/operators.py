"""Flash attention as torch operators: one kernel each way, forward and backward side by side for autograd.

    flash_attention(q, k, v, causal, prefix, bias)        what a model calls
      FlashAttention                                        one part, nothing added to the scores
      InParts                                               a prefix or a bias: one kernel a part (parts.py)
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

# What CUDA tensors meet where triton is installed and the type is not float64, or "torch" for algorithm.py.
GPU_KERNEL = "triton"

# ---- the library's operators -------------------------------------------------------------------------------

_library = Library("glasscluster", "FRAGMENT")
_READ = "Tensor q, Tensor k, Tensor v"
_KEPT = f"Tensor d_out, {_READ}, Tensor out, Tensor lse"
_GRADS = "Tensor, Tensor, Tensor"
_BIASED = f"{_KEPT}, Tensor bias, bool causal, bool wanted"
_library.define(f"flash_forward({_READ}, bool causal) -> (Tensor, Tensor)")
_library.define(f"flash_backward({_KEPT}, bool causal) -> ({_GRADS})")
_library.define(f"flash_biased_forward({_READ}, Tensor bias, bool causal) -> (Tensor, Tensor)")
_library.define(f"flash_biased_backward({_BIASED}) -> ({_GRADS}, Tensor)")


def _module_for(x: Tensor) -> ModuleType:
    """The module whose `forward` and `backward` a CUDA tensor meets."""
    if GPU_KERNEL == "triton" and x.dtype != torch.float64 and find_spec("triton"):
        from glasscluster.model.kernels.flash import triton

        return triton
    return algorithm


def _biased_forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    return algorithm.forward(q, k, v, causal, bias=bias)


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
) -> tuple[Tensor, ...]:
    d_bias = torch.empty_like(bias) if wanted else None
    grads = algorithm.backward(d_out, q, k, v, out, lse, causal, bias=bias, d_bias=d_bias)
    return (*grads, bias.new_empty(0) if d_bias is None else d_bias)


def _meta_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    algorithm.check_shapes(q, k, causal)
    return algorithm.forward_like(q)


def _meta_backward(d_out, q: Tensor, k: Tensor, v: Tensor, out, lse, causal: bool) -> tuple[Tensor, ...]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _meta_biased_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    return _meta_forward(q, k, v, causal)


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
) -> tuple[Tensor, ...]:
    d_bias = torch.empty_like(bias) if wanted else bias.new_empty(0)
    return (*_meta_backward(d_out, q, k, v, out, lse, causal), d_bias)


# looked up at each call, so that a test can put a broken algorithm in their place
_library.impl("flash_forward", lambda *args: algorithm.forward(*args), "CPU")
_library.impl("flash_backward", lambda *args: algorithm.backward(*args), "CPU")
_library.impl("flash_forward", lambda *args: _module_for(args[0]).forward(*args), "CUDA")
_library.impl("flash_backward", lambda *args: _module_for(args[0]).backward(*args), "CUDA")
_library.impl("flash_forward", _meta_forward, "Meta")
_library.impl("flash_backward", _meta_backward, "Meta")
for _device in ("CPU", "CUDA"):
    _library.impl("flash_biased_forward", _biased_forward, _device)
    _library.impl("flash_biased_backward", _biased_backward, _device)
_library.impl("flash_biased_forward", _meta_biased_forward, "Meta")
_library.impl("flash_biased_backward", _meta_biased_backward, "Meta")


# ---- one part ----------------------------------------------------------------------------------------------


class FlashAttention(torch.autograd.Function):
    """softmax(Q K^T / sqrt(d)) V, forward and backward side by side."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        out, lse = torch.ops.glasscluster.flash_forward(q, k, v, causal)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.causal = causal
        return out

    @staticmethod
    def backward(ctx, d_out: Tensor):
        return (*torch.ops.glasscluster.flash_backward(d_out, *ctx.saved_tensors, ctx.causal), None)


# ---- several parts -----------------------------------------------------------------------------------------


def forward_part(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    part: Rectangle,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of a part's queries over its keys; `bias` is the part's piece."""
    q, k, v = q[:, :, part.queries], k[:, :, part.keys], v[:, :, part.keys]
    if bias is None:
        return torch.ops.glasscluster.flash_forward(q, k, v, part.causal)
    return torch.ops.glasscluster.flash_biased_forward(q, k, v, bias.contiguous(), part.causal)


def backward_part(
    of_queries: Sequence[Tensor], k: Tensor, v: Tensor, part: Rectangle, bias: Tensor | None, wanted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The part's summand of the gradients of q, k, v and, if it is wanted, of its piece of the bias.

    of_queries: dO, q, O and L, of all parts.
    """
    d_out, q, out, lse = (x[:, :, part.queries] for x in of_queries)
    k, v = k[:, :, part.keys], v[:, :, part.keys]
    if bias is None:
        return (*torch.ops.glasscluster.flash_backward(d_out, q, k, v, out, lse, part.causal), None)
    biased = bias.contiguous(), part.causal, wanted
    *grads, d_bias = torch.ops.glasscluster.flash_biased_backward(d_out, q, k, v, out, lse, *biased)
    return (*grads, d_bias if wanted else None)


class InParts(torch.autograd.Function):
    """softmax(Q K^T / sqrt(d) + bias) V of a whole sequence in parts; forward and backward side by side."""

    @staticmethod
    def forward(
        ctx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        causal: bool,
        prefix: int,
    ) -> Tensor:
        positions = range(q.shape[2])
        ctx.parts = whole(q.shape[2], causal, prefix)
        ctx.pieces = [distances(part, positions, positions, q.shape[2]) for part in ctx.parts]
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
            of_queries = d_out, q, out, lse
            d_q, d_k, d_v, d_piece = backward_part(of_queries, k, v, part, piece_of(bias, piece), wanted)
            dq[:, :, part.queries] += d_q
            dk[:, :, part.keys] += d_k
            dv[:, :, part.keys] += d_v
            if d_bias is not None:
                assert d_piece is not None
                d_bias[:, piece] += d_piece
        return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype), d_bias, None, None


# ---- what a model calls ------------------------------------------------------------------------------------


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    prefix: int = 0,
    bias: Tensor | None = None,
) -> Tensor:
    """softmax(Q K^T / sqrt(d) + bias) V without ever holding N x N scores.

    Args:
        q: [b, a, N, d].
        k, v: [b, a_kv, n, d]; a is a multiple of a_kv.
        causal: a query sees the keys up to its own; wants N = n.
        prefix: so many first keys are seen by all queries; wants N = n.
        bias: [a, 2N - 1] in the accumulation type, added to the scores by distance (bias.py); wants N = n.

    Returns:
        [b, a, N, d] in q's type.

    Raises:
        ValueError: heads do not come in whole groups, or a causal mask is not over a square.
    """
    if not prefix and bias is None:
        return FlashAttention.apply(q, k, v, causal)
    return InParts.apply(q, k, v, bias, causal, prefix)
