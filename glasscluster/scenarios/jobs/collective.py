"""`glass collective`: one collective on some network, recorded dry, timed and counted; swept over sizes and
numbers of GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from glasscluster.base.errors import InputError
from glasscluster.base.quantities import parse_size
from glasscluster.scenarios.jobs.collective_job import NCCL, OPERATIONS, CollectiveJob, check
from glasscluster.scenarios.jobs.collective_report import write
from glasscluster.scenarios.jobs.own_collective import try_out
from glasscluster.scenarios.jobs.timed_collective import Timed, timed
from glasscluster.scenarios.jobs.wires import wires
from glasscluster.scenarios.requests.collective import CollectiveRequest
from glasscluster.sim.ranks.collectives import THEORY, load
from glasscluster.sim.recording.events import SEND
from glasscluster.sim.run import Run
from glasscluster.sim.time.hardware import Hardware, hardware
from glasscluster.sim.time.nccl import model as nccl

SWEEP_STEP = 4
ANY_SIZE = (
    "binary-tree",
    "double-tree",
    "dissemination",
)  # their closed forms decide where they hold; the others need equal chunks

# nccl-tests multiplies S/t by this, so that a bandwidth-optimal algorithm shows the link's bandwidth
BUS_FACTOR: dict[str, Callable[[int], float]] = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "broadcast": lambda n: 1.0,
    "reduce": lambda n: 1.0,
    "barrier": lambda n: 0.0,
}


def bus_factor(operation: str, n: int) -> float:
    """Bus bandwidth over algorithm bandwidth, as in nccl-tests: the share of the buffer that each GPU must
    send.
    """
    return BUS_FACTOR.get(operation.replace("-", "_"), lambda n: (n - 1) / n)(n)


def parse_buffer(operation: str, size: str) -> int:
    """Parse `--size` into bytes; InputError where it is missing. A barrier has none: its messages are single
    bytes.
    """
    if operation == "barrier":
        return 1
    if not size:
        raise InputError("size", size, "is needed: the full buffer of a rank, such as 64MiB")
    return parse_size("size", size)


def measured(job: CollectiveJob, result: Timed) -> dict[str, Any]:
    """The JSON keys of a recorded collective: time, bytes, steps, bandwidths and the busiest link."""
    timeline, network = result.timeline, result.network
    graph, time = timeline.graph, timeline.makespan
    share = result.carried / network.bandwidth
    busiest = int(np.argmax(share))
    link = {"from": "", "to": "", "utilisation_fraction": 0.0}
    if time and share[busiest] > 0:
        src, dst = network.links[busiest]
        link = {"from": str(src), "to": str(dst), "utilisation_fraction": float(share[busiest]) / time}
    sent, messages = graph.bytes_sent(), int((graph.kind == SEND).sum())
    if graph.fold is not None:
        sent, messages = graph.fold.of_every_rank(sent), messages * graph.fold.shifts.each
    return {
        **_speeds(job, time),
        "contention": timeline.shared is not None,
        "bytes_sent_per_gpu": sent,
        "steps": graph.message_chain(),
        "messages": messages,
        "roles": None if graph.fold is None else graph.fold.shifts.roles,
        "busiest_link": link,
        "predicted_time_s": theory(job) if timeline.shared is None else None,
    }


def _speeds(job: CollectiveJob, time: float) -> dict[str, float]:
    rate = job.nbytes / time if time else 0.0
    bus = rate * bus_factor(job.operation, job.gpus)
    return {"time_s": time, "algorithm_bandwidth_bytes_per_s": rate, "bus_bandwidth_bytes_per_s": bus}


def theory(job: CollectiveJob) -> float | None:
    """The closed form's time in seconds, or None where it does not hold.

    It holds for equal chunks, free additions, no contention, and one kind of link (or the hierarchical
    algorithm).
    """
    hw, n = job.hardware, job.gpus
    hierarchical = job.algorithm == "hierarchical"
    if (job.nbytes % n and job.algorithm not in ANY_SIZE) or hw.gpu.reduce_rate != float("inf"):
        return None
    if job.inner == "barrier" and job.algorithm != "dissemination":
        return None
    if hw.topology is not None:
        if hw.topology.one_wire() is None:
            return None
    elif n > hw.node_size and not hierarchical:
        return None
    more: dict[str, Any] = (
        {"between": hw.inter, "node_size": hw.node_size} if hierarchical and hw.topology is None else {}
    )
    more |= {"servers": job.servers} if job.servers is not None else {}
    known = THEORY.get(job.algorithm)
    return known(job.inner, n, job.nbytes, hw.link(0, 1), **more).time_s if known else None


def by_nccl(job: CollectiveJob, nodes: int | None = None) -> dict[str, Any]:
    """NCCL's choice on this hardware, as JSON keys. Its model sends no messages, so what is counted is
    null.
    """
    check(job)
    node_size = None if nodes is None else job.gpus // nodes
    built = hardware(job.hardware.name) if nodes is not None else job.hardware
    chosen = nccl.choose(job.inner, job.nbytes, built, job.gpus, node_size=node_size)
    return {
        **_speeds(job, chosen.time_s),
        "contention": False,
        "bytes_sent_per_gpu": None,
        "steps": None,
        "messages": None,
        "busiest_link": None,
        "predicted_time_s": None,
        "nccl": {
            "algorithm": chosen.algorithm,
            "protocol": chosen.protocol,
            "channels": chosen.channels,
            "latency_s": chosen.latency_s,
            "tuning_estimate_s": chosen.estimate_s,
        },
    }


# ---- sweeps ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Sweep:
    """The sizes (bytes) or numbers of GPUs of a sweep."""

    over: str  # size | gpus
    values: tuple[int, ...]


def parse_sweep(text: str) -> Sweep:
    """Parse a sweep; InputError for anything else.

    `1KiB:1GiB` gives sizes, each four times the one before; `gpus=2:64` numbers of GPUs, each twice the one
    before.
    """
    over, _, limits = text.rpartition("=")
    low, separator, high = limits.partition(":")
    if not separator or over not in ("", "size", "gpus"):
        raise InputError(
            "sweep", text, "must be LOW:HIGH, such as 1KiB:1GiB or gpus=2:64", ["1KiB:1GiB", "gpus=2:64"]
        )
    if over == "gpus":
        if not (low.isdigit() and high.isdigit()):
            raise InputError("sweep", text, "numbers of GPUs must be whole, as gpus=2:64")
        first, last, factor = int(low), int(high), 2
    else:
        first, last, factor = parse_size("sweep", low), parse_size("sweep", high), SWEEP_STEP
    if not (2 if over == "gpus" else 1) <= first <= last:
        raise InputError("sweep", text, f"LOW must be at least {2 if over == 'gpus' else 1} and at most HIGH")
    values = [first]
    while values[-1] * factor <= last:
        values.append(values[-1] * factor)
    return Sweep(over or "size", tuple(values))


def swept(
    job: CollectiveJob,
    sweep: Sweep,
    algorithms: Sequence[str],
    make: Callable[[int], Hardware],
    nodes: int | None,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Time the job at every value of the sweep with every algorithm: one row each.

    `make(gpus)` returns the hardware for that many GPUs.
    """
    rows = []
    for algorithm in algorithms:
        for value in sweep.values:
            say(f"{algorithm}: {sweep.over} {value:,}")
            here = replace(
                job, algorithm=algorithm, servers=job.servers if algorithm == "parameter-server" else None
            )
            here = (
                replace(here, nbytes=value)
                if sweep.over == "size"
                else replace(here, gpus=value, hardware=make(value))
            )
            if algorithm == NCCL:
                result = by_nccl(replace(here, contention=None), nodes)
            else:
                line = timed(here, say).timeline
                result = {**_speeds(here, line.makespan), "contention": line.shared is not None}
            columns = ("time_s", "algorithm_bandwidth_bytes_per_s", "bus_bandwidth_bytes_per_s", "contention")
            rows.append(
                {
                    "algorithm": algorithm,
                    "gpus": here.gpus,
                    "size_bytes": here.nbytes,
                    **{k: result[k] for k in columns},
                }
            )
    return rows


