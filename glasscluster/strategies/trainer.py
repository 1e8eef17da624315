"""The one place where strategies are composed into a rank's program.

tensor parallelism is a communicator handed to the blocks; data parallelism and ZeRO are one manager over units;
the pipeline is an executor that owns the micro-batch loop. A tied embedding with copies on two stages is summed
over the two after the data-parallel reduction, on whatever part of it a rank owns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from glasscluster.model.adamw import Optimizer
from glasscluster.model.config import ModelConfig
from glasscluster.model.data import batch, corpus
from glasscluster.model.gpt import GPTStage
from glasscluster.model.parallel import IGNORE, Unsharded
from glasscluster.sim.communicator import Communicator
from glasscluster.sim.gpu import GPU
from glasscluster.strategies.data_parallel import DataParallel
from glasscluster.strategies.pipeline_parallel import PipelineExecutor
from glasscluster.strategies.plan import Plan
from glasscluster.strategies.schedules import make_schedule
from glasscluster.strategies.tensor_parallel import TensorParallel
from glasscluster.strategies.zero import LADDER

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
TIED = "embedding.token"


@dataclass(frozen=True)
class Job:
    """Everything a rank needs to train: plan, model, steps, data, seed. `capture` keeps gradients and weights."""

    plan: Plan
    model: ModelConfig
    steps: int = 3
    data: str | None = None
    seed: int = 0
    capture: bool = False

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer with the plan's learning rate."""
        return Optimizer(self.plan.optimizer, lr=self.plan.lr)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The global batch of a step: [G, s] tokens and targets."""
        m = self.model
        return batch(corpus(self.data), step, self.plan.global_batch, m.seq, m.vocab, self.seed)


@dataclass
class RankResult:
    """What a rank brings back: mean losses, state bytes, and in a check its gradients and weights by name."""

    losses: list[Tensor] = field(default_factory=list)
    state_bytes: dict[str, int] = field(default_factory=dict)
    units: list[tuple[str, int, int]] = field(default_factory=list)  # name, elements, padded elements
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)


def train_rank(gpu: GPU, job: Job) -> RankResult:
    """The SPMD program: the same on every backend."""
    return Trainer(gpu, job).run()


class Trainer:
    """One rank of a training job."""

    def __init__(self, gpu: GPU, job: Job) -> None:
        self.gpu, self.job, plan = gpu, job, job.plan
        self.plan, self.result = plan, RankResult()
        mesh = gpu.make_mesh(plan.mesh)
        self.dp, self.tp, self.pp = mesh["dp"], mesh["tp"], mesh["pp"]
        self.first, self.last = self.pp.rank == 0, self.pp.rank == plan.pp - 1
        self.tied = job.model.tied and plan.pp > 1 and (self.first or self.last)
        self.pair: Communicator | None = mesh.subset("pp", [0, plan.pp - 1], "tied") if self.tied else None
        with gpu.unrecorded():
            self.stage = self.make_stage()
            self.manager = self.make_manager()
        self.schedule = make_schedule(plan.schedule, plan.pp, plan.micro_batches)
        shape = (plan.micro_batch, job.model.seq, job.model.hidden)
        self.executor = PipelineExecutor(gpu, self.pp, self.stage, shape, DTYPES[plan.precision], self.manager)

    # ---- assembly --------------------------------------------------------------------------------------------
    def make_stage(self) -> GPTStage:
        """This rank's layers, cut for tensor parallelism; hooks tell the recorder which layer runs."""
        parallel = TensorParallel(self.tp, self.plan.algorithm) if self.tp.size > 1 else Unsharded()
        layers = self.plan.stage_layers(self.job.model)[self.pp.rank]
        stage = GPTStage(
            self.job.model, layers, self.first, self.last, parallel, self.job.seed, DTYPES[self.plan.precision], self.gpu.device
        )
        for part in stage.parts():
            part.register_forward_pre_hook(lambda module, _args: self.gpu.recorder.enter_layer(getattr(module, "index", -1)))
        return stage

    def make_manager(self) -> DataParallel:
        """Data parallelism at the plan's ZeRO stage."""
        kind = LADDER[self.plan.zero]
        apart = {TIED} if self.tied else set()
        return kind(self.gpu, self.dp, self.stage, self.plan, self.job.optimizer, apart, self.counts)

    def counts(self, name: str, cut: bool) -> bool:
        """Whether this rank adds a parameter to the gradient norm: each element exactly once over tp and pp."""
        if self.tied and name == TIED and not self.first:
            return False
        return cut or self.tp.rank == 0

    # ---- training --------------------------------------------------------------------------------------------
    def run(self) -> RankResult:
        """All steps. Each is recorded over the one before, so a failure shows its own step and a finished run the last."""
        result = self.result
        for step in range(self.job.steps):
            self.gpu.start_step()
            result.losses.append(self.train_step(step))
        result.losses = [loss.cpu() if loss.device.type != "meta" else loss for loss in result.losses]
        result.units = [(u.name, u.numel, u.padded) for u in self.manager.units]
        return result

    def train_step(self, step: int) -> Tensor:
        """One optimizer step; returns the mean loss over the global batch."""
        gpu, plan = self.gpu, self.plan
        with gpu.unrecorded():
            inputs, targets, count = self.load(step)
            wide = torch.float64 if plan.precision == "fp64" else torch.float32
            loss = torch.zeros((), dtype=wide, device=gpu.device)
        self.executor.run(self.schedule.ranks[self.pp.rank], inputs, targets, loss)
        with gpu.region("optimizer", layer=-1, micro_batch=-1):
            self.manager.finish()
            self.sum_tied()
            totals = torch.stack([loss, count.to(wide)])
            self.add_up(totals, (self.dp, self.pp), "loss and token count")
            self.result.state_bytes = {k: v for k, v in gpu.memory.snapshot().items() if k in ("parameters", "gradients", "optimizer")}
            norm = self.manager.norm_squared()
            self.add_up(norm, ((self.dp,) if plan.zero else ()) + (self.tp, self.pp), "gradient norm")
            scale = 1.0 / totals[1]
            if plan.clip:
                scale = scale * torch.clamp(plan.clip / (norm.sqrt() * scale + 1e-6), max=1.0)
            mean = totals[0] / totals[1]
        if self.job.capture:
            with gpu.unrecorded():
                self.result.gradients.append({n: g / totals[1] for n, g in self.manager.gradients().items()})
        with gpu.region("optimizer", layer=-1, micro_batch=-1), torch.no_grad():
            self.manager.step(scale, step + 1)
        if self.job.capture:
            self.result.weights.append(self.manager.weights())
        gpu.check_finite(mean, "loss", step)
        return mean

    def load(self, step: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """This data-parallel rank's micro-batches, and how many of its targets count (on the last stage)."""
        plan, m, device = self.plan, self.plan.micro_batches, self.gpu.device
        if device.type == "meta":
            one = torch.empty(plan.micro_batch, self.job.model.seq, dtype=torch.int64, device=device)
            return [one] * m, [one] * m, torch.empty((), dtype=torch.int64, device=device)
        tokens, targets = self.job.batch(step)
        mine = slice(self.dp.rank * m * plan.micro_batch, (self.dp.rank + 1) * m * plan.micro_batch)
        tokens, targets = tokens[mine].to(device), targets[mine].to(device)
        count = (targets != IGNORE).sum() if self.last else torch.zeros((), dtype=torch.int64, device=device)
        return list(tokens.split(plan.micro_batch)), list(targets.split(plan.micro_batch)), count

    def sum_tied(self) -> None:
        """First and last stage add their gradients of the shared table."""
        if self.pair is not None:
            unit = next(u for u in self.manager.units if u.name == TIED)
            gradient = self.manager.gradient_slice(unit)
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
