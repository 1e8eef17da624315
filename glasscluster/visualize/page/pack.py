"""What the page needs beside a packed graph (sim/recording/packed.py) to make a timeline's times itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from glasscluster.base.link import Link
from glasscluster.sim.recording.events import COLLECTIVE, SEND
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.recording.packed import reals
from glasscluster.sim.time.cost import FP8_KERNELS, costs, native_cost
from glasscluster.sim.time.hardware import Hardware
from glasscluster.sim.time.timeline import Timeline


def pack_timeline(timeline: Timeline) -> dict[str, Any]:
    """Its hardware, and how it was replayed: from these the page makes its times.

    What only Python can cost is given: a library's collectives (seconds of latency, seconds of moving bytes),
    the routes of a topology, each as one wire, and, where messages shared links, how long each held its lane
    and how long it was in flight.
    """
    graph, packed, options = (
        timeline.graph,
        pack_hardware(timeline.hardware, timeline.precision),
        timeline.replay_options,
    )
    slow = {str(r): f for r, f in options.get("slow_ranks", {}).items()}
    packed |= {"slow": slow, "faster": options.get("faster", {})}
    whole = [
        r
        for r in graph.canonical.tolist()
        if graph.kind[r] == COLLECTIVE and graph.names[graph.op[r]].endswith("/native")
    ]
    if whole:
        packed["native"] = [
            reals(column)
            for column in zip(*(native_cost(graph, r, timeline.hardware) for r in whole), strict=True)
        ]
    if graph.fold is not None:
        packed |= {"shared": _pack_folded(timeline), "folded": True}
    elif timeline.hardware.topology is not None:
        packed |= _pack_routes(graph, timeline.hardware)
    if timeline.shared is not None:
        seconds = timeline.end - timeline.start
        received = np.flatnonzero(graph.match >= 0)
        arrival = np.zeros(len(graph))
        arrival[timeline.shared.rows] = timeline.shared.arrival
        seconds[received] = (
            arrival[graph.match[received]] - timeline.end[graph.match[received]]
        )  # of a receive: in flight
        packed["shared"] = reals(seconds[graph.canonical])
    return packed


def _pack_folded(timeline: Timeline) -> str:
    """Seconds of each message on its lane, or in flight: a role's number does not say over which wire."""
    cost = costs(timeline.graph, timeline.hardware, timeline.precision)
    received = timeline.graph.match >= 0
    return reals(np.where(received, cost.latency, cost.duration)[timeline.graph.canonical])


def _pack_routes(graph: ExecutionGraph, hw: Hardware) -> dict[str, Any]:
    """The wires that messages went over, and the number of the wire from a sender to a receiver ("0>3")."""
    sends = graph.kind == SEND
    pairs = sorted(set(zip(graph.rank[sends].tolist(), graph.peer[sends].tolist(), strict=True)))
    number: dict[Link, int] = {}
    routes = {f"{src}>{dst}": number.setdefault(hw.link(src, dst), len(number)) for src, dst in pairs}
    return {"links": [_pack_link(link) for link in number], "routes": routes}


def _pack_link(link: Link) -> dict[str, float | None]:
    return {"bandwidth": _rate(link.bandwidth), "latency_s": link.latency_s, "overhead_s": link.overhead_s}


def _rate(figure: float) -> float | None:
    """A rate for JSON, which has no infinity."""
    return None if math.isinf(figure) else figure


def pack_hardware(hw: Hardware, precision: str) -> dict[str, Any]:
    """The figures that cost an event (cost.py), with the peak of one precision. An infinite rate is null."""
    host = hw.host
    return {
        "name": hw.name,
        "peak": hw.gpu.peak("bf16" if precision == "fp8" else precision),
        "fp8": {"peak": hw.gpu.peak("fp8"), "kernels": list(FP8_KERNELS)} if precision == "fp8" else None,
        "memory_bandwidth": _rate(hw.gpu.memory_bandwidth),
        "launch_s": hw.gpu.launch_s,
        "reduce_rate": _rate(hw.gpu.reduce_rate),
        "node_size": hw.node_size,
        "host": {
            "alpha": host.link.alpha,
            "bandwidth": _rate(host.link.bandwidth),
            "memory_bandwidth": _rate(host.memory_bandwidth),
        },
        "links": [_pack_link(hw.intra), _pack_link(hw.inter)],
    }
