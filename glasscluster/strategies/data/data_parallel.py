"""Data parallelism: every rank has the whole model and its own part of the batch.

Follows PyTorch DDP (Li et al., 2006.15704). Symbols: Ψ parameters, N ranks, m micro-batches.

    backward of the last micro-batch                               communication
    (the others only add up: `no_sync`)
      gradients of a bucket are all ready (hook),
      and those before it launched                            ──►  all-reduce(bucket), asynchronously
      ...                                                          ... while earlier layers still compute
    finish: wait for all buckets; divide once by the global token count; every rank takes the same step

    buckets    filled with the parameters from the last one back, the first bucket small, so that
               communication starts early
    the order  is a guess until the first backward has shown in which order gradients become ready. Before the
               second step the buckets are filled anew, on all ranks in rank 0's order (torch's reducer does
               the same before its second forward)
    launches   go strictly in bucket order: two ranks that launched in different orders would add up
               different buckets

A parameter without a gradient would leave its bucket incomplete for ever, so it is an error that names the
parameter, unless the plan counts it as zero. This is stage 0 of the ZeRO ladder (zero.py): every rank has
everything.

But: torch starts with one bucket for all parameters, in the order of modules. It detects unused parameters by
walking the autograd graph before backward; here they are the ones without a gradient after it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from glasscluster.sim.ranks.communicator import Work
from glasscluster.strategies.data.gradients import WholeGradients
from glasscluster.strategies.data.optimizer import SliceOptimizer
from glasscluster.strategies.data.reducer import Reducer
from glasscluster.strategies.data.setup import StageSetup
from glasscluster.strategies.layout.units import Unit, by_bucket


class DataParallel:
    """One rank's stage without ZeRO: parameters, gradients and optimizer state are whole on every rank."""

    shared_out = False

    def __init__(self, setup: StageSetup) -> None:
        gpu, options = setup.gpu, setup.options
        self.gpu, self.setup, self.algorithm = gpu, setup, options.algorithm
        self.gradients = WholeGradients(gpu, options.wide_gradients)
        self.units = _buckets(setup, self.gradients)
        self.optimizer = SliceOptimizer(gpu, self.units, setup.optimizer, options)
        self.reducer = Reducer(gpu, self.units, options, setup.observers)
        self.in_flight: list[tuple[Unit, Work]] = []
        rebuilds = setup.groups.shard.size > 1 and options.needs_all_gradients
        self.arrived: list[str] | None = [] if rebuilds else None  # first step: names in order of readiness
        self.last = False

    # ---- backward: all-reduce ------------------------------------------------------------------------------
    def backward_begins(self, last: bool, parameters_used: bool = True) -> None:
        """Called before a backward: the `last` micro-batch's gradients are reduced, others only added up."""
        self.last = last
        self.reducer.begin(reduce=last)

    def gradient_ready(self, parameter: nn.Parameter) -> None:
        """A gradient has been added to its bucket; complete buckets are reduced."""
        unit, member = self.reducer.place[parameter]
        if self.gradients.wide:
            self.gradients.collect(unit, member)
        if self.last and self.arrived is not None:
            self.arrived.append(member.name)
        for complete in self.reducer.ready(parameter):
            self.reduce(complete)

    def reduce(self, unit: Unit) -> None:
        """Start the all-reduce of a bucket, or the communication hook in its place, during backward."""
        assert unit.grad is not None
        if self.setup.comm_hook is not None:
            self.in_flight.append((unit, self.setup.comm_hook(unit)))
            return
        work = unit.comm.all_reduce(
            unit.grad,
            algorithm=self.algorithm,
            async_op=True,
            purpose="gradients",
            label=unit.name,
        )
        self.in_flight.append((unit, work))

    def backward_ends(self) -> None:
        """Called after a backward: reduce the buckets that are left."""
        for unit in self.reducer.rest():
            self.reduce(unit)

    def input_gradient_begins(self) -> None:
        """Called before I, the first part of a backward in two: no gradient of a parameter comes."""

    def input_gradient_ends(self) -> None:
        """Called after I."""

    def finish(self) -> None:
        """Wait until every gradient is reduced."""
        for _, work in self.in_flight:
            work.wait()
        self.in_flight.clear()

    # ---- step: every rank updates everything ---------------------------------------------------------------
    def step(self, scale: Tensor, number: int) -> None:
        """Take step `number` with gradients times `scale`."""
        self.share(self.optimizer.update(scale, number))
        self.clear()

    def share(self, updated: Iterable[Unit]) -> None:
        """Nothing is sent: every rank has taken the same step."""
        for _ in updated:
            pass

    def clear(self) -> None:
        """Set gradients to zero."""
        for unit in self.units:
            assert unit.grad is not None
            unit.grad.zero_()

    # ---- the order of the buckets --------------------------------------------------------------------------
    def step_begins(self) -> None:
        """Before the second step: refill the buckets in the order in which rank 0's gradients got ready."""
        if not self.arrived:
            return
        names = list(self.setup.stage.full_names())
        order = torch.tensor([names.index(n) for n in self.arrived], device=self.gpu.device)
        with self.gpu.unrecorded(), self.gpu.memory.rearranging():
            self.setup.groups.shard.broadcast(order)
            mine = self.arrived if order.device.type == "meta" else [names[i] for i in order.tolist()]
            self.rebuild(mine)
        self.arrived = None

    def rebuild(self, order: list[str]) -> None:
        """Move parameters and optimizer state to new buckets in the given order of parameter names.

        Gradients are zero at this point, and so need not be moved.
        """
        before = self.optimizer
        kept: dict[str, list[Tensor]] = {}
        for unit, state in zip(self.units, before.state, strict=True):
            kept |= {m.name: [t[m.start : m.stop].clone() for t in state.tensors] for m in unit.members}
        self.units = _buckets(self.setup, self.gradients, order)
        self.reducer.watch(self.units)
        self.optimizer = SliceOptimizer(self.gpu, self.units, before.rule, self.setup.options)
        for unit, state in zip(self.units, self.optimizer.state, strict=True):
            for m in unit.members:
                for tensor, values in zip(state.tensors, kept[m.name], strict=True):
                    tensor[m.start : m.stop] = values


def _buckets(setup: StageSetup, gradients: WholeGradients, order: list[str] | None = None) -> list[Unit]:
    """The buckets of a stage with their gradients."""
    options = setup.options
    buckets = by_bucket(setup.stage, options.bucket_limits, options.padding, setup.separate, order)
    for unit in setup.assign(buckets, shared_out=False):
        setup.gpu.memory.register(unit.flat, "parameters", unit.name)
        gradients.place(unit)
    return buckets


# ---- theory ------------------------------------------------------------------------------------------------


def predict_traffic(parameters: int, dp: int, width: int) -> dict[str, int]:
    """Eq 9: bytes that all dp ranks together send in a step without ZeRO, 2 (N-1) Ψ · width of gradients.

    Bytes of model state are Eq 15, in zero.py; the time of the last bucket is Eq 14, in overlap.py.

    Args:
        parameters: Ψ, elements on each rank.
        dp: N, the number of ranks.
        width: bytes of a gradient element.

    Returns:
        Bytes by purpose, with the keys of zero.predict_traffic.
    """
    return {"gradients": 2 * (dp - 1) * parameters * width, "parameters": 0, "across": 0}
