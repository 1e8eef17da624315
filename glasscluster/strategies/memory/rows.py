"""The ledger rows of recomputation and of a loss in chunks: FLOPs that run again, bytes that are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from glasscluster.base.rows import Row
from glasscluster.base.text import Said
from glasscluster.model.kernels.chunked_loss import (
    INPUT_GRADIENT,
    LOGITS,
    WEIGHT_GRADIENT,
    predict_input_gradient,
    predict_logits,
    predict_weight_gradient,
)
from glasscluster.model.kernels.flash.tiles import TILE
from glasscluster.sim.recording.events import RECOMPUTE
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.time.memory_history import MemoryHistory
from glasscluster.strategies.layout.judged import Judged
from glasscluster.strategies.layout.segments import ends, last_spared
from glasscluster.strategies.layout.tokens import work
from glasscluster.strategies.memory.discard import AGAIN, predict_activations, predict_heads, predict_norms
from glasscluster.strategies.memory.per_operation import predict_again, predict_saved
from glasscluster.strategies.memory.recompute import predict_checkpoints, predict_flops

if TYPE_CHECKING:
    from glasscluster.strategies.plan import Plan

SOURCE = "Korthikanti 2205.05198 section 5; Chen 1604.06174 (Eq 29)"

PLACE = 60  # in the ledger
DISCARDED = {"norm", "latent_up", "moe_act"}  # parts of which the output is discarded
WAITS = Said(
    "the input of a matrix also waits for its weights' gradient: how many at once, the schedule decides",
    "矩阵的输入还要等待权重梯度：同时等待的有多少由调度决定",
)
NAMES = {
    "logits": Said(
        "logits held at once by the loss in chunks, all ranks", "分块损失同时持有的 logits，全部 rank"
    ),
    "inputs": Said(
        "gradients of the head's input kept from forward, all ranks",
        "前向留到反向的输出头输入梯度，全部 rank",
    ),
    "weights": Said(
        "gradients of the head's weights kept from forward, all ranks",
        "前向留到反向的输出头权重梯度，全部 rank",
    ),
}


def predict(run: Judged) -> list[Row]:
    """What recomputation repeats and keeps (Eq 29), and what a loss in chunks holds (Eq 42)."""
    return [*_recomputed(run), *_chunked_loss(run)]


# ---- recomputation -----------------------------------------------------------------------------------------
def _recomputed(run: Judged) -> list[Row]:
    """FLOPs that ran again, and the most bytes of checkpoints held at one time, over all ranks (Eq 29)."""
    if run.graph is None or run.results is None or run.plan.recompute == "none":
        return []
    parts = run.plan.recomputed
    waiting = {"latent_up"} if "norm" in parts else {"latent_up", "mlp", "moe", "shared"}
    waits = run.plan.pipeline.splits and run.plan.recompute != "full" and waiting & set(parts)
    return [
        *_discarded(run, run.graph),
        Row(
            "flops_recomputed",
            Said("FLOPs computed again, all ranks", "重新计算的 FLOPs，全部 rank"),
            _flops(run),
            int(run.graph.flops[run.graph.phase == RECOMPUTE].sum()),
            SOURCE,
            unit="FLOPs",
        ),
        Row(
            "checkpoints_held",
            Said("activations kept to start again from, all ranks", "为重算而保留的激活，全部 rank"),
            _checkpoints(run),
            sum(r.checkpoint_bytes for r in run.results),
            SOURCE,
            why=WAITS if waits else None,
        ),
    ]


def _discarded(run: Judged, graph: ExecutionGraph) -> list[Row]:
    """Bytes that were discarded and are made again in a step: of norms, of latents' heads, of experts."""
    plan, model = run.plan, run.model
    if not DISCARDED & set(plan.recomputed):
        return []
    predicted = 0
    if "norm" in plan.recomputed:
        sizes = plan.micro_batch, plan.width, plan.pieces, plan.sequence_parallel
        one = sum(predict_norms(model, len(layers), *sizes) for layers in plan.stage_layers(model))
        predicted += one * plan.micro_batches * plan.data_ranks * plan.tp
    if "latent_up" in plan.recomputed:
        one = predict_heads(model, plan.micro_batch, plan.width, plan.tp, plan.cp) * model.layers
        predicted += one * plan.micro_batches * plan.data_ranks * plan.tp
    if "moe_act" in plan.recomputed:
        predicted += predict_activations(model, _assignments(run), plan.width)
    counted = [_all_named(graph, rank, AGAIN) for rank in sorted(graph.memory)]
    return [
        Row(
            "outputs_made_again",
            Said("outputs discarded and made again, all ranks", "丢弃后重新生成的输出，全部 rank"),
            predicted,
            sum(counted) if counted else None,
            "Megatron core, output-discarding recomputation (Eq 29)",
        )
    ]


def _assignments(run: Judged) -> int:
    """Assignments of a token to an expert that are kept, in the layers that recomputation has to do with.

    The tp ranks send the same rows to the same experts, of which each has some columns.
    """
    kept = 0
    for result in run.results or ():
        for layer in run.plan.recomputed_layers(result.routing):
            kept += sum(sum(made["kept"]) for made in result.routing[layer])
    return kept // run.plan.tp


