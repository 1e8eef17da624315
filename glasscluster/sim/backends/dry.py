"""The `dry` backend: each rank is recorded alone, on `meta` tensors (shapes without data), without partners.

Messages complete at once and carry nothing. Because strategies have no data-dependent control flow, what is
recorded is what a real run records: events, bytes, FLOPs, dependencies, memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from glasscluster.sim.communicator import Ticket, Wire
from glasscluster.sim.gpu import Outcome, run_rank
from glasscluster.sim.recorder import FIELDS


class DryWire(Wire):
    """A wire with nobody at the other end."""

    device = torch.device("meta")

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

    def native(self, operation: str, tensor: torch.Tensor, group: Sequence[int], root: int) -> None:
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
