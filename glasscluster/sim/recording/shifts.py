"""Groups of renumberings under which ranks may be alike: cyclic shifts on a grid.

Ranks stand on a grid, the last axis fastest. A shift moves every rank on by a multiple of a step along each
axis, round the end of the axis. Ranks that shifts bring onto each other have one role; all roles have equally
many ranks.

    dims 8, steps 1        a ring of 8 that looks the same from everywhere: one role
    dims 8, steps 4        0 and 4 have one role, 1 and 5 the next
    dims 2 x 2 x 2         every axis is one bit of the rank: a shift flips bits (r XOR k)
    dims 4 x 8             4 nodes of 8: shifts of the nodes, and of the places in all nodes at once
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Shifts:
    """A group of shifts of ranks on a grid.

    Attributes:
        dims: how long each axis is; their product is the number of ranks.
        steps: by multiples of what ranks are moved along each axis; each divides its dim, and is the dim
            itself where nothing moves.

    Example:
        >>> import numpy as np
        >>> halves = Shifts((8,), (4,))
        >>> halves.ranks, halves.roles, halves.each
        (8, 4, 2)
        >>> halves.role(np.arange(8)).tolist()
        [0, 1, 2, 3, 0, 1, 2, 3]
    """

    dims: tuple[int, ...]
    steps: tuple[int, ...]

    @property
    def ranks(self) -> int:
        """How many ranks there are."""
        return math.prod(self.dims)

    @property
    def roles(self) -> int:
        """How many roles the ranks have."""
        return math.prod(self.steps)

    @property
    def each(self) -> int:
        """How many ranks have one role: as many as there are shifts."""
        return self.ranks // self.roles

    @cached_property
    def representatives(self) -> np.ndarray:
        """The lowest rank of each role, [roles]."""
        return _number(_digits(np.arange(self.roles), self.steps), self.dims)

    def role(self, ranks: np.ndarray) -> np.ndarray:
        """The role of each rank."""
        places = _digits(ranks, self.dims)
        return _number([p % s for p, s in zip(places, self.steps, strict=True)], self.steps)

    def shift_to(self, ranks: np.ndarray) -> np.ndarray:
        """The number of the shift that takes the representative of each rank's role to that rank."""
        places = _digits(ranks, self.dims)
        return _number([p // s for p, s in zip(places, self.steps, strict=True)], self._turns)

    def inverse(self, shifts: np.ndarray) -> np.ndarray:
        """The number of the shift that undoes each of these."""
        turns = zip(_digits(shifts, self._turns), self._turns, strict=True)
        return _number([-t % most for t, most in turns], self._turns)

    def moved(self, ranks: np.ndarray, shifts: np.ndarray) -> np.ndarray:
        """The ranks to which shifts take these ranks, one shift each."""
        places, turns = _digits(ranks, self.dims), _digits(shifts, self._turns)
        axes = zip(places, turns, self.steps, self.dims, strict=True)
        return _number([(p + t * step) % size for p, t, step, size in axes], self.dims)

    @property
    def _turns(self) -> tuple[int, ...]:
        """How many multiples of its step there are along each axis."""
        return tuple(size // step for size, step in zip(self.dims, self.steps, strict=True))


def _digits(numbers: np.ndarray, sizes: tuple[int, ...]) -> list[np.ndarray]:
    """The coordinates of numbers on a grid, the last axis fastest."""
    places = []
    for size in reversed(sizes):
        places.append(numbers % size)
        numbers = numbers // size
    return places[::-1]


def _number(places: list[np.ndarray], sizes: tuple[int, ...]) -> np.ndarray:
    """The numbers of coordinates on a grid."""
    total = np.zeros_like(np.asarray(places[0]))
    for place, size in zip(places, sizes, strict=True):
        total = total * size + place
    return total
