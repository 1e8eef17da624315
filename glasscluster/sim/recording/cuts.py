"""How a mesh is cut into the groups of one kind: for every rank its group, and its place in it.

A rank's communicators are made on that rank alone. What the groups of all other ranks are follows from how
the mesh was cut (sim/ranks/mesh.py says so when it makes a communicator):

    mesh {pp: 2, dp: 4}            ranks 0 to 3 on stage 0, 4 to 7 on stage 1
    along pp                       (0 4) (1 5) (2 6) (3 7)
    along dp                       (0 1 2 3) (4 5 6 7)
    along dp, then inside 2        (0 1) (2 3) (4 5) (6 7)       neighbours
    along dp, then across 2        (0 2) (1 3) (4 6) (5 7)       who has the same place among neighbours

Groups of one kind do not overlap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

INSIDE, ACROSS = "inside", "across"


@dataclass(frozen=True)
class Cut:
    """How a mesh is cut into groups.

    Attributes:
        sizes: axes and how many ranks are along each, the slowest first.
        axes: ranks of a group differ only along these.
        only: of one axis, the coordinates that are in a group, in its order; None: all of them.
        again: cuts of each group into smaller ones: (`inside` or `across`, size of neighbours), in turn.

    Example:
        >>> sizes = (("pp", 2), ("dp", 4))
        >>> Cut(sizes, ("dp",)).further("across", 2).partition.ranks_with(5)
        (5, 7)
    """

    sizes: tuple[tuple[str, int], ...]
    axes: tuple[str, ...]
    only: tuple[int, ...] | None = None
    again: tuple[tuple[str, int], ...] = ()

    def further(self, how: str, size: int) -> Cut:
        """The groups of this cut, cut again (`inside` or `across` groups of `size` neighbours)."""
        return replace(self, again=(*self.again, (how, size)))

    @cached_property
    def partition(self) -> Partition:
        """Every rank's group and place."""
        ranks = int(np.prod([size for _, size in self.sizes], dtype=np.int64))
        rest, group, place = np.arange(ranks), np.zeros(ranks, np.int64), np.zeros(ranks, np.int64)
        inside, width = 1, 1
        for axis, size in reversed(self.sizes):
            rest, coordinate = np.divmod(rest, size)
            if axis in self.axes:
                place += coordinate * width
                width *= size
            else:
                group += coordinate * inside
                inside *= size
        if self.only is not None:
            listed = np.full(width, -1)
            listed[list(self.only)] = np.arange(len(self.only))
            place = listed[place]
            group = np.where(place < 0, -1, group)
        for how, size in self.again:
            outer, inner = np.divmod(place, size)
            kept, place = (outer, inner) if how == INSIDE else (inner, outer)
            group = np.where(group < 0, -1, group * width + kept)
        return Partition(group, place)


class Partition:
    """Which group each rank is in, and where in it; groups are numbered from 0 without gaps.

    Attributes:
        group: -1 for a rank that is in none, [ranks].
        place: its number within the group, [ranks].
        size: of its group, 0 where there is none, [ranks].
        members: ranks by group, then by place, [ranks in groups].
        first: where in `members` each group begins, [groups + 1].
    """

    def __init__(self, group: np.ndarray, place: np.ndarray) -> None:
        inside = np.flatnonzero(group >= 0)
        _, number = np.unique(group[inside], return_inverse=True)
        self.group = np.full(len(group), -1)
        self.group[inside] = number.reshape(-1)
        self.place = place
        self.members = inside[np.lexsort((place[inside], self.group[inside]))]
        sizes = np.bincount(self.group[inside])
        self.first = np.concatenate([[0], np.cumsum(sizes)])
        self.size = np.zeros(len(group), np.int64)
        self.size[inside] = sizes[self.group[inside]]

    def ranks_with(self, rank: int) -> tuple[int, ...]:
        """The ranks of a rank's group, in the order of their places; empty where it has none."""
        number = int(self.group[rank])
        if number < 0:
            return ()
        return tuple(self.members[self.first[number] : self.first[number + 1]].tolist())

    def shifted(self, ranks: np.ndarray, shift: int) -> np.ndarray:
        """The rank that stands so many places after each of these in its group, round the group's end."""
        begin, size = self.first[self.group[ranks]], self.size[ranks]
        return self.members[begin + (self.place[ranks] + shift) % size]
