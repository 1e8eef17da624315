"""Seconds for an operation on a GPU and for a message on a wire: roofline plus α–β.

    operation   launch + max(FLOPs / peak, bytes / memory bandwidth)
    message     overhead + bytes / bandwidth on the sender's port, then latency in flight
    addition    bytes / γ (the local sum inside a reduction; infinite on `classroom`)
    native      a collective handed to a library is re-costed whole, as a ring (F8)

The constants belong to a GPU or a link (hardware.py). Peaks are data-sheet peaks: no efficiency is guessed here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from glasscluster.sim.errors import ScenarioError
from glasscluster.sim.graph import ExecutionGraph
from glasscluster.sim.hardware import Hardware
from glasscluster.sim.vocabulary import COLLECTIVE, COMPUTE, PHASES, RECV, REDUCE, SEND


@dataclass
class Costs:
    """Per event: `duration` occupies its lane; `latency` is added to a receive's message while in flight."""

    duration: np.ndarray
    latency: np.ndarray


def costs(
    graph: ExecutionGraph,
    hw: Hardware,
    precision: str,
    slow_ranks: dict[int, float] | None = None,
    faster: dict[str, float] | None = None,
) -> Costs:
    """Cost every event of a graph on a cluster.

    `slow_ranks` maps a rank to the factor its compute takes longer; `faster` maps a phase of compute (`backward`) or
    the axis of a communicator (`dp`) to the factor by which everything of that kind is quicker.
    """
    duration, latency = np.zeros(len(graph)), np.zeros(len(graph))
    compute = graph.kind == COMPUTE
    duration[compute] = hw.gpu.launch_s + np.maximum(
        graph.flops[compute] / hw.gpu.peak(precision), graph.bytes[compute] / hw.gpu.memory_bandwidth
    )
    for rank, factor in (slow_ranks or {}).items():
        if not 0 <= rank < graph.ranks:
            raise ScenarioError("slow-rank", rank, f"the run has ranks 0..{graph.ranks - 1}", range(graph.ranks))
        duration[compute & (graph.rank == rank)] *= factor
    messages = (graph.kind == SEND) | (graph.kind == RECV)
    inside = graph.rank // hw.node_size == graph.peer // hw.node_size
    for link, chosen in ((hw.intra, messages & inside), (hw.inter, messages & ~inside)):
        sends = chosen & (graph.kind == SEND)
        duration[sends] = link.overhead_s + graph.bytes[sends] / link.bandwidth
        latency[chosen & (graph.kind == RECV)] = link.latency_s
    additions = graph.kind == REDUCE
    duration[additions] = graph.bytes[additions] / hw.gpu.reduce_rate
    for number, name in enumerate(graph.names):
        if name.endswith("/native"):
            for row in np.flatnonzero((graph.kind == COLLECTIVE) & (graph.op == number)):
                duration[row] = _native(graph, int(row), name, hw)
    for kind, factor in (faster or {}).items():
        chosen = of_kind(graph, kind)
        duration[chosen] /= factor
        latency[chosen] /= factor
    return Costs(duration, latency)


def kinds_of_work(graph: ExecutionGraph) -> list[str]:
    """What `faster` may name in this graph: the phases it computed and the axes it communicated on."""
    phases = [PHASES[p] for p in np.unique(graph.phase[graph.kind == COMPUTE])]
    return phases + sorted(set(graph.axis[graph.kind != COMPUTE].tolist()) - {""})


def of_kind(graph: ExecutionGraph, kind: str) -> np.ndarray:
    """A mask of the events of one kind of work."""
    known = kinds_of_work(graph)
    if kind not in known:
        raise ScenarioError("faster", kind, "this run did no such work", known)
    if kind in PHASES:
        return (graph.kind == COMPUTE) & (graph.phase == PHASES.index(kind))
    return (graph.kind != COMPUTE) & (graph.axis == kind)


def _native(graph: ExecutionGraph, row: int, name: str, hw: Hardware) -> float:
    _, members = graph.groups[int(graph.rank[row])][int(graph.group[row])]
    n = len(members)
    crosses = len({m // hw.node_size for m in members}) > 1
    link = hw.inter if crosses else hw.intra
    steps = (2 if name.startswith("all_reduce") else 1) * (n - 1)
    return steps * (link.alpha + graph.bytes[row] / n / link.bandwidth)
