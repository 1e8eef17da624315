"""ZeRO: data parallelism without keeping everything N times.

Follows Rajbhandari et al., "ZeRO" (1910.02054), sections 5 and 7. Symbols: Ψ parameters, N ranks, m micro-batches.

    stage   sharded over N            sent per rank and step (elements x (N-1)/N)
    1       optimizer                 Ψ reduce-scatter + Ψ all-gather of new parameters
    2       + gradients               mΨ reduce-scatter (each micro-batch) + Ψ all-gather
    3       + parameters              m (Ψ all-gather forward + Ψ all-gather backward + Ψ reduce-scatter)

Each stage changes one thing of the one before. Units are padded to N equal shards.
But: no CPU offload, no quantised gathers. Stage 3 reshards after every forward (FSDP's default).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from glasscluster.sim.communicator import Work
from glasscluster.strategies.data_parallel import DataParallel
from glasscluster.strategies.units import Unit, by_bucket, by_module


class Zero1(DataParallel):
    """Optimizer state sharded: reduce-scatter gradients, update a slice, all-gather parameters."""

    zero = 1

    def make_units(self, apart: set[str]) -> list[Unit]:
        """Buckets padded to N equal shards."""
        return by_bucket(self.stage, self.plan.bucket, self.comm.size, apart)

    def owned(self, unit: Unit) -> slice:
        """1/N of the unit."""
        return unit.slice_of(self.comm.rank, self.comm.size)

    def launch(self, unit: Unit) -> None:
        """Reduce-scatter instead of all-reduce."""
        self.in_flight.append((unit, self._reduce_scatter(unit)))

    def _reduce_scatter(self, unit: Unit) -> Work:
        assert unit.grad is not None
        return self.comm.reduce_scatter(unit.grad, algorithm=self.plan.algorithm, async_op=True, purpose="gradients", label=unit.name)

    def updated(self, unit: Unit) -> None:
        """Send the new slice to everybody."""
        work = self.comm.all_gather(unit.flat, algorithm=self.plan.algorithm, async_op=True, purpose="parameters", label=unit.name)
        self.in_flight.append((unit, work))

    def step_ends(self) -> None:
        """The next step needs every parameter."""
        self.finish()
        super().step_ends()

    def whole(self, unit: Unit, owned: Tensor) -> Tensor:
        """Gather the owned slices."""
        full = torch.empty_like(unit.flat, device=owned.device)
        full[self.owned(unit)] = owned
        self.comm.all_gather(full)
        return full


class Zero2(Zero1):
    """Gradients sharded too: a bucket lives from its first gradient until its reduce-scatter has landed."""

    zero = 2

    def place_gradients(self, unit: Unit) -> None:
        """Only the owned shard persists; autograd allocates each gradient and the hook moves it to the bucket."""
        each = unit.padded // self.comm.size
        unit.gradient_shard = self.gpu.memory.register(unit.flat.new_zeros(each), "gradients", unit.name)
        unit.grad = None

    def gradient_slice(self, unit: Unit) -> Tensor:
        """The shard."""
        assert unit.gradient_shard is not None
        return unit.gradient_shard

    def backward_begins(self, last: bool) -> None:
        """Every micro-batch's gradients are reduced: nobody can keep them whole."""
        super().backward_begins(last)
        self.syncing = True

    def gradient_ready(self, parameter: Tensor) -> None:
        """Move the gradient into its bucket."""
        unit = self.unit_of[parameter]  # type: ignore[index]
        if unit.grad is None:
            unit.grad = self.gpu.memory.register(unit.flat.new_zeros(unit.padded), "buffers", f"{unit.name} gradients")
        member = next(m for m in unit.members if m.parameter is parameter)
        assert parameter.grad is not None
        unit.grad[member.start : member.stop].copy_(parameter.grad.view(-1))
        parameter.grad = None
        super().gradient_ready(parameter)

    def launch(self, unit: Unit) -> None:
        """One bucket in flight at a time: the one before is added to its shard and freed first."""
        self.finish()
        self.in_flight.append((unit, self._reduce_scatter(unit)))

    def finish(self) -> None:
        """Wait, add the owned slice to the shard, free the bucket."""
        for unit, work in self.in_flight:
            work.wait()
            if unit.grad is not None:
                self.gradient_slice(unit).add_(unit.grad[self.owned(unit)])
                unit.grad = None
        self.in_flight.clear()

    def backward_ends(self) -> None:
        """Without overlap all buckets are reduced here; a single rank only moves them."""
        if not self.plan.overlap:
            for unit in self.units:
                self.launch(unit)
        self.finish()

    def step_ends(self) -> None:
        """Gather parameters; shards start at zero."""
        self.finish()
        for unit in self.units:
            self.gradient_slice(unit).zero_()


