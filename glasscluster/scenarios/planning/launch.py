"""A layout as what to type: ours under torchrun, and the arguments of Megatron-LM and torchtitan.

Follows Megatron-LM's megatron/training/arguments.py and torchtitan's config (parallelism, training,
activation_checkpoint). None where a framework has no such layout.
But: of their many arguments only those that say how the model is laid out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from glasscluster.model.config import ModelConfig
from glasscluster.strategies.plan import Plan

if TYPE_CHECKING:  # only as types: help is shown without what they import
    from glasscluster.sim.time.hardware import Hardware


OURS = (
    *("dp", "tp", "pp", "cp", "ep", "zero", "sequence_parallel", "schedule", "virtual_stages", "micro_batch"),
    *("global_batch", "recompute", "precision"),
)
MEGATRON_SCHEDULES = ("1f1b", "interleaved")
TITAN_SCHEDULES = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved": "Interleaved1F1B",
    "looped-bfs": "LoopedBFS",
    "interleaved-zb": "InterleavedZeroBubble",
    "zb-v": "ZBVZeroBubble",
    "dualpipe-v": "DualPipeV",
}


def chosen(plan: Plan) -> dict[str, Any]:
    """The options of a plan that are not at their default, by name; those of the layout first."""
    fields = type(plan).model_fields
    names = [*OURS, *(name for name in fields if name not in OURS)]
    return {
        name: getattr(plan, name)
        for name in names
        if getattr(plan, name) != fields[name].default and name != "layers_per_stage"
    }


def written(values: Mapping[str, Any]) -> str:
    """Options by name as they are typed: `--tp 8 --sequence-parallel`."""
    said = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        said.append(
            f"--{flag} {value}" if not isinstance(value, bool) else f"--{'' if value else 'no-'}{flag}"
        )
    return " ".join(said)


def torchrun(plan: Plan, model: Mapping[str, Any], hw: Hardware) -> str:
    """The line that trains it; `model` are the options that say which model."""
    nodes, each = -(-plan.gpus // hw.node_size), min(plan.gpus, hw.node_size)
    many = f"--nnodes {nodes} " if nodes > 1 else ""
    ours = f"-m glasscluster train {written(model)} {written(chosen(plan))}"
    return f"torchrun {many}--nproc-per-node {each} {ours}"


def megatron(plan: Plan, model: ModelConfig) -> str | None:
    """Arguments of Megatron-LM; None for a schedule or a ZeRO stage that it does not have."""
    if plan.schedule not in MEGATRON_SCHEDULES or plan.zero > 1:
        return None
    said = {
        "tensor-model-parallel-size": plan.tp,
        "pipeline-model-parallel-size": plan.pp,
        "context-parallel-size": plan.cp,
        "micro-batch-size": plan.micro_batch,
        "global-batch-size": plan.global_batch,
    }
    if plan.ep > 1:
        said["expert-model-parallel-size"] = plan.ep
    if plan.virtual_stages > 1 and model.layers % plan.stages == 0:
        said["num-layers-per-virtual-pipeline-stage"] = model.layers // plan.stages
    flags = [f"--{name} {value}" for name, value in said.items()]
    flags += ["--sequence-parallel"] if plan.sequence_parallel else []
    flags += ["--use-distributed-optimizer"] if plan.zero == 1 else []
    flags += [f"--{plan.precision}"] if plan.precision in ("bf16", "fp16") else []
    recompute = {
        "selective": "--recompute-granularity selective",
        "full": "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
    }
    flags += [recompute[plan.recompute]] if plan.recompute in recompute else []
    return " ".join(flags)


def torchtitan(plan: Plan) -> str | None:
    """Arguments of torchtitan; None for a schedule or a ZeRO stage that it does not have."""
    if plan.zero not in (0, 3) or (plan.pp > 1 and plan.schedule not in TITAN_SCHEDULES):
        return None
    sharded = plan.zero == 3
    said = {
        "parallelism.data_parallel_replicate_degree": 1 if sharded else plan.dp,
        "parallelism.data_parallel_shard_degree": plan.dp if sharded else 1,
        "parallelism.tensor_parallel_degree": plan.tp,
        "parallelism.pipeline_parallel_degree": plan.pp,
        "parallelism.context_parallel_degree": plan.cp,
    }
    if plan.ep > 1:
        said["parallelism.expert_parallel_degree"] = plan.ep
    flags = [f"--{name} {value}" for name, value in said.items()]
    if plan.pp > 1:
        flags.append(f"--parallelism.pipeline_parallel_schedule {TITAN_SCHEDULES[plan.schedule]}")
        flags.append(f"--parallelism.pipeline_parallel_microbatch_size {plan.micro_batch}")
    local = plan.micro_batch * (plan.micro_batches if plan.pp > 1 else 1)
    flags.append(f"--training.local_batch_size {local} --training.global_batch_size {plan.global_batch}")
    flags.append(f"--activation_checkpoint.mode {plan.recompute}")
    return " ".join(flags)
