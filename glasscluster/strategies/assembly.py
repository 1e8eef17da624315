"""Assembly: from a plan to what one rank trains with. The trainer runs it, and knows none of the classes.

From the whole to its parts:

    assemble         all of it, in order
    Place            where the rank sits: its communicators on every axis, and which ends of the model it has
    make_parallel    what the blocks ask of tensor, context and expert parallelism
    make_stage       layers of a pipeline stage, cut for tensor parallelism
    make_manager     data parallelism of a stage, at the plan's ZeRO stage
    make_tensor_sum  which gradients tensor ranks add up once a step
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from glasscluster.model.gpt import GPTStage
from glasscluster.model.parallel import KeepAll, Shard, Unsharded
from glasscluster.model.weights import hugging_face
from glasscluster.sim.ranks.communicator import Communicator
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.strategies.context.ulysses import make_context
from glasscluster.strategies.data import comm_hooks
from glasscluster.strategies.data.setup import Groups, StageOptions, StageSetup, WholeLayers
from glasscluster.strategies.data.stages import LADDER, Manager, Stages
from glasscluster.strategies.experts.expert_parallel import ExpertParallel
from glasscluster.strategies.job import Job
from glasscluster.strategies.layout.units import TIED, Unit
from glasscluster.strategies.loader import Loader
from glasscluster.strategies.memory.policies import make_keep
from glasscluster.strategies.numerics.formats import DTYPES
from glasscluster.strategies.observer import Observer
from glasscluster.strategies.pipeline.pipeline_parallel import PipelineExecutor
from glasscluster.strategies.pipeline.weight_gradients import WeightGradients
from glasscluster.strategies.plan import Plan
from glasscluster.strategies.tensor.sequence_parallel import SequenceParallel, sum_over_tokens
from glasscluster.strategies.tensor.tensor_overlap import OverlappedSequenceParallel
from glasscluster.strategies.tensor.tensor_parallel import TensorParallel, sum_over_heads


class Place:
    """Where a rank sits. `data` joins the ranks that see different tokens: those of dp and cp.

    `shard`: of these, the ranks that share out what ZeRO shards; `replicas`: with hybrid sharding, those that
    hold the same. `pair`: first and last stage, where both have a copy of a tied table and sit on two ranks.
    """

    def __init__(self, gpu: GPU, job: Job) -> None:
        plan = job.plan
        mesh = gpu.make_mesh(plan.mesh)
        self.plan, self.mesh, self.dp_rank = plan, mesh, mesh.index("dp")
        self.data, self.tp, self.pp = mesh.plane(("dp", "cp"), "dp"), mesh["tp"], mesh["pp"]
        self.shard: Communicator = self.data
        self.replicas: Communicator | None = None
        if plan.shards < plan.data_ranks and plan.zero:
            self.shard = mesh.inside(self.data, plan.shards, "shard")
            self.replicas = mesh.across(self.data, plan.shards, "replicas")
        self.expert_replicas = mesh.across(self.data, plan.ep, "expert replicas") if plan.ep > 1 else None
        holder = plan.pipeline.placement
        self.has_loss = holder[-1] == self.pp.rank
        self.tied = job.model.tied and plan.stages > 1 and self.pp.rank in (holder[0], holder[-1])
        ends = sorted({holder[0], holder[-1]})
        self.pair = mesh.subset("pp", ends, "tied") if self.tied and len(ends) > 1 else None

    def counts(self, number: int, name: str, shard: Shard | None) -> bool:
        """Whether this rank adds a parameter of stage `number` to the gradient norm.

        Each element counts exactly once over the ranks of `norm_ranks`.
        """
        if self.tied and name == TIED and number > 0:
            return False
        if self.plan.ep > 1:  # experts differ along dp and cp: the norm is summed over these ranks too
            expert = shard is not None and shard.experts
            if (
                self.plan.zero
            ):  # ranks have shards of their own, or with hybrid sharding what their replicas have
                same = None if expert else self.replicas
            else:
                same = self.expert_replicas if expert else self.data
            if same is not None and same.rank:
                return False
        return shard is not None or self.tp.rank == 0

    @property
    def norm_ranks(self) -> tuple[Communicator, ...]:
        """Where the parts of the gradient norm are."""
        data = (self.data,) if self.plan.ep > 1 else (self.shard,) if self.plan.zero else ()
        return (*data, self.tp, self.pp)


def make_parallel(place: Place, job: Job) -> Unsharded:
    """What the blocks ask of tensor, context and expert parallelism."""
    plan, mesh, parallel = job.plan, place.mesh, Unsharded()
    if plan.tp > 1:
        sharing = plan.tp // job.model.key_heads  # ranks that have parts of the same key-value head
        same_head = mesh.inside(place.tp, sharing, "heads") if sharing > 1 else None
        sequence = OverlappedSequenceParallel if plan.tp_overlap else SequenceParallel
        kind = sequence if plan.sequence_parallel else TensorParallel
        parallel = kind(place.tp, plan.algorithm, same_head)
    if plan.cp > 1:
        cp, name = mesh["cp"], "ulysses" if plan.heads_cut == plan.cp else plan.context
        hybrid = 1 < plan.heads_cut < plan.cp
        inner = mesh.inside(cp, plan.heads_cut, "ulysses") if hybrid else None
        across = mesh.across(cp, plan.heads_cut, "rings") if hybrid else None
        parallel.context = make_context(name, cp, inner, across, plan.algorithm)
    if plan.ep > 1:
        parallel.experts = ExpertParallel(mesh.inside(place.data, plan.ep, "ep", axis="ep"), plan.algorithm)
    return parallel


def make_stage(gpu: GPU, job: Job, number: int, parallel: Unsharded) -> GPTStage:
    """Layers of stage `number`, cut for tensor parallelism; hooks tell the recorder which layer runs."""
    plan = job.plan
    layers, first, last = plan.stage_layers(job.model)[number], number == 0, number == plan.stages - 1
    stage = GPTStage(job.model, layers, first, last, parallel, job.seed, DTYPES[plan.precision], gpu.device)
    if job.weights is not None and gpu.device.type != "meta":
        hugging_face.fill(stage, job.weights)

    def enters(part: Any, _args: Any) -> None:
        gpu.recorder.enter_layer(getattr(part, "index", -1))

    for part in stage.parts():
        part.register_forward_pre_hook(enters)
    return stage


def stage_options(plan: Plan) -> StageOptions:
    """What data parallelism and ZeRO need of a plan."""
    return StageOptions(
        plan.bucket_limits,
        plan.padding,
        algorithm=plan.algorithm,
        overlap=plan.overlap,
        needs_all_gradients=plan.unused == "error" and plan.data_ranks > 1,
        accumulate_whole=plan.accumulate == "whole",
        reshard=plan.reshard,
        prefetch=plan.prefetch,
        offload=plan.offload == "optimizer",
        master_weights=plan.has_master,
        wide_gradients=plan.wide_gradients,
    )


def make_manager(
    gpu: GPU,
    place: Place,
    job: Job,
    number: int,
    stage: GPTStage,
    layers: WholeLayers,
    observers: Sequence[Observer],
) -> Manager:
    """Data parallelism of stage `number`, at the plan's ZeRO stage.

    `layers` is the same object for all stages of a rank.
    """
    plan = job.plan
    separate = {TIED} if place.tied and number in (0, plan.stages - 1) else set[str]()
    groups = Groups(place.shard, place.replicas, place.expert_replicas)
    counts = partial(place.counts, number)
    setup = StageSetup(
        gpu,
        stage,
        groups,
        stage_options(plan),
        job.optimizer,
        separate,
        counts,
        observers,
        layers,
        comm_hooks.find(plan, job.model),
    )
    return LADDER[plan.zero](setup)


TensorSum = Callable[[Sequence[Unit]], None]


def make_tensor_sum(plan: Plan, parallel: Any, stages: Mapping[int, GPTStage]) -> TensorSum | None:
    """Sums over tensor ranks, once a step, the gradients of what each has whole and computes a part of.

    With sequence parallelism these are all whole parameters (each rank sees its own tokens), else those that
    each rank uses for its own heads. None without tensor parallelism: there is nothing to sum.
    """
    if plan.tp == 1:
        return None
    if plan.sequence_parallel:
        return partial(sum_over_tokens, parallel)
    names = set[str]().union(*(part.partial for stage in stages.values() for part in stage.parts()))
    return partial(sum_over_heads, parallel, partial=names)


@dataclass(frozen=True)
class Parts:
    """What a rank trains with.

    `manager` reduces and updates all stages; `executor` runs the pipeline's actions.
    """

    place: Place
    parallel: Unsharded
    stages: dict[int, GPTStage]
    manager: Stages
    executor: PipelineExecutor
    loader: Loader
    keep: KeepAll  # what stays for backward
    layers: WholeLayers
    tensor_sum: TensorSum | None


def assemble(gpu: GPU, job: Job, observers: Sequence[Observer]) -> Parts:
    """Build all of it. The communicators come first, in an order that is the same on every rank."""
    plan, place = job.plan, Place(gpu, job)
    keep = make_keep(gpu, plan.recompute, plan.recompute_every, plan.recomputed, plan.recompute_nth)
    layers = WholeLayers()
    with gpu.unrecorded():
        parallel, weight_gradients = make_parallel(place, job), WeightGradients(gpu)
        for observer in observers:
            parallel = observer.parallel_made(parallel)
        parallel.name_tensor = gpu.memory.call
        if plan.pipeline.splits:
            parallel.deferred = weight_gradients
        mine = plan.pipeline.stages_of(place.pp.rank)
        stages = {s: make_stage(gpu, job, s, parallel).keeping(keep) for s in mine}
        made = {s: make_manager(gpu, place, job, s, stage, layers, observers) for s, stage in stages.items()}
        manager = Stages(gpu, made)
        tensor_sum = make_tensor_sum(plan, parallel, stages)
    gpu.afterwards.callback(manager.close)
    if observers:
        show_activations(parallel, stages, observers)
    shape, dtype = (plan.micro_batch, job.model.seq // plan.pieces, job.model.hidden), DTYPES[plan.precision]
    executor = PipelineExecutor(
        gpu,
        place.pp,
        plan.pipeline,
        stages,
        shape,
        dtype,
        manager.of,
        weight_gradients,
        None if observers else gpu.repeated,  # who looks on sees every action run
        [b.routing for s in stages.values() for b in s.layers.values() if job.model.routed(b.index)],
    )
    loader = Loader(job, gpu.device, place.dp_rank, parallel.context.cut, place.has_loss)
    return Parts(place, parallel, stages, manager, executor, loader, keep, layers, tensor_sum)


def show_activations(parallel: Unsharded, stages: dict[int, GPTStage], observers: Sequence[Observer]) -> None:
    """Tell the observers what parts of the model make.

    A block says its queries and keys, the head its logits; outputs are seen from outside.
    """

    def show(kind: str, layer: int, *tensors: Tensor) -> None:
        for observer in observers:
            observer.activation(kind, layer, *tensors)

    def after(part: Any, _args: Any, out: Tensor) -> None:
        if out.dim() == 3:  # the head's is the loss
            show("output", getattr(part, "index", -1), out)

    parallel.observe = show
    for stage in stages.values():
        for part in stage.parts():
            part.register_forward_hook(after)
