"""DualPipe-V: a forward and a backward of different micro-batches in one slot, so that the communication of
one hides behind the computation of the other (DeepSeek-V3 2412.19437, section 3.2.1; the V:
deepseek-ai/DualPipe, "cut in half").

    stage     0 1 2 3 | 4 5 6 7        rank r: F, B, I, W on stage r (down);  f, b, i, w on stage 2p-1-r (up)
    rank      0 1 2 3 | 3 2 1 0        [Fb] one slot

    fill      F x 2(p-1-r) · (F f) x (r+1) · (i w f) x (p-1-r)
    steady    ([Fb] [fB]) x (m-2p+r+1) · (b [fB]) x (p-1-r)
    drain     (b B) x (r+1), the second half of these 2(r+1) in two parts · (W I) x (p-1-r) · W x (r+1)

But: fewer than 2p micro-batches are a step of 2p cut short (DeepSeek and PyTorch refuse it). What a slot
gains depends on the kernels, so here it costs f + b unless another cost is given.
"""

from __future__ import annotations

from itertools import pairwise

from glasscluster.strategies.pipeline.schedules.base import Schedule, folded
from glasscluster.strategies.pipeline.schedules.registry import FOLDED, live_at_most, scheduled
from glasscluster.strategies.pipeline.schedules.tools import Writer, cut


@scheduled("dualpipe-v", kind=FOLDED, place=100)
def schedule(p: int, m: int) -> Schedule:
    """p ranks, m micro-batches, two chunks a rank."""
    written = [one_rank(p, max(m, 2 * p), r) for r in range(p)]
    pairs = {f: b for w in written for f, b in pairwise(w.actions) if f in w.together}
    together = frozenset(f for f, b in pairs.items() if f.micro_batch < m and b.micro_batch < m)
    return Schedule("dualpipe-v", 2 * p, m, [cut(w.actions, m) for w in written], folded(p), together)


def one_rank(p: int, m: int, rank: int) -> Writer:
    """What a rank does, for at least 2p micro-batches."""
    down, up = rank, 2 * p - 1 - rank
    after = p - 1 - rank  # ranks below this one in the V
    write = Writer()
    for _ in range(2 * after):  # fill
        write.do(down, "F")
    for _ in range(rank + 1):
        write.do(down, "F")
        write.do(up, "F")
    for _ in range(after):
        for kind in "IWF":
            write.do(up, kind)
    for turn in range(m - 2 * p + rank + 1):  # steady state
        if (
            turn == 0 and after == 0
        ):  # the bottom of the V waits for nobody: its first backward needs no partner
            write.do(down, "F")
            write.do(up, "B")
        else:
            write.overlap(down, up)
        write.overlap(up, down)
    for _ in range(after):
        write.do(up, "B")
        write.overlap(up, down)
    for turn in range(2 * (rank + 1)):  # drain
        write.do(down if turn % 2 else up, "B" if turn <= rank else "I")
    for _ in range(after):
        write.do(write.waiting[0].stage, "W")
        write.do(down, "I")
    while write.waiting:
        write.do(write.waiting[0].stage, "W")
    return write


# ---- theory ------------------------------------------------------------------------------------------------


def predict_bubble(
    p: int, m: int, f: float, b: float, w: float, together: float | None = None
) -> float | None:
    """Eq 25 in time, costs of a chunk: (p-1)(F&B + B - 3W), DeepSeek's (PP/2-1)(...) with PP = 2p.

    hop 0, m >= 2p, b-w = f, w <= f.

    It is the makespan minus the work of the last rank, the one with most slots of two; where such a slot
    gains nothing (`together` = f+b) all ranks work as long, and it is the span bubble too. The limits were
    found by search.
    """
    if p > 1 and (m < 2 * p or abs(b - w - f) > 1e-12 * f or w > f):
        return None
    return (p - 1) * ((f + b if together is None else together) + b - 3 * w)


@live_at_most("dualpipe-v")
def predict_in_flight(p: int, m: int, rank: int) -> int | None:
    """Eq 22: chunks, 2p, and one more on the last rank. Only for m >= 2p."""
    return None if m < 2 * p else 2 * p + (rank == p - 1)
