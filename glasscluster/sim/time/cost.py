"""How many seconds an operation takes on a GPU (roofline) and a message on a wire (α–β).

    operation   launch + max(FLOPs / peak, bytes / memory bandwidth)
    message     overhead + bytes / bandwidth on the sender's port, then latency in flight
    addition    bytes / γ (the local sum inside a reduction; infinite on `classroom`)
    host        bytes over the host's link (α + bytes/β), or through its memory (an update on the CPU)
    native      a collective handed to a library is costed as a whole: on NVIDIA GPUs as NCCL would do it
                (nccl/), else as a ring (Eq 8)

The constants belong to a GPU or a link (hardware.py). Peaks are data-sheet peaks: no efficiency is guessed
here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from glasscluster.base.errors import InputError
from glasscluster.base.link import Link
from glasscluster.sim.recording.events import COLLECTIVE, COMPUTE, HOST, PHASES, RECV, REDUCE, SEND
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.time.hardware import Hardware
from glasscluster.sim.time.nccl import model as nccl


@dataclass
class Costs:
    """What each event costs, in seconds; each array has one entry an event.

    Attributes:
        duration: for how long it occupies its lane.
        latency: of a receive, how long its message is in flight after it has left.
        speedup: the factor of a what-if by which the event is faster, already in the other two; empty without
            one.
    """

    duration: np.ndarray
    latency: np.ndarray
    speedup: np.ndarray


def costs(
    graph: ExecutionGraph,
    hw: Hardware,
    precision: str,
    slow_ranks: dict[int, float] | None = None,
    faster: dict[str, float] | None = None,
    messages: bool = True,
) -> Costs:
    """Cost every event of a graph on some hardware.

    Args:
        graph: what the ranks did.
        hw: the hardware.
        precision: whose peak FLOP/s counts.
        slow_ranks: from a rank to the factor by which its compute takes longer.
        faster: from a phase of compute (`backward`) or the axis of a communicator (`dp`) to the factor by
            which everything of that kind is faster.
        messages: whether to cost messages; contention/ times them itself.

    Returns:
        The Costs.

    Raises:
        InputError: for a rank or a kind of work that the graph does not have, or a precision without a peak.
    """
    duration, latency = np.zeros(len(graph)), np.zeros(len(graph))
    compute = graph.kind == COMPUTE
    peaks = _peaks(graph, hw, precision, compute)
    duration[compute] = hw.gpu.launch_s + np.maximum(
        graph.flops[compute] / peaks, graph.bytes[compute] / hw.gpu.memory_bandwidth
    )
    stands = graph.roles or graph.fold
    own, there = (graph.rank, graph.peer) if stands is None else (stands.rank, stands.peer)
    for rank, factor in (slow_ranks or {}).items():
        if not 0 <= rank < graph.gpus:
            raise InputError("slow-rank", rank, f"the run has ranks 0..{graph.gpus - 1}", range(graph.gpus))
        duration[compute & (own == rank)] *= factor
    sends, receives = (
        np.flatnonzero(graph.kind == kind) if messages else np.empty(0, np.int64) for kind in (SEND, RECV)
    )
    for rows, src, dst in ((sends, own, there), (receives, there, own)):
        for link, chosen in _by_wire(hw, src[rows], dst[rows]):
            here = rows[chosen]
            if rows is sends:
                duration[here] = link.overhead_s + graph.bytes[here] / link.bandwidth
            else:
                latency[here] = link.latency_s
    additions = graph.kind == REDUCE
    duration[additions] = graph.bytes[additions] / hw.gpu.reduce_rate
    on_host = graph.kind == HOST
    duration[on_host] = hw.host.link.alpha + graph.bytes[on_host] / hw.host.link.bandwidth
    for number, name in enumerate(graph.names):
        if name == "update":
            updates = on_host & (graph.op == number)
            duration[updates] = graph.bytes[updates] / hw.host.memory_bandwidth
        if name.endswith("/native"):
            rows = np.flatnonzero((graph.kind == COLLECTIVE) & (graph.op == number))
            what = np.stack([graph.rank[rows], graph.group[rows], graph.bytes[rows]], axis=1)
            _, first, alike = np.unique(what, axis=0, return_index=True, return_inverse=True)
            seconds = [sum(native_cost(graph, row, hw)) for row in rows[first].tolist()]
            duration[rows] = np.array(seconds)[alike.reshape(-1)] if len(rows) else ()
    speedup = np.ones(len(graph) if faster else 0)
    for kind, factor in (faster or {}).items():
        chosen = of_kind(graph, kind)
        duration[chosen] /= factor
        latency[chosen] /= factor
        speedup[chosen] *= factor
    return Costs(duration, latency, speedup)


# operations that run in fp8; all others run in bf16, as in NVIDIA's Transformer Engine
FP8_KERNELS = ("mm", "addmm")


def _peaks(graph: ExecutionGraph, hw: Hardware, precision: str, compute: np.ndarray) -> np.ndarray:
    """Return the peak FLOP/s for each computing event.

    fp8 is a cost only: casts and their scales are not counted.
    """
    op = graph.op[compute]
    peak = np.full(len(op), hw.gpu.peak(precision))
    if precision == "fp8":
        wide = [name not in FP8_KERNELS for name in graph.names]
        peak[np.array(wide, dtype=bool)[op]] = hw.gpu.peak("bf16")
    return peak


def kinds_of_work(graph: ExecutionGraph) -> list[str]:
    """Return the names that `faster` accepts for a graph: its phases of compute and the axes it communicates
    on.
    """
    phases = [PHASES[p] for p in np.unique(graph.phase[graph.kind == COMPUTE])]
    return phases + sorted(set(graph.axis[graph.kind != COMPUTE].tolist()) - {""})


def of_kind(graph: ExecutionGraph, kind: str) -> np.ndarray:
    """Return a mask of the events of one kind of work."""
    known = kinds_of_work(graph)
    if kind not in known:
        raise InputError("faster", kind, "this run did no such work", known)
    if kind in PHASES:
        return (graph.kind == COMPUTE) & (graph.phase == PHASES.index(kind))
    return (graph.kind != COMPUTE) & (graph.axis == kind)


def _by_wire(hw: Hardware, src: np.ndarray, dst: np.ndarray) -> Iterator[tuple[Link, np.ndarray]]:
    """Yield each kind of wire with a mask of the messages that go over it."""
    if hw.topology is None:
        inside = src // hw.node_size == dst // hw.node_size
        yield from ((hw.intra, inside), (hw.inter, ~inside))
        return
    wires, number = hw.topology.wires(src, dst)
    for i, link in enumerate(wires):
        yield link, number == i


def native_cost(graph: ExecutionGraph, row: int, hw: Hardware) -> tuple[float, float]:
    """Return the seconds of a collective that a library ran, in two addends: latency, and moving bytes.

    On NVIDIA GPUs it is what NCCL would choose; its figures are for the links as built, so the result is
    scaled as `Hardware.scaled` scaled them. On other hardware it is a ring in rank order, each step as long
    as its slowest wire takes.
    """
    operation = graph.names[graph.op[row]].removesuffix("/native")
    rank, group = int(graph.rank[row]), int(graph.group[row])
    members = graph.groups[rank][group][1] if graph.roles is None else graph.roles.members(rank, group)
    n, nbytes = len(members), int(graph.bytes[row])
    if hw.gpu.sm and hw.topology is None:
        nodes = len({m // hw.node_size for m in members})
        as_built = hw.scaled(bandwidth=1 / hw.bandwidth_scale, latency=1 / hw.latency_scale)
        chosen = nccl.choose(
            "all_reduce" if operation == "barrier" else operation,
            nbytes,
            as_built,
            n,
            node_size=-(-n // nodes),
        )
        return chosen.latency_s * hw.latency_scale, (chosen.time_s - chosen.latency_s) / hw.bandwidth_scale
    wires = {hw.link(a, b) for a, b in zip(members, [*members[1:], members[0]], strict=True)}
    slowest = max(wires, key=lambda link: link.alpha + nbytes / n / link.bandwidth)
    steps = (2 if operation in ("all_reduce", "barrier") else 1) * (n - 1)
    return steps * slowest.alpha, steps * (nbytes / n / slowest.bandwidth)
