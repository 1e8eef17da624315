"""The links that every message of a graph passes, as arrays.

A route is a list of segments, and a segment is a list of links. A message is on all links of a segment at
once (it cuts through the switches between them). After a link that stores and forwards, a new segment begins:
the message must have passed the one segment as a whole before it enters the next. Most routes are one
segment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from glasscluster.base.errors import InputError
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.time.contention.messages import Messages, messages_of
from glasscluster.sim.time.distinct import distinct
from glasscluster.sim.time.network import Topology


@dataclass
class Routes:
    """The routes of a graph's messages. What belongs to number i stands from `x_ptr[i]` to `x_ptr[i + 1]`."""

    of_message: np.ndarray  # message -> its route
    segment_ptr: np.ndarray  # route -> its segments
    link_ptr: np.ndarray  # segment -> its links
    links: np.ndarray  # the topology's numbers of the links, segment after segment
    latency: np.ndarray  # of a segment, seconds in flight
    overhead: np.ndarray  # of a route, seconds on the sender's port before the first byte moves
    messages: Messages
    total_segments: int  # summed over all messages
    longest_segment: int  # in links


def routes_of(graph: ExecutionGraph, topology: Topology) -> Routes:
    """The routes of all messages of a graph; every pair of sender and receiver has one.

    The routes on the topology that was used last are cached on the graph. Raises InputError when the
    topology has fewer GPUs than the graph has ranks, or no route for one of the pairs.
    """
    messages, cached = messages_of(graph), graph.__dict__.get("_routes")
    if cached is not None and cached[0] is topology and cached[1].messages is messages:
        routes: Routes = cached[1]
        return routes
    if graph.ranks > len(topology.place):
        rule = f"has {len(topology.place)} GPUs, the run {graph.ranks} ranks"
        raise InputError("topology", topology.name, rule)
    rows = messages.rows
    pairs, of_message = distinct(graph.rank[rows] * graph.ranks + graph.peer[rows], graph.ranks**2)
    routes = _routes_of_pairs(
        [divmod(pair, graph.ranks) for pair in pairs.tolist()],
        of_message,
        topology,
        messages,
    )
    graph.__dict__["_routes"] = (topology, routes)
    return routes


def _routes_of_pairs(
    pairs: list[tuple[int, int]],
    of_message: np.ndarray,
    topology: Topology,
    messages: Messages,
) -> Routes:
    """One route for every pair (sender, receiver)."""
    segment_ptr, link_ptr, links, latency, overhead = [0], [0], [], [], []
    for sender, receiver in pairs:
        segments = topology.segments(sender, receiver)
        for segment in segments:
            links += segment
            link_ptr.append(len(links))
            latency.append(topology.latency_s[segment].sum())
        segment_ptr.append(len(link_ptr) - 1)
        overhead.append(topology.overhead_s[segments[0][0]] if segments else 0.0)
    ptr = np.array(segment_ptr, dtype=np.int64)
    return Routes(
        of_message,
        ptr,
        np.array(link_ptr, dtype=np.int64),
        np.array(links, dtype=np.int64),
        np.array(latency, dtype=np.float64),
        np.array(overhead, dtype=np.float64),
        messages,
        int(np.diff(ptr)[of_message].sum()),
        int(np.diff(link_ptr).max(initial=1)),
    )
