"""A network of your own: from a networkx graph, or from a file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import networkx as nx

from glasscluster.base.errors import InputError
from glasscluster.base.quantities import parse_rate, parse_time
from glasscluster.sim.time.network.topology import Node, Topology

LARGEST_FILE = 10_000_000


def from_graph(graph: nx.Graph, gpus: Iterable[Node] | None = None, *, name: str = "graph") -> Topology:
    """A networkx graph with `bandwidth` (bytes/s) and `latency` (or `latency_s`, seconds) on its edges.

    An undirected edge is a link each way. `gpus`: the nodes that are GPUs, in rank order (default: nodes whose `kind` is
    gpu; all nodes where none has a kind). Routes have the fewest links. Raises InputError naming the link or the pair.
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
    """A file as `networkx.node_link_data` writes it: {"nodes": [{"id", "kind"}], "edges": [{"source", "target", "bandwidth", ..}]}."""
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise InputError("topology", path.name, f"the file is larger than {LARGEST_FILE:,} bytes")
        data = json.loads(path.read_text())
        edges = "edges" if "edges" in data else "links"
        graph = nx.node_link_graph({"directed": False, "multigraph": False, "graph": {}, **data}, edges=edges)
    except InputError:
        raise
    except OSError as problem:
        raise InputError("topology", str(path), f"cannot be read: {problem.strerror}") from None
    except Exception as problem:  # networkx raises whatever the file's shape leads it into
        raise InputError("topology", path.name, f"is not a network (nodes and edges): {type(problem).__name__}: {problem}") from None
    return from_graph(graph, name=path.stem)
