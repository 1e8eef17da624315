"""Ulysses: ranks have some tokens of all heads outside attention, and all tokens of some heads inside it.

Follows Jacobs et al., "DeepSpeed Ulysses" (2309.14509). Symbols: N ranks, B sequences, s tokens, h = a·d, a
query and n_kv key heads.

              heads                      heads                    one all-to-all each for Q, K and V,
    tokens  [ 0 0 0 0 ]  all-to-all  [ 0 1 2 3 ]                  one back for the output;
            [ 1 1 1 1 ]  ─────────►  [ 0 1 2 3 ]  any attention,  in backward four the other way round
            [ 2 2 2 2 ]  ◄─────────  [ 0 1 2 3 ]  also unfused
            [ 3 3 3 3 ]              [ 0 1 2 3 ]                  (numbers: the rank that has it)

Ranks share out heads, so N must divide n_kv. In the hybrid only U must (USP; Fang and Zhao, 2405.07719):
groups of U neighbours exchange heads, and the N/U groups form a ring (context_parallel.py), whose members
have U times as many tokens of a/U heads.

    N = 4, U = 2:    ranks 0 1 │ 2 3     heads inside a group, keys and values along 0-2 and 1-3

But: the exchanges are not overlapped with anything; each needs one copy before and one after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from glasscluster.model.kernels.scores import PLAIN, Scores
from glasscluster.model.parallel import WholeSequence
from glasscluster.sim.ranks.collectives import serving
from glasscluster.sim.ranks.communicator import Communicator
from glasscluster.strategies.context import context_parallel
from glasscluster.strategies.context.context_parallel import RingContext, gather


class UlyssesContext(WholeSequence):
    """Ulysses for a model's blocks, which get it as `parallel.context`.

    `comm` has the ranks that exchange heads. `among` says how a sequence is cut over such groups: by a ring;
    None: there is one group.
    """

    def __init__(
        self, comm: Communicator, among: WholeSequence | None = None, algorithm: str = "ring"
    ) -> None:
        self.comm, self.among, self.algorithm = comm, among or WholeSequence(), algorithm
        self.size, self.rank = comm.size * self.among.size, self.among.rank * comm.size + comm.rank
        self.heads_cut, self.heads_rank = comm.size, comm.rank

    # ---- which tokens are whose: a group's tokens are divided evenly, in order -----------------------------
    def positions(self, tokens: int) -> Sequence[int]:
        """The positions of this rank's tokens in a sequence of `tokens` tokens, in ascending order."""
        group = self.among.positions(tokens)
        each = len(group) // self.comm.size
        return group[self.comm.rank * each : (self.comm.rank + 1) * each]

    def cut(self, x: Tensor, dim: int = 0) -> Tensor:
        """This rank's tokens of a whole sequence along `dim`."""
        return self.among.cut(x, dim).chunk(self.comm.size, dim)[self.comm.rank]

    def whole(self, x: Tensor) -> Tensor:
        """Gather all tokens, in the sequence's order, without gradient: [b, n, ...] -> [b, s, ...]."""
        return self.among.whole(gather(x, self.comm, self.algorithm).transpose(0, 1).flatten(1, 2))

    # ---- attention -----------------------------------------------------------------------------------------
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
        """Attention of this rank's tokens to all tokens.

        q [b, a, n, d], k and v [b, n_kv, n, d]; `bias` [a, 2s - 1] by distance; `prefix`: tokens at the
        beginning that all tokens see. Returns [b, a, n, d].
        """
        assert k.shape[1] % self.comm.size == 0, "whole key heads are exchanged"
        q, k, v = (_ToHeads.apply(x, self, name) for x, name in ((q, "queries"), (k, "keys"), (v, "values")))
        bias, sink = (_heads_of(x, self) for x in (bias, sink))
        return _ToTokens.apply(
            self.among.attend(attention, q, k, v, causal, prefix, bias, how, sink), self, "attention output"
        )

    def to_heads(self, x: Tensor, label: str) -> Tensor:
        """Exchange all heads of this rank's tokens for some heads of the group's tokens.

        [b, a, n, d] -> [b, a/U, U·n, d].
        """
        return (
            self.exchange(x.unflatten(1, (self.comm.size, -1)).movedim(1, 0), label)
            .movedim(0, 2)
            .flatten(2, 3)
        )

    def to_tokens(self, x: Tensor, label: str) -> Tensor:
        """The inverse of `to_heads`: [b, a/U, U·n, d] -> [b, a, n, d]."""
        return (
            self.exchange(x.unflatten(2, (self.comm.size, -1)).movedim(2, 0), label)
            .movedim(0, 1)
            .flatten(1, 2)
        )

    def exchange(self, pieces: Tensor, label: str) -> Tensor:
        """All-to-all: send pieces[j] to rank j of the group. Returns what each rank sent to this one."""
        pieces = pieces.contiguous()
        out = torch.empty_like(pieces)
        algorithm = serving("all_to_all", self.algorithm)
        self.comm.all_to_all(pieces, out, algorithm=algorithm, purpose="activations", label=label)
        return out


