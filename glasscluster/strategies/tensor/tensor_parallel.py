"""Tensor parallelism: a layer's matrices are cut over ranks, in each pair one by columns, the next by rows.

Follows Megatron-LM (Shoeybi et al., 1909.08053, section 3). Symbols: t ranks, b sequences, s tokens, h
hidden.

    Y = GELU(X A), Z = Y B:   A by columns, B by rows, so GELU needs no communication

        X ──f──► X A_i ──GELU──► Y_i B_i ──g──► Z        f: identity forward, all-reduce backward
                                                         g: all-reduce forward, identity backward

A layer and micro-batch has 2 all-reduces of b·s·h elements in forward and 2 in backward; the embedding has
one in forward, the head's input one in backward. The loss needs 3 all-reduces of b·s scalars, so that logits
need not be gathered (Eq 18, Eq 19).

A vocabulary that t does not divide is padded with rows of zeros, whose logits are set to minus infinity. With
fewer key-value heads than ranks, each rank computes some columns of one head's K and V, and the t / (key
heads) ranks that share a head gather it (as Megatron-LM does, which also gathers Q). A parameter that is
whole on every rank but that each rank uses for its own heads only has partial gradients, which are summed
once a step.

But: whole query heads only, so t must divide the number of heads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from glasscluster.model.kernels.precision import accumulation_dtype
from glasscluster.model.parallel import IGNORE, Unsharded
from glasscluster.sim.ranks.communicator import Communicator
from glasscluster.strategies.layout.units import Unit, owned_members


class TensorParallel(Unsharded):
    """Tensor parallelism for a model's blocks, which get it in place of `Unsharded`.

    `comm` has the t tensor-parallel ranks. `same_head` has the ranks that share one key-value head, when
    there are fewer such heads than ranks.
    """

    def __init__(
        self, comm: Communicator, algorithm: str = "ring", same_head: Communicator | None = None
    ) -> None:
        self.comm, self.size, self.rank, self.algorithm = comm, comm.size, comm.rank, algorithm
        self.same_head = same_head

    def f(self, x: Tensor, label: str = "f") -> Tensor:
        """Enter the parallel region: identity forward, all-reduce backward. `label` names its messages."""
        return _F.apply(x, self, label)

    def g(self, x: Tensor) -> Tensor:
        """Leave the parallel region: all-reduce forward, identity backward."""
        return _G.apply(x, self)

    def embed(self, tokens: Tensor, table: Tensor) -> Tensor:
        """Look tokens up in a table whose rows are cut over ranks.

        Each rank looks up the rows that it has, and zeros for others; the sum over ranks is the result.
        """
        rows = table.shape[0]
        local = tokens - self.rank * rows
        absent = (local < 0) | (local >= rows)
        rows_here = F.embedding(local.clamp(0, rows - 1), table).masked_fill(absent.unsqueeze(-1), 0.0)
        return self.g(rows_here)

    def whole_heads(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Whole key-value heads: K and V [b, s, columns], gathered from the ranks that share a head."""
        return (k, v) if self.same_head is None else _GatherHead.apply(k, v, self)

    def whole_logits(self, logits: Tensor, vocab: int) -> Tensor:
        """Gather all ranks' logits [b, s, V/t] as [b, s, vocab], without the padding."""
        pieces = logits.new_empty(self.size, *logits.shape)
        pieces[self.rank].copy_(logits)
        self.comm.all_gather(pieces, algorithm=self.algorithm, purpose="activations", label="logits")
        return pieces.movedim(0, -2).flatten(-2)[..., :vocab]

    def cross_entropy(self, logits: Tensor, targets: Tensor, vocab: int, z_loss: float = 0.0) -> Tensor:
        """Vocabulary-parallel cross-entropy: logits [b, s, V/t] never leave their rank.

        Returns a scalar, summed over the tokens that count. z-loss needs no further message, because every
        rank has log Z.
        """
        return _CrossEntropy.apply(logits.to(accumulation_dtype(logits.dtype)), targets, self, vocab, z_loss)

    def combine(self, x: Tensor, label: str, op: str = "sum") -> Tensor:
        """x [tokens] added up over the ranks' columns of the vocabulary, or its maximum."""
        return self.all_reduce(x, label, op)

    def all_reduce(self, x: Tensor, label: str, op: str = "sum") -> Tensor:
        """All-reduce x in place over the tensor-parallel ranks, and return it."""
        self.comm.all_reduce(x, op=op, algorithm=self.algorithm, purpose="activations", label=label)
        return x


