"""Collective algorithms, one a file, written once over send and receive and chosen by name."""

from __future__ import annotations

from collections.abc import Callable

from glasscluster.sim.collectives import ring
from glasscluster.sim.errors import ScenarioError

ALGORITHMS: dict[str, dict[str, Callable | None]] = {
    "all_reduce": {"ring": ring.all_reduce, "native": None},
    "reduce_scatter": {"ring": ring.reduce_scatter, "native": None},
    "all_gather": {"ring": ring.all_gather, "native": None},
    "broadcast": {"ring": ring.broadcast, "native": None},
}


def find(operation: str, algorithm: str) -> Callable | None:
    """The step generator of an algorithm; None for `native`. Unknown names raise ScenarioError."""
    known = ALGORITHMS[operation]
    if algorithm not in known:
        raise ScenarioError("algorithm", algorithm, f"{operation} has no such algorithm", list(known))
    return known[algorithm]
