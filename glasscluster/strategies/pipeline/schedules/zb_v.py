"""ZB-V: two chunks a rank, folded like a V, and the backward in two parts (Qi et al., 2405.15362, section 5;
2401.10241).

    stage     0 1 2 3 | 4 5 6 7        p = 2, m = 3     F F F f i w f i w I W f i w I W I W .
    rank      0 1 2 3 | 3 2 1 0                         . F f F f i w F I W f i w I i I W w W

    F, I, W: on stage r, on the way down; f, i, w: on stage 2p-1-r, on the way up

Rank 0 has the first and the last stage, so a micro-batch's backward begins where its forward began, and every
rank holds the same number of chunks: 2p, as much as 1F1B's p stages at the worst. Zero bubble where f, I and
W cost the same.
But: two hops, not one, per micro-batch between neighbours. A step of fewer than 2p-1 micro-batches is a
longer one cut short.
"""

from __future__ import annotations

from glasscluster.strategies.pipeline.schedules.base import Action, Schedule, folded
from glasscluster.strategies.pipeline.schedules.registry import FOLDED, live_at_most, scheduled
from glasscluster.strategies.pipeline.schedules.tools import Writer, cut


@scheduled("zb-v", kind=FOLDED, place=90)
def schedule(p: int, m: int) -> Schedule:
    """p ranks, m micro-batches, two chunks a rank."""
    ranks = [cut(one_rank(p, max(m, 2 * p - 1), r), m) for r in range(p)]
    return Schedule("zb-v", 2 * p, m, ranks, folded(p))


def one_rank(p: int, m: int, rank: int) -> list[Action]:
    """What a rank does, for at least 2p-1 micro-batches."""
    down, up = rank, 2 * p - 1 - rank
    rank_list = Writer()
    forwards, backwards = rank_list.forwards, rank_list.backwards

    def run(stage: int, kinds: str) -> None:
        for kind in kinds:
            if kind != "F" or forwards[stage] < m:
                rank_list.do(stage, kind)

    for _ in range(2 * (p - rank) - 1):  # warm-up: on the way down,
        run(down, "F")
    for _ in range(rank):  # then both ways,
        run(up, "F")
        run(down, "F")
    for _ in range(p - rank):  # then the first backwards, of the way up
        run(up, "FIW")
    while forwards[up] < m:  # steady state
        run(down, "FIW")
        run(up, "FIW")
    while backwards[up] < m:  # cool-down: input gradients first
        run(down, "I")
        run(up, "I")
    while backwards[down] < m:
        run(down, "IW")
    for stage in sorted((a.stage for a in rank_list.waiting), reverse=True):  # what is left: up, then down
        run(stage, "W")
    return rank_list.actions


# ---- theory ------------------------------------------------------------------------------------------------


def predict_span_bubble(p: int, m: int, f: float, b: float, w: float) -> float | None:
    """2(p-1)(T_B - w) in time, costs of a chunk, T_B = b-w: 0 where f, T_B and w are the same (the paper's
    claim). hop 0, m >= 2p-1.

    Off equal costs this is found by search: it holds for f <= T_B and 2w <= f + T_B.
    """
    t_b = b - w
    return 2 * (p - 1) * (t_b - w) if p == 1 or (m >= 2 * p - 1 and f <= t_b and 2 * w <= f + t_b) else None


@live_at_most("zb-v")
def predict_in_flight(p: int, m: int, rank: int) -> int:
    """Eq 22: chunks, 2p on every rank for m >= 2p-1; a shorter step fills rank r with m + min(m, r+1)."""
    return min(2 * p, m + min(m, rank + 1))
