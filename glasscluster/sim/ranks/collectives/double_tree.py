"""Double binary tree: two trees carry half of the buffer each; an inner node of one is a leaf of the other.

Follows Sanders, Speck and Träff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan"
(2009), the tree algorithm of NCCL since 2.4. Symbols: N ranks, S bytes, k pieces of each half, v = (rank -
root) mod N, τ = o + S/(2kβ) the time that a piece holds a port, H = ⌈log2 N⌉ the depth.

    N = 8, both below rank 0; odd places are leaves, and in the second tree every rank is one place further

        first half    0 ─► 4 ─┬─► 2 ─┬─► 1          second half   0 ─► 3 ─┬─► 1 ─┬─► 7
                              │      └─► 3                                │      └─► 2
                              └─► 6 ─┬─► 5                                └─► 5 ─┬─► 4
                                     └─► 7                                       └─► 6

A rank other than the root has children in one tree at most. For odd N the second tree is mirrored (v at place
N-v), for even N it is shifted (v at place v+1, and N-1 at place 1: a leaf in both). So in an all-reduce a
rank sends S/2 up in each tree and at most 2·S/2 down, 2S together: the ring's bytes in a tree's steps.
`sent()` says what each rank sends exactly.

Both trees share a rank's port, so the order of its messages matters.

    reduce      first the pieces of the tree in which it is a leaf: they wait for no child. Where one child is
                a leaf and the other is not, the leaf's pieces are added first: they arrive first.
    broadcast receives are posted at once, first those of the tree in which it has children, because other
    ranks wait for what it forwards there, and no rank for what it receives as a leaf.

No send is waited for before the end, so no rank blocks another. Additions have a fixed order (leaves, then
left, then right).
But: as in the paper both trees hang below one root (NCCL gives each tree its own); all-reduce is a reduce
followed by a broadcast, because overlapping them would not make a port any less busy: it sends S/2 up in each
tree and S down. A piece has 64 KiB and a half at most 16 pieces; the best number depends on the link.
"""

from __future__ import annotations

import torch

from glasscluster.base.link import Link
from glasscluster.sim.ranks.collectives import binary_tree
from glasscluster.sim.ranks.collectives.binary_tree import pieces_of, slowest
from glasscluster.sim.ranks.collectives.registry import collective, theory_of
from glasscluster.sim.ranks.collectives.theory import Theory, power_of_two
from glasscluster.sim.ranks.wire import Ticket
from glasscluster.sim.ranks.work import CollectiveWork, Steps

TREES = (0, 1)


def place(v: int, n: int, tree: int) -> int:
    """Return the place of v in a tree; the root is at place 0 in both."""
    if tree == 0 or v == 0:
        return v
    return n - v if n % 2 else v % (n - 1) + 1


def at(p: int, n: int, tree: int) -> int:
    """Return the virtual rank at a place in a tree: the inverse of `place`."""
    if tree == 0 or p == 0:
        return p
    return n - p if n % 2 else (p - 2) % (n - 1) + 1


def children(v: int, n: int, tree: int) -> list[int]:
    """Return the children of v in a tree."""
    return [at(p, n, tree) for p in binary_tree.children(place(v, n, tree), n)]


def parent(v: int, n: int, tree: int) -> int:
    """Return the parent of v in a tree."""
    return at(binary_tree.parent(place(v, n, tree), n), n, tree)


def inner_trees(v: int, n: int) -> list[int]:
    """Return the trees in which v has children: both for the root, at most one for other ranks."""
    return [t for t in TREES if children(v, n, t)]


def cut(x: torch.Tensor, pieces: int | None) -> list[tuple[torch.Tensor, ...]]:
    """Cut the buffer into two halves of k pieces each."""
    k = pieces or pieces_of(x.numel() * x.element_size() / 2)
    return [torch.tensor_split(half, k) for half in torch.tensor_split(x, 2)]


@collective("broadcast", "double-tree")
def broadcast(work: CollectiveWork, x: torch.Tensor, src: int = 0, pieces: int | None = None) -> Steps:
    """`x`: flat [n]. Ends as rank `src`'s on every rank."""
    n = work.size
    v = (work.rank - src) % n
    halves, inner = cut(x, pieces), inner_trees(v, n)
    turns = [(i, t) for i in range(len(halves[0])) for t in TREES]  # the root sends to both trees in turn
    first = (inner or TREES)[0]
    heard = (
        sorted(turns, key=lambda turn: turn[1] != first) if n > 2 else turns
    )  # with two ranks both trees use the same wire
    arriving: dict[tuple[int, int], list[Ticket]] = {turn: [] for turn in turns}
    if v:
        for i, t in heard:
            arriving[i, t] = work.recv(halves[t][i], (parent(v, n, t) + src) % n)
    sends: list[Ticket] = []
    for i, t in turns:
        if t in inner:
            yield arriving[i, t]
            for child in children(v, n, t):
                sends += work.send(halves[t][i], (child + src) % n)
    yield sends + [ticket for tickets in arriving.values() for ticket in tickets]


