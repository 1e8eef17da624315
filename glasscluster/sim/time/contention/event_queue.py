"""The queue of coming events: a binary heap in which the time of a transfer can be changed.

Entry i of the heap is not later than its children 2i + 1 and 2i + 2, so the earliest is entry 0. A transfer
is in one queue at most. Where it stands there is a field of the table of transfers (`position`, tables.py),
so it need not be searched.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from glasscluster.sim.time.contention.compiled import compiled, inlined

EVENT = np.dtype([("time", np.float64), ("transfer", np.int32)], align=True)


class EventQueue(NamedTuple):
    """Events, the earliest first."""

    heap: np.ndarray  # EVENT
    size: np.ndarray  # one number: how many entries of the heap are in use


def make_queue(transfers: int) -> EventQueue:
    """An empty queue for so many transfers."""
    return EventQueue(np.empty(transfers, EVENT), np.zeros(1, np.int64))


@inlined
def earliest(queue):
    """The time of the earliest event; infinity when there is none."""
    return queue.heap[0].time if queue.size[0] > 0 else np.inf


@inlined
def push(queue, time, t, transfers):
    """Add transfer number t, which is in no queue."""
    last = queue.size[0]
    queue.size[0] = last + 1
    queue.heap[last].time, queue.heap[last].transfer = time, t
    _move_up(queue.heap, last, transfers)


@inlined
def pop(queue, transfers):
    """Take out the earliest transfer; returns its number."""
    heap = queue.heap
    first, last = heap[0].transfer, queue.size[0] - 1
    queue.size[0] = last
    if last > 0:
        heap[0].time, heap[0].transfer = heap[last].time, heap[last].transfer
        _move_down(heap, last, 0, transfers)
    transfers[first].position = -1
    return first


@inlined
def push_or_change(queue, time, t, transfers):
    """Give transfer number t this time, whether it is in this queue already or in none."""
    at = transfers[t].position
    if at < 0:
        push(queue, time, t, transfers)
        return
    delayed = time > queue.heap[at].time
    queue.heap[at].time = time
    if delayed:
        _move_down(queue.heap, queue.size[0], at, transfers)
    else:
        _move_up(queue.heap, at, transfers)


@compiled
def _move_up(heap, at, transfers):
    """Move an entry towards the front until its parent is not later."""
    time, t = heap[at].time, heap[at].transfer
    while at > 0:
        parent = (at - 1) >> 1
        if not time < heap[parent].time:
            break
        heap[at].time, heap[at].transfer = heap[parent].time, heap[parent].transfer
        transfers[heap[at].transfer].position = at
        at = parent
    heap[at].time, heap[at].transfer = time, t
    transfers[t].position = at


@compiled
def _move_down(heap, size, at, transfers):
    """Move an entry towards the back until neither child is earlier."""
    time, t = heap[at].time, heap[at].transfer
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1].time < heap[child].time:
            child += 1
        if not heap[child].time < time:
            break
        heap[at].time, heap[at].transfer = heap[child].time, heap[child].transfer
        transfers[heap[at].transfer].position = at
        at = child
    heap[at].time, heap[at].transfer = time, t
    transfers[t].position = at
