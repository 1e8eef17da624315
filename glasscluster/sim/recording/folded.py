"""A folded graph: one rank of each role stands for all ranks that do the same.

Ranks are alike when shifts (shifts.py) bring them onto each other: the same rows, each message to the
peer that the shift makes of the other's, over a wire of the same kind. Then, by induction over the rows in
the order in which they start, all ranks of a role begin and end each row at the same moment: a row starts
when what it follows has ended (the same rows of its own rank), and a receive when its message has arrived,
which a rank of the same role sent with the same row. So it is enough to time the representatives:

    8 ranks in a ring, one role              the folded graph has rank 0 alone

        0 ─► 1 ─► 2 ─► ... ─► 7 ─► 0             0 ─► 0     its receive waits for its own send,
                                                            the copy of what rank 7 sends

The folded graph is an ordinary graph of as many ranks as there are roles; `fold` says who they really are and
whom their messages really go to, since that decides over which wire. It cannot have a cycle, because a walk
round it would be one without an end in the whole graph.
But: messages that share links are not folded. Which of them meet on a link is no matter of roles alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from glasscluster.sim.recording.events import FIELDS, RECV, SEND
from glasscluster.sim.recording.fold import Fold
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.recording.shifts import Shifts

PEER, TAG, KIND = (FIELDS.index(name) for name in ("peer", "tag", "kind"))


def fold(recordings: Sequence[dict[str, Any]], shifts: Shifts, info: dict[str, Any]) -> ExecutionGraph:
    """Build the folded graph.

    Args:
        recordings: of the representatives, in the order of their roles, as `Recorder.columns` returns them.
        shifts: under which the ranks are alike. The caller has seen that they are.
        info: what the graph should remember about the run.

    Returns:
        A graph whose rank r is role r, with its `fold`.

    Raises:
        MessageLost: a message of one role is not received by another, so the ranks are not alike.
    """
    roles = [_as_role(recording, role, shifts) for role, recording in enumerate(recordings)]
    whole = {"roles": shifts.roles, "of_ranks": shifts.ranks}
    graph = ExecutionGraph.build(roles, {**info, "folded": whole})
    # the tag tells messages of a pair of roles apart, which go to different ranks of the role
    graph.tag, shift = np.divmod(graph.tag, shifts.each)
    received = graph.kind == RECV
    shift[received] = shifts.inverse(shift[received])
    of_role = shifts.representatives
    message = received | (graph.kind == SEND)
    peer = np.where(message, shifts.moved(of_role[np.maximum(graph.peer, 0)], shift), -1)
    graph.fold = Fold(shifts, of_role[graph.rank], peer)
    return graph


def _as_role(recording: dict[str, Any], role: int, shifts: Shifts) -> dict[str, Any]:
    """A representative's recording with roles in the place of ranks.

    A message to `rank` is one to its role, and the tag says also by which shift `rank` is reached from the
    representative. The receiver's side: who receives from `rank` is, from there, reached by the inverse.
    """
    table = recording["table"].copy()
    messages = np.flatnonzero(table[:, PEER] >= 0)
    peer = table[messages, PEER]
    shift = shifts.shift_to(peer)
    received = table[messages, KIND] == RECV
    shift[received] = shifts.inverse(shift[received])
    table[messages, PEER] = shifts.role(peer)
    table[:, TAG] *= shifts.each
    table[messages, TAG] += shift
    groups = {number: (axis, range(shifts.roles)) for number, (axis, _) in recording["groups"].items()}
    return {**recording, "rank": role, "table": table, "groups": groups}
