"""ZeRO stage 1: the optimizer is shared out. Every rank updates 1/N of the parameters.

Follows Rajbhandari et al. (1910.02054), section 5.1. Symbols: Ψ parameters, N ranks. zero.py has the whole
ladder.

                     parameters   gradients    optimizer           sent per rank and step (elements x (N-1)/N)
    on a rank            Ψ            Ψ           1/N              Ψ reduce-scatter + Ψ all-gather

    backward     a bucket is complete  ─►  reduce-scatter: each rank gets the sum of its own slice
    step         update the slice      ─►  all-gather: every rank gets the new parameters

But: buckets keep the order that was guessed for them; filling them anew would move shards between ranks.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from glasscluster.sim.ranks.communicator import Work
from glasscluster.strategies.data.gradients import WholeGradients
from glasscluster.strategies.data.optimizer import SliceOptimizer
from glasscluster.strategies.data.reducer import Reducer
from glasscluster.strategies.data.setup import StageSetup
from glasscluster.strategies.layout.units import Unit, by_bucket


class Zero1:
    """One rank's stage under ZeRO-1."""

    shared_out = True

    def __init__(self, setup: StageSetup) -> None:
        gpu, options = setup.gpu, setup.options
        self.gpu, self.algorithm = gpu, options.algorithm
        buckets = by_bucket(setup.stage, options.bucket_limits, options.padding, setup.separate)
        self.units = setup.assign(buckets, shared_out=True)
        self.gradients = WholeGradients(gpu, options.wide_gradients)
        for unit in self.units:
            gpu.memory.register(unit.flat, "parameters", unit.name)
            self.gradients.place(unit)
        self.optimizer = SliceOptimizer(gpu, self.units, setup.optimizer, options)
        self.reducer = Reducer(gpu, self.units, options, setup.observers)
        self.groups = setup.sum_over_groups
        self.in_flight: list[tuple[Unit, Work]] = []

    def step_begins(self) -> None:
        """Buckets stay as they are: filling them anew would move shards between ranks."""

    # ---- backward: reduce-scatter --------------------------------------------------------------------------
    def backward_begins(self, last: bool, parameters_used: bool = True) -> None:
        """Called before a backward: the `last` micro-batch's gradients are reduced, others only added up."""
        self.reducer.begin(reduce=last)

    def gradient_ready(self, parameter: nn.Parameter) -> None:
        """A gradient has been added to its bucket; complete buckets are reduced."""
        if self.gradients.wide:
            self.gradients.collect(*self.reducer.place[parameter])
        for unit in self.reducer.ready(parameter):
            self.reduce(unit)

    def reduce(self, unit: Unit) -> None:
        """Start the reduce-scatter of a bucket, while backward goes on."""
        assert unit.grad is not None
        work = unit.comm.reduce_scatter(
            unit.grad,
            algorithm=self.algorithm,
            async_op=True,
            purpose="gradients",
            label=unit.name,
        )
        self.in_flight.append((unit, work))

    def backward_ends(self) -> None:
        """Called after a backward: reduce what is left."""
        for unit in self.reducer.rest():
            self.reduce(unit)

    def input_gradient_begins(self) -> None:
        """Called before I, the first part of a backward in two: no gradient of a parameter comes."""

    def input_gradient_ends(self) -> None:
        """Called after I."""

    def finish(self) -> None:
        """Wait until every owned slice is reduced, inside the group and across groups."""
        for _, work in self.in_flight:
            work.wait()
        if self.groups is not None:
            for unit, _ in self.in_flight:
                self.groups.launch(unit)
            self.groups.wait()
        self.in_flight.clear()

    # ---- step: update the slice, all-gather ----------------------------------------------------------------
    def step(self, scale: Tensor, number: int) -> None:
        """Take step `number` with gradients times `scale`."""
        self.share(self.optimizer.update(scale, number))
        self.clear()

    def share(self, updated: Iterable[Unit]) -> None:
        """All-gather each unit as soon as its slice is new; parameters are whole when this returns."""
        gathering = []
        for unit in updated:
            work = unit.comm.all_gather(
                unit.flat,
                algorithm=self.algorithm,
                async_op=True,
                purpose="parameters",
                label=unit.name,
            )
            gathering.append(work)
        for coming in gathering:
            coming.wait()

    def clear(self) -> None:
        """Set gradients to zero."""
        for unit in self.units:
            assert unit.grad is not None
            unit.grad.zero_()
