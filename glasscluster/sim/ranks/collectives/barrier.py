"""Dissemination barrier: after round k every rank knows that 2^(k+1) ranks, itself included, have arrived.

Follows Hensgen, Finkel and Manber, "Two algorithms for barrier synchronization" (1988). Symbols: N ranks, r
this rank.

    N = 5: in round k rank r signals r + 2^k and waits for r - 2^k (mod N)

        round 0   0 ─► 1 ─► 2 ─► 3 ─► 4 ─► 0          2 knows of 1, 2
        round 1   0 ─► 2 ─► 4 ─► 1 ─► 3 ─► 0          2 knows of 4, 0, 1, 2
        round 2   0 ─► 4 ─► 3 ─► 2 ─► 1 ─► 0          2 knows of all

It takes ⌈log2 N⌉ rounds for any N, which is the minimum. But: N·⌈log2 N⌉ messages, where a tree up and down
sends 2(N-1).
"""

from __future__ import annotations

import torch

from glasscluster.base.link import Link
from glasscluster.sim.ranks.collectives.alike import round_a_ring_of_any_size
from glasscluster.sim.ranks.collectives.registry import collective, theory_of
from glasscluster.sim.ranks.collectives.theory import Theory, one_after_another
from glasscluster.sim.ranks.work import CollectiveWork, Steps


@collective("barrier", "dissemination", alike=round_a_ring_of_any_size)
def barrier(work: CollectiveWork, x: torch.Tensor) -> Steps:
    """Finish when every rank has begun. `x` is the signal; its content does not matter."""
    heard = work.stage(x.numel(), x)

    def steps() -> Steps:
        distance = 1
        while distance < work.size:
            yield work.exchange(
                x, (work.rank + distance) % work.size, heard, (work.rank - distance) % work.size
            )
            distance *= 2

    return steps()


# ---- theory ------------------------------------------------------------------------------------------------
@theory_of("dissemination")
def predict(operation: str, size: int, nbytes: int = 1, link: Link | None = None) -> Theory:
    """Any N, signals of `nbytes` (the communicator's are one byte): N·⌈log2 N⌉ messages, ⌈log2 N⌉ · (α +
    nbytes/β).
    """
    del operation  # a barrier is the only one
    rounds = (size - 1).bit_length()
    return Theory(size * rounds * nbytes, rounds, one_after_another(link, rounds, nbytes))
