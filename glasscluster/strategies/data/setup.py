"""What the manager of every ZeRO stage is built from: a pipeline stage, its communicators, the options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glasscluster.model.adamw import Optimizer
from glasscluster.model.gpt import GPTStage
from glasscluster.model.parallel import Shard
from glasscluster.sim.ranks.communicator import Communicator, Work
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.strategies.layout.padding import Padding
from glasscluster.strategies.layout.units import Unit
from glasscluster.strategies.observer import Observer


@dataclass(frozen=True)
class StageOptions:
    """The options of data parallelism and ZeRO that a stage needs; options.py says what each one does."""

    bucket_limits: tuple[int, int]  # bytes at which the first bucket and the others are full
    padding: Padding
    algorithm: str = "ring"
    overlap: bool = True
    needs_all_gradients: bool = False  # a parameter without a gradient is an error
    accumulate_whole: bool = False
    reshard: bool = True
    prefetch: int = 1
    offload: bool = False
    master_weights: bool = False
    wide_gradients: bool = False


@dataclass(frozen=True)
class Groups:
    """The communicators of a stage's data parallelism.

    Attributes:
        shard: the ranks that gradients are summed over and, with ZeRO, that share out the states.
        replicas: with hybrid sharding, the ranks that hold the same shard.
        experts: where experts are spread over ranks, the ranks that hold the same experts.
    """

    shard: Communicator
    replicas: Communicator | None = None
    experts: Communicator | None = None

    def of(self, unit: Unit) -> Communicator:
        """The communicator over which a unit is reduced, and shared out."""
        return self.experts if unit.experts and self.experts is not None else self.shard


@dataclass
class WholeLayers:
    """Under ZeRO-3, how many blocks of this rank's stages are whole now, and the most that ever were."""

    now: int = 0
    most: int = 0

    def add(self) -> None:
        """Count one more block that is whole."""
        self.now += 1
        self.most = max(self.most, self.now)


@dataclass(frozen=True)
class StageSetup:
    """What a manager of one pipeline stage on this rank is built from.

    Attributes:
        separate: names of parameters that get a unit of their own (a tied table with copies on two stages).
        counts: `counts(name, shard)` says whether this rank adds a parameter to the gradient norm.
        observers: `gradient_complete` is called on them when a unit's gradient is complete.
        comm_hook: sums gradients in place of an all-reduce (comm_hooks.py).
    """

    gpu: GPU
    stage: GPTStage
    groups: Groups
    options: StageOptions
    optimizer: Optimizer
    separate: set[str]
    counts: Callable[[str, Shard | None], bool]
    observers: Sequence[Observer] = ()
    layers: WholeLayers = field(default_factory=WholeLayers)
    comm_hook: Callable[[Unit], Work] | None = None

    @property
    def sum_over_groups(self) -> SumOverGroups | None:
        """The second hop of hybrid sharding; None without one."""
        replicas = self.groups.replicas
        return None if replicas is None else SumOverGroups(replicas, self.options.algorithm)

    def assign(self, units: list[Unit], shared_out: bool) -> list[Unit]:
        """Set over which ranks each unit is reduced, and what this rank owns of it.

        That is 1/N of it if the states are `shared_out`, else all.
        """
        for unit in units:
            unit.comm = comm = self.groups.of(unit)
            if shared_out:
                each = unit.padded // comm.size
                unit.owned = slice(comm.rank * each, (comm.rank + 1) * each)
                unit.owned_parameters = unit.flat[unit.owned]
            for member in unit.members:
                member.counts = self.counts(member.name, member.shard)
        return units


class SumOverGroups:
    """The second hop of hybrid sharding: finished shards are summed over the groups that hold the same
    shards.

    Units of experts have one hop only, over all ranks that hold the same experts.
    """

    def __init__(self, replicas: Communicator, algorithm: str) -> None:
        self.replicas, self.algorithm, self.in_flight = replicas, algorithm, list[Work]()

    def launch(self, unit: Unit) -> None:
        """Start to sum a unit's owned gradient over the groups."""
        if not unit.experts:
            work = self.replicas.all_reduce(
                unit.owned_gradient,
                algorithm=self.algorithm,
                async_op=True,
                purpose="gradients",
                label=unit.name,
            )
            self.in_flight.append(work)

    def wait(self) -> None:
        """Wait until all launched sums are finished."""
        for work in self.in_flight:
            work.wait()
        self.in_flight.clear()


def gathered(unit: Unit, owned: Tensor) -> Tensor:
    """A unit's whole flat tensor [padded], gathered from the slice that each rank owns.

    Only checks use it; no training step does.
    """
    whole = torch.empty_like(unit.flat, device=owned.device)
    whole[unit.owned] = owned
    unit.comm.all_gather(whole)
    return whole
