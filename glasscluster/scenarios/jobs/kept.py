"""What one layer of a plan keeps for backward, counted on its shapes: the figure that a training report shows
beside the memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from glasscluster.model.config import ModelConfig
from glasscluster.sim.run import Cluster
from glasscluster.strategies.judge.activations import (
    KEPT_OF_MLP,
    PARTS,
    account,
    kept_by_a_layer,
    predict,
    predict_layer,
)
from glasscluster.strategies.numerics.formats import DTYPES
from glasscluster.strategies.plan import Plan
from glasscluster.visualize.figures.kept import by_layout
from glasscluster.visualize.words import word


def countable(plan: Plan, model: ModelConfig) -> bool:
    """Whether the formula's list of tensors (activations.py) covers this plan and model."""
    pure = plan.heads_cut in (1, plan.cp) and model.seq >= 2 * plan.pieces and model.head_dim > 1
    other = (
        model.qk_norm
        or model.kv_latent
        or model.prefix
        or model.position in ("relative", "alibi")
        or model.norm_position != "pre"
        or (model.window and plan.cp > plan.heads_cut)
    )
    return (
        pure and not other and not model.experts and model.qkv == "fused" and model.key_heads % plan.tp == 0
    )


def kept_bytes(
    model: ModelConfig,
    b: int,
    precision: str,
    tp: int,
    cut: bool,
    cp: int = 1,
    context: str = "ring",
    recompute: str = "none",
) -> tuple[dict[str, int], int]:
    """What one layer keeps on rank 0: counted bytes by part, and the bytes that Eq 17 predicts."""
    cluster, width = Cluster("classroom", tp * cp, "dry", memory_bytes=None), DTYPES[precision].itemsize
    saved = cluster.run(kept_by_a_layer, model, b, precision, recompute, cut, cp, context).results[0]
    lines = [
        x
        for x in account(predict_layer(model, b, tp, width, recompute, cut, cp, context), saved)
        if not x.separate
    ]
    mlp = KEPT_OF_MLP[model.activation] * model.width
    shape: dict[str, Any] = {
        "dropout": model.dropout > 0,
        "flash": model.attention == "flash",
        "capped": model.attention_cap > 0,
        "key_width": model.key_width,
        "query_width": model.query_width,
        "mlp": mlp,
    }
    layout: dict[str, Any] = {
        "recompute": recompute,
        "sequence_parallel": cut,
        "cp": cp,
        "exchange": cp > 1 and context == "ulysses",
    }
    theory = predict(model.seq, b, model.hidden, model.heads, tp, width, **shape, **layout)
    return {part: sum(x.counted for x in lines if x.part == part) for part in PARTS}, theory


ONE_GPU = "one GPU"


def layouts(plan: Plan, model: ModelConfig) -> dict[str, tuple[dict[str, int], int]]:
    """For each layout on the way from one GPU to the plan, one axis after the other: its name, and what a
    layer keeps there.
    """
    b, precision, steps = plan.micro_batch, plan.precision, {ONE_GPU: (1, False, 1, "none")}
    if plan.tp > 1:
        steps[f"tp = {plan.tp}"] = (plan.tp, False, 1, "none")
        if model.seq % plan.tp == 0 and model.seq >= 2 * plan.tp:
            steps["+ sp"] = (plan.tp, True, 1, "none")
    if plan.cp > 1:
        steps[f"+ cp = {plan.cp}"] = (plan.tp, plan.sequence_parallel, plan.cp, "none")
    every_layer = plan.recompute == "full" and plan.recompute_nth == 1
    if every_layer or plan.recomputed == ("core",):
        steps[f"+ {plan.recompute}"] = (plan.tp, plan.sequence_parallel, plan.cp, plan.recompute)
    kind = "ulysses" if plan.heads_cut == plan.cp else plan.context
    return {
        name: kept_bytes(model, b, precision, tp, cut, cp, kind, again)
        for name, (tp, cut, cp, again) in steps.items()
    }


def kept_picture(plan: Plan, model: ModelConfig) -> Callable[[str], Any] | None:
    """The figure; None where the formula does not cover the plan, or where the plan does not shard a
    layer.
    """
    if plan.tp * plan.cp == 1 or not countable(plan, model):
        return None

    recorded = functools.cache(lambda: layouts(plan, model))  # once for both languages

    def draw(lang: str) -> Any:
        said = {word("one_gpu", lang) if n == ONE_GPU else n: kept for n, kept in recorded().items()}
        return by_layout(said, lang, word("kept_title", lang))

    return draw
