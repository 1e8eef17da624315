"""Interleaved 1F1B: v chunks of the model a rank, so that a pipeline of p ranks fills in the time of a chunk,
not of a stage (Narayanan et al., 2104.04473, section 2.2.2; the order of Megatron-LM and PyTorch).

    p = 2, v = 2, m = 4     0 1 A B 2 . a a 3 b b C 0 0 D 1 1 . c c . d d 2 2 3 3
                            . 0 1 A a a B b b 2 0 0 3 1 1 C c c D d d 2 2 3 3 . .

    numbers: a rank's first chunk; letters: its second

Micro-batches go in rounds of p: a round goes forward through a rank's first chunk, then its second, ...;
backward through the last chunk first. Rank r warms up with (v-1)p + 2(p-1-r) forwards, then one forward, one
backward. Bubble (p-1)/(vm) over ideal (Eq 21).
But: v times the messages, and more micro-batches live. p should divide m. If it does not, the rounds are
longer than p where that comes out whole (PyTorch), and otherwise the last round is a whole one with
micro-batches left out.
"""

from __future__ import annotations

from glasscluster.strategies.pipeline.schedules.base import Action, Schedule, looped
from glasscluster.strategies.pipeline.schedules.registry import LOOPED, live_at_most, scheduled
from glasscluster.strategies.pipeline.schedules.tools import cut

Work = list[tuple[int, int]]  # stage, micro-batch


@scheduled("interleaved", kind=LOOPED, place=60)
def schedule(p: int, m: int, v: int) -> Schedule:
    """p ranks, m micro-batches, v chunks a rank."""
    size, padded = rounds(p, m)
    ranks = []
    for r in range(p):
        forwards, backwards = order(p, padded, v, r, size)
        warm_up = min(len(forwards), (v - 1) * size + 2 * (p - 1 - r))
        actions = [Action(s, "F", i) for s, i in forwards[:warm_up]]
        for (fs, fi), (bs, bi) in zip(forwards[warm_up:], backwards, strict=False):  # steady state
            actions += [Action(fs, "F", fi), Action(bs, "B", bi)]
        actions += [Action(s, "B", i) for s, i in backwards[len(forwards) - warm_up :]]  # cool-down
        ranks.append(cut(actions, m))
    return Schedule("interleaved", p * v, m, ranks, looped(p, v))


def rounds(p: int, m: int) -> tuple[int, int]:
    """Micro-batches in a round, and in all rounds together (m, or the next multiple of p)."""
    count = max(1, m // p)
    return (m // count, m) if m % count == 0 else (p, (count + 1) * p)


def order(p: int, m: int, v: int, rank: int, size: int) -> tuple[Work, Work]:
    """A rank's forwards and backwards, each in its own order: round by round, chunk by chunk, micro-batch by
    micro-batch.
    """
    starts = range(0, m, size)
    forwards = [(c * p + rank, i) for start in starts for c in range(v) for i in range(start, start + size)]
    backwards = [
        (c * p + rank, i) for start in starts for c in reversed(range(v)) for i in range(start, start + size)
    ]
    return forwards, backwards


# ---- theory ------------------------------------------------------------------------------------------------


def predict_bubble(p: int, m: int, v: int) -> tuple[float, float] | None:
    """Eq 21, equal chunks, hop 0: share of the makespan (p-1)/(vm+p-1), over ideal (p-1)/(vm).

    Only where p divides m.
    """
    return None if m % p else ((p - 1) / (v * m + p - 1), (p - 1) / (v * m))


def predict_messages(p: int, m: int, v: int) -> int:
    """Eq 21: 2m(pv - 1), against 2m(p-1) without chunks."""
    return 2 * m * (p * v - 1) if p > 1 else 0


@live_at_most("interleaved")
def predict_in_flight(p: int, m: int, v: int, rank: int) -> int | None:
    """Eq 22: chunks, min(mv, 2(p-r-1) + (v-1)p + 1). Only where p divides m."""
    return None if m % p else min(m * v, 2 * (p - rank - 1) + (v - 1) * p + 1)
