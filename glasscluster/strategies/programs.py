"""Which ranks of a plan record the same: what of a rank's place on the mesh decides what it does.

    pp            its stages, and when it does what
    cp            on a ring of context parallelism: which blocks of the mask are empty
    tp            rank 0 adds what all have whole to the gradient norm; the last ones have rows that fill up
                  the vocabulary
    dp, cp        with ZeRO, or experts over ranks: which pieces of gradients its shard adds to the norm

Nothing else of a place changes a row: slices of equal lengths are cut at other places of a buffer, messages
go to other ranks. Ranks are divided rather too finely than too coarsely. Whoever folds by this compares at
run time more ranks than one of each program (folding.py), and the tests compare all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from glasscluster.model.config import ModelConfig
from glasscluster.model.parallel import Shard
from glasscluster.strategies.layout.units import Unit, units_of
from glasscluster.strategies.plan import Plan


def programs(plan: Plan, model: ModelConfig) -> np.ndarray:
    """Number the programs that a plan's ranks run.

    Args:
        plan: the plan.
        model: the model's shape.

    Returns:
        Of every rank its program, numbered by their lowest ranks, [gpus].
    """
    pp, dp, cp, tp = (i.reshape(-1) for i in np.indices(tuple(plan.mesh.values())))
    columns = [pp]
    if plan.cp > plan.heads_cut:
        columns.append(cp // plan.heads_cut)
    columns += [(tp == 0).astype(np.int64), _real_columns(plan, model, pp, tp)]
    columns += _norm_pieces(plan, model, pp, dp * plan.cp + cp, tp)
    _, first, number = np.unique(np.stack(columns), axis=1, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number.reshape(-1)]


def _real_columns(plan: Plan, model: ModelConfig, pp: np.ndarray, tp: np.ndarray) -> np.ndarray:
    """How many of a tensor rank's columns of the vocabulary are tokens; 0 on stages without logits."""
    each = -(-model.vocab // plan.tp)
    real = np.clip(model.vocab - tp * each, 0, each)
    return np.where(pp == plan.pipeline.placement[-1], real, 0)


# ---- the gradient norm -------------------------------------------------------------------------------------
def _norm_pieces(
    plan: Plan, model: ModelConfig, pp: np.ndarray, data: np.ndarray, tp: np.ndarray
) -> list[np.ndarray]:
    """Columns that tell ranks apart which add other pieces of gradients to the norm."""
    first = (tp == 0).astype(np.int64)
    columns = []
    if plan.ep > 1:  # some ranks of those that hold the same add it (`Place.counts`)
        columns += [data == 0, data // plan.ep == 0, data // plan.shards == 0]
    if not plan.zero:
        return [column.astype(np.int64) for column in columns]
    of_shard, of_experts = np.zeros_like(data), np.zeros_like(data)
    for stage_rank in range(plan.pp):
        units = [u for s in plan.pipeline.stages_of(stage_rank) for u in units_of(plan, model, s)]
        here = pp == stage_rank
        for whole in (False, True):
            chosen = here & (first == whole)
            dense, experts = ([u for u in units if u.experts == kind] for kind in (False, True))
            counts = _counted(whole)
            of_shard[chosen] = pieces(dense, plan.shards, counts)[data[chosen] % plan.shards]
            if experts:
                of_experts[chosen] = pieces(experts, plan.expert_replicas, counts)[data[chosen] // plan.ep]
    return [*(column.astype(np.int64) for column in columns), of_shard, of_experts]


def _counted(whole: bool) -> Callable[[str, Shard | None], bool]:
    """Whether a tensor rank may add a parameter to the norm; `whole`: it is the one that adds what all have."""
    return lambda _name, shard: shard is not None or whole


def pieces(units: Iterable[Unit], shards: int, counts: Callable[[str, Shard | None], bool]) -> np.ndarray:
    """Number the shards by the lengths of the pieces that they add to the norm, unit by unit.

    Args:
        units: of one rank, in its order.
        shards: N, that each is cut into.
        counts: whether a parameter counts, by name and cut.

    Returns:
        Shards with the same lengths have one number, [shards].
    """
    number = np.zeros(shards, dtype=np.int64)
    for unit in units:
        joined: list[list[int]] = []
        for member in unit.members:
            if not counts(member.name, member.shard):
                continue
            if joined and joined[-1][1] == member.start:
                joined[-1][1] = member.stop
            else:
                joined.append([member.start, member.stop])
        each = unit.padded // shards
        begin = np.arange(shards)[:, None] * each
        spans = np.array(joined, dtype=np.int64).reshape(-1, 2)
        lengths = np.minimum(spans[:, 1], begin + each) - np.maximum(spans[:, 0], begin)
        lengths = np.maximum(lengths, 0)
        order = np.argsort(lengths == 0, axis=1, kind="stable")  # pieces in their order, and zeros behind
        lengths = np.take_along_axis(lengths, order, axis=1)
        _, number = np.unique(np.column_stack([number, lengths]), axis=0, return_inverse=True)
        number = number.reshape(-1)
    return number
