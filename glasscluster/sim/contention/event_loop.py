"""Replay with contention: messages under way share the links of their routes max-min fairly, event by event.

A message occupies its sender's lane for its overhead, then all links of its route at once (it cuts through) until its
bytes have passed, then it is latency in flight. Where a link stores and forwards, the route is cut into stretches, and
the message is on one stretch after the other. Max-min fair: no message can be given more bandwidth without taking
some from one that has no more (Bertsekas and Gallager, "Data Networks", 1992, section 6.5.2); found by progressive filling.

    now ◄── the earliest of: a message that may start, a message that ends
    all of the same moment (within 1e-12 of it: rounding must not tear apart what ends at once), then new rates;
    whatever depended on a message that ended is timed at once, as in the longest path, up to the next message

Every message remembers the link that holds it back. When something changes on a link, those that it held back and those that
just came are filled anew into what the others leave; then whoever has more than is fair on a link that is full now, or is no longer held
back by its link, joins them, until nobody does. A message alone on its links costs a few queue operations.
Everything below is compiled. Nothing here knows what a collective is.
"""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import numpy as np
from numba import njit

from glasscluster.sim.errors import ScenarioError
from glasscluster.sim.graph import ExecutionGraph, distinct
from glasscluster.sim.topology import Topology
from glasscluster.sim.vocabulary import SEND

TOGETHER = 1e-12  # moments, and fair shares of bottlenecks, that differ by less are one
STILL = 1e-13  # a rate that changes by less has only been rounded
LOOSE = 1e-11  # a link with less left of its capacity is full; a rate above another by less is not above it


@dataclass
class Messages:
    """Where a graph's messages are; no seconds, so they are the same on any hardware."""

    rows: np.ndarray  # the row that sends a message; messages in the order of their rows
    sent: np.ndarray  # of every row: the message that it sends, -1: none
    received: np.ndarray  # of every row: the message that it waits for, -1: none
    senders: int  # lanes that send


@dataclass
class Routes:
    """Routes of a graph's messages as arrays: message -> route -> stretches -> links."""

    of: np.ndarray  # a message's route; messages in the order of their rows
    stretch_ptr: np.ndarray  # route -> its stretches
    link_ptr: np.ndarray  # stretch -> its links
    links: np.ndarray
    latency: np.ndarray  # of a stretch, in flight
    overhead: np.ndarray  # of a route, on the sender's port
    messages: Messages
    moves: int  # of every message its stretches, together


@dataclass
class Shared:
    """Times of every row, and the history of rates: at `time`, `message` is on `stretch` at `rate` bytes/s (0: it left it)."""

    start: np.ndarray
    end: np.ndarray  # of a message: its sender's lane is free
    arrival: np.ndarray  # of every message, at its receiver
    rows: np.ndarray  # the row of every message
    routes: Routes
    time: np.ndarray
    message: np.ndarray
    stretch: np.ndarray
    rate: np.ndarray


def messages_of(graph: ExecutionGraph) -> Messages:
    """A graph's messages, kept with it."""
    kept = graph.__dict__.get("_messages")
    if kept is not None and len(kept.rows) == np.count_nonzero(graph.kind == SEND):
        return kept
    rows = np.flatnonzero(graph.kind == SEND)
    sent, received = (np.full(len(graph), -1, dtype=np.int32) for _ in range(2))
    sent[rows] = np.arange(len(rows))
    waits = np.flatnonzero(graph.match >= 0)
    received[waits] = sent[graph.match[waits]]
    lanes = int(graph.lane.max(initial=0)) + 1
    senders, _ = distinct(graph.rank[rows] * lanes + graph.lane[rows], graph.ranks * lanes)
    graph.__dict__["_messages"] = found = Messages(rows, sent, received, len(senders))
    return found


