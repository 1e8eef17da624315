"""Probes: what each rank of a run sees, step by step. They read and never write: a probed run is the same in
every bit.

    forward   │ rms of each part's output │ largest q·k/√d a sequence │ log Z of each token, largest |logit|
    backward  │ norm of the rank's own gradient, before it is reduced │
    reduced   │ squares of each parameter's gradient, and the norm that the trainer made of them (Eq 38)
    update    │ squares of each parameter and of what it moved by     │ hash of what replicas must share
    data      │ a hash of every sequence, so that what comes again is known

A reading is local and costs no message; `vitals.py` puts the ranks' readings of a step together after the
run. Which statistics are worth watching: Wortsman et al., 2309.14322, sections 3 and 4 (attention logits,
output logits, size of updates). But: a ring's rank sees the scores of its own keys only, without biases by
distance; under ZeRO-2 and 3 a rank's own gradient is summed up over micro-batches by squares.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glasscluster.model.parallel import Shard
from glasscluster.strategies.layout.units import TIED, Unit, owned_members
from glasscluster.strategies.observer import Observer
from glasscluster.strategies.result import RankResult
from glasscluster.strategies.step import Batch, Step

if TYPE_CHECKING:
    from glasscluster.strategies.trainer import Trainer

EMBEDDING = -1  # a layer's number stands for it; the head's is the number of layers


@dataclass
class Reading:
    """What one rank saw of one step. Norms are squared and in the units of the sum over tokens; `unit` makes
    the mean of them.
    """

    loss: float = 0.0  # summed over this rank's tokens (on the last stage)
    tokens: float = 0.0
    unit: float = 1.0  # tokens of the global batch x the loss scale
    rows: list[int] = field(default_factory=list)  # hashes of the sequences
    own: float = 0.0  # the rank's own gradient
    gradients: dict[tuple[str, str], float] = field(
        default_factory=dict
    )  # (parameter, how it is cut) -> of what this rank owns
    zeros: list[int] = field(
        default_factory=lambda: [0, 0]
    )  # elements of the blocks' gradients that are 0, and all of them
    used: float = 0.0  # what the trainer took for the sum of all squares
    rate: float = 0.0  # learning rate
    scale: float = 1.0  # loss scale
    weights: dict[str, float] = field(default_factory=dict)  # parameter -> before the update
    moved: dict[str, float] = field(default_factory=dict)
    outputs: dict[int, list[float]] = field(
        default_factory=lambda: defaultdict(lambda: [0.0, 0.0])
    )  # layer -> squares, elements
    scores: dict[int, float] = field(default_factory=lambda: defaultdict(float))  # layer -> largest |q·k|/√d
    logit: float = 0.0  # largest |logit|
    log_z: list[Tensor] = field(
        default_factory=list
    )  # of each micro-batch's tokens, over this rank's part of the vocabulary
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


class Probes(Observer):
    """Looks on and writes a reading a step. Everything it computes is unrecorded and has no gradient."""

    def assembled(self, trainer: Trainer) -> None:
        """Whose steps these are."""
        self.trainer, self.gpu, self.reading = trainer, trainer.gpu, Reading()

    # ---- a step --------------------------------------------------------------------------------------------
    def step_begins(self, number: int) -> None:
        """A new reading."""
        scaler = self.trainer.scaler
        self.reading = Reading(scale=scaler.scale if scaler else 1.0)

    def batch_loaded(self, number: int, batch: Batch) -> Batch:
        """The step's data, remembered by hash."""
        self.reading.rows = [fingerprint(row) for tokens in batch.inputs for row in tokens]
        return batch

    def activation(self, kind: str, layer: int, *tensors: Tensor) -> None:
        """What parts of the model make, the first time: recomputation would count it twice."""
        if self.trainer.parts.keep.active:
            return
        with self.gpu.unrecorded(), torch.no_grad():
            if kind == "output":
                self.output(layer, *tensors)
            elif kind == "queries and keys":
                self.attention(layer, *tensors)
            else:
                self.logits(*tensors)

    def output(self, layer: int, out: Tensor) -> None:
        """Behind an embedding or a block: its output's squares."""
        seen = self.reading.outputs[layer]
        seen[0], seen[1] = seen[0] + square(out), seen[1] + out.numel()

    def attention(self, layer: int, q: Tensor, k: Tensor) -> None:
        """A block's queries and keys: the largest score of the first sequence."""
        context, causal = self.trainer.parallel.context, self.trainer.job.model.causal
        keys = k[0].double()  # [s, key heads, d]
        queries = q[0].unflatten(1, (k.shape[2], -1)).double()  # [s, key heads, queries of a head, d]
        scores = torch.einsum("skgd,tkd->kgst", queries, keys).abs_() / q.shape[-1] ** 0.5
        if causal:
            at = torch.tensor(context.positions(q.shape[1] * context.size))
            scores.masked_fill_(at[None, :] > at[:, None], 0.0)
        self.reading.scores[layer] = max(self.reading.scores[layer], float(scores.amax()))

    def logits(self, logits: Tensor) -> None:
        """The head's logits, without the vocabulary's padding."""
        columns = logits.shape[-1]
        real = max(0, min(columns, self.trainer.job.model.vocab - self.trainer.parallel.rank * columns))
        mine = logits[..., :real].double()
        self.reading.log_z.append(mine.logsumexp(-1).cpu())
        self.reading.logit = max(self.reading.logit, float(mine.abs().amax()) if real else 0.0)

    def gradient_complete(self, unit: Unit) -> bool:
        """A unit's gradient is complete here and has not met the other ranks' yet."""
        if unit.grad is not None:
            with self.gpu.unrecorded():
                self.reading.own += square(unit.grad)
        return False

    def after_backward(self, step: Step) -> None:
        """Before they are added up over ranks, loss and tokens are the rank's own."""
        with self.gpu.unrecorded():
            self.reading.loss, self.reading.tokens = float(step.loss), float(step.batch.counted)

    def gradient_summed(self, step: Step) -> None:
        """Squares by parameter, and how many of the blocks' elements vanished."""
        with self.gpu.unrecorded():
            for name, cut, unit, where in self.owned():
                gradient = unit.owned_gradient[where]
                self.reading.gradients[name, cut] = square(gradient)
                if name.startswith("layers."):
                    self.reading.zeros[0] += int((gradient == 0).sum())
                    self.reading.zeros[1] += gradient.numel()

    def norm_agreed(self, norm: Tensor) -> None:
        """The sum of all squares as the trainer adds them up."""
        with self.gpu.unrecorded():
            self.reading.used = float(norm.flatten()[0])

    def agreed(self, step: Step) -> None:
        """What makes the mean of the sum over tokens."""
        with self.gpu.unrecorded():
            self.reading.unit = float(step.totals[1]) * (1.0 if step.seed is None else float(step.seed))

    def before_update(self, step: Step) -> None:
        """Where the parameters are."""
        with self.gpu.unrecorded():
            self.before = {name: u.owned_parameters[where].clone() for name, _, u, where in self.owned()}

    def after_update(self, step: Step) -> None:
        """How far the update has moved each parameter."""
        optimizer, reading = self.trainer.job.optimizer, self.reading
        with self.gpu.unrecorded():
            reading.rate = optimizer.lr * optimizer.schedule.factor(self.trainer.updates)
            for name, _, unit, where in self.owned():
                before, after = self.before[name], unit.owned_parameters[where]
                reading.weights[name] = square(before)
                reading.moved[name] = square(after.double() - before.double())

    def step_ends(self, step: Step) -> None:
        """Fingerprints of what other ranks must have in every bit, and the reading is complete."""
        with self.gpu.unrecorded():
            self.mark()
        self.trainer.result.readings.append(self.reading)

    def owned(self) -> list[tuple[str, str, Unit, slice]]:
        """Every parameter that this rank owns a part of.

        Its name, how it is cut, its unit, and where in the unit's owned slice it is.
        """
        owned = []
        for number, manager in self.trainer.manager.of.items():
            for unit in manager.units:
                for m, part in owned_members(unit):
                    copy = self.trainer.place.tied and m.name == TIED and number > 0  # the last stage's
                    if not copy:
                        owned.append((m.name, kind(m.shard), unit, part))
        return owned

    def mark(self) -> None:
        """Fingerprints."""
        reading, zero = self.reading, self.trainer.plan.zero
        for unit in self.trainer.manager.units:
            if not unit.experts:
                held = unit.flat if zero < 3 else unit.owned_parameters
                reading.replica = fingerprint(held, reading.replica)
            if zero < 3:
                for m in sorted((m for m in unit.members if m.shard is None), key=lambda m: m.name):
                    reading.whole = fingerprint(m.parameter, reading.whole)


def probed(results: list[RankResult]) -> list[list[Reading]]:
    """Readings by step and rank."""
    return [list(step) for step in zip(*(r.readings for r in results), strict=True)]
