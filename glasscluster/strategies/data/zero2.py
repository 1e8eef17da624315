"""ZeRO stage 2: gradients are shared out too. A bucket is freed when its reduce-scatter has finished.

Follows Rajbhandari et al. (1910.02054), section 5.2. Symbols: Ψ parameters, N ranks, m micro-batches. zero.py
has the whole ladder.

                     parameters   gradients    optimizer           sent per rank and step (elements x (N-1)/N)
    on a rank            Ψ           1/N          1/N              mΨ reduce-scatter + Ψ all-gather

    backward     a bucket is complete  ─►  reduce-scatter  ─►  add the slice to the shard, free the bucket
    step         update the slice      ─►  all-gather: every rank gets the new parameters

With `accumulate whole` the gradients of a step's micro-batches are added up in the buckets, which are then
held for the whole step and reduce-scattered once (Ψ instead of mΨ).
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from glasscluster.strategies.data.gradients import ShardedGradients
from glasscluster.strategies.data.optimizer import SliceOptimizer
from glasscluster.strategies.data.reducer import Reducer
from glasscluster.strategies.data.setup import StageSetup
from glasscluster.strategies.layout.units import Unit, by_bucket


class Zero2:
    """One rank's stage under ZeRO-2."""

    shared_out = True

    def __init__(self, setup: StageSetup) -> None:
        gpu, options = setup.gpu, setup.options
        self.gpu, self.algorithm, self.whole = gpu, options.algorithm, options.accumulate_whole
        buckets = by_bucket(setup.stage, options.bucket_limits, options.padding, setup.separate)
        self.units = setup.assign(buckets, shared_out=True)
        self.groups = setup.sum_over_groups
        self.gradients = ShardedGradients(gpu, options, self.groups)
        for unit in self.units:
            gpu.memory.register(unit.flat, "parameters", unit.name)
            self.gradients.place(unit)
        self.optimizer = SliceOptimizer(gpu, self.units, setup.optimizer, options)
        self.reducer = Reducer(gpu, self.units, options, setup.observers)
        self.last = False

    def step_begins(self) -> None:
        """Buckets stay as they are: filling them anew would move shards between ranks."""

    # ---- backward: reduce-scatter, keep the slice ----------------------------------------------------------
    def backward_begins(self, last: bool, parameters_used: bool = True) -> None:
        """Called before a backward: gradients are reduced; with `accumulate whole` only after the `last`."""
        self.last = last
        self.reducer.begin(reduce=last or not self.whole)

    def gradient_ready(self, parameter: nn.Parameter) -> None:
        """A gradient moves into its bucket; complete buckets are reduced."""
        self.gradients.collect(*self.reducer.place[parameter])
        for unit in self.reducer.ready(parameter):
            self.reduce(unit)

    def reduce(self, unit: Unit) -> None:
        """Start the reduce-scatter of a bucket, while backward goes on."""
        self.gradients.reduce_scatter(unit, self.last)

    def backward_ends(self) -> None:
        """Called after a backward: reduce what is left.

        Buckets are freed at the end of a micro-batch, unless micro-batches are added up in them.
        """
        for unit in self.reducer.rest():
            self.reduce(unit)
        self.gradients.settle(self.last)

    def input_gradient_begins(self) -> None:
        """Called before I, the first part of a backward in two: no gradient of a parameter comes."""

    def input_gradient_ends(self) -> None:
        """Called after I."""

    def finish(self) -> None:
        """Wait until every shard is reduced, inside the group and across groups."""
        if self.groups is not None:
            self.groups.wait()

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
            unit.owned_gradient.zero_()
