"""Which schedules there are: each file here registers its own, and nothing else has to know of it.

@scheduled("my-schedule", kind=ONE, place=200)
def schedule(p, m):                 # p ranks, m micro-batches; LOOPED: (p, m, v)
    return Schedule("my-schedule", p, m, ranks)

@live_at_most("my-schedule")        # optional: Eq 22, chunks' activations that live on a rank at most
def predict_in_flight(p, m, rank):
    return m
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from glasscluster.strategies.pipeline.schedules.base import Schedule

Function = TypeVar("Function", bound=Callable[..., Any])
Kind = Literal["one stage", "looped", "folded"]
ONE: Kind = "one stage"  # a rank has one stage
LOOPED: Kind = "looped"  # any number v of stages, rank r has r, r + p, r + 2p, ...
FOLDED: Kind = "folded"  # two stages, folded like a V: rank r has r and 2p - 1 - r


@dataclass(frozen=True)
class Registered:
    """A schedule by name; `place` orders lists of them."""

    name: str
    kind: Kind
    place: int
    make: Callable[..., Schedule]


REGISTRY: dict[str, Registered] = {}
LIVE: dict[str, Callable[..., int | None]] = {}


def scheduled(name: str, *, kind: Kind, place: int) -> Callable[[Function], Function]:
    """Register the decorated function as what makes a pipeline schedule.

    The function is called with p ranks and m micro-batches, and for kind LOOPED with v stages a rank; it
    returns a `Schedule`.

    Args:
        name: what `--schedule` calls it.
        kind: how stages lie on ranks: ONE a rank, LOOPED (v a rank: r, r + p, ...) or FOLDED (two, like a V).
        place: where it stands in lists of schedules; smaller is earlier.

    Returns:
        A decorator that returns the function unchanged.

    Example:
        >>> from glasscluster.strategies.pipeline.schedules import registry
        >>> from glasscluster.strategies.pipeline.schedules.base import Action, Schedule
        >>> @registry.scheduled("one-at-a-time", kind=registry.ONE, place=1000)
        ... def schedule(p, m):
        ...     ranks = [[Action(s, kind, i) for i in range(m) for kind in "FB"] for s in range(p)]
        ...     return Schedule("one-at-a-time", p, m, ranks)
        >>> schedule(2, 3).validate().bubble_fraction
        0.5
    """

    def register(make: Function) -> Function:
        REGISTRY[name] = Registered(name, kind, place, make)
        return make

    return register


def live_at_most(name: str) -> Callable[[Function], Function]:
    """Register the decorated function as the theory (Eq 22) of how many chunks' activations live on a rank at
    most.

    The function is called with p, m and a rank (LOOPED: p, m, v and a rank) and returns a number, or None
    where no formula holds.

    Args:
        name: the schedule's name, as in `@scheduled`.

    Returns:
        A decorator that returns the function unchanged.
    """

    def register(predict: Function) -> Function:
        LIVE[name] = predict
        return predict

    return register


def names(*kinds: Kind) -> tuple[str, ...]:
    """The names of all schedules of some kinds (of all, when none is given), in the order of lists."""
    chosen = [s for s in REGISTRY.values() if not kinds or s.kind in kinds]
    return tuple(s.name for s in sorted(chosen, key=lambda s: s.place))
