"""Direct networks: GPUs joined to GPUs, as a ring, a line, a mesh, a torus, a hypercube, or each to each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from glasscluster.base.errors import InputError
from glasscluster.sim.time.network.blocks import Cable, all_alike, factors, gpu, join, network, on_circle
from glasscluster.sim.time.network.topology import Node, Topology


def ring(n: int, cable: Cable) -> Topology:
    """Each GPU joined to the next, the last to the first; messages take the shorter way round."""
    return _grid("ring", [n], cable, wraps=True, where=on_circle(n))


def line(n: int, cable: Cable) -> Topology:
    """Each GPU joined to the next."""
    return _grid("line", [n], cable, wraps=False, where=lambda i: (float(i), 0.0))


def mesh2d(n: int, cable: Cable, dims: Sequence[int] | None = None) -> Topology:
    """Rows and columns; messages go along the row first, then the column."""
    return _grid("mesh2d", dims or factors(n, 2), cable, wraps=False)


def torus2d(n: int, cable: Cable, dims: Sequence[int] | None = None) -> Topology:
    """A mesh whose rows and columns are rings."""
    return _grid("torus2d", dims or factors(n, 2), cable, wraps=True)


def torus3d(n: int, cable: Cable, dims: Sequence[int] | None = None) -> Topology:
    """Rings in three dims, as in TPU pods."""
    return _grid("torus3d", dims or factors(n, 3), cable, wraps=True)


def _grid(name: str, dims: Sequence[int], cable: Cable, *, wraps: bool, where: Any = None) -> Topology:
    """GPU i has coordinates in `dims`, the last dim fastest; dimension-ordered routes, fastest dim first
    (deadlock-free).
    """
    dims = list(dims)
    n = math.prod(dims)
    graph = network(n, where or (lambda i: _flat(coordinates(i, dims), dims)))
    for i in range(n):
        here = coordinates(i, dims)
        for axis, size in enumerate(dims):
            if size > 1 and (wraps or here[axis] + 1 < size):
                after = gpu(_at({axis: (here[axis] + 1) % size}, here, dims))
                join(graph, gpu(i), after, cable)
                if (
                    where is None and here[axis] + 1 == size > 2
                ):  # drawn as leaving the picture on one side and entering it on the other
                    out = np.subtract(
                        _flat([h + (a == axis) for a, h in enumerate(here)], dims), _flat(here, dims)
                    )
                    graph.edges[gpu(i), after]["out"], graph.edges[after, gpu(i)]["out"] = (
                        tuple(out),
                        tuple(-out),
                    )

    def rule(src: int, dst: int) -> list[Node]:
        here, there = coordinates(src, dims), coordinates(dst, dims)
        nodes: list[Node] = [gpu(src)]
        for axis in reversed(range(len(dims))):
            size, forward = dims[axis], (there[axis] - here[axis]) % dims[axis]
            # half way round both directions are equally short: upwards is taken
            direct = there[axis] > here[axis] if not wraps else 2 * forward <= size
            while here[axis] != there[axis]:
                here[axis] = (here[axis] + (1 if direct else -1)) % size
                nodes.append(gpu(_at({}, here, dims)))
        return nodes

    def alike(src: np.ndarray, dst: np.ndarray) -> np.ndarray:
        """The number of links along each dim, as the digits of one number."""
        key, below = np.zeros(len(src), dtype=np.int64), 1
        for size in reversed(dims):
            steps = np.abs(dst // below % size - src // below % size)
            key = key * (size + 1) + (np.minimum(steps, size - steps) if wraps else steps)
            below *= size
        return key

    return Topology(name, graph, [gpu(i) for i in range(n)], rule, alike=alike)


def coordinates(i: int, dims: Sequence[int]) -> list[int]:
    """Return the coordinates of GPU i in a grid, the last dim fastest."""
    place = []
    for size in reversed(dims):
        place.append(i % size)
        i //= size
    return place[::-1]


def _at(changed: dict[int, int], here: Sequence[int], dims: Sequence[int]) -> int:
    number = 0
    for axis, size in enumerate(dims):
        number = number * size + changed.get(axis, here[axis])
    return number


def _flat(place: Sequence[int], dims: Sequence[int]) -> tuple[float, float]:
    """Return where a node of a grid is drawn: two dims along the axes, a third one slanted."""
    padded = [0] * (3 - len(place)) + list(place)
    deep, down, right = padded
    return right + 0.28 * deep, -down - 0.22 * deep - deep * 0.02 * len(dims)


def hypercube(n: int, cable: Cable) -> Topology:
    """GPUs whose numbers differ in one bit are joined; a message changes the lowest differing bit first
    (e-cube routing).
    """
    if n & (n - 1) or n < 2:
        raise InputError("gpus", n, "a hypercube has a power of two of GPUs", [2**k for k in range(1, 16)])
    graph = network(n, on_circle(n))
    for i in range(n):
        for bit in range(n.bit_length() - 1):
            if i < i ^ (1 << bit):
                join(graph, gpu(i), gpu(i ^ (1 << bit)), cable)

    def rule(src: int, dst: int) -> list[Node]:
        nodes: list[Node] = [gpu(src)]
        for bit in range(n.bit_length() - 1):
            if (src ^ dst) >> bit & 1:
                src ^= 1 << bit
                nodes.append(gpu(src))
        return nodes

    def alike(src: np.ndarray, dst: np.ndarray) -> np.ndarray:
        """The number of bits that differ."""
        differ, count = src ^ dst, np.zeros(len(src), dtype=np.int64)
        for bit in range(n.bit_length() - 1):
            count += differ >> bit & 1
        return count

    return Topology("hypercube", graph, [gpu(i) for i in range(n)], rule, alike=alike)


def fully_connected(n: int, cable: Cable) -> Topology:
    """Join every two GPUs by a cable."""
    graph = network(n, on_circle(n))
    for i in range(n):
        for j in range(i):
            join(graph, gpu(i), gpu(j), cable)
    return Topology("fully-connected", graph, [gpu(i) for i in range(n)], alike=all_alike)


# NVLink cables between the GPUs of a DGX-1 with V100 (hybrid cube mesh; as `nvidia-smi topo -m` prints it,
# recalled)
DGX1_LINKS = {
    (0, 1): 1,
    (0, 2): 1,
    (0, 3): 2,
    (0, 4): 2,
    (1, 2): 2,
    (1, 3): 1,
    (1, 5): 2,
    (2, 3): 2,
    (2, 6): 1,
    (3, 7): 1,
    (4, 5): 1,
    (4, 6): 1,
    (4, 7): 2,
    (5, 6): 2,
    (5, 7): 1,
    (6, 7): 2,
}


def nvlink_mesh(n: int, cable: Cable) -> Topology:
    """The eight GPUs of a DGX-1, joined by one or two NVLink cables each of the given bandwidth, some not at
    all.
    """
    if n != 8:
        raise InputError("gpus", n, "an NVLink mesh (DGX-1) has 8 GPUs", [8])
    corners = [(0, 1), (1, 1), (1, 0), (0, 0), (2.4, 1), (3.4, 1), (3.4, 0), (2.4, 0)]
    graph = network(8, lambda i: (float(corners[i][0]), float(corners[i][1])))
    for (a, b), cables in DGX1_LINKS.items():
        join(graph, gpu(a), gpu(b), cable, wide=cables)
    return Topology("nvlink-mesh", graph, [gpu(i) for i in range(8)])