def routes_of(graph: ExecutionGraph, topology: Topology) -> Routes:
    """Every distinct (sender, receiver) of the graph has one route. The last topology's are kept with the graph."""
    messages, kept = messages_of(graph), graph.__dict__.get("_routes")
    if kept is not None and kept[0] is topology and kept[1].messages is messages:
        return kept[1]
    if graph.ranks > len(topology.place):
        rule = f"has {len(topology.place)} GPUs, the run {graph.ranks} ranks"
        raise ScenarioError("topology", topology.name, rule)
    sends = messages.rows
    pairs, number = distinct(graph.rank[sends] * graph.ranks + graph.peer[sends], graph.ranks**2)
    stretch_ptr, link_ptr, links, latency, overhead = [0], [0], [], [], []
    for pair in pairs.tolist():
        stretches = topology.stretches(*divmod(pair, graph.ranks))
        for stretch in stretches:
            links += stretch
            link_ptr.append(len(links))
            latency.append(topology.latency_s[stretch].sum())
        stretch_ptr.append(len(link_ptr) - 1)
        overhead.append(topology.overhead_s[stretches[0][0]] if stretches else 0.0)
    a, b, c = (np.array(x, dtype=np.int64) for x in (stretch_ptr, link_ptr, links))
    long, busy = (np.array(x, dtype=np.float64) for x in (latency, overhead))
    found = Routes(number, a, b, c, long, busy, messages, int(np.diff(a)[number].sum()))
    graph.__dict__["_routes"] = (topology, found)
    return found


def replay_shared(
    graph: ExecutionGraph,
    topology: Topology,
    duration: np.ndarray,
    quicker: np.ndarray | None = None,
    dependencies: tuple[np.ndarray, np.ndarray, np.ndarray | None] | None = None,
    history: bool = True,
) -> Shared:
    """Time a graph over shared links.

    `duration`: seconds of the rows that are no messages. `quicker`: divides a row's bytes, overhead and latency (what-if).
    `dependencies`: (dep_ptr, dep_idx, order) in place of the graph's own; the order does not matter here.
    """
    routes, n = routes_of(graph, topology), len(graph)
    messages = routes.messages
    # a lane sends one message at a time; where links store and forward, earlier ones may still be on later stretches
    room = len(messages.rows) if topology.forwards_whole.any() else messages.senders
    table = Rows(*(dependencies or (graph.dep_ptr, graph.dep_idx))[:2], duration, graph.bytes, messages.sent, messages.received)
    mail = Mail(messages.rows, routes.of, np.empty(0) if quicker is None else quicker)
    ways = Ways(routes.stretch_ptr, routes.link_ptr, routes.links, routes.latency, routes.overhead)
    # the long tables are made here, not in the loop: numpy asks for large pages, numba's own arrays come in small ones
    times = Times(np.empty(n), np.full(n, -1.0), np.full(len(messages.rows), -1.0), np.full(n, -1, np.int32), np.empty(n, np.int32))
    few = 2 * (routes.moves + room) if history else 0  # a message comes to each stretch and leaves it; its rate may change in between
    notes = Notes(np.empty(few), np.empty(few, np.int32), np.empty(few, np.int32), np.empty(few))
    notes = _share(table, mail, ways, times, notes, topology.bandwidth, max(1, room), history)
    if n and times.end.min() < 0:
        raise AssertionError("the recorded events depend on each other in a circle")
    return Shared(times.start, times.end, times.arrival, messages.rows, routes, *notes)


# ---- what the loop works on: unpacked at the top of a function, because reaching into a tuple costs in compiled code ---
Rows = namedtuple("Rows", "dep_ptr dep_idx duration nbytes sent received")  # what a row follows, and which messages are its own
Mail = namedtuple("Mail", "row route quicker")  # of every message; of every row what divides its bytes and times (empty: nothing does)
Ways = namedtuple("Ways", "stretch_ptr link_ptr links latency overhead")  # Routes, without whose they are
Times = namedtuple("Times", "start end arrival waiting behind")  # -1: not known yet; the rows that wait for a row, as a linked list
Notes = namedtuple("Notes", "time message stretch rate")  # the history of rates
Links = namedtuple("Links", "capacity head left unfixed seen found active level top")
Slots = namedtuple("Slots", "first hops wanted seen fixed found following held_by")
# A slot holds a message from when it may start until its last byte has left. Its entries, slot * most + k for the k-th link
# of its stretch, stand in the lists (head, following, before) of messages on each link.


