"""Wires over a torch.distributed process group: gloo between CPUs, NCCL between GPUs.

Used by Ray and torchrun.

gloo makes no promise of progress and cannot be polled, so waiting for any of several messages is done by one
helper thread a message (torch releases the interpreter while it waits). Its own thread moves the bytes, on
the core of the rank that waits for them, so what a message costs is mostly how often the two threads take
turns (docs/decisions/0062). NCCL orders work on streams: each communicator gets a stream of its own, and a
step's send and receive start as one group.

An error of the library is given a name: rank, operation, peer, and whether the peer died or the time ran out.
"""

from __future__ import annotations

import contextlib
import queue
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from glasscluster.base.errors import GlassError, MessageLost, RankDied, RankStalled
from glasscluster.sim.ranks.agreement import Call, StoreCalls
from glasscluster.sim.ranks.deadlock import Wait, waiting_line
from glasscluster.sim.ranks.wire import Ticket, Wire

_LIBRARY_OPS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


class GroupWire(Wire):
    """A rank's end of the default process group."""

    def __init__(
        self, rank: int, size: int, device: torch.device, timeout_s: float, calls: StoreCalls | None = None
    ) -> None:
        self.rank, self.size, self.device, self.timeout_s = rank, size, device, timeout_s
        self.calls = calls
        self._limit = timedelta(seconds=timeout_s)
        self._expected: defaultdict[tuple[int, int], deque[Ticket]] = defaultdict(deque)  # by sender and tag
        self._arrived: queue.SimpleQueue[tuple[Ticket, Exception | None]] = queue.SimpleQueue()
        self._helpers: ThreadPoolExecutor | None = None
        self._submitted: set[int] = set()
        self._library_groups: dict[tuple[int, ...], Any] = {}

    # ---- messages ------------------------------------------------------------------------------------------
    def isend(self, tensor: torch.Tensor, dst: int, tag: int, what: str) -> Ticket:
        """Post a send."""
        ticket = Ticket("send", dst, tag, tensor, what)
        self._compare(ticket)
        try:
            ticket.handle = _default_group().send([tensor], dst, tag)
        except Exception as problem:
            raise self._name(problem, ticket) from None
        return ticket

    def irecv(self, out: torch.Tensor, src: int, tag: int, what: str) -> Ticket:
        """Post a receive, unless that was done when it was announced."""
        early = self._expected.get((src, tag))
        return early.popleft() if early else self._post_receive(out, src, tag, what)

    def expect(self, out: torch.Tensor, src: int, tag: int, what: str) -> None:
        """Post a receive now, for the `irecv` to come.

        A sender of gloo asks whether its receiver is ready. If that has said so by then, the message leaves
        at once, from the sender's own thread.
        """
        self._expected[src, tag].append(self._post_receive(out, src, tag, what))

    def _post_receive(self, out: torch.Tensor, src: int, tag: int, what: str) -> Ticket:
        ticket = Ticket("recv", src, tag, out, what)
        self._compare(ticket)
        try:
            ticket.handle = _default_group().recv([out], src, tag)
        except Exception as problem:
            raise self._name(problem, ticket) from None
        return ticket

    def block(self, tickets: Sequence[Ticket], together: bool) -> None:
        """Wait for one of the tickets, or for all in turn when all are needed anyway."""
        for ticket in tickets:
            if ticket.done:
                return
        if together and self._submitted.isdisjoint(map(id, tickets)):
            for ticket in tickets:
                try:
                    self._wait(ticket)
                except Exception as problem:
                    raise self._name(problem, ticket) from None
                self._finish(ticket)
            return
        self._helpers = self._helpers or ThreadPoolExecutor(max_workers=64, thread_name_prefix="message")
        for ticket in tickets:
            if id(ticket) not in self._submitted:
                self._submitted.add(id(ticket))
                self._helpers.submit(self._wait_aside, ticket)
        self._take_arrived(self._arrived.get())
        while not self._arrived.empty():
            self._take_arrived(self._arrived.get())

    def _wait(self, ticket: Ticket) -> None:
        ticket.handle.wait(self._limit)  # type: ignore[attr-defined]

    def _wait_aside(self, ticket: Ticket) -> None:
        try:
            self._wait(ticket)
            self._arrived.put((ticket, None))
        except Exception as problem:
            self._arrived.put((ticket, problem))

    def _take_arrived(self, arrived: tuple[Ticket, Exception | None]) -> None:
        ticket, problem = arrived
        self._submitted.discard(id(ticket))
        if problem is not None:
            raise self._name(problem, ticket) from None
        self._finish(ticket)

    def _finish(self, ticket: Ticket) -> None:
        """Mark a message as done, and keep its handle for as long as the ticket lives.

        gloo wakes the rank before its own thread has let go of the handle, and who drops one that is still
        held spins until it is not. By the time the next messages are posted it is free.
        """
        ticket.done, ticket.tensor = True, None

    def _name(self, problem: Exception, ticket: Ticket) -> GlassError:
        """Return a named error of ours for an error of the library."""
        names: dict[str, Any] = {"rank": self.rank, "operation": ticket.what, "peer": ticket.peer}
        nbytes = ticket.tensor.numel() * ticket.tensor.element_size() if ticket.tensor is not None else 0
        line = waiting_line(ticket.line, sys._getframe())
        wait = Wait(self.rank, ticket.kind, ticket.peer, ticket.what, nbytes, line)
        text = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        if "imed out" in text or "timeout" in text.lower():
            error: GlassError = RankStalled(f"{wait}: nothing happened for {self.timeout_s:g} s", **names)
        else:
            error = RankDied(f"rank {ticket.peer} is gone: {wait} ({text})", **names)
            error.rank = ticket.peer
        error.__dict__["wait"] = wait
        return error

    # ---- agreement -----------------------------------------------------------------------------------------
    def agree(
        self, call: Call, ranks: Sequence[int], sends: Sequence[int] = (), receives: Sequence[int] = ()
    ) -> None:
        """Compare with what the first rank wrote into the store."""
        if self.calls is not None:
            number = self.calls.compare(call, ranks)
            if sends or receives:
                self.calls.compare_splits(call, number, ranks, sends, receives)

    def _compare(self, ticket: Ticket) -> None:
        """Compare a message of the program's own; those of a collective are described by it."""
        if self.calls is not None and ticket.what in ("send", "recv"):
            assert ticket.tensor is not None
            self.calls.compare_message(ticket.kind, ticket.peer, ticket.tag, ticket.tensor)

    def start_run(self) -> None:
        """Begin to number collectives and messages anew."""
        self._expected.clear()
        if self.calls is not None:
            self.calls.start_run()

    def unmatched(self) -> dict[tuple[int, int, int], int]:
        """What this rank has sent less what it has received, by sender, receiver and tag."""
        return {} if self.calls is None else {k: n for k, n in self.calls.posted.items() if n}

    # ---- whole collectives ---------------------------------------------------------------------------------
    def native(
        self, operation: str, tensor: torch.Tensor, group: Sequence[int], root: int, op: str = "sum"
    ) -> None:
        """Run the library's own collective, in place on the full buffer."""
        ranks = tuple(group)
        if ranks not in self._library_groups:
            limit = timedelta(seconds=self.timeout_s)  # the default group allows more
            self._library_groups[ranks] = dist.new_group(
                list(ranks), timeout=limit, use_local_synchronization=True
            )
        members = self._library_groups[ranks]
        chunks = list(torch.tensor_split(tensor.view(-1), len(ranks)))
        mine = chunks[ranks.index(self.rank)]
        if operation in (
            "all_reduce",
            "reduce_scatter",
        ):  # gloo reduces the whole buffer, which includes our chunk
            dist.all_reduce(tensor, _LIBRARY_OPS[op], group=members)
        elif operation == "broadcast":
            dist.broadcast(tensor, ranks[root], group=members)
        elif len({c.numel() for c in chunks}) == 1:
            dist.all_gather(chunks, mine.clone(), group=members)
        else:  # chunks of different lengths: each rank broadcasts its own
            for owner, chunk in zip(ranks, chunks, strict=True):
                dist.broadcast(chunk, owner, group=members)

    def close(self) -> None:
        """Stop helper threads."""
        if self._helpers is not None:
            self._helpers.shutdown(wait=False, cancel_futures=True)


