"""`glass collective`: one collective on some network, recorded dry, timed and counted; swept over sizes and
numbers of GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from glasscluster.base.errors import InputError
from glasscluster.base.quantities import parse_size, written_rate, written_time
from glasscluster.base.text import Said, counted
from glasscluster.scenarios.jobs.folders import output_folder, rewriting, write_run_json
from glasscluster.scenarios.jobs.own_collective import try_out
from glasscluster.scenarios.jobs.wires import wires
from glasscluster.scenarios.requests.collective import CollectiveRequest
from glasscluster.sim.ranks.collectives import ALGORITHMS, THEORY, load
from glasscluster.sim.recording.events import SEND
from glasscluster.sim.run import Cluster, Run
from glasscluster.sim.time.hardware import Hardware, hardware
from glasscluster.sim.time.loads import carried_bytes, is_shared, network_of
from glasscluster.sim.time.nccl import model as nccl
from glasscluster.sim.time.timeline import Timeline
from glasscluster.visualize.figures.collectives import bandwidth_figure, crossover_figure, scaling_figure
from glasscluster.visualize.page.assemble import write_report
from glasscluster.visualize.page.report import Chapter, Report, StoryStep

OPERATIONS = tuple(o.replace("_", "-") for o in ALGORITHMS)
NCCL = "nccl"
SWEEP_STEP = 4
ANY_SIZE = (
    "binary-tree",
    "double-tree",
    "dissemination",
)  # their closed forms decide where they hold; the others need equal chunks
ALIKE = ("ring",)  # algorithms in which every rank does what rank 0 does, relabelled

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


@dataclass(frozen=True)
class CollectiveJob:
    """One collective to time: operation, algorithm, number of GPUs, bytes of a rank's buffer, hardware.

    `servers` is the number of shards of a parameter server. `contention` True shares links between messages,
    False does not, None shares them where several messages use one link.
    """

    operation: str
    algorithm: str
    gpus: int
    nbytes: int
    hardware: Hardware
    servers: int | None = None
    contention: bool | None = None

    @property
    def inner(self) -> str:
        """The operation's name as a method of communicators."""
        return self.operation.replace("-", "_")


def one_collective(gpu: Any, operation: str, algorithm: str, nbytes: int, options: dict[str, Any]) -> None:
    """Run one collective on every rank, on a buffer of `nbytes` single bytes."""
    import torch

    x = torch.empty(nbytes, dtype=torch.uint8, device=gpu.comm.wire.device)
    if operation == "barrier":
        gpu.comm.barrier(algorithm=algorithm)
    elif operation == "all_to_all":
        out = torch.empty(gpu.size * gpu.comm.chunk(x).numel(), dtype=torch.uint8, device=x.device)
        gpu.comm.all_to_all(x, out, algorithm=algorithm)
    else:
        getattr(gpu.comm, operation)(x, algorithm=algorithm, **options)


def parse_buffer(operation: str, size: str) -> int:
    """Parse `--size` into bytes; InputError where it is missing. A barrier has none: its messages are single
    bytes.
    """
    if operation == "barrier":
        return 1
    if not size:
        raise InputError("size", size, "is needed: the full buffer of a rank, such as 64MiB")
    return parse_size("size", size)


def check(job: CollectiveJob) -> None:
    """Raise InputError for a job that cannot run."""
    if job.inner not in ALGORITHMS:
        raise InputError("operation", job.operation, "unknown collective", list(OPERATIONS))
    known = [a for a in ALGORITHMS[job.inner] if a != "native"]
    if job.algorithm == NCCL:
        if job.inner not in nccl.ALGORITHMS:
            raise InputError("algorithm", NCCL, f"NCCL has no {job.operation} of its own", known)
        if job.hardware.topology is not None or job.contention:
            field, value = ("contention", True) if job.contention else ("topology", job.hardware.name)
            raise InputError(
                field,
                value,
                "NCCL's model knows nodes and network ports, not single messages: leave it out",
                [],
            )
    elif job.algorithm not in known:
        raise InputError("algorithm", job.algorithm, f"{job.operation} has no such algorithm", [*known, NCCL])
    if job.gpus < 2:
        raise InputError("gpus", job.gpus, "a collective needs at least 2", [2])
    if job.servers is not None and job.algorithm != "parameter-server":
        raise InputError("servers", job.servers, "are a parameter-server's: leave them out")
    if job.servers is not None and not 1 <= job.servers <= job.gpus:
        rule = f"parameter-server takes 1 to {job.gpus} shards"
        raise InputError("servers", job.servers, rule, [1, job.gpus])


def record(job: CollectiveJob, say: Callable[[str], None] = lambda _text: None) -> Run:
    """Record the collective dry: all messages of every rank, without data."""
    check(job)
    options: dict[str, Any] = {"node_size": job.hardware.node_size} if job.algorithm == "hierarchical" else {}
    options |= {"servers": job.servers} if job.servers is not None else {}
    rooted = job.inner in ("broadcast", "reduce", "scatter", "gather")
    alike = job.algorithm in ALIKE and not rooted and job.nbytes >= job.gpus
    cluster = Cluster(
        job.hardware, job.gpus, "dry", memory_bytes=None, ring_bytes=job.nbytes if alike else None, say=say
    )
    return cluster.run(one_collective, job.inner, job.algorithm, job.nbytes, options)


