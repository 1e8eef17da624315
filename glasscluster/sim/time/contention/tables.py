"""The tables that the compiled event loop works on. All are made here, by numpy, before the loop starts.

A transfer is a message between the moment at which it may start and the moment at which its last byte has
left the last link of its route. Its number is free for another message afterwards, so the tables are only as
long as messages can be under way at once. Tables with several fields (`transfers[t].rate`) are numpy
structured arrays: compiled code changes a field in place, and all that is known of one transfer or link lies
together in memory.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from glasscluster.sim.time.contention.event_queue import EventQueue, make_queue

TRANSFER = np.dtype(
    [
        ("message", np.int32),
        ("segment", np.int32),  # of the message's route: the one it is on, or will enter next
        ("links_begin", np.int32),  # where the segment's links begin in Network.links
        ("links_end", np.int32),  # where they end; this entry is no longer the segment's
        ("remaining", np.float64),  # bytes that had not passed at `since`
        ("rate", np.float64),  # bytes/s, from `since` on
        ("since", np.float64),  # seconds
        ("new_rate", np.float64),  # bytes/s from now on; equal to `rate` except while rates are recomputed
        ("bottleneck", np.int32),  # the link that limits its rate, -1: it has no rate yet
        ("position", np.int32),  # in the event queue that it is in, -1: in none
        ("rate_changed", np.bool_),  # it is in Traffic.changed_transfers
        ("fixed", np.bool_),  # progressive filling has fixed its rate
        ("affected_in", np.int64),  # the last recomputation of rates that it was part of
    ],
    align=True,
)
LINK = np.dtype(
    [
        ("capacity", np.float64),  # bytes/s
        ("spare", np.float64),  # bytes/s that progressive filling has not given away yet
        (
            "fair_share",
            np.float64,
        ),  # what each of its affected transfers gets if it is their bottleneck, else -1
        ("highest_rate", np.float64),  # the highest rate that an affected transfer on it was given
        ("first_entry", np.int32),  # the first entry of its list of transfers, -1: none
        ("transfers", np.int32),  # how many are on it
        ("unfixed", np.int32),  # how many of the affected ones have no rate yet
        ("changed", np.bool_),  # it is in Traffic.changed_links
        ("affected_in", np.int64),  # the last recomputation of rates that it was part of
    ],
    align=True,
)
# Each link has a doubly linked list of the transfers on it. Entry `transfer * longest segment + k` belongs to
# the k-th link of the transfer's segment.
ENTRY = np.dtype([("transfer", np.int32), ("next", np.int32), ("previous", np.int32)])
COUNTERS = np.dtype(
    [
        ("visited_rows", np.int64),  # rows before this one have been looked at
        ("ready_rows", np.int64),  # how many of each list below are in use
        ("free_transfers", np.int64),
        ("changed_links", np.int64),
        ("changed_transfers", np.int64),
        ("history", np.int64),
        ("recomputations", np.int64),  # of rates, so far
    ]
)


class Program(NamedTuple):
    """What is replayed: the rows of an execution graph and their messages. The loop changes nothing here."""

    dep_ptr: np.ndarray  # row -> where its dependencies stand in dep_idx
    dep_idx: np.ndarray
    duration: np.ndarray  # of a row that sends nothing over links, seconds
    nbytes: np.ndarray  # of a row's message
    speedup: np.ndarray  # divides a row's bytes, overhead and latency (what-if); empty: 1 for all
    sent_by: np.ndarray  # see Messages
    awaited_by: np.ndarray
    message_row: np.ndarray


class Network(NamedTuple):
    """`Routes` as a tuple of arrays. The loop changes nothing here."""

    route: np.ndarray  # of a message
    segment_ptr: np.ndarray
    link_ptr: np.ndarray
    links: np.ndarray
    latency: np.ndarray
    overhead: np.ndarray


class Times(NamedTuple):
    """What is computed, in seconds. -1: not known yet."""

    start: np.ndarray  # of a row
    end: np.ndarray  # of a row; of one that sends: its lane is free
    arrival: np.ndarray  # of a message, at its receiver


class WaitingRows(NamedTuple):
    """Rows that cannot be timed yet. Each waits in the list of one row that it depends on."""

    first: np.ndarray  # row -> the first row that waits for it, -1: none
    next: np.ndarray  # row -> the next one in the same list, -1: it is the last
    ready: np.ndarray  # a stack: rows that no longer wait


class Traffic(NamedTuple):
    """Transfers under way, the links they share, and lists that the loop works through."""

    transfers: np.ndarray  # TRANSFER
    links: np.ndarray  # LINK, as many as the topology has
    entries: np.ndarray  # ENTRY
    longest_segment: int
    starts: EventQueue  # when a transfer enters the links of its segment
    ends: EventQueue  # when its last byte leaves them, if no rate changes before
    free: np.ndarray  # a stack: numbers of transfers that are not in use
    changed_links: np.ndarray  # a transfer has come or gone in this event
    changed_transfers: np.ndarray  # they may have another rate after this event
    affected: np.ndarray  # transfers of the recomputation of rates that is being made
    affected_links: np.ndarray
    unfilled_links: np.ndarray  # those of affected_links on which some transfer has no rate yet


def make_times(rows: int, messages: int) -> Times:
    """Make the table of times, in which nothing is known yet."""
    return Times(np.empty(rows), np.full(rows, -1.0), np.full(messages, -1.0))


def make_waiting_rows(rows: int) -> WaitingRows:
    """Make the lists of waiting rows, all empty."""
    return WaitingRows(np.full(rows, -1, np.int32), np.empty(rows, np.int32), np.empty(rows + 1, np.int32))


def make_traffic(capacity: np.ndarray, transfers: int, longest_segment: int) -> Traffic:
    """Make links of the given capacities without transfers, and room for so many transfers."""
    numbers = np.arange(transfers, dtype=np.int32)
    links = np.zeros(len(capacity), LINK)
    links["capacity"], links["first_entry"] = capacity, -1
    entries = np.zeros(transfers * longest_segment, ENTRY)
    entries.reshape(transfers, longest_segment)["transfer"] = numbers[:, None]
    table = np.zeros(transfers, TRANSFER)
    table["position"] = -1
    some_transfers, some_links = np.empty((2, transfers), np.int32), np.empty((3, len(links)), np.int32)
    return Traffic(
        table,
        links,
        entries,
        longest_segment,
        make_queue(transfers),
        make_queue(transfers),
        numbers[::-1].copy(),  # number 0 is taken first
        some_links[0],
        some_transfers[0],
        some_transfers[1],
        some_links[1],
        some_links[2],
    )


def make_counters(transfers: int) -> np.ndarray:
    """Make the counters, one record in an array so that compiled code can change it."""
    counters = np.zeros(1, COUNTERS)
    counters["free_transfers"] = transfers
    return counters