class _F(torch.autograd.Function):
    """f: identity forward, all-reduce backward."""

    @staticmethod
    def forward(ctx, x: Tensor, parallel: TensorParallel, label: str) -> Tensor:
        ctx.parallel, ctx.label = parallel, label
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return ctx.parallel.all_reduce(grad.contiguous(), f"{ctx.label} backward"), None, None


class _G(torch.autograd.Function):
    """g: all-reduce forward, identity backward."""

    @staticmethod
    def forward(ctx, x: Tensor, parallel: TensorParallel) -> Tensor:
        ctx.mark_dirty(x)
        return parallel.all_reduce(x, "g forward")

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None


class _GatherHead(torch.autograd.Function):
    """Gather the columns of one head's K and V: all-gather forward, reduce-scatter backward.

    Each rank has other queries of the head, so the gradients of K and V are summed over ranks.
    """

    @staticmethod
    def forward(ctx, k: Tensor, v: Tensor, parallel: TensorParallel) -> tuple[Tensor, Tensor]:
        comm = parallel.same_head
        assert comm is not None
        ctx.comm = comm
        ctx.algorithm = parallel.algorithm
        pieces = k.new_empty(comm.size, 2, *k.shape)
        pieces[comm.rank, 0].copy_(k)
        pieces[comm.rank, 1].copy_(v)
        comm.all_gather(pieces, algorithm=parallel.algorithm, purpose="activations", label="key-value head")
        k, v = pieces.permute(1, 2, 3, 0, 4).flatten(3)  # [2, b, s, columns of the head]
        return k, v

    @staticmethod
    def backward(ctx, d_k: Tensor, d_v: Tensor):
        comm = ctx.comm
        pieces = torch.stack([d_k, d_v]).unflatten(3, (comm.size, -1)).permute(3, 0, 1, 2, 4).contiguous()
        comm.reduce_scatter(
            pieces, algorithm=ctx.algorithm, purpose="activations", label="key-value head backward"
        )
        return pieces[comm.rank, 0].clone(), pieces[comm.rank, 1].clone(), None


class _CrossEntropy(torch.autograd.Function):
    """The loss log Z minus the target's logit, with Z the sum of exp over all ranks' columns.

    It is summed over the tokens that count. With z-loss, z · log² Z is added, whose gradient is 2z · log Z ·
    p; so p is saved for backward multiplied by 1 + 2z · log Z.
    """

    @staticmethod
    def forward(
        ctx, logits: Tensor, targets: Tensor, parallel: TensorParallel, vocab: int, z_loss: float
    ) -> Tensor:
        columns = logits.shape[-1]
        real = max(0, min(columns, vocab - parallel.rank * columns))
        if real < columns:  # padded rows of the vocabulary are no tokens
            logits = F.pad(logits[..., :real], (0, columns - real), value=-torch.inf)
        largest = parallel.all_reduce(logits.amax(-1), "cross_entropy max", op="max")
        shifted = logits - largest.unsqueeze(-1)
        local = targets - parallel.rank * columns
        absent = (local < 0) | (local >= columns)
        index = local.clamp(0, columns - 1).unsqueeze(-1)
        target_logit = parallel.all_reduce(
            shifted.gather(-1, index).squeeze(-1).masked_fill(absent, 0.0), "cross_entropy target"
        )
        p = shifted.exp_()
        total = parallel.all_reduce(p.sum(-1), "cross_entropy sum")
        counts = targets != IGNORE
        p.div_(total.unsqueeze(-1))
        if z_loss:
            p.mul_((1 + 2 * z_loss * (total.log() + largest)).unsqueeze(-1))
        ctx.save_for_backward(p, index, absent, counts)
        return ((total.log() - target_logit) * counts).sum()

    @staticmethod
    def backward(ctx, grad: Tensor):
        p, index, absent, counts = ctx.saved_tensors
        d = p.scatter_add(-1, index, absent.unsqueeze(-1).to(p.dtype) - 1)
        return d.mul_((counts * grad).unsqueeze(-1)), None, None, None, None