class NcclWire(GroupWire):
    """A wire between GPUs: messages are enqueued at launch on their communicator's stream, and the host waits
    for nothing.
    """

    def __init__(
        self, rank: int, size: int, device: torch.device, timeout_s: float, calls: StoreCalls | None = None
    ) -> None:
        super().__init__(rank, size, device, timeout_s, calls)
        self._streams: dict[int, torch.cuda.Stream] = {}
        self._batch: list[tuple[Ticket, dist.P2POp]] | None = None

    def isend(self, tensor: torch.Tensor, dst: int, tag: int, what: str) -> Ticket:
        """Enqueue a send."""
        return self._enqueue(Ticket("send", dst, tag, tensor, what), dist.isend)

    def irecv(self, out: torch.Tensor, src: int, tag: int, what: str) -> Ticket:
        """Enqueue a receive."""
        return self._enqueue(Ticket("recv", src, tag, out, what), dist.irecv)

    def expect(self, out: torch.Tensor, src: int, tag: int, what: str) -> None:
        """Do nothing: NCCL pairs messages in the order in which they are enqueued."""

    def _enqueue(self, ticket: Ticket, post: Any) -> Ticket:
        assert ticket.tensor is not None
        self._compare(ticket)
        entry = (ticket, dist.P2POp(post, ticket.tensor, ticket.peer))
        if self._batch is not None:
            self._batch.append(entry)
        else:
            self._start([entry])
        return ticket

    def _start(self, batch: list[tuple[Ticket, dist.P2POp]]) -> None:
        for work in dist.batch_isend_irecv([op for _, op in batch]):
            work.wait()  # the current stream waits, not the host
        for ticket, _ in batch:
            self._finish(ticket)

    @contextlib.contextmanager
    def group(self) -> Iterator[None]:
        """One NCCL group call for everything posted inside."""
        self._batch = []
        try:
            yield
            if self._batch:
                self._start(self._batch)
        finally:
            self._batch = None

    @contextlib.contextmanager
    def lane(self, group: int) -> Iterator[None]:
        """The communicator's stream, after what the program has enqueued so far."""
        stream = self._streams.setdefault(group, torch.cuda.Stream())
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield

    def join(self, group: int) -> None:
        """The program's stream waits for the communicator's."""
        if group in self._streams:
            torch.cuda.current_stream().wait_stream(self._streams[group])


