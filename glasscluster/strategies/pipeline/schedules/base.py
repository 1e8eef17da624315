"""A schedule: for each rank a list of actions, in PyTorch's notation. It is checked before anything runs.

    2F5   stage 2, forward of micro-batch 5
    2B5   its whole backward;  or, in two parts:
    2I5   the gradient of its input,   and after that   2W5   the gradients of its weights
    (0F3;3B1)OVERLAP_F_B   two actions in one slot: both begin when both can, both are done when the slot is

    F needs the F of the stage before.
    B and I need the B or I of the stage after; on the last stage, their own F.
    W needs its own I.
    A rank does its actions in order, and waits where something is missing.

A stage is a chunk of the model. `placement[stage]` is the rank that has it: in a loop, or folded like a V.
But: a hop between ranks takes time in flight and no rank's compute. Here links are never the bottleneck; in
the replay of a run they can be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, pairwise
from typing import NamedTuple

from glasscluster.base.errors import Deadlock, InputError

KINDS = "FBIW"


class Action(NamedTuple):
    """One thing that a rank does: F, B, I or W of a stage and a micro-batch."""

    stage: int
    kind: str
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.micro_batch}"


Slot = tuple[Action, ...]  # one action, or a forward and a backward that overlap


def looped(p: int, v: int = 1) -> tuple[int, ...]:
    """Stage s on rank s mod p: rank r has stages r, r+p, r+2p, ..."""
    return tuple(s % p for s in range(p * v))


def folded(p: int) -> tuple[int, ...]:
    """Two stages a rank, down and up again like a V: rank r has stages r and 2p-1-r, rank 0 the first and the
    last.
    """
    return (*range(p), *reversed(range(p)))


@dataclass(frozen=True)
class Metrics:
    """What `Schedule.validate` computes, in the units of the costs it was given; named as in
    docs/contract.md.

    Attributes:
        makespan: from the first action's begin to the last one's end.
        bubble_fraction: idle time over ranks × makespan.
        bubble_over_ideal: idle time over busy time.
        stage_span_bubble_fraction: of the rank with the longest span from first to last action, idle time
            over span.
        stage_span_bubble: the same as a time.
        peak_live: for each rank the most chunks whose F was done and whose B or W was not, counted after each
            slot (in a slot of two the forward takes what the backward frees).
        peak_postponed: for each rank the most chunks whose I was done and whose W was not.
        weights_held: for each rank how many stages' weights lie on it.
        work: for each rank its busy time.
        begin: when each action begins.
        end: when each action ends.
    """

    makespan: float
    bubble_fraction: float
    bubble_over_ideal: float
    stage_span_bubble_fraction: float
    stage_span_bubble: float  # the same in time: the largest rank's span minus what it works
    peak_live: list[int]
    peak_postponed: list[int]
    weights_held: list[int]  # stages whose weights lie on a rank
    work: list[float]
    begin: dict[Action, float]
    end: dict[Action, float]


@dataclass(frozen=True)
class Source:
    """Where a schedule was read: its file, and the place of every action, for messages.

    Attributes:
        file: what it is called.
        lines: for each rank where its list stands, such as `line 2`.
        places: `places[r][k]` is where action k of rank r stands, such as `line 2, token 5`.
    """

    file: str
    lines: tuple[str, ...]
    places: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Schedule:
    """What each pipeline rank does, in order.

    A schedule is data: it is made, read and checked without running.

    Attributes:
        name: what it is called.
        stages: p·v, chunks of the model.
        micro_batches: m, in one step.
        ranks: `ranks[r]` is the list of rank r's actions.
        placement: the rank of each stage; by default stage s lies on rank s mod p.
        together: forwards that share their slot with the backward behind them.
        source: where it was read; None for a schedule that was made.

    Example:
        >>> from glasscluster.strategies.pipeline.schedules import make_schedule
        >>> schedule = make_schedule("1f1b", p=4, micro_batches=8)
        >>> schedule.written(3)[:4]
        ['3F0', '3B0', '3F1', '3B1']
        >>> metrics = schedule.validate(f=1.0, b=2.0)
        >>> metrics.makespan, metrics.bubble_over_ideal, metrics.peak_live  # (p - 1)/m = 0.375
        (33.0, 0.375, [4, 3, 2, 1])
    """

    name: str
    stages: int
    micro_batches: int
    ranks: list[list[Action]]
    placement: tuple[int, ...] = ()
    together: frozenset[Action] = frozenset()
    source: Source | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.placement:
            object.__setattr__(self, "placement", tuple(s % len(self.ranks) for s in range(self.stages)))

    def __str__(self) -> str:
        return "\n".join(" ".join(self.written(rank)) for rank in range(len(self.ranks)))

    # ---- reading it ----------------------------------------------------------------------------------------
    def stages_of(self, rank: int) -> list[int]:
        """The stages that lie on a rank.

        Args:
            rank: a pipeline rank.

        Returns:
            Their numbers, in model order.
        """
        return [s for s, holder in enumerate(self.placement) if holder == rank]

    def slots(self, rank: int) -> Iterator[Slot]:
        """A rank's list with the actions that share a slot taken together.

        Args:
            rank: a pipeline rank.

        Returns:
            An iterator over tuples of one action, or of a forward and a backward.
        """
        actions = iter(self.ranks[rank])
        for action in actions:
            yield (action, *islice(actions, 1)) if action in self.together else (action,)

    def written(self, rank: int) -> list[str]:
        """A rank's slots as PyTorch writes them.

        Args:
            rank: a pipeline rank.

        Returns:
            One string a slot, such as `2F5`.
        """
        return [str(s[0]) if len(s) == 1 else f"({s[0]};{s[1]})OVERLAP_F_B" for s in self.slots(rank)]

    @property
    def messages(self) -> int:
        """Activations and gradients that leave a rank, in a step."""
        return 2 * self.micro_batches * self.hops

    @property
    def splits(self) -> bool:
        """Whether a backward is in two parts."""
        return any(a.kind == "W" for actions in self.ranks for a in actions)

    @property
    def hops(self) -> int:
        """How many times an activation goes from rank to rank on its way through the model."""
        return sum(a != b for a, b in pairwise(self.placement))

    def most_held(self, rank: int, held: Sequence[float], until: str = "BI") -> float:
        """The most that a rank holds when a part of a backward begins.

        Args:
            rank: a pipeline rank.
            held: for each stage what a micro-batch holds there from its F on, in any unit (bytes).
            until: the actions that free it: "BI", or "BW" for what W needs as well.

        Returns:
            The maximum, in the unit of `held`.
        """
        now = most = 0.0
        for stage, kind, _ in self.ranks[rank]:
            if kind == "F":
                now += held[stage]
                continue
            most = max(most, now)
            if kind in until:
                now -= held[stage]
        return most

    def _leaves(self, action: Action) -> bool:
        """Whether what an action makes goes to another rank."""
        to = action.stage + {"F": 1, "B": -1, "I": -1, "W": 0}[action.kind]
        return 0 <= to < self.stages and self.placement[to] != self.placement[action.stage]

    def needs(self, action: Action) -> list[Action]:
        """The actions that must be done before one can begin, besides those before it in its rank's list.

        Args:
            action: an action of this schedule.

        Returns:
            The neighbour's F or gradient (B or I, whichever the schedule has), and the rank's own F or I.
        """
        stage, kind, i = action
        if kind == "F":
            return [] if stage == 0 else [Action(stage - 1, "F", i)]
        if kind == "W":
            return [Action(stage, "I", i)]
        own = Action(stage, "F", i)
        return (
            [own] if stage == self.stages - 1 else [own, Action(stage + 1, self._backward[stage + 1, i], i)]
        )

    @cached_property
    def _backward(self) -> dict[tuple[int, int], str]:
        return {(a.stage, a.micro_batch): a.kind for actions in self.ranks for a in actions if a.kind in "BI"}

    # ---- judging it ----------------------------------------------------------------------------------------
    def validate(
        self,
        f: float | Sequence[float] = 1.0,
        b: float | Sequence[float] = 2.0,
        hop: float = 0.0,
        w: float | Sequence[float] = 1.0,
        overlapped: Callable[[float, float], float] = lambda f, b: f + b,
        sends_block: bool = False,
    ) -> Metrics:
        """Check that a schedule is complete, in order and free of deadlock, and compute what it costs.

        Args:
            f: the time of a stage's F: one for all stages, or a list.
            b: the time of its whole backward.
            hop: the time that a tensor takes from rank to rank.
            w: the time of W, a part of b; so I takes b - w.
            overlapped: the time of a slot of two, from those of its F and its backward.
            sends_block: a rank goes on only when what it sent has arrived; otherwise it only launches its
                sends, as the executor does.

        Returns:
            The Metrics, in the unit of the costs.

        Raises:
            InputError: if an action is missing, doubled, on a wrong rank or out of order.
            Deadlock: if ranks wait for each other, with the cycle.
        """
        self._complete()
        cost = self._costs(f, b, w)
        begin, end = self._simulate(cost, hop, overlapped, sends_block)
        return self._figures(begin, end)

    @cached_property
    def unit_times(self) -> tuple[dict[Action, float], dict[Action, float]]:
        """When each action begins and ends where F, I and W take 1, B takes 2 and hops take nothing."""
        judged = self.validate(1.0, 2.0, 0.0, 1.0)
        return judged.begin, judged.end

    def _complete(self) -> None:
        """Every stage and micro-batch has F and either B or I and W, once, on the stage's rank, F first and W
        after I.
        """
        seen: dict[Action, int] = {}
        for rank, actions in enumerate(self.ranks):
            for place, action in enumerate(actions):
                stage, kind, i = action
                if kind not in KINDS or not 0 <= stage < self.stages or not 0 <= i < self.micro_batches:
                    self._refuse(f"rank {rank} has {action}, which is out of range", rank, place)
                if self.placement[stage] != rank:
                    lies = f"but stage {stage} lies on rank {self.placement[stage]}"
                    self._refuse(f"rank {rank} runs {action}, {lies}", rank, place)
                if action in seen:
                    self._refuse(f"rank {rank} has {action} twice", rank, place)
                seen[action] = place
        for stage in range(self.stages):
            for i in range(self.micro_batches):
                self._complete_one(stage, i, seen)
        for rank in range(len(self.ranks)):
            for slot in self.slots(rank):
                if len(slot) == 2 and (slot[0].kind != "F" or slot[1].kind not in "BI"):
                    rule = f"rank {rank} overlaps {slot[0]} and {slot[1]}: only a forward with a backward"
                    self._refuse(rule, rank, seen[slot[0]])

    def _complete_one(self, stage: int, i: int, seen: dict[Action, int]) -> None:
        f, b, first, w = (Action(stage, k, i) for k in KINDS)
        rank = self.placement[stage]
        if b in seen and (first in seen or w in seen):
            part = first if first in seen else w
            rule = f"rank {rank} has {b} and {part}: a backward is whole or in two parts"
            self._refuse(rule, rank, seen[part])
        order = [f, b] if b in seen or (first not in seen and w not in seen) else [f, first, w]
        for action in order:
            if action not in seen:
                self._refuse(f"rank {rank} misses {action}", rank)
        for before, after in pairwise(order):
            if seen[before] > seen[after]:
                self._refuse(f"rank {rank} runs {after} before {before}", rank, seen[after])

    def _refuse(self, rule: str, rank: int, place: int | None = None) -> None:
        """Raise an InputError about a rank's list, or about the action at a place of it."""
        raise InputError("schedule", self.name, rule + self._written_at(rank, place))

    def _written_at(self, rank: int, place: int | None) -> str:
        """In which line, and at which token of it, a rank or one of its actions was read."""
        if self.source is None:
            return ""
        here = self.source.lines[rank] if place is None else self.source.places[rank][place]
        return f" ({self.source.file}, {here})"

    def _costs(self, *given: float | Sequence[float]) -> Callable[[Action], float]:
        f, b, w = (list(c) if isinstance(c, Sequence) else [c] * self.stages for c in given)
        split = any(a.kind == "W" for actions in self.ranks for a in actions)
        if split and any(part > whole for part, whole in zip(w, b, strict=True)):
            raise InputError(
                "costs", f"w={max(w):g}", f"the weight part cannot exceed the whole backward, b = {min(b):g}"
            )
        table = {"F": f, "B": b, "I": [x - y for x, y in zip(b, w, strict=True)], "W": w}
        return lambda action: table[action.kind][action.stage]

    def _simulate(
        self,
        cost: Callable[[Action], float],
        hop: float,
        overlapped: Callable[[float, float], float],
        sends_block: bool,
    ) -> tuple[dict[Action, float], dict[Action, float]]:
        """When each action begins and ends; a slot begins when its rank is free and all it needs
        has arrived.
        """
        begin: dict[Action, float] = {}
        end: dict[Action, float] = {}
        left = [list(self.slots(rank))[::-1] for rank in range(len(self.ranks))]
        clock = [0.0] * len(self.ranks)
        moved = True
        while moved:
            moved = False
            for rank, slots in enumerate(left):
                while slots and all(need in end for action in slots[-1] for need in self.needs(action)):
                    slot = slots.pop()
                    arrivals = (
                        end[n] + hop * (self.placement[n.stage] != rank) for a in slot for n in self.needs(a)
                    )
                    start = max(clock[rank], *arrivals, 0.0)
                    spent = [cost(a) for a in slot]
                    clock[rank] = start + (spent[0] if len(slot) == 1 else overlapped(spent[0], spent[1]))
                    for action in slot:
                        begin[action], end[action] = start, clock[rank]
                    if sends_block and any(self._leaves(action) for action in slot):
                        clock[rank] += hop
                    moved = True
        if any(left):
            self._deadlocked({rank: slots[-1] for rank, slots in enumerate(left) if slots}, end)
        return begin, end

    def _deadlocked(self, stuck: dict[int, Slot], end: dict[Action, float]) -> None:
        """Name who waits in what for what, and the ranks that form a cycle of waits."""
        waits = {
            r: next((a, n) for a in slot for n in self.needs(a) if n not in end) for r, slot in stuck.items()
        }
        rank, path = min(stuck), list[int]()
        while rank not in path:
            path.append(rank)
            rank = self.placement[waits[rank][1].stage]
        cycle = path[path.index(rank) :]
        said = "; ".join(f"rank {r} waits in {a} for {n}" for r, (a, n) in waits.items())
        names = " → ".join(f"rank {r} ({waits[r][0]})" for r in [*cycle, rank])
        stand = "".join(self._written_at(r, self.ranks[r].index(waits[r][0])) for r in cycle)
        raise Deadlock(
            f"schedule {self.name} deadlocks: {said}; cycle {names}{stand}",
            rank=rank,
            operation=str(waits[rank][0]),
            cycle=cycle,
        )

    def _figures(self, begin: dict[Action, float], end: dict[Action, float]) -> Metrics:
        """Idle time three ways, and what a rank holds."""
        work, spans, peaks, postponed = [], [], [], []
        for rank in range(len(self.ranks)):
            slots = list(self.slots(rank))
            work.append(sum(end[s[0]] - begin[s[0]] for s in slots))
            spans.append(end[slots[-1][0]] - begin[slots[0][0]] if slots else 0.0)
            peaks.append(_peak(slots, rises="F", falls="BW"))
            postponed.append(_peak(slots, rises="I", falls="W"))
        makespan, useful, largest = max(end.values(), default=0.0), sum(work), spans.index(max(spans))
        total = makespan * len(self.ranks)
        return Metrics(
            makespan=makespan,
            bubble_fraction=(total - useful) / total if total else 0.0,
            bubble_over_ideal=(total - useful) / useful if useful else 0.0,
            stage_span_bubble_fraction=1 - work[largest] / spans[largest] if spans[largest] else 0.0,
            stage_span_bubble=spans[largest] - work[largest],
            peak_live=peaks,
            peak_postponed=postponed,
            weights_held=[len(self.stages_of(rank)) for rank in range(len(self.ranks))],
            work=work,
            begin=begin,
            end=end,
        )


def _peak(slots: Iterable[Slot], rises: str, falls: str) -> int:
    held = best = 0
    for slot in slots:
        held += sum((a.kind in rises) - (a.kind in falls) for a in slot)
        best = max(best, held)
    return best