# ---- the command -------------------------------------------------------------------------------------------
def collective_command(request: CollectiveRequest, say: Callable[[str], None]) -> dict[str, Any]:
    """Run `glass collective`: one collective on the requested network, and sweeps around it."""
    job, others = request.prepared(prepare)
    for algorithm in (job.algorithm, *others):
        if algorithm != NCCL:
            try_out(job.inner, algorithm, job.gpus, even=job.nbytes % job.gpus == 0)
    sweeps, out, make = request.sweep, request.out, partial(wires_of, request)
    return collective(job, make, nodes=request.nodes, sweeps=sweeps, against=others, out=out, say=say)


def wires_of(request: CollectiveRequest, gpus: int) -> Hardware:
    """The requested network, between so many GPUs."""
    return wires(
        gpus,
        request.hardware,
        request.nodes,
        request.topology,
        request.bandwidth,
        request.latency,
        request.overhead,
        request.placement,
        dims=request.dims,
        leaf=request.leaf,
        oversubscription=request.oversubscription,
    )


def prepare(request: CollectiveRequest) -> tuple[CollectiveJob, list[str]]:
    """The job, and the algorithms beside it; InputError naming what cannot be."""
    operation, gpus = request.operation, request.gpus
    if gpus < 2:
        raise InputError("gpus", gpus, "a collective needs at least 2", [2])
    if operation not in OPERATIONS:
        raise InputError("operation", operation, "unknown collective", OPERATIONS)
    nbytes, algorithm = parse_buffer(operation, request.size), load(request.algorithm)
    wired = wires_of(request, gpus)
    job = CollectiveJob(operation, algorithm, gpus, nbytes, wired, request.servers, request.contention)
    check(job)
    others = [load(name) for name in (request.against or "").split(",") if name]
    for text in request.sweep:
        parse_sweep(text)
    for name in others:
        try:
            check(replace(job, algorithm=name, servers=None))
        except InputError as refused:  # the option was another one, which lists them
            near = [",".join(str(choice) if n == name else n for n in others) for choice in refused.choices]
            rule = refused.rule if near else f"{refused.field}: {refused.rule}"
            raise InputError("against", request.against, rule, near) from None
    return job, others


