"""The `dry` backend: each rank is recorded alone, on `meta` tensors (shapes without data), without partners.

Messages complete at once and carry nothing. Because strategies have no data-dependent control flow, what is
recorded is what a real run records: events, bytes, FLOPs, dependencies, memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from glasscluster.base.limits import check_events
from glasscluster.sim.ranks.backends.shapes import operate
from glasscluster.sim.ranks.gpu import Outcome, run_rank
from glasscluster.sim.ranks.mesh import coordinates, rank_of
from glasscluster.sim.ranks.wire import Ticket, Wire
from glasscluster.sim.recording.events import FIELDS, PURPOSES, RECV, REDUCE, SEND
from glasscluster.sim.recording.repeated import NotRepeated

SAY_EVERY_S = 2.0


class DryWire(Wire):
    """A wire without partners: every message is done at once and carries nothing."""

    device = torch.device("meta")
    operate = staticmethod(operate)

    def __init__(self, rank: int, size: int, repeats: bool = False) -> None:
        self.rank, self.size, self.repeats = rank, size, repeats

    def isend(self, tensor: torch.Tensor, dst: int, tag: int, what: str) -> Ticket:
        """A send that is done at once."""
        return self._done("send", dst, tag, what)

    def irecv(self, out: torch.Tensor, src: int, tag: int, what: str) -> Ticket:
        """A receive that is done at once, with no content."""
        return self._done("recv", src, tag, what)

    def _done(self, kind: str, peer: int, tag: int, what: str) -> Ticket:
        ticket = Ticket(kind, peer, tag, None, what)
        ticket.done = True
        return ticket

    def block(self, tickets: Sequence[Ticket], together: bool) -> None:
        """Never called with open tickets: every message is done at once."""

    def native(
        self, operation: str, tensor: torch.Tensor, group: Sequence[int], root: int, op: str = "sum"
    ) -> None:
        """Nothing happens here: a native collective is one event, which the communicator records."""


def relabelled(recording: dict[str, Any], rank: int, size: int, nbytes: int) -> dict[str, Any]:
    """Turn rank 0's recording into that of another rank, for a program that is the same on every rank of a
    ring.

    Peers are shifted by `rank`, and so are the chunks that are sent, received and added.

    Args:
        recording: rank 0's.
        rank: whose recording to make.
        size: ranks in the ring.
        nbytes: of the program's one buffer, at least `size`. It is cut into `size` chunks, of which the first
            `nbytes % size` have a byte more (so elements are single bytes, unless the chunks are equal).

    Returns:
        The recording of `rank`.
    """
    table = recording["table"].copy()
    kind, peer, offset, length = (table[:, FIELDS.index(n)] for n in ("kind", "peer", "offset", "bytes"))
    peer[peer >= 0] = (peer[peer >= 0] + rank) % size
    lengths = np.full(size, nbytes // size) + (np.arange(size) < nbytes % size)
    begins = np.cumsum(lengths) - lengths
    # what arrives in scratch memory has no place in the buffer; it is the chunk that is added next
    additions, scratch = np.flatnonzero(kind == REDUCE), np.flatnonzero((kind == RECV) & (offset < 0))
    place = offset.copy()
    place[scratch] = offset[additions[np.searchsorted(additions, scratch)]] if len(scratch) else 0
    moved = np.flatnonzero(place >= 0)
    chunk = (np.searchsorted(begins, place[moved], side="right") - 1 + rank) % size
    length[moved] = lengths[chunk]
    offset[moved] = np.where(offset[moved] >= 0, begins[chunk], -1)
    return {**recording, "rank": rank, "table": table}


def record_rank(
    rank: int, size: int, program: Callable[..., Any], args: tuple, capacity: float | None
) -> Outcome:
    """Record one rank of a cluster of `size` ranks, without the others; returns its outcome."""
    return _record(rank, size, program, args, capacity, repeats=True)[0]


def _record(
    rank: int, size: int, program: Callable[..., Any], args: tuple, capacity: float | None, repeats: bool
) -> tuple[Outcome, bool]:
    """Record one rank; with `repeats`, what repeats is recorded once (sim/recording/repeated.py).

    If that turns out to be untrue, or ends in an error, everything is run. Returns also whether it was true.
    """
    if repeats:
        with suppress(NotRepeated):
            outcome = run_rank(DryWire(rank, size, repeats=True), program, args, True, capacity, NotRepeated)
            if outcome.error is None:
                return outcome, True
    return run_rank(DryWire(rank, size), program, args, True, capacity), False


def standing_in(recording: dict[str, Any], rank: int, sizes: Mapping[str, int], block: int) -> dict[str, Any]:
    """Turn a rank's recording into that of another rank of the same pipeline stage. Peers and groups are
    shifted along dp (within blocks of `block` neighbours, and from block to block) and along tp.

    Bytes are exact up to the remainder of a division. Messages of scalars are left out, because a ring that
    cuts only a few numbers into chunks sends different amounts from each rank. Computing is copied from the
    recorded rank, so work that only another rank does is missing. A replay of such recordings is therefore a
    lower bound on the time of the step.
    """
    here, there = coordinates(recording["rank"], sizes), coordinates(rank, sizes)
    shift = (
        there["dp"] // block - here["dp"] // block,
        there["dp"] % block - here["dp"] % block,
        there["tp"] - here["tp"],
    )
    relabel = []
    for other in range(math.prod(sizes.values())):
        at = coordinates(other, sizes)
        outer, inner = (
            (at["dp"] // block + shift[0]) % (sizes["dp"] // block),
            (at["dp"] % block + shift[1]) % block,
        )
        relabel.append(
            rank_of({**at, "dp": outer * block + inner, "tp": (at["tp"] + shift[2]) % sizes["tp"]}, sizes)
        )
    table = recording["table"].copy()
    kind, nbytes, peer, purpose = (
        table[:, FIELDS.index(name)] for name in ("kind", "bytes", "peer", "purpose")
    )
    scalars = ((kind == SEND) | (kind == RECV)) & (purpose == PURPOSES.index("scalars"))
    kind[scalars], nbytes[scalars], peer[scalars] = REDUCE, 0, -1
    peer[peer >= 0] = np.array(relabel)[peer[peer >= 0]]
    groups = {
        g: (axis, tuple(sorted(relabel[m] for m in members)))
        for g, (axis, members) in recording["groups"].items()
    }
    return {**recording, "rank": rank, "table": table, "groups": groups}


class DryBackend:
    """Records every rank, one after the other, in this thread.

    Args:
        gpus: how many ranks.
        ring_bytes: for a program that is the same all round a ring and has one buffer: that buffer's size in
            bytes. Then only rank 0 is recorded, and its recording relabelled for every other rank.
        say: is told how many ranks are recorded, every two seconds.
    """

    name = "dry"

    def __init__(
        self,
        gpus: int,
        ring_bytes: int | None = None,
        say: Callable[[str], None] = lambda _text: None,
        **_: Any,
    ) -> None:
        self.gpus, self.ring_bytes, self.say = gpus, ring_bytes, say

    def run(
        self, program: Callable[..., Any], args: tuple, record: bool, capacity: float | None
    ) -> list[Outcome]:
        """Record every rank in turn; returns one outcome a rank.

        Raises:
            InputError: the recordings would not fit into this machine's memory. That is seen from the first
                rank and the last, before the others are recorded.
        """
        outcomes: dict[int, Outcome] = {}
        said, repeats = time.monotonic(), True
        # the last rank comes second: of both ends the one that does less says what all of them do at least
        for rank in dict.fromkeys((0, self.gpus - 1, *range(self.gpus))):
            if rank and self.ring_bytes and record:
                recording = relabelled(outcomes[0].recording or {}, rank, self.gpus, self.ring_bytes)
                outcomes[rank] = replace(outcomes[0], rank=rank, recording=recording)
            else:
                if record:
                    outcome, repeats = _record(rank, self.gpus, program, args, capacity, repeats)
                else:
                    outcome = run_rank(DryWire(rank, self.gpus), program, args, record, capacity)
                if outcome.error is not None:
                    raise outcome.error
                outcomes[rank] = outcome
            if record and len(outcomes) == min(2, self.gpus):
                events = [len((o.recording or {})["table"]) for o in outcomes.values()]
                check_events(self.gpus, self.gpus * min(events))
            if time.monotonic() - said > SAY_EVERY_S:
                said = time.monotonic()
                self.say(f"recorded {len(outcomes):,} of {self.gpus:,} ranks")
        return [outcomes[rank] for rank in range(self.gpus)]

    def close(self) -> None:
        """Nothing to do."""
