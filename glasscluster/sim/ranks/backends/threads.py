"""The `threads` backend: every rank is a thread of this process, and a seeded scheduler decides whose turn it
is.

One rank runs at a time, until it blocks. Who runs next is drawn from a seeded generator among the ranks that
can run, so a run repeats exactly. When nobody can run and somebody has not finished, that is a deadlock: it
is known at once, without a timeout, with the cycle and the source lines.

A send completes when its receive is posted (rendezvous), so a program that does not deadlock here needs no
buffers on a network either. With `eager_bytes` a send of at most so many bytes is copied to a buffer and
completes at once, as MPI libraries do with small messages. Messages of one (sender, receiver, tag) arrive in
the order in which they were sent. A message is copied by whichever of its two ranks comes second.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import random
import sys
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from glasscluster.base.errors import (
    CollectiveMismatch,
    Deadlock,
    GlassError,
    InputError,
    MessageLost,
    RankDied,
    RankStalled,
)
from glasscluster.sim.ranks.agreement import Call, Calls
from glasscluster.sim.ranks.deadlock import Wait, describe_deadlock, source_line, waiting_line
from glasscluster.sim.ranks.gpu import Outcome, run_rank
from glasscluster.sim.ranks.wire import TAGS_PER_GROUP, Ticket, Wire

TIMEOUT_S = 600.0  # how long a rank may compute without a message
GRACE_S = 2.0  # after a failure: how long the other ranks have to unwind
EXIT_S = 30.0  # how long the interpreter's end waits for ranks that are inside an operator
REFUSALS = 1000  # how often a rank may communicate after a failure before it is left standing
STACK_SHOWN = 8  # the innermost lines of a rank that computes for too long

RUNNABLE, BLOCKED, FINISHED = "runnable", "blocked", "finished"

_left_behind: list[threading.Event] = []  # set when a rank ends that a failed run did not wait for


class _Abandoned(BaseException):
    """Raised inside a rank to end it after another one failed; the backend catches it."""


class Scheduler:
    """Decides which rank runs, and holds every message that has been posted and has no partner yet."""

    def __init__(self, size: int, seed: int, eager_bytes: int = 0, compare: bool = True) -> None:
        self.size, self.draw, self.eager_bytes = size, random.Random(seed), eager_bytes
        # one lock for each rank, locked while it is another rank's turn
        self.turn = [threading.Lock() for _ in range(size)]
        for lock in self.turn:
            lock.acquire()
        self.state = [RUNNABLE] * size
        self.waiting: list[Sequence[Ticket]] = [()] * size
        # whether a rank waits for any of its tickets, or for all
        self.enough: list[Callable[..., bool]] = [any] * size
        self.threads: list[threading.Thread] = []
        self.ended = [threading.Event() for _ in range(size)]  # a rank's thread does nothing any more
        self.sends: dict[tuple[int, int, int], deque[Ticket]] = defaultdict(deque)
        self.receives: dict[tuple[int, int, int], deque[Ticket]] = defaultdict(deque)
        self.failure: GlassError | None = None
        self.refused = [0] * size  # how often a rank has communicated after the failure
        self.running, self.since = 0, time.monotonic()  # whose turn it is, and since when
        self.calls: Calls | None = Calls() if compare else None

    # ---- messages ------------------------------------------------------------------------------------------
    def post(self, me: int, ticket: Ticket) -> Ticket:
        """Post a send or a receive; if the partner is already posted, the message is copied."""
        self.stop_if_failed(me)
        sending = ticket.kind == "send"
        key = (me, ticket.peer, ticket.tag) if sending else (ticket.peer, me, ticket.tag)
        mine, theirs = (self.sends, self.receives) if sending else (self.receives, self.sends)
        if not theirs[key]:
            if sending and self.eager_bytes and _nbytes(ticket) <= self.eager_bytes:
                self._buffer(ticket)
            mine[key].append(ticket)
            return ticket
        partner = theirs[key].popleft()
        send, receive = (ticket, partner) if sending else (partner, ticket)
        self._deliver(key[0], key[1], send, receive)
        other = ticket.peer
        if self.state[other] == BLOCKED and self.enough[other](t.done for t in self.waiting[other]):
            self.state[other] = RUNNABLE
        return ticket

    def _buffer(self, send: Ticket) -> None:
        """Copy the payload of a small send into a buffer, so that its sender continues as if it had been
        received.
        """
        assert send.tensor is not None
        with torch.no_grad(), torch._C._DisableTorchDispatch():
            send.tensor = send.tensor.clone()
        send.done = True

    def _deliver(self, src: int, dst: int, send: Ticket, receive: Ticket) -> None:
        x, out = send.tensor, receive.tensor
        assert x is not None
        assert out is not None
        if send.what != receive.what and {send.what, receive.what} != {"send", "recv"}:
            self._mismatch(src, dst, f"rank {src} is in {send.what}, rank {dst} in {receive.what}")
        if x.numel() != out.numel() or x.dtype != out.dtype:
            sizes = f"{x.numel()} x {x.dtype} sent, {out.numel()} x {out.dtype} expected"
            self._mismatch(src, dst, f"rank {src} sends to rank {dst} in {send.what}: {sizes}")
        with torch.no_grad(), torch._C._DisableTorchDispatch():
            out.view(-1).copy_(x.view(-1))
        send.done = receive.done = True
        send.tensor = receive.tensor = None

    def _busy(self, timeout_s: float) -> RankStalled:
        """The error for a rank that keeps its turn for too long: where it is, from the outside in."""
        frame = sys._current_frames().get(self.threads[self.running].ident or -1)
        stack = traceback.extract_stack(frame) if frame is not None else []
        shown = [f"{os.path.basename(f.filename)}:{f.lineno}, in {f.name}" for f in stack[-STACK_SHOWN:]]
        text = (
            f"rank {self.running} has computed for {timeout_s:g} s without a message, at {source_line(frame)}"
        )
        return RankStalled(
            "\n  ".join([text, *shown]), rank=self.running, operation=stack[-1].name if stack else None
        )

    def watch(self, timeout_s: float) -> None:
        """Wait until every rank has finished, or for one that keeps its turn for longer than `timeout_s`.

        Thread.join is not used: where a ctrl-C interrupts it, Python takes the thread for ended, and then the
        interpreter's own end aborts the process, because the thread is still inside torch.
        """
        step = min(1.0, timeout_s / 4)
        for ended in self.ended:
            while not ended.is_set() and self.failure is None:
                if not ended.wait(step) and time.monotonic() - self.since > timeout_s:
                    self.fail(self._busy(timeout_s))
        patience = time.monotonic() + GRACE_S
        # after a failure: as long as unwinding takes, and no longer
        for ended, thread in zip(self.ended, self.threads, strict=True):
            left = max(0.0, patience - time.monotonic()) if self.failure is not None else None
            if thread.ident is not None and not ended.wait(left):
                _interrupt(thread)
                _left_behind.append(ended)

    def let_go(self) -> None:
        """Unwind every rank after a ctrl-C, or SIGTERM, before the interpreter ends; a second one does not
        interrupt that, which takes GRACE_S at the most.
        """
        self.fail(GlassError("interrupted"))
        end = time.monotonic() + GRACE_S
        while time.monotonic() < end:
            try:
                self.watch(GRACE_S)
                return
            except KeyboardInterrupt:
                continue

    def _mismatch(self, src: int, dst: int, message: str) -> None:
        raise CollectiveMismatch(message, rank=dst, operation="recv", peer=src)

    # ---- the baton -----------------------------------------------------------------------------------------
    def block(self, me: int, tickets: Sequence[Ticket], together: bool) -> None:
        """Let other ranks run until one of `tickets` is done, or all of them where the program needs all."""
        self.stop_if_failed(me)
        enough = all if together else any
        if enough(t.done for t in tickets):
            return
        self.waiting[me], self.enough[me], self.state[me] = tickets, enough, BLOCKED
        self._hand_over()
        self._take(me)
        self.waiting[me] = ()

    def _take(self, me: int) -> None:
        self.turn[me].acquire()
        self.stop_if_failed(me)
        self.state[me], self.running, self.since = RUNNABLE, me, time.monotonic()

    def stop_if_failed(self, me: int) -> None:
        """Unwind a rank after another one failed, whatever it does on the way: a `finally` that communicates
        is unwound as well, and a rank that catches everything is left standing after a while.
        """
        if self.failure is None:
            return
        self.refused[me] += 1
        if self.refused[me] > REFUSALS:
            self.ended[me].set()
            threading.Event().wait()  # for ever: the thread is a daemon, and nobody waits for it
        raise _Abandoned

    def _hand_over(self) -> None:
        if self.failure is None:
            ready = [r for r in range(self.size) if self.state[r] == RUNNABLE]
            if ready:
                self.turn[self.draw.choice(ready)].release()
                return
            if any(s == BLOCKED for s in self.state):
                self.fail(self._deadlock())
                return

    def finish(self, me: int) -> None:
        """Note that a rank's program has ended, and let another rank run."""
        self.state[me] = FINISHED
        self._hand_over()

    def fail(self, error: GlassError) -> None:
        """Keep the first failure and unwind every blocked rank."""
        if self.failure is None:
            self.failure = error
        for lock in self.turn:
            with contextlib.suppress(RuntimeError):  # not locked: this rank is about to run anyway
                lock.release()

    # ---- naming what went wrong ----------------------------------------------------------------------------
    def _deadlock(self) -> Deadlock:
        frames = sys._current_frames()
        waits = []
        for rank in range(self.size):
            if self.state[rank] == BLOCKED:
                ticket = next(t for t in self.waiting[rank] if not t.done)
                line = waiting_line(ticket.line, frames.get(self.threads[rank].ident or -1))
                waits.append(
                    Wait(
                        rank,
                        ticket.kind,
                        ticket.peer,
                        ticket.what,
                        _nbytes(ticket),
                        line,
                        self._near_miss(rank, ticket),
                    )
                )
        return describe_deadlock(waits, [r for r in range(self.size) if self.state[r] == FINISHED])

    def _near_miss(self, rank: int, ticket: Ticket) -> str:
        """What was posted in place of the message a receive waits for: another tag, or another sender."""
        if ticket.kind != "recv" or ticket.what != "recv":
            return ""
        group, tag = divmod(ticket.tag, TAGS_PER_GROUP)
        queued = [
            (src, other % TAGS_PER_GROUP)
            for (src, dst, other), queue in self.sends.items()
            if queue and dst == rank and other // TAGS_PER_GROUP == group and other % TAGS_PER_GROUP
        ]
        for src, other in queued:
            if src == ticket.peer:
                return (
                    f"rank {rank} waits for tag {tag - 1}; "
                    f"a message with tag {other - 1} from the same sender is queued"
                )
        if queued:
            return f"rank {rank} waits for rank {ticket.peer}; a message from rank {queued[0][0]} is queued"
        return ""

    def leftovers(self) -> MessageLost | None:
        """An error for a message that was posted and never received, after every rank has finished."""
        for kind, queues in (("send", self.sends), ("recv", self.receives)):
            for (src, dst, tag), queue in queues.items():
                if queue:
                    me, peer = (src, dst) if kind == "send" else (dst, src)
                    other = "received it" if kind == "send" else "sent it"
                    return MessageLost(
                        f"rank {me} posted a {kind} with rank {peer} (wire tag {tag}) and rank {peer} "
                        f"never {other}",
                        rank=me,
                        operation=kind,
                        peer=peer,
                    )
        return None


