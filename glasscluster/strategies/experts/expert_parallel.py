"""Expert parallelism: each rank has some experts, and tokens travel to them and back.

Follows GShard (Lepikhin et al., 2006.16668, section 3). Symbols: N ranks that see different tokens, T of them
each, E experts (E/N a rank), k a token, h hidden.

    rank 0  router ─► rows 0 1 2 3 ┐ all-to-all ┌─► experts 0, 1 on rows of both ┐ all-to-all ┌─► weighted sum
    rank 1  router ─► rows 0 1 2 3 ┘  dispatch  └─► experts 2, 3 on rows of both ┘  combine   └─► weighted sum

    dispatch   rows by expert -> rows by (source, own expert)     its backward is a combine of gradients
    combine    the way back                                       its backward is a dispatch of gradients

So 4 all-to-alls of rows a layer and micro-batch; before the first one ranks tell each other how many rows
come (E integers), which makes the CPU wait for the GPU. An expert's gradient comes from the tokens of all N
ranks: it is already their sum, and is added up only over ranks that hold the same expert. But: nothing hides
the all-to-alls; with tensor parallelism each of the t ranks sends whole rows (t times the bytes); an
all-to-all is as long as its busiest rank's part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glasscluster.model.parallel import WholeExperts
from glasscluster.sim.ranks.collectives import serving
from glasscluster.sim.ranks.communicator import Communicator


class ExpertParallel(WholeExperts):
    """Handed to the model's blocks, as `parallel.experts`, in place of `WholeExperts`."""

    def __init__(self, comm: Communicator, algorithm: str = "direct") -> None:
        self.comm, self.size, self.rank = comm, comm.size, comm.rank
        self.algorithm = serving("all_to_all", algorithm)

    def dispatch(self, x: Tensor, counts: list[int]) -> tuple[Tensor, list[list[int]]]:
        """Rows [A, h] to the ranks of their experts."""
        sources = self.exchange_counts(counts, x.device)
        return _Move.apply(x, self.per_rank(counts), [sum(n) for n in sources], self, "dispatch"), sources

    def combine(self, y: Tensor, counts: list[int], arrived: list[list[int]]) -> Tensor:
        """Results [R, h] back to the ranks of their tokens."""
        return _Move.apply(y, [sum(n) for n in arrived], self.per_rank(counts), self, "combine")

    def per_rank(self, counts: Sequence[int]) -> list[int]:
        """Rows for each rank's experts."""
        each = len(counts) // self.size
        return [sum(counts[r * each : (r + 1) * each]) for r in range(self.size)]

    def exchange_counts(self, counts: list[int], device: torch.device) -> list[list[int]]:
        """How many rows each rank sends to each expert here."""
        sent = torch.tensor(counts, device=device)
        received = torch.empty_like(sent)
        self.comm.all_to_all(
            sent, received, algorithm=self.algorithm, purpose="scalars", label="rows an expert"
        )
        each = len(counts) // self.size
        if device.type == "meta":  # balanced: everybody sends what we send
            return [counts[self.rank * each : (self.rank + 1) * each]] * self.size
        return received.view(self.size, each).tolist()

    def move(self, x: Tensor, sends: Sequence[int], receives: Sequence[int], label: str) -> Tensor:
        """Rows [sum of sends, h], sends[r] of them to rank r -> rows [sum of receives, h]."""
        h = x.shape[-1]
        out = x.new_empty(sum(receives), h)
        splits = [n * h for n in sends], [n * h for n in receives]
        self.comm.all_to_all(
            x.contiguous(), out, *splits, algorithm=self.algorithm, purpose="activations", label=label
        )
        return out


class _Move(torch.autograd.Function):
    """An all-to-all of rows; gradients take the way back."""

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
    """Eq 27: rows that leave a rank in a dispatch, T k (N-1)/N on average under uniform routing.

    Skewed routing changes who receives, and each sender's number, but not the mean over senders, as long as
    all see alike tokens: of the rows for rank j, one in N starts there.
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
    """Eq 27: bytes sent by all N ranks together in a step, for a stage with `layers` layers, when nothing is
    dropped.

    tokens = T of a rank's micro-batch. `rows` is the mean under uniform routing, and exact where routing is
    balanced: 4 all-to-alls a layer and micro-batch; `counts` is exact. `again`: layers that recomputation
    runs again, with 2 all-to-alls each.
    """
    one = (ep - 1) * tokens * top_k * hidden * width * micro_batches
    return {
        "rows": (4 * layers + 2 * again) * one,
        "counts": (layers + again) * micro_batches * (ep - 1) * experts * 8,
    }


def traffic(counts: Sequence[Sequence[int]], hidden: int, width: int) -> list[list[int]]:
    """Bytes from rank (row) to rank (column) in a dispatch, exactly; rank i has `counts[i][e]` rows for
    expert e.
    """
    n, each = len(counts), len(counts[0]) // len(counts)
    rows = [[sum(mine[r * each : (r + 1) * each]) for r in range(n)] for mine in counts]
    return [[0 if i == j else rows[i][j] * hidden * width for j in range(n)] for i in range(n)]
