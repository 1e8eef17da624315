"""The optimizer on one rank: moments and master weights of the slices that the rank owns, and their update.

It knows no ZeRO stage. A unit says which slice is owned (all of it, or 1/N) and where its parameters and
gradients are.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from glasscluster.model.adamw import Optimizer
from glasscluster.sim.ranks.communicator import Work
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.strategies.data.offload import HostOptimizer, State
from glasscluster.strategies.data.setup import StageOptions
from glasscluster.strategies.layout.units import Unit


class SliceOptimizer:
    """The optimizer state of the slices that this rank owns; `state[i]` belongs to `units[i]`.

    `rule` is the optimizer's update. By `options`, 16-bit parameters have an fp32 master copy, and the state
    is in host memory.
    """

    def __init__(self, gpu: GPU, units: list[Unit], rule: Optimizer, options: StageOptions) -> None:
        self.gpu, self.units, self.rule, self.master = gpu, units, rule, options.master_weights
        self.host = HostOptimizer(gpu, rule) if options.offload else None
        self.state = [self._make(unit) for unit in units]
        self.scaled: Tensor | None = None  # the scaled gradient of the slice updated last

    def _make(self, unit: Unit) -> State:
        """A slice's state: moments of zero and, if there is one, the master copy."""
        mine = unit.owned_parameters
        dtype = torch.float32 if self.master else mine.dtype
        if self.host is not None:
            return self.host.make_state(mine, dtype, unit.name)
        moments = [torch.zeros_like(mine, dtype=dtype) for _ in range(self.rule.moments)]
        state = State(moments, mine.to(dtype, copy=True) if self.master else None)
        for tensor in state.tensors:
            self.gpu.memory.register(tensor, "optimizer", unit.name)
        return state

    def update(self, scale: Tensor, number: int) -> Iterator[Unit]:
        """Take step `number` (from 1) with gradients times `scale`.

        Yields each unit when its slice has its new values.
        """
        coming: list[tuple[Unit, Work]] = []
        for unit, state in zip(self.units, self.state, strict=True):
            if self.host is not None:
                mine = unit.owned_parameters, unit.owned_gradient
                coming.append((unit, self.host.update(*mine, scale, state, number, unit.name)))
            else:
                self._update(unit, state, scale, number)
                yield unit
        for unit, work in coming:
            work.wait()
            yield unit

    def _update(self, unit: Unit, state: State, scale: Tensor, number: int) -> None:
        """Update one slice.

        With a master copy the gradient is scaled in fp32, as a 16-bit gradient divided by the loss scale
        would vanish.
        """
        gradient = unit.owned_gradient if state.master is None else unit.owned_gradient.to(state.master.dtype)
        self.scaled = gradient  # frees the gradient of the slice before, so two were alive for a moment
        gradient.mul_(scale.to(gradient.dtype))
        if state.master is None:
            self.rule.update(unit.owned_parameters, gradient, state.moments, number)
        else:
            self.rule.update(state.master, gradient, state.moments, number)
            unit.owned_parameters.copy_(state.master)

    def release(self) -> None:
        """End the step: free the fp32 gradient of the last slice."""
        self.scaled = None
