"""Overlapped tensor parallelism: collectives are cut into pieces that overlap with a matrix product.

Follows Wang et al., "Overlap communication with dependent computation via decomposition" (ASPLOS 2023), which
Megatron-LM calls tensor-parallel communication overlap. Symbols as in sequence_parallel.py: t ranks, x_i the
s/t tokens of rank i, A and B matrices.

    all-gather ──► product      rank r multiplies the piece it has, while the next one comes from the left

        compute  │ x_r A │ x_r-1 A │ x_r-2 A │ ...        send to the right:  x_r, x_r-1, ...

    product ──► reduce-scatter  the sum of a piece travels round the ring, and each rank adds a summand to it,
                                which it computes while the sum is under way

        compute  │ y_r-1 B │ y_r-2 B │ ... │ y_r B │      send to the right:  sum of piece r-1, of r-2, ...

Each collective sends the same bytes as in sequence parallelism, (t-1)/t·bsh a rank, in t-1 messages, each of
which overlaps with one product. The backward of the column-parallel matrix scatters dY A^T and sums A's
gradient over gathered pieces of x, both overlapped; that of the row-parallel matrix is its mirror image.

But: t small products take the place of one large one. The embedding and the router are not overlapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from glasscluster.sim.ranks.work import Work
from glasscluster.strategies.tensor.sequence_parallel import SequenceParallel

_GATHER, _SCATTER = 0, 1  # tags


class OverlappedSequenceParallel(SequenceParallel):
    """Sequence parallelism whose collectives overlap with matrix products; blocks get it in its place."""

    def column(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Apply f and the column-parallel matrix that follows it: [b, s/t, h] -> [b, s, n]."""
        return _GatherLinear.apply(x, weight, bias, self)

    def row(self, x: Tensor, weight: Tensor) -> Tensor:
        """Apply the row-parallel matrix and g that follows it: [b, s, n] -> [b, s/t, h]."""
        return _LinearScatter.apply(x, weight, self)

    # ---- the two rings -------------------------------------------------------------------------------------
    def arriving(self, x: Tensor, label: str) -> Iterator[tuple[slice, Tensor]]:
        """Iterate over all ranks' pieces [b, s/t, h], each with the positions of its tokens.

        The next piece is under way while one is used.
        """
        for source, piece in self.comm.ring_rotate(
            x.contiguous(), _GATHER, purpose="activations", label=label
        ):
            yield self.tokens(source, piece.shape[1]), piece

    def scattered(self, part: Callable[[slice], Tensor], tokens: int, label: str) -> Tensor:
        """This rank's piece of a sum over ranks.

        part(tokens) computes this rank's summand for a piece; one is computed while the sum of another is
        under way.
        """
        works: list[Work] = []
        total = arrived = None
        for step in range(self.size):
            mine = part(self.tokens((self.rank - 1 - step) % self.size, tokens // self.size))
            for work in works:
                work.wait()
            total = mine if arrived is None else mine.add_(arrived)
            if step < self.size - 1:
                arrived, works = self.comm.ring_shift(
                    total.contiguous(), _SCATTER, purpose="activations", label=label
                )
        assert total is not None
        return total

    @staticmethod
    def tokens(piece: int, each: int) -> slice:
        """The positions of the tokens in a rank's piece."""
        return slice(piece * each, (piece + 1) * each)


class _GatherLinear(torch.autograd.Function):
    """f and the matrix that follows it, with both backwards."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor | None, parallel: OverlappedSequenceParallel
    ) -> Tensor:
        ctx.parallel, ctx.parameter, ctx.bias = parallel, weight, bias is not None
        ctx.save_for_backward(x, weight)
        b, s, _ = x.shape
        out = x.new_empty(b, s * parallel.size, weight.shape[0])
        for tokens, piece in parallel.arriving(x, "f forward"):
            out[:, tokens] = F.linear(piece, weight, bias)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = (t.detach() for t in ctx.saved_tensors)  # what waits for W must not hold the graph
        d_x = ctx.parallel.scattered(lambda tokens: grad[:, tokens] @ weight, grad.shape[1], "f backward")
        parallel = ctx.parallel

        def d_weight() -> Tensor:
            total = torch.zeros_like(weight)
            for tokens, piece in parallel.arriving(x, "f again"):
                # one kernel, which adds the product to what is there
                total.addmm_(grad[:, tokens].flatten(0, 1).T, piece.flatten(0, 1))
            return total

        is_deferred = parallel.deferred is not None and parallel.deferred.defer(ctx.parameter, d_weight)
        return d_x, None if is_deferred else d_weight(), grad.sum((0, 1)) if ctx.bias else None, None


class _LinearScatter(torch.autograd.Function):
    """The matrix and g that follows it, with both backwards."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, parallel: OverlappedSequenceParallel) -> Tensor:
        ctx.parallel, ctx.parameter = parallel, weight
        ctx.save_for_backward(x, weight)
        return parallel.scattered(lambda tokens: F.linear(x[:, tokens], weight), x.shape[1], "g forward")

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = (t.detach() for t in ctx.saved_tensors)  # what waits for W must not hold the graph
        d_x, deferred = torch.empty_like(x), ctx.parallel.deferred
        parts: list[tuple[slice, Tensor]] = []

        def d_weight() -> Tensor:
            total = torch.zeros_like(weight)
            for tokens, piece in parts:
                total.addmm_(piece.flatten(0, 1).T, x[:, tokens].flatten(0, 1))
            return total

        # deferred: the gathered pieces of the gradient are held until d_weight runs
        if deferred is not None and deferred.defer(ctx.parameter, d_weight):
            for tokens, piece in ctx.parallel.arriving(grad, "g backward"):
                d_x[:, tokens] = piece @ weight
                parts.append((tokens, piece))
            return d_x, None, None
        total = torch.zeros_like(weight)
        for tokens, piece in ctx.parallel.arriving(grad, "g backward"):
            d_x[:, tokens] = piece @ weight
            total.addmm_(piece.flatten(0, 1).T, x[:, tokens].flatten(0, 1))
        return d_x, total, None
