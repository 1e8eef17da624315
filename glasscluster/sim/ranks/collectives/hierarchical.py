"""Hierarchical collectives: inside the node and between the nodes, each with rings.

The two-level scheme of Horovod and NCCL practice. Symbols: N ranks in M nodes of g, S bytes of the full
buffer.

    all-reduce, N = 4, g = 2         node 0: 0 1        node 1: 2 3

        reduce-scatter in each node      0 and 2 hold the first half, summed in their node; 1 and 3 the second
        ring all-reduce between nodes    0 ◄─► 2 on the first half, 1 ◄─► 3 on the second
        all-gather in each node          everybody has both

A rank sends 2(g-1)/g·S inside its node and 2(M-1)/M·S/g between nodes (Eq 12): the slow wire carries 1/g of
what a flat ring would. All-gather begins between the nodes, so that each rank sends only chunks of its own
place p (chunks p, g+p, 2g+p, ...) to other nodes; then each rank forwards these M chunks inside its node,
with M messages a step. Reduce-scatter is the same in reverse. Broadcast and reduce cross to each node once.
But: nodes must be equal. Where N is no multiple of the node size, the largest divisor of N that fits in a
node is taken as g.
"""

from __future__ import annotations

import torch

from glasscluster.base.link import Link
from glasscluster.sim.ranks.collectives import ring
from glasscluster.sim.ranks.collectives.registry import collective, theory_of
from glasscluster.sim.ranks.collectives.theory import Theory, one_after_another, through_one_port
from glasscluster.sim.ranks.wire import Ticket
from glasscluster.sim.ranks.work import CollectiveWork, Steps


def group_size(n: int, node_size: int) -> int:
    """Return g, the largest divisor of N that is at most the node size."""
    return max(g for g in range(1, min(n, node_size) + 1) if n % g == 0)


