"""What a collective should cost: the type that every `predict` returns, and formulas they share."""

from __future__ import annotations

from dataclasses import dataclass

from glasscluster.base.link import Link


@dataclass(frozen=True)
class Theory:
    """Payload bytes sent over all ranks, the longest chain of dependent messages, and seconds (α–β, no
    contention, γ infinite).

    `time_s` is None where no closed form is claimed: no link was given, or the case is outside the formula's
    domain.
    """

    bytes_total: float
    steps: int
    time_s: float | None = None


def power_of_two(n: int) -> bool:
    """Whether n is a power of two, the domain of most logarithmic formulas."""
    return n & (n - 1) == 0


def one_after_another(link: Link | None, messages: int, nbytes: float) -> float | None:
    """Return the seconds for messages that each wait until the one before has arrived: messages · (α +
    nbytes/β).
    """
    return None if link is None else messages * (link.alpha + nbytes / link.bandwidth)


def through_one_port(link: Link | None, messages: int, nbytes: float) -> float | None:
    """Return the seconds until all messages have arrived that leave one port back to back: messages · (o +
    nbytes/β) + L.
    """
    return None if link is None else messages * (link.overhead_s + nbytes / link.bandwidth) + link.latency_s
