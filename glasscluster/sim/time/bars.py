"""Bars: events joined into the rectangles of a timeline. Every figure of a timeline is drawn from them.

The report page has its own copy, visualize/templates/bars.js, which the tests hold equal to this file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from glasscluster.sim.recording.events import COLLECTIVE, HOST, SEND
from glasscluster.sim.recording.graph import compute_rows

if TYPE_CHECKING:
    from glasscluster.sim.time.timeline import Timeline

JOINED_S = 1e-12  # two computing events this close (seconds) have no gap between them


def blocks(timeline: Timeline) -> list[dict[str, Any]]:
    """Join compute events into blocks: one for each (phase, micro-batch) without a gap inside, in order of
    rank and time.
    """
    graph, start, end = timeline.graph, timeline.start, timeline.end
    on_path = set(timeline.critical_path)
    bars: list[dict[str, Any]] = []
    for rank in range(graph.ranks):
        current: dict[str, Any] | None = None
        for row in compute_rows(graph, rank).tolist():
            if end[row] <= start[row]:
                continue
            key = (int(graph.phase[row]), int(graph.micro_batch[row]))
            if current and current["key"] == key and start[row] - current["end"] <= JOINED_S:
                current["end"] = float(end[row])
                current["events"] += 1
                current["flops"] += int(graph.flops[row])
            else:
                current = {
                    "rank": rank,
                    "key": key,
                    "phase": key[0],
                    "micro_batch": key[1],
                    "start": float(start[row]),
                    "end": float(end[row]),
                    "events": 1,
                    "flops": int(graph.flops[row]),
                    "critical": False,
                }
                bars.append(current)
            current["critical"] |= row in on_path
    return bars


def communications(timeline: Timeline) -> list[dict[str, Any]]:
    """Return whole collectives, messages between two ranks, and the host's work.

    Each says when it was launched and when it began, which is when every rank that takes part had come to it.
    """
    graph, end = timeline.graph, timeline.end
    on_path = set(timeline.critical_path)
    whole = (graph.kind == COLLECTIVE) | ((graph.kind == SEND) & (graph.sequence < 0)) | (graph.kind == HOST)
    steps = [row for row in on_path if graph.sequence[row] >= 0]  # events inside collectives
    path_works = {(int(graph.rank[row]), int(graph.group[row]), int(graph.sequence[row])) for row in steps}
    last_end: dict[tuple[int, int], float] = {}  # collectives of one communicator run one after the other
    bars = []
    for row in np.flatnonzero(whole).tolist():
        rank, group, sequence = int(graph.rank[row]), int(graph.group[row]), int(graph.sequence[row])
        launched = begun = float(timeline.start[row])
        if graph.kind[row] == COLLECTIVE:
            launched = float(timeline.start[timeline.launch(row)])
            begun = max(timeline.under_way(row), last_end.get((rank, group), 0.0))
            last_end[rank, group] = float(end[row])
        bars.append(
            {
                "rank": rank,
                "row": row,
                "launched": launched,
                "start": begun,
                "end": float(end[row]),
                "op": graph.names[graph.op[row]],
                "axis": graph.axis_of(rank, group),
                "bytes": int(graph.bytes[row]),
                "peer": int(graph.peer[row]),
                "collective": graph.kind[row] == COLLECTIVE,
                "kind": {COLLECTIVE: "collective", HOST: "host"}.get(int(graph.kind[row]), "p2p"),
                "label": graph.names[graph.label[row]],
                "critical": row in on_path or (sequence >= 0 and (rank, group, sequence) in path_works),
            }
        )
    return bars
