"""How long a collective takes: recorded dry and replayed, by symmetry where that is exact, else whole.

Up to `WHOLE` ranks every rank is replayed, so that a page shows each of them. Beyond, ranks that are alike
(symmetry.py) are replayed as one. What does not fold is replayed whole while it has at most `MOST_EVENTS`
rows, and refused beyond, with the number of its messages.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from glasscluster.base.errors import InputError
from glasscluster.base.limits import EVENT_BYTES, written_gb
from glasscluster.scenarios.jobs.collective_job import (
    CollectiveJob,
    check,
    options_of,
    program_of,
    ring_bytes,
)
from glasscluster.scenarios.jobs.symmetry import (
    Pattern,
    check_shifted,
    folded_bytes,
    folded_graph,
    pattern_of,
    recorded,
    shares_links,
    shifts_alike,
    wire_classes,
)
from glasscluster.sim.ranks.collectives import ALIKE
from glasscluster.sim.recording.events import FIELDS, RECV, SEND
from glasscluster.sim.recording.shifts import Shifts
from glasscluster.sim.run import Cluster, Run
from glasscluster.sim.time.loads import carried_bytes, is_shared
from glasscluster.sim.time.network import Topology, of_hardware
from glasscluster.sim.time.replay import replay
from glasscluster.sim.time.timeline import Timeline

WHOLE = 64  # ranks
MOST_EVENTS = 1 << 24  # rows of a graph that is replayed whole: some 8 GB
MOST_PAIRS = 1 << 21  # pairs of ranks whose routes are followed one by one
CHECKED = 10_000  # rows of a rank up to which a second one is recorded, to see that it is like the first


@dataclass
class Timed:
    """A collective that has been replayed.

    Attributes:
        timeline: of all ranks, or of one of each role (`timeline.graph.fold`).
        network: over which its messages went.
        carried: the bytes that each of the network's links carried.
        run: the recording; None of a folded one.
    """

    timeline: Timeline
    network: Topology
    carried: np.ndarray
    run: Run | None = None


def timed(job: CollectiveJob, say: Callable[[str], None] = lambda _text: None, whole: int = WHOLE) -> Timed:
    """Record the collective and replay it.

    Args:
        job: which collective, on what.
        say: is told how far it is.
        whole: up to so many ranks nothing is folded.

    Raises:
        InputError: the job cannot run; or it does not fold, and is too large to be replayed whole.
    """
    check(job)
    network = job.hardware.topology or of_hardware(job.hardware, job.gpus)
    if job.gpus > whole:
        by_symmetry = _folded(job, network)
        if by_symmetry is not None:
            return by_symmetry
    run = record(job, say)
    contention = job.contention
    if contention is None:
        contention = one_port(job) or is_shared(run.graph, network)
    run.__dict__["timeline"] = line = run.replay(job.hardware, contention=contention)
    return Timed(line, network, carried_bytes(line), run)


def record(job: CollectiveJob, say: Callable[[str], None] = lambda _text: None) -> Run:
    """Record the collective dry: all messages of every rank, without data."""
    check(job)
    program, args = program_of(job)
    cluster = Cluster(job.hardware, job.gpus, "dry", memory_bytes=None, ring_bytes=ring_bytes(job), say=say)
    return cluster.run(program, *args)


def one_port(job: CollectiveJob) -> bool:
    """Whether GPUs share ports: only a replay with contention gives a lone message all of such a port."""
    hw = job.hardware
    return hw.topology is None and job.gpus > hw.node_size and 0 < hw.nics < hw.node_size


# ---- by symmetry -------------------------------------------------------------------------------------------
def _folded(job: CollectiveJob, network: Topology) -> Timed | None:
    """The collective, folded; None where it has to be replayed whole, which is refused where that is too
    large.
    """
    program = program_of(job)
    first = recorded(program, 0, job.gpus)
    why, grid = "no rank does what another one does", ALIKE.get((job.inner, job.algorithm))
    if grid is not None:
        dims = grid(job.gpus, job.nbytes, **options_of(job))
        if dims is None:
            why = _uneven(job)
        elif _contended(job, pattern := pattern_of(first, dims), network):
            why = "messages that share links are not folded (--no-contention)"
        else:
            _check_pairs(job, pattern)
            shifts = shifts_alike(pattern, wire_classes(job.hardware))
            if shifts is not None and shifts.roles * len(first["table"]) <= MOST_EVENTS and shifts.each > 1:
                return _by_roles(job, network, first, pattern, shifts)
            why = "no two ranks have wires alike" if shifts is None else f"it has {shifts.roles:,} roles"
    last = recorded(program, job.gpus - 1, job.gpus)
    _check_size(job, (first, last), why)
    return None


def _by_roles(
    job: CollectiveJob, network: Topology, first: dict[str, Any], pattern: Pattern, shifts: Shifts
) -> Timed:
    """Replay one rank of each role; where recordings are short, one more is compared with rank 0's."""
    program = program_of(job)
    if len(first["table"]) <= CHECKED:
        check_shifted(first, recorded(program, job.gpus - 1, job.gpus), shifts.dims)
    graph = folded_graph(program, first, shifts, ring_bytes(job), {"backend": "dry"})
    return Timed(replay(graph, job.hardware), network, folded_bytes(pattern, network))


