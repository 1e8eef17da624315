"""1F1B: as soon as a stage can, one forward, one backward (PipeDream-Flush; Narayanan et al., 2104.04473,
section 2.2).

    p = 3, m = 4     0 1 2 . . . . 0 0 3 1 1 . 2 2 . 3 3      warm-up min(m, p-s) forwards,
                     . 0 1 . . 0 0 2 1 1 3 2 2 . 3 3 . .      steady state B then F,
                     . . 0 0 0 1 1 1 2 2 2 3 3 3 . . . .      cool-down the remaining B

The bubble is GPipe's; a stage holds min(m, p-s) micro-batches instead of m (Eq 22).
But: with hops that take time each round of p micro-batches pays for a trip to the next stage and back (Eq
23); eager 1F1B does not.
"""

from __future__ import annotations

from glasscluster.strategies.pipeline.schedules.base import Action, Schedule
from glasscluster.strategies.pipeline.schedules.registry import ONE, live_at_most, scheduled


@scheduled("1f1b", kind=ONE, place=20)
def schedule(p: int, m: int) -> Schedule:
    """p stages, m micro-batches."""
    return Schedule("1f1b", p, m, [one_rank(s, m, predict_in_flight(p, m, s)) for s in range(p)])


def one_rank(stage: int, m: int, warm_up: int) -> list[Action]:
    """`warm_up` forwards, then one backward and one forward at a time, then the backwards that are left."""
    actions = [Action(stage, "F", i) for i in range(warm_up)]
    for i in range(m - warm_up):  # steady state
        actions += [Action(stage, "B", i), Action(stage, "F", warm_up + i)]
    return actions + [Action(stage, "B", i) for i in range(m - warm_up, m)]  # cool-down


# ---- theory ------------------------------------------------------------------------------------------------


def predict_bubble(p: int, m: int) -> tuple[float, float]:
    """Eq 20: the same as GPipe's."""
    return (p - 1) / (m + p - 1), (p - 1) / m


@live_at_most("1f1b")
def predict_in_flight(p: int, m: int, stage: int) -> int:
    """Eq 22: min(m, p - s)."""
    return min(m, p - stage)


def predict_makespan(p: int, m: int, f: float, b: float, hop: float) -> float | None:
    """Eq 23, equal stages: (m+p-1)(f+b) + 2 hop ((p-1)m/p + p-2).

    Only where p divides m; one stage has no hop.
    """
    if m % p:
        return None
    round_trips = (p - 1) * m // p + p - 2 if p > 1 else 0
    return (m + p - 1) * (f + b) + 2 * hop * round_trips
