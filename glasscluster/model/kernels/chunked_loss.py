"""Chunked cross-entropy: the loss without the logits of all tokens in memory at once.

The head multiplies n tokens by a table of V rows. For Llama 3's 128,256 rows the logits are by far the
largest tensor of a step, and they are needed three times: as they are, as probabilities, as gradients. So
tokens go through the head in chunks, and each chunk's gradient is computed at once, in forward, as Liger
Kernel does (Hsu et al., 2410.10989, section 3.2, FusedLinearCrossEntropy; torchtitan's ChunkedCELoss runs
forward and backward of a chunk together too).

    for r of n tokens at a time:                    h hidden, t ranks that share out the V columns
        Z  = X_r T^T                [r, V/t]        the only logits that exist
        dZ = softmax(Z) - target    in place        max, target's logit and sum are added up over the t ranks
        dX_r = dZ T                 [r, h]
        dT  += dZ^T X_r             [V/t, h]        in fp32 for 16-bit elements

    backward    dX and dT times the gradient of the loss

Kept for backward: dX [n, h] and dT [V/t, h] in place of logits [n, V/t]. Products, FLOPs and bytes sent are
those of the whole loss: only the order changes, and with it the time, as the head's backward runs in forward.
Where weight gradients are deferred (zero-bubble schedules), W takes the finished dT.

But: dT waits for backward once for each micro-batch in flight on the last stage (GPipe: all of them).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import Library

from glasscluster.base import operator_costs
from glasscluster.model.kernels.precision import accumulation_dtype

# what the memory ledger calls the three kinds of tensors
LOGITS, INPUT_GRADIENT, WEIGHT_GRADIENT = "logits of a chunk", "head input gradient", "head weight gradient"
IGNORE = -100  # a target that carries no loss


class Columns(Protocol):
    """What the loss asks of whoever cut the vocabulary into columns (`model/parallel.py`)."""

    size: int
    rank: int
    seed: Tensor | None
    deferred: Any
    observe: Any

    def combine(self, x: Tensor, label: str, op: str = "sum") -> Tensor:
        """x, added up (or its maximum) over the ranks that share out the columns."""

    def called(self, x: Tensor, name: str) -> Tensor:
        """x, after the memory ledger has heard its name."""


# ---- one product that adds up in fp32 ----------------------------------------------------------------------
_library = Library("glasscluster", "FRAGMENT")
_library.define("add_product(Tensor(a!) total, Tensor a, Tensor b) -> ()")


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    total.addmm_(a.T.to(total.dtype), b.to(total.dtype))


def _flops(args: Any, _out: Any) -> int:
    _, a, b = args
    return 2 * a.shape[0] * a.shape[1] * b.shape[1]


for _device in ("CPU", "CUDA"):
    _library.impl("add_product", _add_product, _device)
_library.impl("add_product", lambda total, a, b: None, "Meta")
operator_costs.register("glasscluster::add_product", _flops)


# ---- a chunk -----------------------------------------------------------------------------------------------
def loss_and_gradient(
    z: Tensor, targets: Tensor, vocab: int, z_loss: float, columns: Columns, cap: float = 0.0
) -> Tensor:
    """The loss summed over the chunk's tokens; z becomes its gradient, in place.

    Args:
        z: logits [r, V/t] in the accumulation type; overwritten.
        targets: [r], of the whole vocabulary; IGNORE counts nothing.
        vocab: V. Columns behind it are padding.
        z_loss: weight of log² Z in the gradient (see `Unsharded.cross_entropy`).
        columns: which columns these are, and how ranks add up.
        cap: the loss is that of cap · tanh(z / cap); 0: of z.
    """
    n = z.shape[-1]
    real = max(0, min(n, vocab - columns.rank * n))
    slope = None
    if cap:
        z.div_(cap).tanh_()
        slope = 1 - z.square()
        z.mul_(cap)
    if real < n:  # padded rows of the vocabulary are no tokens
        z[:, real:].fill_(-torch.inf)
    largest = columns.combine(z.amax(-1), "cross_entropy max", op="max")
    z.sub_(largest.unsqueeze(-1))
    local = targets - columns.rank * n
    absent = (local < 0) | (local >= n)
    index = local.clamp(0, n - 1).unsqueeze(-1)
    target_logit = z.gather(-1, index).squeeze(-1).masked_fill(absent, 0.0)
    target_logit = columns.combine(target_logit, "cross_entropy target")
    z.exp_()
    total = columns.combine(z.sum(-1), "cross_entropy sum")
    z.div_(total.unsqueeze(-1))
    if z_loss:
        z.mul_((1 + 2 * z_loss * (total.log() + largest)).unsqueeze(-1))
    z.scatter_add_(-1, index, absent.unsqueeze(-1).to(z.dtype) - 1)
    counts = targets != IGNORE
    z.mul_(counts.unsqueeze(-1))
    if slope is not None:
        z.mul_(slope)
    return ((total.log() - target_logit) * counts).sum()


# ---- all chunks --------------------------------------------------------------------------------------------
class ChunkedCrossEntropy(torch.autograd.Function):
    """The head's product and the loss, chunk by chunk: forward computes the gradients, backward scales them.

    With a loss scale (fp16) gradients are multiplied by it before they are rounded to 16 bits, as they are
    where the whole loss starts its backward from it.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        table: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        columns: Columns,
        chunks: int,
        vocab: int,
        z_loss: float,
        cap: float,
        differentiate: bool,
    ) -> Tensor:
        wide = accumulation_dtype(x.dtype)
        tokens, targets = x.reshape(-1, x.shape[-1]), targets.reshape(-1)
        d_x = d_table = d_bias = None
        if differentiate:
            d_x = columns.called(torch.empty_like(tokens), INPUT_GRADIENT)
            d_table = columns.called(torch.zeros_like(table, dtype=wide), WEIGHT_GRADIENT)
            if bias is not None:
                d_bias = torch.zeros_like(bias, dtype=wide)
        loss = torch.zeros((), dtype=wide, device=x.device)

        def add(here: slice) -> None:
            z = columns.called(F.linear(tokens[here], table, bias), LOGITS)
            if columns.observe is not None:
                columns.observe("logits", -1, z.unsqueeze(0))
            z = columns.called(z.to(wide), LOGITS)  # the 16-bit ones are let go here
            loss.add_(loss_and_gradient(z, targets[here], vocab, z_loss, columns, cap))
            if d_x is None or d_table is None:
                return
            if columns.seed is not None:
                z.mul_(columns.seed)
            if d_bias is not None:
                d_bias.add_(z.sum(0))
            z = columns.called(z.to(x.dtype), LOGITS)
            torch.mm(z, table, out=d_x[here])
            torch.ops.glasscluster.add_product(d_table, z, tokens[here])

        for here in slices(len(tokens), chunks):
            add(here)
        ctx.columns, ctx.parameter, ctx.shape, ctx.seed = columns, table, x.shape, columns.seed
        ctx.save_for_backward(*(d for d in (d_x, d_table, d_bias) if d is not None))
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor):
        d_x, d_table, *d_bias = ctx.saved_tensors
        scale = grad if ctx.seed is None else grad / ctx.seed
        dtype = ctx.parameter.dtype

        def compute() -> Tensor:
            return d_table.mul_(scale).to(dtype)

        deferred = ctx.columns.deferred
        is_deferred = deferred is not None and deferred.defer(ctx.parameter, compute)
        bias = d_bias[0].mul_(scale).to(dtype) if d_bias else None
        gradients = d_x.mul_(scale).view(ctx.shape), None if is_deferred else compute(), bias
        return *gradients, *[None] * 7


