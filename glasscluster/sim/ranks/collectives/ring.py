"""Ring collectives.

Follows Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations" (2009).
Symbols: N ranks, S bytes of the full buffer, chunk i the i-th of N nearly equal slices.

    reduce-scatter, N = 4: each chunk goes once round the ring, and every rank adds its own to it

        step 0   rank r sends chunk r-1 to r+1, receives chunk r-2 from r-1 and adds it
        step 1   rank r sends chunk r-2 ...
        step 2   ... after N-1 steps rank r holds chunk r, summed over all ranks

    all-gather sends the finished chunks round once more; all-reduce is a reduce-scatter and an all-gather.

Every rank sends all chunks but one in each half: 2(N-1)/N · S in all when N divides the element count, and
2(N-1)·S over all ranks for any size (Eq 9). Additions happen in ring order, so the bits do not depend on
timing.
But: no bidirectional rings, and no addition overlaps with the next receive (tried: docs/decisions/0062).
"""

from __future__ import annotations

import torch

from glasscluster.base.link import Link
from glasscluster.sim.ranks.collectives.alike import round_a_ring
from glasscluster.sim.ranks.collectives.registry import collective, theory_of
from glasscluster.sim.ranks.collectives.theory import Theory, one_after_another
from glasscluster.sim.ranks.wire import Ticket
from glasscluster.sim.ranks.work import CollectiveWork, Steps


@collective("reduce_scatter", "ring", alike=round_a_ring)
def reduce_scatter(work: CollectiveWork, x: torch.Tensor, op: str = "sum") -> Steps:
    """`x`: flat [n]. Chunk `rank` ends summed over ranks."""
    chunks = torch.tensor_split(x, work.size)
    return _reduce_scatter(work, chunks, work.stage(chunks[0].numel(), x), op)


@collective("all_gather", "ring", alike=round_a_ring)
def all_gather(work: CollectiveWork, x: torch.Tensor) -> Steps:
    """`x`: flat [n], chunk `rank` filled. Ends with every rank's chunk."""
    return _all_gather(work, torch.tensor_split(x, work.size))


@collective("all_reduce", "ring", alike=round_a_ring)
def all_reduce(work: CollectiveWork, x: torch.Tensor, op: str = "sum") -> Steps:
    """`x`: flat [n]. Ends summed over ranks."""
    chunks = torch.tensor_split(x, work.size)
    staging = work.stage(chunks[0].numel(), x)

    def steps() -> Steps:
        yield from _reduce_scatter(work, chunks, staging, op)
        yield from _all_gather(work, chunks)

    return steps()


def _reduce_scatter(work, chunks, staging, op, members=None) -> Steps:
    ring = members or range(work.size)
    n, r = len(ring), ring.index(work.rank)
    for step in range(n - 1):
        outgoing, incoming = chunks[(r - step - 1) % n], chunks[(r - step - 2) % n]
        arrived = staging[: incoming.numel()]
        yield work.exchange(outgoing, ring[(r + 1) % n], arrived, ring[(r - 1) % n])
        work.reduce(incoming, arrived, op)


def _all_gather(work, chunks, members=None) -> Steps:
    ring = members or range(work.size)
    n, r = len(ring), ring.index(work.rank)
    for step in range(n - 1):  # a chunk has its own place, so all may come before their step is reached
        work.expect(chunks[(r - step - 1) % n], ring[(r - 1) % n])
    for step in range(n - 1):
        outgoing, incoming = chunks[(r - step) % n], chunks[(r - step - 1) % n]
        yield work.exchange(outgoing, ring[(r + 1) % n], incoming, ring[(r - 1) % n])


@collective("broadcast", "ring")
def broadcast(work: CollectiveWork, x: torch.Tensor, src: int = 0, pieces: int | None = None) -> Steps:
    """`x`: flat [n].

    Pieces travel down the chain src, src+1, ..., each forwarded while the next arrives (Eq 10).
    """
    return _broadcast(work, torch.tensor_split(x, pieces or work.size), src)


@collective("reduce", "ring")
def reduce(
    work: CollectiveWork, x: torch.Tensor, op: str = "sum", dst: int = 0, pieces: int | None = None
) -> Steps:
    """`x`: flat [n]. Pieces travel up the chain ..., dst+2, dst+1, dst and are added to at every stop."""
    cut = torch.tensor_split(x, pieces or work.size)
    staging = work.stage(cut[0].numel() if (work.rank + 1) % work.size != dst else 0, x)
    return _reduce(work, cut, staging, op, dst)


def _broadcast(work, pieces, src, members=None) -> Steps:
    ring = members or range(work.size)
    n, r = len(ring), ring.index(work.rank)
    place = (r - ring.index(src)) % n
    sends: list[Ticket] = []
    for piece in pieces if place > 0 else ():
        work.expect(piece, ring[(r - 1) % n])
    for piece in pieces:
        if place > 0:
            yield work.recv(piece, ring[(r - 1) % n])
        if place < n - 1:
            sends += work.send(piece, ring[(r + 1) % n])
    yield sends


def _reduce(work, pieces, staging, op, dst, members=None) -> Steps:
    ring = members or range(work.size)
    n, r = len(ring), ring.index(work.rank)
    place = (r - ring.index(dst)) % n
    sends: list[Ticket] = []
    for piece in pieces:
        if place < n - 1:
            arrived = staging[: piece.numel()]
            yield work.recv(arrived, ring[(r + 1) % n])
            work.reduce(piece, arrived, op)
        if place > 0:
            sends += work.send(piece, ring[(r - 1) % n])
    yield sends


# ---- theory ------------------------------------------------------------------------------------------------


@theory_of("ring")
def predict(
    operation: str, size: int, nbytes: float, link: Link | None = None, pieces: int | None = None
) -> Theory:
    """Bytes for any size; time for equal chunks (Eq 8, Eq 9, Eq 10).

    all_reduce: 2(N-1)S bytes, 2(N-1) steps of α + S/(Nβ); reduce_scatter and all_gather: half of both.
    broadcast and reduce in k pieces (N by default): (N-1)S bytes, chain N-1, time (N-1)L + (N-2+k)(o +
    S/(kβ)).
    """
    n, whole = size, (size - 1) * nbytes
    if operation in ("broadcast", "reduce"):
        k = pieces or n
        time = (
            None
            if link is None
            else (n - 1) * link.latency_s + (n - 2 + k) * (link.overhead_s + nbytes / k / link.bandwidth)
        )
        return Theory(whole, n - 1, time)
    halves = 2 if operation == "all_reduce" else 1
    return Theory(halves * whole, halves * (n - 1), one_after_another(link, halves * (n - 1), nbytes / n))
