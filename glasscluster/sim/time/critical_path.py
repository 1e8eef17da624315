"""The critical path: a chain of events, each of which had to wait for the one before, and which
together span the makespan.

The report page has a copy, visualize/templates/critical_path.js, which the tests hold equal to this file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from glasscluster.sim.time.timeline import Timeline


def latest(timeline: Timeline, rows: np.ndarray) -> int:
    """Return the row among these that ends last (the first of several in canonical order), or -1 if there is
    none.
    """
    if not len(rows):
        return -1
    ends = timeline.end[rows]
    ties = rows[ends == ends.max()]
    return int(ties[np.argmin(timeline.graph.place[ties])])


def critical_path(timeline: Timeline) -> list[int]:
    """The events that determine the makespan: each could start only when the one before it had ended.

    The walk goes backwards from the event that ends last. Among what an event depends on, it goes to the one
    that ended last; if that ended before the event started, the event waited for a message, and the path goes
    on at its sender.

    Returns:
        Row numbers of `timeline.graph`, first to last.
    """
    graph = timeline.graph
    if not len(graph):
        return []
    row, path = latest(timeline, np.arange(len(graph))), []
    while True:
        path.append(row)
        if timeline.start[row] <= 0:
            break
        best = latest(timeline, timeline.dependencies(row))
        if graph.match[row] >= 0 and (best < 0 or timeline.end[best] < timeline.start[row]):
            best = int(graph.match[row])
        if best < 0:
            break
        row = best
    return path[::-1]
