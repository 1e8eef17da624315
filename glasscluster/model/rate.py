"""The learning rate over a run: warm-up, then constant, cosine, or warm-up-stable-decay.

Symbols: η peak rate, W warm-up updates, T the update at which the floor is reached, D updates that the fall
takes, f floor / η.

    η |    ___________________         warm-up  t/W                        t = 1 ... W
      |   /                   \\ wsd    none     1
      |  /  cosine: one half   \\       cosine   f + (1 - f)(1 + cos πx)/2  x = (t - (T - D)) / D,
      | /   turn from W to T    \\___   wsd      f + (1 - f)(1 - x)         kept in 0 ... 1
      0 W                   T-D  T

Warm-up: Goyal et al., 1706.02677, section 2.2. Cosine: Loshchilov and Hutter (SGDR), 1608.03983, equation 5,
without restarts; D is all of T - W. WSD: Hu et al. (MiniCPM), 2404.06395, section 4.2: D is a tenth of T
unless it is given, which they found to be enough.
But: no restarts; WSD falls in a straight line (the paper leaves its shape open and uses an exponential);
beyond T the floor stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Decay = Literal["none", "cosine", "wsd"]


@dataclass(frozen=True)
class RateSchedule:
    """`until` is T and `falling` is D (0: as above); both count updates, skipped steps do not.

    The default is constant: 1.
    """

    warmup: int = 0
    decay: Decay = "none"
    until: int = 0
    falling: int = 0
    floor: float = 0.0

    @property
    def length(self) -> int:
        """D: the number of steps over which the rate falls."""
        return self.falling or max(
            1, self.until - self.warmup if self.decay == "cosine" else round(self.until / 10)
        )

    def factor(self, update: int) -> float:
        """Share of the peak rate at an update; the first is 1."""
        if update < self.warmup:
            return update / self.warmup
        if self.decay == "none":
            return 1.0
        x = min(max((update - (self.until - self.length)) / self.length, 0.0), 1.0)
        left = (1 + math.cos(math.pi * x)) / 2 if self.decay == "cosine" else 1 - x
        return self.floor + (1 - self.floor) * left


CONSTANT = RateSchedule()
