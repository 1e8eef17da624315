"""When each row may start: all that it depends on has ended, and the message that it waits for has arrived.

A row that cannot be timed yet is put into the list of the one row that it was found to wait for, and is
looked at again when that row ends. So no table of followers is needed.
"""

from __future__ import annotations

from glasscluster.sim.time.contention.compiled import inlined
from glasscluster.sim.time.contention.event_queue import push


@inlined
def time_ready_rows(program, network, times, waiting, traffic, counters):
    """Time every row that waits for nothing.

    The first call looks at all rows, in order; every further call looks at those that `wake_rows_behind` has
    put on the stack. A row that sends a message over links only gets its start, and a transfer that begins
    after the overhead.
    """
    while counters.ready_rows > 0 or counters.visited_rows < len(program.duration):
        if counters.ready_rows > 0:
            counters.ready_rows -= 1
            row = waiting.ready[counters.ready_rows]
        else:
            row = counters.visited_rows
            counters.visited_rows += 1
        start, blocker = _earliest_start(row, program, times)
        if blocker >= 0:
            waiting.next[row] = waiting.first[blocker]
            waiting.first[blocker] = row
            continue
        times.start[row] = start
        message = program.sent_by[row]
        if message >= 0 and _has_links(network.route[message], network):
            _prepare_transfer(row, message, start, program, network, traffic, counters)
            continue
        times.end[row] = start + program.duration[row]
        if message >= 0:  # a message to the rank itself
            times.arrival[message] = times.end[row]
        wake_rows_behind(row, waiting, counters)


@inlined
def wake_rows_behind(row, waiting, counters):
    """Put all rows that wait for this one on the stack of ready rows."""
    waiter = waiting.first[row]
    waiting.first[row] = -1
    while waiter >= 0:
        waiting.ready[counters.ready_rows] = waiter
        counters.ready_rows += 1
        waiter = waiting.next[waiter]


@inlined
def speedup_of(row, program):
    """The factor by which a row's bytes, overhead and latency are divided."""
    return program.speedup[row] if len(program.speedup) > 0 else 1.0


@inlined
def _earliest_start(row, program, times):
    """When the row may start, and -1; or a row that it still waits for as the second."""
    start = 0.0
    for k in range(program.dep_ptr[row], program.dep_ptr[row + 1]):
        end = times.end[program.dep_idx[k]]
        if end < 0.0:
            return start, program.dep_idx[k]
        start = max(start, end)
    message = program.awaited_by[row]
    if message >= 0:
        arrival = times.arrival[message]
        if arrival < 0.0:
            return start, program.message_row[message]
        start = max(start, arrival)
    return start, -1


@inlined
def _has_links(route, network):
    return network.segment_ptr[route + 1] > network.segment_ptr[route]


@inlined
def _prepare_transfer(row, message, start, program, network, traffic, counters):
    """A transfer for a message, which enters its first links when the overhead is over."""
    counters.free_transfers -= 1
    t = traffic.free[counters.free_transfers]
    route = network.route[message]
    traffic.transfers[t].message = message
    traffic.transfers[t].segment = network.segment_ptr[route]
    push(traffic.starts, start + network.overhead[route] / speedup_of(row, program), t, traffic.transfers)
