"""Which buckets are complete, and in which order they are reduced: strictly that of the list, on all ranks.

    gradients ready     layer 3    layer 2    layer 1
    bucket 0 [3, 2]     ·          complete ─► reduce
    bucket 1 [1]                              complete ─► reduce

Two ranks that launched in different orders would add up different buckets. So bucket 1 waits for bucket 0,
even when it is complete before it.

The list is made in strategies/layout/units.py (`by_bucket`, in the order in which gradients should become
ready). Without ZeRO it is made anew before the second step, in the order in which rank 0's gradients became
ready (data_parallel.py, `rebuild`). The reducer only decides when a bucket is reduced; how is up to the ZeRO
stage (data_parallel.py, zero1.py, zero2.py, zero3.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from glasscluster.base.errors import GradientMissing
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.strategies.data.setup import StageOptions
from glasscluster.strategies.layout.units import Unit
from glasscluster.strategies.observer import Observer


class Reducer:
    """Counts the gradients of a micro-batch as they become ready.

    `options.overlap`: units are reduced during backward, otherwise at its end. `options.needs_all_gradients`:
    a parameter that gets no gradient is an error.
    """

    def __init__(
        self,
        gpu: GPU,
        units: list[Unit],
        options: StageOptions,
        observers: Sequence[Observer],
    ) -> None:
        self.gpu, self.observers = gpu, observers
        self.overlap, self.needs_all = options.overlap, options.needs_all_gradients
        self.reducing, self.given_out, self.missing = False, 0, set[nn.Parameter]()
        self.watch(units)

    def watch(self, units: list[Unit]) -> None:
        """Set the units, in the order in which they are reduced from now on."""
        self.units = units
        self.place = {m.parameter: (unit, m) for unit in units for m in unit.members}

    def begin(self, reduce: bool) -> None:
        """Begin the backward of a micro-batch.

        `reduce`: its gradients are reduced as they come; otherwise they are only added up.
        """
        self.reducing, self.given_out, self.missing = reduce, 0, set(self.place)
        for unit in self.units:
            unit.waiting = len(unit.members)

    def ready(self, parameter: nn.Parameter) -> Iterator[Unit]:
        """Note that a parameter's gradient is there; yields the units to reduce now, in order."""
        self.place[parameter][0].waiting -= 1
        self.missing.discard(parameter)
        while self.overlap and self.reducing and self.given_out < len(self.units):
            if self.units[self.given_out].waiting:
                break
            yield from self._next()

    def rest(self) -> Iterator[Unit]:
        """End the backward of a micro-batch; yields the units that are left to reduce.

        Raises GradientMissing with the parameters that got no gradient.
        """
        if self.reducing and self.missing and self.needs_all:
            names = [m.name for p, (_, m) in self.place.items() if p in self.missing]
            raise GradientMissing(
                f"rank {self.gpu.rank}: no gradient for {', '.join(names)}. Was it used in forward? "
                f"The other ranks would wait for its bucket; with `--unused zero` it counts as zero",
                rank=self.gpu.rank,
                operation=names[0],
            )
        while self.reducing and self.given_out < len(self.units):
            yield from self._next()

    def _next(self) -> Iterator[Unit]:
        """The next unit in order, unless an observer takes it away: a planted bug loses one."""
        unit = self.units[self.given_out]
        self.given_out += 1
        taken = [observer.gradient_complete(unit) for observer in self.observers]  # a list: all are called
        if not any(taken):
            yield unit