def _default_group() -> Any:
    """The process group itself, whose send and recv are what dist.isend and dist.irecv end in.

    It is asked for each time: who keeps it beyond its end aborts the process.
    """
    return dist.group.WORLD


def make_wire(rank: int, size: int, device: torch.device, timeout_s: float, store: Any) -> GroupWire:
    """The wire for a device, in the default process group.

    store: in which collectives are compared before they run, used by nobody before; None: they are not.
    """
    calls = None if store is None else StoreCalls(store, rank)
    return (NcclWire if device.type == "cuda" else GroupWire)(rank, size, device, timeout_s, calls)


def lost_message(unmatched: Iterable[dict[tuple[int, int, int], int]]) -> MessageLost | None:
    """An error for a message that one rank sent and its receiver never asked for, or the other way round.

    unmatched: of every rank, as `Wire.unmatched` returns it.
    """
    total: Counter[tuple[int, int, int]] = Counter()
    for counts in unmatched:
        total.update(counts)
    for (src, dst, tag), n in sorted(total.items()):
        if n:
            me, peer, kind = (src, dst, "send") if n > 0 else (dst, src, "recv")
            never = "received" if n > 0 else "sent"
            posted = f"rank {me} posted a {kind} with rank {peer} (wire tag {tag})"
            text = f"{posted} and rank {peer} never {never} it"
            return MessageLost(text, rank=me, operation=kind, peer=peer)
    return None


def with_one_thread() -> None:
    """Use one OpenMP thread on every rank; with several, sums could differ in their last bits."""
    torch.set_num_threads(1)
    with contextlib.suppress(RuntimeError):
        torch.set_num_interop_threads(1)
