"""Held-out cases: ten faults that played no part in making the rules of diagnosis.py, and what the rules say
of them.

The rules' thresholds and order were found on the eleven cases of emergency_room.py, so those cases say
nothing about a twelfth. The faults here were written down, each with its right name, before the rules were
run on them; the rules must not be changed to fit them. For four of them there is no rule: then the best
answer is silence. The results are in docs/blowups.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from glasscluster.scenarios.emergency_room.diagnosis import HEALTHY
from glasscluster.scenarios.emergency_room.emergency_room import BY_NAME, Case


@dataclass(frozen=True)
class HeldOut:
    """A planted fault. `right` is the cause whose rule should hold; None where no rule covers the fault."""

    name: str
    title: str
    right: str | None
    tensor_ranks: bool = False  # two tensor ranks in place of two data ranks

    @property
    def case(self) -> Case:
        """The fault as a case of the emergency room. Its plant has the fault's name."""
        base = BY_NAME["norm-counted-twice" if self.tensor_ranks else "missing-all-reduce"].base
        plant = self.name.replace("-", "_")
        return Case(self.name, (self.title, self.title), ("", ""), base=base, plant=plant)

    def verdict(self, diagnosis: str) -> str:
        """Grade the diagnosis: right, wrong, missed (a rule should have held), or silent (no rule covers the
        fault).
        """
        if self.right is None:
            return "silent" if diagnosis == HEALTHY else "wrong"
        return "right" if diagnosis == self.right else "missed" if diagnosis == HEALTHY else "wrong"


HELD_OUT = (
    HeldOut("late-rate", "learning rate times 30 from step 10 on", "rate-too-high"),
    HeldOut("one-layer-init", "one layer's matrices start 10 times too large", "init-too-large"),
    HeldOut("stuck-batch", "from step 10 on the same batch for ever", "repeated-data"),
    HeldOut("stale-layer", "one rank keeps an old copy of one layer", "missing-all-reduce"),
    HeldOut("noisy-labels", "one rank's targets are drawn at random, its inputs are text", "noisy-shard"),
    HeldOut("norm-not-summed", "tensor ranks clip by their own norm each", "norm-counted-twice", True),
    HeldOut("frozen-layer", "one layer's gradients never reach the optimizer", None),
    HeldOut("shifted-labels", "targets are one token further than they should be", None),
    HeldOut("lost-gradients", "one rank's gradients are zero before they are reduced", None),
    HeldOut("weight-decay", "weight decay 1,000 times too large", None),
)