# ---- what every rank has whole -----------------------------------------------------------------------------


def sum_over_heads(parallel: TensorParallel, units: Sequence[Unit], partial: Collection[str]) -> None:
    """Sum over ranks the gradients of whole parameters that each rank uses for its own heads only.

    They are those with a name in `partial`: norms of queries and keys.
    """
    sum_whole(parallel, units, lambda name: name in partial, "what all heads share")


def sum_whole(
    parallel: TensorParallel,
    units: Sequence[Unit],
    wanted: Callable[[str], bool],
    label: str,
) -> None:
    """Sum the owned gradients of whole parameters over the t ranks, with one all-reduce for all of them.

    `wanted(name)` says which parameters are summed.
    """
    mine = [(unit, member, part) for unit in units for member, part in owned_members(unit)]
    pieces = [u.owned_gradient[part] for u, m, part in mine if m.shard is None and wanted(m.name)]
    if pieces:
        flat = torch.cat(pieces)
        parallel.comm.all_reduce(flat, algorithm=parallel.algorithm, purpose="gradients", label=label)
        for piece, summed in zip(pieces, flat.split([p.numel() for p in pieces]), strict=True):
            piece.copy_(summed)


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
    per_layer: int = 4,
) -> dict[str, int]:
    """Eq 18 and Eq 19: bytes that all t ranks together send in a step, for one pipeline stage.

    Args:
        layers: layers of the stage.
        micro_batches: micro-batches of a step.
        tokens: b·s, tokens of a micro-batch.
        hidden: h.
        tp: t.
        width: bytes of an element.
        embedding: whether the stage has the embedding.
        head: whether the stage has the head.
        again: all-reduces of the stage that recomputation repeats for each micro-batch.
        per_layer: all-reduces of a layer and micro-batch, two for each pair of matrices.

    Returns:
        Bytes of the "layer" all-reduces, of the "embedding" and the "head" (one each), and of the "loss"
        (three of a scalar for each token, in fp32 when elements have 16 bits).
    """
    one = 2 * (tp - 1) * tokens * width * micro_batches
    return {
        "layer": (per_layer * layers + again) * one * hidden,
        "embedding": one * hidden if embedding else 0,
        "head": one * hidden if head else 0,
        "loss": 3 * one * max(width, 4) // width if head else 0,
    }


def predict_shared_heads(
    key_heads: int, key_width: int, tp: int, tokens: int, width: int, runs: int = 2
) -> int:
    """Eq 10: bytes that all t ranks together send to gather K and V where t / (key heads) ranks share a head.

    They are of a layer and micro-batch of `tokens` tokens. `runs`: how often they are gathered or scattered:
    in forward, in backward (a reduce-scatter), and when recomputation repeats the forward.
    """
    sharing = tp // key_heads
    return runs * (sharing - 1) * 2 * tokens * key_width * width if sharing > 1 else 0


def predict_again(regions: int, spared: int, each: int = 1) -> int:
    """Eq 18: how many collectives full recomputation repeats for a stage and micro-batch.

    The stage's layers have `regions` pairs of matrices (attention, MLP), and each pair has `each` collectives
    in forward. `spared`: segments whose last collective is not repeated.
    """
    return each * regions - spared
