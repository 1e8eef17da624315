"""Collectives by symmetry: ranks that do the same over wires alike are recorded and timed once.

Two things must look the same from every rank of a role: the steps of the algorithm, and the wires that its
messages take. The algorithm says on which grid a shift of all ranks leaves its steps as they are
(sim/ranks/collectives/alike.py). Here the smallest shift along each axis is searched for that leaves the
wires as they are, too: each wire that a message takes is compared with that which it takes after the shift.

    ring on a ring             every shift of ranks: one role
    ring on a torus of 4 x 4   a step along a row is one link, from row to row two: shifts by whole rows
    halving on a fat tree      partners differ in one bit; flipping bits keeps who shares a leaf: one role
    ring on a line             the way back from the end is long, and there is no shift: every rank alone

But: wires only say how long a message takes that is alone on its links. Where messages share links the whole
graph is replayed (contention).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from glasscluster.scenarios.jobs.collective_job import Program
from glasscluster.sim.ranks.backends.dry import record_rank, relabelled
from glasscluster.sim.recording.events import FIELDS, SEND
from glasscluster.sim.recording.folded import fold
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.recording.shifts import Shifts
from glasscluster.sim.time.hardware import Hardware
from glasscluster.sim.time.network import Topology

Classes = Callable[[np.ndarray, np.ndarray], np.ndarray | None]

NOT_SHIFTED = [i for i, name in enumerate(FIELDS) if name not in ("peer", "offset")]


def wire_classes(hw: Hardware) -> Classes:
    """A function of senders and receivers that gives pairs with wires alike one number; it gives None where
    only their routes can tell.
    """
    if hw.topology is not None:
        return hw.topology.classes
    return lambda src, dst: (src // hw.node_size == dst // hw.node_size).astype(np.int64)


@dataclass(frozen=True)
class Pattern:
    """Who sends to whom in a collective whose ranks are alike.

    Attributes:
        dims: of the grid on which shifts leave the algorithm's steps as they are.
        peers: to whom rank 0 sends; rank r sends to those that its own shift makes of them.
        nbytes: how many bytes each of the peers gets in all.
    """

    dims: tuple[int, ...]
    peers: tuple[int, ...]
    nbytes: tuple[int, ...]

    @property
    def pairs(self) -> int:
        """How many pairs of ranks exchange something."""
        return math.prod(self.dims) * len(self.peers)

    def each(self) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """For each of rank 0's peers: all ranks, whom they send to in its place, and how many bytes."""
        every = Shifts(self.dims, (1,) * len(self.dims))
        ranks = np.arange(every.ranks)
        for peer, nbytes in zip(self.peers, self.nbytes, strict=True):
            yield ranks, every.moved(np.full(len(ranks), peer), ranks), nbytes


def pattern_of(first: dict[str, Any], dims: tuple[int, ...]) -> Pattern:
    """The pattern of a collective, from rank 0's recording."""
    kind, peer, nbytes = (first["table"][:, FIELDS.index(name)] for name in ("kind", "peer", "bytes"))
    peers, place = np.unique(peer[kind == SEND], return_inverse=True)
    each = np.bincount(place.reshape(-1), nbytes[kind == SEND], minlength=len(peers)).astype(np.int64)
    return Pattern(dims, tuple(peers.tolist()), tuple(each.tolist()))


def shifts_alike(pattern: Pattern, classes: Classes) -> Shifts | None:
    """Find the smallest shifts along each axis under which all messages keep their wires.

    Args:
        pattern: who sends to whom.
        classes: as `wire_classes` gives it.

    Returns:
        The group of shifts; None where nobody knows which wires are alike.
    """
    dims = pattern.dims
    every = Shifts(dims, (1,) * len(dims))
    ranks = np.arange(every.ranks)
    below = [math.prod(dims[axis + 1 :]) for axis in range(len(dims))]
    moved = {
        (axis, step): every.moved(ranks, np.full(len(ranks), step * below[axis]))
        for axis, size in enumerate(dims)
        for step in range(1, size)
        if size % step == 0
    }
    for senders, receivers, _ in pattern.each():
        wires = classes(senders, receivers)
        if wires is None:
            return None
        moved = {key: to for key, to in moved.items() if np.array_equal(wires, wires[to])}
    steps = [min([s for a, s in moved if a == axis], default=size) for axis, size in enumerate(dims)]
    return Shifts(dims, tuple(steps))


class NotAlike(AssertionError):
    """An error: an algorithm's ranks do not do what its grid promises (collectives/alike.py)."""


def check_shifted(first: dict[str, Any], other: dict[str, Any], dims: tuple[int, ...]) -> None:
    """Check that a rank's recording is rank 0's, shifted.

    Raises:
        NotAlike: it is not.
    """
    every, (a, b) = Shifts(dims, (1,) * len(dims)), (first["table"], other["table"])
    same = a.shape == b.shape and np.array_equal(a[:, NOT_SHIFTED], b[:, NOT_SHIFTED])
    if same:
        peers, others = (table[:, FIELDS.index("peer")] for table in (a, b))
        to = every.moved(np.maximum(peers, 0), np.full(len(peers), other["rank"]))
        same = np.array_equal(np.where(peers < 0, -1, to), others)
        same &= all(np.array_equal(first[k], other[k]) for k in ("dep_counts", "deps"))
    if not same:
        raise NotAlike(f"rank {other['rank']} does something else than rank 0, shifted on {dims}")


def recorded(program: Program, rank: int, ranks: int) -> dict[str, Any]:
    """One rank's recording, dry."""
    outcome = record_rank(rank, ranks, *program, None)
    if outcome.error is not None:
        raise outcome.error
    return outcome.recording or {}


def folded_graph(
    program: Program, first: dict[str, Any], shifts: Shifts, ring_bytes: int | None, info: dict[str, Any]
) -> ExecutionGraph:
    """Record one rank of each role and build the folded graph.

    Args:
        program: what every rank runs.
        first: rank 0's recording.
        shifts: under which ranks are alike.
        ring_bytes: of a ring: its buffer, so that nothing but rank 0 has to be recorded.
        info: what the graph should remember about the run.

    Raises:
        NotAlike: ranks do not do what the algorithm's grid promises.
    """
    recordings = [first]
    for rank in shifts.representatives[1:].tolist():
        if ring_bytes is not None:
            recordings.append(relabelled(first, rank, shifts.ranks, ring_bytes))
        else:
            recordings.append(recorded(program, rank, shifts.ranks))
        check_shifted(first, recordings[-1], shifts.dims)
    return fold(recordings, shifts, info)


# ---- what the links carry ----------------------------------------------------------------------------------
def shares_links(pattern: Pattern, topology: Topology) -> bool:
    """Whether some link lies on the routes of messages from two ranks (`is_shared`, of a pattern)."""
    owner: dict[int, int] = {}
    for senders, receivers, _ in pattern.each():
        for src, dst in zip(senders.tolist(), receivers.tolist(), strict=True):
            for link in topology.route(src, dst):
                if owner.setdefault(link, src) != src:
                    return True
    return False


def folded_bytes(pattern: Pattern, topology: Topology) -> np.ndarray:
    """The bytes that each link carried according to the routes (`routed_bytes`, of a pattern)."""
    total = np.zeros(len(topology.links))
    for senders, receivers, nbytes in pattern.each():
        routes = [topology.route(a, b) for a, b in zip(senders.tolist(), receivers.tolist(), strict=True)]
        links = np.fromiter(chain.from_iterable(routes), dtype=np.int64)
        total += np.bincount(links, minlength=len(total)) * nbytes
    return total