# Without numba's reference counts (`_nrt`, which its type hints do not list): each call would count every array it is given up and
# down, atomically, which took longer than all the rest. In return such a function may neither make nor return an array.
compiled = njit(cache=True, boundscheck=False, _nrt=False)  # type: ignore[call-overload]


# ---- the queue: a binary heap of (time, slot) that knows where each slot is ---------------------------------------
@compiled
def _up(keys, slots, where, i):
    key, slot = keys[i], slots[i]
    while i > 0:
        parent = (i - 1) >> 1
        if not key < keys[parent]:
            break
        keys[i], slots[i] = keys[parent], slots[parent]
        where[slots[i]] = i
        i = parent
    keys[i], slots[i] = key, slot
    where[slot] = i


@compiled
def _down(keys, slots, where, n, i):
    key, slot = keys[i], slots[i]
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        if child + 1 < n and keys[child + 1] < keys[child]:
            child += 1
        if not keys[child] < key:
            break
        keys[i], slots[i] = keys[child], slots[child]
        where[slots[i]] = i
        i = child
    keys[i], slots[i] = key, slot
    where[slot] = i


@compiled
def _push(keys, slots, where, n, key, slot):
    keys[n], slots[n] = key, slot
    _up(keys, slots, where, n)


@compiled
def _pop(keys, slots, where, n):
    """Take the earliest slot off a queue of n."""
    slot = slots[0]
    if n > 1:
        keys[0], slots[0] = keys[n - 1], slots[n - 1]
        _down(keys, slots, where, n - 1, 0)
    where[slot] = -1
    return slot


# ---- rates -------------------------------------------------------------------------------------------------------
@compiled
def _alone(slot, first, hops, route_links, count, capacity):
    """The narrowest link of a message that has all its links to itself; -1 when it shares one."""
    narrowest = route_links[first[slot]]
    for k in range(first[slot], first[slot] + hops[slot]):
        link = route_links[k]
        if count[link] != 1:
            return -1
        if capacity[link] < capacity[narrowest]:
            narrowest = link
    return narrowest


@compiled
def _settle(changed, n_changed, slots, links, route_links, most, epoch):
    """New rates (`wanted`) after something changed on some links; returns how many messages were concerned (`slots.found`)."""
    head, following, held_by, seen, found = links.head, slots.following, slots.held_by, slots.seen, slots.found
    n_slots, n_links, known = 0, 0, 0
    for c in range(n_changed):
        entry = head[changed[c]]
        while entry >= 0:
            slot = entry // most
            if seen[slot] != epoch and (held_by[slot] == changed[c] or held_by[slot] < 0):
                seen[slot] = epoch
                found[n_slots] = slot
                n_slots += 1
            entry = following[entry]
    while known < n_slots:
        n_links = _leave_room(known, n_slots, n_links, slots, links, route_links, most, epoch)
        known = n_slots
        _fill(n_slots, n_links, slots, links, route_links, most, epoch)
        n_slots = _join(n_slots, n_links, slots, links, most, epoch)
    return n_slots


@compiled
def _leave_room(known, n_slots, n_links, slots, links, route_links, most, epoch):
    """What the messages that are not concerned leave on each link of those that are."""
    capacity, head, left, unfixed, active = links.capacity, links.head, links.left, links.unfixed, links.active
    seen_link, found_links, level, top = links.seen, links.found, links.level, links.top
    first, hops, wanted, seen, found, following = slots.first, slots.hops, slots.wanted, slots.seen, slots.found, slots.following
    for f in range(known, n_slots):
        slot = found[f]
        for k in range(first[slot], first[slot] + hops[slot]):
            link = route_links[k]
            if seen_link[link] != epoch:
                seen_link[link] = epoch
                found_links[n_links] = link
                n_links += 1
    for i in range(n_links):
        link = found_links[i]
        room, concerned = capacity[link], 0
        entry = head[link]
        while entry >= 0:
            slot = entry // most
            if seen[slot] == epoch:
                concerned += 1
            else:
                room -= wanted[slot]
            entry = following[entry]
        active[i], left[link], unfixed[link], level[link], top[link] = link, max(0.0, room), concerned, -1.0, 0.0
    return n_links