def round_both_levels(size: int, nbytes: int, node_size: int = 8) -> tuple[int, ...] | None:
    """Nodes are alike, and so are the places in a node (see alike.py), in equal chunks."""
    g = group_size(size, node_size)
    return (size // g, g) if nbytes % size == 0 else None


@collective("all_reduce", "hierarchical", alike=round_both_levels)
def all_reduce(work: CollectiveWork, x: torch.Tensor, op: str = "sum", node_size: int = 8) -> Steps:
    """`x`: flat [n]. Ends with the `op` over ranks."""
    inside, across = _levels(work, node_size)
    chunks = torch.tensor_split(x, len(inside))
    subchunks = torch.tensor_split(chunks[work.rank % len(inside)], len(across))
    staging = work.stage(max(chunks[0].numel(), subchunks[0].numel()), x)

    def steps() -> Steps:
        yield from ring._reduce_scatter(work, chunks, staging, op, inside)
        yield from ring._reduce_scatter(work, subchunks, staging, op, across)
        yield from ring._all_gather(work, subchunks, across)
        yield from ring._all_gather(work, chunks, inside)

    return steps()


@collective("reduce_scatter", "hierarchical", alike=round_both_levels)
def reduce_scatter(work: CollectiveWork, x: torch.Tensor, op: str = "sum", node_size: int = 8) -> Steps:
    """`x`: flat [n]. Chunk `rank` ends with the `op` over ranks."""
    inside, across, combs, place = _combs(work, x, node_size)
    g, widest = len(inside), combs[0][0].numel()
    staging = work.stage(len(across) * widest, x).view(len(across), widest)

    def steps() -> Steps:
        for step in range(g - 1):
            outgoing, incoming = combs[(place - step - 1) % g], combs[(place - step - 2) % g]
            arrived = [slot[: chunk.numel()] for slot, chunk in zip(staging, incoming, strict=True)]
            yield _next_door(work, outgoing, inside[(place + 1) % g], arrived, inside[(place - 1) % g])
            for chunk, other in zip(incoming, arrived, strict=True):
                work.reduce(chunk, other, op)
        yield from ring._reduce_scatter(work, combs[place], staging[0], op, across)

    return steps()


@collective("all_gather", "hierarchical", alike=round_both_levels)
def all_gather(work: CollectiveWork, x: torch.Tensor, node_size: int = 8) -> Steps:
    """`x`: flat [n], chunk `rank` filled. Ends with every rank's chunk."""
    inside, across, combs, place = _combs(work, x, node_size)
    g = len(inside)
    yield from ring._all_gather(work, combs[place], across)
    for step in range(g - 1):
        outgoing, incoming = combs[(place - step) % g], combs[(place - step - 1) % g]
        yield _next_door(work, outgoing, inside[(place + 1) % g], incoming, inside[(place - 1) % g])


@collective("broadcast", "hierarchical")
def broadcast(work: CollectiveWork, x: torch.Tensor, src: int = 0, node_size: int = 8) -> Steps:
    """`x`: flat [n]. Ends as rank `src`'s on every rank: first on those of its place, then in their nodes."""
    inside, across = _levels(work, node_size)
    local = inside[src % len(inside)]
    if work.rank == local:
        yield from ring._broadcast(work, torch.tensor_split(x, len(across)), src, across)
    yield from ring._broadcast(work, torch.tensor_split(x, len(inside)), local, inside)


@collective("reduce", "hierarchical")
def reduce(work: CollectiveWork, x: torch.Tensor, op: str = "sum", dst: int = 0, node_size: int = 8) -> Steps:
    """`x`: flat [n]. Rank `dst` ends with the `op` over ranks; on the others `x` is scratch."""
    inside, across = _levels(work, node_size)
    local = inside[dst % len(inside)]
    near, far = torch.tensor_split(x, len(inside)), torch.tensor_split(x, len(across))
    staging = work.stage(max(near[0].numel(), far[0].numel()), x)

    def steps() -> Steps:
        yield from ring._reduce(work, near, staging, op, local, inside)
        if work.rank == local:
            yield from ring._reduce(work, far, staging, op, dst, across)

    return steps()


def _levels(work: CollectiveWork, node_size: int) -> tuple[list[int], list[int]]:
    """Return the ranks of this rank's node, and the ranks at its place in every node."""
    g = group_size(work.size, node_size)
    node, place = divmod(work.rank, g)
    return list(range(node * g, node * g + g)), list(range(place, work.size, g))


def _combs(
    work: CollectiveWork, x: torch.Tensor, node_size: int
) -> tuple[list[int], list[int], list[list[torch.Tensor]], int]:
    """Return both levels, and the chunks by place.

    Returns:
        The ranks of this rank's node; the ranks at its place in every node; for each place in a node, the
        chunks of the ranks at that place; this rank's place.
    """
    inside, across = _levels(work, node_size)
    g, chunks = len(inside), torch.tensor_split(x, work.size)
    return inside, across, [list(chunks[p::g]) for p in range(g)], work.rank % g


def _next_door(
    work: CollectiveWork, outgoing: list[torch.Tensor], dst: int, incoming: list[torch.Tensor], src: int
) -> list[Ticket]:
    """Send the chunks of one place to the right neighbour and receive those of another from the left one."""
    return [
        t
        for chunk, other in zip(outgoing, incoming, strict=True)
        for t in work.exchange(chunk, dst, other, src)
    ]


# ---- theory ------------------------------------------------------------------------------------------------
@theory_of("hierarchical")
def predict(
    operation: str,
    size: int,
    nbytes: int,
    link: Link | None = None,
    between: Link | None = None,
    node_size: int = 8,
) -> Theory:
    """Bytes as in `traffic`; the times of both levels add (Eq 12), for equal chunks.

    `between` joins the nodes.

    all-reduce: 2(g-1) steps of S/g inside and 2(M-1) of S/N between; reduce-scatter and all-gather: M-1 steps
    of S/N between and g-1 inside, each of M messages through one port; broadcast and reduce: a ring's (Eq 10)
    of M ranks and one of g.
    """
    inside, across = traffic(size, nbytes, node_size, operation)
    g = group_size(size, node_size)
    nodes, far_link = size // g, between or link
    if operation == "all_reduce":
        near = one_after_another(link, 2 * (g - 1), nbytes / g)
        far = one_after_another(far_link, 2 * (nodes - 1), nbytes / size)
    elif operation in ("reduce_scatter", "all_gather"):
        step = through_one_port(link, nodes, nbytes / size)
        near = None if step is None else (g - 1) * step
        far = one_after_another(far_link, nodes - 1, nbytes / size)
    else:
        near, far = (
            ring.predict(operation, g, nbytes, link).time_s,
            ring.predict(operation, nodes, nbytes, far_link).time_s,
        )
    ways = 2 if operation == "all_reduce" else 1
    return Theory(
        inside + across, ways * (g - 1 + nodes - 1), None if near is None or far is None else near + far
    )


def traffic(size: int, nbytes: int, node_size: int = 8, operation: str = "all_reduce") -> tuple[int, int]:
    """Bytes sent inside nodes and between them, over all ranks: (g-1)·S·M and (M-1)·S, all-reduce
    twice that.
    """
    g = group_size(size, node_size)
    ways = 2 if operation == "all_reduce" else 1
    return ways * (g - 1) * nbytes * (size // g), ways * (size // g - 1) * nbytes
