"""ZB-H1: the backward in two parts; the weight part waits for a hole (Qi et al., 2401.10241, section 2.2, by
hand).

    p = 3, m = 4     F F F . . I W F I W I W I W      F forward, I gradient of the input, W of the weights
                     . F F . I F I W F I W I W W      stage s lets s weight parts wait
                     . . F I F I F I W F I W W W

Only I is on the way back to the first stage, so the next stage may begin its own sooner. Forwards and I are
ordered as in 1F1B. W follows as soon as more than s of them wait on rank s: every rank holds p micro-batches,
1F1B's largest. The rest is done at the end.
But: by hand, so the order does not depend on the costs (the paper's ZB-1p searches with profiled ones and
finds no better).
"""

from __future__ import annotations

from collections import deque

from glasscluster.strategies.pipeline.schedules.base import Action, Schedule
from glasscluster.strategies.pipeline.schedules.registry import ONE, live_at_most, scheduled
from glasscluster.strategies.pipeline.schedules.tools import largest

Work = list[tuple[int, int]]  # stage, micro-batch


@scheduled("zb-h1", kind=ONE, place=40)
def schedule(p: int, m: int) -> Schedule:
    """p stages, m micro-batches."""
    ranks = []
    for s in range(p):
        work = [(s, i) for i in range(m)]
        ranks.append(one_rank(work, work, warm_up=p - 1 - s, waiting=s))
    return Schedule("zb-h1", p, m, ranks)


def one_rank(forwards: Work, backwards: Work, warm_up: int, waiting: int) -> list[Action]:
    """`warm_up` forwards; then F, I, and W of the oldest where more than `waiting` are to do; what is left at
    the end.
    """
    actions = [Action(s, "F", i) for s, i in forwards[:warm_up]]
    ahead, to_do = deque(forwards[warm_up:]), deque[tuple[int, int]]()
    for stage, i in backwards:
        if ahead:
            actions.append(Action(ahead[0][0], "F", ahead.popleft()[1]))
        actions.append(Action(stage, "I", i))
        to_do.append((stage, i))
        if len(to_do) > waiting:
            actions.append(Action(to_do[0][0], "W", to_do.popleft()[1]))
    return actions + [Action(s, "W", i) for s, i in to_do]


# ---- theory ------------------------------------------------------------------------------------------------


def predict_span_bubble(p: int, m: int, f: float, b: float, w: float) -> float | None:
    """Eq 24, Eq 25 in time, b the whole backward: (p-1)(f+b-2w), with T_B = b-w the paper's
    (p-1)(T_F+T_B-T_W). hop 0, m >= p, w <= f.

    The limit was found by `search_weight_limit`: any T_B will do. The makespan's bubble is the same if also w
    <= T_B.
    """
    return (p - 1) * (f + b - 2 * w) if p == 1 or (m >= p and w <= f) else None


@live_at_most("zb-h1")
def predict_in_flight(p: int, m: int, stage: int) -> int:
    """Eq 22: min(m, p) on every stage."""
    return min(m, p)


def search_weight_limit(plan: Schedule, f: float, t_b: float, parts: int) -> float:
    """The largest w for which the span bubble is (p-1)(f + T_B - parts·w), found by simulating
    the schedule.
    """

    def holds(w: float) -> bool:
        bubble = plan.validate(f, t_b + w, 0.0, w).stage_span_bubble
        return abs(bubble - (len(plan.ranks) - 1) * (f + t_b - parts * w)) <= 1e-9 * (f + t_b) * len(
            plan.ranks
        )

    return largest(holds, 10 * (f + t_b))