@compiled
def _fill(n_slots, n_links, slots, links, route_links, most, epoch):
    """Progressive filling: the link with least for each of its messages fixes their rate (`level`); then again without them."""
    head, left, unfixed, active, level, top = links.head, links.left, links.unfixed, links.active, links.level, links.top
    first, hops, wanted, seen, following = slots.first, slots.hops, slots.wanted, slots.seen, slots.following
    fixed, found, held_by = slots.fixed, slots.found, slots.held_by
    for f in range(n_slots):
        fixed[found[f]] = False
    while n_slots > 0:
        least, kept = np.inf, 0
        for i in range(n_links):
            link = active[i]
            if unfixed[link] > 0:
                active[kept] = link
                kept += 1
                least = min(least, left[link] / unfixed[link])
        n_links, bottlenecks = kept, 0
        for i in range(n_links):  # all bottlenecks to the front first: filling one changes what others have left
            link = active[i]
            if left[link] / unfixed[link] <= least * (1.0 + TOGETHER):
                active[i], active[bottlenecks] = active[bottlenecks], link
                level[link] = least
                bottlenecks += 1
        for i in range(bottlenecks):
            entry = head[active[i]]
            while entry >= 0:
                slot = entry // most
                if seen[slot] == epoch and not fixed[slot]:
                    fixed[slot] = True
                    wanted[slot], held_by[slot] = least, active[i]
                    n_slots -= 1
                    for k in range(first[slot], first[slot] + hops[slot]):
                        link = route_links[k]
                        left[link] = max(0.0, left[link] - least)
                        unfixed[link] -= 1
                        top[link] = least
                entry = following[entry]


@compiled
def _join(n_slots, n_links, slots, links, most, epoch):
    """Add whoever has more than a full link's level, or whose own link no longer holds it back; returns how many are concerned now."""
    capacity, head, left, found_links, level, top = links.capacity, links.head, links.left, links.found, links.level, links.top
    wanted, seen, found, following, held_by = slots.wanted, slots.seen, slots.found, slots.following, slots.held_by
    for i in range(n_links):
        link = found_links[i]
        full = level[link] >= 0.0 or left[link] <= capacity[link] * LOOSE
        entry = head[link]
        while entry >= 0:
            slot = entry // most
            if seen[slot] != epoch and held_by[slot] >= 0:
                too_much = level[link] >= 0.0 and wanted[slot] > level[link] * (1.0 + LOOSE)
                let_go = held_by[slot] == link and (not full or wanted[slot] < top[link] * (1.0 - LOOSE))
                if too_much or let_go:
                    seen[slot] = epoch
                    found[n_slots] = slot
                    n_slots += 1
            entry = following[entry]
    return n_slots


