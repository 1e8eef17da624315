"""Where gradients live: whole on every rank, or only the slice that a rank owns.

Stages 0 and 1 have the first, stages 2 and 3 the second:

    WholeGradients      one flat gradient for each unit, never freed; autograd adds into views of it
    ShardedGradients    the owned slice, never freed; and a bucket, from a unit's first gradient until its
                        reduce-scatter has finished: once a micro-batch or, with `accumulate whole`, once a
                        step
"""

from __future__ import annotations

import torch
from torch import Tensor

from glasscluster.sim.ranks.communicator import Work
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.strategies.data.setup import StageOptions, SumOverGroups
from glasscluster.strategies.layout.units import Member, Unit


def _zeros(unit: Unit, elements: int, wide: bool) -> Tensor:
    """A buffer of zeros for gradients: of the parameters' type, or fp32 when they are `wide`."""
    return unit.flat.new_zeros(elements, dtype=torch.float32 if wide else None)


class WholeGradients:
    """One flat gradient for each unit.

    Each `p.grad` is a view of it, unless it is wider than the parameters.
    """

    def __init__(self, gpu: GPU, wide: bool) -> None:
        self.gpu, self.wide = gpu, wide

    def place(self, unit: Unit) -> None:
        """Allocate a unit's gradient."""
        unit.grad = self.gpu.memory.register(_zeros(unit, unit.padded, self.wide), "gradients", unit.name)
        unit.owned_gradient = unit.grad[unit.owned]
        for m in unit.members if not self.wide else ():
            m.parameter.grad = unit.grad[m.start : m.stop].view(m.parameter.shape)

    def collect(self, unit: Unit, member: Member) -> None:
        """Bring a parameter's gradient into the unit's.

        Autograd has done so already, unless its type is narrower.
        """
        parameter = member.parameter
        if parameter.grad is not None:
            assert unit.grad is not None
            unit.grad[member.start : member.stop].add_(parameter.grad.view(-1))
            parameter.grad = None


class ShardedGradients:
    """The owned slice of every unit's gradient, and buckets that live from a first gradient to their
    reduce-scatter.

    With `accumulate_whole` the micro-batches of a step are added up in the bucket, which is reduced once.
    """

    def __init__(self, gpu: GPU, options: StageOptions, groups: SumOverGroups | None) -> None:
        self.gpu, self.wide, self.whole = gpu, options.wide_gradients, options.accumulate_whole
        self.algorithm, self.groups = options.algorithm, groups
        self.in_flight: list[tuple[Unit, Work]] = []

    def place(self, unit: Unit) -> None:
        """Allocate a unit's shard.

        Autograd makes a parameter's gradient, and `collect` moves it into the bucket.
        """
        each = unit.owned.stop - unit.owned.start
        unit.owned_gradient = self.gpu.memory.register(_zeros(unit, each, self.wide), "gradients", unit.name)

    def bucket(self, unit: Unit) -> Tensor:
        """A unit's whole gradient, allocated at its first use.

        Memory counts it as gradients while micro-batches are added up in it, otherwise as a buffer.
        """
        if unit.grad is None:
            category = "gradients" if self.whole else "buffers"
            room = _zeros(unit, unit.padded, self.wide)
            unit.grad = self.gpu.memory.register(room, category, f"{unit.name} gradients")
        return unit.grad

    def collect(self, unit: Unit, member: Member) -> None:
        """Move a parameter's gradient into its unit's bucket."""
        parameter, place = member.parameter, self.bucket(unit)[member.start : member.stop]
        assert parameter.grad is not None
        if self.whole:
            place.add_(parameter.grad.view(-1))
        else:
            place.copy_(parameter.grad.view(-1))
        parameter.grad = None

    def reduce_scatter(self, unit: Unit, last: bool) -> None:
        """Launch the reduce-scatter of a unit's bucket.

        One is in flight at a time: the bucket before it is added to its shard and freed first.
        """
        self.settle(last)
        bucket = self.bucket(unit)  # zeros, where no gradient came
        work = unit.comm.reduce_scatter(
            bucket,
            algorithm=self.algorithm,
            async_op=True,
            purpose="gradients",
            label=unit.name,
        )
        self.in_flight.append((unit, work))

    def settle(self, last: bool) -> None:
        """Wait for the bucket in flight, add the owned slice to the shard, and free the bucket.

        After the `last` micro-batch of a step a shard is complete within its group, and is then summed over
        the groups.
        """
        for unit, work in self.in_flight:
            work.wait()
            assert unit.grad is not None
            unit.owned_gradient.add_(unit.grad[unit.owned])
            unit.grad = None
            if last and self.groups is not None:
                self.groups.launch(unit)
        self.in_flight.clear()
