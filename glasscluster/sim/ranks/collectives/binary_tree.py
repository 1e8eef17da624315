"""Pipelined binary tree: every rank has at most two children, and pieces follow each other down and up.

Section 2 of Sanders, Speck and Träff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan"
(2009), describes it as the baseline of their algorithm; `double_tree.py` uses the tree defined here. Symbols:
N ranks, S bytes, k pieces, v = (rank - root) mod N, τ = o + S/(kβ) the time a piece holds a port, H = ⌈log2
N⌉ the depth.

    in-order tree, N = 8: 0 stands above, odd numbers are leaves

        0 ─► 4 ─┬─► 2 ─┬─► 1
                │      └─► 3
                └─► 6 ─┬─► 5
                       └─► 7

    v's children are v ± half its lowest set bit (the right one halves again until it exists).

Reduce: piece i goes up while piece i+1 is being added below: (H+k-1)τ + H·L. Broadcast is the way back.
All-reduce is both.
But: who has two children sends every piece twice, so a broadcast takes 2S/β and an all-reduce 3S/β, and half
of the ranks send nothing down. Pieces are of 64 KiB, at most 16 of them; the best number depends on the link.
"""

from __future__ import annotations

import torch

from glasscluster.base.link import Link
from glasscluster.sim.ranks.collectives.registry import collective, theory_of
from glasscluster.sim.ranks.collectives.theory import Theory
from glasscluster.sim.ranks.wire import Ticket
from glasscluster.sim.ranks.work import CollectiveWork, Steps

PIECE, MOST_PIECES = 64 * 1024, 16


def pieces_of(nbytes: float) -> int:
    """Return the default number of pieces k: as many as 64 KiB pieces need, at least one and at most 16."""
    return max(1, min(MOST_PIECES, int(-(-nbytes // PIECE))))


def children(v: int, n: int) -> list[int]:
    """Return the left and right child of v where they exist. Rank 0 has only one child, the root of the
    binary tree over 1 .. n-1.
    """
    if v == 0:
        return [1 << ((n - 1).bit_length() - 1)]
    half = (v & -v) >> 1
    left = [v - half] if half else []
    while half and v + half >= n:
        half >>= 1
    return left + ([v + half] if half else [])


def parent(v: int, n: int) -> int:
    """Return the virtual rank that is v's parent."""
    lowest = v & -v
    above = (v ^ lowest) | (lowest << 1)
    return above if above < n else v ^ lowest


@collective("broadcast", "binary-tree")
def broadcast(work: CollectiveWork, x: torch.Tensor, src: int = 0, pieces: int | None = None) -> Steps:
    """`x`: flat [n]. Ends as rank `src`'s on every rank."""
    n = work.size
    v = (work.rank - src) % n
    cut = torch.tensor_split(x, pieces or pieces_of(x.numel() * x.element_size()))
    arriving = [work.recv(piece, (parent(v, n) + src) % n) if v else [] for piece in cut]
    sends: list[Ticket] = []
    for piece, arrived in zip(cut, arriving, strict=True):
        yield arrived
        for child in children(v, n):
            sends += work.send(piece, (child + src) % n)
    yield sends


@collective("reduce", "binary-tree")
def reduce(
    work: CollectiveWork, x: torch.Tensor, op: str = "sum", dst: int = 0, pieces: int | None = None
) -> Steps:
    """`x`: flat [n]. Rank `dst` ends with the `op` over ranks; on the others `x` is scratch."""
    n = work.size
    v = (work.rank - dst) % n
    below = children(v, n)
    cut = torch.tensor_split(x, pieces or pieces_of(x.numel() * x.element_size()))
    slots = work.stage(len(below) * cut[0].numel(), x).view(len(below), cut[0].numel())

    def steps() -> Steps:
        sends: list[Ticket] = []
        for piece in cut:
            arrived = [slots[i, : piece.numel()] for i in range(len(below))]
            yield [
                t
                for child, slot in zip(below, arrived, strict=True)
                for t in work.recv(slot, (child + dst) % n)
            ]
            for slot in arrived:
                work.reduce(piece, slot, op)
            if v:
                sends += work.send(piece, (parent(v, n) + dst) % n)
        yield sends

    return steps()


@collective("all_reduce", "binary-tree")
def all_reduce(work: CollectiveWork, x: torch.Tensor, op: str = "sum", pieces: int | None = None) -> Steps:
    """`x`: flat [n]. Up the tree and down again."""
    up = reduce(work, x, op, pieces=pieces)

    def steps() -> Steps:
        yield from up
        yield from broadcast(work, x, pieces=pieces)

    return steps()


# ---- theory ------------------------------------------------------------------------------------------------
@theory_of("binary-tree")
def predict(
    operation: str, size: int, nbytes: int, link: Link | None = None, pieces: int | None = None
) -> Theory:
    """Any N: (N-1)·S bytes and H = ⌈log2 N⌉ messages in a chain each way; time for k equal pieces.

    Reduce (H+k-1)τ + H·L. Broadcast: see `slowest`; for N a power of two from 4 it is (2k + 2H - 3)τ + H·L.
    All-reduce: the sum.
    """
    k, depth = pieces or pieces_of(nbytes), (size - 1).bit_length()
    ways = 2 if operation == "all_reduce" else 1
    total = Theory(ways * (size - 1) * nbytes, ways * depth)
    if link is None or nbytes % k:
        return total
    busy = link.overhead_s + nbytes / k / link.bandwidth
    up = (depth + k - 1) * busy + depth * link.latency_s
    down = slowest(0, size, 0.0, 1, k, busy, link.latency_s)
    times = {"reduce": up, "broadcast": down, "all_reduce": up + down}
    return Theory(total.bytes_total, total.steps, times[operation])


def slowest(v: int, n: int, first: float, period: int, pieces: int, busy: float, latency: float) -> float:
    """Return the time at which the last piece has reached v and every rank below it.

    The first piece reaches v at `first`, and one more every `period`·τ. Child j gets a piece jτ + L after v
    has it, and the pieces follow each other at the pace of the widest node on the way: max(period, children
    of v).
    """
    below = children(v, n)
    pace = max(period, len(below))
    arrivals = [
        slowest(c, n, first + j * busy + latency, pace, pieces, busy, latency) for j, c in enumerate(below, 1)
    ]
    return max([first + (pieces - 1) * period * busy, *arrivals])
