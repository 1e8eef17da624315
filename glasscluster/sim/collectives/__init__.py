"""Collective algorithms, one a file, written once over send and receive and chosen by name."""

from __future__ import annotations

from collections.abc import Callable

from glasscluster.sim.collectives import direct, halving_doubling, hierarchical, parameter_server, recursive_doubling, ring, tree
from glasscluster.sim.errors import ScenarioError

OPERATIONS = ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce", "scatter", "gather", "all_to_all")
MODULES = {
    "ring": ring,
    "tree": tree,
    "recursive-doubling": recursive_doubling,
    "halving-doubling": halving_doubling,
    "hierarchical": hierarchical,
    "direct": direct,
    "parameter-server": parameter_server,
}
ALGORITHMS: dict[str, dict[str, Callable | None]] = {
    operation: {name: getattr(module, operation) for name, module in MODULES.items() if hasattr(module, operation)}
    for operation in OPERATIONS
}
for _operation in ("all_reduce", "reduce_scatter", "all_gather", "broadcast"):
    ALGORITHMS[_operation]["native"] = None


def find(operation: str, algorithm: str) -> Callable | None:
    """The step generator of an algorithm; None for `native`. Unknown names raise ScenarioError."""
    known = ALGORITHMS[operation]
    if algorithm not in known:
        raise ScenarioError("algorithm", algorithm, f"{operation} has no such algorithm", list(known))
    return known[algorithm]
