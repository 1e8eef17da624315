"""Collective algorithms, one a file, written once over send and receive and chosen by name."""

from __future__ import annotations

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
from glasscluster.sim.ranks.collectives.registry import (
    ALGORITHMS,
    OPERATIONS,
    THEORY,
    collective,
    find,
    is_file,
    load,
    serving,
    with_option,
)

__all__ = [
    "ALGORITHMS",
    "OPERATIONS",
    "THEORY",
    "barrier",
    "binary_tree",
    "collective",
    "direct",
    "double_tree",
    "find",
    "halving_doubling",
    "hierarchical",
    "is_file",
    "load",
    "pairwise",
    "parameter_server",
    "recursive_doubling",
    "ring",
    "serving",
    "tree",
    "with_option",
]
