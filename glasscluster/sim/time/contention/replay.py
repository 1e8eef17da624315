"""Time a graph over shared links: make the tables, run the compiled event loop, return the times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.time.contention import event_loop
from glasscluster.sim.time.contention.history import RateHistory, grow, make_history
from glasscluster.sim.time.contention.routes import Routes, routes_of
from glasscluster.sim.time.contention.tables import (
    Network,
    Program,
    make_counters,
    make_times,
    make_traffic,
    make_waiting_rows,
)
from glasscluster.sim.time.network import Topology


@dataclass
class ContendedReplay:
    """When every row starts and ends and every message arrives, in seconds, and the rates on the way."""

    start: np.ndarray  # of a row
    end: np.ndarray  # of a row; for a row that sends a message, when its lane is free again
    arrival: np.ndarray  # of a message, at its receiver
    rows: np.ndarray  # message -> the row that sends it
    routes: Routes
    history: RateHistory  # empty where it was not recorded


def replay_shared(
    graph: ExecutionGraph,
    topology: Topology,
    duration: np.ndarray,
    speedup: np.ndarray | None = None,
    dependencies: tuple[np.ndarray, np.ndarray, np.ndarray | None] | None = None,
    history: bool = True,
) -> ContendedReplay:
    """Time a graph whose messages share the links of a topology.

    Args:
        graph: the recorded run.
        topology: the network, with at least as many GPUs as the graph has ranks.
        duration: seconds of every row that is no message.
        speedup: of every row, what divides the bytes, overhead and latency of its message (what-if); None: 1.
        dependencies: (dep_ptr, dep_idx, order) in place of the graph's own. The order is not used.
        history: whether to record the history of rates.

    Raises:
        InputError: the topology has too few GPUs, or no route for a message.
        AssertionError: the dependencies have a cycle.
    """
    routes = routes_of(graph, topology)
    messages = routes.messages
    dep_ptr, dep_idx, _ = dependencies or (graph.dep_ptr, graph.dep_idx, None)
    program = Program(
        dep_ptr,
        dep_idx,
        duration,
        graph.bytes,
        np.empty(0) if speedup is None else speedup,
        messages.sent_by,
        messages.awaited_by,
        messages.rows,
    )
    network = Network(
        routes.of_message,
        routes.segment_ptr,
        routes.link_ptr,
        routes.links,
        routes.latency,
        routes.overhead,
    )
    # A lane sends one message at a time. Where links store and forward, earlier ones may be on later
    # segments.
    at_once = len(messages.rows) if topology.forwards_whole.any() else messages.sending_lanes
    traffic = make_traffic(topology.bandwidth, max(1, at_once), routes.longest_segment)
    times, waiting = make_times(len(graph), len(messages.rows)), make_waiting_rows(len(graph))
    # Each message enters and leaves every segment once. Rates change in between as well: the history may
    # grow.
    rates = make_history(2 * (routes.total_segments + at_once) if history else 0)
    counters = make_counters(max(1, at_once))
    while not event_loop.run(program, network, times, waiting, traffic, rates, history, counters):
        rates = grow(rates, 2 * len(traffic.transfers))
    if len(graph) and times.end.min() < 0:
        raise AssertionError("the recorded events depend on each other in a cycle")
    recorded = RateHistory(*(column[: counters["history"][0]] for column in rates))
    return ContendedReplay(times.start, times.end, times.arrival, messages.rows, routes, recorded)