class ThreadWire(Wire):
    """A rank's end of the scheduler."""

    device = torch.device("cpu")

    def __init__(self, rank: int, scheduler: Scheduler) -> None:
        self.rank, self.size, self.scheduler = rank, scheduler.size, scheduler

    def isend(self, tensor: torch.Tensor, dst: int, tag: int, what: str) -> Ticket:
        """Post a send."""
        return self.scheduler.post(self.rank, Ticket("send", dst, tag, tensor, what))

    def irecv(self, out: torch.Tensor, src: int, tag: int, what: str) -> Ticket:
        """Post a receive."""
        return self.scheduler.post(self.rank, Ticket("recv", src, tag, out, what))

    def block(self, tickets: Sequence[Ticket], together: bool) -> None:
        """Let other ranks run until one of the tickets is done, or all of them."""
        self.scheduler.block(self.rank, tickets, together)

    def agree(
        self, call: Call, ranks: Sequence[int], sends: Sequence[int] = (), receives: Sequence[int] = ()
    ) -> None:
        """Compare with what the first rank said; the lengths of an all-to-all are, where they arrive."""
        if self.scheduler.calls is not None:
            self.scheduler.calls.compare(self.rank, call, ranks)

    def native(
        self, operation: str, tensor: torch.Tensor, group: Sequence[int], root: int, op: str = "sum"
    ) -> None:
        """Raise an error, because threads have no library with collectives of its own."""
        raise InputError(
            "algorithm", "native", "the threads backend has no library to hand a collective to", ["ring"]
        )


