"""A wire in one direction: the α-β model of a message's time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """A wire in one direction: time of a message is `overhead_s + bytes / bandwidth`, then `latency_s` in
    flight.
    """

    name: str
    bandwidth: float
    latency_s: float
    overhead_s: float = 0.0
    source: str = ""

    @property
    def alpha(self) -> float:
        """α of the α–β model: overhead on the port plus time in flight."""
        return self.overhead_s + self.latency_s
