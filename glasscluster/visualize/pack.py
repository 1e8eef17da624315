"""A recorded graph as a page carries it: columns, delta-coded, byte-shuffled, deflated, base64. The page replays it itself.

Rows stand in canonical order (rank, lane, order), where neighbours look alike: about one byte an event is left. What
the page unpacks is the whole recording, so that its times, its downloads and its what-if come from what ran.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from glasscluster.sim.graph import COLUMNS
from glasscluster.sim.vocabulary import KINDS, LANES_PER_GROUP, PHASES, PURPOSES

if TYPE_CHECKING:
    from glasscluster.sim.graph import ExecutionGraph
    from glasscluster.sim.hardware import Hardware

WIDTHS = (np.int8, np.int16, np.int32, np.int64)


def _narrow(values: np.ndarray) -> np.ndarray:
    """The same whole numbers in the narrowest signed type that holds them."""
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    for kind in WIDTHS:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            break
    return values.astype(kind)


def pack(columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Whole-number columns as `{"columns": [[name, bytes a number, numbers], ..], "data": base64 of one zlib stream}`."""
    listed, parts = [], []
    for name, values in columns.items():
        steps = _narrow(np.diff(np.asarray(values, dtype=np.int64), prepend=0))
        listed.append([name, steps.itemsize, len(steps)])
        # all lowest bytes first, then the next: runs of equal bytes are what deflate finds
        parts.append(steps.view(np.uint8).reshape(-1, steps.itemsize).T.tobytes())
    return {"columns": listed, "data": base64.b64encode(zlib.compress(b"".join(parts), 9)).decode()}


def unpack(packed: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What `pack` was given."""
    raw, at, columns = zlib.decompress(base64.b64decode(packed["data"])), 0, {}
    for name, width, n in packed["columns"]:
        shuffled = np.frombuffer(raw, np.uint8, n * width, at).reshape(width, n)
        at += n * width
        steps = np.ascontiguousarray(shuffled.T).view(WIDTHS[(1, 2, 4, 8).index(width)]).reshape(-1)
        columns[name] = np.cumsum(steps, dtype=np.int64)
    return columns


def pack_graph(graph: ExecutionGraph) -> dict[str, Any]:
    """Everything that `ExecutionGraph` knows, for templates/engine.js and for `ExecutionGraph.load("graph.json")`."""
    order, place = graph.canonical, graph.place
    columns = {c: getattr(graph, c)[order] for c in COLUMNS}
    target, source = place[np.repeat(np.arange(len(graph)), np.diff(graph.dep_ptr))], place[graph.dep_idx]
    by_target = np.lexsort((source, target))
    columns["dep_count"] = np.bincount(target, minlength=len(order))
    columns["dep_back"] = (target - source)[by_target]  # how many rows back (forward, when negative) a dependency is
    matched = graph.match[order]
    columns["match"] = np.where(matched >= 0, place[matched], -1)
    for rank, memory in sorted(graph.memory.items()):
        columns[f"memory_{rank}"] = np.asarray(memory["log"], dtype=np.int64).reshape(-1)
    return {
        "ranks": graph.ranks,
        "names": graph.names,
        "groups": {str(r): {str(g): [a, list(m)] for g, (a, m) in groups.items()} for r, groups in sorted(graph.groups.items())},
        "memory_base": {str(r): [int(x) for x in m["base"]] for r, m in sorted(graph.memory.items())},
        "info": {k: v for k, v in graph.info.items() if isinstance(v, (str, int, float, bool, dict, list)) or v is None},
        "kinds": list(KINDS),
        "phases": list(PHASES),
        "purposes": list(PURPOSES),
        "lanes_per_group": LANES_PER_GROUP,
        **pack(columns),
    }


def pack_hardware(hw: Hardware, precision: str) -> dict[str, Any]:
    """The figures that cost an event (cost.py), with the peak of one precision. An infinite rate is null."""
    rate = hw.gpu.reduce_rate
    return {
        "name": hw.name,
        "peak": hw.gpu.peak(precision),
        "memory_bandwidth": hw.gpu.memory_bandwidth,
        "launch_s": hw.gpu.launch_s,
        "reduce_rate": None if rate == float("inf") else rate,
        "node_size": hw.node_size,
        "links": [{k: v for k, v in asdict(x).items() if k in ("bandwidth", "latency_s", "overhead_s")} for x in (hw.intra, hw.inter)],
    }
