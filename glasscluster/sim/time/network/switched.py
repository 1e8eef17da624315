"""Switched networks: one switch, a fat tree, rails, a PCIe tree."""

from __future__ import annotations

import math

import numpy as np

from glasscluster.base.errors import InputError
from glasscluster.sim.time.network.blocks import Cable, all_alike, gpu, inside, join, network, new_switch
from glasscluster.sim.time.network.topology import Node, Topology


def switch(n: int, cable: Cable) -> Topology:
    """A star: every GPU has a port of one switch (an NVSwitch node)."""
    graph = network(n, lambda i: (float(i), 0.0))
    centre = new_switch(graph, "switch", ((n - 1) / 2, 1.0))
    for i in range(n):
        join(graph, gpu(i), centre, cable, long=0.5)
    gpus = [gpu(i) for i in range(n)]
    return Topology("switch", graph, gpus, lambda a, b: [gpu(a), centre, gpu(b)], alike=all_alike)


def fat_tree(n: int, cable: Cable, leaf: int | None = None, oversubscription: float = 1.0) -> Topology:
    """Two tiers: `leaf` GPUs a leaf switch (default: about √n), every leaf joined to every spine.

    A leaf's uplinks carry together leaf·β / oversubscription. The spine is chosen by the receiver (D-mod-K
    routing, Zahavi 2012), so that a shift of all ranks by the same distance meets no contention when nothing
    is oversubscribed.
    """
    down = leaf or _divisor_near(n, math.sqrt(n))
    if down < 1 or n % down:
        raise InputError(
            "leaf",
            down,
            f"{n} GPUs must divide evenly over leaves",
            [d for d in range(1, n + 1) if n % d == 0],
        )
    if not (math.isfinite(oversubscription) and oversubscription >= 1):
        raise InputError(
            "oversubscription",
            oversubscription,
            "must be at least 1 (1: as much bandwidth up as down)",
            [1, 2, 4],
        )
    spines, leaves = max(1, int(down / oversubscription)), n // down
    up = down / oversubscription / spines
    graph = network(n, lambda i: (float(i), 0.0))
    for k in range(leaves):
        new_switch(graph, f"leaf {k}", (k * down + (down - 1) / 2, 1.0))
    for s in range(spines):
        new_switch(graph, f"spine {s}", ((s + 0.5) * n / spines - 0.5, 2.0))
    for i in range(n):
        join(graph, gpu(i), f"leaf {i // down}", cable, long=0.5)
    for k in range(leaves):
        for s in range(spines):
            join(graph, f"leaf {k}", f"spine {s}", cable, wide=up)

    def rule(src: int, dst: int) -> list[Node]:
        a, b = src // down, dst // down
        if a == b:
            return [gpu(src), f"leaf {a}", gpu(dst)]
        return [gpu(src), f"leaf {a}", f"spine {dst % spines}", f"leaf {b}", gpu(dst)]

    return Topology("fat-tree", graph, [gpu(i) for i in range(n)], rule, alike=inside(down))


def _divisor_near(n: int, wish: float) -> int:
    return min((d for d in range(1, n + 1) if n % d == 0), key=lambda d: (abs(d - wish), d))


def rail(n: int, cable: Cable, node: int | None = None) -> Topology:
    """Nodes of `node` GPUs (default 8, or all) behind a switch each; GPU k of every node also on rail switch
    k.

    A message to another node's GPU k goes over rail k: the sender hands it to GPU k of its own node first,
    over the node's switch (as NCCL's PXN does), where it is not GPU k itself. Rails are not joined to each
    other.
    """
    g = node or (8 if n % 8 == 0 else n)
    if g < 1 or n % g:
        raise InputError("nodes", n // g if g else 0, f"{n} GPUs must divide evenly over the nodes")
    nodes = n // g
    graph = network(n, lambda i: (float(i + i // g), 0.0))
    for m in range(nodes):
        new_switch(graph, f"node {m}", (m * (g + 1) + (g - 1) / 2, -1.0))
    for k in range(g if nodes > 1 else 0):
        new_switch(graph, f"rail {k}", ((k + 0.5) * (n + nodes - 1) / g - 0.5, 1.0))
    for i in range(n):
        join(graph, gpu(i), f"node {i // g}", cable, long=0.5)
        if nodes > 1:
            join(graph, gpu(i), f"rail {i % g}", cable, long=0.5)

    def rule(src: int, dst: int) -> list[Node]:
        (a, k), (b, j) = divmod(src, g), divmod(dst, g)
        if a == b:
            return [gpu(src), f"node {a}", gpu(dst)]
        first: list[Node] = [gpu(src)] if k == j else [gpu(src), f"node {a}", gpu(a * g + j)]
        return [*first, f"rail {j}", gpu(dst)]

    def alike(src: np.ndarray, dst: np.ndarray) -> np.ndarray:
        """Inside a node, on one rail, or by way of a GPU of the sender's node."""
        return np.where(src // g == dst // g, 0, np.where(src % g == dst % g, 1, 2))

    return Topology("rail", graph, [gpu(i) for i in range(n)], rule, alike=alike)


def pcie_tree(n: int, cable: Cable) -> Topology:
    """Two GPUs a PCIe switch, two switches a CPU socket, sockets joined to the first one: every link of one
    bandwidth.
    """
    graph = network(n, lambda i: (float(i), 0.0))
    for i in range(n):
        under, socket = f"pcie {i // 2}", f"cpu {i // 4}"
        if under not in graph:
            new_switch(graph, under, (i + 0.5, 1.0))
            if socket not in graph:
                new_switch(graph, socket, (i + 1.5, 2.0))
                if i:
                    join(graph, "cpu 0", socket, cable)
            join(graph, under, socket, cable, long=0.5)
        join(graph, gpu(i), under, cable, long=0.5)
    return Topology("pcie-tree", graph, [gpu(i) for i in range(n)])
