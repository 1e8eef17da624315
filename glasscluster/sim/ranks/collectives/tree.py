"""Binomial-tree collectives.

Follows Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH" (2005),
section 4.
Symbols: N ranks, S bytes of the full buffer, v = (rank - root) mod N.

    broadcast, N = 8: in each round every rank that has the data sends it to one that has not

        round 1   0 ──────────────► 4
        round 2   0 ──────► 2       4 ──────► 6
        round 3   0 ─► 1    2 ─► 3  4 ─► 5    6 ─► 7

    v's parent is v without its lowest set bit; its subtree is the ranks v .. v + lowest bit - 1.

Reduce is the same tree upwards, with an addition at every rank on the way; gather and scatter move a whole
subtree's chunks at once. All-reduce is reduce and broadcast: 2⌈log2 N⌉ messages one after the other, each of
S bytes (Eq 8). That is few steps and many bytes. But: leaves are idle and the root sends the whole buffer
log2 N times. `binary_tree.py` cuts the buffer into pieces, and in `double_tree.py` leaves send as well.
"""

from __future__ import annotations

import torch

from glasscluster.base.link import Link
from glasscluster.sim.ranks.collectives.registry import collective, theory_of
from glasscluster.sim.ranks.collectives.theory import Theory, one_after_another, power_of_two
from glasscluster.sim.ranks.work import CollectiveWork, Steps


def children(v: int, n: int) -> list[int]:
    """Return the virtual ranks that v sends to, the one with the largest subtree first."""
    lowest = v & -v if v else 1 << (n - 1).bit_length()
    below, step = [], lowest >> 1
    while step:
        if v + step < n:
            below.append(v + step)
        step >>= 1
    return below


def parent(v: int) -> int:
    """Return the virtual rank that v receives from."""
    return v & (v - 1)


def subtree(v: int, n: int) -> range:
    """Return v and all virtual ranks below it."""
    return range(v, min(v + ((v & -v) if v else n), n))


def slices(x: torch.Tensor, chunks: range, size: int) -> list[torch.Tensor]:
    """Return the slices of `x` that hold the chunks `c mod size`: one slice, or two where they wrap round the
    end.
    """
    if len(chunks) == 0:
        return []
    # as torch.tensor_split does: the first chunks are an element longer
    each, remainder = divmod(x.numel(), size)
    low, high = chunks.start % size, (chunks.stop - 1) % size + 1
    start, stop = (c * each + min(c, remainder) for c in (low, high))
    return [x[start:stop]] if low < high else [x[start:], x[:stop]]


@collective("broadcast", "tree")
def broadcast(work: CollectiveWork, x: torch.Tensor, src: int = 0) -> Steps:
    """`x`: flat [n]. Ends as rank `src`'s on every rank."""
    n = work.size
    v = (work.rank - src) % n
    if v:
        yield work.recv(x, (parent(v) + src) % n)
    for child in children(v, n):
        yield work.send(x, (child + src) % n)


@collective("reduce", "tree")
def reduce(work: CollectiveWork, x: torch.Tensor, op: str = "sum", dst: int = 0) -> Steps:
    """`x`: flat [n]. Rank `dst` ends with the `op` over ranks; on the others `x` is scratch."""
    n = work.size
    v = (work.rank - dst) % n
    staging = work.stage(x.numel() if children(v, n) else 0, x)

    def steps() -> Steps:
        for child in reversed(children(v, n)):
            yield work.recv(staging, (child + dst) % n)
            work.reduce(x, staging, op)
        if v:
            yield work.send(x, (parent(v) + dst) % n)

    return steps()


@collective("gather", "tree")
def gather(work: CollectiveWork, x: torch.Tensor, dst: int = 0) -> Steps:
    """`x`: flat [n], chunk `rank` filled. Ends complete on `dst`."""
    n = work.size
    v = (work.rank - dst) % n
    for child in reversed(children(v, n)):
        yield [t for chunk in _below(x, child, dst, n) for t in work.recv(chunk, (child + dst) % n)]
    if v:
        yield [t for chunk in _below(x, v, dst, n) for t in work.send(chunk, (parent(v) + dst) % n)]


@collective("scatter", "tree")
def scatter(work: CollectiveWork, x: torch.Tensor, src: int = 0) -> Steps:
    """`x`: flat [n], whole on `src`. Chunk `rank` ends as `src`'s on every rank."""
    n = work.size
    v = (work.rank - src) % n
    if v:
        yield [t for chunk in _below(x, v, src, n) for t in work.recv(chunk, (parent(v) + src) % n)]
    for child in children(v, n):
        yield [t for chunk in _below(x, child, src, n) for t in work.send(chunk, (child + src) % n)]


@collective("all_reduce", "tree")
def all_reduce(work: CollectiveWork, x: torch.Tensor, op: str = "sum") -> Steps:
    """`x`: flat [n]. Up one tree and down again."""
    up = reduce(work, x, op)

    def steps() -> Steps:
        yield from up
        yield from broadcast(work, x)

    return steps()


@collective("reduce_scatter", "tree")
def reduce_scatter(work: CollectiveWork, x: torch.Tensor, op: str = "sum") -> Steps:
    """`x`: flat [n]. Chunk `rank` ends with the `op` over ranks."""
    up = reduce(work, x, op)

    def steps() -> Steps:
        yield from up
        yield from scatter(work, x)

    return steps()


@collective("all_gather", "tree")
def all_gather(work: CollectiveWork, x: torch.Tensor) -> Steps:
    """`x`: flat [n], chunk `rank` filled. Ends with every rank's chunk."""
    yield from gather(work, x)
    yield from broadcast(work, x)


def _below(x: torch.Tensor, v: int, root: int, n: int) -> list[torch.Tensor]:
    """Return the chunks of v's subtree, whatever rank the root is."""
    under = subtree(v, n)
    return slices(x, range(under.start + root, under.stop + root), n)


# ---- theory ------------------------------------------------------------------------------------------------
@theory_of("tree")
def predict(operation: str, size: int, nbytes: int, link: Link | None = None) -> Theory:
    """For N equal chunks; time where N is a power of two and the root is rank 0.

    Broadcast and reduce: (N-1)S bytes, log2 N · (α + S/β). Gather and scatter: every chunk travels as far as
    its v has set bits, Σ_v popcount(v)·S/N bytes, in log2 N · α + (N-1)/N · S/β. All-reduce, reduce-scatter
    and all-gather are one of each. The chain is as long as the most set bits of any v < N.
    """
    chain = max(v.bit_count() for v in range(size))
    whole, chunks = (size - 1) * nbytes, sum(v.bit_count() for v in range(size)) * nbytes / size
    even = link if power_of_two(size) else None
    full = one_after_another(even, chain, nbytes)
    doubling = None if even is None else chain * even.alpha + (size - 1) / size * nbytes / even.bandwidth
    phases = {
        "broadcast": ["whole"],
        "reduce": ["whole"],
        "gather": ["chunks"],
        "scatter": ["chunks"],
        "all_reduce": ["whole", "whole"],
        "reduce_scatter": ["whole", "chunks"],
        "all_gather": ["chunks", "whole"],
    }[operation]
    times = [full if p == "whole" else doubling for p in phases]
    total = sum(whole if p == "whole" else chunks for p in phases)
    return Theory(
        total, chain * len(phases), None if even is None else sum(t for t in times if t is not None)
    )
