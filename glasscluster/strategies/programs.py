"""Which ranks of a plan record the same: what of a rank's place on the mesh decides what it does.

    pp            its stages, and when it does what
    cp            on a ring of context parallelism: which blocks of the mask are empty
    tp            rank 0 adds what all have whole to the gradient norm; the last ones have rows that fill up
                  the vocabulary
    dp, cp        with ZeRO, or experts over ranks: of which parameters its shard has pieces, which are
                  added to the norm, or summed over tensor ranks

Nothing else of a place changes a row: slices of equal lengths are cut at other places of a buffer, messages
go to other ranks. Ranks are divided rather too finely than too coarsely. Whoever folds by this compares at
run time more ranks than one of each program (folding.py), and the tests compare all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from glasscluster.model.config import ModelConfig
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
    columns += _pieces(plan, model, pp, dp * plan.cp + cp, tp)
    _, first, number = np.unique(np.stack(columns), axis=1, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number.reshape(-1)]


def _real_columns(plan: Plan, model: ModelConfig, pp: np.ndarray, tp: np.ndarray) -> np.ndarray:
    """How many of a tensor rank's columns of the vocabulary are tokens; 0 on stages without logits."""
    each = -(-model.vocab // plan.tp)
    real = np.clip(model.vocab - tp * each, 0, each)
    return np.where(pp == plan.pipeline.placement[-1], real, 0)


# ---- pieces of gradients -----------------------------------------------------------------------------------
def _pieces(
    plan: Plan, model: ModelConfig, pp: np.ndarray, data: np.ndarray, tp: np.ndarray
) -> list[np.ndarray]:
    """Columns that tell ranks apart which work on other pieces of gradients."""
    first = (tp == 0).astype(np.int64)
    columns = []
    if plan.ep > 1:  # some ranks of those that hold the same add it (`Place.counts`)
        columns += [data == 0, data // plan.ep == 0, data // plan.shards == 0]
    if not plan.zero:
        return [column.astype(np.int64) for column in columns]
    of_shard, of_experts = np.zeros_like(data), np.zeros_like(data)
    for stage_rank in range(plan.pp):
        units = [u for s in plan.pipeline.stages_of(stage_rank) for u in units_of(plan, model, s)]
        dense, experts = ([u for u in units if u.experts == kind] for kind in (False, True))
        for whole in (False, True):
            chosen = (pp == stage_rank) & (first == whole)
            of_shard[chosen] = shards_alike(dense, plan.shards, whole)[data[chosen] % plan.shards]
            if experts:
                numbers = shards_alike(experts, plan.expert_replicas, whole)
                of_experts[chosen] = numbers[data[chosen] // plan.ep]
    return [*(column.astype(np.int64) for column in columns), of_shard, of_experts]


def shards_alike(units: Sequence[Unit], shards: int, whole: bool) -> np.ndarray:
    """Number the shards of a rank's units by the lengths of the pieces in which they are worked on.

    The gradient norm joins neighbours that count; what tensor ranks have whole is summed member by member.

    Args:
        units: of one rank, in its order.
        shards: N, that each is cut into.
        whole: whether the rank adds to the norm what all tensor ranks have whole.

    Returns:
        Shards with the same lengths have one number, [shards].
    """
    number = np.zeros(shards, dtype=np.int64)
    for unit in units:
        counted: list[list[int]] = []
        for member in unit.members:
            if member.shard is None and not whole:
                continue
            if counted and counted[-1][1] == member.start:
                counted[-1][1] = member.stop
            else:
                counted.append([member.start, member.stop])
        summed = [[m.start, m.stop] for m in unit.members if m.shard is None]
        for spans in (counted, summed):
            columns = np.column_stack([number, _lengths(spans, unit.padded // shards, shards)])
            _, number = np.unique(columns, axis=0, return_inverse=True)
            number = number.reshape(-1)
    return number


def _lengths(spans: list[list[int]], each: int, shards: int) -> np.ndarray:
    """How long the parts of spans in each shard are, in order, with zeros behind: [shards, spans]."""
    edges, begin = np.array(spans, dtype=np.int64).reshape(-1, 2), np.arange(shards)[:, None] * each
    lengths = np.minimum(edges[:, 1], begin + each) - np.maximum(edges[:, 0], begin)
    lengths = np.maximum(lengths, 0)
    return np.take_along_axis(lengths, np.argsort(lengths == 0, axis=1, kind="stable"), axis=1)
