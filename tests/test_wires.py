"""What a step of a collective asks of the wire, and when the wire lets go of it."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from glasscluster.base.errors import InputError
from glasscluster.sim.ranks.backends import process_group
from glasscluster.sim.ranks.backends.process_group import GroupWire
from glasscluster.sim.ranks.collectives.registry import ALGORITHMS
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.sim.ranks.wire import Ticket, Wire
from glasscluster.sim.recording.memory import Ledger
from glasscluster.sim.recording.recorder import Recorder
from glasscluster.sim.run import Cluster

CPU = torch.device("cpu")


class Handle:
    """What a library returns for a message."""

    def wait(self, _limit=None) -> None:
        """Done."""


class Library:
    """A process group that notes what is posted."""

    def __init__(self):
        self.posted: list[tuple[str, int]] = []

    def send(self, tensors, peer, _tag):
        self.posted.append(("send", tensors[0].numel()))
        return Handle()

    def recv(self, tensors, peer, _tag):
        self.posted.append(("recv", tensors[0].numel()))
        return Handle()


class Watched(Wire):
    """Ends every wait at once, and counts the handles of the step before when a step is posted."""

    rank, size, device = 0, 4, CPU

    def __init__(self):
        self.handles: list[weakref.ref] = []
        self.alive_at_post: list[int] = []

    def isend(self, tensor, dst, tag, what):
        self.alive_at_post.append(sum(h() is not None for h in self.handles))
        ticket = Ticket("send", dst, tag, tensor, what)
        ticket.handle = Handle()
        self.handles.append(weakref.ref(ticket.handle))
        return ticket

    def irecv(self, out, src, tag, what):
        return self.isend(out, src, tag, what)

    def block(self, tickets, together):
        for ticket in tickets:
            ticket.done = True

    def native(self, operation, tensor, group, root, op="sum"):
        raise NotImplementedError


def test_a_step_s_handles_live_until_the_next_step_is_posted():
    """gloo wakes a rank before its own thread lets go of the message; dropping the handle then spins."""
    wire, ledger = Watched(), Ledger(0, None)
    recorder = Recorder(0, ledger)
    recorder.paused = True
    GPU(wire, recorder, ledger).comm.all_reduce(torch.ones(8))
    assert wire.alive_at_post == [0, 1] + [2, 3] * 5  # the step before, and the receive of this one
    assert not any(handle() for handle in wire.handles)


def test_a_wait_on_gloo_leaves_the_handle_with_its_ticket():
    wire, ticket = GroupWire(0, 2, CPU, 1.0), Ticket("recv", 1, 0, torch.empty(1), "recv")
    ticket.handle = handle = Handle()
    wire.block([ticket], together=True)
    assert ticket.done
    assert ticket.handle is handle
    assert ticket.tensor is None


def test_an_announced_receive_is_posted_once_and_in_order(monkeypatch):
    library, wire = Library(), GroupWire(0, 2, CPU, 1.0)
    monkeypatch.setattr(process_group, "_default_group", lambda: library)
    buffers = [torch.empty(n) for n in (1, 2, 3)]
    for buffer in buffers[:2]:
        wire.expect(buffer, 1, 0, "x")
    assert library.posted == [("recv", 1), ("recv", 2)]
    tickets = [wire.irecv(buffer, 1, 0, "x") for buffer in buffers]
    assert [t.tensor is b for t, b in zip(tickets, buffers, strict=True)] == [True] * 3
    assert library.posted == [("recv", 1), ("recv", 2), ("recv", 3)]
    assert wire.irecv(buffers[0], 1, 1, "x").tag == 1, "another tag is another queue"
    wire.expect(buffers[0], 1, 0, "x")
    wire.start_run()
    assert wire.irecv(buffers[1], 1, 0, "x").tensor is buffers[1], "a run begins with nothing announced"


def in_another_order(work, x):
    chunks = torch.tensor_split(x, work.size)
    other = 1 - work.rank
    work.expect(chunks[0], other)
    work.expect(chunks[1], other)
    yield work.exchange(x[:1].clone(), other, chunks[1], other)


def never_received(work, x):
    chunks, other = torch.tensor_split(x, work.size), 1 - work.rank
    for chunk in chunks:
        work.expect(chunk, other)
    yield work.exchange(x[:1].clone(), other, chunks[0], other)


def announced(work, x):
    chunks, other = torch.tensor_split(x, work.size), 1 - work.rank
    work.expect(chunks[other], other)
    yield work.exchange(chunks[work.rank], other, chunks[other], other)


def not_announced(work, x):
    chunks, other = torch.tensor_split(x, work.size), 1 - work.rank
    yield work.exchange(chunks[work.rank], other, chunks[other], other)


@pytest.mark.parametrize(
    ("steps", "field", "rule"),
    [
        (in_another_order, "recv", "announced another tensor to receive next"),
        (never_received, "expect", "ends before it has received all that it announced"),
    ],
)
def test_an_algorithm_that_receives_otherwise_than_it_announced_is_refused(monkeypatch, steps, field, rule):
    monkeypatch.setitem(ALGORITHMS["all_gather"], "announces", steps)
    with pytest.raises(InputError) as caught:
        Cluster("classroom", 2).run(lambda gpu: gpu.comm.all_gather(torch.zeros(2), algorithm="announces"))
    assert caught.value.field == field
    assert rule in caught.value.message


def test_an_announcement_changes_nothing_that_is_recorded(monkeypatch):
    def program(gpu):
        x = torch.zeros(2)
        x[gpu.rank] = gpu.rank + 1
        gpu.comm.all_gather(x, algorithm="announces")
        return x.tolist()

    rows = []
    for steps in (announced, not_announced):
        monkeypatch.setitem(ALGORITHMS["all_gather"], "announces", steps)
        run = Cluster("classroom", 2).run(program)
        assert run.results == [[1.0, 2.0]] * 2
        rows.append(run.graph.canonical_rows())
    assert rows[0].keys() == rows[1].keys()
    assert all(np.array_equal(rows[0][name], rows[1][name]) for name in rows[0])


@pytest.mark.ray
def test_a_message_that_was_awaited_holds_its_buffer_no_longer_on_ray(actors):
    """A work may outlive its message, and what memory is counted depends on who holds the buffer."""

    def program(gpu):
        x, room, other = torch.ones(1000), torch.empty(1000), 1 - gpu.rank
        watched = weakref.ref(x.untyped_storage())
        works = [gpu.comm.isend(x, other), gpu.comm.irecv(room, other)]
        for work in works:
            work.wait()
        del x
        return watched() is None, float(room.sum())

    assert actors(2).run(program, record=False).results == [(True, 1000.0)] * 2
