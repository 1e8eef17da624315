"""Where the GPUs stand: directed networkx graphs of GPUs, switches and network ports, and explicit routes over them.

Every edge is a link in one direction and may be shared: a GPU's port to its switch and a node's network port are links
like any other. An edge has `bandwidth` (bytes/s), `latency_s`, `overhead_s` (on the sender's port before anything moves;
the first link's counts), and `store_and_forward` (false: a message cuts through, and occupies all links of its route at
once; true: it is whole at the far end before it goes on). A node has `kind` (gpu, switch, nic) and `pos`, where a
picture puts it.

    ring 0─1─2─3─0    line 0─1─2─3    switch  0 1 2 3     fat-tree   spine 0   spine 1       rail    rail 0  rail 1
    mesh2d 0─1─2      torus2d: and           \\│ │/                    │ ╲     ╱ │                    │ ╲    ╱ │
           │ │ │      round the edges        switch              leaf 0    leaf 1            node 0  0 ─ 1  2 ─ 3  node 1
           3─4─5                                                   0 1       2 3

Latency of the named topologies: L for a cable between two GPUs and L for every switch that a message passes, so one
switch costs what one cable costs (half of it on either side).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np

from glasscluster.sim.errors import ScenarioError

if TYPE_CHECKING:
    from glasscluster.sim.hardware import Hardware, Link

Node = Hashable
Rule = Callable[[int, int], Sequence[Node]]  # from a GPU's number to another's: the nodes on the way, both ends included
LARGEST_FILE = 10_000_000
LIMITS = (
    ("bandwidth", 0.0, "must be more than 0"),
    ("latency_s", -1e-300, "must not be negative"),
    ("overhead_s", -1e-300, "must not be negative"),
)


class Topology:
    """A network. `gpus[i]` is the node of GPU i; `place[r]` the number of the GPU on which rank r runs."""

    def __init__(
        self, name: str, graph: nx.DiGraph, gpus: Sequence[Node], rule: Rule | None = None, place: Sequence[int] | None = None
    ) -> None:
        self.name, self.graph, self.gpus = name, graph, list(gpus)
        self.rule = rule or self._fewest_links
        self.place = list(range(len(self.gpus))) if place is None else list(place)
        self._routes: dict[tuple[int, int], list[int]] = {}

    def __repr__(self) -> str:
        return f"Topology({self.name}, {len(self.gpus)} GPUs, {len(self.links)} links)"

    # ---- links ---------------------------------------------------------------------------------------------------
    @cached_property
    def links(self) -> list[tuple[Node, Node]]:
        """Every link, numbered."""
        return list(self.graph.edges)

    @cached_property
    def number(self) -> dict[tuple[Node, Node], int]:
        """Link -> its number."""
        return {link: i for i, link in enumerate(self.links)}

    def _column(self, field: str, default: float) -> np.ndarray:
        return np.array([data.get(field, default) for _, _, data in self.graph.edges(data=True)], dtype=np.float64)

    @cached_property
    def bandwidth(self) -> np.ndarray:
        """Bytes/s of every link."""
        return self._column("bandwidth", 0.0)

    @cached_property
    def latency_s(self) -> np.ndarray:
        """Seconds in flight on every link."""
        return self._column("latency_s", 0.0)

    @cached_property
    def overhead_s(self) -> np.ndarray:
        """Seconds on the port of a sender whose route begins with this link."""
        return self._column("overhead_s", 0.0)

    @cached_property
    def forwards_whole(self) -> np.ndarray:
        """True where a message is stored at the far end before it goes on."""
        return self._column("store_and_forward", 0.0) > 0

    # ---- routes --------------------------------------------------------------------------------------------------
    def route(self, src: int, dst: int) -> list[int]:
        """Numbers of the links from rank `src` to rank `dst`. Raises ScenarioError where there is no way."""
        if (src, dst) not in self._routes:
            for field, rank in (("src", src), ("dst", dst)):
                if not 0 <= rank < len(self.place):
                    raise ScenarioError(field, rank, f"the topology {self.name} has ranks 0..{len(self.place) - 1}", range(len(self.place)))
            nodes = list(self.rule(self.place[src], self.place[dst]))
            self._routes[src, dst] = [self.number[hop] for hop in pairwise(nodes)]
        return self._routes[src, dst]

    def _fewest_links(self, src: int, dst: int) -> Sequence[Node]:
        try:
            found: Sequence[Node] = nx.shortest_path(self.graph, self.gpus[src], self.gpus[dst])
        except nx.NetworkXNoPath:
            raise ScenarioError("topology", self.name, f"there is no route from {self.gpus[src]} to {self.gpus[dst]}") from None
        return found

    def link(self, src: int, dst: int) -> Link:
        """The route as one wire, for replay without contention: the narrowest link and all latencies.

        Where links store and forward, the bytes are paid again on each segment: 1/bandwidth is then a sum.
        """
        from glasscluster.sim.hardware import Link

        segments = self.segments(src, dst)
        slowness = sum(1.0 / float(self.bandwidth[s].min()) for s in segments)
        bandwidth = 1.0 / slowness if len(segments) > 1 else min((float(self.bandwidth[s].min()) for s in segments), default=math.inf)
        latency = math.fsum(self.latency_s[i] for s in segments for i in s)
        return Link(self.name, bandwidth, latency, float(self.overhead_s[segments[0][0]]) if segments else 0.0)

    def segments(self, src: int, dst: int) -> list[list[int]]:
        """The route cut after every link that stores and forwards: a message is on one segment at a time."""
        cut: list[list[int]] = [[]]
        for i in self.route(src, dst):
            cut[-1].append(i)
            if self.forwards_whole[i]:
                cut.append([])
        return [s for s in cut if s]

    # ---- variations ----------------------------------------------------------------------------------------------
    def placed(self, order: Sequence[int]) -> Topology:
        """The same network with rank r on GPU `order[r]`."""
        if sorted(order) != list(range(len(self.gpus))):
            raise ScenarioError("placement", list(order), f"must name each of the GPUs 0..{len(self.gpus) - 1} once")
        return self._with(self.graph, order)

    def scaled(self, *, bandwidth: float = 1.0, latency: float = 1.0) -> Topology:
        """The same network with every link `bandwidth` times as wide and `latency` times as long."""
        graph = self.graph.copy()
        for _, _, data in graph.edges(data=True):
            data["bandwidth"] *= bandwidth
            data["latency_s"] *= latency
            data["overhead_s"] = data.get("overhead_s", 0.0) * latency
        return self._with(graph, self.place)

    def _with(self, graph: nx.DiGraph, place: Sequence[int]) -> Topology:
        return Topology(self.name, graph, self.gpus, None if self.rule == self._fewest_links else self.rule, place)

    # ---- sameness ------------------------------------------------------------------------------------------------
    def check(self) -> Topology:
        """Raise ScenarioError for a link that cannot be and for two GPUs without a way; returns itself."""
        for u, v, data in self.graph.edges(data=True):
            for field, least, rule in LIMITS:
                value = data.get(field, 0.0)
                if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or value <= least:
                    raise ScenarioError(f"{field.removesuffix('_s')} of link {u} → {v}", value, f"{rule}, a number in SI units")
        if len(self.gpus) < 2:
            raise ScenarioError("topology", self.name, f"has {len(self.gpus)} GPUs (nodes of kind gpu), at least 2 are needed")
        first = self.gpus[0]
        for way, graph in ((1, self.graph), (-1, self.graph.reverse(copy=False))):
            reached = {first, *nx.descendants(graph, first)}
            lost = next((g for g in self.gpus if g not in reached), None)
            if lost is not None:
                a, b = (first, lost)[::way]
                raise ScenarioError("topology", self.name, f"is disconnected: there is no route from {a} to {b}")
        return self


# ---- building blocks ---------------------------------------------------------------------------------------------
def gpu(i: int) -> str:
    """The node of GPU i."""
    return f"gpu {i}"


@dataclass(frozen=True)
class Cable:
    """What the named topologies are wired with: bytes/s, seconds a switch or cable adds, seconds on a sender's port."""

    bandwidth: float
    latency_s: float = 0.0
    overhead_s: float = 0.0