# ---- the loop ----------------------------------------------------------------------------------------------------
@njit(cache=True, nogil=True, boundscheck=False)
def _share(rows, mail, ways, times, notes, capacity, room, keep_history):
    """Fills `times` (start and end of every row: the sender's lane is free; arrival of every message); returns the history of rates.

    `room`: the most messages that can be under way at once.
    """
    dep_ptr, dep_idx, duration, nbytes, sent, received = rows
    row_of, route_of, quicker = mail
    start, end, arrival, waiting, behind = times
    note_time, note_message, note_stretch, note_rate = notes
    stretch_ptr, link_ptr, route_links, latency, overhead = ways
    n, n_links, most = len(duration), len(capacity), 1
    for s in range(len(link_ptr) - 1):
        most = max(most, link_ptr[s + 1] - link_ptr[s])
    stack, pending, todo = np.empty(n + 1, np.int32), 0, 0
    head, count, dirty = np.full(n_links, -1, np.int32), np.zeros(n_links, np.int32), np.zeros(n_links, np.int32)
    is_dirty = np.zeros(n_links, np.bool_)
    whole, real = np.zeros(n_links, np.int32), np.zeros(n_links)
    links = Links(
        capacity, head, real, whole, np.zeros(n_links, np.int64), whole.copy(), whole.copy(), real.copy(), real.copy()
    )  # fmt: skip
    slot_message, slot_stretch = np.zeros(room, np.int32), np.zeros(room, np.int32)
    first, hops = np.zeros(room, np.int32), np.zeros(room, np.int32)
    remaining, rate, wanted, since = np.zeros(room), np.zeros(room), np.zeros(room), np.zeros(room)
    seen_slot, found, free = np.zeros(room, np.int64), np.zeros(room, np.int32), np.arange(room)[::-1].astype(np.int32)
    following, before = np.zeros(room * most, np.int32), np.zeros(room * most, np.int32)
    held_by = np.full(room, -1, np.int32)
    slots = Slots(first, hops, wanted, seen_slot, np.zeros(room, np.bool_), found, following, held_by)
    changed, is_changed = np.zeros(room, np.int32), np.zeros(room, np.bool_)
    start_keys, start_slots, start_where, n_starts = np.zeros(room), np.zeros(room, np.int32), np.zeros(room, np.int32), 0
    end_keys, end_slots, end_where, n_ends = np.zeros(room), np.zeros(room, np.int32), np.full(room, -1, np.int32), 0
    n_free, epoch, noted, hurried = room, 0, 0, len(quicker) > 0

    while True:
        # whatever no longer waits: the rows in order, the first time, then those that something woke
        while pending > 0 or todo < n:
            if pending > 0:
                pending -= 1
                i = stack[pending]
            else:
                i = todo
                todo += 1
            t, blocker = 0.0, -1
            for k in range(dep_ptr[i], dep_ptr[i + 1]):
                e = end[dep_idx[k]]
                if e < 0.0:
                    blocker = dep_idx[k]
                    break
                t = max(t, e)
            if blocker < 0 and received[i] >= 0:
                e = arrival[received[i]]
                t = max(t, e)
                if e < 0.0:
                    blocker = row_of[received[i]]
            if blocker >= 0:
                behind[i] = waiting[blocker]
                waiting[blocker] = i
                continue
            start[i] = t
            m = sent[i]
            if m >= 0 and stretch_ptr[route_of[m] + 1] > stretch_ptr[route_of[m]]:
                n_free -= 1
                slot = free[n_free]
                slot_message[slot], slot_stretch[slot], factor = m, stretch_ptr[route_of[m]], quicker[i] if hurried else 1.0
                _push(start_keys, start_slots, start_where, n_starts, t + overhead[route_of[m]] / factor, slot)
                n_starts += 1
                continue
            end[i] = t + duration[i]
            if m >= 0:
                arrival[m] = end[i]
            waiter = waiting[i]
            while waiter >= 0:
                stack[pending] = waiter
                pending += 1
                waiter = behind[waiter]

        # the next moment: messages that leave their links, messages that enter theirs
        if keep_history and noted + 2 * room > len(note_time):  # each may leave, and each may get a new rate
            note_time, note_rate = _wider(note_time, 2 * room), _wider(note_rate, 2 * room)
            note_message, note_stretch = _wider(note_message, 2 * room), _wider(note_stretch, 2 * room)
        if n_starts == 0 and n_ends == 0:
            break
        now, n_dirty = np.inf, 0
        if n_starts > 0:
            now = start_keys[0]
        if n_ends > 0:
            now = min(now, end_keys[0])
        while n_ends > 0 and end_keys[0] <= now * (1.0 + TOGETHER):
            slot = _pop(end_keys, end_slots, end_where, n_ends)
            n_ends -= 1
            for k in range(hops[slot]):
                link, entry = route_links[first[slot] + k], slot * most + k
                ahead, after = before[entry], following[entry]
                if ahead >= 0:
                    following[ahead] = after
                else:
                    head[link] = after
                if after >= 0:
                    before[after] = ahead
                count[link] -= 1
                if not is_dirty[link]:
                    is_dirty[link] = True
                    dirty[n_dirty] = link
                    n_dirty += 1
            m, stretch = slot_message[slot], slot_stretch[slot]
            i, route = row_of[m], route_of[m]
            if keep_history:
                note_time[noted], note_message[noted], note_stretch[noted], note_rate[noted] = now, m, stretch, 0.0
                noted += 1
            if stretch == stretch_ptr[route]:
                end[i] = now
            there = now + latency[stretch] / (quicker[i] if hurried else 1.0)
            if stretch + 1 < stretch_ptr[route + 1]:
                slot_stretch[slot] = stretch + 1
                _push(start_keys, start_slots, start_where, n_starts, there, slot)
                n_starts += 1
            else:
                arrival[m] = there
                free[n_free] = slot
                n_free += 1
            waiter = waiting[i]
            waiting[i] = -1
            while waiter >= 0:
                stack[pending] = waiter
                pending += 1
                waiter = behind[waiter]
        while n_starts > 0 and start_keys[0] <= now * (1.0 + TOGETHER):
            slot = _pop(start_keys, start_slots, start_where, n_starts)
            n_starts -= 1
            stretch = slot_stretch[slot]
            first[slot], hops[slot] = link_ptr[stretch], link_ptr[stretch + 1] - link_ptr[stretch]
            i = row_of[slot_message[slot]]
            remaining[slot], rate[slot], since[slot] = nbytes[i] / (quicker[i] if hurried else 1.0), 0.0, now
            wanted[slot], held_by[slot] = 0.0, -1  # held back by no link yet: concerned as soon as rates are set
            for k in range(hops[slot]):
                link, entry = route_links[first[slot] + k], slot * most + k
                before[entry], following[entry] = -1, head[link]
                if head[link] >= 0:
                    before[head[link]] = entry
                head[link] = entry
                count[link] += 1
                if not is_dirty[link]:
                    is_dirty[link] = True
                    dirty[n_dirty] = link
                    n_dirty += 1

        # new rates, where something changed
        n_changed, n_left = 0, 0
        for d in range(n_dirty):
            link = dirty[d]
            is_dirty[link] = False
            if count[link] == 0:
                continue
            slot = head[link] // most
            lone = _alone(slot, first, hops, route_links, count, capacity) if count[link] == 1 else -1
            if lone >= 0:
                wanted[slot], held_by[slot] = capacity[lone], lone
                if not is_changed[slot]:
                    is_changed[slot] = True
                    changed[n_changed] = slot
                    n_changed += 1
            else:
                dirty[n_left] = link
                n_left += 1
        if n_left > 0:
            epoch += 1
            n_found = _settle(dirty, n_left, slots, links, route_links, most, epoch)
            for f in range(n_found):
                slot = found[f]
                if not is_changed[slot]:
                    is_changed[slot] = True
                    changed[n_changed] = slot
                    n_changed += 1
        for f in range(n_changed):
            slot = changed[f]
            is_changed[slot] = False
            if abs(wanted[slot] - rate[slot]) <= rate[slot] * STILL:
                wanted[slot] = rate[slot]
                continue
            remaining[slot] = max(0.0, remaining[slot] - rate[slot] * (now - since[slot]))
            rate[slot], since[slot] = wanted[slot], now
            key, at = now + remaining[slot] / rate[slot], end_where[slot]
            if at < 0:
                _push(end_keys, end_slots, end_where, n_ends, key, slot)
                n_ends += 1
            else:
                later = key > end_keys[at]
                end_keys[at] = key
                if later:
                    _down(end_keys, end_slots, end_where, n_ends, at)
                else:
                    _up(end_keys, end_slots, end_where, at)
            if keep_history:
                note_time[noted], note_rate[noted] = now, rate[slot]
                note_message[noted], note_stretch[noted] = slot_message[slot], slot_stretch[slot]
                noted += 1
    return Notes(note_time[:noted], note_message[:noted], note_stretch[:noted], note_rate[:noted])


@njit(cache=True)
def _wider(notes, more):
    """The same, with room for at least `more`."""
    wider = np.empty(2 * len(notes) + more, notes.dtype)
    wider[: len(notes)] = notes
    return wider