def slices(tokens: int, chunks: int) -> list[slice]:
    """The tokens of each chunk: ceil(tokens / chunks), the last one fewer."""
    rows = rows_of(tokens, chunks)
    return [slice(start, min(start + rows, tokens)) for start in range(0, tokens, rows)]


# ---- theory ------------------------------------------------------------------------------------------------
def rows_of(tokens: int, chunks: int) -> int:
    """r = ceil(n / chunks): tokens of a chunk."""
    return -(-tokens // chunks)


def predict_logits(tokens: int, chunks: int, columns: int, width: int) -> int:
    """Eq 42: the most bytes of logits, probabilities and their gradients that a rank has at once.

    Args:
        tokens: n, of a micro-batch on this rank.
        chunks: of a micro-batch.
        columns: V/t, with the padding.
        width: w, bytes of an element. Of 16-bit elements a copy in fp32 lives beside them.
    """
    return rows_of(tokens, chunks) * columns * (width if width >= 4 else width + 4)


def predict_weight_gradient(columns: int, hidden: int, width: int) -> int:
    """Eq 42: bytes of dT, in fp32 or wider, that wait for a micro-batch's backward."""
    return columns * hidden * max(width, 4)


def predict_input_gradient(tokens: int, hidden: int, width: int) -> int:
    """Eq 42: bytes of dX that wait for a micro-batch's backward."""
    return tokens * hidden * width
