"""Hierarchical all-reduce: inside the node, between the nodes, inside the node.

The two-level scheme of Horovod and NCCL practice. Symbols: N ranks in M nodes of g, S bytes of the full buffer.

    N = 4, g = 2         node 0: 0 1        node 1: 2 3

        reduce-scatter in each node      0 and 2 hold the first half summed over their node, 1 and 3 the second
        ring all-reduce between nodes    0 ◄─► 2 on the first half, 1 ◄─► 3 on the second
        all-gather in each node          everybody has both

A rank sends 2(g-1)/g·S inside its node and 2(M-1)/M·S/g between nodes (F12): the slow wire carries 1/g of what a flat ring would.
But: nodes must be equal. Where N is no multiple of the node size, the largest divisor of N that fits in a node is taken as g.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from glasscluster.sim.collectives import ring
from glasscluster.sim.collectives.theory import Theory, one_after_another

if TYPE_CHECKING:
    from glasscluster.sim.communicator import CollectiveWork, Ticket
    from glasscluster.sim.hardware import Link


def group_size(n: int, node_size: int) -> int:
    """g: the largest divisor of N that is at most the node size."""
    return max(g for g in range(1, min(n, node_size) + 1) if n % g == 0)


def all_reduce(work: CollectiveWork, x: torch.Tensor, op: str = "sum", node_size: int = 8) -> Iterator[list[Ticket]]:
    """`x`: flat [n]. Ends with the `op` over ranks."""
    n, r = work.size, work.rank
    g = group_size(n, node_size)
    node, place = divmod(r, g)
    inside, across = list(range(node * g, node * g + g)), list(range(place, n, g))
    chunks = torch.tensor_split(x, g)
    pieces = torch.tensor_split(chunks[place], len(across))
    staging = work.stage(max(chunks[0].numel(), pieces[0].numel()), x)

    def steps() -> Iterator[list[Ticket]]:
        yield from ring._reduce_scatter(work, chunks, staging, op, inside)
        yield from ring._reduce_scatter(work, pieces, staging, op, across)
        yield from ring._all_gather(work, pieces, across)
        yield from ring._all_gather(work, chunks, inside)

    return steps()


# ---- theory ------------------------------------------------------------------------------------------------------
def predict(operation: str, size: int, nbytes: int, link: Link | None = None, between: Link | None = None, node_size: int = 8) -> Theory:
    """2(g-1)·S·M bytes inside nodes and 2(M-1)·S between them; the times of both rings add (F12). `between` joins the nodes."""
    del operation  # all-reduce is the only one
    inside, across = traffic(size, nbytes, node_size)
    g = group_size(size, node_size)
    nodes = size // g
    near = one_after_another(link, 2 * (g - 1), nbytes / g)
    far = one_after_another(between or link, 2 * (nodes - 1), nbytes / g / nodes)
    time = None if near is None or far is None else near + far
    return Theory(inside + across, 2 * (g - 1) + 2 * (nodes - 1), time)


def traffic(size: int, nbytes: int, node_size: int = 8) -> tuple[int, int]:
    """Bytes sent inside nodes and between them, over all ranks."""
    g = group_size(size, node_size)
    return 2 * (g - 1) * nbytes * (size // g), 2 * (size // g - 1) * nbytes
