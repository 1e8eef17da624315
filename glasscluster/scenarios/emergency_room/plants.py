"""Faults as plants: each breaks one thing of a real rank's trainer, in a few lines, and leaves everything else to happen.

A plant is a function of the rank's trainer, before it runs. Most causes of a blow-up need none: a rate too high is an option.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from glasscluster.sim.ranks.gpu import GPU
from glasscluster.strategies.judge.probes import ProbedTrainer
from glasscluster.strategies.trainer import Job, RankResult

HELD_OUT = 10**6  # the number of the first batch that no run trains on
BAD_STEPS = (4, 3, 2)  # that many before the end


def healthy(_trainer: ProbedTrainer) -> None:
    """Nothing is broken."""


def noise_on_one_rank(trainer: ProbedTrainer) -> None:
    """Data-parallel rank 1 reads a shard that is no text: every token and every target drawn evenly."""
    honest = trainer.load
    draw = torch.Generator().manual_seed(trainer.job.seed)

    def load(step: int) -> Any:
        inputs, targets, count = honest(step)
        return *([torch.randint_like(x, trainer.job.model.vocab, generator=draw) for x in xs] for xs in (inputs, targets)), count

    if trainer.dp_rank == 1:
        trainer.__dict__["load"] = load


def one_bad_batch(trainer: ProbedTrainer) -> None:
    """For three steps every rank reads one token over and over, a file of zeros, say."""
    honest = trainer.load

    def load(step: int) -> Any:
        inputs, targets, count = honest(step)
        if trainer.job.steps - step in BAD_STEPS:
            inputs, targets = ([torch.zeros_like(x) for x in xs] for xs in (inputs, targets))
        return inputs, targets, count

    trainer.__dict__["load"] = load


def no_all_reduce_on_one_rank(trainer: ProbedTrainer) -> None:
    """Rank 1 takes part in every all-reduce and then steps with its own gradient, as with a hook on the wrong tensor."""
    manager = trainer.manager.all[0]
    launch, finish = manager.launch, manager.finish
    own: dict[str, torch.Tensor] = {}

    def keep(unit: Any) -> None:
        own[unit.name] = unit.grad.clone()
        launch(unit)

    def put_back() -> None:
        finish()
        for unit in manager.units:
            manager.gradient_slice(unit).copy_(own[unit.name])

    if trainer.dp_rank == 1:
        manager.__dict__.update(launch=keep, finish=put_back)


def norm_counts_copies(trainer: ProbedTrainer) -> None:
    """The squared norm is summed over tensor ranks twice, so each square counts tp times and gradients are clipped √tp too short."""
    honest = trainer.add_up

    def twice(x: torch.Tensor, comms: Any, label: str) -> None:
        honest(x, comms, label)
        if label == "gradient norm":
            honest(x, (trainer.tp,), "gradient norm, again")

    trainer.__dict__["add_up"] = twice


def same_batches(trainer: ProbedTrainer) -> None:
    """The sampler starts again after two batches."""
    honest = trainer.load
    trainer.__dict__["load"] = lambda step: honest(step % 2)


def grown_queries_and_keys(trainer: ProbedTrainer) -> None:
    """The run starts from weights whose queries and keys have grown, as they do late in training at a high rate."""
    with torch.no_grad():
        for block in trainer.blocks:
            rows = block.config.hidden + block.config.key_width
            block.qkv_weight[:rows] *= 100
    masters_follow(trainer)


def masters_follow(trainer: ProbedTrainer) -> None:
    """The optimizer's fp32 copies are those of the weights as they stand."""
    for manager in trainer.manager.all:
        for unit, state in zip(manager.units, manager.state, strict=True):
            master = state.get("master")
            if isinstance(master, torch.Tensor):
                master.copy_(manager.parameter_slice(unit))


PLANTS: dict[str, Callable[[ProbedTrainer], None]] = {
    f.__name__: f
    for f in (
        healthy,
        noise_on_one_rank,
        one_bad_batch,
        no_all_reduce_on_one_rank,
        norm_counts_copies,
        same_batches,
        grown_queries_and_keys,
    )
}


def planted_rank(gpu: GPU, job: Job, plant: str) -> tuple[RankResult, float]:
    """The SPMD program: a probed run with something planted. Returns the rank's result and its loss on text held out."""
    trainer = ProbedTrainer(gpu, job)
    PLANTS[plant](trainer)
    result = trainer.run()
    with gpu.unrecorded(), torch.no_grad():
        losses, tokens = 0.0, 0
        for batch in range(4):
            x, y = job.batch(HELD_OUT + batch)
            losses += float(trainer.stages[0](x, y))
            tokens += y.numel()
    return result, losses / tokens
