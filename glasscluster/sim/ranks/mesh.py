"""The mesh: named axes over ranks, each axis a communicator.

rank = ((pp·DP + dp)·CP + cp)·TP + tp: tp is fastest, so tensor-parallel neighbours share a node; pp is
slowest. Gradients are added up over dp and cp together (a `plane`); experts are spread over neighbours of
that plane (`inside`), and the ranks that hold the same experts are `across` from one another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from math import prod

from glasscluster.base.errors import InputError
from glasscluster.sim.ranks.communicator import Communicator
from glasscluster.sim.recording.cuts import ACROSS, INSIDE, Cut

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
    """Ranks laid out along the axes pp, dp, cp and tp; `mesh["tp"]` is this rank's communicator along an
    axis.

    A communicator is made when it is first asked for. rank = ((pp·DP + dp)·CP + cp)·TP + tp.

    Attributes:
        sizes: how many ranks along each axis.
        coordinates: where this rank stands on each axis, from 0.

    Args:
        world: the communicator of all ranks.
        sizes: how many ranks along each axis; 1 where one is left out.

    Raises:
        InputError: for an unknown axis, or sizes that do not multiply to the number of ranks.

    Example:
        >>> from glasscluster import Cluster
        >>> def program(gpu):
        ...     mesh = gpu.make_mesh({"pp": 2, "tp": 2})
        ...     return mesh.coordinates["pp"], mesh.coordinates["tp"], mesh["pp"].ranks
        >>> Cluster("classroom", gpus=4).run(program).results
        [(0, 0, (0, 2)), (0, 1, (1, 3)), (1, 0, (0, 2)), (1, 1, (1, 3))]
    """

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
            self._comms[axis] = self._group(self.ranks_along(axis), axis, axis, self._cut(axis))
        return self._comms[axis]

    def index(self, axis: str) -> int:
        """This rank's coordinate along an axis.

        Args:
            axis: pp, dp, cp or tp.

        Returns:
            A number from 0 to sizes[axis] - 1.
        """
        return self.coordinates[axis]

    def ranks_along(self, axis: str) -> list[int]:
        """The cluster's ranks that differ from this one only along an axis.

        Args:
            axis: pp, dp, cp or tp.

        Returns:
            sizes[axis] ranks, by coordinate; this one among them.
        """
        return [rank_of({**self.coordinates, axis: i}, self.sizes) for i in range(self.sizes[axis])]

    def subset(self, axis: str, indices: Sequence[int], name: str) -> Communicator:
        """A communicator over some coordinates of an axis, such as the first and last pipeline stage.

        Args:
            axis: the axis; on the graph the messages stand under its name.
            indices: the coordinates, this rank's among them.
            name: a key of `GROUP_IDS`, which gives the communicator its number.

        Returns:
            The communicator.
        """
        ranks = [rank_of({**self.coordinates, axis: i}, self.sizes) for i in indices]
        return self._group(ranks, axis, name, replace(self._cut(axis), only=tuple(indices)))

    def plane(self, axes: Sequence[str], name: str) -> Communicator:
        """A communicator over the ranks that differ from this one only along some axes, in rank order.

        Args:
            axes: the axes, such as ("dp", "cp"), over which gradients are added up.
            name: the name on the graph, a key of `GROUP_IDS`.

        Returns:
            The communicator; that of an axis itself where it is the only one longer than 1.
        """
        long = [axis for axis in ORDER if axis in axes and self.sizes[axis] > 1]
        if long in ([], [name]):
            return self[name]
        places = product(*(range(self.sizes[axis]) for axis in long))
        ranks = [
            rank_of({**self.coordinates, **dict(zip(long, place, strict=True))}, self.sizes)
            for place in places
        ]
        return self._group(ranks, name, name, self._cut(*long))

    def inside(self, comm: Communicator, size: int, name: str, axis: str | None = None) -> Communicator:
        """Cut a group into groups of neighbours, and take the one that this rank is in.

        Args:
            comm: the group to cut.
            size: ranks in each smaller group.
            name: a key of `GROUP_IDS`, which gives the communicator its number.
            axis: the name on the graph; by default the cut group's.

        Returns:
            The communicator, of `size` ranks.
        """
        start = comm.rank // size * size
        cut = comm.cut and comm.cut.further(INSIDE, size)
        return self._group(comm.ranks[start : start + size], axis or comm.axis, name, cut)

    def across(self, comm: Communicator, size: int, name: str, axis: str | None = None) -> Communicator:
        """Cut a group into groups of neighbours, and take the ranks that have this rank's place in their
        groups.

        Args:
            comm: the group to cut.
            size: ranks in each smaller group.
            name: a key of `GROUP_IDS`, which gives the communicator its number.
            axis: the name on the graph; by default the cut group's.

        Returns:
            The communicator, of comm.size / size ranks.
        """
        cut = comm.cut and comm.cut.further(ACROSS, size)
        return self._group(comm.ranks[comm.rank % size :: size], axis or comm.axis, name, cut)

    def _cut(self, *axes: str) -> Cut:
        return Cut(tuple(self.sizes.items()), axes)

    def _group(self, ranks: Sequence[int], axis: str, name: str, cut: Cut | None) -> Communicator:
        return self.world.subgroup(ranks, axis, GROUP_IDS[name], cut)


def coordinates(rank: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """The coordinates of a rank on a mesh of these sizes, by axis."""
    out = {}
    for axis in reversed(ORDER):
        out[axis] = rank % sizes[axis]
        rank //= sizes[axis]
    return out


def rank_of(place: Mapping[str, int], sizes: Mapping[str, int]) -> int:
    """The rank that stands at these coordinates of a mesh of these sizes."""
    rank = 0
    for axis in ORDER:
        rank = rank * sizes[axis] + place[axis]
    return rank
