"""The `dry` backend: each rank is recorded alone, on `meta` tensors (shapes without data), without partners.

Messages complete at once and carry nothing. Because strategies have no data-dependent control flow, what is
recorded is what a real run records: events, bytes, FLOPs, dependencies, memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from glasscluster.sim.backends import fused_attention as fused_attention  # attention on shapes as a CPU computes it
from glasscluster.sim.backends.shapes import operate
from glasscluster.sim.communicator import Ticket, Wire
from glasscluster.sim.gpu import Outcome, run_rank
from glasscluster.sim.mesh import coordinates, rank_of
from glasscluster.sim.recorder import FIELDS
from glasscluster.sim.vocabulary import PURPOSES, RECV, REDUCE, SEND


class DryWire(Wire):
    """A wire with nobody at the other end."""

    device = torch.device("meta")
    operate = staticmethod(operate)

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def isend(self, tensor: torch.Tensor, dst: int, tag: int, what: str) -> Ticket:
        """Gone at once."""
        return self._done("send", dst, tag, what)

    def irecv(self, out: torch.Tensor, src: int, tag: int, what: str) -> Ticket:
        """Arrived at once, with no content."""
        return self._done("recv", src, tag, what)

    def _done(self, kind: str, peer: int, tag: int, what: str) -> Ticket:
        ticket = Ticket(kind, peer, tag, None, what)
        ticket.done = True
        return ticket

    def block(self, tickets: Sequence[Ticket], together: bool) -> None:
        """Never needed: everything is done at once."""

    def native(self, operation: str, tensor: torch.Tensor, group: Sequence[int], root: int, op: str = "sum") -> None:
        """A native collective is one event."""


def turned(recording: dict[str, Any], rank: int, size: int, nbytes: int) -> dict[str, Any]:
    """Rank 0's recording as `rank` would have made it, for a program that is the same all round a ring of `size`.

    Peers move on by `rank`, and so do the chunks (`size` equal ones of a buffer of `nbytes`) that offsets point into.
    """
    table = recording["table"].copy()
    peer, offset = table[:, FIELDS.index("peer")], table[:, FIELDS.index("offset")]
    peer[peer >= 0] = (peer[peer >= 0] + rank) % size
    offset[offset >= 0] = (offset[offset >= 0] + rank * (nbytes // size)) % nbytes
    return {**recording, "rank": rank, "table": table}


def record_rank(rank: int, size: int, program: Callable[..., Any], args: tuple, capacity: float | None) -> Outcome:
    """One rank of a cluster of `size`, recorded by itself."""
    return run_rank(DryWire(rank, size), program, args, True, capacity)


def standing_in(recording: dict[str, Any], rank: int, sizes: Mapping[str, int], block: int) -> dict[str, Any]:
    """A rank's recording as another rank of the same pipeline stage would have made it: peers and groups are turned along
    dp (in blocks of `block` neighbours, and among the blocks) and along tp.

    Bytes are exact up to the remainder of a division. Messages of scalars are left out: of a few numbers each rank of a ring sends
    different ones. What a rank does for itself only is the stand-in's. So a replay of stand-ins bounds the step from below.
    """
    here, there = coordinates(recording["rank"], sizes), coordinates(rank, sizes)
    turn = (there["dp"] // block - here["dp"] // block, there["dp"] % block - here["dp"] % block, there["tp"] - here["tp"])
    moved = []
    for other in range(math.prod(sizes.values())):
        at = coordinates(other, sizes)
        outer, inner = (at["dp"] // block + turn[0]) % (sizes["dp"] // block), (at["dp"] % block + turn[1]) % block
        moved.append(rank_of({**at, "dp": outer * block + inner, "tp": (at["tp"] + turn[2]) % sizes["tp"]}, sizes))
    table = recording["table"].copy()
    kind, nbytes, peer, purpose = (table[:, FIELDS.index(name)] for name in ("kind", "bytes", "peer", "purpose"))
    scalars = ((kind == SEND) | (kind == RECV)) & (purpose == PURPOSES.index("scalars"))
    kind[scalars], nbytes[scalars], peer[scalars] = REDUCE, 0, -1
    peer[peer >= 0] = np.array(moved)[peer[peer >= 0]]
    groups = {g: (axis, tuple(sorted(moved[m] for m in members))) for g, (axis, members) in recording["groups"].items()}
    return {**recording, "rank": rank, "table": table, "groups": groups}


class DryBackend:
    """Records every rank, one after the other, in this thread.

    `turns`: bytes of the one buffer of a program that is the same all round a ring: only rank 0 is recorded, and turned.
    """

    name = "dry"

    def __init__(self, gpus: int, turns: int | None = None, **_: Any) -> None:
        self.gpus, self.turns = gpus, turns

    def run(self, program: Callable[..., Any], args: tuple, record: bool, capacity: float | None) -> list[Outcome]:
        """One outcome a rank."""
        outcomes: list[Outcome] = []
        for rank in range(self.gpus):
            if rank and self.turns and record:
                recording = turned(outcomes[0].recording or {}, rank, self.gpus, self.turns)
                outcomes.append(replace(outcomes[0], rank=rank, recording=recording))
                continue
            outcome = run_rank(DryWire(rank, self.gpus), program, args, record, capacity)
            if outcome.error is not None:
                raise outcome.error
            outcomes.append(outcome)
        return outcomes

    def close(self) -> None:
        """Nothing to do."""
