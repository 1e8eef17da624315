"""A network of your own: from a networkx graph, or from a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import networkx as nx

from glasscluster.base.errors import InputError
from glasscluster.base.files import read_json
from glasscluster.base.quantities import parse_rate, parse_time
from glasscluster.sim.time.network.topology import Node, Topology, links_as_added

LARGEST_FILE = 10_000_000


def from_graph(graph: nx.Graph, gpus: Iterable[Node] | None = None, *, name: str = "graph") -> Topology:
    """A networkx graph with `bandwidth` (bytes/s) and `latency` (or `latency_s`, seconds) on its edges.

    An undirected edge is a link each way. `gpus`: the nodes that are GPUs, in rank order (default: nodes
    whose `kind` is gpu; all nodes where none has a kind). Routes have the fewest links. Raises InputError
    naming the link or the pair.
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
    chosen = (
        list(gpus) if gpus is not None else [n for n, kind in directed.nodes(data="kind") if kind == "gpu"]
    )
    for node in chosen:
        if node not in directed:
            raise InputError("gpus", node, "is no node of the graph", list(directed.nodes))
        directed.nodes[node]["kind"] = "gpu"
    if not all("pos" in d for _, d in directed.nodes(data=True)):
        places = nx.circular_layout(directed)
        for node, data in directed.nodes(data=True):
            data["pos"] = tuple(float(x) for x in places[node])
    return Topology(name, directed, chosen).check()


def _number(field: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return parse_rate(field, value) if field.startswith("bandwidth") else parse_time(field, value)


def read(path: str | Path) -> Topology:
    """A file as `networkx.node_link_data` or `as_data` writes it.

    {"nodes": [{"id", "kind"}], "edges": [{"source", "target", "bandwidth", ..}]}, and where `as_data` wrote
    it the order of GPUs, the placement of ranks and the routes.
    """
    path = Path(path)
    return from_data(read_json("topology", path, LARGEST_FILE), name=path.stem)


# ---- as data, exactly --------------------------------------------------------------------------------------
NODE_FIELDS = ("kind", "pos")
LINK_FIELDS = ("bandwidth", "latency_s", "overhead_s", "store_and_forward", "out")
SAVED = ("gpus", "place", "routes")  # fields that only `as_data` writes


def as_data(network: Topology) -> dict[str, Any]:
    """A network as JSON data, from which `from_data` makes the same: links, order, placement and routes.

    Routes are listed, as numbers of nodes, where a rule of the network's own makes them; else the fewest
    links do. Raises InputError for a node that JSON cannot name.
    """
    graph = network.graph
    number = {node: i for i, node in enumerate(graph)}
    data: dict[str, Any] = {
        "name": network.name,
        "directed": True,
        "nodes": [{"id": _json_node(n), **_plain(d, NODE_FIELDS)} for n, d in graph.nodes(data=True)],
        "edges": [
            {"source": _json_node(u), "target": _json_node(v), **_plain(graph.edges[u, v], LINK_FIELDS)}
            for u, v in links_as_added(graph)
        ],
        "gpus": [_json_node(n) for n in network.gpus],
        "place": network.place,
        "routes": None,
    }
    if not network.routes_are_fewest_links:
        gpus = range(len(network.gpus))
        data["routes"] = [[" ".join(str(number[n]) for n in network.rule(a, b)) for b in gpus] for a in gpus]
    return data


def from_data(data: Any, *, name: str) -> Topology:
    """The network that JSON data describes; `name` where the data gives none. Raises InputError."""
    try:
        if all(field in data for field in SAVED):
            return _saved(data, data.get("name", name))
        edges = "edges" if "edges" in data else "links"
        graph = nx.node_link_graph({"directed": False, "multigraph": False, "graph": {}, **data}, edges=edges)
        listed = {_node(node["id"]) for node in data["nodes"]}
        if unlisted := [node for node in graph if node not in listed]:  # networkx would make a GPU of it
            rule = "is named by an edge, and nodes do not list it"
            raise InputError("topology", unlisted[0], rule, sorted(map(str, listed)))
    except InputError:
        raise
    except Exception as problem:  # networkx may raise anything when the data is malformed
        said = f"is not a network (nodes and edges): {type(problem).__name__}: {problem}"
        raise InputError("topology", name, said) from None
    return from_graph(graph, name=name)


def _saved(data: dict[str, Any], name: str) -> Topology:
    graph = nx.DiGraph()
    for node in data["nodes"]:
        graph.add_node(_node(node["id"]), **{k: _node(v) for k, v in node.items() if k in NODE_FIELDS})
    for edge in data["edges"]:
        values = {k: _node(v) for k, v in edge.items() if k in LINK_FIELDS}
        graph.add_edge(_node(edge["source"]), _node(edge["target"]), **values)
    nodes, rule = list(graph), None
    if data["routes"] is not None:
        routes = [[[nodes[int(i)] for i in way.split()] for way in row] for row in data["routes"]]

        def rule(src: int, dst: int) -> list[Node]:
            return routes[src][dst]

    return Topology(name, graph, [_node(n) for n in data["gpus"]], rule, data["place"]).check()


def _json_node(node: Node) -> Any:
    if isinstance(node, tuple):
        return [_json_node(n) for n in node]
    if not isinstance(node, (str, int, float)):
        raise InputError("topology", node, "a node is saved if it is a word, a number or a tuple of them")
    return node


def _node(value: Any) -> Any:
    """Turn a list back into the tuple that JSON wrote as a list."""
    return tuple(_node(x) for x in value) if isinstance(value, list) else value


def _plain(data: dict[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    """Convert numpy's numbers, as in the positions of a picture, to Python's."""
    return {k: [float(x) for x in data[k]] if k in ("pos", "out") else data[k] for k in fields if k in data}
