"""The networks of the catalogue's clusters: nodes of GPUs, and the network ports that GPUs share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glasscluster.sim.time.network.blocks import Cable, gpu, inside, join, network, new_switch
from glasscluster.sim.time.network.topology import Node, Topology

if TYPE_CHECKING:
    from glasscluster.sim.time.hardware import Hardware


def of_hardware(hw: Hardware, gpus: int) -> Topology:
    """Build the network of a catalogue entry from its nodes and network ports. The GPUs of a node are joined
    by one switch (NVSwitch, or the PCIe root).

    A node's `nics` ports are each shared by node_size/nics GPUs; all ports meet at one network switch without
    a bottleneck.
    """
    g = min(hw.node_size, gpus)
    nodes, nics = -(-gpus // g), min(hw.nics or hw.node_size, hw.node_size)
    near, far = (Cable(x.bandwidth, x.latency_s, x.overhead_s) for x in (hw.intra, hw.inter))
    port = hw.node_size / nics
    graph = network(gpus, lambda i: (float(i + i // g), 0.0))
    wide = (gpus + nodes - 2) / 2
    for m in range(nodes):
        new_switch(graph, f"node {m}", (m * (g + 1) + (g - 1) / 2, -1.0))
    if nodes > 1:
        new_switch(graph, "network", (wide, 2.0))
    for i in range(gpus):
        m, k = divmod(i, g)
        join(graph, gpu(i), f"node {m}", near, long=0.5)
        if nodes > 1:
            nic = _nic(hw, m, k, nics)
            if nic not in graph:
                new_switch(graph, nic, (m * (g + 1) + k + (hw.node_size / nics - 1) / 2, 1.0), "nic")
                join(graph, nic, "network", far, wide=port, long=0.5)
            join(graph, gpu(i), nic, far, wide=port, long=0.0)

    def rule(src: int, dst: int) -> list[Node]:
        (a, k), (b, j) = divmod(src, g), divmod(dst, g)
        if a == b:
            return [gpu(src), f"node {a}", gpu(dst)]
        return [gpu(src), _nic(hw, a, k, nics), "network", _nic(hw, b, j, nics), gpu(dst)]

    return Topology(hw.name, graph, [gpu(i) for i in range(gpus)], rule, alike=inside(g))


def _nic(hw: Hardware, node: int, place: int, nics: int) -> str:
    return f"nic {node}.{place * nics // hw.node_size}"