class Zero3(Zero2):
    """Parameters sharded too: a unit is gathered before it is used, forward and backward, and freed after."""

    zero = 3

    def make_units(self, apart: set[str]) -> list[Unit]:
        """One unit a block; embedding, final norm and head make the root unit, held through a pass."""
        return by_module(self.stage, self.comm.size, apart)

    def place(self) -> None:
        """Keep the shard, let the whole go."""
        for unit in self.units:
            unit.parameter_shard = unit.flat[self.owned(unit)].clone()
        self.gathered: dict[str, Work | None] = {}
        super().place()
        for unit in self.units:
            self.gpu.memory.register(unit.flat, "buffers", f"{unit.name} gathered")
            self.gpu.memory.register(self.parameter_slice(unit), "parameters", unit.name)
            self.gpu.memory.resize(unit.flat, 0)
        self._install_hooks()

    def parameter_slice(self, unit: Unit) -> Tensor:
        """The shard."""
        assert unit.parameter_shard is not None
        return unit.parameter_shard

    # ---- gather and free -------------------------------------------------------------------------------------
    def launch_gather(self, unit: Unit) -> None:
        """Start gathering a unit unless it is here or on its way."""
        if unit.name in self.gathered:
            return
        self.gpu.memory.resize(unit.flat, unit.nbytes)
        with torch.no_grad():
            unit.flat[self.owned(unit)].copy_(self.parameter_slice(unit))
        self.gathered[unit.name] = self.comm.all_gather(
            unit.flat, algorithm=self.plan.algorithm, async_op=True, purpose="parameters", label=unit.name
        )

    def gather(self, unit: Unit, later: list[Unit]) -> None:
        """The unit is whole when this returns; the next `prefetch` units are on their way."""
        self.launch_gather(unit)
        for following in later[: self.plan.prefetch]:
            self.launch_gather(following)
        work = self.gathered[unit.name]
        if work is not None:
            work.wait()
            self.gathered[unit.name] = None

    def free(self, unit: Unit) -> None:
        """Back to the shard."""
        if self.gathered.pop(unit.name, "absent") != "absent":
            self.gpu.memory.resize(unit.flat, 0)

    # ---- when ------------------------------------------------------------------------------------------------
    def _install_hooks(self) -> None:
        parts = self.stage.parts()
        of_part = [self._units_of(part) for part in parts]
        for number, (part, units) in enumerate(zip(parts, of_part, strict=True)):
            later, earlier = _flatten(of_part[number + 1 :]), _flatten(of_part[:number][::-1])
            done = [u for u in units if u not in later]  # no later part of this pass needs them
            part.register_forward_pre_hook(partial(self._before_forward, units, later))
            part.register_forward_hook(partial(self._after_forward, units, done, earlier))

    def _units_of(self, part: Any) -> list[Unit]:
        inside = set(part.parameters(recurse=False))
        return [u for u in self.units if any(m.parameter in inside for m in u.members)]

    def _before_forward(self, units: list[Unit], later: list[Unit], _part: Any, _args: Any) -> None:
        self._gather_all(units, later)

    def _after_forward(self, units: list[Unit], done: list[Unit], earlier: list[Unit], _part: Any, _args: Any, out: Tensor) -> None:
        for unit in done:
            self.free(unit)
        if out.requires_grad:
            out.register_hook(lambda _grad: self._gather_all(units, earlier))

    def _gather_all(self, units: list[Unit], following: list[Unit]) -> None:
        for unit in units:
            self.gather(unit, following)

    def gradient_ready(self, parameter: Tensor) -> None:
        """After a unit's last gradient its parameters are not needed any more."""
        super().gradient_ready(parameter)
        unit = self.unit_of[parameter]  # type: ignore[index]
        if unit.waiting == 0:
            self.free(unit)

    def updated(self, unit: Unit) -> None:
        """Forward will gather."""


def _flatten(groups: list[list[Unit]]) -> list[Unit]:
    return list(dict.fromkeys(u for units in groups for u in units))


LADDER: dict[int, type[DataParallel]] = {0: DataParallel, 1: Zero1, 2: Zero2, 3: Zero3}


# ---- theory --------------------------------------------------------------------------------------------------------


def predict_traffic(stage: int, padded: int, dp: int, micro_batches: int, width: int) -> dict[str, int]:
    """F16: bytes sent by all dp ranks together; `padded` = Ψ with each unit's padding to N."""
    once = (dp - 1) * padded * width
    return {
        1: {"gradients": once, "parameters": once},
        2: {"gradients": micro_batches * once, "parameters": once},
        3: {"gradients": micro_batches * once, "parameters": 2 * micro_batches * once},
    }[stage]


def predict_state(stage: int, padded: int, dp: int, width: int, state_width: int) -> dict[str, float]:
    """F15: bytes per rank of parameters, gradients and optimizer state; `state_width` bytes of it per parameter."""
    return {
        "parameters": padded * width / (dp if stage >= 3 else 1),
        "gradients": padded * width / (dp if stage >= 2 else 1),
        "optimizer": padded * state_width / (dp if stage >= 1 else 1),
    }
