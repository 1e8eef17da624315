"""A schedule: for each rank a list of actions, in PyTorch's notation. Judged before anything runs.

`2F5` is the forward of stage 2 on micro-batch 5, `2B5` its backward. F needs the stage before's F, B needs the
stage after's B (the last stage's B needs its own F), and a rank does its actions in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from glasscluster.sim.errors import Deadlock, ScenarioError


class Action(NamedTuple):
    """One thing a rank does: kind F or B, on a stage and a micro-batch."""

    stage: int
    kind: str
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.micro_batch}"


@dataclass(frozen=True)
class Judgement:
    """What `validate` finds: makespan for given costs, the three bubble figures, micro-batches in flight per rank."""

    makespan: float
    bubble_fraction: float
    bubble_over_ideal: float
    stage_span_bubble_fraction: float
    peak_live: list[int]


@dataclass(frozen=True)
class Schedule:
    """`ranks[r]` is what rank r does, in order. One stage a rank here."""

    name: str
    stages: int
    micro_batches: int
    ranks: list[list[Action]]

    def __str__(self) -> str:
        return "\n".join(" ".join(map(str, actions)) for actions in self.ranks)

    def validate(self, f: float = 1.0, b: float = 2.0, hop: float = 0.0) -> Judgement:
        """Complete, in order and free of deadlock, or a named error; then its figures under costs f, b and hop."""
        self._complete()
        end: dict[Action, float] = {}
        begun = [float("inf")] * len(self.ranks)
        clock, place = [0.0] * len(self.ranks), [0] * len(self.ranks)
        moved = True
        while moved:
            moved = False
            for rank, actions in enumerate(self.ranks):
                while place[rank] < len(actions):
                    action = actions[place[rank]]
                    need = self._needs(action)
                    if need is not None and need not in end:
                        break
                    ready = 0.0 if need is None else end[need] + (hop if need.stage != action.stage else 0.0)
                    begun[rank] = min(begun[rank], max(clock[rank], ready))
                    clock[rank] = max(clock[rank], ready) + (f if action.kind == "F" else b)
                    end[action] = clock[rank]
                    place[rank] += 1
                    moved = True
        stuck = {r: self.ranks[r][place[r]] for r in range(len(self.ranks)) if place[r] < len(self.ranks[r])}
        if stuck:
            waits = "; ".join(f"rank {r} waits in {a} for {self._needs(a)}" for r, a in stuck.items())
            raise Deadlock(f"schedule {self.name} deadlocks: {waits}", rank=min(stuck), operation=str(stuck[min(stuck)]))
        makespan, useful = max(clock), (f + b) * self.micro_batches * self.stages
        idle = makespan * len(self.ranks) - useful
        spans = [c - a for a, c in zip(begun, clock, strict=True)]
        share = useful / len(self.ranks) / max(spans) if max(spans) else 1.0
        total = makespan * len(self.ranks)
        peaks = [_peak(a) for a in self.ranks]
        return Judgement(makespan, idle / total if total else 0.0, idle / useful if useful else 0.0, 1 - share, peaks)

    def _needs(self, action: Action) -> Action | None:
        stage, kind, micro_batch = action
        if kind == "F":
            return None if stage == 0 else Action(stage - 1, "F", micro_batch)
        return Action(stage, "F", micro_batch) if stage == self.stages - 1 else Action(stage + 1, "B", micro_batch)

    def _complete(self) -> None:
        wanted = {Action(s, k, i) for s in range(self.stages) for k in "FB" for i in range(self.micro_batches)}
        given = [a for actions in self.ranks for a in actions]
        missing = sorted(wanted - set(given))
        if missing or len(given) != len(wanted):
            extra = sorted(set(given) - wanted) or [a for a in set(given) if given.count(a) > 1]
            what = f"misses {missing[0]}" if missing else f"has {extra[0]} too often or out of range"
            raise ScenarioError("schedule", self.name, what)
        for rank, actions in enumerate(self.ranks):
            place = {a: i for i, a in enumerate(actions)}
            for action in actions:
                forward = Action(action.stage, "F", action.micro_batch)
                if action.kind == "B" and (forward not in place or place[forward] > place[action]):
                    raise ScenarioError("schedule", self.name, f"rank {rank} runs {action} before {forward}")


def _peak(actions: list[Action]) -> int:
    live = best = 0
    for action in actions:
        live += 1 if action.kind == "F" else -1
        best = max(best, live)
    return best
