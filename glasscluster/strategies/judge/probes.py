"""Probes: what each rank of a run sees, step by step. They read and never write: a probed run is the same in every bit.

    forward    │ rms of each part's output      │ largest q·k/√d of one sequence   │ log Z of each token, largest |logit|
    backward   │ norm of the rank's own gradient, before it is reduced             │
    reduced    │ squares of each parameter's gradient, and the norm that the trainer made of them (Eq 38)
    update     │ squares of each parameter and of what it moved by                 │ a fingerprint of what replicas must share
    data       │ a hash of every sequence, so that what comes again is known

A reading is local and costs no message; `vitals.py` puts the ranks' readings of a step together after the run.
Which statistics are worth watching: Wortsman et al., 2309.14322, sections 3 and 4 (attention logits, output logits, size of updates).
But: a ring's rank sees the scores of its own keys only, without biases by distance; under ZeRO-2 and 3 a rank's own gradient
is summed up over micro-batches by squares.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from glasscluster.model.parallel import Shard
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.strategies.data.data_parallel import DataParallel
from glasscluster.strategies.layout.units import Unit
from glasscluster.strategies.trainer import TIED, Job, RankResult, Trainer

EMBEDDING = -1  # a layer's number stands for it; the head's is the number of layers


@dataclass
class Reading:
    """What one rank saw of one step. Norms are squared and in the units of the sum over tokens; `unit` makes the mean of them."""

    loss: float = 0.0  # summed over this rank's tokens (on the last stage)
    tokens: float = 0.0
    unit: float = 1.0  # tokens of the global batch x the loss scale
    rows: list[int] = field(default_factory=list)  # hashes of the sequences
    own: float = 0.0  # the rank's own gradient
    gradients: dict[tuple[str, str], float] = field(default_factory=dict)  # (parameter, how it is cut) -> of what this rank owns
    zeros: list[int] = field(default_factory=lambda: [0, 0])  # elements of the blocks' gradients that are 0, and all of them
    used: float = 0.0  # what the trainer took for the sum of all squares
    rate: float = 0.0  # learning rate
    scale: float = 1.0  # loss scale
    weights: dict[str, float] = field(default_factory=dict)  # parameter -> before the update
    moved: dict[str, float] = field(default_factory=dict)
    outputs: dict[int, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))  # layer -> squares, elements
    scores: dict[int, float] = field(default_factory=lambda: defaultdict(float))  # layer -> largest |q·k|/√d
    logit: float = 0.0  # largest |logit|
    log_z: list[Tensor] = field(default_factory=list)  # of each micro-batch's tokens, over this rank's part of the vocabulary
    replica: int = 0  # fingerprint of all parameters but experts
    whole: int = 0  # of those that tensor ranks have whole


def kind(shard: Shard | None) -> str:
    """How a parameter is cut over ranks of tensor and expert parallelism."""
    return "whole" if shard is None else "experts" if shard.experts else "cut"


def square(x: Tensor) -> float:
    """Sum of squares, in float64."""
    return float(x.detach().double().square().sum())


def fingerprint(x: Tensor, before: int = 0) -> int:
    """crc32 of the bits."""
    return zlib.crc32(x.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes(), before)


class ProbedTrainer(Trainer):
    """A Trainer that looks on. Everything it adds is unrecorded and has no gradient."""

    def __init__(self, gpu: GPU, job: Job) -> None:
        super().__init__(gpu, job)
        self.reading = Reading()
        for manager in self.manager.all:
            manager.__dict__["launch"] = partial(self.reducing, manager.launch)
        for stage in self.stages.values():
            for part in stage.parts():
                part.register_forward_hook(self.passed)
            for block in stage.layers.values():
                block.__dict__["queries_keys_values"] = partial(self.attending, block, block.queries_keys_values)
            if stage.head is not None:
                stage.head.__dict__["scores"] = partial(self.scoring, stage.head.scores)

    # ---- forward ---------------------------------------------------------------------------------------------
    def passed(self, part: Any, _args: Any, out: Tensor) -> None:
        """Behind an embedding or a block: its output's squares."""
        if out.dim() == 3 and not self.keep.active:
            with self.gpu.unrecorded():
                seen = self.reading.outputs[getattr(part, "index", EMBEDDING)]
                seen[0], seen[1] = seen[0] + square(out), seen[1] + out.numel()

    def attending(self, block: Any, honest: Callable[[Tensor], Any], x: Tensor) -> Any:
        """A block's queries and keys: the largest score of the first sequence."""
        q, k, v = honest(x)
        if not self.keep.active:
            with self.gpu.unrecorded(), torch.no_grad():
                queries, keys = (
                    q[0].unflatten(1, (k.shape[2], -1)).double(),
                    k[0].double(),
                )  # [s, key heads, queries of a head, d], [s, key heads, d]
                at = torch.tensor(self.parallel.context.positions(q.shape[1] * self.parallel.context.size))
                scores = torch.einsum("skgd,tkd->kgst", queries, keys).abs_() / q.shape[-1] ** 0.5
                if block.config.causal:
                    scores.masked_fill_(at[None, :] > at[:, None], 0.0)
                self.reading.scores[block.index] = max(self.reading.scores[block.index], float(scores.amax()))
        return q, k, v

    def scoring(self, honest: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The head's logits."""
        logits = honest(x)
        with self.gpu.unrecorded(), torch.no_grad():
            real = max(0, min(logits.shape[-1], self.job.model.vocab - self.parallel.rank * logits.shape[-1]))
            mine = logits[..., :real].double()
            self.reading.log_z.append(mine.logsumexp(-1).cpu())
            self.reading.logit = max(self.reading.logit, float(mine.abs().amax()) if real else 0.0)
        return logits

    # ---- a step ----------------------------------------------------------------------------------------------
    def train_step(self, step: int) -> Tensor:
        """A step and its reading."""
        self.reading = Reading(scale=self.scaler.scale if self.scaler else 1.0)
        mean = super().train_step(step)
        with self.gpu.unrecorded():
            self.mark()
        self.result.readings.append(self.reading)
        return mean

    def load(self, step: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """The step's data, remembered by hash."""
        inputs, targets, count = super().load(step)
        self.reading.rows = [fingerprint(row) for batch in inputs for row in batch]
        return inputs, targets, count

    def reducing(self, honest: Callable[[Unit], None], unit: Unit) -> None:
        """A unit's gradient is complete here and has not met the other ranks' yet."""
        if unit.grad is not None:
            with self.gpu.unrecorded():
                self.reading.own += square(unit.grad)
        honest(unit)

    def totals(self, loss: Tensor, count: Tensor) -> Tensor:
        """Before they are added up over ranks, loss and tokens are the rank's own."""
        with self.gpu.unrecorded():
            self.reading.loss, self.reading.tokens = float(loss), float(count)
        totals = super().totals(loss, count)
        with self.gpu.unrecorded():
            self.reading.unit = float(totals[1]) * (1.0 if self.parallel.seed is None else float(self.parallel.seed))
        return totals

    def norm_and_overflow(self) -> tuple[Tensor, Tensor | None]:
        """All gradients are complete: their squares, by themselves and as the trainer adds them up."""
        with self.gpu.unrecorded():
            self.look_at_gradients()
        norm, overflow = super().norm_and_overflow()
        with self.gpu.unrecorded():
            self.reading.used = float(norm)
        return norm, overflow

    def owned(self) -> list[tuple[str, str, DataParallel, Unit, slice]]:
        """Every parameter that this rank owns a part of: its name, how it is cut, and where in the unit's owned slice the part is."""
        found = []
        for number, manager in self.manager.of.items():
            for unit in manager.units:
                mine = manager.owned(unit)
                for m in unit.members:
                    a, b = max(m.start, mine.start) - mine.start, min(m.stop, mine.stop) - mine.start
                    copy = self.tied and m.name == TIED and number > 0  # the last stage's
                    if a < b and not copy:
                        found.append((m.name, kind(m.shard), manager, unit, slice(a, b)))
        return found

    def look_at_gradients(self) -> None:
        """Squares by parameter, and how many of the blocks' elements vanished."""
        for name, cut, manager, unit, where in self.owned():
            gradient = manager.gradient_slice(unit)[where]
            self.reading.gradients[name, cut] = square(gradient)
            if name.startswith("layers."):
                self.reading.zeros[0] += int((gradient == 0).sum())
                self.reading.zeros[1] += gradient.numel()

    def update(self, scale: Tensor) -> None:
        """The update, and how far it moved each parameter."""
        with self.gpu.unrecorded():
            before = {name: m.parameter_slice(unit)[where].clone() for name, _, m, unit, where in self.owned()}
        super().update(scale)
        optimizer, reading = self.job.optimizer, self.reading
        with self.gpu.unrecorded():
            reading.rate = optimizer.lr * optimizer.schedule.factor(self.updates)
            for name, _, manager, unit, where in self.owned():
                reading.weights[name] = square(before[name])
                reading.moved[name] = square(manager.parameter_slice(unit)[where].double() - before[name].double())

    def mark(self) -> None:
        """Fingerprints of what other ranks must have in every bit."""
        reading = self.reading
        for manager in self.manager.all:
            for unit in manager.units:
                if not unit.experts:
                    reading.replica = fingerprint(unit.flat if self.plan.zero < 3 else manager.parameter_slice(unit), reading.replica)
                if self.plan.zero < 3:
                    for m in sorted((m for m in unit.members if m.shard is None), key=lambda m: m.name):
                        reading.whole = fingerprint(m.parameter, reading.whole)


def probed(results: list[RankResult]) -> list[list[Reading]]:
    """Readings by step and rank."""
    return [list(step) for step in zip(*(r.readings for r in results), strict=True)]
