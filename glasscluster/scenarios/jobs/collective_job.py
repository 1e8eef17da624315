"""One collective to time: what it is, whether it can be, and the program that every rank runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.sim.ranks.collectives import ALGORITHMS
from glasscluster.sim.time.hardware import Hardware
from glasscluster.sim.time.nccl import model as nccl

OPERATIONS = tuple(o.replace("_", "-") for o in ALGORITHMS)
NCCL = "nccl"
ROOTED = ("broadcast", "reduce", "scatter", "gather")
Program = tuple[Callable[..., Any], tuple]  # what every rank runs, and with which arguments


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


def options_of(job: CollectiveJob) -> dict[str, Any]:
    """The options of the job's algorithm."""
    options: dict[str, Any] = {"node_size": job.hardware.node_size} if job.algorithm == "hierarchical" else {}
    return options | ({"servers": job.servers} if job.servers is not None else {})


def program_of(job: CollectiveJob) -> Program:
    """What every rank runs, and with which arguments."""
    return one_collective, (job.inner, job.algorithm, job.nbytes, options_of(job))


def ring_bytes(job: CollectiveJob) -> int | None:
    """The bytes of a ring's buffer: every rank does what rank 0 does, relabelled. None of all else."""
    round_a_ring = job.algorithm == "ring" and job.inner not in ROOTED and job.nbytes >= job.gpus
    return job.nbytes if round_a_ring else None
