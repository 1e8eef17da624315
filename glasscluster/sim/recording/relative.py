"""A rank's recording, told so that ranks that do the same tell the same.

A recording names ranks: to whom a message goes. Relative to the rank, a message goes so many places further
in the group of its communicator:

    rank 5 of a ring of 8 sends to 6       one place further
    rank 7 of a ring of 8 sends to 0       one place further

Two ranks do the same when their recordings are equal with places in the place of ranks, in every other
column, dependency, name and entry of the memory's log.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from glasscluster.sim.recording.cuts import Cut, Partition
from glasscluster.sim.recording.events import COLLECTIVE, FIELDS, LANES_PER_GROUP, RECV, SEND

LANE, KIND, OP, PEER, OFFSET = (FIELDS.index(name) for name in ("lane", "kind", "op", "peer", "offset"))


class NotAlike(Exception):
    """Ranks cannot be folded, for the reason that the message gives."""


@dataclass(frozen=True)
class Partners:
    """With whom a rank has to do.

    Attributes:
        messages: (communicator, places further) of all whom it sends to or receives from.
        collectives: communicators on which it runs a library's collectives.
    """

    messages: frozenset[tuple[int, int]]
    collectives: frozenset[int]


@dataclass(frozen=True)
class Relative:
    """A recording, and what of it is relative to its rank.

    Attributes:
        recording: as `Recorder.columns` returns it.
        shift: of each message, how many places further in its communicator's group the other rank is; -1 for
            other rows, [rows].
        partners: with whom the rank has to do.
        cuts: of each communicator that is part of a mesh, how that is cut into groups.
    """

    recording: dict[str, Any]
    shift: np.ndarray
    partners: Partners
    cuts: dict[int, Cut]

    @property
    def rank(self) -> int:
        """Whose recording it is."""
        return int(self.recording["rank"])


Partitions = dict[Cut, Partition]  # of cuts that were needed: many ranks have the same


def relative(recording: dict[str, Any], partitions: Partitions) -> Relative:
    """Tell a recording relative to its rank.

    Args:
        recording: as `Recorder.columns` returns it.
        partitions: those known; more are added.

    Raises:
        NotAlike: a message or a library's collective is of a communicator that is no part of a mesh, or that
            has other ranks than the cut of the mesh says.
    """
    table, rank = recording["table"], recording["rank"]
    native = [i for i, name in enumerate(recording["names"]) if name.endswith("/native")]
    group = (table[:, LANE] - 1) // LANES_PER_GROUP
    message = np.isin(table[:, KIND], (SEND, RECV))
    joined = (table[:, KIND] == COLLECTIVE) & np.isin(table[:, OP], native)
    shift = np.full(len(table), -1)
    cuts = {number: cut for number, cut in recording["cuts"].items() if cut is not None}
    for number in np.unique(group[message | joined]).tolist():
        axis, members = recording["groups"][number]
        if number not in cuts:
            raise NotAlike(f"rank {rank} has a communicator ({axis}) that is no part of its mesh")
        cut = cuts[number]
        there = partitions.setdefault(cut, cut.partition)
        if there.ranks_with(rank) != tuple(members):
            raise NotAlike(f"rank {rank} has other ranks on {axis} than the cut of its mesh says")
        rows = np.flatnonzero(message & (group == number))
        shift[rows] = (there.place[table[rows, PEER]] - there.place[rank]) % len(members)
    for cut in cuts.values():
        partitions.setdefault(cut, cut.partition)
    pairs = zip(group[message].tolist(), shift[message].tolist(), strict=True)
    partners = Partners(frozenset(pairs), frozenset(group[joined].tolist()))
    return Relative(recording, shift, partners, cuts)


ABSOLUTE = [i for i in range(len(FIELDS)) if i not in (PEER, OFFSET)]


def difference(a: Relative, b: Relative) -> str | None:
    """In what two recordings differ, beside the ranks that they name; None: in nothing.

    A message's place in the buffer of its collective (`offset`) is not compared: it costs nothing.
    """
    one, other = a.recording, b.recording
    if one["table"].shape != other["table"].shape:
        return f"{len(one['table'])} rows against {len(other['table'])}"
    m, n = one["memory"], other["memory"]
    arrays = {FIELDS[i]: (one["table"][:, i], other["table"][:, i]) for i in ABSOLUTE}
    arrays |= {"peer": (a.shift, b.shift)}
    arrays |= {name: (one[name], other[name]) for name in ("dep_counts", "deps")}
    arrays |= {f"memory {name}": (m[name], n[name]) for name in ("log", "waits", "before")}
    plain = {name: (one[name], other[name]) for name in ("names", "unknown_flops")}
    plain |= {f"memory {name}": (m[name], n[name]) for name in ("base", "named")}
    plain |= {"communicators": (a.cuts, b.cuts)}
    unlike = [name for name, (x, y) in arrays.items() if not np.array_equal(x, y)]
    unlike += [name for name, (x, y) in plain.items() if x != y]
    return ", ".join(unlike) or None
