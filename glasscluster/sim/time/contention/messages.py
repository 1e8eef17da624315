"""Which rows of an execution graph send messages, and which wait for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from glasscluster.sim.recording.events import SEND
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.time.distinct import distinct


@dataclass
class Messages:
    """The messages of a graph, numbered in the order of the rows that send them; the same on any hardware."""

    rows: np.ndarray  # message -> the row that sends it
    sent_by: np.ndarray  # row -> the message that it sends, -1: none
    awaited_by: np.ndarray  # row -> the message that it waits for, -1: none
    sending_lanes: int  # how many lanes send at least one message


def messages_of(graph: ExecutionGraph) -> Messages:
    """The messages of a graph. They are computed once and cached on the graph."""
    cached: Messages | None = graph.__dict__.get("_messages")
    if cached is not None and len(cached.rows) == np.count_nonzero(graph.kind == SEND):
        return cached
    rows = np.flatnonzero(graph.kind == SEND)
    sent_by = np.full(len(graph), -1, dtype=np.int32)
    awaited_by = np.full(len(graph), -1, dtype=np.int32)
    sent_by[rows] = np.arange(len(rows))
    receives = np.flatnonzero(graph.match >= 0)
    awaited_by[receives] = sent_by[graph.match[receives]]
    lanes = int(graph.lane.max(initial=0)) + 1
    senders, _ = distinct(graph.rank[rows] * lanes + graph.lane[rows], graph.ranks * lanes)
    graph.__dict__["_messages"] = messages = Messages(rows, sent_by, awaited_by, len(senders))
    return messages
