"""What the links carried: bytes and utilisation of every link, over the whole run or over slices of time.

After a replay with contention this follows from the history of rates. Otherwise each message is taken to move
evenly from the end of its overhead until its lane is free; then a link may carry more than its bandwidth
allows, which shows as a utilisation above 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from glasscluster.sim.recording.events import SEND
from glasscluster.sim.time.contention import Routes, routes_of
from glasscluster.sim.time.distinct import distinct
from glasscluster.sim.time.network import Topology, of_hardware

if TYPE_CHECKING:
    from glasscluster.sim.recording.graph import ExecutionGraph
    from glasscluster.sim.time.timeline import Timeline


@dataclass
class Flows:
    """Intervals in which a message moved at one rate: on `segment` (see Routes), from `start` to `end`, at
    `rate` bytes/s.
    """

    message: np.ndarray
    segment: np.ndarray
    start: np.ndarray
    end: np.ndarray
    rate: np.ndarray
    routes: Routes


def network_of(timeline: Timeline) -> Topology:
    """Return the topology that a timeline's messages moved over: the hardware's own, or one made of its nodes
    and network ports.
    """
    return timeline.hardware.topology or of_hardware(timeline.hardware, timeline.graph.ranks)


def flows_of(timeline: Timeline) -> Flows:
    """Return the intervals in which every message moved, with its rates."""
    shared = timeline.shared
    if shared is not None:
        history = shared.history
        by_message = np.lexsort((np.arange(len(history.time)), history.segment, history.message))
        time, message, segment, rate = (column[by_message] for column in history)
        # each entry lasts until the next one of the same message and segment; the last one has rate 0
        at = np.flatnonzero(rate > 0)
        return Flows(message[at], segment[at], time[at], time[at + 1], rate[at], shared.routes)
    graph, routes = timeline.graph, routes_of(timeline.graph, network_of(timeline))
    rows = np.flatnonzero(graph.kind == SEND)
    count = np.diff(routes.segment_ptr)[routes.of_message]
    message = np.repeat(np.arange(len(rows)), count)
    first = np.cumsum(count) - count
    segment = routes.segment_ptr[routes.of_message][message] + np.arange(len(message)) - first[message]
    begin = np.minimum(timeline.start[rows] + routes.overhead[routes.of_message], timeline.end[rows])
    seconds = timeline.end[rows] - begin
    rate = np.divide(graph.bytes[rows], seconds, out=np.zeros(len(rows)), where=seconds > 0)
    return Flows(message, segment, begin[message], timeline.end[rows][message], rate[message], routes)


def carried_bytes(timeline: Timeline) -> np.ndarray:
    """Return the bytes that each link of `network_of(timeline)` carried: the sum of rates times seconds."""
    flows, network = flows_of(timeline), network_of(timeline)
    return _onto_links(flows, flows.rate * (flows.end - flows.start), len(network.links))


def routed_bytes(graph: ExecutionGraph, topology: Topology) -> np.ndarray:
    """Return the bytes that each link carried according to the routes alone: each message counts on every
    link of its route.
    """
    routes = routes_of(graph, topology)
    each = np.bincount(routes.of_message, graph.bytes[graph.kind == SEND], minlength=len(routes.overhead))
    by_segment = np.repeat(each, np.diff(routes.segment_ptr))
    by_link = np.repeat(by_segment, np.diff(routes.link_ptr))
    return np.bincount(routes.links, by_link, minlength=len(topology.links))


def utilisation(timeline: Timeline, edges: np.ndarray) -> np.ndarray:
    """Return the share of each link's bandwidth that was used between neighbouring `edges` (seconds),
    [slices, links].
    """
    flows, network = flows_of(timeline), network_of(timeline)
    used = np.zeros((len(edges) - 1, len(network.links)))
    for i, (a, b) in enumerate(pairwise(edges)):
        inside = np.clip(flows.end, a, b) - np.clip(flows.start, a, b)
        used[i] = _onto_links(flows, flows.rate * inside, len(network.links)) / (network.bandwidth * (b - a))
    return used


def _onto_links(flows: Flows, amount: np.ndarray, links: int) -> np.ndarray:
    """Add an amount of each flow to every link of its segment."""
    by_segment = np.bincount(flows.segment, amount, minlength=len(flows.routes.link_ptr) - 1)
    by_link = np.repeat(by_segment, np.diff(flows.routes.link_ptr))
    return np.bincount(flows.routes.links, by_link, minlength=links)


def is_shared(graph: ExecutionGraph, topology: Topology) -> bool:
    """Whether some link lies on the routes of messages from two different ranks."""
    sends = graph.kind == SEND
    pairs, _ = distinct(graph.rank[sends] * graph.ranks + graph.peer[sends], graph.ranks**2)
    owner: dict[int, int] = {}
    for src, dst in (divmod(pair, graph.ranks) for pair in pairs.tolist()):
        for link in topology.route(src, dst):
            if owner.setdefault(link, src) != src:
                return True
    return False
