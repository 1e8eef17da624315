"""Expert parallelism: each rank has some experts, and tokens travel to them and back.

Follows GShard (Lepikhin et al., 2006.16668, section 3). Symbols: N ranks that see different tokens, T of them
each, E experts (E/N a rank), k a token, h hidden.

    rank 0  router ─► rows 0 1 2 3 ┐ all-to-all ┌─► experts 0, 1 on rows of both ┐ all-to-all ┌─► weighted sum
    rank 1  router ─► rows 0 1 2 3 ┘  dispatch  └─► experts 2, 3 on rows of both ┘  combine   └─► weighted sum

    dispatch   rows by expert -> rows by (source, own expert)     its backward is a combine of gradients
    combine    the way back                                       its backward is a dispatch of gradients

A row is one token's hidden state for one of its k experts. A layer and micro-batch has 4 all-to-alls of rows.
Before the first one ranks exchange how many rows they will send (E integers), and the CPU waits for these
counts. An expert sees the tokens of all N ranks, so its gradient is already their sum; it is reduced only
over ranks that hold the same expert.

But: the all-to-alls are not overlapped; with tensor parallelism each of the t ranks sends whole rows (t times
the bytes); an all-to-all takes as long as its busiest rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glasscluster.model.parallel import WholeExperts
from glasscluster.sim.ranks.collectives import serving
from glasscluster.sim.ranks.communicator import Communicator


class ExpertParallel(WholeExperts):
    """Expert parallelism for a model's blocks, which get it as `parallel.experts`."""

    def __init__(self, comm: Communicator, algorithm: str = "direct") -> None:
        self.comm, self.size, self.rank = comm, comm.size, comm.rank
        self.algorithm = serving("all_to_all", algorithm)

    def dispatch(self, x: Tensor, counts: list[int]) -> tuple[Tensor, list[list[int]]]:
        """Send rows [A, h], sorted by expert, to the ranks of their experts.

        `counts` has the number of rows for each of all E experts. Returns the rows that this rank's experts
        get, and how many rows each rank sends to each of them.
        """
        sources = self.exchange_counts(counts, x.device)
        return _Move.apply(x, self.per_rank(counts), [sum(n) for n in sources], self, "dispatch"), sources

    def combine(self, y: Tensor, counts: list[int], arrived: list[list[int]]) -> Tensor:
        """Send results [R, h] back to the ranks that their tokens came from. Inverse of `dispatch`."""
        return _Move.apply(y, [sum(n) for n in arrived], self.per_rank(counts), self, "combine")

    def per_rank(self, counts: Sequence[int]) -> list[int]:
        """How many rows go to the experts of each rank."""
        each = len(counts) // self.size
        return [sum(counts[r * each : (r + 1) * each]) for r in range(self.size)]

    def exchange_counts(self, counts: list[int], device: torch.device) -> list[list[int]]:
        """How many rows each rank sends to each of this rank's experts: [rank][expert].

        On the dry backend every rank is taken to send the same as this one.
        """
        sent = torch.tensor(counts, device=device)
        received = torch.empty_like(sent)
        self.comm.all_to_all(
            sent, received, algorithm=self.algorithm, purpose="scalars", label="rows an expert"
        )
        each = len(counts) // self.size
        if device.type == "meta":  # routing is balanced: every rank sends what this one sends
            return [counts[self.rank * each : (self.rank + 1) * each]] * self.size
        return received.view(self.size, each).tolist()

    def move(self, x: Tensor, sends: Sequence[int], receives: Sequence[int], label: str) -> Tensor:
        """All-to-all of rows [sum(sends), h], of which sends[r] go to rank r -> [sum(receives), h]."""
        h = x.shape[-1]
        out = x.new_empty(sum(receives), h)
        splits = [n * h for n in sends], [n * h for n in receives]
        self.comm.all_to_all(
            x.contiguous(), out, *splits, algorithm=self.algorithm, purpose="activations", label=label
        )
        return out


class _Move(torch.autograd.Function):
    """An all-to-all of rows; in backward their gradients go back to where the rows came from."""

    @staticmethod
    def forward(
        ctx, x: Tensor, sends: list[int], receives: list[int], ranks: ExpertParallel, label: str
    ) -> Tensor:
        ctx.way = (sends, receives, ranks, label)
        return ranks.move(x, sends, receives, label)

    @staticmethod
    def backward(ctx, grad: Tensor):
        sends, receives, ranks, label = ctx.way
        return ranks.move(grad, receives, sends, f"{label} backward"), None, None, None, None


# ---- theory ------------------------------------------------------------------------------------------------


def leaving(tokens: int, top_k: int, ep: int) -> float:
    """Eq 27: how many rows leave a rank in a dispatch, T k (N-1)/N on average under uniform routing.

    Skewed routing changes which rank receives more and how many rows each one sends. The mean over ranks
    stays the same as long as the tokens of all ranks are alike: of the rows for a rank's experts, one in N
    starts on that rank.
    """
    return tokens * top_k * (ep - 1) / ep


def predict_traffic(
    layers: int,
    micro_batches: int,
    tokens: int,
    top_k: int,
    experts: int,
    ep: int,
    hidden: int,
    width: int,
    again: int = 0,
) -> dict[str, int]:
    """Eq 27: bytes that all N ranks together send in a step, for a pipeline stage, when no token is dropped.

    Args:
        layers: layers of the stage.
        micro_batches: micro-batches of a step.
        tokens: T, tokens of a rank's micro-batch.
        top_k: k, experts of a token.
        experts: E.
        ep: N.
        hidden: h.
        width: bytes of an element.
        again: layers that recomputation repeats for each micro-batch, with 2 all-to-alls each.

    Returns:
        Bytes of "rows", the mean under uniform routing and exact where routing is balanced (4 all-to-alls a
        layer and micro-batch); and of "counts", exact.
    """
    one = (ep - 1) * tokens * top_k * hidden * width * micro_batches
    return {
        "rows": (4 * layers + 2 * again) * one,
        "counts": (layers + again) * micro_batches * (ep - 1) * experts * 8,
    }


def traffic(counts: Sequence[Sequence[int]], hidden: int, width: int) -> list[list[int]]:
    """The exact bytes of a dispatch, as a matrix: [i][j] is what rank i sends to rank j.

    `counts[i][e]` is how many rows rank i has for expert e; `width` are bytes an element.
    """
    n, each = len(counts), len(counts[0]) // len(counts)
    rows = [[sum(mine[r * each : (r + 1) * each]) for r in range(n)] for mine in counts]
    return [[0 if i == j else rows[i][j] * hidden * width for j in range(n)] for i in range(n)]
