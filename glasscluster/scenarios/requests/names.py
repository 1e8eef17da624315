"""Names that options take, for their help: registries that only torch can import are copied here, and a test
holds the copies to them (tests/test_option_values.py).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from glasscluster.base.errors import InputError

BACKENDS = ("ray", "threads", "torchrun")  # that move data
DEVICES = ("cpu", "cuda")
COLLECTIVES = (
    *("all-reduce", "reduce-scatter", "all-gather", "broadcast", "reduce"),
    *("scatter", "gather", "all-to-all", "barrier"),
)
ALGORITHMS = (
    *("ring", "tree", "double-tree", "binary-tree", "recursive-doubling", "halving-doubling"),
    *("hierarchical", "direct", "parameter-server", "pairwise", "dissemination", "nccl"),
)
TOPOLOGIES = (
    *("ring", "line", "switch", "fully-connected", "mesh2d", "torus2d", "torus3d", "hypercube"),
    *("fat-tree", "rail", "nvlink-mesh", "pcie-tree"),
)


def one_of(names: tuple[str, ...], default: str | None, description: str) -> Any:
    """A field with one of some names; its help lists them. Who uses the name judges it."""
    return Field(default, description=description, json_schema_extra={"choices": list(names)})


def check_moves_data(backend: str, why_not: str) -> None:
    """Refuse a backend that records shapes alone, and one that is none.

    Args:
        backend: its name.
        why_not: why shapes do not suffice, and what does with them.

    Raises:
        InputError: naming the backends that move data.
    """
    if backend not in BACKENDS:
        rule = f"records shapes alone, and {why_not}" if backend == "dry" else "unknown backend"
        raise InputError("backend", backend, rule, BACKENDS)
