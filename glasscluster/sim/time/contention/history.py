"""The history of rates: which rate every message had, and from which time on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from glasscluster.sim.time.contention.compiled import inlined


class RateHistory(NamedTuple):
    """From `time` on, `message` moves over the links of `segment` at `rate` bytes/s. 0: it has left them."""

    time: np.ndarray  # seconds, never falling
    message: np.ndarray
    segment: np.ndarray  # see Routes
    rate: np.ndarray


def make_history(length: int) -> RateHistory:
    """Room for so many entries."""
    return RateHistory(
        np.empty(length),
        np.empty(length, np.int32),
        np.empty(length, np.int32),
        np.empty(length),
    )


def grow(history: RateHistory, more: int) -> RateHistory:
    """The same entries in tables of twice the length, and room for at least `more` others."""
    length = len(history.time)
    grown = make_history(2 * length + more)
    for old, new in zip(history, grown, strict=True):
        new[:length] = old
    return grown


@inlined
def note_rate(history, counters, time, transfer, rate):
    """Write down the new rate of a transfer, at `time`."""
    at = counters.history
    history.time[at] = time
    history.message[at] = transfer.message
    history.segment[at] = transfer.segment
    history.rate[at] = rate
    counters.history = at + 1
