"""The mesh: named axes over ranks, each axis a communicator.

rank = ((pp·DP + dp)·CP + cp)·TP + tp: tp is fastest, so tensor-parallel neighbours share a node; pp is
slowest. Gradients are added up over dp and cp together (a `plane`); experts are spread over neighbours of
that plane (`inside`), and the ranks that hold the same experts are `across` from one another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod

from glasscluster.base.errors import InputError
from glasscluster.sim.ranks.communicator import Communicator

ORDER = ("pp", "dp", "cp", "tp")  # slowest first
GROUP_IDS = {
    "world": 0,
    "pp": 1,
    "dp": 2,
    "cp": 3,
    "tp": 4,
    "ep": 5,
    "tied": 6,
    "shard": 7,
    "replicas": 8,
    "host": 9,
}
GROUP_IDS |= {"heads": 10, "expert replicas": 11, "ulysses": 12, "rings": 13}


class Mesh:
    """`mesh["tp"]` is this rank's communicator along an axis; `mesh.index("pp")` its coordinate."""

    def __init__(self, world: Communicator, sizes: Mapping[str, int]) -> None:
        unknown = set(sizes) - set(ORDER)
        if unknown:
            raise InputError("mesh axis", sorted(unknown)[0], "unknown axis", ORDER)
        self.sizes = {axis: int(sizes.get(axis, 1)) for axis in ORDER}
        together = prod(self.sizes.values())
        if together != world.size:
            raise InputError(
                "mesh",
                dict(self.sizes),
                f"its axes multiply to {together}, the cluster has {world.size} ranks",
            )
        self.world = world
        self.coordinates = coordinates(world.wire.rank, self.sizes)
        self._comms: dict[str, Communicator] = {}

    def __getitem__(self, axis: str) -> Communicator:
        if axis not in self.sizes:
            raise InputError("mesh axis", axis, "unknown axis", ORDER)
        if axis not in self._comms:
            self._comms[axis] = self.world.subgroup(self.ranks_along(axis), axis, GROUP_IDS[axis])
        return self._comms[axis]

    def index(self, axis: str) -> int:
        """This rank's coordinate along an axis."""
        return self.coordinates[axis]

    def ranks_along(self, axis: str) -> list[int]:
        """The cluster ranks that differ from this one only along `axis`."""
        return [rank_of({**self.coordinates, axis: i}, self.sizes) for i in range(self.sizes[axis])]

    def subset(self, axis: str, indices: Sequence[int], name: str) -> Communicator:
        """A communicator over some coordinates of an axis (first and last pipeline stage, say); recorded as
        `axis`.
        """
        ranks = [rank_of({**self.coordinates, axis: i}, self.sizes) for i in indices]
        return self.world.subgroup(ranks, axis, GROUP_IDS[name])

    def plane(self, axes: Sequence[str], name: str) -> Communicator:
        """The ranks that differ from this one only along these axes, in rank order; recorded as `name`.

        One axis is that axis.
        """
        long = [axis for axis in ORDER if axis in axes and self.sizes[axis] > 1]
        if long in ([], [name]):
            return self[name]
        places = product(*(range(self.sizes[axis]) for axis in long))
        ranks = [
            rank_of({**self.coordinates, **dict(zip(long, place, strict=True))}, self.sizes)
            for place in places
        ]
        return self.world.subgroup(ranks, name, GROUP_IDS[name])

    def inside(self, comm: Communicator, size: int, name: str, axis: str | None = None) -> Communicator:
        """A group cut into groups of `size` neighbours: the one with this rank."""
        start = comm.rank // size * size
        return self.world.subgroup(comm.ranks[start : start + size], axis or comm.axis, GROUP_IDS[name])

    def across(self, comm: Communicator, size: int, name: str, axis: str | None = None) -> Communicator:
        """A group cut into groups of `size` neighbours: the ranks at this rank's place in all of them."""
        return self.world.subgroup(comm.ranks[comm.rank % size :: size], axis or comm.axis, GROUP_IDS[name])


def coordinates(rank: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Axis coordinates of a rank."""
    out = {}
    for axis in reversed(ORDER):
        out[axis] = rank % sizes[axis]
        rank //= sizes[axis]
    return out


def rank_of(place: Mapping[str, int], sizes: Mapping[str, int]) -> int:
    """Rank at axis coordinates."""
    rank = 0
    for axis in ORDER:
        rank = rank * sizes[axis] + place[axis]
    return rank
