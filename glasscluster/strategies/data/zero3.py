"""ZeRO stage 3: parameters are shared out too. A unit's parameters are whole only while they are used.

Follows Rajbhandari et al. (1910.02054), section 5.3, and PyTorch FSDP (Zhao et al., 2304.11277), section 3.
Symbols: Ψ parameters, N ranks, m micro-batches. zero.py has the whole ladder.

                     parameters   gradients    optimizer           sent per rank and step (elements x (N-1)/N)
    on a rank           1/N          1/N          1/N              2mΨ all-gather + mΨ reduce-scatter

    forward      all-gather a block  ─►  use it  ─►  free it                                (parameters.py)
    backward     all-gather a block  ─►  its gradients  ─►  free it, reduce-scatter  ─►  add to the shard
    step         update the slice; the next forward gathers it

With `no-reshard` parameters stay whole from forward to backward, which saves one all-gather.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor, nn

from glasscluster.strategies.data.gradients import ShardedGradients
from glasscluster.strategies.data.optimizer import SliceOptimizer
from glasscluster.strategies.data.parameters import GatheredParameters
from glasscluster.strategies.data.reducer import Reducer
from glasscluster.strategies.data.setup import StageSetup
from glasscluster.strategies.layout.units import Unit, by_module

if TYPE_CHECKING:
    from glasscluster.strategies.plan import Plan


class Zero3:
    """One rank's stage under ZeRO-3."""

    shared_out = True

    def __init__(self, setup: StageSetup) -> None:
        gpu, options = setup.gpu, setup.options
        self.gpu, self.whole = gpu, options.accumulate_whole
        self.units = setup.assign(by_module(setup.stage, options.padding, setup.separate), shared_out=True)
        for unit in self.units:
            unit.owned_parameters = unit.flat[unit.owned].clone()
        self.groups = setup.sum_over_groups
        self.gradients = ShardedGradients(gpu, options, self.groups)
        for unit in self.units:
            gpu.memory.register(unit.flat, "parameters", unit.name)
            self.gradients.place(unit)
        self.optimizer = SliceOptimizer(gpu, self.units, setup.optimizer, options)
        self.reducer = Reducer(gpu, self.units, options, setup.observers)
        self.parameters = GatheredParameters(gpu, setup.stage, self.units, options, setup.layers)
        self.last, self.parameters_used = False, True

    def step_begins(self) -> None:
        """Units stay as they are: the blocks of the model."""

    # ---- backward: free, reduce-scatter, keep the slice ----------------------------------------------------
    def backward_begins(self, last: bool, parameters_used: bool = True) -> None:
        """Called before a backward: gradients are reduced, or with `accumulate whole` only those of the last
        micro-batch.

        In W, the second part of a backward in two, parameters are not used, and so not gathered.
        """
        self.last, self.parameters_used = last, parameters_used
        self.reducer.begin(reduce=last or not self.whole)

    def gradient_ready(self, parameter: nn.Parameter) -> None:
        """A gradient moves into its bucket; complete buckets are reduced, and their parameters freed."""
        unit, member = self.reducer.place[parameter]
        self.gradients.collect(unit, member)
        for complete in self.reducer.ready(parameter):
            self.reduce(complete)
        if unit.waiting == 0 and self.parameters_used:
            self.parameters.free(unit)

    def reduce(self, unit: Unit) -> None:
        """Start the reduce-scatter of a bucket, while backward goes on."""
        self.gradients.reduce_scatter(unit, self.last)

    def backward_ends(self) -> None:
        """Called after a backward: reduce the buckets that are left, and free units that got no gradient."""
        for unit in self.reducer.rest():
            self.reduce(unit)
        self.gradients.settle(self.last)
        for unit in self.units:
            if unit.waiting and self.parameters_used:
                self.parameters.free(unit)

    def input_gradient_begins(self) -> None:
        """Called before I, which computes no gradients of parameters, after which they could be freed."""
        self.parameters.input_gradient_begins()

    def input_gradient_ends(self) -> None:
        """Called after I."""
        self.parameters.input_gradient_ends()

    def finish(self) -> None:
        """Wait until every shard is reduced, inside the group and across groups."""
        if self.groups is not None:
            self.groups.wait()

    # ---- step: update the slice ----------------------------------------------------------------------------
    def step(self, scale: Tensor, number: int) -> None:
        """Take step `number` with gradients times `scale`."""
        self.share(self.optimizer.update(scale, number))
        self.clear()

    def share(self, updated: Iterable[Unit]) -> None:
        """Nothing is sent: the next forward gathers."""
        for _ in updated:
            pass

    def clear(self) -> None:
        """Set gradients to zero."""
        for unit in self.units:
            unit.owned_gradient.zero_()


# ---- theory ------------------------------------------------------------------------------------------------


def predict_layers(plan: Plan, layers: int) -> int:
    """How many of a stage's `layers` blocks are whole at once: the one in use and those that are prefetched.

    With `no-reshard` they are all blocks. With full recomputation a segment of blocks is whole until its
    backward is over.
    """
    together = plan.recompute_every if plan.recompute == "full" else 1
    return min(max(plan.prefetch + 1, together), layers) if plan.reshard else layers
