"""Observers are told at named moments what a rank's training does: probes, captures, planted bugs.

    parallel_made        tensor, context and expert parallelism are there, and no model yet
    assembled            everything is built, nothing has run
      step_begins        buckets and recording are ready
      batch_chosen       which of the data's batches the step reads
      batch_loaded       what the step trains on
        activation       in forward: what a part of the model made
        gradient_complete  in backward: a unit's own gradient, before it is reduced
      after_backward     loss and tokens are the rank's own
      gradient_reduced   all owned gradients are reduced over the ranks that see other data
      gradient_summed    and over tensor ranks, and the two copies of a tied table
      norm_summed        squared gradient norm (and overflow) are summed over ranks
      norm_agreed        and are what the step is judged and clipped by
      agreed             the step's totals, norm and scale are known; nothing is decided yet
      before_update      the step is taken
      after_update
      step_ends          taken or skipped

A method does nothing unless an observer says otherwise. Who only looks wraps it in `gpu.unrecorded()` and
changes nothing. A planted bug changes what it is shown: a tensor in place, a batch by returning another, a
phase by taking it out of `trainer.phases`. Observers are named in `Job.observers` as classes (or other
callables without arguments): every rank makes its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from glasscluster.model.parallel import Unsharded
    from glasscluster.strategies.layout.units import Unit
    from glasscluster.strategies.step import Batch, Step


class Observer:
    """Looks on, and does nothing."""

    def parallel_made(self, parallel: Unsharded) -> Unsharded:
        """What the model's blocks will ask of parallelism.

        Returns what they are to ask: a planted bug puts its own there.
        """
        return parallel

    def assembled(self, trainer: Any) -> None:
        """A rank's trainer is built and has not run: the place to remember it, and to change its phases."""

    def step_begins(self, number: int) -> None:
        """Step `number` (from 0) begins."""

    def batch_chosen(self, number: int) -> int:
        """The number of the batch that step `number` reads. Returns the one that it is to read."""
        return number

    def batch_loaded(self, number: int, batch: Batch) -> Batch:
        """What this rank trains on in step `number`. Returns what it is to train on."""
        return batch

    def activation(self, kind: str, layer: int, *tensors: Tensor) -> None:
        """A part of the model made something.

        "output": what an embedding (layer -1) or a block hands on [b, s, h]; "queries and keys" of a block,
        each [b, s, heads, d]; "logits" of the head (layer -1), this rank's [b, s, V / t].
        """

    def gradient_complete(self, unit: Unit) -> bool:
        """A unit's gradient is complete here and is to be reduced.

        True: the observer has seen to that, in its own way.
        """
        return False

    def after_backward(self, step: Step) -> None:
        """All micro-batches are through; `step.loss` and `step.batch.counted` are this rank's own."""

    def gradient_reduced(self, step: Step) -> None:
        """Every owned gradient is the sum over data ranks."""

    def gradient_summed(self, step: Step) -> None:
        """Every owned gradient is the whole model's."""

    def norm_summed(self, norm: Tensor) -> None:
        """Squared norm, or [squared norm, ranks that overflowed], summed over ranks."""

    def norm_agreed(self, norm: Tensor) -> None:
        """The same, after whoever had something to change."""

    def agreed(self, step: Step) -> None:
        """Totals, norm and scale of the step are known on all ranks."""

    def before_update(self, step: Step) -> None:
        """The step is taken: parameters change now."""

    def after_update(self, step: Step) -> None:
        """Parameters are new."""

    def step_ends(self, step: Step) -> None:
        """The step was taken or skipped; gradients are zero again."""
