"""The components of named networks: GPUs, switches, cables."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import networkx as nx
import numpy as np

from glasscluster.sim.time.network.topology import Alike, Node


def gpu(i: int) -> str:
    """Return the graph's node of GPU i."""
    return f"gpu {i}"


@dataclass(frozen=True)
class Cable:
    """The cable of the named topologies: bytes/s, seconds of latency for each cable or switch, seconds of
    overhead on a sender's port.
    """

    bandwidth: float
    latency_s: float = 0.0
    overhead_s: float = 0.0


def network(n: int, where: Callable[[int], tuple[float, float]]) -> nx.DiGraph:
    graph = nx.DiGraph()
    for i in range(n):
        graph.add_node(gpu(i), kind="gpu", pos=where(i))
    return graph


def join(graph: nx.DiGraph, a: Node, b: Node, cable: Cable, *, wide: float = 1.0, long: float = 1.0) -> None:
    """Join two nodes by a link in each direction, with `wide` times the cable's bandwidth and `long` times
    its latency.
    """
    for u, v in ((a, b), (b, a)):
        graph.add_edge(
            u,
            v,
            bandwidth=float(cable.bandwidth * wide),
            latency_s=float(cable.latency_s * long),
            overhead_s=cable.overhead_s,
        )


def new_switch(graph: nx.DiGraph, name: str, pos: tuple[float, float], kind: str = "switch") -> str:
    graph.add_node(name, kind=kind, pos=pos)
    return name


def on_circle(n: int) -> Callable[[int], tuple[float, float]]:
    return lambda i: (math.sin(2 * math.pi * i / n), math.cos(2 * math.pi * i / n))


def all_alike(src: np.ndarray, dst: np.ndarray) -> np.ndarray:
    """Every two GPUs are joined by wires alike: one class of all pairs (see `Topology`)."""
    return np.zeros(np.broadcast(src, dst).size, dtype=np.int64)


def inside(size: int) -> Alike:
    """Return the classes of pairs (see `Topology`) where only this matters: are both GPUs in one group of
    `size` consecutive ones?
    """
    return lambda src, dst: (src // size == dst // size).astype(np.int64)


def factors(n: int, dims: int) -> list[int]:
    """Write n as a product of `dims` whole numbers that are as equal as possible, largest first: 12 in 2
    gives [4, 3].
    """
    if dims == 1:
        return [n]
    best = max(f for f in range(1, round(n ** (1 / dims)) + 1) if n % f == 0)
    return sorted([best, *factors(n // best, dims - 1)], reverse=True)
