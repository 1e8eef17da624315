"""Eager 1F1B: 1F1B that runs ahead, so that a hop there and back is hidden (Zhuang et al., 2211.05322,
section 4).

    p = 3, m = 4     0 1 2 3 . . . 0 0 . 1 1 . 2 2 . 3 3      warm-up min(m, 2(p-s) - 1) forwards,
                     . 0 1 2 . 0 0 3 1 1 . 2 2 . 3 3 . .      not p-s; then B then F as in 1F1B
                     . . 0 0 0 1 1 1 2 2 2 3 3 3 . . . .

Two forwards, not one, are under way between neighbours, so a gradient may be late by some time before anybody
waits for it.
But: stage s holds 2(p-s)-1 micro-batches instead of p-s; and free hops leave nothing to hide.
"""

from __future__ import annotations

from glasscluster.strategies.pipeline.schedules import gpipe
from glasscluster.strategies.pipeline.schedules.base import Schedule
from glasscluster.strategies.pipeline.schedules.one_f_one_b import one_rank
from glasscluster.strategies.pipeline.schedules.registry import ONE, live_at_most, scheduled
from glasscluster.strategies.pipeline.schedules.tools import largest


@scheduled("eager-1f1b", kind=ONE, place=30)
def schedule(p: int, m: int) -> Schedule:
    """p stages, m micro-batches."""
    return Schedule("eager-1f1b", p, m, [one_rank(s, m, predict_in_flight(p, m, s)) for s in range(p)])


# ---- theory ------------------------------------------------------------------------------------------------


def predict_bubble(p: int, m: int) -> tuple[float, float]:
    """Eq 20: the same as GPipe's."""
    return gpipe.predict_bubble(p, m)


@live_at_most("eager-1f1b")
def predict_in_flight(p: int, m: int, stage: int) -> int:
    """Eq 22, Eq 23: min(m, 2(p-s) - 1)."""
    return min(m, 2 * (p - stage) - 1)


def predict_hop_limit(p: int, m: int, f: float, b: float) -> float:
    """Up to which hop all of it is hidden: (f+b)/2, half the work of one of the two that are under way; any
    hop for 3 or fewer micro-batches, which warm-up holds on every stage but the last. Found by
    `search_hop_limit`.
    """
    return (f + b) / 2 if p > 1 and m > 3 else float("inf")


def predict_makespan(p: int, m: int, f: float, b: float, hop: float) -> float | None:
    """Eq 23, equal stages: GPipe's (m+p-1)(f+b) + 2(p-1) hop, as long as the hop is hidden; None beyond."""
    if hop > predict_hop_limit(p, m, f, b):
        return None
    return gpipe.predict_makespan([f] * p, [b] * p, m, hop)


def search_hop_limit(p: int, m: int, f: float, b: float) -> float:
    """The same limit, found by simulating the schedule with ever closer hops; inf if even a hop of 100 (f+b)
    is hidden.
    """
    plan = schedule(p, m)

    def overlapped(hop: float) -> bool:
        wanted = gpipe.predict_makespan([f] * p, [b] * p, m, hop)
        return plan.validate(f, b, hop, 0.0).makespan <= wanted * (1 + 1e-12)

    return largest(overlapped, 100 * (f + b))
