"""An observer that keeps every step's gradients and weights: what the check compares with one device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glasscluster.strategies.observer import Observer

if TYPE_CHECKING:
    from glasscluster.strategies.step import Step
    from glasscluster.strategies.trainer import Trainer


class Capture(Observer):
    """`Job(capture=True)`.

    Gradients are of the mean loss, before clipping, whole along dp; weights are those after the step.
    """

    def assembled(self, trainer: Trainer) -> None:
        """Remember whose step this is."""
        self.trainer = trainer

    def agreed(self, step: Step) -> None:
        """Gradients, before the update scales them in place."""
        with self.trainer.gpu.unrecorded():
            weight = step.totals[1] if step.seed is None else step.totals[1] * step.seed
            gradients, dtype = self.trainer.manager.gradients(), step.loss.dtype
            self.trainer.result.gradients.append({n: g.to(dtype) / weight for n, g in gradients.items()})

    def step_ends(self, step: Step) -> None:
        """Weights, new or, in a step that was skipped, as they were."""
        self.trainer.result.weights.append(self.trainer.manager.weights())
