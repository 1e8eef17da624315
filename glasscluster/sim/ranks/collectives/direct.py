"""Direct collectives: every rank sends all its messages at once, each straight to the rank that needs it.

MPI libraries call it "basic linear" or "spread out" (Thakur, Rabenseifner and Gropp 2005, section 4.4). It
makes sense where every pair of ranks has full bandwidth, as behind an NVSwitch. Symbols: N ranks, S bytes of
the full buffer.

    all-to-all, N = 3: chunk j of rank i goes to place i of rank j

        rank 0  [a0 a1 a2]        [a0 b0 c0]
        rank 1  [b0 b1 b2]   ──►  [a1 b1 c1]
        rank 2  [c0 c1 c2]        [a2 b2 c2]

It takes one step with N-1 messages from each rank. Reduce-scatter, all-gather and all-to-all send (N-1)/N·S
from each rank, which is the lower bound. All-reduce is a reduce-scatter followed by an all-gather. Additions
happen in rank order, so the bits do not depend on timing. But: N-1 messages arrive at each receiver at once,
and reduce-scatter needs room for N-1 chunks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from glasscluster.base.link import Link
from glasscluster.sim.ranks.collectives.alike import round_a_ring
from glasscluster.sim.ranks.collectives.registry import collective, theory_of
from glasscluster.sim.ranks.collectives.theory import Theory, one_after_another, through_one_port
from glasscluster.sim.ranks.work import CollectiveWork, Steps


def _others(work: CollectiveWork) -> list[int]:
    """Return the other ranks, the right neighbour first, so that not every rank begins with rank 0."""
    return [(work.rank + k) % work.size for k in range(1, work.size)]


def _sources(work: CollectiveWork) -> list[int]:
    """Return the other ranks in the order in which their messages arrive: the left neighbour first."""
    return _others(work)[::-1]


def _reduce_chunk(work: CollectiveWork, x: torch.Tensor, staging: torch.Tensor, op: str) -> Steps:
    chunks = torch.tensor_split(x, work.size)
    mine = chunks[work.rank]
    sources = [r for r in range(work.size) if r != work.rank]
    arrived = [staging[i * mine.numel() : (i + 1) * mine.numel()] for i in range(len(sources))]
    incoming = [t for src, chunk in zip(sources, arrived, strict=True) for t in work.recv(chunk, src)]
    yield incoming + [t for dst in _others(work) for t in work.send(chunks[dst], dst)]
    for chunk in arrived:
        work.reduce(mine, chunk, op)


@collective("reduce_scatter", "direct")
def reduce_scatter(work: CollectiveWork, x: torch.Tensor, op: str = "sum") -> Steps:
    """`x`: flat [n]. Chunk `rank` ends with the `op` over ranks."""
    staging = work.stage((work.size - 1) * torch.tensor_split(x, work.size)[work.rank].numel(), x)
    return _reduce_chunk(work, x, staging, op)


@collective("all_gather", "direct", alike=round_a_ring)
def all_gather(work: CollectiveWork, x: torch.Tensor) -> Steps:
    """`x`: flat [n], chunk `rank` filled. Ends with every rank's chunk."""
    chunks = torch.tensor_split(x, work.size)
    incoming = [t for src in _sources(work) for t in work.recv(chunks[src], src)]
    yield incoming + [t for dst in _others(work) for t in work.send(chunks[work.rank], dst)]


@collective("all_reduce", "direct")
def all_reduce(work: CollectiveWork, x: torch.Tensor, op: str = "sum") -> Steps:
    """`x`: flat [n]. Ends with the `op` over ranks."""
    first = reduce_scatter(work, x, op)

    def steps() -> Steps:
        yield from first
        yield from all_gather(work, x)

    return steps()


@collective("broadcast", "direct")
def broadcast(work: CollectiveWork, x: torch.Tensor, src: int = 0) -> Steps:
    """`x`: flat [n]. Ends as rank `src`'s on every rank."""
    if work.rank == src:
        yield [t for dst in _others(work) for t in work.send(x, dst)]
    else:
        yield work.recv(x, src)


@collective("reduce", "direct")
def reduce(work: CollectiveWork, x: torch.Tensor, op: str = "sum", dst: int = 0) -> Steps:
    """`x`: flat [n]. Rank `dst` ends with the `op` over ranks."""
    staging = work.stage((work.size - 1) * x.numel() if work.rank == dst else 0, x)

    def steps() -> Steps:
        if work.rank != dst:
            yield work.send(x, dst)
            return
        sources = [r for r in range(work.size) if r != dst]
        arrived = [staging[i * x.numel() : (i + 1) * x.numel()] for i in range(len(sources))]
        yield [t for src, buffer in zip(sources, arrived, strict=True) for t in work.recv(buffer, src)]
        for buffer in arrived:
            work.reduce(x, buffer, op)

    return steps()


@collective("scatter", "direct")
def scatter(work: CollectiveWork, x: torch.Tensor, src: int = 0) -> Steps:
    """`x`: flat [n], whole on `src`. Chunk `rank` ends as `src`'s on every rank."""
    chunks = torch.tensor_split(x, work.size)
    if work.rank == src:
        yield [t for dst in _others(work) for t in work.send(chunks[dst], dst)]
    else:
        yield work.recv(chunks[work.rank], src)


@collective("gather", "direct")
def gather(work: CollectiveWork, x: torch.Tensor, dst: int = 0) -> Steps:
    """`x`: flat [n], chunk `rank` filled. On `dst` it ends with every rank's chunk."""
    chunks = torch.tensor_split(x, work.size)
    if work.rank == dst:
        yield [t for src in _sources(work) for t in work.recv(chunks[src], src)]
    else:
        yield work.send(chunks[work.rank], dst)


@collective("all_to_all", "direct", alike=round_a_ring)
def all_to_all(
    work: CollectiveWork, x: torch.Tensor, out: torch.Tensor, sends: Sequence[int], receives: Sequence[int]
) -> Steps:
    """`x`: flat, sends[j] elements for rank j. `out`: flat, receives[i] elements from rank i."""
    chunks, slots = x.split(list(sends)), out.split(list(receives))
    slots[work.rank].copy_(chunks[work.rank])
    incoming = [t for src in _sources(work) for t in work.recv(slots[src], src)]
    yield incoming + [t for dst in _others(work) for t in work.send(chunks[dst], dst)]


# ---- theory ------------------------------------------------------------------------------------------------
@theory_of("direct")
def predict(operation: str, size: int, nbytes: int, link: Link | None = None) -> Theory:
    """Bytes for any size: (N-1)·S, all-reduce twice that, scatter and gather (N-1)/N·S. Time for equal
    chunks.

    A rank that sends N-1 messages sends them back to back through one port: (N-1)(o + bytes/β) + L;
    all-reduce does so twice. Where each rank sends one message (reduce, gather) it takes α + bytes/β, because
    without contention the receiver's port is no limit.
    """
    n, whole, chunk = size, (size - 1) * nbytes, nbytes / size
    if operation in ("reduce", "gather"):
        nbytes_each = nbytes if operation == "reduce" else chunk
        return Theory(
            whole if operation == "reduce" else whole / n, 1, one_after_another(link, 1, nbytes_each)
        )
    spread = through_one_port(link, n - 1, nbytes if operation == "broadcast" else chunk)
    if operation == "all_reduce":
        return Theory(2 * whole, 2, None if spread is None else 2 * spread)
    return Theory(whole / n if operation == "scatter" else whole, 1, spread)
