"""Interleaved zero bubble: v chunks a rank and the backward in two parts (PyTorch's
ScheduleInterleavedZeroBubble; ZB-H1 of Qi et al., 2401.10241, on the chunks of Narayanan et al., 2104.04473).

    p = 2, v = 2, m = 2     F F f f . i w i w I W I W      F, I, W first chunk; f, i, w second
                            . F F f i f i w I w I W W      rank r lets r weight parts wait

The interleaved order of chunks with ZB-H1's rule: rank r warms up with (v-1)p + p-1-r forwards, then F, I,
and W where more than r wait. With v = 1 it is ZB-H1.
But: as in the interleaved schedule, p should divide m.
"""

from __future__ import annotations

from glasscluster.strategies.pipeline.schedules.base import Schedule, looped
from glasscluster.strategies.pipeline.schedules.interleaved import order, rounds
from glasscluster.strategies.pipeline.schedules.registry import LOOPED, live_at_most, scheduled
from glasscluster.strategies.pipeline.schedules.tools import cut
from glasscluster.strategies.pipeline.schedules.zb_h1 import one_rank


@scheduled("interleaved-zb", kind=LOOPED, place=80)
def schedule(p: int, m: int, v: int) -> Schedule:
    """p ranks, m micro-batches, v chunks a rank."""
    size, padded = rounds(p, m)
    ranks = []
    for r in range(p):
        forwards, backwards = order(p, padded, v, r, size)
        ranks.append(cut(one_rank(forwards, backwards, warm_up=(v - 1) * size + p - 1 - r, waiting=r), m))
    return Schedule("interleaved-zb", p * v, m, ranks, looped(p, v))


# ---- theory ------------------------------------------------------------------------------------------------


def predict_span_bubble(p: int, m: int, f: float, b: float, w: float) -> float | None:
    """ZB-H1's with the costs of a chunk, (p-1)(f+b-2w): a v-th of it. hop 0, p divides m, w <= f."""
    return (p - 1) * (f + b - 2 * w) if p == 1 or (m % p == 0 and w <= f) else None


@live_at_most("interleaved-zb")
def predict_in_flight(p: int, m: int, v: int, rank: int) -> int | None:
    """Eq 22: chunks, pv on every rank (1F1B's first stage). Only where p divides m."""
    return None if m % p else p * v
