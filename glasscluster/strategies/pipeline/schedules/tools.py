"""What the schedule files share: a pen to write a rank's list with, and a search for how far a closed form
holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from glasscluster.strategies.pipeline.schedules.base import Action


class Writer:
    """Writes a rank's list.

    Each call adds a stage's next micro-batch, so a rule only says which stage and which kind.
    """

    def __init__(self) -> None:
        self.actions: list[Action] = []
        self.together: set[Action] = set()
        self.forwards: Counter[int] = Counter()
        self.backwards: Counter[int] = Counter()
        self.waiting: list[Action] = []  # I whose W is still to do, the oldest first

    def do(self, stage: int, kind: str) -> Action:
        """Add the next F, B, I or W of a stage to the list, and return it; B and I are counted together."""
        if kind == "W":
            before = next(a for a in self.waiting if a.stage == stage)
            self.waiting.remove(before)
            action = Action(stage, "W", before.micro_batch)
        else:
            count = self.forwards if kind == "F" else self.backwards
            action = Action(stage, kind, count[stage])
            count[stage] += 1
        if kind == "I":
            self.waiting.append(action)
        self.actions.append(action)
        return action

    def overlap(self, forward: int, backward: int) -> None:
        """Add the next F of one stage and the next B of another, in one slot."""
        self.together.add(self.do(forward, "F"))
        self.do(backward, "B")


def cut(actions: Iterable[Action], m: int) -> list[Action]:
    """The same lists without the micro-batches from m on.

    They are still legal: micro-batches never wait for each other.
    """
    return [a for a in actions if a.micro_batch < m]


def largest(holds: Callable[[float], bool], top: float) -> float:
    """The largest x up to `top` for which something holds; inf if it holds at `top`.

    It has to hold at 0 and, once it fails, to fail for every larger x.
    """
    if holds(top):
        return float("inf")
    low, high = 0.0, top
    while high - low > 1e-9 * top:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
