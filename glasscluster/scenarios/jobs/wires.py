"""Options of `glass collective` into a cluster: a catalogue entry, a named topology, or a network from a
file.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.base.quantities import parse_rate, parse_time
from glasscluster.sim.time import network as networks
from glasscluster.sim.time.hardware import Hardware, hardware
from glasscluster.sim.time.network.blocks import factors

PLACEMENTS = ("identity", "reversed", "random", "random:SEED", "0,2,1,3")


def wires(
    gpus: int,
    name: str = "classroom",
    nodes: int | None = None,
    topology: str | None = None,
    bandwidth: str | None = None,
    latency: str | None = None,
    overhead: str | None = None,
    placement: str | None = None,
    **shape: Any,
) -> Hardware:
    """The hardware of `gpus` GPUs that the options describe; InputError for options that do not fit together.

    `shape` holds dims, leaf and oversubscription of a named topology; None where not given.
    """
    given = {k: v for k, v in shape.items() if v is not None}
    if topology is None:
        for option, value in {
            "bandwidth": bandwidth,
            "latency": latency,
            "overhead": overhead,
            **given,
        }.items():
            if value is not None:
                raise InputError(option, value, "belongs to --topology: leave it out without")
        return _placed(_catalogued(gpus, name, nodes), gpus, placement)
    if topology.endswith(".json"):
        for option, value in {
            "bandwidth": bandwidth,
            "latency": latency,
            "overhead": overhead,
            "nodes": nodes,
            **given,
        }.items():
            if value is not None:
                raise InputError(option, value, "the links of a network file have their own")
        network = networks.read(topology)
        if len(network.gpus) != gpus:
            raise InputError(
                "gpus", gpus, f"the network {network.name} has {len(network.gpus)} GPUs", [len(network.gpus)]
            )
    else:
        if nodes is not None:
            given["node"] = _per_node(gpus, nodes)
        if "dims" in given:
            given["dims"] = _dims(given["dims"], gpus)
        if topology in networks.BUILDERS:
            if not bandwidth or not latency:
                raise InputError(
                    "bandwidth" if not bandwidth else "latency",
                    "",
                    "a topology needs --bandwidth and --latency",
                )
            given["cable"] = networks.Cable(
                parse_rate("bandwidth", bandwidth),
                parse_time("latency", latency),
                parse_time("overhead", overhead or "0s"),
            )
            if given["cable"].bandwidth <= 0:
                raise InputError("bandwidth", bandwidth, "must be more than 0")
        network = networks.build(topology, gpus, given.pop("cable", networks.Cable(1.0)), **given)
    hw = replace(hardware("classroom"), name=network.name, node_size=gpus, topology=network)
    return _placed(hw, gpus, placement)


def _catalogued(gpus: int, name: str, nodes: int | None) -> Hardware:
    hw = hardware(name)
    return hw if nodes is None else replace(hw, node_size=_per_node(gpus, nodes))


def _per_node(gpus: int, nodes: int) -> int:
    if nodes < 1 or gpus % nodes:
        rule = f"{gpus} GPUs must divide evenly over the nodes"
        raise InputError("nodes", nodes, rule, [n for n in range(1, gpus + 1) if gpus % n == 0])
    return gpus // nodes


def _dims(text: str, gpus: int) -> list[int]:
    try:
        dims = [int(n) for n in text.lower().split("x")]
    except ValueError:
        dims = []
    product = 1
    for n in dims:
        product *= n
    if not dims or min(dims) < 1 or product != gpus:
        raise InputError(
            "dims",
            text,
            f"must be whole numbers that multiply to {gpus}, as {'x'.join(map(str, factors(gpus, 2)))}",
        )
    return dims


def _placed(hw: Hardware, gpus: int, placement: str | None) -> Hardware:
    """Ranks on GPUs in another order than their own."""
    if placement is None or placement == "identity":
        return hw
    order = list(range(gpus))
    if placement == "reversed":
        order.reverse()
    elif placement.partition(":")[0] == "random":
        seed = placement.partition(":")[2] or "0"
        if not seed.isdigit():
            raise InputError("placement", placement, "the seed must be a whole number", PLACEMENTS)
        random.Random(int(seed)).shuffle(order)
    else:
        try:
            order = [int(n) for n in placement.split(",")]
        except ValueError:
            raise InputError(
                "placement", placement, f"must be one of {' | '.join(PLACEMENTS)}", PLACEMENTS
            ) from None
    network = hw.topology or networks.of_hardware(hw, gpus)
    return replace(hw, topology=network.placed(order))
