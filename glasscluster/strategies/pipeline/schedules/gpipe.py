"""GPipe: all forwards, then all backwards (Huang et al., 1811.06965, section 2.3).

    p = 3, m = 4     0 1 2 3 . . . . . . 0 0 1 1 2 2 3 3
                     . 0 1 2 3 . . . 0 0 1 1 2 2 3 3 . .
                     . . 0 1 2 3 0 0 1 1 2 2 3 3 . . . .

Bubble (p-1)/(m+p-1) of the makespan; every stage holds m micro-batches.
But: backwards run in the order 0..m-1, as PyTorch does, not reversed as in the paper's figure.
"""

from __future__ import annotations

from collections.abc import Sequence

from glasscluster.strategies.pipeline.schedules.base import Action, Schedule
from glasscluster.strategies.pipeline.schedules.registry import ONE, live_at_most, scheduled


@scheduled("gpipe", kind=ONE, place=10)
def schedule(p: int, m: int) -> Schedule:
    """p stages, m micro-batches."""
    ranks = [[Action(s, k, i) for k in "FB" for i in range(m)] for s in range(p)]
    return Schedule("gpipe", p, m, ranks)


# ---- theory ------------------------------------------------------------------------------------------------


def predict_makespan(f: Sequence[float], b: Sequence[float], m: int, hop: float = 0.0) -> float:
    """Eq 20: sum(f_s + b_s) + (m-1)(max f + max b) + 2(p-1) hop, for any stages."""
    return sum(f) + sum(b) + (m - 1) * (max(f) + max(b)) + 2 * (len(f) - 1) * hop


def predict_bubble(p: int, m: int) -> tuple[float, float]:
    """Eq 20, equal stages, hop 0: share of the makespan (p-1)/(m+p-1), over ideal (p-1)/m."""
    return (p - 1) / (m + p - 1), (p - 1) / m


@live_at_most("gpipe")
def predict_in_flight(p: int, m: int, stage: int) -> int:
    """Eq 22: m."""
    return m