def _heads_of(x: Tensor | None, context: UlyssesContext) -> Tensor | None:
    """What belongs to the heads that this rank has inside attention, of [a, ...]."""
    return None if x is None else x.chunk(context.heads_cut)[context.heads_rank]


class _ToHeads(torch.autograd.Function):
    """Forward scatters heads and gathers tokens; backward does the inverse."""

    @staticmethod
    def forward(ctx, x: Tensor, context: UlyssesContext, label: str) -> Tensor:
        ctx.context, ctx.label = context, label
        return context.to_heads(x, label)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return ctx.context.to_tokens(grad, f"gradient of {ctx.label}"), None, None


class _ToTokens(torch.autograd.Function):
    """Forward scatters tokens and gathers heads; backward does the inverse."""

    @staticmethod
    def forward(ctx, x: Tensor, context: UlyssesContext, label: str) -> Tensor:
        ctx.context, ctx.label = context, label
        return context.to_tokens(x, label)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return ctx.context.to_heads(grad, f"gradient of {ctx.label}"), None, None


def make_context(
    kind: str,
    comm: Communicator,
    inner: Communicator | None = None,
    across: Communicator | None = None,
    algorithm: str = "ring",
) -> WholeSequence:
    """Context parallelism over the ranks of `comm`.

    `kind`: "ring", "striped" or "zigzag", or "ulysses". With `inner` and `across` it is a ring of Ulysses
    groups: `inner` has the ranks of this rank's group, `across` those in the same place of all groups.
    """
    if kind == "ulysses":
        return UlyssesContext(comm, algorithm=algorithm)
    if inner is None or across is None:
        return RingContext(kind, comm, algorithm)
    return UlyssesContext(inner, RingContext(kind, across, algorithm), algorithm)


# ---- theory ------------------------------------------------------------------------------------------------


def predict_traffic(
    kind: str,
    ranks: int,
    batch: int,
    tokens: int,
    heads: int,
    key_heads: int,
    head_dim: int,
    width: int,
    ulysses: int = 1,
) -> dict[str, int]:
    """Eq 26: bytes that each rank sends for one attention, with any kind of context parallelism.

    `tokens` is s; heads are a rank's before any exchange; `ulysses` is U, the ranks that exchange heads.

    exchange  (U-1)/U · B(s/N)(2a + 2 n_kv) d w forward and the same backward:
              4(N-1)/N · B(s/N)h elements when n_kv = a, U = N
    ring      of N/U groups and n_kv/U key heads: see context_parallel.predict_traffic

    `again` is what selective recomputation sends once more. It ends at the last tensor that attention saves
    for backward, so that the output is not exchanged again.
    """
    groups = ranks // ulysses if kind != "ulysses" else 1
    each = ranks // groups
    queries, keys = (
        n // each * (each - 1) * batch * (tokens // ranks) * head_dim * width for n in (heads, key_heads)
    )
    ring = context_parallel.predict_traffic(groups, batch, tokens, key_heads // each, head_dim, width)
    return {
        "forward": 2 * queries + 2 * keys + ring["forward"],
        "backward": 2 * queries + 2 * keys + ring["backward"],
        "again": queries + 2 * keys + ring["forward"],
    }
