"""Works: operations that were launched and may not be finished, and the engine that drives them.

A collective is a generator of steps behind a `CollectiveWork`. Each step posts sends and receives and yields
their tickets; it is resumed when they are done. Nothing progresses by itself: whenever a rank blocks,
`Progress` drives all of the rank's outstanding works as far as messages allow. So a data-parallel ring in
flight cannot deadlock against a pipeline receive, and a send is always posted before anything is waited for.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch

from glasscluster.base.errors import InputError
from glasscluster.sim.ranks.deadlock import source_line
from glasscluster.sim.ranks.wire import Ticket, Wire
from glasscluster.sim.recording.events import BEGIN, COLLECTIVE, PURPOSES, RECV, REDUCE, SEND
from glasscluster.sim.recording.memory import Ledger
from glasscluster.sim.recording.recorder import Recorder

Steps = Iterator[list[Ticket]]  # yields each step's messages; the next step begins when they are done


class Group(Protocol):
    """What a work needs to know about its communicator."""

    wire: Wire
    progress: Progress
    recorder: Recorder
    ledger: Ledger
    ranks: tuple[int, ...]
    axis: str
    group: int
    rank: int
    size: int
    tag_base: int
    launched: int
    last_collective: int

    def lane(self, which: int) -> int:
        """The number of one of the communicator's lanes on the graph."""

    def next_sequence(self) -> int:
        """Count one more collective; returns its number on this communicator, from 0."""

    def restart_numbering(self) -> None:
        """Number collectives from 0 again."""


