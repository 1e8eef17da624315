"""ZB-H2: no bubble in a stage's own time, for twice the memory (Qi et al., 2401.10241, section 2.2, by hand).

    p = 3, m = 5     F F F F F I W I W I W I W I W . .      stage s begins s forwards late and ends as
                     . F F F I F I F I W I W I W W W .      late: a parallelogram, not a trapezoid
                     . . F I F I F I F I F I W W W W W

Warm-up of 2(p-s) - 1 forwards, eager 1F1B's, so that the first I finds every stage at work; stage s lets 2s
weight parts wait.
But: every rank holds up to 2p-1 micro-batches; the makespan still has the p-1 forwards by which the last
stage begins late, and only steps without a barrier between them win those (the paper checks the gradient norm
after the fact).
"""

from __future__ import annotations

from glasscluster.strategies.pipeline.schedules.base import Schedule
from glasscluster.strategies.pipeline.schedules.registry import ONE, live_at_most, scheduled
from glasscluster.strategies.pipeline.schedules.zb_h1 import one_rank


@scheduled("zb-h2", kind=ONE, place=50)
def schedule(p: int, m: int) -> Schedule:
    """p stages, m micro-batches."""
    ranks = []
    for s in range(p):
        work = [(s, i) for i in range(m)]
        ranks.append(one_rank(work, work, warm_up=2 * (p - 1 - s), waiting=2 * s))
    return Schedule("zb-h2", p, m, ranks)


# ---- theory ------------------------------------------------------------------------------------------------


def predict_span_bubble(p: int, m: int, f: float, b: float, w: float) -> float | None:
    """Eq 24 in time, b the whole backward: (p-1)(f+b-3w), with T_B = b-w the paper's (p-1)(T_F+T_B-2T_W).

    hop 0, m >= 2p-1.

    Holds for w <= f and 2w <= f + T_B (found by `zb_h1.search_weight_limit`). The makespan's bubble is
    larger.
    """
    return (p - 1) * (f + b - 3 * w) if p == 1 or (m >= 2 * p - 1 and w <= f and 2 * w <= f + b - w) else None


@live_at_most("zb-h2")
def predict_in_flight(p: int, m: int, stage: int) -> int:
    """Eq 22: min(m, 2p - 1) on every stage."""
    return min(m, 2 * p - 1)
