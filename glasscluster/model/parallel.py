"""What a block asks of parallelism, and the answer of one device.

The model knows nothing of clusters: each block calls `f` before and `g` after its matrices (the names of
Megatron-LM, 1909.08053 section 3), takes its share of the rows or columns, hands attention to `context` and
sends tokens to `experts`. On one device all of these are the identity. Those that talk are in strategies/:
tensor_parallel.py, sequence_parallel.py, context_parallel.py, expert_parallel.py.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glasscluster.model.config import ModelConfig
from glasscluster.model.kernels.chunked_loss import IGNORE, ChunkedCrossEntropy
from glasscluster.model.kernels.precision import accumulation_dtype
from glasscluster.model.kernels.scores import PLAIN, Scores


@dataclass(frozen=True)
class Shard:
    """How a parameter is cut over tensor-parallel ranks: along `dim`, each of its blocks (Q, K and V) by
    itself.

    A block that the ranks do not divide is padded with zeros at its end (the vocabulary). With `experts`, dim
    0 counts experts and is cut over the expert-parallel ranks as well.
    """

    dim: int
    blocks: tuple[int, ...] = ()  # their lengths; none: one block
    experts: bool = False

    def take(self, full: Tensor, rank: int, size: int, expert_rank: int = 0, expert_size: int = 1) -> Tensor:
        """This rank's part of a whole parameter."""
        if self.experts:
            full = full.chunk(expert_size)[expert_rank]
        if size == 1:
            return full
        pieces = []
        for block in full.split(self.blocks or full.shape[self.dim], self.dim):
            n = block.shape[self.dim]
            each = -(-n // size)
            piece = block.narrow(self.dim, min(rank * each, n), max(0, min(each, n - rank * each)))
            missing = list(piece.shape)
            missing[self.dim] = each - piece.shape[self.dim]
            pieces.append(
                torch.cat([piece, piece.new_zeros(missing)], self.dim) if missing[self.dim] else piece
            )
        return torch.cat(pieces, self.dim) if len(pieces) > 1 else pieces[0]

    def shape(self, full: tuple[int, ...], size: int, expert_size: int = 1) -> tuple[int, ...]:
        """The shape of a rank's part."""
        local = list(full)
        local[self.dim] = sum(-(-n // size) for n in self.blocks or (full[self.dim],))
        if self.experts:
            local[0] //= expert_size
        return tuple(local)


class WholeSequence:
    """How a sequence is cut over context-parallel ranks. Here: not at all."""

    size, rank = 1, 0
    heads_cut, heads_rank = (
        1,
        0,
    )  # ranks that share out the heads inside attention (Ulysses), and which of them this is

    def positions(self, tokens: int) -> Sequence[int]:
        """The positions of the tokens that this rank has, in its own order."""
        return range(tokens)

    def cut(self, x: Tensor, dim: int = 0) -> Tensor:
        """This rank's tokens of a whole sequence, which lies along `dim`."""
        return x

    def whole(self, x: Tensor) -> Tensor:
        """All tokens, in the sequence's order, from this rank's [b, s local, ...]. They carry no gradient."""
        return x

    def attend(
        self,
        attention: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        causal: bool = True,
        prefix: int = 0,
        bias: Tensor | None = None,
        how: Scores = PLAIN,
        sink: Tensor | None = None,
    ) -> Tensor:
        """Attention of local tokens to all tokens that they may see.

        q [b, a, s local, d], k and v [b, a_kv, s local, d], bias [a, 2s - 1]: what is added to scores, by
        distance; how, sink [a]: see kernels/scores.py. Returns a tensor like q.
        """
        return attention(q, k, v, causal=causal, prefix=prefix, bias=bias, how=how, sink=sink)


class WholeExperts:
    """Where the experts are. Here: all on this rank."""

    size, rank = 1, 0

    def dispatch(self, x: Tensor, counts: list[int]) -> tuple[Tensor, list[list[int]]]:
        """Send tokens to their experts.

        x [A, h]: assignments sorted by expert, counts[e] of them for expert e of all E. Returns what arrived,
        [R, h], ordered by source rank and then by local expert, and how many of each: arrived[source][local
        expert].
        """
        return x, [counts]

    def combine(self, y: Tensor, counts: list[int], arrived: list[list[int]]) -> Tensor:
        """Send results [R, h] back where they came from: [A, h], in the order in which they were
        dispatched.
        """
        return y


class Unsharded:
    """One device: every tensor is whole."""

    size, rank = 1, 0
    context = WholeSequence()
    experts: Any = WholeExperts()
    seed: Tensor | None = None  # what backward starts from (fp16's loss scale); None: 1
    # takes weight gradients that are computed after the backward (strategies/pipeline/weight_gradients.py)
    deferred: Any = None
    observe: Any = None  # called with kind, layer and tensors (strategies/observer.py); None: nobody looks
    name_tensor: Any = None  # called with a tensor and its name in the memory ledger; None: nobody counts

    @property
    def pieces(self) -> int:
        """How many ranks share out a sequence's tokens outside the matrices."""
        return self.context.size

    def positions(self, tokens: int) -> Sequence[int]:
        """The positions of this rank's tokens, outside the matrices, in a sequence of `tokens`."""
        return self.context.positions(tokens)

    def spans(self, tokens: int, hidden: int) -> tuple[int, ...]:
        """The elements of [s, h] that this rank has, as runs: first, how many, first, how many, ...

        Dropout looks its mask up by them.
        """
        return runs(tuple(self.positions(tokens)), hidden)

    def cut(self, x: Tensor) -> Tensor:
        """This rank's tokens of a whole [s, ...]."""
        return self.context.cut(x)

    def gather_tokens(self, x: Tensor) -> Tensor:
        """[b, s outside the matrices, ...] -> [b, s inside]. The result carries no gradient."""
        return x

    def column(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Enter the parallel region, and multiply by its first matrix."""
        return self.linear(self.f(x), weight, bias)

    def row(self, x: Tensor, weight: Tensor) -> Tensor:
        """Multiply by the region's last matrix, and leave it."""
        return self.g(self.linear(x, weight))

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        whole: Tensor | None = None,
        index: int | None = None,
    ) -> Tensor:
        """x A^T + b. A is a parameter, or the slice `index` of the parameter `whole`."""
        return (
            F.linear(x, weight, bias)
            if self.deferred is None
            else self.deferred.linear(x, weight, bias, whole, index)
        )

    def whole_heads(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [b, s, columns] of whole heads, from this rank's columns."""
        return k, v

    def f(self, x: Tensor, label: str = "f") -> Tensor:
        """Enter the parallel region (Megatron's f); `label` names its messages."""
        return x

    def g(self, x: Tensor) -> Tensor:
        """Leave the parallel region (Megatron's g); `label` names its messages."""
        return x

    def embed(self, tokens: Tensor, table: Tensor) -> Tensor:
        """Look up rows of the table: [b, s] -> [b, s, h]."""
        return F.embedding(tokens, table)

    def whole_logits(self, logits: Tensor, vocab: int) -> Tensor:
        """Logits of the whole vocabulary, [b, s, V], from this rank's columns."""
        return logits

    def cross_entropy(self, logits: Tensor, targets: Tensor, vocab: int, z_loss: float = 0.0) -> Tensor:
        """The sum over tokens of -log p(target), in fp32 for 16-bit logits.

        logits [b, s, V], targets [b, s]; a target of IGNORE counts nothing. With z_loss the gradient is that
        of -log p(target) + z_loss · log² Z, Z = Σ exp(logit) (PaLM, 2204.02311, section 5), which keeps
        logits from drifting together; the loss that is returned is without it, so that losses compare.
        """
        logits, targets = logits.flatten(0, 1).to(accumulation_dtype(logits.dtype)), targets.flatten()
        loss = F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORE)
        if not z_loss:
            return loss
        extra = z_loss * (logits.logsumexp(-1).square() * (targets != IGNORE)).sum()
        return loss + (extra - extra.detach())

    def chunked_cross_entropy(
        self, x: Tensor, table: Tensor, bias: Tensor | None, targets: Tensor, config: ModelConfig
    ) -> Tensor:
        """The head's product and `cross_entropy` together, chunk by chunk: logits are never whole.

        x [b, s outside the matrices, h], table [V/t, h], bias [V/t], targets [b, s]; returns a scalar.
        """
        how = self, config.loss_chunks, config.vocab, config.z_loss, config.logit_cap, torch.is_grad_enabled()
        return ChunkedCrossEntropy.apply(self.f(x), table, bias, targets, *how)

    def combine(self, x: Tensor, label: str, op: str = "sum") -> Tensor:
        """x summed over the ranks that share out the vocabulary, or with op "max" its maximum."""
        return x

    def called(self, x: Tensor, name: str) -> Tensor:
        """x, after whoever counts memory has heard its name."""
        if self.name_tensor is not None:
            self.name_tensor(x, name)
        return x


def plus(x: Tensor, bias: Tensor | None) -> Tensor:
    """x + bias, where there is one."""
    return x if bias is None else x + bias


@lru_cache(maxsize=64)
def runs(positions: tuple[int, ...], each: int) -> tuple[int, ...]:
    """Positions as runs of consecutive ones: first, how many, first, how many, ... Each position is `each`
    elements.
    """
    starts = [i for i, p in enumerate(positions) if not i or p != positions[i - 1] + 1]
    ends = [*starts[1:], len(positions)]
    return tuple(x for a, b in zip(starts, ends, strict=True) for x in (positions[a] * each, (b - a) * each))


class KeepAll:
    """A policy of what a layer saves for backward: here, everything that backward needs.

    `strategies/memory/recompute.py` has those that free it and compute it again.
    """

    active = False  # computing again just now
    positions: Sequence[Sequence[int]] | None = (
        None  # of each sequence's tokens, where they do not start at 0 (generation)
    )

    def layers(self, blocks: Sequence[Any], x: Tensor, draw: Any) -> Tensor:
        """Compute consecutive blocks."""
        for block in blocks:
            x = block(x, draw)
        return x

    def branch(self, part: str, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """What computes a part of a layer from one tensor: its second branch, "mlp" or "moe", or of that
        the "shared" expert.
        """
        return function

    def discards(self, part: str) -> bool:
        """Whether `behind` saves nothing of what `make` gives."""
        return False

    def behind(
        self, part: str, make: Callable[[Any], Any], use: Callable[[Any], Tensor], given: Any
    ) -> Tensor:
        """Compute use(make(given)). `part` says what `make` is: of what it gives a policy may save nothing.

        part: "norm", the norm before a branch; "moe_act", the activation of an expert; "latent_up", what makes
        queries, keys and values of latents. Given and made is a tensor, or a tuple of tensors.
        """
        made = make(given)
        del given  # whoever holds it keeps it alive where nothing is saved
        return use(made)

    def latent(self, c: Tensor, k_rotary: Tensor | None) -> None:
        """Latent attention: what keys and values are made from, [b, s, d_c] and [b, s, 1, d_R], for a cache
        that stores it.
        """

    def core(self, attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute the core of attention: scores, softmax, its dropout, and the sum over V."""
        return attention(q, k, v)


def local_parameter(
    name: str,
    shape: tuple[int, ...],
    std: float,
    mean: float,
    shard: Shard | None,
    parallel: Unsharded,
    seed: int,
    like: Tensor,
) -> torch.nn.Parameter:
    """This rank's part of a parameter.

    The full tensor depends on (seed, name) alone, so every layout starts equal. `like` gives dtype and
    device; values are drawn in float64 and rounded, so precisions start equal too.
    """
    experts = parallel.experts
    local = shard.shape(shape, parallel.size, experts.size) if shard else shape
    if like.device.type == "meta":
        return torch.nn.Parameter(torch.empty(local, dtype=like.dtype, device="meta"))
    generator = torch.Generator().manual_seed((seed << 32) ^ zlib.crc32(name.encode()))
    full = torch.randn(shape, generator=generator, dtype=torch.float64) * std + mean
    part = shard.take(full, parallel.rank, parallel.size, experts.rank, experts.size) if shard else full
    return torch.nn.Parameter(part.to(like.dtype, copy=True).to(like.device).contiguous())