class ThreadsBackend:
    """Runs ranks as threads of this process, which start with a run and end with it."""

    name = "threads"

    def __init__(
        self,
        gpus: int,
        *,
        seed: int = 0,
        eager_bytes: int = 0,
        timeout_s: float = TIMEOUT_S,
        compare: bool = True,
        **_: Any,
    ) -> None:
        if eager_bytes < 0:
            raise InputError(
                "eager_bytes", eager_bytes, "must not be negative (0: every send waits for its receive)"
            )
        self.gpus, self.seed, self.eager_bytes = gpus, seed, eager_bytes
        self.timeout_s, self.compare = timeout_s, compare

    def run(
        self, program: Callable[..., Any], args: tuple, record: bool, capacity: float | None
    ) -> list[Outcome]:
        """One outcome a rank; the first failure is raised."""
        scheduler = Scheduler(self.gpus, self.seed, self.eager_bytes, self.compare)
        outcomes: list[Outcome | None] = [None] * self.gpus
        cpu = _one_cpu()

        def rank_main(rank: int) -> None:
            if cpu is not None:
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(
                        0, {cpu}
                    )  # this thread only: a handover on one core is 8 times faster
            torch.set_num_threads(1)  # one OpenMP thread a rank, or sums differ in bits
            try:
                scheduler._take(rank)
                outcome = run_rank(
                    ThreadWire(rank, scheduler), program, args, record, capacity, abandoned=_Abandoned
                )
                outcomes[rank] = outcome
                if outcome.error is not None:
                    scheduler.fail(outcome.error)
            except _Abandoned:
                pass
            except BaseException as problem:  # a fault of ours: outside what guards the program
                text = f"rank {rank} ended outside its program: {type(problem).__name__}"
                scheduler.fail(RankDied(text, rank=rank, operation="run"))
            finally:
                scheduler.finish(rank)
                scheduler.ended[rank].set()

        threads_before = torch.get_num_threads()
        scheduler.threads = [
            threading.Thread(target=rank_main, args=(r,), name=f"rank-{r}", daemon=True)
            for r in range(self.gpus)
        ]
        try:
            for thread in scheduler.threads:
                thread.start()
            scheduler._hand_over()
            scheduler.watch(self.timeout_s)
        except BaseException:  # a person's ctrl-C, or SIGTERM
            scheduler.let_go()
            raise
        finally:
            torch.set_num_threads(threads_before)
        if scheduler.failure is not None:
            scheduler.failure.__dict__["outcomes"] = [o for o in outcomes if o is not None]
            raise scheduler.failure
        lost = scheduler.leftovers()
        if lost is not None:
            raise lost
        missing = [rank for rank, outcome in enumerate(outcomes) if outcome is None]
        if missing:
            raise RankDied(f"rank {missing[0]} ended without a result", rank=missing[0], operation="run")
        return [o for o in outcomes if o is not None]

    def close(self) -> None:
        """Nothing to do."""


@atexit.register
def _wait_for_those_left_behind() -> None:
    """Before the interpreter ends, wait for ranks that are inside an operator: torch aborts the process when
    one comes back and finds no interpreter.
    """
    end = time.monotonic() + EXIT_S
    for ended in _left_behind:
        ended.wait(max(0.0, end - time.monotonic()))


def _interrupt(thread: threading.Thread) -> None:
    """Ask a thread that computes to stop, at its next line of Python."""
    ident = ctypes.c_ulong(thread.ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(_Abandoned))


def _nbytes(ticket: Ticket) -> int:
    return 0 if ticket.tensor is None else ticket.tensor.numel() * ticket.tensor.element_size()


def _one_cpu() -> int | None:
    if not hasattr(os, "sched_getaffinity"):
        return None
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[os.getpid() % len(cpus)]
