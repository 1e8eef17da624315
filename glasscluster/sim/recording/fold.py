"""Whom the rows of a folded graph stand for (folded.py has what a folded graph is)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glasscluster.sim.recording.shifts import Shifts
from glasscluster.sim.recording.sound import MOST_RANKS, Unsound


@dataclass(frozen=True)
class Fold:
    """Whom the rows of a folded graph stand for.

    Attributes:
        shifts: the shifts, which say the role of every rank.
        rank: of each row, the representative of its role, as the whole cluster numbers it, [events].
        peer: of each message, the other rank as the whole cluster numbers it; -1: no message, [events].
    """

    shifts: Shifts
    rank: np.ndarray
    peer: np.ndarray

    def of_every_rank(self, by_role: Sequence[Any]) -> list[Any]:
        """What holds for each rank, from what holds for each role."""
        return np.asarray(by_role)[self.shifts.role(np.arange(self.shifts.ranks))].tolist()


def from_file(shifts: dict[str, Any], peer: np.ndarray, roles: np.ndarray, peers: np.ndarray) -> Fold:
    """The fold of a graph that `ExecutionGraph.save` wrote.

    Args:
        shifts: dims and steps.
        peer: of each message, the other rank as the whole cluster numbers it, [events].
        roles, peers: the graph's columns `rank` and `peer`, which are roles, [events].

    Raises:
        Unsound: the fold does not belong to this graph.
    """
    dims, steps = tuple(shifts["dims"]), tuple(shifts["steps"])
    whole = all(isinstance(n, int) and n > 0 for n in (*dims, *steps)) and len(dims) == len(steps) > 0
    if not whole or any(size % step for size, step in zip(dims, steps, strict=True)):
        raise Unsound(f"its shifts of {shifts} are none")
    group = Shifts(dims, steps)
    if group.ranks > MOST_RANKS or int(roles.max(initial=0)) >= group.roles:
        raise Unsound(f"it has rank {roles.max(initial=0)}, {group.roles} roles and {group.ranks} ranks")
    if peer.shape != peers.shape or peer.dtype.kind not in "iu":
        raise Unsound("its peers are not one a row")
    messages = peers >= 0
    if (peer[~messages] != -1).any() or (peer[messages] < 0).any() or (peer[messages] >= group.ranks).any():
        raise Unsound("a message goes to a rank that is not there")
    if (group.role(peer[messages]) != peers[messages]).any():
        raise Unsound("a message goes to a rank of another role")
    return Fold(group, group.representatives[roles], peer)
