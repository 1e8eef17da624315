"""1F1B: as soon as a stage can, one forward, one backward (PipeDream-Flush; Narayanan et al., 2104.04473, section 2.2).

    p = 3, m = 4     0 1 2 . . 0 0 3 1 1 . 2 2 . 3 3      warm-up min(m, p-s) forwards,
                     . 0 1 . 0 0 2 1 1 3 2 2 . 3 3        steady state B then F,
                     . . 0 0 0 1 1 1 2 2 2 3 3 3          cool-down the remaining B

The bubble is GPipe's; a stage holds min(m, p-s) micro-batches instead of m (F22).
"""

from __future__ import annotations

from glasscluster.strategies.schedules.base import Action, Schedule


def schedule(p: int, m: int) -> Schedule:
    """p stages, m micro-batches."""
    ranks = []
    for s in range(p):
        warm_up = predict_in_flight(p, m, s)
        actions = [Action(s, "F", i) for i in range(warm_up)]
        for i in range(m - warm_up):  # steady state
            actions += [Action(s, "B", i), Action(s, "F", warm_up + i)]
        actions += [Action(s, "B", i) for i in range(m - warm_up, m)]  # cool-down
        ranks.append(actions)
    return Schedule("1f1b", p, m, ranks)


def predict_bubble(p: int, m: int) -> tuple[float, float]:
    """F20: the same as GPipe's."""
    return (p - 1) / (m + p - 1), (p - 1) / m


def predict_in_flight(p: int, m: int, stage: int) -> int:
    """F22: min(m, p - s)."""
    return min(m, p - stage)
