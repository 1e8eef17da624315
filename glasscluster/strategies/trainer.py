"""The one place where strategies are composed into a rank's program.

tensor, context and expert parallelism are communicators handed to the blocks; data parallelism and ZeRO are one manager over
units, and its ranks are those of dp and cp, which all see different tokens; the pipeline is an executor that owns the
micro-batch loop. A tied embedding with copies on two stages is summed over the two after the data-parallel reduction, on
whatever part of it a rank owns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from glasscluster.base.errors import InputError
from glasscluster.model.adamw import Optimizer
from glasscluster.model.config import ModelConfig
from glasscluster.model.gpt import GPTStage
from glasscluster.model.layers.dropout import Draw
from glasscluster.model.parallel import IGNORE, Shard, Unsharded
from glasscluster.model.text.captions import captioned
from glasscluster.model.text.data import batch, corpus, objective, tokens_with_loss
from glasscluster.model.text.mixture import Mixture
from glasscluster.model.weights import hugging_face
from glasscluster.sim.ranks.communicator import Communicator
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.strategies.context.ulysses import make_context
from glasscluster.strategies.data.chunks import Chunks
from glasscluster.strategies.data.data_parallel import DataParallel
from glasscluster.strategies.data.zero3 import LADDER
from glasscluster.strategies.experts.expert_parallel import ExpertParallel
from glasscluster.strategies.memory.recompute import KINDS
from glasscluster.strategies.numerics.bad_batch import Guard, Snapshot
from glasscluster.strategies.numerics.loss_scale import LossScaler, ScaleRule
from glasscluster.strategies.pipeline.pipeline_parallel import PipelineExecutor
from glasscluster.strategies.pipeline.weight_gradients import WeightGradients
from glasscluster.strategies.plan import Plan
from glasscluster.strategies.tensor.sequence_parallel import SequenceParallel, sum_over_tokens
from glasscluster.strategies.tensor.tensor_overlap import OverlappedSequenceParallel
from glasscluster.strategies.tensor.tensor_parallel import TensorParallel, sum_over_heads

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TIED = "embedding.token"


@dataclass(frozen=True)
class Job:
    """Everything a rank needs to train: plan, model, steps, data, seed. `capture` keeps all gradients and weights, `keep` the last weights.

    `data`: a text file, None for the built-in one, or several sources with weights. `weights`: a folder in Hugging Face's layout to
    start from; None: drawn from the seed. `probes`: each rank writes down what it sees of every step (probes.py), and nothing else changes.
    """

    plan: Plan
    model: ModelConfig
    steps: int = 3
    data: str | Mixture | None = None
    seed: int = 0
    capture: bool = False
    keep: bool = False
    loss_scale: ScaleRule = field(default_factory=ScaleRule)
    weights: str | None = None
    probes: bool = False

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer with the plan's learning rate and its course."""
        return Optimizer(self.plan.optimizer, lr=self.plan.lr, schedule=self.plan.rate)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The global batch of a step: [G, s] tokens and targets."""
        m = self.model
        if m.patches:
            return objective(*captioned(step, self.plan.global_batch, m, self.seed), m, step, self.seed)
        if isinstance(self.data, Mixture):
            tokens, targets, *_ = self.data.batch(step, self.plan.global_batch, m.seq, m.vocab, self.seed)
            return objective(tokens, targets, m, step, self.seed)
        return objective(*batch(corpus(self.data), step, self.plan.global_batch, m.seq, m.vocab, self.seed), m, step, self.seed)

    @property
    def packed(self) -> bool:
        """True where rows hold several documents."""
        return isinstance(self.data, Mixture) and self.data.packed

    def documents(self, step: int) -> tuple[tuple[int, ...], ...] | None:
        """Of packed rows, the lengths of each one's documents; None where every row is one."""
        if not isinstance(self.data, Mixture) or not self.data.packed:
            return None
        return self.data.batch(step, self.plan.global_batch, self.model.seq, self.model.vocab, self.seed).documents

    def check_packed(self) -> None:
        """Packed documents need causal flash attention on whole rows: InputError for what has no such thing."""
        if not self.packed:
            return
        model, plan = self.model, self.plan
        for name, value, good, why in (
            ("cp", plan.cp, 1, "a document must lie whole on one rank"),
            ("exchange", plan.exchange, "all-reduce", "a server's workers do not know of documents"),
            ("objective", model.objective, "causal", "documents are triangles of a causal mask"),
            ("prefix", model.prefix, 0, "documents are triangles of a causal mask"),
            ("attention", model.attention, "flash", "documents are attended to one by one"),
            ("experts", model.experts, 0, "places of experts are shared out within a row, so one document could push out another's tokens"),
        ):
            if value != good:
                raise InputError(name, value, f"does not go with packed documents: {why}", [good])


