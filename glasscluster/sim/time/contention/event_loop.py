"""The event loop of a replay with contention, compiled. The folder's __init__.py explains the algorithm."""

from __future__ import annotations

from glasscluster.sim.time.contention.compiled import entry_point, inlined, source_stamp
from glasscluster.sim.time.contention.dependencies import speedup_of, time_ready_rows, wake_rows_behind
from glasscluster.sim.time.contention.event_queue import earliest, pop, push, push_or_change
from glasscluster.sim.time.contention.history import note_rate
from glasscluster.sim.time.contention.rates import narrowest_link_if_alone, recompute_rates

# Relative differences. Events closer than this happen at once: rounding must not tear them apart.
SAME_MOMENT = 1e-12
# A rate that changes by less has only been rounded.
SAME_RATE = 1e-13


def _compile(stamp):
    """The loop, compiled when it is first called; see compiled.py for what the stamp is for."""

    @entry_point
    def run(program, network, times, waiting, traffic, history, record_history, all_counters):
        """Replay until all is done: True. Or until the history may have no room for the next event: False.

        Fills `times` and `history`. After False, call it again with a longer history: the tables hold all the
        rest.
        """
        stamp  # noqa: B018 - part of the key under which numba keeps this function
        counters = all_counters[0]
        # In one event each transfer may leave its links, and each may get a new rate.
        most_entries = 2 * len(traffic.transfers)
        while True:
            time_ready_rows(program, network, times, waiting, traffic, counters)
            now = min(earliest(traffic.starts), earliest(traffic.ends))
            if now == float("inf"):
                return True
            if record_history and counters.history + most_entries > len(history.time):
                return False
            counters.changed_links = counters.changed_transfers = 0
            _end_transfers(now, program, network, times, waiting, traffic, history, record_history, counters)
            _start_transfers(now, program, network, traffic, counters)
            _find_new_rates(traffic, network.links, counters)
            _change_rates(now, traffic, history, record_history, counters)

    return run


run = _compile(source_stamp())


# ---- transfers come and go ---------------------------------------------------------------------------------
@inlined
def _end_transfers(now, program, network, times, waiting, traffic, history, record_history, counters):
    """Every transfer whose last byte leaves its links now: latency begins, the sender's lane may be free."""
    while earliest(traffic.ends) <= now * (1.0 + SAME_MOMENT):
        t = pop(traffic.ends, traffic.transfers)
        transfer = traffic.transfers[t]
        _leave_links(t, transfer, network.links, traffic, counters)
        if record_history:
            note_rate(history, counters, now, transfer, 0.0)
        row, route = program.message_row[transfer.message], network.route[transfer.message]
        segment = transfer.segment
        if segment == network.segment_ptr[route]:
            times.end[row] = now
        after_latency = now + network.latency[segment] / speedup_of(row, program)
        if segment + 1 < network.segment_ptr[route + 1]:
            transfer.segment = segment + 1
            push(traffic.starts, after_latency, t, traffic.transfers)
        else:
            times.arrival[transfer.message] = after_latency
            traffic.free[counters.free_transfers] = t
            counters.free_transfers += 1
        wake_rows_behind(row, waiting, counters)


@inlined
def _start_transfers(now, program, network, traffic, counters):
    """Every transfer that enters the links of its segment now, with all its bytes."""
    while earliest(traffic.starts) <= now * (1.0 + SAME_MOMENT):
        t = pop(traffic.starts, traffic.transfers)
        transfer = traffic.transfers[t]
        transfer.links_begin = network.link_ptr[transfer.segment]
        transfer.links_end = network.link_ptr[transfer.segment + 1]
        row = program.message_row[transfer.message]
        transfer.remaining = program.nbytes[row] / speedup_of(row, program)
        transfer.rate, transfer.new_rate, transfer.since = 0.0, 0.0, now
        transfer.bottleneck = -1
        _enter_links(t, transfer, network.links, traffic, counters)


@inlined
def _enter_links(t, transfer, route_links, traffic, counters):
    """Put a transfer at the front of the list of each link of its segment."""
    entries = traffic.entries
    for k in range(transfer.links_end - transfer.links_begin):
        number, entry = route_links[transfer.links_begin + k], t * traffic.longest_segment + k
        link = traffic.links[number]
        entries[entry].previous, entries[entry].next = -1, link.first_entry
        if link.first_entry >= 0:
            entries[link.first_entry].previous = entry
        link.first_entry = entry
        link.transfers += 1
        _mark_changed(number, link, traffic, counters)


@inlined
def _leave_links(t, transfer, route_links, traffic, counters):
    """Take a transfer out of the list of each link of its segment."""
    entries = traffic.entries
    for k in range(transfer.links_end - transfer.links_begin):
        number, entry = route_links[transfer.links_begin + k], t * traffic.longest_segment + k
        link = traffic.links[number]
        before, after = entries[entry].previous, entries[entry].next
        if before >= 0:
            entries[before].next = after
        else:
            link.first_entry = after
        if after >= 0:
            entries[after].previous = before
        link.transfers -= 1
        _mark_changed(number, link, traffic, counters)


@inlined
def _mark_changed(number, link, traffic, counters):
    """A transfer has come to a link or left it, so rates may change."""
    if not link.changed:
        link.changed = True
        traffic.changed_links[counters.changed_links] = number
        counters.changed_links += 1


# ---- rates -------------------------------------------------------------------------------------------------
@inlined
def _find_new_rates(traffic, route_links, counters):
    """Find `new_rate` of all transfers that changed links affect, and list them in `changed_transfers`."""
    transfers, links = traffic.transfers, traffic.links
    n_shared = 0
    for c in range(counters.changed_links):
        number = traffic.changed_links[c]
        link = links[number]
        link.changed = False
        if link.transfers == 0:
            continue
        # The common case, which needs no filling: a transfer that has all links of its segment to itself.
        if link.transfers == 1:
            t = traffic.entries[link.first_entry].transfer
            narrowest = narrowest_link_if_alone(transfers[t], links, route_links)
            if narrowest >= 0:
                transfers[t].new_rate, transfers[t].bottleneck = links[narrowest].capacity, narrowest
                _mark_rate_changed(t, traffic, counters)
                continue
        traffic.changed_links[n_shared] = number
        n_shared += 1
    if n_shared > 0:
        counters.recomputations += 1
        n_affected = recompute_rates(traffic, route_links, n_shared, counters.recomputations)
        for i in range(n_affected):
            _mark_rate_changed(traffic.affected[i], traffic, counters)


@inlined
def _mark_rate_changed(t, traffic, counters):
    """A transfer may have another rate than before."""
    if not traffic.transfers[t].rate_changed:
        traffic.transfers[t].rate_changed = True
        traffic.changed_transfers[counters.changed_transfers] = t
        counters.changed_transfers += 1


@inlined
def _change_rates(now, traffic, history, record_history, counters):
    """Give the changed transfers their new rates: count what has passed until now, and set another end."""
    for i in range(counters.changed_transfers):
        t = traffic.changed_transfers[i]
        transfer = traffic.transfers[t]
        transfer.rate_changed = False
        if abs(transfer.new_rate - transfer.rate) <= transfer.rate * SAME_RATE:
            transfer.new_rate = transfer.rate
            continue
        passed = transfer.rate * (now - transfer.since)
        transfer.remaining = max(0.0, transfer.remaining - passed)
        transfer.rate, transfer.since = transfer.new_rate, now
        push_or_change(traffic.ends, now + transfer.remaining / transfer.rate, t, traffic.transfers)
        if record_history:
            note_rate(history, counters, now, transfer, transfer.rate)
