"""What a collective should cost, said the same way by every algorithm's `predict`."""

from __future__ import annotations

from dataclasses import dataclass

from glasscluster.base.link import Link


@dataclass(frozen=True)
class Theory:
    """Payload bytes sent over all ranks, the longest chain of dependent messages, and seconds (α–β, no
    contention, γ infinite).

    `time_s` is None where no closed form is claimed: no link given, or off the formula's domain.
    """

    bytes_total: float
    steps: int
    time_s: float | None = None


def power_of_two(n: int) -> bool:
    """Whether n is a power of two, the domain of most logarithmic formulas."""
    return n & (n - 1) == 0


def one_after_another(link: Link | None, messages: int, nbytes: float) -> float | None:
    """Seconds for messages that each wait for the one before to arrive: messages · (α + nbytes/β)."""
    return None if link is None else messages * (link.alpha + nbytes / link.bandwidth)


def through_one_port(link: Link | None, messages: int, nbytes: float) -> float | None:
    """Seconds until the last of some messages that leave one port back to back arrives: messages · (o +
    nbytes/β) + L.
    """
    return None if link is None else messages * (link.overhead_s + nbytes / link.bandwidth) + link.latency_s