@dataclass
class RankResult:
    """What a rank brings back: mean losses, state bytes, and in a check its gradients and weights by name."""

    losses: list[Tensor] = field(default_factory=list)
    state_bytes: dict[str, int] = field(default_factory=dict)
    units: list[tuple[str, int, int]] = field(default_factory=list)  # name, elements, padded elements
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)
    host_bytes: int = 0  # optimizer state kept in host memory
    in_flight: int = 0  # chunks' activations that waited for their B or W at once
    most_layers: int = 0  # ZeRO-3: blocks that were whole at once
    checkpoint_bytes: int = 0  # most that recomputation held to start from
    routing: dict[int, list[dict[str, Any]]] = field(default_factory=dict)  # layer -> what its router did, a micro-batch of the last step
    loss_scales: list[float] = field(default_factory=list)  # fp16: the scale of each step, and whether it was skipped
    skipped: list[bool] = field(default_factory=list)  # by the loss scale, or as a bad batch
    returned: list[int] = field(default_factory=list)  # bad batches: steps after which the last snapshot was taken up again
    readings: list[Any] = field(default_factory=list)  # probes: what this rank saw of each step

    def routing_counts(self, what: str) -> list[list[int]]:
        """Rows that were "wanted" by or "kept" for each expert, a layer and micro-batch."""
        return [made[what] for layer in self.routing.values() for made in layer]


def train_rank(gpu: GPU, job: Job) -> RankResult:
    """The SPMD program: the same on every backend."""
    if job.plan.exchange != "all-reduce":
        raise InputError("exchange", job.plan.exchange, "is another program: `glass train` runs it, this one reduces", ["all-reduce"])
    if job.probes and gpu.device.type != "meta":
        from glasscluster.strategies.judge.probes import ProbedTrainer

        return ProbedTrainer(gpu, job).run()
    return Trainer(gpu, job).run()


