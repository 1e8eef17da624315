"""Breadth-first: v chunks a rank, and all micro-batches through one chunk before the next (Lamy-Poirier,
2211.05953, section 4).

    p = 2, v = 2, m = 3     0 1 2 A B C . . . c c b b a a 2 2 1 1 0 0
                            . 0 1 2 A B C c c b b a a 2 2 1 1 0 0 . .

    numbers: a rank's first chunk; letters: its second

GPipe in a loop: the bubble is the interleaved schedule's, (p-1)/(vm) over ideal, for any m of at least p. A
chunk is used for all micro-batches in a row, so sharded weights are gathered once a pass and its gradients
are reduced while the next chunk runs.
But: all m micro-batches are live on every chunk. Backwards go from the last micro-batch to the first, as
PyTorch writes them.
"""

from __future__ import annotations

from glasscluster.strategies.pipeline.schedules.base import Action, Schedule, looped
from glasscluster.strategies.pipeline.schedules.registry import LOOPED, live_at_most, scheduled


@scheduled("looped-bfs", kind=LOOPED, place=70)
def schedule(p: int, m: int, v: int) -> Schedule:
    """p ranks, m micro-batches, v chunks a rank."""
    ranks = []
    for r in range(p):
        stages = range(r, p * v, p)
        forwards = [Action(s, "F", i) for s in stages for i in range(m)]
        ranks.append(forwards + [Action(a.stage, "B", a.micro_batch) for a in reversed(forwards)])
    return Schedule("looped-bfs", p * v, m, ranks, looped(p, v))


# ---- theory ------------------------------------------------------------------------------------------------


def predict_bubble(p: int, m: int, v: int) -> tuple[float, float] | None:
    """Eq 21 for m >= p: share of the makespan (p-1)/(vm+p-1), over ideal (p-1)/(vm)."""
    return None if m < p and v > 1 else ((p - 1) / (v * m + p - 1), (p - 1) / (v * m))


@live_at_most("looped-bfs")
def predict_in_flight(p: int, m: int, v: int, rank: int) -> int:
    """Eq 22: chunks, mv."""
    return m * v
