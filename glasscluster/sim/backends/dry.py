"""The `dry` backend: each rank is recorded alone, on `meta` tensors (shapes without data), without partners.

Messages complete at once and carry nothing. Because strategies have no data-dependent control flow, what is
recorded is what a real run records: events, bytes, FLOPs, dependencies, memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from glasscluster.sim.communicator import Ticket, Wire
from glasscluster.sim.gpu import Outcome, run_rank


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


class DryBackend:
    """Records every rank, one after the other, in this thread."""

    name = "dry"

    def __init__(self, gpus: int, **_: Any) -> None:
        self.gpus = gpus

    def run(self, program: Callable[..., Any], args: tuple, record: bool, capacity: float | None) -> list[Outcome]:
        """One outcome a rank."""
        outcomes = []
        for rank in range(self.gpus):
            outcome = run_rank(DryWire(rank, self.gpus), program, args, record, capacity)
            if outcome.error is not None:
                raise outcome.error
            outcomes.append(outcome)
        return outcomes

    def close(self) -> None:
        """Nothing to do."""
