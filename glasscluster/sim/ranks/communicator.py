"""The communicator: what a program talks through. Everything here is written once, above two primitives.

A backend gives each rank a `Wire` with `isend`, `irecv` and `block`. On top of it stand groups, collectives,
checks and recording. A collective is a generator of steps behind a `Work`; each communicator runs its
collectives in one queue, in launch order (as NCCL does on a stream). Nothing progresses by itself: every
blocking point of a rank drives all of its outstanding Works as far as messages allow while it waits, so a
data-parallel ring in flight cannot deadlock against a pipeline receive, and a send is always posted before
anything is waited for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from glasscluster.base.errors import InputError
from glasscluster.sim.ranks import collectives
from glasscluster.sim.ranks.collectives import with_option
from glasscluster.sim.recording.events import BEGIN, COLLECTIVE, PURPOSES, RECV, REDUCE, SEND, group_lane
from glasscluster.sim.recording.memory import Ledger
from glasscluster.sim.recording.recorder import Recorder

TAGS_PER_GROUP = 1 << 16


class Ticket:
    """One message under way on a wire. `done` becomes True when its buffer may be used again."""

    __slots__ = ("done", "handle", "kind", "peer", "row", "tag", "tensor", "what")

    def __init__(self, kind: str, peer: int, tag: int, tensor: torch.Tensor | None, what: str) -> None:
        self.done = False
        self.kind, self.peer, self.tag, self.tensor, self.what = kind, peer, tag, tensor, what
        self.handle: object = None
        self.row = -1


class Wire(ABC):
    """What a backend implements, per rank. Ranks and tags are the cluster's own."""

    rank: int
    size: int
    device: torch.device
    operate: Callable[[Any, tuple, dict[str, Any]], Any] | None = None  # runs an operator with its arguments; None: just call it

    @abstractmethod
    def isend(self, tensor: torch.Tensor, dst: int, tag: int, what: str) -> Ticket:
        """Post a send; returns at once."""

    @abstractmethod
    def irecv(self, out: torch.Tensor, src: int, tag: int, what: str) -> Ticket:
        """Post a receive; returns at once."""

    @abstractmethod
    def block(self, tickets: Sequence[Ticket], together: bool) -> None:
        """Return when at least one of the tickets is done; a wait that cannot end raises a named error.

        `together`: all of them are needed before anything else can go on, so they may be waited for in turn.
        """

    @abstractmethod
    def native(self, operation: str, tensor: torch.Tensor, group: Sequence[int], root: int, op: str = "sum") -> None:
        """Hand a whole collective to the library underneath (gloo, NCCL)."""

    # ---- only a device with streams overrides these --------------------------------------------------------------
    def group(self) -> AbstractContextManager[object]:
        """What is posted inside starts as one (NCCL deadlocks otherwise)."""
        return nullcontext()

    def lane(self, group: int) -> AbstractContextManager[object]:
        """Work inside belongs to a communicator's own stream."""
        return nullcontext()

    def join(self, group: int) -> None:  # noqa: B027
        """The program's stream waits for a communicator's."""


