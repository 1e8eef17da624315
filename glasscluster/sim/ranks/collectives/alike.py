"""Which ranks do the same in a collective: the grids on whose shifts its steps look the same.

An algorithm registers one of these functions beside its steps (`@collective(..., alike=round_a_ring)`). It is
called with the number of ranks, the bytes of the buffer and the algorithm's options, and returns the dims of
a grid (sim/recording/shifts.py), or None where ranks differ. The promise: shift rank 0's recording on this
grid, peers with it, and you have the rows of every other rank, but for the offsets in the buffer. Whoever
folds looks at the wires as well (scenarios/jobs/symmetry.py).

Trees, roots, servers and remainders have none: there some rank does what no other does.
"""

from __future__ import annotations

from typing import Any

from glasscluster.sim.ranks.collectives.theory import power_of_two

Dims = tuple[int, ...] | None


def round_a_ring(size: int, nbytes: int, **_: Any) -> Dims:
    """Rank r does to r + k what rank 0 does to k (mod N), in equal chunks."""
    return (size,) if nbytes % size == 0 else None


def round_a_ring_of_any_size(size: int, nbytes: int, **_: Any) -> Dims:
    """The same where every message is the whole buffer."""
    return (size,)


def across_bits(size: int, nbytes: int, **_: Any) -> Dims:
    """Rank r does to r XOR k what rank 0 does to k, in equal chunks: N a power of two."""
    return _bits(size) if nbytes % size == 0 else None


def across_bits_of_any_size(size: int, nbytes: int, **_: Any) -> Dims:
    """The same where every message is the whole buffer."""
    return _bits(size)


def round_or_across(size: int, nbytes: int, **options: Any) -> Dims:
    """XOR where N is a power of two, else a ring."""
    return (across_bits if power_of_two(size) else round_a_ring)(size, nbytes, **options)


def _bits(size: int) -> Dims:
    return (2,) * (size.bit_length() - 1) if power_of_two(size) else None
