"""One rank's training: a step is a list of phases, each told in a few lines.

    backward       the pipeline's actions; gradients are reduced as they become ready
    reduce         wait until every owned gradient is the sum over the ranks that see other data
    extra sums     over tensor ranks, of what each has whole; over two stages, of a tied table
    agree          loss, tokens, gradient norm and overflow are summed over ranks: all read the same numbers
    decide         is the step taken? fp16's loss scale and bad batches say so (numerics/)
    update         the owned slices, then parameters everywhere; or nothing

What a rank is built of (communicators, stages, ZeRO's managers) is assembly.py's business. Observers
(observer.py) are told at named moments: probes, captures, planted bugs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from glasscluster.base.errors import InputError
from glasscluster.model.text.data import tokens_with_loss
from glasscluster.sim.ranks.communicator import Communicator
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.strategies.assembly import assemble
from glasscluster.strategies.capture import Capture
from glasscluster.strategies.job import Job
from glasscluster.strategies.layout.units import TIED
from glasscluster.strategies.numerics.bad_batch import Guard, Snapshot
from glasscluster.strategies.numerics.decision import Decision
from glasscluster.strategies.numerics.formats import accumulator
from glasscluster.strategies.numerics.gradient_norm import norm_squared, overflowed
from glasscluster.strategies.numerics.loss_scale import LossScaler
from glasscluster.strategies.observer import Observer
from glasscluster.strategies.result import RankResult
from glasscluster.strategies.step import Batch, Step

Phase = Callable[[Step], None]


def in_optimizer(phase: Callable[[Any, Step], None]) -> Callable[[Any, Step], None]:
    """Label on the graph what a phase does: it belongs to no micro-batch and no layer."""

    @wraps(phase)
    def labelled(trainer: Trainer, step: Step) -> None:
        with trainer.gpu.region("optimizer", layer=-1, micro_batch=-1):
            phase(trainer, step)

    return labelled


def train_rank(gpu: GPU, job: Job) -> RankResult:
    """The SPMD program: the same on every backend."""
    if job.plan.exchange != "all-reduce":
        rule = "is another program: `glass train` runs it, this one reduces"
        raise InputError("exchange", job.plan.exchange, rule, ["all-reduce"])
    return Trainer(gpu, job).run()


class Trainer:
    """One rank of a training job."""

    def __init__(self, gpu: GPU, job: Job) -> None:
        job.check_packed()
        self.gpu, self.job, self.plan, self.result = gpu, job, job.plan, RankResult()
        dry = gpu.device.type == "meta"
        self.observers: list[Observer] = [make() for make in job.observers if not dry]
        self.observers += [Capture()] if job.capture else []
        self.parts = parts = assemble(gpu, job, self.observers)
        self.place, self.parallel = parts.place, parts.parallel
        self.stages, self.manager = parts.stages, parts.manager
        self.scaler = LossScaler(job.loss_scale) if self.plan.precision == "fp16" else None
        self.guard = Guard(self.plan.skip_rule) if self.plan.skip_rule and not dry else None
        self.decisions: list[Decision] = [d for d in (self.scaler, self.guard) if d is not None]
        self.updates = 0  # steps that were not skipped
        self.phases: list[Phase] = [
            self.backward,
            self.reduce,
            self.sum_over_tensor_ranks,
            self.sum_tied,
            self.agree,
            self.decide,
            self.update,
        ]
        for observer in self.observers:
            observer.assembled(self)

    # ---- the run -------------------------------------------------------------------------------------------
    def run(self) -> RankResult:
        """All steps.

        Each is recorded over the one before, so a failure shows its own step and a finished run the last.
        """
        result = self.result
        for number in range(self.job.steps):
            self.manager.step_begins()
            self.gpu.start_step()
            self.keep_snapshot(number)
            self.clear_routing()
            loss = self.train_step(number)
            with self.gpu.unrecorded():  # a number for the reader: it does not fill the GPU step by step
                result.losses.append(loss.clone())
            del loss
        if self.job.keep and not self.job.capture:
            result.weights.append(self.manager.weights())
        result.constants = {n: x for s in self.stages.values() for n, x in s.full_constants().items()}
        result.losses = [loss.cpu() if loss.device.type != "meta" else loss for loss in result.losses]
        result.checkpoint_bytes = getattr(self.parts.keep, "held", 0)
        model = self.job.model
        result.routing = {b.index: list(b.routing) for b in self.blocks if model.routed(b.index)}
        result.in_flight = self.parts.executor.most_live
        result.units = [(u.name, u.numel, u.padded) for u in self.manager.units]
        result.host_bytes = self.gpu.memory.host_bytes
        result.most_layers = self.parts.layers.most
        return result

    def train_step(self, number: int) -> Tensor:
        """One optimizer step; returns the mean loss over the global batch."""
        step = self.begin(number)
        for phase in self.phases:
            phase(step)
        for observer in self.observers:
            observer.step_ends(step)
        if self.guard is None:  # else a loss that is not finite is a step that was skipped
            self.gpu.check_finite(step.mean, "loss", number)
        return step.mean

    def begin(self, number: int) -> Step:
        """Load the data; backward starts from fp16's loss scale."""
        for observer in self.observers:
            observer.step_begins(number)
        with self.gpu.unrecorded():
            chosen = number
            for observer in self.observers:
                chosen = observer.batch_chosen(chosen)
            batch = Batch(*self.parts.loader.load(chosen))
            for observer in self.observers:
                batch = observer.batch_loaded(number, batch)
            loss = torch.zeros((), dtype=accumulator(self.plan.precision), device=self.gpu.device)
            seed = self.parallel.seed = self.seed()
        return Step(number, batch, loss, seed)

    # ---- the phases ----------------------------------------------------------------------------------------
    def backward(self, step: Step) -> None:
        """All micro-batches forward and backward. Gradients are reduced as they become ready."""
        inputs, targets, _ = step.batch
        self.parts.executor.run(inputs, targets, step.loss, step.seed, self.parts.loader.draws(step.number))
        for observer in self.observers:
            observer.after_backward(step)

    @in_optimizer
    def reduce(self, step: Step) -> None:
        """Wait for the reductions over the ranks that see other data."""
        self.manager.finish()
        for observer in self.observers:
            observer.gradient_reduced(step)

    @in_optimizer
    def sum_over_tensor_ranks(self, _step: Step) -> None:
        """What tensor ranks have whole, and each has a part of the gradient of."""
        if self.parts.tensor_sum is not None:
            self.parts.tensor_sum(self.manager.units)

    @in_optimizer
    def sum_tied(self, _step: Step) -> None:
        """First and last stage add their gradients of the shared table, over the wire or, where both are
        here, at once.
        """
        if not self.place.tied:
            return
        tables = [u.owned_gradient for u in self.manager.units if u.name == TIED]
        if len(tables) == 2:
            tables[0].add_(tables[1])
            tables[1].copy_(tables[0])
        pair = self.place.pair
        if pair is not None:
            (gradient,) = tables
            name = "tied embedding"
            pair.all_reduce(gradient, algorithm=self.plan.algorithm, purpose="gradients", label=name)

    @in_optimizer
    def agree(self, step: Step) -> None:
        """Loss, tokens, norm and overflow over all ranks; from them mean loss and scale of gradients."""
        plan, seed = self.plan, step.seed
        for observer in self.observers:
            observer.gradient_summed(step)
        step.totals = self.totals(step.loss, step.batch.counted)
        with self.gpu.unrecorded():
            step.totals[1].clamp_(min=1)  # of a step in which no token carries loss, all means are 0
        held = self.gpu.memory.snapshot()
        self.result.state_bytes = {k: held[k] for k in held if k in ("parameters", "gradients", "optimizer")}
        step.norm, step.overflow = self.norm_and_overflow()
        step.scale = 1.0 / (step.totals[1] if seed is None else step.totals[1] * seed)
        if plan.clip or plan.skip_rule:
            step.norm = step.norm.sqrt() * step.scale  # of the mean gradient
        if plan.clip:
            step.scale = step.scale * torch.clamp(plan.clip / (step.norm + 1e-6), max=1.0)
        step.mean = step.totals[0] / step.totals[1]
        for observer in self.observers:
            observer.agreed(step)

    @in_optimizer
    def decide(self, step: Step) -> None:
        """The step is taken unless a decision is against it; the first one that is ends the matter."""
        if self.scaler is not None:
            self.result.loss_scales.append(self.scaler.scale)
        with self.gpu.unrecorded():
            step.taken = all(decision.takes(step.norm, step.overflow) for decision in self.decisions)
        if self.decisions:
            self.result.skipped.append(not step.taken)

    @in_optimizer
    @torch.no_grad()
    def update(self, step: Step) -> None:
        """Take the step; or skip it, and after too many bad ones in a row return to the last snapshot."""
        if not step.taken:
            self.manager.clear()
            self.return_if_bad(step.number)
            return
        for observer in self.observers:
            observer.before_update(step)
        self.updates += 1
        self.manager.step(step.scale, self.updates)
        for observer in self.observers:
            observer.after_update(step)

    # ---- what the phases are made of -----------------------------------------------------------------------
    def totals(self, loss: Tensor, count: Tensor) -> Tensor:
        """Loss summed over tokens, and tokens that carry it, over all ranks: [2]."""
        totals = torch.stack([loss, count.to(loss.dtype)])
        self.add_up(totals, (self.place.data, self.place.pp), "loss and token count")
        return totals

    def norm_and_overflow(self) -> tuple[Tensor, Tensor | None]:
        """The squared gradient norm over all ranks, and with a loss scale how many ranks overflowed, in one
        message.
        """
        stages, device = self.manager.all, self.gpu.device
        norm = norm_squared(stages, accumulator(self.plan.precision), device)
        if self.scaler is not None:
            norm = torch.stack([norm, overflowed(stages, device)])
        self.add_up(norm, self.place.norm_ranks, "gradient norm")
        for observer in self.observers:
            observer.norm_summed(norm)
        for observer in self.observers:
            observer.norm_agreed(norm)
        return (norm, None) if self.scaler is None else (norm[0], norm[1])

    def add_up(self, x: Tensor, comms: tuple[Communicator, ...], label: str) -> None:
        """Sum scalars over some axes."""
        for comm in comms:
            comm.all_reduce(x, algorithm=self.plan.algorithm, purpose="scalars", label=label)

    def seed(self) -> Tensor | None:
        """What fp16's backward starts from: the scale over the global batch's tokens that carry loss.

        As if the loss were their mean.
        """
        if self.scaler is None:
            return None
        tokens = self.plan.global_batch * tokens_with_loss(self.job.model)
        return torch.full((), self.scaler.scale / tokens, dtype=torch.float32, device=self.gpu.device)

    # ---- before and after ----------------------------------------------------------------------------------
    def keep_snapshot(self, number: int) -> None:
        """Before a step that is to be returned to."""
        if self.guard is not None and self.guard.keeps(number):
            with self.gpu.unrecorded():
                self.guard.snapshot = Snapshot(self.manager.keep(), self.updates)

    def return_if_bad(self, number: int) -> None:
        """After too many bad steps in a row: weights, optimizer and its count are the snapshot's."""
        if self.guard is not None and self.guard.must_return():
            assert self.guard.snapshot is not None
            with self.gpu.unrecorded():
                self.manager.restore(self.guard.snapshot.kept)
            self.updates = self.guard.snapshot.updates
            self.result.returned.append(number)

    @property
    def blocks(self) -> list[Any]:
        """The blocks of all of this rank's stages."""
        return [block for stage in self.stages.values() for block in stage.layers.values()]

    def clear_routing(self) -> None:
        """Routers tell of a step what they did."""
        for block in self.blocks:
            if self.job.model.routed(block.index):
                block.routing.clear()
