"""Networks by name, as `--topology` gives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.sim.time.network.blocks import Cable
from glasscluster.sim.time.network.direct import (
    fully_connected,
    hypercube,
    line,
    mesh2d,
    nvlink_mesh,
    ring,
    torus2d,
    torus3d,
)
from glasscluster.sim.time.network.switched import fat_tree, pcie_tree, rail, switch
from glasscluster.sim.time.network.topology import Topology

BUILDERS: dict[str, Callable[..., Topology]] = {
    "ring": ring,
    "switch": switch,
    "fully-connected": fully_connected,
    "line": line,
    "mesh2d": mesh2d,
    "torus2d": torus2d,
    "torus3d": torus3d,
    "hypercube": hypercube,
    "fat-tree": fat_tree,
    "rail": rail,
    "nvlink-mesh": nvlink_mesh,
    "pcie-tree": pcie_tree,
}


def build(name: str, n: int, cable: Cable, **options: Any) -> Topology:
    """Build a topology by name. `options` are those of its builder: dims, leaf, oversubscription, node."""
    if name not in BUILDERS:
        raise InputError("topology", name, "is neither a known topology nor a .json file", list(BUILDERS))
    if n < 2:
        raise InputError("gpus", n, "a network joins at least 2 GPUs")
    known = BUILDERS[name].__code__.co_varnames[2 : BUILDERS[name].__code__.co_argcount]
    for option, value in options.items():
        if option not in known:
            raise InputError(option, value, f"the topology {name} has no such option", list(known) or None)
    return BUILDERS[name](n, cable, **options).check()
