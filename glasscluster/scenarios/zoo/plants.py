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
    """What all plants know: the rank's trainer."""

    def assembled(self, trainer: Trainer) -> None:
        """Whom it is planted in."""
        self.trainer = trainer


# ---- gradients: a phase left out, a sum that is none, a factor too much ------------------------------------


class NormsNotSummed(Observer):
    """Tensor ranks' gradients of norms and biases are not added up."""

    def assembled(self, trainer: Trainer) -> None:
        """Take the phase out."""
        trainer.phases.remove(trainer.sum_over_tensor_ranks)


class TiedNotSummed(Observer):
    """First and last stage keep their own gradient of the table."""

    def assembled(self, trainer: Trainer) -> None:
        """Take the phase out."""
        trainer.phases.remove(trainer.sum_tied)


class ExpertsDoubled(Plant):
    """An expert's gradient, which comes from all ep ranks' tokens, once more times ep."""

    def gradient_reduced(self, step: Step) -> None:
        """Scale the units of experts."""
        for unit in self.trainer.manager.units:
            if unit.experts:
                unit.owned_gradient.mul_(self.trainer.plan.ep)


class AveragedOverContext(Plant):
    """Context ranks' gradients averaged, where they are a sum that is divided by all tokens anyway."""

    def gradient_reduced(self, step: Step) -> None:
        """Divide by cp."""
        for unit in self.trainer.manager.units:
            unit.owned_gradient.mul_(1 / self.trainer.plan.cp)


class LostBucket(Plant):
    """The second bucket is never reduced."""

    def gradient_complete(self, unit: Unit) -> bool:
        """Say that it was."""
        return unit is self.trainer.manager.units[1]


class WholeReduction(Plant):
    """An all-reduce where a rank needs its slice only."""

    def assembled(self, trainer: Trainer) -> None:
        """What is under way."""
        self.trainer, self.in_flight = trainer, list[Work]()

    def gradient_complete(self, unit: Unit) -> bool:
        """Reduce all of it, everywhere."""
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
        """Wait for it."""
        for work in self.in_flight:
            work.wait()
        self.in_flight.clear()


class NormCountedTwice(Plant):
    """What every tensor rank has whole is counted by each of them in the gradient norm."""

    def step_begins(self, number: int) -> None:
        """Count everything."""
        for unit in self.trainer.manager.units:
            for member in unit.members:
                member.counts = True


# ---- forward: tensor parallelism ---------------------------------------------------------------------------


def in_place_of(parallel: Any, kind: type[TensorParallel]) -> TensorParallel:
    """Tensor parallelism of another kind, over the same ranks."""
    return kind(parallel.comm, parallel.algorithm, parallel.same_head)


class LossScaledByRanks(Observer):
    """The loss is the same number, and its gradient t times too large."""

    class Wrong(TensorParallel):
        """Takes a whole gradient for a part."""

        def cross_entropy(self, logits: Tensor, targets: Tensor, vocab: int, z_loss: float = 0.0) -> Tensor:
            """The same number, t times the gradient."""
            loss = super().cross_entropy(logits, targets, vocab, z_loss)
            return loss + (self.size - 1) * (loss - loss.detach())

    def parallel_made(self, parallel: Unsharded) -> Unsharded:
        """Plant it."""
        return in_place_of(parallel, self.Wrong)


class PaddingIsAToken(Observer):
    """The vocabulary's padding takes part in the softmax."""

    class Wrong(TensorParallel):
        """Masks no column."""

        def cross_entropy(self, logits: Tensor, targets: Tensor, vocab: int, z_loss: float = 0.0) -> Tensor:
            """As if the vocabulary were as long as all ranks' columns."""
            return super().cross_entropy(logits, targets, logits.shape[-1] * self.size, z_loss)

    def parallel_made(self, parallel: Unsharded) -> Unsharded:
        """Plant it."""
        return in_place_of(parallel, self.Wrong)


class SameDropoutMask(Observer):
    """Every tensor rank's random numbers begin at the same place."""

    class Wrong(SequenceParallel):
        """Looks its masks up from the beginning."""

        def spans(self, tokens: int, hidden: int) -> tuple[int, ...]:
            """The first tokens' place, whatever tokens they are."""
            return (0, len(self.positions(tokens)) * hidden)

    def parallel_made(self, parallel: Unsharded) -> Unsharded:
        """Plant it."""
        return in_place_of(parallel, self.Wrong)


class MeanOfMeans(Plant):
    """Each micro-batch's loss is a mean over its own tokens, and the means are averaged."""

    class Wrong(Unsharded):
        """Weighs every micro-batch alike: `average` tokens each."""

        average: Any = 1

        def cross_entropy(self, logits: Tensor, targets: Tensor, vocab: int, z_loss: float = 0.0) -> Tensor:
            """Times the average number of tokens over the number here."""
            loss = super().cross_entropy(logits, targets, vocab, z_loss)
            return loss * (self.average / (targets != IGNORE).sum())

    def parallel_made(self, parallel: Unsharded) -> Unsharded:
        """Plant it."""
        self.wrong = self.Wrong()
        return self.wrong

    def batch_loaded(self, number: int, batch: Batch) -> Batch:
        """How many tokens a micro-batch has on average."""
        self.wrong.average = batch.counted / len(batch.targets)
        return batch


# ---- forward and backward: the ring ------------------------------------------------------------------------


class RingWithoutLogSumExp(Observer):
    """A ring's blocks are averaged."""

    class Wrong(RingContext):
        """Merges without weights."""

        def merge(self, out: Tensor, lse: Tensor, block: Tensor, block_lse: Tensor) -> None:
            """Half of each."""
            out.lerp_(block.to(out.dtype), 0.5)
            lse.copy_(torch.logaddexp(lse, block_lse))

    def parallel_made(self, parallel: Unsharded) -> Unsharded:
        """Plant it."""
        honest: Any = parallel.context
        parallel.context = self.Wrong(honest.kind, honest.comm, honest.algorithm)
        return parallel


class RingStaleKeys(Observer):
    """A ring's backward computes with its own keys and values in the place of those that have arrived."""

    class Wrong(RingContext):
        """Forward is right."""

        def travelling(self, kv: Tensor, label: str) -> Iterator[tuple[int, Tensor]]:
            """What it started with, again and again."""
            for source, arrived in super().travelling(kv, label):
                yield source, kv if label.endswith("again") else arrived

    def parallel_made(self, parallel: Unsharded) -> Unsharded:
        """Plant it."""
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