def replayed(job: CollectiveJob, run: Run) -> Timeline:
    """Replay the recording on the job's hardware, with contention as the job says."""
    hw, contention = job.hardware, job.contention
    if (
        contention is None
    ):  # only a replay with contention gives a lone message all of a port that several GPUs share
        one_port = hw.topology is None and job.gpus > hw.node_size and 0 < hw.nics < hw.node_size
        contention = one_port or is_shared(run.graph, network_of(run.timeline))
    return run.replay(hw, contention=contention)


def measured(job: CollectiveJob, timeline: Timeline) -> dict[str, Any]:
    """The JSON keys of a recorded collective: time, bytes, steps, bandwidths and the busiest link."""
    graph, time, network = timeline.graph, timeline.makespan, network_of(timeline)
    share = carried_bytes(timeline) / network.bandwidth
    busiest = int(np.argmax(share))
    link = {"from": "", "to": "", "utilisation_fraction": 0.0}
    if time and share[busiest] > 0:
        src, dst = network.links[busiest]
        link = {"from": str(src), "to": str(dst), "utilisation_fraction": float(share[busiest]) / time}
    return {
        **_speeds(job, time),
        "contention": timeline.shared is not None,
        "bytes_sent_per_gpu": graph.bytes_sent(),
        "steps": graph.message_chain(),
        "messages": int((graph.kind == SEND).sum()),
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
                line = replayed(here, record(here, say))
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
    run = None if job.algorithm == NCCL else record(job, say)
    if run is None:
        content |= by_nccl(job, nodes)
    else:
        run.__dict__["timeline"] = replayed(job, run)
        content |= measured(job, run.timeline)
    algorithms = list(dict.fromkeys([job.algorithm, *against]))
    if plans:
        content["sweep"] = [row for plan in plans for row in swept(job, plan, algorithms, make, nodes, say)]
    if out is not None:
        content["report"] = str(write(content, run, out))
    return content


def write(content: dict[str, Any], run: Run | None, out: str) -> Path:
    """Write the report: the run with its stepper, the traffic and load of links, and figures of the
    sweeps.
    """
    folder = output_folder(out, "collective")
    with rewriting(folder) as beside:
        return _write(content, run, beside, folder)


def _write(content: dict[str, Any], run: Run | None, folder: Path, shown: Path) -> Path:
    rows = content.get("sweep", [])
    by_size = [r for r in rows if r["gpus"] == content["gpus"]]
    by_gpus = [r for r in rows if r["size_bytes"] == content["size_bytes"]]
    figures: list[tuple[Said, Callable[[str], Any]]] = []
    if len({r["size_bytes"] for r in by_size}) > 1:
        figures.append(
            (
                Said("Bus bandwidth against size", "总线带宽与大小"),
                lambda lang: bandwidth_figure(by_size, lang),
            )
        )
        figures.append(
            (
                Said("Time against size: who is fastest where", "时间与大小：谁在哪里最快"),
                lambda lang: crossover_figure(by_size, lang),
            )
        )
    if len({r["gpus"] for r in by_gpus}) > 1:
        figures.append(
            (
                Said("Time against the number of GPUs", "时间与 GPU 数"),
                lambda lang: scaling_figure(by_gpus, lang),
            )
        )
    name = f"{content['operation']} · {content['algorithm']} · {counted(content['gpus'], 'GPU')} · {content['hardware']}"
    took, bus = written_time(content["time_s"]), written_rate(content["bus_bandwidth_bytes_per_s"])
    finding = Said(
        f"{took} (virtual), bus bandwidth {bus}.",
        f"{took}（虚拟），总线带宽 {bus}。",
    )
    chapters, story = [], []
    if run is not None:
        run.graph.save(folder / "graph.npz")
        chapters = [Chapter("run", Said(name, name), run, {run.timeline.hardware.name: run.timeline})]
        story = [StoryStep(Said(*text), view) for text, view in _story(content)]
    page = Report("collective", Said(name, name), finding, chapters, story, figures=figures)
    write_report(page, folder / "report.html")
    write_run_json(folder, {**content, "report": str(shown / "report.html")})
    return shown / "report.html"


def _story(content: dict[str, Any]) -> list[tuple[tuple[str, str], str]]:
    """The sentences about the numbers, each with the view that shows it."""
    link, most, theory = (
        content["busiest_link"],
        max(content["bytes_sent_per_gpu"]),
        content["predicted_time_s"],
    )
    took = written_time(content["time_s"])
    said = [
        (
            f"{content['messages']:,} messages in {content['steps']} dependent steps; the busiest GPU "
            f"sends {most:,} bytes.",
            f"共 {content['messages']:,} 条消息，{content['steps']} 个相互依赖的步骤；发送最多的 GPU 发送 {most:,} 字节。",
            "tab=network",
        ),
        (
            f"The busiest link is {link['from']} → {link['to']}, in use for "
            f"{link['utilisation_fraction']:.0%} of the time.",
            f"最忙的链路是 {link['from']} → {link['to']}，占用率 {link['utilisation_fraction']:.0%}。",
            "tab=network",
        ),
    ]
    if content["contention"]:
        said.append(
            (
                f"Messages share links max-min fairly; it takes {took}.",
                f"消息按最大最小公平共享链路，用时 {took}。",
                "tab=timeline",
            )
        )
    elif theory is not None:
        said.append(
            (
                f"No link is shared: the closed form says {written_time(theory, 6)}, the replay "
                f"{written_time(content['time_s'], 6)}.",
                f"没有共享的链路：闭式解为 {written_time(theory, 6)}，重放为 {written_time(content['time_s'], 6)}。",
                "tab=timeline",
            )
        )
    return [((en, zh), view) for en, zh, view in said]