def _network(n: int, where: Callable[[int], tuple[float, float]]) -> nx.DiGraph:
    graph = nx.DiGraph()
    for i in range(n):
        graph.add_node(gpu(i), kind="gpu", pos=where(i))
    return graph


def _join(graph: nx.DiGraph, a: Node, b: Node, cable: Cable, *, wide: float = 1.0, long: float = 1.0) -> None:
    """A link each way, `wide` times the cable's bandwidth and `long` times its latency."""
    for u, v in ((a, b), (b, a)):
        graph.add_edge(u, v, bandwidth=float(cable.bandwidth * wide), latency_s=float(cable.latency_s * long), overhead_s=cable.overhead_s)


def _switch(graph: nx.DiGraph, name: str, pos: tuple[float, float], kind: str = "switch") -> str:
    graph.add_node(name, kind=kind, pos=pos)
    return name


def _circle(n: int) -> Callable[[int], tuple[float, float]]:
    return lambda i: (math.sin(2 * math.pi * i / n), math.cos(2 * math.pi * i / n))


def factors(n: int, dims: int) -> list[int]:
    """n as a product of `dims` whole numbers, as equal as they come, largest first: 12 in 2 -> [4, 3]."""
    if dims == 1:
        return [n]
    best = max(f for f in range(1, round(n ** (1 / dims)) + 1) if n % f == 0)
    return sorted([best, *factors(n // best, dims - 1)], reverse=True)


# ---- direct networks ---------------------------------------------------------------------------------------------
def ring(n: int, cable: Cable) -> Topology:
    """Each GPU joined to the next, the last to the first; messages take the shorter way round."""
    return _grid("ring", [n], cable, wraps=True, where=_circle(n))


def line(n: int, cable: Cable) -> Topology:
    """Each GPU joined to the next."""
    return _grid("line", [n], cable, wraps=False, where=lambda i: (float(i), 0.0))


def mesh2d(n: int, cable: Cable, dims: Sequence[int] | None = None) -> Topology:
    """Rows and columns; messages go along the row first, then the column."""
    return _grid("mesh2d", dims or factors(n, 2), cable, wraps=False)


def torus2d(n: int, cable: Cable, dims: Sequence[int] | None = None) -> Topology:
    """A mesh whose rows and columns are rings."""
    return _grid("torus2d", dims or factors(n, 2), cable, wraps=True)


def torus3d(n: int, cable: Cable, dims: Sequence[int] | None = None) -> Topology:
    """Rings in three dims, as in TPU pods."""
    return _grid("torus3d", dims or factors(n, 3), cable, wraps=True)


def _grid(name: str, dims: Sequence[int], cable: Cable, *, wraps: bool, where: Any = None) -> Topology:
    """GPU i has coordinates in `dims`, the last dim fastest; dimension-ordered routes, fastest dim first (deadlock-free)."""
    dims = list(dims)
    n = math.prod(dims)
    graph = _network(n, where or (lambda i: _flat(coordinates(i, dims), dims)))
    for i in range(n):
        here = coordinates(i, dims)
        for axis, size in enumerate(dims):
            if size > 1 and (wraps or here[axis] + 1 < size):
                after = gpu(_at({axis: (here[axis] + 1) % size}, here, dims))
                _join(graph, gpu(i), after, cable)
                if where is None and here[axis] + 1 == size > 2:  # drawn as going out of the picture and coming in again
                    out = np.subtract(_flat([h + (a == axis) for a, h in enumerate(here)], dims), _flat(here, dims))
                    graph.edges[gpu(i), after]["out"], graph.edges[after, gpu(i)]["out"] = tuple(out), tuple(-out)

    def rule(src: int, dst: int) -> list[Node]:
        here, there = coordinates(src, dims), coordinates(dst, dims)
        nodes: list[Node] = [gpu(src)]
        for axis in reversed(range(len(dims))):
            size, forward = dims[axis], (there[axis] - here[axis]) % dims[axis]
            direct = there[axis] > here[axis] if not wraps else 2 * forward <= size  # halfway round: up
            while here[axis] != there[axis]:
                here[axis] = (here[axis] + (1 if direct else -1)) % size
                nodes.append(gpu(_at({}, here, dims)))
        return nodes

    return Topology(name, graph, [gpu(i) for i in range(n)], rule)


def coordinates(i: int, dims: Sequence[int]) -> list[int]:
    """Where GPU i stands in a grid, the last dim fastest."""
    found = []
    for size in reversed(dims):
        found.append(i % size)
        i //= size
    return found[::-1]


def _at(changed: dict[int, int], here: Sequence[int], dims: Sequence[int]) -> int:
    number = 0
    for axis, size in enumerate(dims):
        number = number * size + changed.get(axis, here[axis])
    return number


def _flat(place: Sequence[int], dims: Sequence[int]) -> tuple[float, float]:
    """A grid on paper: two dims as they are, a third slanted."""
    padded = [0] * (3 - len(place)) + list(place)
    deep, down, right = padded
    return right + 0.28 * deep, -down - 0.22 * deep - deep * 0.02 * len(dims)


def hypercube(n: int, cable: Cable) -> Topology:
    """GPUs whose numbers differ in one bit are joined; messages mend the lowest bit first (e-cube)."""
    if n & (n - 1) or n < 2:
        raise ScenarioError("gpus", n, "a hypercube has a power of two of GPUs", [2**k for k in range(1, 16)])
    graph = _network(n, _circle(n))
    for i in range(n):
        for bit in range(n.bit_length() - 1):
            if i < i ^ (1 << bit):
                _join(graph, gpu(i), gpu(i ^ (1 << bit)), cable)

    def rule(src: int, dst: int) -> list[Node]:
        nodes: list[Node] = [gpu(src)]
        for bit in range(n.bit_length() - 1):
            if (src ^ dst) >> bit & 1:
                src ^= 1 << bit
                nodes.append(gpu(src))
        return nodes

    return Topology("hypercube", graph, [gpu(i) for i in range(n)], rule)


def fully_connected(n: int, cable: Cable) -> Topology:
    """A cable between every two GPUs."""
    graph = _network(n, _circle(n))
    for i in range(n):
        for j in range(i):
            _join(graph, gpu(i), gpu(j), cable)
    return Topology("fully-connected", graph, [gpu(i) for i in range(n)])


DGX1_LINKS = {  # NVLink cables between the GPUs of a DGX-1 with V100 (hybrid cube mesh; as `nvidia-smi topo -m` prints it, recalled)
    (0, 1): 1, (0, 2): 1, (0, 3): 2, (0, 4): 2, (1, 2): 2, (1, 3): 1, (1, 5): 2, (2, 3): 2, (2, 6): 1, (3, 7): 1,
    (4, 5): 1, (4, 6): 1, (4, 7): 2, (5, 6): 2, (5, 7): 1, (6, 7): 2,
}  # fmt: skip


def nvlink_mesh(n: int, cable: Cable) -> Topology:
    """The eight GPUs of a DGX-1, joined by one or two NVLink cables each of the given bandwidth, some not at all."""
    if n != 8:
        raise ScenarioError("gpus", n, "an NVLink mesh (DGX-1) has 8 GPUs", [8])
    corners = [(0, 1), (1, 1), (1, 0), (0, 0), (2.4, 1), (3.4, 1), (3.4, 0), (2.4, 0)]
    graph = _network(8, lambda i: (float(corners[i][0]), float(corners[i][1])))
    for (a, b), cables in DGX1_LINKS.items():
        _join(graph, gpu(a), gpu(b), cable, wide=cables)
    return Topology("nvlink-mesh", graph, [gpu(i) for i in range(8)])


# ---- switched networks -------------------------------------------------------------------------------------------
def switch(n: int, cable: Cable) -> Topology:
    """A star: every GPU has a port of one switch (an NVSwitch node)."""
    graph = _network(n, lambda i: (float(i), 0.0))
    centre = _switch(graph, "switch", ((n - 1) / 2, 1.0))
    for i in range(n):
        _join(graph, gpu(i), centre, cable, long=0.5)
    return Topology("switch", graph, [gpu(i) for i in range(n)], lambda a, b: [gpu(a), centre, gpu(b)])


def fat_tree(n: int, cable: Cable, leaf: int | None = None, oversubscription: float = 1.0) -> Topology:
    """Two tiers: `leaf` GPUs a leaf switch (default: about √n), every leaf joined to every spine.

    A leaf's uplinks carry together leaf·β / oversubscription. The spine is chosen by the receiver (D-mod-K routing,
    Zahavi 2012), so that a shift of all ranks by the same distance meets no contention when nothing is oversubscribed.
    """
    down = leaf or _divisor_near(n, math.sqrt(n))
    if down < 1 or n % down:
        raise ScenarioError("leaf", down, f"{n} GPUs must divide evenly over leaves", [d for d in range(1, n + 1) if n % d == 0])
    if not (math.isfinite(oversubscription) and oversubscription >= 1):
        raise ScenarioError("oversubscription", oversubscription, "must be at least 1 (1: as much bandwidth up as down)", [1, 2, 4])
    spines, leaves = max(1, int(down / oversubscription)), n // down
    up = down / oversubscription / spines
    graph = _network(n, lambda i: (float(i), 0.0))
    for k in range(leaves):
        _switch(graph, f"leaf {k}", (k * down + (down - 1) / 2, 1.0))
    for s in range(spines):
        _switch(graph, f"spine {s}", ((s + 0.5) * n / spines - 0.5, 2.0))
    for i in range(n):
        _join(graph, gpu(i), f"leaf {i // down}", cable, long=0.5)
    for k in range(leaves):
        for s in range(spines):
            _join(graph, f"leaf {k}", f"spine {s}", cable, wide=up)

    def rule(src: int, dst: int) -> list[Node]:
        a, b = src // down, dst // down
        if a == b:
            return [gpu(src), f"leaf {a}", gpu(dst)]
        return [gpu(src), f"leaf {a}", f"spine {dst % spines}", f"leaf {b}", gpu(dst)]

    return Topology("fat-tree", graph, [gpu(i) for i in range(n)], rule)


def _divisor_near(n: int, wish: float) -> int:
    return min((d for d in range(1, n + 1) if n % d == 0), key=lambda d: (abs(d - wish), d))


def rail(n: int, cable: Cable, node: int | None = None) -> Topology:
    """Nodes of `node` GPUs (default 8, or all) behind a switch each; GPU k of every node also on rail switch k.

    A message to another node's GPU k goes over rail k: the sender hands it to GPU k of its own node first, over the
    node's switch (as NCCL's PXN does), where it is not GPU k itself. Rails are not joined to each other.
    """
    g = node or (8 if n % 8 == 0 else n)
    if g < 1 or n % g:
        raise ScenarioError("nodes", n // g if g else 0, f"{n} GPUs must divide evenly over the nodes")
    nodes = n // g
    graph = _network(n, lambda i: (float(i + i // g), 0.0))
    for m in range(nodes):
        _switch(graph, f"node {m}", (m * (g + 1) + (g - 1) / 2, -1.0))
    for k in range(g if nodes > 1 else 0):
        _switch(graph, f"rail {k}", ((k + 0.5) * (n + nodes - 1) / g - 0.5, 1.0))
    for i in range(n):
        _join(graph, gpu(i), f"node {i // g}", cable, long=0.5)
        if nodes > 1:
            _join(graph, gpu(i), f"rail {i % g}", cable, long=0.5)

    def rule(src: int, dst: int) -> list[Node]:
        (a, k), (b, j) = divmod(src, g), divmod(dst, g)
        if a == b:
            return [gpu(src), f"node {a}", gpu(dst)]
        first: list[Node] = [gpu(src)] if k == j else [gpu(src), f"node {a}", gpu(a * g + j)]
        return [*first, f"rail {j}", gpu(dst)]

    return Topology("rail", graph, [gpu(i) for i in range(n)], rule)


def pcie_tree(n: int, cable: Cable) -> Topology:
    """Two GPUs a PCIe switch, two switches a CPU socket, sockets joined to the first one: every link of one bandwidth."""
    graph = _network(n, lambda i: (float(i), 0.0))
    for i in range(n):
        under, socket = f"pcie {i // 2}", f"cpu {i // 4}"
        if under not in graph:
            _switch(graph, under, (i + 0.5, 1.0))
            if socket not in graph:
                _switch(graph, socket, (i + 1.5, 2.0))
                if i:
                    _join(graph, "cpu 0", socket, cable)
            _join(graph, under, socket, cable, long=0.5)
        _join(graph, gpu(i), under, cable, long=0.5)
    return Topology("pcie-tree", graph, [gpu(i) for i in range(n)])


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
    """A topology by name. `options` are the builder's own: dims, leaf, oversubscription, node."""
    if name not in BUILDERS:
        raise ScenarioError("topology", name, "is neither a known topology nor a .json file", list(BUILDERS))
    if n < 2:
        raise ScenarioError("gpus", n, "a network joins at least 2 GPUs")
    known = BUILDERS[name].__code__.co_varnames[2 : BUILDERS[name].__code__.co_argcount]
    for option, value in options.items():
        if option not in known:
            raise ScenarioError(option, value, f"the topology {name} has no such option", list(known) or None)
    return BUILDERS[name](n, cable, **options).check()


# ---- the catalogue's clusters ------------------------------------------------------------------------------------
def of_hardware(hw: Hardware, gpus: int) -> Topology:
    """Nodes × network ports of a catalogue entry. GPUs of a node meet at one switch (NVSwitch, or the PCIe root).

    A node's `nics` ports are each shared by node_size/nics GPUs; all ports meet at one network switch without a bottleneck.
    """
    g = min(hw.node_size, gpus)
    nodes, nics = -(-gpus // g), min(hw.nics or hw.node_size, hw.node_size)
    near, far = (Cable(x.bandwidth, x.latency_s, x.overhead_s) for x in (hw.intra, hw.inter))
    port = hw.node_size / nics
    graph = _network(gpus, lambda i: (float(i + i // g), 0.0))
    wide = (gpus + nodes - 2) / 2
    for m in range(nodes):
        _switch(graph, f"node {m}", (m * (g + 1) + (g - 1) / 2, -1.0))
    if nodes > 1:
        _switch(graph, "network", (wide, 2.0))
    for i in range(gpus):
        m, k = divmod(i, g)
        _join(graph, gpu(i), f"node {m}", near, long=0.5)
        if nodes > 1:
            nic = _nic(hw, m, k, nics)
            if nic not in graph:
                _switch(graph, nic, (m * (g + 1) + k + (hw.node_size / nics - 1) / 2, 1.0), "nic")
                _join(graph, nic, "network", far, wide=port, long=0.5)
            _join(graph, gpu(i), nic, far, wide=port, long=0.0)

    def rule(src: int, dst: int) -> list[Node]:
        (a, k), (b, j) = divmod(src, g), divmod(dst, g)
        if a == b:
            return [gpu(src), f"node {a}", gpu(dst)]
        return [gpu(src), _nic(hw, a, k, nics), "network", _nic(hw, b, j, nics), gpu(dst)]

    return Topology(hw.name, graph, [gpu(i) for i in range(gpus)], rule)


def _nic(hw: Hardware, node: int, place: int, nics: int) -> str:
    return f"nic {node}.{place * nics // hw.node_size}"


# ---- a network of your own ---------------------------------------------------------------------------------------
def from_graph(graph: nx.Graph, gpus: Iterable[Node] | None = None, *, name: str = "graph") -> Topology:
    """A networkx graph with `bandwidth` (bytes/s) and `latency` (or `latency_s`, seconds) on its edges.

    An undirected edge is a link each way. `gpus`: the nodes that are GPUs, in rank order (default: nodes whose `kind` is
    gpu; all nodes where none has a kind). Routes have the fewest links. Raises ScenarioError naming the link or the pair.
    """
    directed = nx.DiGraph()
    for node, data in graph.nodes(data=True):
        directed.add_node(node, **{"kind": "switch" if data.get("kind") else "gpu", **data})
    for u, v, data in graph.edges(data=True):
        known = ("bandwidth", "latency", "latency_s", "overhead_s")
        values = {k: _number(f"{k} of link {u} → {v}", x) for k, x in data.items() if k in known}
        values = {"latency_s" if k == "latency" else k: x for k, x in values.items()}
        values.setdefault("latency_s", 0.0)
        values["store_and_forward"] = bool(data.get("store_and_forward", False))
        directed.add_edge(u, v, **values)
        if not graph.is_directed():
            directed.add_edge(v, u, **values)
    chosen = list(gpus) if gpus is not None else [n for n, kind in directed.nodes(data="kind") if kind == "gpu"]
    for node in chosen:
        if node not in directed:
            raise ScenarioError("gpus", node, "is no node of the graph", list(directed.nodes))
        directed.nodes[node]["kind"] = "gpu"
    if not all("pos" in d for _, d in directed.nodes(data=True)):
        places = nx.circular_layout(directed)
        for node, data in directed.nodes(data=True):
            data["pos"] = tuple(float(x) for x in places[node])
    return Topology(name, directed, chosen).check()


def _number(field: str, value: Any) -> Any:
    from glasscluster.sim.quantities import parse_rate, parse_time

    if not isinstance(value, str):
        return value
    return parse_rate(field, value) if field.startswith("bandwidth") else parse_time(field, value)


def read(path: str | Path) -> Topology:
    """A file as `networkx.node_link_data` writes it: {"nodes": [{"id", "kind"}], "edges": [{"source", "target", "bandwidth", ..}]}."""
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ScenarioError("topology", path.name, f"the file is larger than {LARGEST_FILE:,} bytes")
        data = json.loads(path.read_text())
        edges = "edges" if "edges" in data else "links"
        graph = nx.node_link_graph({"directed": False, "multigraph": False, "graph": {}, **data}, edges=edges)
    except ScenarioError:
        raise
    except OSError as problem:
        raise ScenarioError("topology", str(path), f"cannot be read: {problem.strerror}") from None
    except Exception as problem:  # networkx raises whatever the file's shape leads it into
        raise ScenarioError("topology", path.name, f"is not a network (nodes and edges): {type(problem).__name__}: {problem}") from None
    return from_graph(graph, name=path.stem)