class Progress:
    """Drives one rank's outstanding collectives. One object a rank, shared by its communicators."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.queues: list[deque[CollectiveWork]] = []
        self.communicators: list[Group] = []
        self._driving = False

    def drive(self) -> list[Ticket]:
        """Advance every queue as far as possible without blocking; returns the messages that the first work
        of each queue waits for.
        """
        if self._driving:  # a step of a collective never waits; a nested call would run a generator twice
            return []
        self._driving = True
        try:
            pending: list[Ticket] = []
            for queue in self.queues:
                while queue and queue[0].advance():
                    queue.popleft()
                if queue:
                    pending.extend(t for t in queue[0].pending if not t.done)
            return pending
        finally:
            self._driving = False

    def wait(self, done: Callable[[], bool], own: Sequence[Ticket] = ()) -> None:
        """Block until `done()`, driving everything outstanding meanwhile."""
        while True:
            pending = self.drive()
            if done():
                return
            mine = [t for t in own if not t.done]
            busy = [queue for queue in self.queues if queue]
            assert mine or pending, "a wait with nothing under way can never end"
            if mine or len(busy) > 1:
                self.wire.block(mine + pending, together=not busy)
            else:
                del pending  # tickets hold their buffers
                self._finish(busy[0][0])

    def _finish(self, work: CollectiveWork) -> None:
        """Run the only thing under way to its end; no other can move meanwhile."""
        self._driving = True
        try:
            while not work.advance():
                self.wire.block([t for t in work.pending if not t.done], together=True)
        finally:
            self._driving = False

    def drain(self) -> None:
        """Finish every outstanding collective (the end of a program)."""
        self.wait(lambda: not any(self.queues))


class Work:
    """An operation that was launched. When `wait()` returns, its buffers may be used."""

    def wait(self) -> None:
        """Block until finished; may be called more than once."""


class Done(Work):
    """The Work of an operation that had nothing to do, as in a group of one rank."""


class MessageWork(Work):
    """A point-to-point message under way."""

    def __init__(
        self, comm: Group, ticket: Ticket, x: torch.Tensor, finish: Callable[[], object] | None = None
    ) -> None:
        self.comm, self.ticket, self.finish = comm, ticket, finish
        self.tensor: torch.Tensor | None = x  # the buffer belongs to the message until somebody waits

    def wait(self) -> None:
        """Block until the message left (send) or arrived (receive)."""
        if not self.ticket.done:
            self.comm.progress.wait(lambda: self.ticket.done, [self.ticket])
        if self.finish is not None:
            self.finish()
            self.finish = None
        if self.ticket.row >= 0:
            self.comm.recorder.waited(self.ticket.row)
        self.tensor = self.ticket.handle = None


class CollectiveWork(Work):
    """A collective under way: a generator of steps, its staging memory, and what its next event on the graph
    follows.

    Phase, layer and micro-batch are taken at launch, so the recording does not depend on when the CPU runs
    the steps.
    """

    def __init__(
        self, comm: Group, operation: str, algorithm: str, purpose: str, label: str, buffer: torch.Tensor
    ) -> None:
        self.comm, self.operation, self.algorithm = comm, operation, algorithm
        self.buffer, self.nbytes = buffer, buffer.numel() * buffer.element_size()
        self.sequence = comm.next_sequence()
        self.name = f"{operation}({algorithm}) #{self.sequence} on {comm.axis}"  # in errors
        self.pending: list[Ticket] = []
        self.expected: dict[int, deque[torch.Tensor]] = {}  # by sender: buffers of announced receives
        self.posted: dict[int, Ticket] | None = None  # by somebody's own algorithm, not yet yielded
        self.staging: torch.Tensor | None = None
        self.steps: Steps = iter(())
        self.finished, self.started = False, False
        recorder = comm.recorder
        self.recorded = not recorder.paused
        self.cursor: tuple[int, ...] = recorder.frontier
        self.row = -1
        self.labels = {
            "phase": recorder.phase,
            "layer": recorder.current_layer(),
            "micro_batch": recorder.micro_batch,
            "purpose": PURPOSES.index(purpose),
            "label": label,
            "sequence": self.sequence,
        }
        self.launch = self._row(BEGIN, operation, 0, -1, comm.lane(3))
        if self.recorded:
            self.cursor = (self.launch,)

    # ---- what an algorithm calls ---------------------------------------------------------------------------
    @property
    def rank(self) -> int:
        """This rank's index in the group."""
        return self.comm.rank

    @property
    def size(self) -> int:
        """Ranks in the group."""
        return self.comm.size

    def stage(self, numel: int, like: torch.Tensor) -> torch.Tensor:
        """Return scratch memory, which the collective owns until `wait()`."""
        self.staging = (
            like.new_empty(numel) if self.recorder_off() else _quiet_empty(self.comm.recorder, numel, like)
        )
        if self.recorded:
            self.comm.ledger.register(self.staging, "buffers", f"{self.operation} staging")
        return self.staging

    def recorder_off(self) -> bool:
        """True when nothing is being recorded."""
        return not self.recorded

    def send(self, x: torch.Tensor, dst: int) -> list[Ticket]:
        """Post a send to a group rank; empty tensors send nothing."""
        return self._post(SEND, x, dst)

    def recv(self, out: torch.Tensor, src: int) -> list[Ticket]:
        """Post a receive from a group rank; empty tensors receive nothing."""
        early = self.expected.get(src)
        if early and out.numel() and early.popleft() is not out:
            rule = f"rank {self.rank} announced another tensor to receive next from rank {src}"
            raise InputError("recv", tuple(out.shape), rule)
        return self._post(RECV, out, src)

    def expect(self, out: torch.Tensor, src: int) -> None:
        """Announce a receive of a later step, so that its message may arrive before that step.

        It changes neither what is sent nor what is recorded. From now on `out` may be filled. What was
        announced must be received in the same order, with `recv` or `exchange`.

        Args:
            out: the very tensor that the receive will get.
            src: the group rank that sends the message.

        Raises:
            InputError: from `recv` for another tensor, and from a collective that ends before the receive.
        """
        if out.numel():
            self.expected.setdefault(src, deque()).append(out)
            self.comm.wire.expect(out, self.comm.ranks[src], self.comm.tag_base, self.name)

    def exchange(self, x: torch.Tensor, dst: int, out: torch.Tensor, src: int) -> list[Ticket]:
        """Post a send and a receive together."""
        with self.comm.wire.group():
            return self.recv(out, src) + self.send(x, dst)

    def reduce(self, into: torch.Tensor, other: torch.Tensor, op: str) -> None:
        """Add `other` to `into` with the operation `op`, on this rank: into = into op other."""
        if into.numel() == 0:
            return
        REDUCTIONS[op](into, other)
        if self.recorded:
            nbytes = into.numel() * into.element_size()
            self._row(REDUCE, op, nbytes, -1, self.comm.lane(0), self._offset(into), advance=True)

    # ---- what the progress engine calls --------------------------------------------------------------------
    def advance(self) -> bool:
        """Run steps until one has to wait for messages; returns True when the collective is finished."""
        if self.finished:
            return True
        recorder = self.comm.recorder
        was_paused, recorder.paused = recorder.paused, True
        try:
            with self.comm.wire.lane(self.comm.group):
                return self._run_steps()
        finally:
            recorder.paused = was_paused

    def _run_steps(self) -> bool:
        if not self.started:
            self.started = True
            if (
                self.recorded and self.comm.last_collective >= 0
            ):  # one after the other on a communicator, as on a stream
                self.cursor = (*self.cursor, self.comm.last_collective)
        while True:
            for ticket in self.pending:
                if not ticket.done:
                    return False
            if self.recorded and self.pending:
                self.cursor = tuple(t.row for t in self.pending)
            step = next(self.steps, None)
            self.pending = step or []
            if step is None:
                self.finished = True
                self._check_expected()
                del self.buffer
                if self.recorded:
                    self.cursor = tuple(dict.fromkeys((*self.cursor, self.launch)))
                self.row = self._row(
                    COLLECTIVE, f"{self.operation}/{self.algorithm}", self.nbytes, -1, self.comm.lane(0)
                )
                self.comm.last_collective = self.row
                return True

    def wait(self) -> None:
        """Block until the collective has finished on this rank; frees its staging."""
        if not self.finished:
            self.comm.progress.wait(lambda: self.finished)
        self.comm.wire.join(self.comm.group)
        if self.recorded:
            self.comm.recorder.waited(self.row)
        self.staging = None

    # ---- inside --------------------------------------------------------------------------------------------
    def _post(self, kind: int, x: torch.Tensor, peer: int) -> list[Ticket]:
        if x.numel() == 0:
            return []
        comm = self.comm
        try:
            world = comm.ranks[peer]
        except IndexError:
            raise IndexError(f"there is no rank {peer} in a group of {comm.size} ranks") from None
        post = comm.wire.isend if kind == SEND else comm.wire.irecv
        ticket = post(x, world, comm.tag_base, self.name)
        if self.recorded:
            lane = comm.lane(1 if kind == SEND else 2)
            nbytes = x.numel() * x.element_size()
            ticket.row = self._row(kind, self.operation, nbytes, world, lane, self._offset(x))
        if self.posted is not None:
            ticket.line = source_line(sys._getframe())
            self.posted[id(ticket)] = ticket
        return [ticket]

    def _check_expected(self) -> None:
        """Check that every announced receive was posted; else it would take the next collective's message."""
        for src, buffers in self.expected.items():
            if buffers:
                rule = f"{self.algorithm} ends before it has received all that it announced from rank {src}"
                raise InputError("expect", len(buffers), rule)

    def _offset(self, view: torch.Tensor) -> int:
        """The byte of the collective's buffer at which a part of it begins; -1 for memory outside it
        (staging).
        """
        if not self.recorded or view.untyped_storage()._cdata != self.buffer.untyped_storage()._cdata:
            return -1
        return int(view.storage_offset() - self.buffer.storage_offset()) * view.element_size()

    def _row(
        self, kind: int, op: str, nbytes: int, peer: int, lane: int, offset: int = -1, advance: bool = False
    ) -> int:
        if not self.recorded:
            return -1
        row = self.comm.recorder.row(
            lane, kind, op, 0, nbytes, self.cursor, peer=peer, offset=offset, **self.labels
        )
        if advance:
            self.cursor = (row,)
        return row


REDUCTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "sum": lambda a, b: a.add_(b),
    "max": lambda a, b: torch.maximum(a, b, out=a),
    "min": lambda a, b: torch.minimum(a, b, out=a),
}


def _quiet_empty(recorder: Recorder, numel: int, like: torch.Tensor) -> torch.Tensor:
    with recorder.unrecorded():
        return like.new_empty(numel)