def collective(
    job: CollectiveJob,
    make: Callable[[int], Hardware],
    *,
    nodes: int | None = None,
    sweeps: Sequence[str] = (),
    against: Sequence[str] = (),
    out: str | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> dict[str, Any]:
    """The `glass.collective/1` object; with `out` a report is written too.

    `make(gpus)` returns the hardware for that many GPUs, and `against` names further algorithms for the
    sweeps. Raises InputError for a job that cannot run.
    """
    check(job)
    plans = [parse_sweep(text) for text in sweeps]
    for name in against:
        check(replace(job, algorithm=name, servers=None))
    content: dict[str, Any] = {
        "schema": "glass.collective/1",
        "operation": job.operation,
        "algorithm": job.algorithm,
        "gpus": job.gpus,
        "size_bytes": job.nbytes,
        "hardware": job.hardware.name,
    }
    result = None if job.algorithm == NCCL else timed(job, say)
    content |= by_nccl(job, nodes) if result is None else measured(job, result)
    algorithms = list(dict.fromkeys([job.algorithm, *against]))
    if plans:
        content["sweep"] = [row for plan in plans for row in swept(job, plan, algorithms, make, nodes, say)]
    if out is not None:
        run = None if result is None else result.run or Run.stored(result.timeline)
        content["report"] = str(write(content, run, out))
    return content
