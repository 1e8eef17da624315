"""Faults as plants: each breaks one thing of a real rank's training, and the rest follows from it.

A plant is an observer (strategies/observer.py) that changes what it is shown. Most causes of a blow-up need
none: a rate that is too high is an option.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from glasscluster.scenarios.emergency_room.curve_plants import CURVE_PLANTS
from glasscluster.scenarios.emergency_room.held_out_plants import HELD_OUT_PLANTS
from glasscluster.scenarios.emergency_room.plant import Healthy, Plant, masters_follow
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.strategies.job import Job
from glasscluster.strategies.layout.units import Unit
from glasscluster.strategies.result import RankResult
from glasscluster.strategies.step import Batch, Step
from glasscluster.strategies.trainer import Trainer

HELD_OUT = 10**6  # the number of the first batch that no run trains on
BAD_STEPS = (4, 3, 2)  # steps before the end of the run


class NoiseOnOneRank(Plant):
    """Data-parallel rank 1 reads a shard of noise: every token and every target is drawn uniformly."""

    def assembled(self, trainer: Trainer) -> None:
        """Start one random generator for all steps."""
        self.trainer, self.draw = trainer, torch.Generator().manual_seed(trainer.job.seed)

    def batch_loaded(self, number: int, batch: Batch) -> Batch:
        """Replace tokens and targets by noise."""
        if self.trainer.place.dp_rank != 1:
            return batch

        def noise(like: list[torch.Tensor]) -> list[torch.Tensor]:
            return [torch.randint_like(x, self.trainer.job.model.vocab, generator=self.draw) for x in like]

        tokens = noise(batch.inputs)
        return Batch(tokens, noise(batch.targets), batch.counted)


class OneBadBatch(Plant):
    """For three steps every rank reads one token over and over, as from a file of zeros."""

    def batch_loaded(self, number: int, batch: Batch) -> Batch:
        """Replace tokens and targets by zeros."""
        if self.trainer.job.steps - number not in BAD_STEPS:
            return batch
        tokens, targets = ([torch.zeros_like(x) for x in xs] for xs in (batch.inputs, batch.targets))
        return Batch(tokens, targets, batch.counted)


class NoAllReduceOnOneRank(Plant):
    """Rank 1 takes part in every all-reduce and then steps with its own gradient, as with a hook on the wrong
    tensor.
    """

    def assembled(self, trainer: Trainer) -> None:
        """Make room for the rank's own gradients, by unit."""
        self.trainer, self.own = trainer, dict[str, torch.Tensor]()

    def gradient_complete(self, unit: Unit) -> bool:
        """Copy the gradient before it is reduced."""
        if self.trainer.place.dp_rank == 1 and unit.grad is not None:
            self.own[unit.name] = unit.grad.clone()
        return False

    def gradient_reduced(self, step: Step) -> None:
        """Replace the reduced gradient by the copy."""
        for unit in self.trainer.manager.units if self.trainer.place.dp_rank == 1 else ():
            unit.owned_gradient.copy_(self.own[unit.name])


class NormCountsCopies(Plant):
    """The squared norm is summed over tensor ranks twice, so gradients are clipped √tp times too short."""

    def norm_summed(self, norm: torch.Tensor) -> None:
        """Sum the norm over tensor ranks once more."""
        self.trainer.add_up(norm, (self.trainer.place.tp,), "gradient norm, again")


class SameBatches(Plant):
    """The sampler starts again after two batches."""

    def batch_chosen(self, number: int) -> int:
        """The batch of each step: 0, 1, 0, 1, ..."""
        return number % 2


class GrownQueriesAndKeys(Plant):
    """The run starts from weights whose queries and keys have grown, as they do late in training at a high
    rate.
    """

    def assembled(self, trainer: Trainer) -> None:
        """Scale the query and key rows of every layer's matrix by 100."""
        with torch.no_grad():
            for block in trainer.blocks:
                rows = block.config.query_width + block.config.key_width
                block.qkv_weight[:rows] *= 100
        masters_follow(trainer)


PLANTS: dict[str, Callable[[], Plant]] = {
    "healthy": Healthy,
    "noise_on_one_rank": NoiseOnOneRank,
    "one_bad_batch": OneBadBatch,
    "no_all_reduce_on_one_rank": NoAllReduceOnOneRank,
    "norm_counts_copies": NormCountsCopies,
    "same_batches": SameBatches,
    "grown_queries_and_keys": GrownQueriesAndKeys,
    **HELD_OUT_PLANTS,
    **CURVE_PLANTS,
}


def planted_rank(gpu: GPU, job: Job, plant: str) -> tuple[RankResult, float]:
    """Train a rank with a plant: the SPMD program. Returns its result and its loss on held-out text.

    The job's own observers see each batch as it was loaded, before the plant changes it.
    """
    trainer = Trainer(gpu, replace(job, observers=(*job.observers, PLANTS[plant])))
    result = trainer.run()
    with gpu.unrecorded(), torch.no_grad():
        losses, tokens = 0.0, 0
        for batch in range(4):
            x, y = job.batch(HELD_OUT + batch)
            losses += float(trainer.stages[0](x, y))
            tokens += y.numel()
    return result, losses / tokens
