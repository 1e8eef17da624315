"""`glass collective`: one collective on some wires, recorded dry, timed and counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from glasscluster.sim.cluster import Cluster, Run
from glasscluster.sim.collectives import ALGORITHMS, MODULES
from glasscluster.sim.cost import costs
from glasscluster.sim.errors import ScenarioError
from glasscluster.sim.hardware import Hardware, Link, hardware
from glasscluster.sim.quantities import parse_rate, parse_size, parse_time
from glasscluster.sim.vocabulary import SEND

OPERATIONS = tuple(o.replace("_", "-") for o in ALGORITHMS)
TOPOLOGIES = ("fully-connected",)  # those that share links come with contention
SWEEP_STEP = 4

# what nccl-tests multiplies S/t by, so that a bandwidth-optimal algorithm shows the wire's own rate
BUS_FACTOR = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "all_to_all": lambda n: (n - 1) / n,
    "scatter": lambda n: (n - 1) / n,
    "gather": lambda n: (n - 1) / n,
    "broadcast": lambda n: 1.0,
    "reduce": lambda n: 1.0,
}


def one_collective(gpu: Any, operation: str, algorithm: str, nbytes: int, options: dict[str, Any]) -> None:
    """The program: a buffer of `nbytes` single bytes on every rank."""
    import torch

    x = torch.empty(nbytes, dtype=torch.uint8, device=gpu.comm.wire.device)
    if operation == "all_to_all":
        out = torch.empty(gpu.size * gpu.comm.chunk(x).numel(), dtype=torch.uint8, device=x.device)
        gpu.comm.all_to_all(x, out, algorithm=algorithm)
    else:
        getattr(gpu.comm, operation)(x, algorithm=algorithm, **options)


def wires(
    gpus: int, name: str, nodes: int | None, topology: str | None, bandwidth: str | None, latency: str | None, overhead: str = "0s"
) -> Hardware:
    """The hardware that was asked for: a catalogue entry, or one link between every two GPUs."""
    if topology is None:
        if bandwidth or latency:
            raise ScenarioError("bandwidth" if bandwidth else "latency", bandwidth or latency, "belongs to --topology", list(TOPOLOGIES))
        hw = hardware(name)
        if nodes is None:
            return hw
        if nodes < 1 or gpus % nodes:
            raise ScenarioError(
                "nodes", nodes, f"{gpus} GPUs must divide evenly over the nodes", [n for n in range(1, gpus + 1) if gpus % n == 0]
            )
        return replace(hw, node_size=gpus // nodes)
    if topology not in TOPOLOGIES:
        raise ScenarioError("topology", topology, "is not available", list(TOPOLOGIES))
    if not bandwidth or not latency:
        raise ScenarioError("bandwidth" if not bandwidth else "latency", "", "a topology needs --bandwidth and --latency")
    link = Link(topology, parse_rate("bandwidth", bandwidth), parse_time("latency", latency), parse_time("overhead", overhead))
    if link.bandwidth <= 0:
        raise ScenarioError("bandwidth", bandwidth, "must be more than 0")
    return replace(hardware("classroom"), name=topology, intra=link, inter=link, node_size=gpus)


def record(operation: str, algorithm: str, gpus: int, nbytes: int, hw: Hardware, servers: int | None = None) -> Run:
    """The collective as every rank would do it, without data."""
    inner = operation.replace("-", "_")
    if inner not in ALGORITHMS:
        raise ScenarioError("operation", operation, "unknown collective", list(OPERATIONS))
    known = [a for a in ALGORITHMS[inner] if a != "native"]
    if algorithm not in known:
        raise ScenarioError("algorithm", algorithm, f"{operation} has no such algorithm", known)
    if gpus < 2:
        raise ScenarioError("gpus", gpus, "a collective needs at least 2")
    if servers is not None and (algorithm != "parameter-server" or not 1 <= servers <= gpus):
        raise ScenarioError("servers", servers, f"parameter-server takes 1 to {gpus} shards")
    options: dict[str, Any] = {"node_size": hw.node_size} if algorithm == "hierarchical" else {}
    options |= {"servers": servers} if servers is not None else {}
    return Cluster(hw, gpus, "dry", memory_bytes=None).run(one_collective, inner, algorithm, nbytes, options)


def judged(operation: str, algorithm: str, gpus: int, nbytes: int, run: Run) -> dict[str, Any]:
    """Time, bytes, steps, bandwidths and the busiest link of a recorded collective."""
    graph, line = run.graph, run.timeline
    time = line.makespan
    spent = costs(graph, line.hardware, line.precision).duration
    sends = np.flatnonzero(graph.kind == SEND)
    pairs, place = np.unique(graph.rank[sends] * gpus + graph.peer[sends], return_inverse=True)
    busy = np.bincount(place, spent[sends], minlength=len(pairs))
    busiest = int(np.argmax(busy)) if len(pairs) else 0
    link = {"from": "", "to": "", "utilisation_fraction": 0.0}
    if len(pairs) and time:
        src, dst = divmod(int(pairs[busiest]), gpus)
        link = {"from": f"rank {src}", "to": f"rank {dst}", "utilisation_fraction": float(busy[busiest]) / time}
    rate = nbytes / time if time else 0.0
    return {
        "time_s": time,
        "bytes_sent_per_gpu": graph.bytes_sent(),
        "steps": graph.message_chain(),
        "messages": len(sends),
        "algorithm_bandwidth_bytes_per_s": rate,
        "bus_bandwidth_bytes_per_s": rate * BUS_FACTOR[operation.replace("-", "_")](gpus),
        "busiest_link": link,
    }


def collective(
    operation: str, algorithm: str, gpus: int, size: str, hw: Hardware, servers: int | None, sweep: str | None
) -> tuple[dict[str, Any], Run]:
    """The `glass.collective/1` object, and the run of `--size`."""
    nbytes = parse_size("size", size)
    run = record(operation, algorithm, gpus, nbytes, hw, servers)
    content = {
        "schema": "glass.collective/1",
        "operation": operation,
        "algorithm": algorithm,
        "gpus": gpus,
        "size_bytes": nbytes,
        "hardware": hw.name,
    }
    content |= judged(operation, algorithm, gpus, nbytes, run)
    content["predicted_time_s"] = _theory(operation, algorithm, gpus, nbytes, hw, servers)
    if sweep is not None:
        content["sweep"] = [{"size_bytes": s, **_short(operation, algorithm, gpus, s, hw, servers)} for s in _sizes(sweep)]
    return content, run


def _theory(operation: str, algorithm: str, gpus: int, nbytes: int, hw: Hardware, servers: int | None) -> float | None:
    """The closed form, where there is one: equal chunks, additions free, and one kind of link or the hierarchical algorithm."""
    crosses = gpus > hw.node_size
    if nbytes % gpus or hw.gpu.reduce_rate != float("inf") or (crosses and algorithm != "hierarchical"):
        return None
    more: dict[str, Any] = {"between": hw.inter, "node_size": hw.node_size} if algorithm == "hierarchical" else {}
    more |= {"servers": servers} if servers is not None else {}
    return MODULES[algorithm].predict(operation.replace("-", "_"), gpus, nbytes, hw.intra, **more).time_s


def _short(operation: str, algorithm: str, gpus: int, nbytes: int, hw: Hardware, servers: int | None) -> dict[str, float]:
    found = judged(operation, algorithm, gpus, nbytes, record(operation, algorithm, gpus, nbytes, hw, servers))
    return {k: found[k] for k in ("time_s", "algorithm_bandwidth_bytes_per_s", "bus_bandwidth_bytes_per_s")}


def _sizes(text: str) -> list[int]:
    """`1KiB:1GiB` as sizes, each four times the one before."""
    low, separator, high = text.partition(":")
    if not separator:
        raise ScenarioError("sweep", text, "must be LOW:HIGH, such as 1KiB:1GiB")
    first, last = parse_size("sweep", low), parse_size("sweep", high)
    if not 0 < first <= last:
        raise ScenarioError("sweep", text, "LOW must be more than 0 and at most HIGH")
    sizes = [first]
    while sizes[-1] * SWEEP_STEP <= last:
        sizes.append(sizes[-1] * SWEEP_STEP)
    return sizes
