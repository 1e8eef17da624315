"""Recursive doubling: exchange with partners at distance 1, 2, 4, ...

Follows Thakur, Rabenseifner and Gropp (2005), section 4, and Bruck et al., "Efficient algorithms for
all-to-all communications" (1997), for all-gather with any number of ranks. Symbols: N ranks, S bytes, p the
largest power of two ≤ N.

    all-reduce, N = 4: every rank holds the sum over a block of ranks, and the blocks double in each step

        distance 1   0 ◄─► 1   2 ◄─► 3       {01} {01} {23} {23}
        distance 2   0 ◄─► 2   1 ◄─► 3       everybody {0123}

All-reduce takes log2 N exchanges of S bytes each (Eq 8): the fewest steps, so it is best when latency
dominates. If N is no power of two, each of the last N-p ranks first sends its vector to a partner and gets
the sum back at the end: 2 more messages.
"""

from __future__ import annotations

import torch

from glasscluster.base.link import Link
from glasscluster.sim.ranks.collectives.alike import across_bits_of_any_size
from glasscluster.sim.ranks.collectives.registry import collective, theory_of
from glasscluster.sim.ranks.collectives.theory import Theory, one_after_another
from glasscluster.sim.ranks.collectives.tree import slices
from glasscluster.sim.ranks.work import CollectiveWork, Steps


def largest_power_of_two(n: int) -> int:
    """Return p, the largest power of two that is at most n."""
    return 1 << (n.bit_length() - 1)


@collective("all_reduce", "recursive-doubling", alike=across_bits_of_any_size)
def all_reduce(work: CollectiveWork, x: torch.Tensor, op: str = "sum") -> Steps:
    """`x`: flat [n]. Ends with the `op` over ranks."""
    n, r = work.size, work.rank
    p = largest_power_of_two(n)
    staging = work.stage(x.numel() if r < p else 0, x)

    def steps() -> Steps:
        if r >= p:
            yield work.send(x, r - p)
            yield work.recv(x, r - p)
            return
        if r + p < n:
            yield work.recv(staging, r + p)
            work.reduce(x, staging, op)
        distance = 1
        while distance < p:
            partner = r ^ distance
            yield work.exchange(x, partner, staging, partner)
            work.reduce(x, staging, op)
            distance *= 2
        if r + p < n:
            yield work.send(x, r + p)

    return steps()


@collective("all_gather", "recursive-doubling")
def all_gather(work: CollectiveWork, x: torch.Tensor) -> Steps:
    """`x`: flat [n], chunk `rank` filled.

    Rank r holds chunks r .. r+k-1 (mod N) before the round of distance k.
    """
    n, r = work.size, work.rank
    held = 1
    while held < n:
        more = min(held, n - held)
        incoming = [
            t
            for chunk in slices(x, range(r + held, r + held + more), n)
            for t in work.recv(chunk, (r + held) % n)
        ]
        outgoing = [t for chunk in slices(x, range(r, r + more), n) for t in work.send(chunk, (r - held) % n)]
        yield incoming + outgoing
        held += more


# ---- theory ------------------------------------------------------------------------------------------------
@theory_of("recursive-doubling")
def predict(operation: str, size: int, nbytes: int, link: Link | None = None) -> Theory:
    """All-reduce: (p·log2 p + 2(N-p))·S bytes, log2 p steps (2 more when folded), log2 N · (α + S/β) where N
    is a power of two.

    All-gather: (N-1)·S bytes in ⌈log2 N⌉ steps; no time is claimed, because chunks that wrap round the end go
    as two messages.
    """
    p = largest_power_of_two(size)
    rounds = p.bit_length() - 1
    if operation == "all_gather":
        return Theory((size - 1) * nbytes, (size - 1).bit_length())
    time = one_after_another(link, rounds, nbytes) if size == p else None
    return Theory((p * rounds + 2 * (size - p)) * nbytes, rounds + (2 if size > p else 0), time)
