"""The queue of coming events: a binary heap that knows where each transfer stands in it, so that its time can be changed.

Entry i of the heap is not later than its children 2i + 1 and 2i + 2, so the earliest is entry 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from glasscluster.sim.contention.compiled import compiled, inlined


class EventQueue(NamedTuple):
    """Times and transfers, earliest first."""

    time: np.ndarray  # of a heap entry, seconds
    transfer: np.ndarray  # of a heap entry
    position: np.ndarray  # of a transfer: its heap entry, -1: not in the queue
    size: np.ndarray  # one number: how many entries are in use


def make_queue(transfers: int) -> EventQueue:
    """An empty queue for so many transfers."""
    return EventQueue(
        np.zeros(transfers),
        np.zeros(transfers, np.int32),
        np.full(transfers, -1, np.int32),
        np.zeros(1, np.int64),
    )


@inlined
def earliest(queue):
    """The time of the earliest event; infinity when there is none."""
    return queue.time[0] if queue.size[0] > 0 else np.inf


@inlined
def push(queue, time, transfer):
    """Add a transfer."""
    last = queue.size[0]
    queue.size[0] = last + 1
    queue.time[last], queue.transfer[last] = time, transfer
    _move_up(queue, last)


@inlined
def pop(queue):
    """Take out the earliest transfer, and return it."""
    earliest = queue.transfer[0]
    last = queue.size[0] - 1
    queue.size[0] = last
    if last > 0:
        queue.time[0], queue.transfer[0] = queue.time[last], queue.transfer[last]
        _move_down(queue, 0)
    queue.position[earliest] = -1
    return earliest


@inlined
def push_or_change(queue, time, transfer):
    """Give a transfer this time, whether it is in the queue already or not."""
    at = queue.position[transfer]
    if at < 0:
        push(queue, time, transfer)
        return
    later = time > queue.time[at]
    queue.time[at] = time
    if later:
        _move_down(queue, at)
    else:
        _move_up(queue, at)


@compiled
def _move_up(queue, at):
    """Move an entry towards the front until its parent is not later."""
    times, transfers, position, _ = queue
    time, transfer = times[at], transfers[at]
    while at > 0:
        parent = (at - 1) >> 1
        if not time < times[parent]:
            break
        times[at], transfers[at] = times[parent], transfers[parent]
        position[transfers[at]] = at
        at = parent
    times[at], transfers[at] = time, transfer
    position[transfer] = at


@compiled
def _move_down(queue, at):
    """Move an entry towards the back until neither child is earlier."""
    times, transfers, position, size = queue
    time, transfer = times[at], transfers[at]
    while True:
        child = 2 * at + 1
        if child >= size[0]:
            break
        if child + 1 < size[0] and times[child + 1] < times[child]:
            child += 1
        if not times[child] < time:
            break
        times[at], transfers[at] = times[child], transfers[child]
        position[transfers[at]] = at
        at = child
    times[at], transfers[at] = time, transfer
    position[transfer] = at
