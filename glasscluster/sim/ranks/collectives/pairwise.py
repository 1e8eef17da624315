"""Pairwise exchange: N-1 steps, in each of which a rank exchanges with one partner.

Follows Thakur, Rabenseifner and Gropp (2005), sections 4.2 and 4.4. Symbols: N ranks, S bytes of the full
buffer, step k = 1 .. N-1.

    N = 4, a power of two: partner r XOR k            N = 3: send to r + k, receive from r - k

        k = 1   0 ◄─► 1   2 ◄─► 3                         k = 1   0 ─► 1 ─► 2 ─► 0
        k = 2   0 ◄─► 2   1 ◄─► 3                         k = 2   0 ─► 2 ─► 1 ─► 0
        k = 3   0 ◄─► 3   1 ◄─► 2

It sends the same bytes as `direct.py`, (N-1)/N·S from each rank, but only one message at a time arrives at
each receiver, and reduce-scatter needs room for one chunk only. But: N-1 steps of α each. Additions follow
the steps, so the bits do not depend on timing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from glasscluster.base.link import Link
from glasscluster.sim.ranks.collectives.alike import round_or_across
from glasscluster.sim.ranks.collectives.registry import collective, theory_of
from glasscluster.sim.ranks.collectives.theory import Theory, one_after_another, power_of_two
from glasscluster.sim.ranks.work import CollectiveWork, Steps


def partners(work: CollectiveWork) -> list[tuple[int, int]]:
    """Yield, for each step, the rank to send to and the rank to receive from."""
    n, r = work.size, work.rank
    if power_of_two(n):
        return [(r ^ k, r ^ k) for k in range(1, n)]
    return [((r + k) % n, (r - k) % n) for k in range(1, n)]


@collective("all_to_all", "pairwise", alike=round_or_across)
def all_to_all(
    work: CollectiveWork, x: torch.Tensor, out: torch.Tensor, sends: Sequence[int], receives: Sequence[int]
) -> Steps:
    """`x`: flat, sends[j] elements for rank j. `out`: flat, receives[i] elements from rank i."""
    chunks, slots = x.split(list(sends)), out.split(list(receives))
    slots[work.rank].copy_(chunks[work.rank])
    for dst, src in partners(work):
        yield work.exchange(chunks[dst], dst, slots[src], src)


@collective("reduce_scatter", "pairwise", alike=round_or_across)
def reduce_scatter(work: CollectiveWork, x: torch.Tensor, op: str = "sum") -> Steps:
    """`x`: flat [n]. Chunk `rank` ends with the `op` over ranks."""
    chunks = torch.tensor_split(x, work.size)
    mine = chunks[work.rank]
    arrived = work.stage(mine.numel(), x)

    def steps() -> Steps:
        for dst, src in partners(work):
            yield work.exchange(chunks[dst], dst, arrived, src)
            work.reduce(mine, arrived, op)

    return steps()


# ---- theory ------------------------------------------------------------------------------------------------
@theory_of("pairwise")
def predict(operation: str, size: int, nbytes: int, link: Link | None = None) -> Theory:
    """Both operations, any N: (N-1)·S bytes over all ranks and N-1 steps; time for equal chunks, (N-1)(α +
    S/(Nβ)).
    """
    del operation
    return Theory((size - 1) * nbytes, size - 1, one_after_another(link, size - 1, nbytes / size))
