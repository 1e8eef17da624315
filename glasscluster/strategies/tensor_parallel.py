"""Tensor parallelism: each rank has some columns, then some rows, of every matrix.

Follows Megatron-LM (Shoeybi et al., 1909.08053, section 3). Symbols: t ranks, b sequences, s tokens, h hidden.

    Y = GELU(X A), Z = Y B:   A by columns, B by rows, so GELU needs no communication

        X ──f──► X A_i ──GELU──► Y_i B_i ──g──► Z        f: identity forward, all-reduce backward
                                                         g: all-reduce forward, identity backward

Per layer and micro-batch 2 all-reduces forward and 2 backward of b·s·h elements; once per model one forward
(embedding) and one backward (head input); the loss needs 3 of b·s scalars instead of gathering logits (F18, F19).
But: whole heads only (heads divisible by t), vocabulary divisible by t, no sequence parallelism.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glasscluster.model.flash_attention import wide
from glasscluster.model.parallel import IGNORE, Unsharded
from glasscluster.sim.communicator import Communicator


class TensorParallel(Unsharded):
    """Handed to the model's blocks in place of `Unsharded`."""

    def __init__(self, comm: Communicator, algorithm: str = "ring") -> None:
        self.comm, self.size, self.rank, self.algorithm = comm, comm.size, comm.rank, algorithm

    def f(self, x: Tensor) -> Tensor:
        """Into the parallel region."""
        return _F.apply(x, self)

    def g(self, x: Tensor) -> Tensor:
        """Out of the parallel region."""
        return _G.apply(x, self)

    def embed(self, tokens: Tensor, table: Tensor) -> Tensor:
        """Each rank looks up the rows it has; the sum is the whole look-up."""
        rows = table.shape[0]
        local = tokens - self.rank * rows
        absent = (local < 0) | (local >= rows)
        found = F.embedding(local.clamp(0, rows - 1), table).masked_fill(absent.unsqueeze(-1), 0.0)
        return self.g(found)

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Vocabulary-parallel: logits [b, s, V/t] never leave their rank."""
        return _CrossEntropy.apply(logits.to(wide(logits.dtype)), targets, self)

    def all_reduce(self, x: Tensor, label: str, op: str = "sum") -> Tensor:
        """In place, over the tensor-parallel ranks."""
        self.comm.all_reduce(x, op=op, algorithm=self.algorithm, purpose="activations", label=label)
        return x


class _F(torch.autograd.Function):
    """f: identity forward, all-reduce backward."""

    @staticmethod
    def forward(ctx, x: Tensor, parallel: TensorParallel) -> Tensor:
        ctx.parallel = parallel
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return ctx.parallel.all_reduce(grad.contiguous(), "f backward"), None


class _G(torch.autograd.Function):
    """g: all-reduce forward, identity backward."""

    @staticmethod
    def forward(ctx, x: Tensor, parallel: TensorParallel) -> Tensor:
        ctx.mark_dirty(x)
        return parallel.all_reduce(x, "g forward")

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None


class _CrossEntropy(torch.autograd.Function):
    """log sum exp over all ranks' columns, minus the target's logit; summed over tokens that count."""

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, parallel: TensorParallel) -> Tensor:
        columns = logits.shape[-1]
        largest = parallel.all_reduce(logits.amax(-1), "cross_entropy max", op="max")
        shifted = logits - largest.unsqueeze(-1)
        local = targets - parallel.rank * columns
        here = (local >= 0) & (local < columns)
        index = local.clamp(0, columns - 1).unsqueeze(-1)
        target_logit = parallel.all_reduce(shifted.gather(-1, index).squeeze(-1) * here, "cross_entropy target")
        p = shifted.exp_()
        total = parallel.all_reduce(p.sum(-1), "cross_entropy sum")
        counts = targets != IGNORE
        p.div_(total.unsqueeze(-1))
        ctx.save_for_backward(p, index, here, counts)
        return ((total.log() - target_logit) * counts).sum()

    @staticmethod
    def backward(ctx, grad: Tensor):
        p, index, here, counts = ctx.saved_tensors
        d = p.scatter_add(-1, index, -here.unsqueeze(-1).to(p.dtype))
        return d.mul_((counts * grad).unsqueeze(-1)), None, None


# ---- theory --------------------------------------------------------------------------------------------------------


def predict(
    layers: int, micro_batches: int, tokens: int, hidden: int, tp: int, width: int, embedding: bool, head: bool, again: int = 0
) -> dict[str, int]:
    """F18 and F19: bytes sent by all t ranks together in a step, for a stage with `layers` layers.

    tokens = b·s of a micro-batch; width = bytes of an element. `layer` is 4 all-reduces a layer and micro-batch, and the
    `again` ones of a stage that recomputation repeats; `embedding` and `head` one each where the stage has them; `loss` three of
    one scalar a token, which is in fp32 when elements are 16 bit.
    """
    one = 2 * (tp - 1) * tokens * width * micro_batches
    return {
        "layer": (4 * layers + again) * one * hidden,
        "embedding": one * hidden if embedding else 0,
        "head": one * hidden if head else 0,
        "loss": 3 * one * max(width, 4) // width if head else 0,
    }
