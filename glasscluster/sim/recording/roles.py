"""A graph folded by roles: one rank stands for all ranks that run the same program over wires alike.

    programs    ranks that record the same, but for the ranks that they name (relative.py)
    roles       ranks of one program whose partners have the same roles, over wires that cost the same:
                the coarsest such classes are found by refinement (sim/time/equitable.py)

Ranks of one role begin and end each row at the same moment, by induction over the rows in the order in which
they start:

    a row of its own rank        starts when the same rows have ended
    a receive                    when the same row of a rank of the same role has been sent, over a wire alike
    a library's collective       ends so long after the last launch of its group as the group's size and nodes
                                 say; of its members' launches, those of one role are at the same moment

so it is enough to time one rank of each role. The folded graph is an ordinary graph whose rank r is role r.
Its `groups` name roles, once for each member, and its `roles` say who the ranks really are. It has no cycle,
because a walk round it would be one without an end in the whole graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glasscluster.sim.recording.cuts import Partition
from glasscluster.sim.recording.relative import Partners


@dataclass(frozen=True)
class Roles:
    """Whom the ranks of a folded graph stand for.

    Attributes:
        role: of every rank of the cluster, its role, numbered by their lowest ranks, [gpus].
        partners: of each role, with whom its ranks have to do, [roles].
        partitions: of each role, from a communicator's number to the groups of its kind, [roles].
        rank: of each row of the graph, the representative of its role, as the cluster numbers it, [events].
        peer: of each message, the other rank as the cluster numbers it; -1: no message, [events].
    """

    role: np.ndarray
    partners: tuple[Partners, ...]
    partitions: tuple[dict[int, Partition], ...]
    rank: np.ndarray
    peer: np.ndarray

    @property
    def gpus(self) -> int:
        """How many ranks the cluster has."""
        return len(self.role)

    @property
    def roles(self) -> int:
        """How many roles they have."""
        return len(self.partners)

    @property
    def each(self) -> np.ndarray:
        """How many ranks have each role, [roles]."""
        return np.bincount(self.role, minlength=self.roles)

    @property
    def representatives(self) -> np.ndarray:
        """The lowest rank of each role, [roles]."""
        return representatives(self.role)

    def members(self, role: int, group: int) -> tuple[int, ...]:
        """The cluster's ranks in a communicator of a role's representative."""
        return self.partitions[role][group].ranks_with(int(self.representatives[role]))

    def of_every_rank(self, by_role: Sequence[Any]) -> list[Any]:
        """What holds for each rank, from what holds for each role."""
        return [by_role[role] for role in self.role.tolist()]


def representatives(role: np.ndarray) -> np.ndarray:
    """The lowest rank of each role (or of each program), [roles]."""
    return np.unique(role, return_index=True)[1]
