"""Builds a graph that is folded by roles (roles.py has what that is), from a recording of each program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from glasscluster.base.errors import MessageLost
from glasscluster.sim.recording.cuts import Partition
from glasscluster.sim.recording.events import FIELDS, LANES_PER_GROUP, RECV
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.recording.relative import KIND, LANE, PEER, NotAlike, Partitions, Relative
from glasscluster.sim.recording.roles import Roles, representatives

TAG, ORDER = FIELDS.index("tag"), FIELDS.index("order")


def fold_roles(
    programs: Sequence[Relative],
    program: np.ndarray,
    role: np.ndarray,
    partitions: Partitions,
    info: dict[str, Any],
) -> ExecutionGraph:
    """Build the folded graph.

    Args:
        programs: a recording of each program.
        program: of every rank, the number of its program, [gpus].
        role: of every rank, its role, numbered by their lowest ranks, [gpus].
        partitions: of all cuts of the mesh.
        info: what the graph should remember about the run.

    Raises:
        NotAlike: a message or a collective of one role has no counterpart in another, so they are not roles.
    """
    first = representatives(role)
    of_role = [programs[number] for number in program[first].tolist()]
    groups = tuple({number: partitions[cut] for number, cut in r.cuts.items()} for r in of_role)
    whom = [_peers(r, rank, own) for r, rank, own in zip(of_role, first.tolist(), groups, strict=True)]
    each = range(len(first))
    recordings = [_as_role(of_role[i], i, whom[i], role, _members(groups[i], int(first[i]))) for i in each]
    try:
        stands = {"roles": len(first), "of_ranks": len(role)}
        graph = ExecutionGraph.build(recordings, {**info, "folded": stands})
    except (MessageLost, KeyError) as problem:
        raise NotAlike(f"what ranks of one role do has no counterpart: {problem}") from None
    tables = [r.recording["table"] for r in of_role]
    numbers = np.repeat(each, [len(table) for table in tables])
    whole = np.concatenate(tables)
    rows = np.lexsort((whole[:, ORDER], whole[:, LANE], numbers))  # as `canonical` has them
    peer = np.empty(len(graph), np.int64)
    peer[graph.canonical], graph.tag[graph.canonical] = np.concatenate(whom)[rows], whole[rows, TAG]
    graph.roles = Roles(role, tuple(r.partners for r in of_role), groups, first[graph.rank], peer)
    return graph


def _peers(recorded: Relative, rank: int, groups: dict[int, Partition]) -> np.ndarray:
    """To whom the messages of a recording go when they are those of `rank`; -1: no message, [rows]."""
    peer = np.full(len(recorded.shift), -1)
    of = (recorded.recording["table"][:, LANE] - 1) // LANES_PER_GROUP
    for group, shift in recorded.partners.messages:
        chosen = (of == group) & (recorded.shift == shift)
        peer[chosen] = groups[group].shifted(np.array([rank]), shift)
    return peer


def _members(groups: dict[int, Partition], rank: int) -> dict[int, np.ndarray]:
    return {number: np.array(partition.ranks_with(rank), np.int64) for number, partition in groups.items()}


def _as_role(
    recorded: Relative, number: int, peer: np.ndarray, role: np.ndarray, members: dict[int, np.ndarray]
) -> dict[str, Any]:
    """A recording with roles in the place of ranks.

    A message goes to a role. The tag says also how many places further its receiver is, since messages of
    one tag to two ranks of a role are no one's double.
    """
    recording, table = recorded.recording, recorded.recording["table"].copy()
    messages = np.flatnonzero(peer >= 0)
    of = (table[messages, LANE] - 1) // LANES_PER_GROUP
    size = np.ones(len(messages), np.int64)
    for group, ranks in members.items():
        size[of == group] = len(ranks)
    shift = recorded.shift[messages]
    shift = np.where(table[messages, KIND] == RECV, -shift % size, shift)
    table[messages, PEER] = role[peer[messages]]
    table[messages, TAG] = table[messages, TAG] * len(role) + shift
    groups = {n: (recording["groups"][n][0], role[ranks].tolist()) for n, ranks in members.items()}
    alone = {n: (axis, [number]) for n, (axis, ranks) in recording["groups"].items() if len(ranks) == 1}
    groups = alone | groups  # the host is no part of the mesh
    return {**recording, "rank": number, "table": table, "groups": groups}
