"""Whether a graph that came from a file can be one: every number in it points to something that is there.

A file can say anything, and replay follows its numbers in compiled loops that do not look where they go: a
row that follows one that stands behind it, a receive whose send is row 10^12, an operator without a name.
`check` looks once, column by column, before anybody follows them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from glasscluster.sim.recording.events import (
    BEGIN,
    CATEGORIES,
    COLLECTIVE,
    COLUMNS,
    COMPUTE,
    HOST,
    KINDS,
    LANES_PER_GROUP,
    PHASES,
    PURPOSES,
    RECV,
    REDUCE,
    SEND,
)
from glasscluster.sim.recording.memory_log import TABLES

if TYPE_CHECKING:
    from glasscluster.sim.recording.graph import ExecutionGraph

MOST_RANKS = 1 << 20
LARGEST = 1 << 60  # FLOPs or bytes of one event
# What stands in a communicator's lanes, by `events.group_lane`; compute stands in lane 0, work of the host in
# any lane of a communicator.
IN_LANES = ((REDUCE, COLLECTIVE), (SEND,), (RECV,), (BEGIN,), (SEND,), (RECV,))
OF_COLLECTIVES = 3  # the first so many lanes: what stands there belongs to a collective, which was launched
NUMBERS = ("model_flops", "causal_flops", "tokens")  # of `info`, that replay computes with


class Unsound(ValueError):
    """What is wrong with a graph, in words."""


def check(graph: ExecutionGraph) -> None:
    """Raise `Unsound` for the first column that cannot be."""
    if not isinstance(graph.ranks, int) or not 1 <= graph.ranks <= MOST_RANKS:
        raise Unsound(f"it has {graph.ranks!r} ranks")
    if not all(isinstance(name, str) for name in graph.names):
        raise Unsound("a name is no text")
    if not isinstance(graph.info, dict):
        raise Unsound("info is no object")
    _info(graph)
    n = len(graph.rank)
    for name in (*COLUMNS, "match", "dep_ptr", "dep_idx"):
        column = getattr(graph, name)
        if column.ndim != 1 or column.dtype.kind not in "iu":
            raise Unsound(f"column {name} is no list of whole numbers")
        if name in COLUMNS or name == "match":
            _equal(f"the length of column {name}", len(column), n)
    _columns(graph)
    _kinds(graph)
    _edges(graph)
    _lanes(graph)
    _groups(graph)
    _launched(graph)
    _memory(graph)


def _equal(what: str, value: int, right: int) -> None:
    if value != right:
        raise Unsound(f"{what} is {value}, not {right}")


def _within(name: str, column: np.ndarray, low: int, high: int) -> None:
    """Every number of a column lies from `low` to below `high`."""
    wrong = np.flatnonzero((column < low) | (column >= high))
    if len(wrong):
        row = int(wrong[0])
        raise Unsound(f"{name} of event {row} is {int(column[row])}; it lies from {low} to {high - 1}")


def _columns(graph: ExecutionGraph) -> None:
    limits = {
        "rank": (0, graph.ranks),
        "lane": (0, 1 << 40),
        "order": (0, 1 << 40),
        "kind": (0, len(KINDS)),
        "phase": (0, len(PHASES)),
        "layer": (-1, 1 << 31),
        "micro_batch": (-1, 1 << 31),
        "op": (0, max(1, len(graph.names))),
        "label": (-1, max(1, len(graph.names))),
        "flops": (0, LARGEST),
        "bytes": (0, LARGEST),
        "peer": (-1, graph.ranks),
        "purpose": (0, len(PURPOSES)),
    }
    for name, (low, high) in limits.items():
        _within(name, getattr(graph, name), low, high)
    messages = (graph.kind == SEND) | (graph.kind == RECV)
    if (graph.peer[messages] < 0).any():
        raise Unsound("a message has no peer")


def _info(graph: ExecutionGraph) -> None:
    """What a graph says of its job, as far as it is computed with."""
    for name in NUMBERS:
        value = graph.info.get(name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and 0 <= value < math.inf):
            raise Unsound(f"info says {name} = {str(value)[:40]!r}, which is no amount")
    needed, dense = (float(graph.info.get(name) or 0) for name in ("causal_flops", "model_flops"))
    if needed > dense:
        rule = "a mask hides pairs of tokens, and adds none"
        raise Unsound(f"info says model_flops = {dense:g} and causal_flops = {needed:g}; {rule}")


def _kinds(graph: ExecutionGraph) -> None:
    """FLOPs take time where they are computed, and only there: elsewhere they would be done for nothing. And
    a lane holds what its place is for.
    """
    free = np.flatnonzero((graph.flops > 0) & (graph.kind != COMPUTE))
    if len(free):
        row = int(free[0])
        raise Unsound(
            f"event {row} has {int(graph.flops[row]):,} FLOPs and is a {KINDS[graph.kind[row]]}, no compute"
        )
    allowed = np.zeros((LANES_PER_GROUP, len(KINDS)), bool)
    allowed[:, HOST] = True
    for which, kinds in enumerate(IN_LANES):
        allowed[which, list(kinds)] = True
    fits = allowed[(graph.lane - 1) % LANES_PER_GROUP, graph.kind]
    fits = np.where(graph.lane == 0, graph.kind == COMPUTE, fits)
    if not fits.all():
        row = int(np.flatnonzero(~fits)[0])
        kind, lane = KINDS[graph.kind[row]], int(graph.lane[row])
        raise Unsound(f"event {row} is a {kind} in lane {lane}, which is for others")


def _launched(graph: ExecutionGraph) -> None:
    """Whatever belongs to a collective has its launch, on the same rank and communicator."""
    which = (graph.lane - 1) % LANES_PER_GROUP
    inside = (graph.lane > 0) & (graph.kind != HOST) & (which < OF_COLLECTIVES)
    group = (graph.lane - 1) // LANES_PER_GROUP
    keys = np.stack([graph.rank, group, graph.sequence])
    begun = {*map(tuple, keys[:, graph.kind == BEGIN].T.tolist())}
    for rank, number, sequence in {*map(tuple, keys[:, inside].T.tolist())} - begun:
        raise Unsound(f"rank {rank} never launched collective {sequence} of communicator {number}")


def _edges(graph: ExecutionGraph) -> None:
    """Every event follows events that stand before it, and every receive has its own send, of its size."""
    n = len(graph.rank)
    _equal("the length of column dep_ptr", len(graph.dep_ptr), n + 1)
    if graph.dep_ptr[0] != 0 or (np.diff(graph.dep_ptr) < 0).any():
        raise Unsound("dep_ptr does not rise from 0")
    _equal("the end of dep_ptr", int(graph.dep_ptr[-1]), len(graph.dep_idx))
    _within("dep_idx", graph.dep_idx, 0, max(n, 1))
    follower = np.repeat(np.arange(n), np.diff(graph.dep_ptr))
    late = np.flatnonzero(graph.dep_idx >= follower)
    if len(late):
        at = int(late[0])
        raise Unsound(
            f"event {int(follower[at])} follows event {int(graph.dep_idx[at])}, which stands after it"
        )
    _within("match", graph.match, -1, max(n, 1))
    receives = graph.kind == RECV
    if (graph.match[~receives] != -1).any():
        raise Unsound("an event that is no receive has a send")
    rows, sends = np.flatnonzero(receives), graph.match[receives]
    if (sends < 0).any() or (graph.kind[sends] != SEND).any() or len(np.unique(sends)) != len(sends):
        raise Unsound("a receive has no send of its own")
    ends = (graph.peer[rows] == graph.rank[sends]) & (graph.peer[sends] == graph.rank[rows])
    if not (ends & (graph.bytes[rows] == graph.bytes[sends]) & (sends < rows)).all():
        raise Unsound("a receive and its send differ in ranks or bytes, or stand in the wrong order")


def _lanes(graph: ExecutionGraph) -> None:
    """A lane does one thing after the other: each event follows the one before it in its lane."""
    by_lane = np.lexsort((graph.order, graph.lane, graph.rank))
    before, after = by_lane[:-1], by_lane[1:]
    same = (graph.rank[before] == graph.rank[after]) & (graph.lane[before] == graph.lane[after])
    before, after = before[same], after[same]
    expected = np.full(len(graph.rank), -1)
    expected[after] = before
    follower = np.repeat(np.arange(len(graph.rank)), np.diff(graph.dep_ptr))
    linked = np.zeros(len(graph.rank), bool)
    linked[follower[graph.dep_idx == expected[follower]]] = True
    missing = np.flatnonzero(~linked[after])
    if len(missing):
        first, then = int(before[missing[0]]), int(after[missing[0]])
        raise Unsound(f"event {then} stands behind event {first} in a lane, and does not follow it")


def _groups(graph: ExecutionGraph) -> None:
    """The communicators of events with a lane of their own are listed, with ranks that are there."""
    for rank, groups in graph.groups.items():
        for axis, members in groups.values():
            if not isinstance(axis, str) or not all(
                isinstance(m, int) and 0 <= m < graph.ranks for m in members
            ):
                raise Unsound(f"a communicator of rank {rank} has ranks that are not there")
    rows = np.flatnonzero((graph.lane > 0) & np.isin(graph.kind, (SEND, RECV, COLLECTIVE)))
    group = (graph.lane[rows] - 1) // LANES_PER_GROUP
    for rank, number in {*zip(graph.rank[rows].tolist(), group.tolist(), strict=True)}:
        if number not in graph.groups.get(rank, {}):
            raise Unsound(f"rank {rank} has no communicator number {number}")


def _memory(graph: ExecutionGraph) -> None:
    for rank in range(graph.ranks):
        memory = graph.memory.get(rank)
        if memory is None:
            raise Unsound(f"rank {rank} has no memory")
        if len(memory["base"]) != len(CATEGORIES):
            raise Unsound(f"the memory of rank {rank} has {len(memory['base'])} categories")
        for table, width in TABLES.items():
            column = np.asarray(memory[table]).reshape(-1, width)
            if column.dtype.kind not in "iu" and column.size:
                raise Unsound(f"the memory of rank {rank} holds no whole numbers")
        _within("category", np.asarray(memory["log"]).reshape(-1, 4)[:, 1], 0, len(CATEGORIES))
