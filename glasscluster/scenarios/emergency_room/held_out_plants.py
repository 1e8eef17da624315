"""The plants of held_out.py: ten faults that the rules of diagnosis.py have not seen."""

from __future__ import annotations

from dataclasses import replace

import torch

from glasscluster.scenarios.emergency_room.plant import Plant, masters_follow
from glasscluster.strategies.layout.units import Unit, owned_members
from glasscluster.strategies.numerics.formats import accumulator
from glasscluster.strategies.numerics.gradient_norm import norm_squared
from glasscluster.strategies.step import Batch, Step
from glasscluster.strategies.trainer import Trainer

FROM_STEP = 10
LAYER = 1  # the layer that has the fault


class LateRate(Plant):
    """The learning rate is 30 times what it should be from a step on, as after a wrong edit of a schedule."""

    def step_begins(self, number: int) -> None:
        """From one step on, raise the rate of every optimizer on every rank."""
        if number == FROM_STEP:
            for manager in self.trainer.manager.all:
                manager.optimizer.rule = replace(manager.optimizer.rule, lr=30 * manager.optimizer.rule.lr)


class OneLayerInit(Plant):
    """One layer's matrices are drawn 10 times too large."""

    def assembled(self, trainer: Trainer) -> None:
        """Scale all matrices of the layer."""
        with torch.no_grad():
            for block in trainer.blocks:
                for parameter in block.parameters() if block.index == LAYER else ():
                    if parameter.dim() > 1:
                        parameter *= 10
        masters_follow(trainer)


class StuckBatch(Plant):
    """The loader hands out one batch for ever from a step on."""

    def batch_chosen(self, number: int) -> int:
        """The batch of each step: 0, 1, .. 9, 10, 10, ..."""
        return min(number, FROM_STEP)


class StaleLayer(Plant):
    """Rank 1 misses every update of one layer: it computes with the weights it began with."""

    def assembled(self, trainer: Trainer) -> None:
        """Remember the trainer, and make room for the layer's old weights."""
        self.trainer, self.old = trainer, list[torch.Tensor]()

    def own_layer(self) -> list[torch.nn.Parameter]:
        """The layer's parameters on data-parallel rank 1; none on other ranks."""
        if self.trainer.place.dp_rank != 1:
            return []
        return [p for block in self.trainer.blocks if block.index == LAYER for p in block.parameters()]

    def before_update(self, step: Step) -> None:
        """Copy the layer's weights."""
        self.old = [p.detach().clone() for p in self.own_layer()]

    def after_update(self, step: Step) -> None:
        """Put the copies back."""
        for parameter, old in zip(self.own_layer(), self.old, strict=True):
            parameter.detach().copy_(old)


class NoisyLabels(Plant):
    """Data-parallel rank 1 reads text, but targets that are drawn uniformly, as from a wrong column of its
    file.
    """

    def assembled(self, trainer: Trainer) -> None:
        """Start one random generator for all steps."""
        self.trainer, self.draw = trainer, torch.Generator().manual_seed(trainer.job.seed)

    def batch_loaded(self, number: int, batch: Batch) -> Batch:
        """Replace the targets by noise."""
        if self.trainer.place.dp_rank != 1:
            return batch
        vocab = self.trainer.job.model.vocab
        targets = [torch.randint_like(y, vocab, generator=self.draw) for y in batch.targets]
        return Batch(batch.inputs, targets, batch.counted)


class NormNotSummed(Plant):
    """The squared norm is not summed over tensor ranks: each clips by its own part of the gradient."""

    def norm_summed(self, norm: torch.Tensor) -> None:
        """Put the rank's own part back. The plans that use it have fp32 and no ranks to sum over except
        tensor ranks.
        """
        plan = self.trainer.plan
        norm.copy_(norm_squared(self.trainer.manager.all, accumulator(plan.precision), norm.device))


class FrozenLayer(Plant):
    """One layer was left out of the optimizer's list: its gradients are right and change nothing."""

    def before_update(self, step: Step) -> None:
        """Show the optimizer gradients of zero (weight decay still shrinks the layer's weights a little)."""
        for unit in self.trainer.manager.units:
            for member, part in owned_members(unit):
                if member.name.startswith(f"layers.{LAYER}."):
                    unit.owned_gradient[part].zero_()


class ShiftedLabels(Plant):
    """The shift by one token was made twice: each position learns the token after the next."""

    def batch_loaded(self, number: int, batch: Batch) -> Batch:
        """Shift the targets by one more token."""
        return Batch(batch.inputs, [y.roll(-1, dims=-1) for y in batch.targets], batch.counted)


class LostGradients(Plant):
    """Data-parallel rank 1's gradients are zero when they are reduced, as after a second zero_grad."""

    def gradient_complete(self, unit: Unit) -> bool:
        """Set the gradient to zero before it is reduced."""
        if self.trainer.place.dp_rank == 1 and unit.grad is not None:
            unit.grad.zero_()
        return False


class WeightDecay(Plant):
    """Weight decay is 10 instead of 0.01."""

    def assembled(self, trainer: Trainer) -> None:
        """Change the rule of every optimizer on every rank."""
        self.trainer = trainer
        for manager in trainer.manager.all:
            manager.optimizer.rule = replace(manager.optimizer.rule, weight_decay=10.0)


HELD_OUT_PLANTS: dict[str, type[Plant]] = {
    "late_rate": LateRate,
    "one_layer_init": OneLayerInit,
    "stuck_batch": StuckBatch,
    "stale_layer": StaleLayer,
    "noisy_labels": NoisyLabels,
    "norm_not_summed": NormNotSummed,
    "frozen_layer": FrozenLayer,
    "shifted_labels": ShiftedLabels,
    "lost_gradients": LostGradients,
    "weight_decay": WeightDecay,
}
