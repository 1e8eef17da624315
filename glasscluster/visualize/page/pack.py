"""What the page needs beside a packed graph (sim/recording/packed.py) to make a timeline's times itself."""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import Any

import numpy as np

from glasscluster.sim.recording.events import COLLECTIVE
from glasscluster.sim.time.cost import FP8_KERNELS, native_cost
from glasscluster.sim.time.hardware import Hardware
from glasscluster.sim.time.timeline import Timeline


def pack_timeline(timeline: Timeline) -> dict[str, Any]:
    """Its hardware, and how it was replayed: from these the page makes its times.

    What only Python can cost is given: a library's collectives (seconds of latency, seconds of moving bytes), and, where
    messages shared links, how long each held its lane and how long it was in flight.
    """
    graph, packed, asked = timeline.graph, pack_hardware(timeline.hardware, timeline.precision), timeline.asked
    slow = {str(r): f for r, f in asked.get("slow_ranks", {}).items()}
    packed |= {"slow": slow, "faster": asked.get("faster", {})}
    whole = [r for r in graph.canonical.tolist() if graph.kind[r] == COLLECTIVE and graph.names[graph.op[r]].endswith("/native")]
    if whole:
        packed["native"] = [_reals(column) for column in zip(*(native_cost(graph, r, timeline.hardware) for r in whole), strict=True)]
    if timeline.shared is not None:
        seconds = timeline.end - timeline.start
        received = np.flatnonzero(graph.match >= 0)
        arrival = np.zeros(len(graph))
        arrival[timeline.shared.rows] = timeline.shared.arrival
        seconds[received] = arrival[graph.match[received]] - timeline.end[graph.match[received]]  # of a receive: in flight
        packed["shared"] = _reals(seconds[graph.canonical])
    return packed


def _reals(values: Any) -> str:
    """Numbers as base64 of little-endian float64."""
    return base64.b64encode(np.asarray(values, dtype="<f8").tobytes()).decode()


def pack_hardware(hw: Hardware, precision: str) -> dict[str, Any]:
    """The figures that cost an event (cost.py), with the peak of one precision. An infinite rate is null."""
    rate = hw.gpu.reduce_rate
    return {
        "name": hw.name,
        "peak": hw.gpu.peak("bf16" if precision == "fp8" else precision),
        "fp8": {"peak": hw.gpu.peak("fp8"), "kernels": list(FP8_KERNELS)} if precision == "fp8" else None,
        "memory_bandwidth": hw.gpu.memory_bandwidth,
        "launch_s": hw.gpu.launch_s,
        "reduce_rate": None if rate == float("inf") else rate,
        "node_size": hw.node_size,
        "host": {"alpha": hw.host.link.alpha, "bandwidth": hw.host.link.bandwidth, "memory_bandwidth": hw.host.memory_bandwidth},
        "links": [{k: v for k, v in asdict(x).items() if k in ("bandwidth", "latency_s", "overhead_s")} for x in (hw.intra, hw.inter)],
    }
