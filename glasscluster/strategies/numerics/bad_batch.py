"""Skip steps whose gradient norm is far too large, and return to a snapshot after several such steps.

Follows PaLM (Chowdhery et al., 2204.02311, section 5.1), where training was restarted from an earlier
checkpoint after a loss spike, without the batches around the spike. Symbols: g the norm of a step's gradient
before clipping, M the median of the norms of the last w steps that were taken.

    g finite and g ≤ multiple · M  take the step (g is not compared until w steps have been taken)
    else                           a bad step: no update, and the batch is not used again
    `rollback` bad steps in a row  restore weights and optimizer state of the last snapshot and go on with the
                                   next batch, so that all batches since the snapshot are left out

All ranks have the same norm, because it was summed over ranks for clipping; so they all decide the same
without another message. With fp16, a step that overflowed is skipped by the loss scaler (loss_scale.py) and
is not counted here.

But: a snapshot is a copy that each rank makes of what it owns, outside the recording (a real one is copied to
the host or to disk while training goes on). PaLM's checkpoint was 100 steps old, and people chose which
batches to leave out.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SkipRule:
    """When a step is bad, and what is done about it.

    Attributes:
        multiple: a norm larger than this many times the median is bad; 0: none is.
        window: w, the norms that the median is of.
        rollback: bad steps in a row after which the last snapshot is restored; 0: never.
        every: steps between snapshots.
    """

    multiple: float
    window: int = 16
    rollback: int = 0
    every: int = 10

    def __bool__(self) -> bool:
        """Whether anything is ever skipped."""
        return self.multiple > 0


@dataclass
class Snapshot:
    """What a run returns to: copies of what each pipeline stage owns, and how many updates were made."""

    kept: list[Any]
    updates: int


@dataclass
class Guard:
    """The recent norms, how many bad steps came last in a row, and the snapshot to return to."""

    rule: SkipRule
    norms: deque[float] = field(default_factory=deque)
    bad: int = 0
    snapshot: Snapshot | None = None

    def takes(self, norm: Tensor, _overflow: Tensor | None) -> bool:
        """Whether a step with this gradient norm, which is the same on all ranks, is taken."""
        return not self.harmful(float(norm))

    def harmful(self, norm: float) -> bool:
        """Whether a step with this gradient norm is bad; the norm of a good one is remembered."""
        history, rule = self.norms, self.rule
        compared = len(history) >= rule.window
        if not math.isfinite(norm) or (compared and norm > rule.multiple * median(history)):
            self.bad += 1
            return True
        self.bad = 0
        history.append(norm)
        if len(history) > rule.window:
            history.popleft()
        return False

    def keeps(self, step: int) -> bool:
        """Whether a snapshot is due before this step."""
        return bool(self.rule.rollback) and step % self.rule.every == 0

    def must_return(self) -> bool:
        """Whether to return to the snapshot now; if so, bad steps are counted from 0 again."""
        if self.rule.rollback and self.bad >= self.rule.rollback:
            self.bad = 0
            return True
        return False
