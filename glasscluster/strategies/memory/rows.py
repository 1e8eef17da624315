"""The ledger rows of recomputation: FLOPs that run again, and bytes of checkpoints."""

from __future__ import annotations

from glasscluster.base.rows import Row
from glasscluster.base.text import Said
from glasscluster.model.kernels.flash.tiles import TILE
from glasscluster.sim.recording.events import RECOMPUTE
from glasscluster.strategies.layout.judged import Judged
from glasscluster.strategies.layout.segments import ends, last_spared
from glasscluster.strategies.layout.tokens import work
from glasscluster.strategies.memory.recompute import predict_checkpoints, predict_flops

SOURCE = "Korthikanti 2205.05198 section 5; Chen 1604.06174 (Eq 29)"

PLACE = 60  # in the ledger


def predict(run: Judged) -> list[Row]:
    """FLOPs that ran again, and the most bytes of checkpoints held at one time, over all ranks (Eq 29)."""
    if run.graph is None or run.results is None or run.plan.recompute == "none":
        return []
    return [
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
        ),
    ]


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
    for layers in plan.stage_layers(model):
        spared = [stops and last_spared(model, layer, fused) for layer in ends(layers, plan.recompute_every)]
        stage = plan.recompute, model, layers, plan.recompute_every, plan.micro_batch
        seen = sum(pairs[model.window_of(layer)] for layer in layers)
        one = predict_flops(*stage, pairs=seen, spares=spared, routers=routers, latents=plan.tp, cp=plan.cp)
        flops += one * plan.micro_batches * plan.dp
    if model.experts and plan.recompute == "full":
        # the tp ranks send the same rows to the same experts, of which each has some columns
        kept = sum(sum(rows) for result in run.results or () for rows in result.routing_counts("kept"))
        flops += 2 * (kept // plan.tp) * (model.gates + 1) * model.hidden * model.expert_width
    return flops


def _checkpoints(run: Judged) -> int:
    plan, model = run.plan, run.model
    stages = [
        predict_checkpoints(
            plan.recompute,
            model,
            len(layers),
            plan.recompute_every,
            plan.micro_batch,
            plan.tp,
            plan.width,
            plan.pieces,
            plan.cp,
        )
        for layers in plan.stage_layers(model)
    ]
    # without a norm before it, a segment's input is also the input of its first matrix and is held until that
    # matrix's weight gradient is computed
    first = plan.recompute == "full" and model.norm_position == "post"
    schedule, until = plan.pipeline, "BW" if first else "BI"
    held = int(sum(schedule.most_held(rank, stages, until) for rank in range(plan.pp)))
    return held * plan.data_ranks * plan.tp
