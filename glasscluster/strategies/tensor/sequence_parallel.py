"""Sequence parallelism: outside the matrices each tensor-parallel rank has a part of every sequence's tokens.

Follows Korthikanti et al., "Reducing activation recomputation in large transformer models" (2205.05198),
section 4.2.2. Symbols: t ranks, b sequences, s tokens, h hidden.

        s/t tokens        all s tokens          s/t tokens          an all-reduce is a reduce-scatter and an
    norm ──► f ──► Y A_i ──► ... ──► Y_i B_i ──► g ──► dropout, +   all-gather: the same bytes, and norms,
                                                                    dropouts and residuals hold 1/t

    f   all-gather forward, reduce-scatter backward         g   reduce-scatter forward, all-gather backward

Only the shard before f is saved for backward, which gathers it again. The gather overlaps with computing the
gradient of f's output, and the reduce-scatter of that gradient overlaps with computing the gradient of A. A
layer has 2 all-gathers and 2 reduce-scatters in forward, 4 and 2 in backward. Parameters that are whole on
every rank (norms, biases, positions) see only the rank's own tokens, so that their gradients are summed over
the t ranks at the end of a step.

But: t must divide s; with several sequences in a micro-batch, gathering needs one copy that moves each rank's
tokens to their place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from glasscluster.strategies.layout.units import Unit
from glasscluster.strategies.tensor.tensor_parallel import TensorParallel, sum_whole


class SequenceParallel(TensorParallel):
    """Sequence parallelism for a model's blocks, which get it in place of `TensorParallel`."""

    @property
    def pieces(self) -> int:
        """How many ranks share out a sequence's tokens outside the matrices."""
        return self.size * self.context.size

    def positions(self, tokens: int) -> Sequence[int]:
        """The positions of the tokens that this rank has outside the matrices, of a sequence of `tokens`."""
        inside = self.context.positions(tokens)
        each = len(inside) // self.size
        return inside[self.rank * each : (self.rank + 1) * each]

    def cut(self, x: Tensor) -> Tensor:
        """This rank's tokens of a whole sequence [s, ...], a slice of its first dimension."""
        return self.context.cut(x).tensor_split(self.size)[self.rank]

    def gather_tokens(self, x: Tensor) -> Tensor:
        """Gather all ranks' tokens of a tensor that needs no gradient: [b, s/t, k] -> [b, s, k]."""
        return self.gather(x, "routing", purpose="scalars")[0]

    def f(self, x: Tensor, label: str = "f") -> Tensor:
        """Enter the parallel region: [b, s/t, h] -> [b, s, h]."""
        return _Gather.apply(x, self, label)

    def column(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Apply f and the column-parallel matrix that follows it: [b, s/t, h] -> [b, s, n]."""
        return _GatherLinear.apply(x, weight, bias, self)

    def g(self, x: Tensor) -> Tensor:
        """Leave the parallel region: partial sums [b, s, h] -> the rank's tokens of their sum [b, s/t, h]."""
        return _Scatter.apply(x, self)

    # ---- the two collectives -------------------------------------------------------------------------------
    def gather(
        self,
        x: Tensor,
        label: str,
        meanwhile: Tensor | None = None,
        weight: Tensor | None = None,
        purpose: str = "activations",
    ) -> tuple[Tensor, Tensor | None]:
        """All-gather the ranks' tokens: [b, s/t, h] -> [b, s, h].

        `meanwhile @ weight` is computed while they are under way. Returns the gathered tensor and that
        product, which is None if `meanwhile` or `weight` is.
        """
        pieces = x.new_empty(self.size, *x.shape)
        pieces[self.rank].copy_(x)
        work = self.comm.all_gather(
            pieces, algorithm=self.algorithm, async_op=True, purpose=purpose, label=label
        )
        product = None if meanwhile is None or weight is None else meanwhile @ weight
        work.wait()
        t, b, s, h = pieces.shape
        return (pieces.view(1, t * s, h) if b == 1 else pieces.transpose(0, 1).reshape(b, t * s, h)), product

    def scatter(
        self, x: Tensor, label: str, meanwhile: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Reduce-scatter: sum x [b, s, h] over ranks and return this rank's tokens [b, s/t, h].

        With `meanwhile=(a, b)`, a.T @ b (summed over all tokens) is computed while messages are under way.
        Returns the rank's tokens and that product, or None.
        """
        b, s, h = x.shape
        pieces = x.view(b, self.size, s // self.size, h).transpose(0, 1).contiguous()
        work = self.comm.reduce_scatter(
            pieces, algorithm=self.algorithm, async_op=True, purpose="activations", label=label
        )
        product = None if meanwhile is None else meanwhile[0].flatten(0, 1).T @ meanwhile[1].flatten(0, 1)
        work.wait()
        return torch.empty_like(pieces[self.rank]).copy_(pieces[self.rank]), product


class _Gather(torch.autograd.Function):
    """f alone: all-gather forward, reduce-scatter backward. The operation after it saves the whole tensor."""

    @staticmethod
    def forward(ctx, x: Tensor, parallel: SequenceParallel, label: str) -> Tensor:
        ctx.parallel, ctx.label = parallel, label
        return parallel.gather(x, f"{label} forward")[0]

    @staticmethod
    def backward(ctx, grad: Tensor):
        return ctx.parallel.scatter(grad, f"{ctx.label} backward")[0], None, None


class _GatherLinear(torch.autograd.Function):
    """f and the matrix A after it: all-gather x forward; all-gather x again and reduce-scatter backward."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, parallel: SequenceParallel) -> Tensor:
        ctx.parallel, ctx.parameter, ctx.bias = parallel, weight, bias is not None
        ctx.save_for_backward(x, weight)
        return F.linear(parallel.gather(x, "f forward")[0], weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = (t.detach() for t in ctx.saved_tensors)  # what waits for W must not hold the graph
        parallel = ctx.parallel
        if parallel.deferred is not None:
            grad_2d = grad.flatten(0, 1)
            if parallel.deferred.defer(
                ctx.parameter, lambda: grad_2d.T @ parallel.gather(x, "f again")[0].flatten(0, 1)
            ):
                d_x, _ = parallel.scatter(grad @ weight, "f backward")
                return d_x, None, grad_2d.sum(0) if ctx.bias else None, None
        whole, d_whole = parallel.gather(x, "f again", grad, weight)
        d_x, d_weight = parallel.scatter(d_whole, "f backward", (grad, whole))
        return d_x, d_weight, grad.sum((0, 1)) if ctx.bias else None, None


class _Scatter(torch.autograd.Function):
    """g: reduce-scatter forward, all-gather backward."""

    @staticmethod
    def forward(ctx, x: Tensor, parallel: SequenceParallel) -> Tensor:
        ctx.parallel = parallel
        return parallel.scatter(x, "g forward")[0]

    @staticmethod
    def backward(ctx, grad: Tensor):
        return ctx.parallel.gather(grad, "g backward")[0], None


def sum_over_tokens(parallel: SequenceParallel, units: Sequence[Unit]) -> None:
    """Sum over the t ranks the owned gradients of the parameters that are whole on every rank."""
    sum_whole(parallel, units, lambda _name: True, "norms, biases, positions")


# ---- theory ------------------------------------------------------------------------------------------------


def predict_traffic(
    layers: int,
    micro_batches: int,
    tokens: int,
    hidden: int,
    tp: int,
    width: int,
    embedding: bool,
    head: bool,
    again: int = 0,
    per_layer: int = 10,
    head_input: int = 3,
) -> dict[str, int]:
    """Eq 18 with sequence parallelism: bytes that all t ranks together send in a step, for a pipeline stage.

    Arguments and result are those of tensor_parallel.predict_traffic, except that `per_layer` and `again` are
    numbers of all-gathers and reduce-scatters. Each sends (t-1) b·s·h elements. A layer has 10 (4 in forward;
    6 in backward, 2 of them because only the shard is saved), the embedding 2, the head's input
    `head_input`: 3, or 2 where the loss comes in chunks and needs the gathered input in forward alone.
    """
    one = (tp - 1) * tokens * width * micro_batches * hidden
    return {
        "layer": (per_layer * layers + again) * one,
        "embedding": 2 * one if embedding else 0,
        "head": head_input * one if head else 0,
        "loss": 6 * one // hidden * max(width, 4) // width if head else 0,
    }