@collective("reduce", "double-tree")
def reduce(
    work: CollectiveWork, x: torch.Tensor, op: str = "sum", dst: int = 0, pieces: int | None = None
) -> Steps:
    """`x`: flat [n]. Rank `dst` ends with the `op` over ranks; on the others `x` is scratch."""
    n = work.size
    v = (work.rank - dst) % n
    halves, inner = cut(x, pieces), inner_trees(v, n)
    below = [(t, child) for t in inner for child in children(v, n, t)]
    leaves = [(t, child) for t, child in below if not children(child, n, t)]
    waves = [leaves, [b for b in below if b not in leaves]] if 0 < len(leaves) < len(below) else [below]
    width = halves[0][0].numel()
    slots = work.stage(len(below) * width, x).view(len(below), width)

    def steps() -> Steps:
        sends: list[Ticket] = []

        def up(i: int, trees: list[int]) -> None:
            for t in trees:
                sends.extend(work.send(halves[t][i], (parent(v, n, t) + dst) % n))

        k = len(halves[0])
        for i in range(k if v else 0):
            up(i, [t for t in TREES if t not in inner])
        for wave in waves:
            for i in range(k):
                arrived = [
                    (slot[: halves[t][i].numel()], t, child)
                    for slot, (t, child) in zip(slots, wave, strict=False)
                ]
                yield [ticket for slot, _, child in arrived for ticket in work.recv(slot, (child + dst) % n)]
                for slot, t, _ in arrived:
                    work.reduce(halves[t][i], slot, op)
                if v and wave is waves[-1]:
                    up(i, inner)
        yield sends

    return steps()


@collective("all_reduce", "double-tree")
def all_reduce(work: CollectiveWork, x: torch.Tensor, op: str = "sum", pieces: int | None = None) -> Steps:
    """`x`: flat [n]. Up both trees and down again."""
    up = reduce(work, x, op, pieces=pieces)

    def steps() -> Steps:
        yield from up
        yield from broadcast(work, x, pieces=pieces)

    return steps()


# ---- theory ------------------------------------------------------------------------------------------------
@theory_of("double-tree")
def predict(
    operation: str, size: int, nbytes: int, link: Link | None = None, pieces: int | None = None
) -> Theory:
    """Any N: (N-1)·S bytes and H messages in a chain each way; all-reduce is both. Time for 2k equal pieces.

    Broadcast, any N: the later of both trees, whose first pieces leave the root at τ and 2τ and then every 2τ
    (`slowest`); for N a power of two 2kτ + L + (H-1)(2τ + L). Reduce: N a power of two (2k + H - 1)τ + H·L,
    since N-1, a leaf in both trees, has 2k pieces to send as a leaf; odd N max(kτ, τ + L) + kτ + L + (H-2)(τ
    + L); other N: None.
    """
    k, depth = pieces or pieces_of(nbytes / 2), (size - 1).bit_length()
    ways = 2 if operation == "all_reduce" else 1
    total = Theory(ways * (size - 1) * nbytes, ways * depth)
    if link is None or nbytes % (2 * k):
        return total
    busy, latency = link.overhead_s + nbytes / (2 * k) / link.bandwidth, link.latency_s
    top = binary_tree.children(0, size)[0]
    down = max(slowest(top, size, (1 + t) * busy + latency, 2, k, busy, latency) for t in TREES)
    up: float | None = None
    if power_of_two(size):
        up = (2 * k + depth - 1) * busy + depth * latency
    elif size % 2:
        up = max(k * busy, busy + latency) + k * busy + latency + (depth - 2) * (busy + latency)
    times = {"broadcast": down, "reduce": up, "all_reduce": None if up is None else up + down}
    return Theory(total.bytes_total, total.steps, times[operation])


def sent(size: int, nbytes: float) -> list[float]:
    """Bytes that each rank sends in an all-reduce, the halves being equal: S/2 for every parent and every
    child, at most 2S.
    """
    return [nbytes / 2 * (2 * (v > 0) + sum(len(children(v, size, t)) for t in TREES)) for v in range(size)]
