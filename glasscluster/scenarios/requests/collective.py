"""The request of `glass collective`."""

from __future__ import annotations

from pydantic import Field

from glasscluster.base.requests import Request, argument
from glasscluster.scenarios.requests.names import ALGORITHMS, COLLECTIVES, TOPOLOGIES, one_of

SIZES = "LOW:HIGH, each four times the one before"
SWEEP = f"also time sizes {SIZES}, or gpus=LOW:HIGH; may be repeated"


class CollectiveRequest(Request):
    """Asks for one collective on some wires, and for sweeps around it."""

    operation: str = argument(" | ".join(COLLECTIVES))
    gpus: int = Field(description="ranks")
    size: str = Field("", description="the full buffer of a rank, such as 64MiB (a barrier has none)")
    algorithm: str = one_of(ALGORITHMS, "ring", "how; or your own: FILE.py:NAME")
    hardware: str = Field("classroom", description="whose links: a name from `glass list`, or a profile file")
    nodes: int | None = Field(None, description="spread the GPUs over this many nodes")
    topology: str | None = one_of(
        TOPOLOGIES,
        None,
        "instead of hardware; or FILE.json (networkx node-link, with bandwidth and latency on its edges)",
    )
    bandwidth: str | None = Field(None, description="of every link of the topology, such as 25GB/s")
    latency: str | None = Field(
        None,
        description="of a cable between GPUs, or of passing one switch, such as 2us",
    )
    overhead: str | None = Field(None, description="on the sender's port, such as 1us")
    dims: str | None = Field(
        None,
        description="of a mesh or torus, such as 4x8 [default: as square as can be]",
    )
    leaf: int | None = Field(None, description="GPUs under a leaf switch of a fat tree [default: about √N]")
    oversubscription: float | None = Field(
        None,
        description="of a fat tree's uplinks: 2 = half the bandwidth up",
    )
    placement: str | None = Field(
        None,
        description="rank r stands on GPU ...: identity | reversed | random:SEED | 0,2,1,3",
    )
    contention: bool | None = Field(
        None,
        description="messages share links [default: where links are shared]",
    )
    servers: int | None = Field(None, description="shards of a parameter server [default: one a GPU]")
    sweep: list[str] = Field(
        [],
        description=SWEEP,
    )
    against: str | None = Field(None, description="other algorithms in the sweeps, as tree,nccl")
    out: str | None = Field(
        None,
        description="write a report here: stepper, traffic, load of the links, sweeps",
    )
