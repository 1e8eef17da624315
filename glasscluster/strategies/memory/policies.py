"""From a plan's words to the policy of what a layer saves for backward."""

from __future__ import annotations

from collections.abc import Sequence

from glasscluster.model.parallel import KeepAll
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.strategies.memory.per_operation import PerOperation
from glasscluster.strategies.memory.recompute import KINDS, EachNth, Selective


def make_keep(gpu: GPU, kind: str, every: int, parts: Sequence[str], nth: int = 1) -> KeepAll:
    """The policy of a plan.

    Args:
        gpu: the rank.
        kind: "none", "selective", "op" or "full".
        every: layers of a segment of full recomputation.
        parts: of a layer, for selective recomputation.
        nth: full recomputation of each nth layer of the model alone.
    """
    if kind == "op":
        return PerOperation(gpu)
    if kind == "selective":
        return Selective(gpu, every, parts)
    return EachNth(gpu, nth) if kind == "full" and nth > 1 else KINDS[kind](gpu, every)
