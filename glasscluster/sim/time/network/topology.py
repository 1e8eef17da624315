"""The network between GPUs: a directed networkx graph of GPUs, switches and network ports, with explicit
routes.

Every edge is a link in one direction and may be shared: a GPU's port to its switch and a node's network port
are links like any other. An edge has `bandwidth` (bytes/s), `latency_s`, `overhead_s` (on the sender's port
before anything moves; the first link's counts), and `store_and_forward` (false: a message cuts through, and
occupies all links of its route at once; true: it is whole at the far end before it goes on). A node has
`kind` (gpu, switch, nic) and `pos`, where a picture puts it.

    ring   0─1─2─3─0  line 0─1─2─3    switch  0 1 2 3  fat-tree spine 0   spine 1  rail rail 0  rail 1
    mesh2d 0─1─2      torus2d: and             \\│ │/               │ ╲     ╱ │            │ ╲      ╱ │
           │ │ │      round the edges          switch           leaf 0    leaf 1  node 0  0 ─ 1  2 ─ 3  node 1
           3─4─5                                                 0 1       2 3

Latency of the named topologies: L for a cable between two GPUs and L for every switch that a message passes,
so one switch costs what one cable costs (half of it on either side).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from itertools import pairwise

import networkx as nx
import numpy as np

from glasscluster.base.errors import InputError
from glasscluster.base.link import Link
from glasscluster.sim.time.distinct import distinct

Node = Hashable
Rule = Callable[
    [int, int], Sequence[Node]
]  # (number of a GPU, number of another) -> the nodes on the way, both ends included
# (numbers of GPUs, numbers of others) -> a number for each pair: those with the same one have wires alike
Alike = Callable[[np.ndarray, np.ndarray], np.ndarray]
LIMITS = (
    ("bandwidth", 0.0, "must be more than 0"),
    ("latency_s", -1e-300, "must not be negative"),
    ("overhead_s", -1e-300, "must not be negative"),
)


class Topology:
    """A network. `gpus[i]` is the node of GPU i; `place[r]` the number of the GPU on which rank r runs.

    `alike` says without a look at their routes which pairs of GPUs are joined by wires alike (as `link` makes
    them), in a network whose links are alike wherever they join nodes of the same kinds. Every number that it
    gives to some pair, it gives to a pair with GPU 0.
    """

    def __init__(
        self,
        name: str,
        graph: nx.DiGraph,
        gpus: Sequence[Node],
        rule: Rule | None = None,
        place: Sequence[int] | None = None,
        alike: Alike | None = None,
    ) -> None:
        self.name, self.graph, self.gpus = name, graph, list(gpus)
        self.rule, self.alike = rule or self._fewest_links, alike
        self.place = list(range(len(self.gpus))) if place is None else list(place)
        self._routes: dict[tuple[int, int], list[int]] = {}

    def __repr__(self) -> str:
        return f"Topology({self.name}, {len(self.gpus)} GPUs, {len(self.links)} links)"

    # ---- links ---------------------------------------------------------------------------------------------
    @cached_property
    def links(self) -> list[tuple[Node, Node]]:
        """Every link, numbered."""
        return list(self.graph.edges)

    @cached_property
    def number(self) -> dict[tuple[Node, Node], int]:
        """The number of each link."""
        return {link: i for i, link in enumerate(self.links)}

    def _column(self, field: str, default: float) -> np.ndarray:
        return np.array(
            [data.get(field, default) for _, _, data in self.graph.edges(data=True)], dtype=np.float64
        )

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

    # ---- routes --------------------------------------------------------------------------------------------
    def route(self, src: int, dst: int) -> list[int]:
        """Return the numbers of the links from rank `src` to rank `dst`. Raises InputError where there is no
        route.
        """
        if (src, dst) not in self._routes:
            for field, rank in (("src", src), ("dst", dst)):
                if not 0 <= rank < len(self.place):
                    raise InputError(
                        field,
                        rank,
                        f"the topology {self.name} has ranks 0..{len(self.place) - 1}",
                        range(len(self.place)),
                    )
            nodes = list(self.rule(self.place[src], self.place[dst]))
            self._routes[src, dst] = [self.number[hop] for hop in pairwise(nodes)]
        return self._routes[src, dst]

    def _fewest_links(self, src: int, dst: int) -> Sequence[Node]:
        try:
            nodes: Sequence[Node] = nx.shortest_path(self.graph, self.gpus[src], self.gpus[dst])
        except nx.NetworkXNoPath:
            raise InputError(
                "topology", self.name, f"there is no route from {self.gpus[src]} to {self.gpus[dst]}"
            ) from None
        return nodes

    def link(self, src: int, dst: int) -> Link:
        """The route as one wire, for replay without contention: the narrowest link and all latencies.

        Where links store and forward, the bytes are paid again on each segment: 1/bandwidth is then a sum.
        """
        segments = self.segments(src, dst)
        slowness = sum(1.0 / float(self.bandwidth[s].min()) for s in segments)
        bandwidth = (
            1.0 / slowness
            if len(segments) > 1
            else min((float(self.bandwidth[s].min()) for s in segments), default=math.inf)
        )
        latency = math.fsum(self.latency_s[i] for s in segments for i in s)
        return Link(
            self.name, bandwidth, latency, float(self.overhead_s[segments[0][0]]) if segments else 0.0
        )

    # ---- wires alike ---------------------------------------------------------------------------------------
    @cached_property
    def _links_as_built(self) -> bool:
        """Whether links are alike wherever they join nodes of the same kinds: nobody changed one."""
        kinds: dict[frozenset[str], tuple[float, ...]] = {}
        columns = (self.bandwidth, self.latency_s, self.overhead_s, self.forwards_whole)
        if all((column == column[0]).all() for column in columns):
            return True
        for (u, v), *link in zip(self.links, *(c.tolist() for c in columns), strict=True):
            ends = frozenset(self.graph.nodes[node].get("kind", "") for node in (u, v))
            if kinds.setdefault(ends, tuple(link)) != tuple(link):
                return False
        return True

    def classes(self, src: np.ndarray, dst: np.ndarray) -> np.ndarray | None:
        """Return a number for each pair of ranks: pairs with the same one have equal `link`s. None where only
        their routes can tell.
        """
        if self.alike is None or not self._links_as_built:
            return None
        place = np.array(self.place)
        return self.alike(place[src], place[dst])

    def wires(self, src: np.ndarray, dst: np.ndarray) -> tuple[list[Link], np.ndarray]:
        """Return the different wires between pairs of ranks, and for each pair the number of its wire."""
        ranks = len(self.place)
        kinds = self.classes(src, dst)
        keys = src * ranks + dst if kinds is None else kinds
        known, place = distinct(keys, int(keys.max(initial=0)) + 1)
        example = np.empty(len(known), dtype=np.int64)
        example[place] = np.arange(len(keys))  # some pair of each class
        number: dict[Link, int] = {}
        pairs = zip(src[example].tolist(), dst[example].tolist(), strict=True)
        of_class = [number.setdefault(self.link(a, b), len(number)) for a, b in pairs]
        return list(number), np.array(of_class, dtype=np.int64)[place]

    def one_wire(self) -> Link | None:
        """Return the wire between any two ranks, where all pairs have equal ones; None where they differ."""
        n = len(self.place)
        alike = self.alike is not None and self._links_as_built
        wire = self.link(0, 1)
        here = self.place.index(0)  # on GPU 0, whose pairs show every class
        for a in (here,) if alike else range(n):
            others = np.array([b for b in range(n) if b != a])
            for b in self._one_of_each(a, others) if alike else others.tolist():
                if self.link(a, b) != wire:
                    return None
        return wire

    def _one_of_each(self, rank: int, others: np.ndarray) -> list[int]:
        """One of the other ranks for each class of wires that join it to `rank`."""
        kinds = self.classes(np.full(len(others), rank), others)
        assert kinds is not None
        return others[np.unique(kinds, return_index=True)[1]].tolist()

    def segments(self, src: int, dst: int) -> list[list[int]]:
        """The route cut after every link that stores and forwards: a message is on one segment at a time."""
        cut: list[list[int]] = [[]]
        for i in self.route(src, dst):
            cut[-1].append(i)
            if self.forwards_whole[i]:
                cut.append([])
        return [s for s in cut if s]

    @property
    def routes_are_fewest_links(self) -> bool:
        """Whether routes have the fewest links, as they do where the network has no rule of its own."""
        return self.rule == self._fewest_links

    # ---- variations ----------------------------------------------------------------------------------------
    def placed(self, order: Sequence[int]) -> Topology:
        """The same network with rank r on GPU `order[r]`."""
        if sorted(order) != list(range(len(self.gpus))):
            raise InputError(
                "placement", list(order), f"must name each of the GPUs 0..{len(self.gpus) - 1} once"
            )
        return self._with(self.graph, order)

    def scaled(self, *, bandwidth: float = 1.0, latency: float = 1.0) -> Topology:
        """The same network with every link `bandwidth` times as wide and `latency` times as long."""
        # not graph.copy(): it lists links in another order, which decides between equally short routes
        graph = nx.DiGraph()
        graph.add_nodes_from(self.graph.nodes(data=True))
        graph.add_edges_from((u, v, dict(self.graph.edges[u, v])) for u, v in links_as_added(self.graph))
        for _, _, data in graph.edges(data=True):
            data["bandwidth"] *= bandwidth
            data["latency_s"] *= latency
            data["overhead_s"] = data.get("overhead_s", 0.0) * latency
        return self._with(graph, self.place)

    def _with(self, graph: nx.DiGraph, place: Sequence[int]) -> Topology:
        rule = None if self.routes_are_fewest_links else self.rule
        return Topology(self.name, graph, self.gpus, rule, place, self.alike)

    # ---- sameness ------------------------------------------------------------------------------------------
    def check(self) -> Topology:
        """Raise InputError for an impossible link and for two GPUs without a route; returns the network
        itself.
        """
        for u, v, data in self.graph.edges(data=True):
            for field, least, rule in LIMITS:
                value = data.get(field, 0.0)
                if (
                    not isinstance(value, (int, float))
                    or isinstance(value, bool)
                    or not math.isfinite(value)
                    or value <= least
                ):
                    raise InputError(
                        f"{field.removesuffix('_s')} of link {u} → {v}",
                        value,
                        f"{rule}, a number in SI units",
                    )
        if len(self.gpus) < 2:
            raise InputError(
                "topology", self.name, f"has {len(self.gpus)} GPUs (nodes of kind gpu), at least 2 are needed"
            )
        first = self.gpus[0]
        for way, graph in ((1, self.graph), (-1, self.graph.reverse(copy=False))):
            reached = {first, *nx.descendants(graph, first)}
            lost = next((g for g in self.gpus if g not in reached), None)
            if lost is not None:
                a, b = (first, lost)[::way]
                raise InputError("topology", self.name, f"is disconnected: there is no route from {a} to {b}")
        return self


def links_as_added(graph: nx.DiGraph) -> list[tuple[Node, Node]]:
    """The links in an order in which adding them lists every node's links out and in as they are now.

    Where two routes are equally short, networkx takes the one that those lists name first.
    """
    order = nx.DiGraph()
    order.add_nodes_from(graph.edges)
    for node in graph:
        order.add_edges_from(pairwise((node, v) for v in graph.succ[node]))
        order.add_edges_from(pairwise((u, node) for u in graph.pred[node]))
    return list(nx.topological_sort(order))
