"""Recursive halving and doubling (Rabenseifner's algorithm).

Follows Rabenseifner, "Optimization of collective reduction operations" (ICCS 2004), and Thakur, Rabenseifner
and Gropp (2005).
Symbols: N ranks, S bytes, p the largest power of two ≤ N.

    reduce-scatter, N = 4: in each step keep one half of the ranks' chunks and send the other half away

        distance 2   0 gives the right half to 2 and is given the left one; 1 and 3 likewise
        distance 1   0 gives chunk 1 to 1 and is given chunk 0; 2 and 3 likewise

    all-gather is the same in reverse: distance 1, then 2, and what a rank holds doubles each time.

For N a power of two a rank sends 2(N-1)/N·S in 2·log2 N steps: the ring's bytes with a tree's steps. With
other N, rank i < N-p also works for rank p+i: it first receives p+i's whole vector, computes chunk p+i beside
its own, and sends the result back at the end.
"""

from __future__ import annotations

import torch

from glasscluster.base.link import Link
from glasscluster.sim.ranks.collectives.alike import across_bits
from glasscluster.sim.ranks.collectives.recursive_doubling import largest_power_of_two
from glasscluster.sim.ranks.collectives.registry import collective, theory_of
from glasscluster.sim.ranks.collectives.theory import Theory
from glasscluster.sim.ranks.collectives.tree import slices
from glasscluster.sim.ranks.work import CollectiveWork, Steps


@collective("reduce_scatter", "halving-doubling", alike=across_bits)
def reduce_scatter(work: CollectiveWork, x: torch.Tensor, op: str = "sum") -> Steps:
    """`x`: flat [n]. Chunk `rank` ends with the `op` over ranks."""
    n, r = work.size, work.rank
    p = largest_power_of_two(n)
    staging = work.stage(x.numel() if r < p else 0, x)
    chunks = torch.tensor_split(x, n)

    def steps() -> Steps:
        yield from _halve(work, x, staging, op)
        if r >= p:
            yield work.recv(chunks[r], r - p)
        elif r + p < n:
            yield work.send(chunks[r + p], r + p)

    return steps()


@collective("all_reduce", "halving-doubling", alike=across_bits)
def all_reduce(work: CollectiveWork, x: torch.Tensor, op: str = "sum") -> Steps:
    """`x`: flat [n]. Ends with the `op` over ranks."""
    n, r = work.size, work.rank
    p = largest_power_of_two(n)
    staging = work.stage(x.numel() if r < p else 0, x)

    def steps() -> Steps:
        yield from _halve(work, x, staging, op)
        if r >= p:
            yield work.recv(x, r - p)
            return
        distance = 1
        while distance < p:
            partner = r ^ distance
            mine, theirs = _block(r, distance), _block(partner, distance)
            incoming = [t for chunk in _chunks_of(x, theirs, n, p) for t in work.recv(chunk, partner)]
            outgoing = [t for chunk in _chunks_of(x, mine, n, p) for t in work.send(chunk, partner)]
            yield incoming + outgoing
            distance *= 2
        if r + p < n:
            yield work.send(x, r + p)

    return steps()


def _halve(work: CollectiveWork, x: torch.Tensor, staging: torch.Tensor, op: str) -> Steps:
    """Fold the ranks from p on, then halve: rank r < p ends with chunk r (and r+p, if there is
    one) reduced.
    """
    n, r = work.size, work.rank
    p = largest_power_of_two(n)
    if r >= p:
        yield work.send(x, r - p)
        return
    if r + p < n:
        yield work.recv(staging, r + p)
        work.reduce(x, staging, op)
    distance = p // 2
    while distance:
        partner = r ^ distance
        ours, theirs = (
            _chunks_of(x, _block(r, distance), n, p),
            _chunks_of(x, _block(partner, distance), n, p),
        )
        arrived, at = [], 0
        for chunk in ours:
            arrived.append(staging[at : at + chunk.numel()])
            at += chunk.numel()
        incoming = [t for chunk in arrived for t in work.recv(chunk, partner)]
        yield incoming + [t for chunk in theirs for t in work.send(chunk, partner)]
        for into, other in zip(ours, arrived, strict=True):
            work.reduce(into, other, op)
        distance //= 2


def _block(rank: int, distance: int) -> range:
    """Return the ranks whose chunks `rank` still works on at a distance: those whose numbers agree with it in
    this bit and all higher ones.
    """
    low = rank // distance * distance
    return range(low, low + distance)


def _chunks_of(x: torch.Tensor, ranks: range, n: int, p: int) -> list[torch.Tensor]:
    """Return the chunks of these ranks and of the ranks that were folded into them."""
    folded = range(p + ranks.start, min(p + ranks.stop, n))
    return slices(x, ranks, n) + (slices(x, folded, n) if len(folded) else [])


# ---- theory ------------------------------------------------------------------------------------------------
@theory_of("halving-doubling")
def predict(operation: str, size: int, nbytes: int, link: Link | None = None) -> Theory:
    """For N equal chunks; time where N is a power of two.

    N = p: 2(p-1)·S bytes over all ranks and 2·log2 N · α + 2(N-1)/N · S/β, reduce-scatter half of it: the
    lower bound (Eq 9). Folding adds (N-p)·S before and, for all-reduce, (N-p)·S after; reduce-scatter hands
    back N-p chunks.
    """
    p = largest_power_of_two(size)
    rounds, folded, half = p.bit_length() - 1, (size - p) * nbytes, (p - 1) * nbytes
    halves = 2 if operation == "all_reduce" else 1
    back = folded if operation == "all_reduce" else folded / size
    time = None
    if link is not None and size == p:
        time = halves * (rounds * link.alpha + (size - 1) / size * nbytes / link.bandwidth)
    return Theory(halves * half + folded + back, halves * rounds + (2 if folded else 0), time)
