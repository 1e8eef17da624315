"""Replay: an execution graph on some hardware becomes a timeline of virtual seconds.

Without contention this is a longest path over the graph: an event starts when everything it depends on has
ended (a receive: when its message has arrived), and a lane runs one event after the other. Rows are already
sorted, so one pass in a compiled loop is enough. With contention messages share links: sim/time/contention.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from glasscluster.sim.recording.graph import ExecutionGraph, rendezvous_edges
from glasscluster.sim.recording.order import csr, topological_order
from glasscluster.sim.time.alike import check_folded, check_roles
from glasscluster.sim.time.contention import replay_shared
from glasscluster.sim.time.cost import costs
from glasscluster.sim.time.hardware import Hardware, hardware
from glasscluster.sim.time.network import of_hardware
from glasscluster.sim.time.timeline import Timeline


def replay(
    graph: ExecutionGraph,
    hw: str | Hardware,
    *,
    precision: str | None = None,
    slow_ranks: dict[int, float] | None = None,
    faster: dict[str, float] | None = None,
    rendezvous: bool = False,
    contention: bool = False,
) -> Timeline:
    """Time every event of a recording on some hardware.

    Args:
        graph: what the ranks did.
        hw: a name of the catalogue, a path of a profile file, or a `Hardware`.
        precision: whose peak FLOP/s counts: fp64, fp32, bf16, fp16 or fp8; by default that of the recorded
            run.
        slow_ranks: from a rank to the factor by which its compute takes longer: {3: 1.2}.
        faster: from a kind of work to the factor by which it takes less: a phase ({"backward": 2.0}), or the
            axis of a communicator ({"dp": 2.0}).
        rendezvous: a message starts only when its receive is posted; otherwise when it is sent.
        contention: messages share the links of the hardware's topology (of a hardware without one: of its
            nodes and their network ports); otherwise every pair of ranks has a wire of its own.

    Returns:
        A Timeline: start and end of every event, in virtual seconds.

    Raises:
        InputError: for unknown hardware, a precision that the GPU has no peak for, a rank or a kind of work
            that is not in the recording; of a folded graph also for hardware on which its ranks differ.

    Example:
        >>> import torch
        >>> from glasscluster import Cluster, replay
        >>> def program(gpu):
        ...     gpu.comm.all_reduce(torch.ones(1_000_000))
        >>> graph = Cluster("classroom", gpus=4).run(program).graph
        >>> for name in ("classroom", "pcie-a100", "dgx-h100"):
        ...     print(f"{name}: {replay(graph, name).makespan * 1e3:.2f} ms")
        classroom: 0.70 ms
        pcie-a100: 0.24 ms
        dgx-h100: 0.04 ms
    """
    hw = hardware(hw)
    precision = precision or graph.info.get("precision", "fp32")
    if graph.fold is not None:
        check_folded(graph, hw, contention, bool(slow_ranks))
    if graph.roles is not None:
        check_roles(graph, hw, contention, slow_ranks or {})
    cost = costs(graph, hw, precision, slow_ranks, faster, messages=not contention)
    dependencies = rendezvous_dependencies(graph) if rendezvous else (graph.dep_ptr, graph.dep_idx, None)
    shared = None
    if contention:
        topology = hw.topology or of_hardware(hw, graph.ranks)
        shared = replay_shared(graph, topology, cost.duration, cost.speedup, dependencies)
        start, end = shared.start, shared.end
    else:
        start, end = _in_order(graph, cost.duration, cost.latency, *dependencies)
    timeline = Timeline(graph, start, end, hw, precision)
    timeline.shared = shared
    timeline.dep_ptr, timeline.dep_idx, _ = dependencies
    timeline.replay_options = {
        "slow_ranks": slow_ranks or {},
        "faster": faster or {},
        "rendezvous": rendezvous,
        "contention": contention,
    }
    return timeline


@njit(cache=True, nogil=True, boundscheck=False)
def longest_path(dep_ptr, dep_idx, match, duration, latency):
    """Start and end of every event in seconds; rows must be topologically sorted.

    All arrays have one entry a row.
    """
    n = duration.shape[0]
    start, end = np.empty(n), np.empty(n)
    first = dep_ptr[0]
    for i in range(n):
        last = dep_ptr[i + 1]
        t = 0.0
        for k in range(first, last):
            e = end[dep_idx[k]]
            if e > t:
                t = e
        m = match[i]
        if m >= 0:
            arrival = end[m] + latency[i]
            if arrival > t:
                t = arrival
        start[i] = t
        end[i] = t + duration[i]
        first = last
    return start, end


def rendezvous_dependencies(graph: ExecutionGraph) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A graph's dependencies where a send also waits until its receive is posted.

    Returns:
        `dep_ptr`, `dep_idx` as the graph has them, with the edges of `rendezvous_edges`; and an order of the
        rows in which each comes after all that it waits for.
    """
    n = len(graph)
    source, target = rendezvous_edges(graph)
    received = np.flatnonzero(graph.match >= 0)
    order = topological_order(
        n, np.concatenate([source, graph.match[received]]), np.concatenate([target, received]), np.arange(n)
    )
    return *csr(n, source, target), order


def _in_order(
    graph: ExecutionGraph,
    duration: np.ndarray,
    latency: np.ndarray,
    dep_ptr: np.ndarray,
    dep_idx: np.ndarray,
    order: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of every event; `order` is one in which the rows can be timed, None: as they stand."""
    if order is None:
        return longest_path(dep_ptr, dep_idx, graph.match, duration, latency)
    n, place = len(graph), np.empty_like(order)
    place[order] = np.arange(n)
    pointer, index = csr(n, place[dep_idx], place[np.repeat(np.arange(n), np.diff(dep_ptr))])
    match = np.where(graph.match[order] >= 0, place[graph.match[order]], -1)
    start, end = longest_path(pointer, index, match, duration[order], latency[order])
    return start[place], end[place]
