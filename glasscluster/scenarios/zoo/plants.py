"""The zoo's bugs as plants, by id: observers (strategies/observer.py) that change what they are shown.

What goes wrong in tensor or context parallelism is a class of its own, which takes the honest one's place
before the model is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from glasscluster.model.parallel import IGNORE, Unsharded
from glasscluster.sim.ranks.communicator import Work
from glasscluster.strategies.context.context_parallel import RingContext
from glasscluster.strategies.layout.units import Unit
from glasscluster.strategies.observer import Observer
from glasscluster.strategies.step import Batch, Step
from glasscluster.strategies.tensor.sequence_parallel import SequenceParallel
from glasscluster.strategies.tensor.tensor_parallel import TensorParallel
from glasscluster.strategies.trainer import Trainer


class Plant(Observer):
    """An observer that knows its rank's trainer."""

    def assembled(self, trainer: Trainer) -> None:
        """Remember the trainer."""
        self.trainer = trainer


# ---- gradients: a phase left out, a sum that is none, a factor too much ------------------------------------


class NormsNotSummed(Observer):
    """Tensor ranks do not sum their gradients of norms and biases."""

    def assembled(self, trainer: Trainer) -> None:
        """Remove the phase that sums them."""
        trainer.phases.remove(trainer.sum_over_tensor_ranks)


class TiedNotSummed(Observer):
    """First and last stage each keep their own gradient of the tied embedding."""

    def assembled(self, trainer: Trainer) -> None:
        """Remove the phase that sums them."""
        trainer.phases.remove(trainer.sum_tied)


class ExpertsDoubled(Plant):
    """An expert's gradient, which already contains all ep ranks' tokens, is multiplied by ep."""

    def gradient_reduced(self, step: Step) -> None:
        """Scale the gradients of units that hold experts."""
        for unit in self.trainer.manager.units:
            if unit.experts:
                unit.owned_gradient.mul_(self.trainer.plan.ep)


class AveragedOverContext(Plant):
    """Context ranks' gradients are averaged, although their sum is already divided by all tokens."""

    def gradient_reduced(self, step: Step) -> None:
        """Divide every gradient by cp."""
        for unit in self.trainer.manager.units:
            unit.owned_gradient.mul_(1 / self.trainer.plan.cp)


class LostBucket(Plant):
    """The second bucket is never reduced."""

    def gradient_complete(self, unit: Unit) -> bool:
        """Claim that the second bucket has been reduced."""
        return unit is self.trainer.manager.units[1]


class WholeReduction(Plant):
    """Gradients are all-reduced, although a rank needs only its slice."""

    def assembled(self, trainer: Trainer) -> None:
        """Make room for the reductions in flight."""
        self.trainer, self.in_flight = trainer, list[Work]()

    def gradient_complete(self, unit: Unit) -> bool:
        """Launch an all-reduce of the whole gradient."""
        assert unit.grad is not None
        work = unit.comm.all_reduce(
            unit.grad,
            algorithm=self.trainer.plan.algorithm,
            async_op=True,
            purpose="gradients",
            label=unit.name,
        )
        self.in_flight.append(work)
        return True

    def gradient_reduced(self, step: Step) -> None:
        """Wait for the reductions in flight."""
        for work in self.in_flight:
            work.wait()
        self.in_flight.clear()


class NormCountedTwice(Plant):
    """Each tensor rank counts the parameters that all of them hold whole in the gradient norm."""

    def step_begins(self, number: int) -> None:
        """Mark every parameter as counted by this rank."""
        for unit in self.trainer.manager.units:
            for member in unit.members:
                member.counts = True


# ---- forward: tensor parallelism ---------------------------------------------------------------------------


def in_place_of(parallel: Any, kind: type[TensorParallel]) -> TensorParallel:
    """A tensor-parallel strategy of another class, over the same ranks."""
    return kind(parallel.comm, parallel.algorithm, parallel.same_head)


class LossScaledByRanks(Observer):
    """The loss is right, and its gradient is t times too large."""

    class Wrong(TensorParallel):
        """Treats a gradient that is already complete as one rank's share of it."""

        def cross_entropy(self, logits: Tensor, targets: Tensor, vocab: int, z_loss: float = 0.0) -> Tensor:
            """Return the right loss with t times its gradient."""
            loss = super().cross_entropy(logits, targets, vocab, z_loss)
            return loss + (self.size - 1) * (loss - loss.detach())

    def parallel_made(self, parallel: Unsharded) -> Unsharded:
        """Replace the tensor parallelism by the wrong one."""
        return in_place_of(parallel, self.Wrong)


