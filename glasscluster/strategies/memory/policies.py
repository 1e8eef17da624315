"""From a plan's words to the policy of what a layer saves for backward."""

from __future__ import annotations

from collections.abc import Sequence

from glasscluster.model.parallel import KeepAll
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.strategies.memory.per_operation import PerOperation
from glasscluster.strategies.memory.recompute import KINDS, Selective


def make_keep(gpu: GPU, kind: str, every: int, parts: Sequence[str]) -> KeepAll:
    """The policy of a plan.

    Args:
        gpu: the rank.
        kind: "none", "selective", "op" or "full".
        every: layers of a segment of full recomputation.
        parts: of a layer, for selective recomputation.
    """
    if kind == "op":
        return PerOperation(gpu)
    return Selective(gpu, every, parts) if kind == "selective" else KINDS[kind](gpu, every)