class Trainer:
    """One rank of a training job."""

    def __init__(self, gpu: GPU, job: Job) -> None:
        self.gpu, self.job, plan = gpu, job, job.plan
        job.check_packed()
        self.plan, self.result = plan, RankResult()
        mesh = gpu.make_mesh(plan.mesh)
        self.mesh, self.dp_rank = mesh, mesh.index("dp")
        self.data, self.tp, self.pp = mesh.plane(("dp", "cp"), "dp"), mesh["tp"], mesh["pp"]
        self.shard: Communicator = self.data  # ranks that share out what ZeRO shards
        self.replicas: Communicator | None = None  # with hybrid sharding: those that hold the same shard
        if plan.shards < plan.data_ranks and plan.zero:
            self.shard = mesh.inside(self.data, plan.shards, "shard")
            self.replicas = mesh.across(self.data, plan.shards, "replicas")
        self.expert_replicas = mesh.across(self.data, plan.ep, "expert replicas") if plan.ep > 1 else None
        self.schedule = plan.pipeline
        self.final, holder = plan.stages - 1, self.schedule.placement
        self.last = holder[-1] == self.pp.rank
        self.tied = job.model.tied and plan.stages > 1 and self.pp.rank in (holder[0], holder[-1])
        ends = sorted({holder[0], holder[-1]})
        self.pair: Communicator | None = mesh.subset("pp", ends, "tied") if self.tied and len(ends) > 1 else None
        self.scaler = LossScaler(job.loss_scale) if plan.precision == "fp16" else None
        self.guard = Guard(plan.skip_rule) if plan.skip_rule and gpu.device.type != "meta" else None
        self.snapshot: Snapshot | None = None
        self.updates = 0  # steps that were not skipped
        self.keep = KINDS[plan.recompute](gpu, plan.recompute_every)
        with gpu.unrecorded():
            self.parallel = self.make_parallel()
            later = WeightGradients(gpu)
            if self.schedule.splits:
                self.parallel.later = later
            mine = self.schedule.stages_of(self.pp.rank)
            self.stages = {s: self.make_stage(s).keeping(self.keep) for s in mine}
            self.partial = set().union(*(part.partial for stage in self.stages.values() for part in stage.parts()))
            self.manager = Chunks({s: self.make_manager(s, stage) for s, stage in self.stages.items()})
        gpu.afterwards.callback(self.manager.close)
        shape = (plan.micro_batch, job.model.seq // plan.pieces, job.model.hidden)
        self.executor = PipelineExecutor(gpu, self.pp, self.schedule, self.stages, shape, DTYPES[plan.precision], self.manager.of, later)

    # ---- assembly --------------------------------------------------------------------------------------------
    def make_stage(self, number: int) -> GPTStage:
        """A stage's layers, cut for tensor parallelism; hooks tell the recorder which layer runs."""
        job, dtype = self.job, DTYPES[self.plan.precision]
        layers = self.plan.stage_layers(job.model)[number]
        stage = GPTStage(job.model, layers, number == 0, number == self.final, self.parallel, job.seed, dtype, self.gpu.device)
        if job.weights is not None and self.gpu.device.type != "meta":
            hugging_face.fill(stage, job.weights)
        for part in stage.parts():
            part.register_forward_pre_hook(lambda module, _args: self.gpu.recorder.enter_layer(getattr(module, "index", -1)))
        return stage

    def make_parallel(self) -> Unsharded:
        """What the blocks ask of tensor, context and expert parallelism."""
        plan, mesh, parallel = self.plan, self.mesh, Unsharded()
        if plan.tp > 1:
            sharing = plan.tp // self.job.model.key_heads  # ranks that have parts of the same key-value head
            same_head = mesh.inside(self.tp, sharing, "heads") if sharing > 1 else None
            made = (OverlappedSequenceParallel if plan.tp_overlap else SequenceParallel) if plan.sequence_parallel else TensorParallel
            parallel = made(self.tp, plan.algorithm, same_head)
        if plan.cp > 1:
            cp, kind = mesh["cp"], "ulysses" if plan.heads_cut == plan.cp else plan.context
            hybrid = 1 < plan.heads_cut < plan.cp
            inner = mesh.inside(cp, plan.heads_cut, "ulysses") if hybrid else None
            across = mesh.across(cp, plan.heads_cut, "rings") if hybrid else None
            parallel.context = make_context(kind, cp, inner, across, plan.algorithm)
        if plan.ep > 1:
            parallel.experts = ExpertParallel(mesh.inside(self.data, plan.ep, "ep", axis="ep"), plan.algorithm)
        return parallel

    def make_manager(self, number: int, stage: GPTStage) -> DataParallel:
        """Data parallelism of a stage, at the plan's ZeRO stage."""
        kind, counts = LADDER[self.plan.zero], partial(self.counts, number)
        apart = {TIED} if self.tied and number in (0, self.final) else set()
        return kind(self.gpu, self.shard, stage, self.plan, self.job.optimizer, apart, counts, self.replicas, self.expert_replicas)

    def counts(self, number: int, name: str, shard: Shard | None) -> bool:
        """Whether this rank adds a stage's parameter to the gradient norm: each element exactly once over the ranks of `norm_ranks`."""
        if self.tied and name == TIED and number > 0:
            return False
        if self.plan.ep > 1:  # experts differ along dp and cp: the sum goes over these ranks, and what several of them have counts once
            expert = shard is not None and shard.experts
            if self.plan.zero:  # ranks have shards of their own, or with hybrid sharding what their replicas have
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

    # ---- training --------------------------------------------------------------------------------------------
    def run(self) -> RankResult:
        """All steps. Each is recorded over the one before, so a failure shows its own step and a finished run the last."""
        result = self.result
        for step in range(self.job.steps):
            self.manager.step_begins()
            self.gpu.start_step()
            self.keep_snapshot(step)
            self.clear_routing()
            loss = self.train_step(step)
            with self.gpu.unrecorded():  # a number for the reader: it does not fill the GPU step by step
                result.losses.append(loss.clone())
            del loss
        if self.job.keep and not self.job.capture:
            result.weights.append(self.manager.weights())
        result.losses = [loss.cpu() if loss.device.type != "meta" else loss for loss in result.losses]
        result.checkpoint_bytes = getattr(self.keep, "held", 0)
        result.routing = {block.index: list(block.routing) for block in self.blocks if self.job.model.experts}
        result.in_flight = self.executor.most_live
        result.units = [(u.name, u.numel, u.padded) for u in self.manager.units]
        result.host_bytes = self.gpu.memory.host_bytes
        result.most_layers = self.manager.most_layers
        return result

    @property
    def blocks(self) -> list[Any]:
        """Of all stages here."""
        return [block for stage in self.stages.values() for block in stage.layers.values()]

    def clear_routing(self) -> None:
        """Routers tell of a step what they did."""
        for block in self.blocks if self.job.model.experts else ():
            block.routing.clear()

    def train_step(self, step: int) -> Tensor:
        """One optimizer step; returns the mean loss over the global batch."""
        gpu, plan = self.gpu, self.plan
        with gpu.unrecorded():
            inputs, targets, count = self.load(step)
            wide = torch.float64 if plan.precision == "fp64" else torch.float32
            loss = torch.zeros((), dtype=wide, device=gpu.device)
            seed = self.parallel.seed = self.seed()
        self.executor.run(inputs, targets, loss, seed, self.draws(step))
        with gpu.region("optimizer", layer=-1, micro_batch=-1):
            self.manager.finish()
            if isinstance(self.parallel, SequenceParallel):
                sum_over_tokens(self.parallel, self.manager)
            elif isinstance(self.parallel, TensorParallel):
                sum_over_heads(self.parallel, self.manager, self.partial)
            self.sum_tied()
            totals = self.totals(loss, count)
            self.result.state_bytes = {k: v for k, v in gpu.memory.snapshot().items() if k in ("parameters", "gradients", "optimizer")}
            norm, overflow = self.norm_and_overflow()
            scale = 1.0 / (totals[1] if seed is None else totals[1] * seed)
            if plan.clip or plan.skip_rule:
                norm = norm.sqrt() * scale  # of the mean gradient
            if plan.clip:
                scale = scale * torch.clamp(plan.clip / (norm + 1e-6), max=1.0)
            mean = totals[0] / totals[1]
        if self.job.capture:
            with gpu.unrecorded():
                weight = totals[1] if seed is None else totals[1] * seed
                self.result.gradients.append({n: g.to(wide) / weight for n, g in self.manager.gradients().items()})
        with gpu.region("optimizer", layer=-1, micro_batch=-1), torch.no_grad():
            if self.clean(overflow) and self.harmless(norm):
                self.update(scale)
            else:
                self.manager.step_ends()  # parameters stay, gradients start at zero
                self.return_if_bad(step)
        if self.job.capture:
            self.result.weights.append(self.manager.weights())
        if self.guard is None:  # else a loss that is not finite is a step that was skipped
            gpu.check_finite(mean, "loss", step)
        return mean

    def totals(self, loss: Tensor, count: Tensor) -> Tensor:
        """Loss summed over tokens, and tokens that carry it, over all ranks: [2]."""
        totals = torch.stack([loss, count.to(loss.dtype)])
        self.add_up(totals, (self.data, self.pp), "loss and token count")
        return totals

    def update(self, scale: Tensor) -> None:
        """Take the step, with gradients times `scale`."""
        self.updates += 1
        self.manager.step(scale, self.updates)

    def load(self, step: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """This rank's sequences, or its tokens of them, as micro-batches, and how many of its targets count (on the last stage)."""
        plan, m, device = self.plan, self.plan.micro_batches, self.gpu.device
        if device.type == "meta":
            one, target = (
                torch.empty(plan.micro_batch, columns // plan.cp, dtype=torch.int64, device=device)
                for columns in (self.job.model.columns, self.job.model.seq)
            )
            return [one] * m, [target] * m, torch.empty((), dtype=torch.int64, device=device)
        tokens, targets = self.job.batch(step)
        mine, cut = slice(self.dp_rank * m * plan.micro_batch, (self.dp_rank + 1) * m * plan.micro_batch), self.parallel.context.cut
        tokens, targets = (cut(x[mine], 1).contiguous().to(device) for x in (tokens, targets))
        count = (targets != IGNORE).sum() if self.last else torch.zeros((), dtype=torch.int64, device=device)
        return list(tokens.split(plan.micro_batch)), list(targets.split(plan.micro_batch)), count

    def draws(self, step: int) -> list[Draw]:
        """What each micro-batch is: the numbers of its sequences in the global batch, and their documents. A dry run reads none."""
        b, m = self.plan.micro_batch, self.plan.micro_batches
        first = self.dp_rank * m * b
        documents = None if self.gpu.device.type == "meta" else self.job.documents(step)
        spans = [range(first + i * b, first + (i + 1) * b) for i in range(m)]
        return [Draw(self.job.seed, step, tuple(s), documents and documents[s.start : s.stop]) for s in spans]

    # ---- fp16 ------------------------------------------------------------------------------------------------
    def seed(self) -> Tensor | None:
        """What fp16's backward starts from: the scale, over the global batch's tokens that carry loss, as if the loss were their mean."""
        if self.scaler is None:
            return None
        tokens = self.plan.global_batch * tokens_with_loss(self.job.model)
        return torch.full((), self.scaler.scale / tokens, dtype=torch.float32, device=self.gpu.device)

    def norm_and_overflow(self) -> tuple[Tensor, Tensor | None]:
        """The squared gradient norm over all ranks, and with a loss scale how many ranks overflowed, in one message."""
        norm = self.manager.norm_squared()
        if self.scaler is not None:
            norm = torch.stack([norm, self.manager.overflowed()])
        self.add_up(norm, self.norm_ranks, "gradient norm")
        return (norm, None) if self.scaler is None else (norm[0], norm[1])

    def clean(self, overflow: Tensor | None) -> bool:
        """Whether this step is taken: all ranks read the same number, so all decide alike."""
        if self.scaler is None or overflow is None:
            return True
        with self.gpu.unrecorded():
            overflowed = overflow.device.type != "meta" and bool(overflow)
        self.result.loss_scales.append(self.scaler.scale)
        self.result.skipped.append(overflowed)
        self.scaler.update(overflowed)
        return not overflowed

    # ---- bad batches -----------------------------------------------------------------------------------------
    def harmless(self, norm: Tensor) -> bool:
        """Whether a step of this gradient norm is taken: the norm is the same number on all ranks."""
        if self.guard is None:
            return True
        with self.gpu.unrecorded():
            bad = self.guard.harmful(float(norm))
        if self.scaler is None:
            self.result.skipped.append(bad)
        else:
            self.result.skipped[-1] = bad
        return not bad

    def keep_snapshot(self, step: int) -> None:
        """Before a step that is to be returned to."""
        if self.guard is not None and self.guard.rule.rollback and step % self.guard.rule.every == 0:
            with self.gpu.unrecorded():
                self.snapshot = Snapshot(self.manager.keep(), self.updates)

    def return_if_bad(self, step: int) -> None:
        """After too many bad steps in a row: weights, optimizer and its count are the snapshot's."""
        if self.guard is not None and self.guard.must_return():
            assert self.snapshot is not None
            with self.gpu.unrecorded():
                self.manager.restore(self.snapshot.kept)
            self.updates = self.snapshot.updates
            self.result.returned.append(step)

    def sum_tied(self) -> None:
        """First and last stage add their gradients of the shared table, over the wire or, where both are here, at once."""
        tables = [self.manager.gradient_slice(u) for u in self.manager.units if u.name == TIED and self.tied]
        if len(tables) == 2:
            tables[0].add_(tables[1])
            tables[1].copy_(tables[0])
        if self.pair is not None:
            (gradient,) = tables
            self.pair.all_reduce(gradient, algorithm=self.plan.algorithm, purpose="gradients", label="tied embedding")

    def add_up(self, x: Tensor, comms: tuple[Communicator, ...], label: str) -> None:
        """Sum scalars over some axes."""
        for comm in comms:
            comm.all_reduce(x, algorithm=self.plan.algorithm, purpose="scalars", label=label)


def job_info(job: Job, **more: Any) -> dict[str, Any]:
    """What a graph file remembers about the job that made it."""
    plan = job.plan
    tokens = plan.global_batch * job.model.seq
    return {
        "precision": plan.precision,
        "plan": plan.model_dump(mode="json"),
        "model": job.model.model_dump(mode="json"),
        "model_flops": job.model.model_flops(tokens),
        "tokens": tokens,
        **more,
    }
