"""The communicator: what a program talks through. Everything here is written once, above two primitives.

A backend gives each rank a `Wire` (wire.py) with `isend`, `irecv` and `block`. On top of it stand groups, checks and
recording here, works under way in work.py, and one algorithm a file in collectives/. Each communicator runs its
collectives in one queue, in launch order (as NCCL does on a stream).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch

from glasscluster.base.errors import InputError
from glasscluster.sim.ranks.collectives import find, with_option
from glasscluster.sim.ranks.wire import TAGS_PER_GROUP, Wire
from glasscluster.sim.ranks.work import REDUCTIONS, CollectiveWork, Done, MessageWork, Progress, Steps, Work
from glasscluster.sim.recording.events import PURPOSES, RECV, SEND, group_lane
from glasscluster.sim.recording.memory import Ledger
from glasscluster.sim.recording.recorder import Recorder


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
        algorithm, steps = find(operation, algorithm)
        average = options.get("op") == "avg"
        if average:
            options["op"] = "sum"
        if options.get("op", "sum") not in REDUCTIONS:
            raise InputError("op", options["op"], "unknown reduction", [*REDUCTIONS, "avg"])
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

    def _native(self, work: CollectiveWork, operation: str, x: torch.Tensor, options: dict) -> Steps:
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


def _then(steps: Steps, last: Callable[[], object]) -> Steps:
    yield from steps
    last()