class PaddingIsAToken(Observer):
    """The vocabulary's padding takes part in the softmax."""

    class Wrong(TensorParallel):
        """Masks none of the padded columns."""

        def cross_entropy(self, logits: Tensor, targets: Tensor, vocab: int, z_loss: float = 0.0) -> Tensor:
            """Compute the loss as if the vocabulary were as long as all ranks' columns."""
            return super().cross_entropy(logits, targets, logits.shape[-1] * self.size, z_loss)

    def parallel_made(self, parallel: Unsharded) -> Unsharded:
        """Replace the tensor parallelism by the wrong one."""
        return in_place_of(parallel, self.Wrong)


class SameDropoutMask(Observer):
    """Every tensor rank starts its random numbers at the same offset."""

    class Wrong(SequenceParallel):
        """Draws the same dropout mask on every rank."""

        def spans(self, tokens: int, hidden: int) -> tuple[int, ...]:
            """Return the offsets of the first tokens, whichever tokens the rank holds."""
            return (0, len(self.positions(tokens)) * hidden)

    def parallel_made(self, parallel: Unsharded) -> Unsharded:
        """Replace the sequence parallelism by the wrong one."""
        return in_place_of(parallel, self.Wrong)


class MeanOfMeans(Plant):
    """Each micro-batch's loss is a mean over its own tokens, and the means are averaged."""

    class Wrong(Unsharded):
        """Weighs every micro-batch alike, as if each had `average` tokens."""

        average: Any = 1

        def cross_entropy(self, logits: Tensor, targets: Tensor, vocab: int, z_loss: float = 0.0) -> Tensor:
            """Scale the loss by the average number of tokens over this micro-batch's number."""
            loss = super().cross_entropy(logits, targets, vocab, z_loss)
            return loss * (self.average / (targets != IGNORE).sum())

    def parallel_made(self, parallel: Unsharded) -> Unsharded:
        """Replace the single-device parallelism by the wrong one."""
        self.wrong = self.Wrong()
        return self.wrong

    def batch_loaded(self, number: int, batch: Batch) -> Batch:
        """Set the average number of tokens of a micro-batch."""
        self.wrong.average = batch.counted / len(batch.targets)
        return batch


# ---- forward and backward: the ring ------------------------------------------------------------------------


class RingWithoutLogSumExp(Observer):
    """Ring attention averages the outputs of blocks."""

    class Wrong(RingContext):
        """Merges two blocks without their softmax weights."""

        def merge(self, out: Tensor, lse: Tensor, block: Tensor, block_lse: Tensor) -> None:
            """Take half of each output."""
            out.lerp_(block.to(out.dtype), 0.5)
            lse.copy_(torch.logaddexp(lse, block_lse))

    def parallel_made(self, parallel: Unsharded) -> Unsharded:
        """Replace the ring by the wrong one."""
        honest: Any = parallel.context
        parallel.context = self.Wrong(honest.kind, honest.comm, honest.algorithm)
        return parallel


class RingStaleKeys(Observer):
    """A ring's backward computes with its own keys and values in the place of those that have arrived."""

    class Wrong(RingContext):
        """Passes keys and values on correctly, but in backward computes with its own."""

        def travelling(self, kv: Tensor, label: str) -> Iterator[tuple[int, Tensor]]:
            """Yield the rank's own keys and values at every hop of the backward."""
            for source, arrived in super().travelling(kv, label):
                yield source, kv if label.endswith("again") else arrived

    def parallel_made(self, parallel: Unsharded) -> Unsharded:
        """Replace the ring by the wrong one."""
        honest: Any = parallel.context
        parallel.context = self.Wrong(honest.kind, honest.comm, honest.algorithm)
        return parallel


PLANTS: dict[str, Callable[[], Observer]] = {
    "norms-not-summed": NormsNotSummed,
    "loss-scaled-by-tp": LossScaledByRanks,
    "experts-doubled": ExpertsDoubled,
    "cp-averaged": AveragedOverContext,
    "padding-is-a-token": PaddingIsAToken,
    "same-dropout-mask": SameDropoutMask,
    "ring-without-lse": RingWithoutLogSumExp,
    "ring-stale-keys": RingStaleKeys,
    "mean-of-means": MeanOfMeans,
    "lost-bucket": LostBucket,
    "tied-not-summed": TiedNotSummed,
    "norm-counted-twice": NormCountedTwice,
    "zero-all-reduces": WholeReduction,
}