def _contended(job: CollectiveJob, pattern: Pattern, network: Topology) -> bool:
    """Whether messages share links in the replay: as the job says, else where a link has two senders."""
    if job.contention is None:
        return one_port(job) or shares_links(pattern, network)
    return job.contention


def _uneven(job: CollectiveJob) -> str:
    """Why an algorithm whose ranks may be alike has none here."""
    if job.nbytes % job.gpus:
        return f"{job.nbytes:,} bytes leave a remainder on {job.gpus:,} ranks, so some chunks are longer"
    return f"{job.gpus:,} is no power of two, so some ranks do more"


# ---- what is too large -------------------------------------------------------------------------------------
def _least(first: dict[str, Any], last: dict[str, Any], ranks: int) -> tuple[int, int]:
    """Rows and messages that so many ranks have at least, from the recordings of two of them."""
    tables = [recording["table"] for recording in (first, last)]
    kinds = [table[:, FIELDS.index("kind")] for table in tables]
    ends = min(int(np.isin(kind, (SEND, RECV)).sum()) for kind in kinds)
    return ranks * min(map(len, tables)), ranks * ends // 2  # a message has two ends


def _check_size(job: CollectiveJob, recordings: tuple[dict[str, Any], dict[str, Any]], why: str) -> None:
    """Refuse a collective that does not fold and has too many rows to be replayed whole.

    Raises:
        InputError: with its messages, rows and bytes, why it does not fold, and a number of GPUs, or a size,
            that will do.
    """
    rows, messages = _least(*recordings, job.gpus)
    if rows <= MOST_EVENTS:
        return
    takes = f"{messages:,} messages in {rows:,} rows, {written_gb(rows * EVENT_BYTES)} of memory at least"
    rule = f"takes {takes}, because {why}; at most {MOST_EVENTS:,} rows are replayed"
    even = job.nbytes // job.gpus * job.gpus
    if (job.inner, job.algorithm) in ALIKE and even and even != job.nbytes:
        raise InputError("size", job.nbytes, rule, [f"{even}B", f"{even + job.gpus}B"])
    raise InputError("gpus", job.gpus, rule, _fewer(job, rows))


def _check_pairs(job: CollectiveJob, pattern: Pattern) -> None:
    """Refuse a folded collective in which too many pairs of ranks exchange something.

    Raises:
        InputError: with how many they are, and a number of GPUs that will do.
    """
    if pattern.pairs > MOST_PAIRS:
        rule = (
            f"{pattern.pairs:,} pairs of ranks exchange something; the routes of at most {MOST_PAIRS:,} are"
        )
        raise InputError("gpus", job.gpus, f"{rule} followed", [1 << int(math.log2(math.sqrt(MOST_PAIRS)))])


def _fewer(job: CollectiveJob, rows: int) -> list[int]:
    """A power of two of GPUs with which the collective is small enough: rows grow with the square at most."""
    gpus = 1 << int(math.log2(job.gpus * math.sqrt(MOST_EVENTS / rows)))
    while gpus > WHOLE:
        program = program_of(replace(job, gpus=gpus))
        first, last = (recorded(program, rank, gpus) for rank in (0, gpus - 1))
        if _least(first, last, gpus)[0] <= MOST_EVENTS:
            break
        gpus //= 2
    return [gpus]
