"""Whether a folded graph may be replayed on some hardware: all ranks of a role have wires alike there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from glasscluster.base.errors import InputError
from glasscluster.sim.recording.events import SEND
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.time.equitable import refined
from glasscluster.sim.time.hardware import Hardware


def check_folded(graph: ExecutionGraph, hw: Hardware, contention: bool, slow: bool) -> None:
    """Refuse what would make ranks of one role differ.

    Args:
        graph: a folded graph.
        hw: what it shall be replayed on.
        contention: whether messages share links.
        slow: whether some rank is slower than the others.

    Raises:
        InputError: for each of the two, for too few GPUs, and where a message of one rank of a role takes
            another wire than that of another.
    """
    assert graph.fold is not None
    shifts = graph.fold.shifts
    stands = f"a folded graph ({shifts.roles:,} of {shifts.ranks:,} ranks)"
    if contention:
        raise InputError("contention", True, f"{stands} does not say which messages meet on a link", [False])
    if slow:
        raise InputError("slow-rank", "", f"{stands} has no rank of its own kind: leave it out")
    if hw.topology is not None and len(hw.topology.place) < shifts.ranks:
        rule = f"has {len(hw.topology.place)} GPUs, the run {shifts.ranks} ranks"
        raise InputError("topology", hw.topology.name, rule)
    for src, dst in _images(graph):
        inside = src // hw.node_size == dst // hw.node_size
        wire = inside if hw.topology is None else hw.topology.wires(src, dst)[1]
        if (wire != wire[0]).any():
            at = int(np.flatnonzero(wire != wire[0])[0])
            rule = f"joins ranks {src[0]} and {dst[0]} by another wire than {src[at]} and {dst[at]}"
            rule += f", and {stands} takes them for alike: record the collective on it"
            raise InputError("hardware", hw.name, rule)


def check_roles(graph: ExecutionGraph, hw: Hardware, contention: bool, slow: dict[int, float]) -> None:
    """Refuse what would make ranks of one role of a graph that is folded by roles differ.

    Args:
        graph: a graph that is folded by roles.
        hw: what it shall be replayed on.
        contention: whether messages share links.
        slow: from a rank to the factor by which its compute takes longer.

    Raises:
        InputError: for contention, and where on this hardware, with these slow ranks, ranks of a role differ.
    """
    roles = graph.roles
    assert roles is not None
    stands = f"a folded graph ({roles.roles:,} roles of {roles.gpus:,} ranks)"
    if contention:
        raise InputError("contention", True, f"{stands} does not say which messages meet on a link", [False])
    if hw.topology is not None and len(hw.topology.place) < roles.gpus:
        rule = f"has {len(hw.topology.place)} GPUs, the run {roles.gpus} ranks"
        raise InputError("topology", hw.topology.name, rule)
    finer = refined(roles.role, roles.partners, roles.partitions, hw, slow)
    if finer.max() + 1 > roles.roles:
        rule = f"has other wires or slow ranks than {stands} was made for, on which these are not alike"
        raise InputError("hardware", hw.name, rule)


def _images(graph: ExecutionGraph) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each pair of a representative and whom it sends to: that pair and what all shifts make of it."""
    assert graph.fold is not None
    shifts, sends = graph.fold.shifts, graph.kind == SEND
    pairs = np.unique(graph.fold.rank[sends] * shifts.ranks + graph.fold.peer[sends])
    every = np.arange(shifts.each)
    for src, dst in (divmod(pair, shifts.ranks) for pair in pairs.tolist()):
        yield shifts.moved(np.full(len(every), src), every), shifts.moved(np.full(len(every), dst), every)
