"""Collective algorithms, one a file, written once over send and receive and chosen by name."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature

from glasscluster.base.errors import InputError
from glasscluster.sim.ranks.collectives import (
    barrier,
    binary_tree,
    direct,
    double_tree,
    halving_doubling,
    hierarchical,
    pairwise,
    parameter_server,
    recursive_doubling,
    ring,
    tree,
)

OPERATIONS = ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce", "scatter", "gather", "all_to_all", "barrier")
MODULES = {
    "ring": ring,
    "tree": tree,
    "binary-tree": binary_tree,
    "double-tree": double_tree,
    "recursive-doubling": recursive_doubling,
    "halving-doubling": halving_doubling,
    "hierarchical": hierarchical,
    "direct": direct,
    "pairwise": pairwise,
    "parameter-server": parameter_server,
    "dissemination": barrier,
}
ALGORITHMS: dict[str, dict[str, Callable | None]] = {
    operation: {name: getattr(module, operation) for name, module in MODULES.items() if hasattr(module, operation)}
    for operation in OPERATIONS
}
for _operation in ("all_reduce", "reduce_scatter", "all_gather", "broadcast"):
    ALGORITHMS[_operation]["native"] = None
ALGORITHMS["barrier"] |= ALGORITHMS["all_reduce"]  # of one byte: who has the sum has heard of everybody


def find(operation: str, algorithm: str) -> Callable | None:
    """The step generator of an algorithm; None for `native`. Unknown names raise InputError."""
    known = ALGORITHMS[operation]
    if algorithm not in known:
        raise InputError("algorithm", algorithm, f"{operation} has no such algorithm", list(known))
    return known[algorithm]


def with_option(operation: str, option: str) -> list[str]:
    """The algorithms of an operation that have an option, such as `pieces`."""
    return [name for name, steps in ALGORITHMS[operation].items() if steps is not None and option in signature(steps).parameters]