class Progress:
    """Drives one rank's outstanding collectives. One object a rank, shared by its communicators."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.queues: list[deque[CollectiveWork]] = []
        self.communicators: list[Communicator] = []
        self._driving = False

    def drive(self) -> list[Ticket]:
        """Advance every queue as far as it goes without blocking; returns what the heads wait for."""
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
            sources = bool(mine) + sum(bool(q) for q in self.queues)
            assert mine or pending, "a wait with nothing under way can never end"
            self.wire.block(mine + pending, together=sources == 1)

    def drain(self) -> None:
        """Finish every outstanding collective (the end of a program)."""
        self.wait(lambda: not any(self.queues))


class Work:
    """Something launched. `wait()` returns when its buffers may be used."""

    def wait(self) -> None:
        """Block until finished; may be called more than once."""


class Done(Work):
    """The Work of an operation that had nothing to do (a group of one)."""


class MessageWork(Work):
    """A point-to-point message under way."""

    def __init__(self, comm: Communicator, ticket: Ticket, x: torch.Tensor, finish: Callable[[], object] | None = None) -> None:
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
        self.tensor = None


class CollectiveWork(Work):
    """A collective under way: a generator of steps, its staging memory, and where its rows hang on the graph.

    Labels are taken at launch, so the recording does not depend on when the CPU runs the steps.
    """

    def __init__(self, comm: Communicator, operation: str, algorithm: str, purpose: str, label: str, buffer: torch.Tensor) -> None:
        self.comm, self.operation, self.algorithm = comm, operation, algorithm
        self.buffer, self.nbytes = buffer, buffer.numel() * buffer.element_size()
        self.sequence = comm.next_sequence()
        self.pending: list[Ticket] = []
        self.staging: torch.Tensor | None = None
        self.steps: Iterator[list[Ticket]] = iter(())
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

    # ---- what an algorithm calls -------------------------------------------------------------------------------
    @property
    def rank(self) -> int:
        """This rank's index in the group."""
        return self.comm.rank

    @property
    def size(self) -> int:
        """Ranks in the group."""
        return self.comm.size

    def stage(self, numel: int, like: torch.Tensor) -> torch.Tensor:
        """Scratch memory, owned by the communicator from launch to wait."""
        self.staging = like.new_empty(numel) if self.recorder_off() else _quiet_empty(self.comm.recorder, numel, like)
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
        return self._post(RECV, out, src)

    def exchange(self, x: torch.Tensor, dst: int, out: torch.Tensor, src: int) -> list[Ticket]:
        """Post a send and a receive as one."""
        with self.comm.wire.group():
            return self.recv(out, src) + self.send(x, dst)

    def reduce(self, into: torch.Tensor, other: torch.Tensor, op: str) -> None:
        """`into = into op other`, on this rank."""
        if into.numel() == 0:
            return
        _REDUCTIONS[op](into, other)
        self._row(REDUCE, op, into.numel() * into.element_size(), -1, self.comm.lane(0), self._offset(into), advance=True)

    # ---- what the progress engine calls --------------------------------------------------------------------------
    def advance(self) -> bool:
        """Run steps until one must wait; True when the collective is finished."""
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
            if self.recorded and self.comm.last_collective >= 0:  # one after the other on a communicator, as on a stream
                self.cursor = (*self.cursor, self.comm.last_collective)
        while all(t.done for t in self.pending):
            if self.recorded and self.pending:
                self.cursor = tuple(t.row for t in self.pending)
            step = next(self.steps, None)
            self.pending = step or []
            if step is None:
                self.finished = True
                del self.buffer
                if self.recorded:
                    self.cursor = tuple(dict.fromkeys((*self.cursor, self.launch)))
                self.row = self._row(COLLECTIVE, f"{self.operation}/{self.algorithm}", self.nbytes, -1, self.comm.lane(0))
                self.comm.last_collective = self.row
                return True
        return False

    def wait(self) -> None:
        """Block until the collective has finished on this rank; frees its staging."""
        if not self.finished:
            self.comm.progress.wait(lambda: self.finished)
        self.comm.wire.join(self.comm.group)
        if self.recorded:
            self.comm.recorder.waited(self.row)
        self.staging = None

    # ---- inside -------------------------------------------------------------------------------------------------
    def _post(self, kind: int, x: torch.Tensor, peer: int) -> list[Ticket]:
        if x.numel() == 0:
            return []
        comm, world = self.comm, self.comm.ranks[peer]
        what = f"{self.operation}({self.algorithm}) #{self.sequence} on {comm.axis}"
        post = comm.wire.isend if kind == SEND else comm.wire.irecv
        ticket = post(x, world, comm.tag_base, what)
        lane = comm.lane(1 if kind == SEND else 2)
        ticket.row = self._row(kind, self.operation, x.numel() * x.element_size(), world, lane, self._offset(x))
        return [ticket]

    def _offset(self, part: torch.Tensor) -> int:
        """The first byte of a part of the buffer, within the buffer; -1 for what is elsewhere (staging)."""
        if not self.recorded or part.untyped_storage()._cdata != self.buffer.untyped_storage()._cdata:
            return -1
        return int(part.storage_offset() - self.buffer.storage_offset()) * part.element_size()

    def _row(self, kind: int, op: str, nbytes: int, peer: int, lane: int, offset: int = -1, advance: bool = False) -> int:
        if not self.recorded:
            return -1
        row = self.comm.recorder.row(lane, kind, op, 0, nbytes, self.cursor, peer=peer, offset=offset, **self.labels)
        if advance:
            self.cursor = (row,)
        return row


_REDUCTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "sum": lambda a, b: a.add_(b),
    "max": lambda a, b: torch.maximum(a, b, out=a),
    "min": lambda a, b: torch.minimum(a, b, out=a),
}


def _quiet_empty(recorder: Recorder, numel: int, like: torch.Tensor) -> torch.Tensor:
    with recorder.unrecorded():
        return like.new_empty(numel)


class Communicator:
    """A group of ranks that talk to each other. `ranks` are the cluster's; `rank` is the index among them."""

    def __init__(
        self, wire: Wire, progress: Progress, recorder: Recorder, ledger: Ledger, ranks: Sequence[int], axis: str, group: int
    ) -> None:
        self.wire, self.progress, self.recorder, self.ledger = wire, progress, recorder, ledger
        self.ranks, self.axis, self.group = tuple(ranks), axis, group
        self.size, self.rank = len(self.ranks), self.ranks.index(wire.rank)
        self.tag_base = group * TAGS_PER_GROUP
        self._queue: deque[CollectiveWork] = deque()
        progress.queues.append(self._queue)
        progress.communicators.append(self)
        recorder.groups[group] = (axis, self.ranks)
        self._launched = 0
        self.last_collective = -1  # row of the one that finished last
        self._next_split = (group + 1) * 64

    def __repr__(self) -> str:
        return f"Communicator({self.axis}, rank {self.rank} of {self.size}, ranks {list(self.ranks)})"

    # ---- point to point --------------------------------------------------------------------------------------
    def isend(self, x: torch.Tensor, dst: int, tag: int = 0, *, purpose: str = "data", label: str = "") -> Work:
        """Launch a send of `x` to group rank `dst`. `x` must not change before `wait()` returns."""
        return self._message(SEND, x.contiguous(), dst, tag, purpose, label, None)

    def irecv(self, out: torch.Tensor, src: int, tag: int = 0, *, purpose: str = "data", label: str = "") -> Work:
        """Launch a receive into `out` from group rank `src`; `out` is filled when `wait()` returns."""
        if out.is_contiguous():
            return self._message(RECV, out, src, tag, purpose, label, None)
        buffer = torch.empty_like(out, memory_format=torch.contiguous_format)
        return self._message(RECV, buffer, src, tag, purpose, label, lambda: out.copy_(buffer))

    def send(self, x: torch.Tensor, dst: int, tag: int = 0, **labels: str) -> None:
        """`isend` and wait. Two ranks that both send first wait for each other forever."""
        self.isend(x, dst, tag, **labels).wait()

    def recv(self, out: torch.Tensor, src: int, tag: int = 0, **labels: str) -> torch.Tensor:
        """`irecv` and wait; returns `out`."""
        self.irecv(out, src, tag, **labels).wait()
        return out

    def sendrecv(self, x: torch.Tensor, dst: int, out: torch.Tensor, src: int, tag: int = 0, **labels: str) -> torch.Tensor:
        """Send and receive at once; cannot deadlock in a ring."""
        works = [self.irecv(out, src, tag, **labels), self.isend(x, dst, tag, **labels)]
        for work in works:
            work.wait()
        return out

    def pass_on(self, x: torch.Tensor, tag: int = 0, **labels: str) -> tuple[torch.Tensor, list[Work]]:
        """Launch `x` to the rank on the right; returns room for what comes from the left, filled when the works are done."""
        if self.size == 1:
            return x, []
        room, left, right = torch.empty_like(x), (self.rank - 1) % self.size, (self.rank + 1) % self.size
        with self.wire.group():
            return room, [self.irecv(room, left, tag, **labels), self.isend(x, right, tag, **labels)]

    def going_round(self, x: torch.Tensor, tag: int = 0, **labels: str) -> Iterator[tuple[int, torch.Tensor]]:
        """Every rank's `x` and whose it is, one's own first, then from the left. The next one arrives while one is used."""
        for step in range(self.size):
            following, works = self.pass_on(x, tag, **labels) if step < self.size - 1 else (x, [])
            yield (self.rank - step) % self.size, x
            for work in works:
                work.wait()
            x = following

    def _message(
        self, kind: int, x: torch.Tensor, peer: int, tag: int, purpose: str, label: str, finish: Callable[[], object] | None
    ) -> Work:
        name = "send" if kind == SEND else "recv"
        if not 0 <= peer < self.size:
            raise InputError(f"{name} peer", peer, f"the {self.axis} group has ranks 0..{self.size - 1}", range(self.size))
        if not 0 <= tag < TAGS_PER_GROUP - 1:
            raise InputError("tag", tag, f"a tag lies in 0..{TAGS_PER_GROUP - 2}")
        world, recorder = self.ranks[peer], self.recorder
        post = self.wire.isend if kind == SEND else self.wire.irecv
        ticket = post(x.detach(), world, self.tag_base + 1 + tag, name)
        if not recorder.paused:
            lane = self.lane(4 if kind == SEND else 5)  # not those of collectives: when their steps run is up to the CPU
            nbytes = x.numel() * x.element_size()
            more = {"peer": world, "tag": 1 + tag, "purpose": PURPOSES.index(purpose), "label": label}
            ticket.row = recorder.row(lane, kind, name, 0, nbytes, recorder.frontier, **more)
            if kind == RECV:
                self.ledger.call(x, f"{label or 'message'} received")
        return MessageWork(self, ticket, x, finish)

    # ---- collectives -----------------------------------------------------------------------------------------
    def all_reduce(
        self,
        x: torch.Tensor,
        op: str = "sum",
        algorithm: str = "ring",
        async_op: bool = False,
        *,
        servers: int | None = None,
        node_size: int | None = None,
        pieces: int | None = None,
        **labels,
    ) -> Work:
        """Every rank ends with the elementwise `op` over ranks, in place. op: sum, max, min, avg.

        `servers` (parameter-server): shards, one a rank by default. `node_size` (hierarchical): ranks that share a node, 8 by default.
        `pieces` (binary-tree, double-tree): how many follow each other through a tree.
        """
        options = self._options("all_reduce", algorithm, servers=servers, node_size=node_size, pieces=pieces)
        return self._collective("all_reduce", algorithm, x, async_op, labels, op=op, **options)

    def reduce_scatter(
        self, x: torch.Tensor, op: str = "sum", algorithm: str = "ring", async_op: bool = False, *, node_size: int | None = None, **labels
    ) -> Work:
        """Chunk `rank` of `x` (see `chunk`) ends with the `op` over ranks; the other chunks are scratch afterwards."""
        options = self._options("reduce_scatter", algorithm, node_size=node_size)
        return self._collective("reduce_scatter", algorithm, x, async_op, labels, op=op, **options)

    def all_gather(
        self, x: torch.Tensor, algorithm: str = "ring", async_op: bool = False, *, node_size: int | None = None, **labels
    ) -> Work:
        """`x` is the full buffer and holds this rank's chunk; it ends holding every rank's chunk."""
        options = self._options("all_gather", algorithm, node_size=node_size)
        return self._collective("all_gather", algorithm, x, async_op, labels, **options)

    def broadcast(
        self,
        x: torch.Tensor,
        src: int = 0,
        algorithm: str = "ring",
        async_op: bool = False,
        *,
        node_size: int | None = None,
        pieces: int | None = None,
        **labels,
    ) -> Work:
        """Every rank ends with group rank `src`'s tensor, in place."""
        options = self._options("broadcast", algorithm, node_size=node_size, pieces=pieces)
        return self._collective("broadcast", algorithm, x, async_op, labels, src=self._member("broadcast src", src), **options)

    def reduce(
        self,
        x: torch.Tensor,
        op: str = "sum",
        dst: int = 0,
        algorithm: str = "tree",
        async_op: bool = False,
        *,
        node_size: int | None = None,
        pieces: int | None = None,
        **labels,
    ) -> Work:
        """Group rank `dst` ends with the elementwise `op` over ranks, in place; on the others `x` is scratch afterwards."""
        options = self._options("reduce", algorithm, node_size=node_size, pieces=pieces)
        return self._collective("reduce", algorithm, x, async_op, labels, op=op, dst=self._member("reduce dst", dst), **options)

    def scatter(self, x: torch.Tensor, src: int = 0, algorithm: str = "direct", async_op: bool = False, **labels: str) -> Work:
        """Chunk `rank` of `x` ends as group rank `src`'s; the other chunks are scratch afterwards."""
        return self._collective("scatter", algorithm, x, async_op, labels, src=self._member("scatter src", src))

    def gather(self, x: torch.Tensor, dst: int = 0, algorithm: str = "direct", async_op: bool = False, **labels: str) -> Work:
        """`x` is the full buffer and holds this rank's chunk; on group rank `dst` it ends holding every rank's chunk."""
        return self._collective("gather", algorithm, x, async_op, labels, dst=self._member("gather dst", dst))

    def all_to_all(
        self,
        x: torch.Tensor,
        out: torch.Tensor,
        send_splits: Sequence[int] | None = None,
        recv_splits: Sequence[int] | None = None,
        *,
        algorithm: str = "direct",
        async_op: bool = False,
        **labels: str,
    ) -> Work:
        """Chunk j of `x` goes to rank j; piece i of `out` (each as long as chunk `rank`) comes from rank i.

        With splits: the first send_splits[0] elements of `x` go to rank 0, the next send_splits[1] to rank 1, and so on; `out` is
        laid out by recv_splits. What is empty sends nothing.
        """
        if send_splits is None and recv_splits is None:
            send_splits, recv_splits = [c.numel() for c in self.chunks(x)], [self.chunk(x).numel()] * self.size
        sends, receives = self._splits("send_splits", send_splits, x.numel()), self._splits("recv_splits", recv_splits, None)
        if out.numel() != sum(receives) or not out.is_contiguous():
            raise InputError("all_to_all out", tuple(out.shape), f"must be contiguous and hold {sum(receives)} elements")
        if sends[self.rank] != receives[self.rank]:
            raise InputError("recv_splits", receives, f"rank {self.rank} keeps {sends[self.rank]} elements of its own")
        if self.size == 1:
            out.view(-1).copy_(x.view(-1))
        splits = {"sends": sends, "receives": receives}
        return self._collective("all_to_all", algorithm, x, async_op, labels, out=out.detach().view(-1), **splits)

    def _splits(self, name: str, splits: Sequence[int] | None, total: int | None) -> list[int]:
        """One length a rank, which add up to the buffer."""
        given = [] if splits is None else [int(n) for n in splits]
        if len(given) != self.size or min(given) < 0:
            raise InputError(name, splits, f"all_to_all needs {self.size} lengths of 0 or more, one a rank")
        if total is not None and sum(given) != total:
            raise InputError(name, splits, f"they add up to {sum(given)}, the buffer holds {total} elements")
        return given

    def _options(self, operation: str, algorithm: str, **asked: int | None) -> dict[str, int]:
        """The options that were given: numbers from 1, of algorithms that have them."""
        given = {name: value for name, value in asked.items() if value is not None}
        for name, value in given.items():
            owners = with_option(operation, name)
            if algorithm not in owners or value < 1:
                raise InputError(name, value, f"is a number from 1, of the algorithm {' or '.join(owners)}", owners)
        return given

    def _member(self, what: str, rank: int) -> int:
        if not 0 <= rank < self.size:
            raise InputError(what, rank, f"the group has ranks 0..{self.size - 1}", range(self.size))
        return rank

    def barrier(self, algorithm: str = "dissemination") -> None:
        """Return when every rank of the group has arrived. Any all-reduce will do as well: of one byte, as here."""
        with self.recorder.unrecorded():
            signal = torch.zeros(1, dtype=torch.uint8, device=self.wire.device)
        self._collective("barrier", algorithm, signal, False, {"purpose": "scalars", "label": "barrier"})

    def chunks(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The contiguous pieces of flat `x`, one a rank; a remainder makes the first ones an element longer."""
        return list(torch.tensor_split(x.view(-1), self.size))

    def chunk(self, x: torch.Tensor) -> torch.Tensor:
        """This rank's piece of `x` (a view)."""
        return self.chunks(x)[self.rank]

    def split(self, color: int, axis: str | None = None) -> Communicator:
        """Ranks that give the same colour form a new group (all ranks of this one must call it, in the same order)."""
        colors = torch.zeros(self.size, dtype=torch.int64, device=self.wire.device)
        colors[self.rank] = color
        with self.recorder.unrecorded():
            self.all_gather(colors)
        if colors.device.type == "meta":
            raise InputError("backend", "dry", "split() needs to hear from other ranks; use a mesh axis instead")
        members = [r for r, c in zip(self.ranks, colors.tolist(), strict=True) if c == color]
        self._next_split += 1
        return self.subgroup(members, axis or f"{self.axis}.{color}", self._next_split)

    def subgroup(self, ranks: Sequence[int], axis: str, group: int) -> Communicator:
        """A communicator over some of the cluster's ranks, this one among them. `group` numbers its lanes and tags."""
        return Communicator(self.wire, self.progress, self.recorder, self.ledger, ranks, axis, group)

    def _collective(self, operation: str, algorithm: str, x: torch.Tensor, async_op: bool, labels: dict, **options) -> Work:
        purpose, label = labels.pop("purpose", "data"), labels.pop("label", "")
        if labels:
            raise TypeError(f"{operation}() got unexpected arguments {sorted(labels)}")
        if not x.is_contiguous():
            raise InputError(f"{operation} tensor", tuple(x.shape), "must be contiguous: call .contiguous() first")
        steps = collectives.find(operation, algorithm)
        average = options.get("op") == "avg"
        if average:
            options["op"] = "sum"
        if options.get("op", "sum") not in _REDUCTIONS:
            raise InputError("op", options["op"], "unknown reduction", [*_REDUCTIONS, "avg"])
        if self.size == 1:
            return Done()
        x = x.detach()
        work = CollectiveWork(self, operation, algorithm, purpose, label, x)
        work.steps = self._native(work, operation, x, options) if steps is None else steps(work, x.view(-1), **options)
        if average:
            work.steps = _then(work.steps, lambda: _average(self.chunk(x) if operation == "reduce_scatter" else x, self.size))
        self._queue.append(work)
        self.progress.drive()
        if not async_op:
            work.wait()
        return work

    def _native(self, work: CollectiveWork, operation: str, x: torch.Tensor, options: dict) -> Iterator[list[Ticket]]:
        whole = "all_reduce" if operation == "barrier" else operation
        self.wire.native(whole, x, self.ranks, options.get("src", 0), options.get("op", "sum"))
        yield []

    # ---- for the recorder ------------------------------------------------------------------------------------
    def lane(self, which: int) -> int:
        """Lane number: of collectives 0 stream, 1 sends, 2 receives, 3 launches; of the program 4 sends, 5 receives."""
        return group_lane(self.group, which)

    def next_sequence(self) -> int:
        """Collectives launched on this communicator so far."""
        self._launched += 1
        return self._launched - 1

    def restart_numbering(self) -> None:
        """Number collectives from 0 again (a new recording starts)."""
        self._launched, self.last_collective = 0, -1


def _average(x: torch.Tensor, n: int) -> None:
    """Divide in place; whole numbers are rounded towards zero."""
    x.div_(n) if x.is_floating_point() else x.copy_(torch.div(x, n, rounding_mode="trunc"))


def _then(steps: Iterator[list[Ticket]], last: Callable[[], object]) -> Iterator[list[Ticket]]:
    yield from steps
    last()
