"""A recorded graph as a page carries it: columns, delta-coded, byte-shuffled, deflated, base64.

Rows stand in canonical order (rank, lane, order), where neighbours look alike: about one byte an event is
left. What the page unpacks (visualize/templates/packed.js) is the whole recording, and the page replays it
itself: its times, its downloads and its what-if come from what ran.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from glasscluster.base.errors import InputError
from glasscluster.base.files import read_json
from glasscluster.sim.recording.arrays import LARGEST_UNPACKED
from glasscluster.sim.recording.events import COLUMNS, KINDS, LANES_PER_GROUP, PHASES, PURPOSES
from glasscluster.sim.recording.graph import ExecutionGraph, rendezvous_edges
from glasscluster.sim.recording.memory_log import as_columns, from_columns
from glasscluster.sim.recording.order import csr, topological_order
from glasscluster.sim.recording.sound import Unsound, check

FORMAT = "glasscluster.graph/3"
WIDTHS = (np.int8, np.int16, np.int32, np.int64)


def _narrow(values: np.ndarray) -> np.ndarray:
    """The same whole numbers in the narrowest signed type that holds them."""
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    for kind in WIDTHS:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            break
    return values.astype(kind)


def pack(columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Whole-number columns as `{"columns": [[name, bytes a number, numbers], ..], "data": ..}`.

    The data is one zlib stream in base64.
    """
    listed, streams = [], []
    for name, values in columns.items():
        steps = _narrow(np.diff(np.asarray(values, dtype=np.int64), prepend=0))
        listed.append([name, steps.itemsize, len(steps)])
        # all lowest bytes first, then the next: runs of equal bytes are what deflate finds
        streams.append(steps.view(np.uint8).reshape(-1, steps.itemsize).T.tobytes())
    return {"columns": listed, "data": base64.b64encode(zlib.compress(b"".join(streams), 9)).decode()}


def unpack(packed: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Undo `pack`: the columns by name."""
    stream = zlib.decompressobj()
    raw, at, columns = stream.decompress(base64.b64decode(packed["data"]), LARGEST_UNPACKED), 0, {}
    if stream.unconsumed_tail:
        raise Unsound(f"it unpacks to more than {LARGEST_UNPACKED:,} bytes")
    for name, width, n in packed["columns"]:
        shuffled = np.frombuffer(raw, np.uint8, n * width, at).reshape(width, n)
        at += n * width
        steps = np.ascontiguousarray(shuffled.T).view(WIDTHS[(1, 2, 4, 8).index(width)]).reshape(-1)
        columns[name] = np.cumsum(steps, dtype=np.int64)
    return columns


def pack_graph(graph: ExecutionGraph, rendezvous: bool = False) -> dict[str, Any]:
    """Everything that an `ExecutionGraph` knows, for visualize/templates/packed.js and for `load_packed`.

    Raises:
        InputError: the graph is folded by roles, which no page shows.
    """
    if graph.roles is not None:
        rule = f"holds {graph.ranks:,} roles of {graph.gpus:,} GPUs, which no page shows: record every GPU"
        raise InputError("graph", "a page", rule)
    order, place = graph.canonical, graph.place
    columns = {c: getattr(graph, c)[order] for c in COLUMNS}
    edges = (
        rendezvous_edges(graph)
        if rendezvous
        else (graph.dep_idx, np.repeat(np.arange(len(graph)), np.diff(graph.dep_ptr)))
    )
    source, target = (place[e] for e in edges)
    by_target = np.lexsort((source, target))
    columns["dep_count"] = np.bincount(target, minlength=len(order))
    columns["dep_back"] = (target - source)[
        by_target
    ]  # how many rows back (forward, when negative) a dependency is
    matched = graph.match[order]
    columns["match"] = np.where(matched >= 0, place[matched], -1)
    memory, beside = as_columns(graph.memory)
    columns |= memory
    return {
        "ranks": graph.ranks,
        "names": graph.names,
        "groups": {
            str(r): {str(g): [a, list(m)] for g, (a, m) in groups.items()}
            for r, groups in sorted(graph.groups.items())
        },
        "memory": beside,
        "info": {
            k: v
            for k, v in graph.info.items()
            if isinstance(v, (str, int, float, bool, dict, list)) or v is None
        },
        "kinds": list(KINDS),
        "phases": list(PHASES),
        "purposes": list(PURPOSES),
        "lanes_per_group": LANES_PER_GROUP,
        **pack(columns),
    }


def load_packed(path: str | Path) -> ExecutionGraph:
    """The graph of a `graph.json` that a report's download button wrote."""
    try:
        packed = read_json("graph", path)
        if packed["format"] != FORMAT:
            raise InputError(
                "graph", str(path), f"has format {packed['format']}, this version reads {FORMAT}"
            )
        if "folded" in packed["info"]:
            raise InputError("graph", str(path), "is folded, and a page keeps only its roles: take graph.npz")
        columns = unpack(packed)
        n = len(columns["rank"])
        if not ((columns["match"] >= -1) & (columns["match"] < n)).all():
            raise Unsound("a receive's send is not there")
        target = np.repeat(np.arange(n), columns["dep_count"])
        source, match = target - columns["dep_back"], columns["match"]
        if not ((source >= 0) & (source < n)).all():
            raise Unsound("an event follows one that is not there")
        received = np.flatnonzero(match >= 0)
        order = topological_order(
            n, np.concatenate([source, match[received]]), np.concatenate([target, received]), np.arange(n)
        )
        place = np.empty_like(order)
        place[order] = np.arange(n)
        dep_ptr, dep_idx = csr(n, place[source], place[target])
        meta = {
            "names": packed["names"],
            "ranks": packed["ranks"],
            "info": packed["info"],
            "groups": {
                int(r): {int(g): (a, m) for g, (a, m) in groups.items()}
                for r, groups in packed["groups"].items()
            },
            "memory": from_columns(columns, packed["memory"]),
        }
        match = np.where(match[order] >= 0, place[match[order]], -1)
        graph = ExecutionGraph({c: columns[c][order] for c in COLUMNS}, dep_ptr, dep_idx, match, meta)
        check(graph)
        return graph
    except InputError:
        raise
    except Unsound as problem:
        raise InputError("graph", str(path), f"is not a recorded graph: {problem}") from None
    except Exception as problem:  # a damaged or foreign file fails in many ways
        raise InputError(
            "graph", str(path), f"is not a report's graph.json ({type(problem).__name__})"
        ) from None


def reals(values: Any) -> str:
    """Numbers as base64 of little-endian float64."""
    return base64.b64encode(np.asarray(values, dtype="<f8").tobytes()).decode()
