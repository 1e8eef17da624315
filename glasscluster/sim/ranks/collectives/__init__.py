"""Collective algorithms: each file holds one, written once above send and receive, and chosen by its name."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from glasscluster.sim.ranks.collectives.registry import (
    ALGORITHMS,
    ALIKE,
    OPERATIONS,
    THEORY,
    collective,
    find,
    load,
    serving,
    with_option,
)

for _module in iter_modules(__path__):  # importing a file of this folder registers its algorithm
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "ALGORITHMS",
    "ALIKE",
    "OPERATIONS",
    "THEORY",
    "collective",
    "find",
    "load",
    "serving",
    "with_option",
]
