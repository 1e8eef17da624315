"""Every legal layout: what is tried, and what the rules of `Plan` admit.

    dp·tp·pp·cp = gpus           every factor           ep          divides dp·cp and the experts
    zero         0 to 3; 0 alone where nothing is shared out        micro-batch   divides global-batch / dp
    schedule     all of them where there are stages                 recompute     none, selective, full
    virtual stages  those that share the layers out evenly, or leave the first and the last chunk short

A tensor-parallel layout is sequence-parallel, too, where the sequence divides. What somebody gives is fixed.
But: one kind of context parallelism (`--context`), and no layers_per_stage of one's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.model.config import ModelConfig
from glasscluster.strategies.layout.sizes import divisors
from glasscluster.strategies.pipeline.schedules import FOLDED, LOOPED, SCHEDULES
from glasscluster.strategies.plan import Plan

SEARCHED = (
    *("dp", "tp", "pp", "cp", "ep", "zero", "schedule", "virtual_stages", "micro_batch", "recompute"),
    "sequence_parallel",
)
RECOMPUTED = ("none", "selective", "full")


def layouts(gpus: int, model: ModelConfig, base: Plan, fixed: Mapping[str, Any]) -> list[Plan]:
    """All layouts that every rule admits, always in the same order.

    Args:
        gpus: how many GPUs all of them have.
        base: what they have in common: global batch, precision, optimizer, ...
        fixed: options of `SEARCHED` that stay as they were given.

    Raises:
        InputError: the first rule that refused one, if none is admitted.
    """
    admitted, refused = [], None
    for values in _values(gpus, model, base, fixed):
        plan = base.model_copy(update=values)
        refusal = plan.refusal(model, runs=False)
        if refusal is None:
            admitted.append(plan)
        refused = refused or refusal
    if not admitted:
        raise refused or InputError("gpus", gpus, f"no dp x tp x pp x cp makes it with {dict(fixed)}")
    return admitted


def _values(gpus: int, model: ModelConfig, base: Plan, fixed: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for mesh in _meshes(gpus, model, fixed):
        dp, tp = mesh["dp"], mesh["tp"]
        sequence = fixed.get("sequence_parallel", tp > 1 and model.seq % (tp * mesh["cp"]) == 0)
        batches = divisors(base.global_batch // dp) if base.global_batch % dp == 0 else [1]
        for micro_batch in _of(fixed, "micro_batch", batches):
            for ways in _stages(mesh["pp"], model, fixed):
                for zero in _of(fixed, "zero", range(4) if dp * mesh["cp"] > 1 else (0,)):
                    for recompute in _of(fixed, "recompute", RECOMPUTED):
                        yield {
                            **mesh,
                            **ways,
                            "zero": zero,
                            "micro_batch": micro_batch,
                            "recompute": recompute,
                            "sequence_parallel": sequence,
                        }


def _of(fixed: Mapping[str, Any], name: str, values: Any) -> Any:
    return (fixed[name],) if name in fixed else values


def _meshes(gpus: int, model: ModelConfig, fixed: Mapping[str, Any]) -> Iterator[dict[str, int]]:
    """The shares of the GPUs, tensor parallelism growing slowest."""
    for tp in _of(fixed, "tp", divisors(gpus)):
        for pp in _of(fixed, "pp", divisors(gpus)):
            for cp in _of(fixed, "cp", divisors(gpus)):
                dp = gpus // (tp * pp * cp)
                if dp * tp * pp * cp != gpus or fixed.get("dp", dp) != dp:
                    continue
                experts = [k for k in divisors(dp * cp) if model.experts % k == 0] if model.experts else [1]
                for ep in _of(fixed, "ep", experts):
                    yield {"dp": dp, "tp": tp, "pp": pp, "cp": cp, "ep": ep}


def _stages(pp: int, model: ModelConfig, fixed: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Schedules with their virtual stages. Without stages they all do the same, and 1F1B stands for them."""
    for schedule in _of(fixed, "schedule", SCHEDULES if pp > 1 else ("1f1b",)):
        chunks = (2,) if schedule in FOLDED else _even(pp, model) if schedule in LOOPED else (1,)
        for v in _of(fixed, "virtual_stages", chunks):
            yield {"pp": pp, "schedule": schedule, "virtual_stages": v}


def _even(pp: int, model: ModelConfig) -> list[int]:
    """Two chunks a rank and more, of equally many layers or with both ends empty."""
    most = (model.layers + 2) // pp
    return [v for v in range(2, most + 1) if model.layers % (pp * v) == 0 or model.layers + 2 == pp * v]