def _flops(run: Judged) -> int:
    plan, model = run.plan, run.model
    kind = "ulysses" if plan.heads_cut == plan.cp else plan.context
    mask = model.causal, model.prefix, model.position in ("relative", "alibi")
    shape = kind, plan.cp, model.seq, model.heads, plan.heads_cut, TILE, *mask
    pairs = {window: sum(work(*shape, window)) for window in model.windows}
    # a matrix whose weight gradient is deferred saves its input after its product, so the product runs again
    fused, stops = plan.tp > 1 and plan.tp_overlap, not plan.pipeline.splits
    routers = 1 if plan.sequence_parallel else plan.tp
    flops = 0
    for layers in map(plan.recomputed_layers, plan.stage_layers(model)):
        stage_ends = ends(layers, plan.recompute_every if plan.recompute == "full" else 1)
        spared = [stops and last_spared(model, layer, fused) for layer in stage_ends]
        if plan.recompute == "selective":
            # a part of a layer ends with its last matrix, whatever is behind it
            spared = [stops and not fused] * len(layers)
        stage = plan.recompute, model, layers, plan.recompute_every, plan.micro_batch
        if plan.recompute == "op":
            one = sum(predict_again(model, plan.micro_batch, stop) for stop in spared)
        else:
            seen = sum(pairs[model.window_of(layer)] for layer in layers)
            ranks: dict[str, Any] = {"routers": routers, "latents": plan.tp, "cp": plan.cp}
            ranks["parts"] = plan.recomputed
            one = predict_flops(*stage, pairs=seen, spares=spared, **ranks)
        flops += one * plan.micro_batches * plan.dp
    if model.experts and "moe" in plan.recomputed:
        flops += 2 * _assignments(run) * (model.gates + 1) * model.hidden * model.expert_width
    return flops


def _checkpoints(run: Judged) -> int:
    plan, model = run.plan, run.model
    if plan.recompute == "op":
        one = predict_saved(model, plan.micro_batch, plan.width)
        saved = [one * len(layers) for layers in plan.stage_layers(model)]
        schedule = plan.pipeline
        return int(sum(schedule.most_held(rank, saved) for rank in range(plan.pp))) * plan.data_ranks
    stages = [
        predict_checkpoints(
            plan.recompute,
            model,
            layers,
            plan.recompute_every,
            plan.micro_batch,
            plan.tp,
            plan.width,
            plan.pieces,
            plan.cp,
            plan.recomputed,
            plan.sequence_parallel,
        )
        for layers in map(plan.recomputed_layers, plan.stage_layers(model))
    ]
    # without a norm before it, a segment's input is also the input of its first matrix and is held until that
    # matrix's weight gradient is computed
    first = plan.recompute == "full" and model.norm_position == "post"
    schedule, until = plan.pipeline, "BW" if first else "BI"
    held = int(sum(schedule.most_held(rank, stages, until) for rank in range(plan.pp)))
    return held * plan.data_ranks * plan.tp


# ---- a loss in chunks --------------------------------------------------------------------------------------
def _chunked_loss(run: Judged) -> list[Row]:
    """Bytes of logits at once, and of gradients that wait from forward to backward, over all ranks (Eq 42).

    The counted side is the memory ledger's: the most that lived at one time under each of the three names.
    """
    plan, model, graph = run.plan, run.model, run.graph
    if graph is None or model.loss != "chunked" or not graph.memory:
        return []
    tokens, width = plan.micro_batch * model.seq // plan.cp, plan.width
    columns = -(-model.vocab // plan.tp)
    logits = predict_logits(tokens, model.loss_chunks, columns, width)
    weights = predict_weight_gradient(columns, model.hidden, width)
    inputs = predict_input_gradient(tokens, model.hidden, width)
    replicas = plan.data_ranks * plan.tp
    return [
        Row(
            f"loss_{key}",
            name,
            predicted * replicas,
            sum(_most_named(graph, rank, called) for rank in sorted(graph.memory)),
            "Liger Kernel 2410.10989 section 3.2 (Eq 42)",
        )
        for key, name, predicted, called in (
            ("logits", NAMES["logits"], logits, LOGITS),
            ("input_gradient", NAMES["inputs"], _waiting(plan, inputs, "BI"), INPUT_GRADIENT),
            ("weight_gradient", NAMES["weights"], _waiting(plan, weights, "BW"), WEIGHT_GRADIENT),
        )
    ]


def _waiting(plan: Plan, nbytes: int, until: str) -> int:
    """The most that the last stage holds, of something that each micro-batch makes in F."""
    schedule = plan.pipeline
    held = [nbytes if stage == plan.stages - 1 else 0 for stage in range(plan.stages)]
    return int(schedule.most_held(schedule.placement[-1], held, until))


# ---- what the memory ledger counted ------------------------------------------------------------------------
def _changes(graph: ExecutionGraph, rank: int, name: str) -> np.ndarray:
    """Bytes that came and, negative, that went of what was given a name, in the order of the program."""
    history = MemoryHistory(graph, rank)
    chosen = [number for number, called in history.named.items() if called == name]
    return history.log[np.isin(history.log[:, 3], chosen), 2]


def _most_named(graph: ExecutionGraph, rank: int, name: str) -> int:
    """The most bytes that lived at one time of what was given a name."""
    return int(_changes(graph, rank, name).cumsum().max(initial=0))


def _all_named(graph: ExecutionGraph, rank: int, name: str) -> int:
    """All bytes that a step made of what was given a name."""
    return int(_changes(graph, rank, name).clip(min=0).sum())
