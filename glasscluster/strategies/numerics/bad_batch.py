"""Skip a step that would do harm, and go back where skipping was too late.

Follows PaLM (Chowdhery et al., 2204.02311, section 5.1): loss spikes, restart from an earlier checkpoint,
leave out the batches around the spike. Symbols: g the gradient norm of a step before clipping, M the median
of the last w norms of steps that were taken.

    g finite and g ≤ multiple · M  step (and as long as there are fewer than w norms to compare with)
    else                           bad: no update, none counted; the batch is gone
    `rollback` bad ones in a row   weights and optimizer state are those of the last snapshot; the run goes on
                                   with the next batch, so everything read since the snapshot is left out

All ranks read the same norm, which was summed over ranks for clipping: they decide alike without another
message. With fp16 a step that overflowed under its loss scale is the scaler's business (loss_scale.py) and
not counted here. But: a snapshot is a copy each rank makes of what it owns, outside the recording (a real one
goes to the host or to disk while training runs on); PaLM's was 100 steps old, and its operators chose by hand
how many batches to leave out.
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
    """A norm beyond `multiple` times the median of the last `window` is bad; after `rollback` in a row (0:
    never) go back.
    """

    multiple: float
    window: int = 16
    rollback: int = 0
    every: int = 10  # steps between snapshots

    def __bool__(self) -> bool:
        """Whether anything is ever skipped."""
        return self.multiple > 0


@dataclass
class Snapshot:
    """What a run returns to: by stage, what its manager kept; and how many updates had been made."""

    kept: list[Any]
    updates: int


@dataclass
class Guard:
    """The norms so far, how many bad ones came last, and the snapshot to return to."""

    rule: SkipRule
    norms: deque[float] = field(default_factory=deque)
    bad: int = 0
    snapshot: Snapshot | None = None

    def takes(self, norm: Tensor, _overflow: Tensor | None) -> bool:
        """Decide whether a step of this gradient norm is taken: the norm is the same number on all ranks."""
        return not self.harmful(float(norm))

    def harmful(self, norm: float) -> bool:
        """Judge a step by its gradient norm, and remember it."""
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
        """Whether it is time to go back to the snapshot; the count of bad steps starts again."""
        if self.rule.rollback and self.bad >= self.rule.rollback:
            self.bad = 0
            return True
        return False
