"""ZeRO stage 3: parameters sharded too; a unit is whole only while it is used.

Follows Rajbhandari et al. (1910.02054), section 5.3, and PyTorch FSDP (Zhao et al., 2304.11277), section 3. Unit: a block;
what is no block (embedding, final norm, head) is the root unit and stays through a pass.

    forward     gather(1)  gather(2) ┐ block 1 │ free(1)  gather(3) ┐ block 2 │ free(2) ...      prefetch = 1
    backward    ... gather(2)  gather(1) ┐ block 2 │ free(2), reduce-scatter(2)   block 1 │ free(1), reduce-scatter(1)

Hooks do it: before and after a part's forward, when the gradient of its output arrives, and when a unit's last gradient is
there. At most prefetch + 1 blocks are whole at once. `no-reshard` keeps all of them from forward to backward: one gather less.
But: a prefetch is by number of units, not by bytes; what is computed again in backward gathers nothing ahead.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from glasscluster.sim.ranks.work import Work
from glasscluster.strategies.data.data_parallel import DataParallel
from glasscluster.strategies.data.zero import Zero1, Zero2
from glasscluster.strategies.layout.units import Unit, by_module
from glasscluster.strategies.plan import Plan


class Zero3(Zero2):
    """Parameters sharded too: a unit is gathered before it is used, forward and backward, and freed after."""

    zero = 3

    def make_units(self, order: list[str] | None = None) -> list[Unit]:
        """One unit a block; embedding, final norm and head make the root unit, held through a pass."""
        return by_module(self.stage, self.plan.padding, self.apart)

    def place(self) -> None:
        """Keep the shard, let the whole go."""
        for unit in self.units:
            unit.parameter_shard = unit.flat[self.owned(unit)].clone()
        self.gathered: dict[str, Work | None] = {}
        self.most_layers = 0  # blocks whole at once, of all the rank's stages
        self.siblings, self.only_input = [self], False
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
        whole = sum(n.startswith("layer ") for m in self.siblings for n in m.gathered)
        self.most_layers = max(self.most_layers, whole + (unit.layer >= 0))
        with torch.no_grad():
            unit.flat[self.owned(unit)].copy_(self.parameter_slice(unit))
        self.gathered[unit.name] = self.comm_of(unit).all_gather(
            unit.flat, algorithm=self.plan.algorithm, async_op=True, purpose="parameters", label=unit.name
        )

    def gather(self, unit: Unit, later: list[Unit]) -> None:
        """The unit is whole when this returns; the next `prefetch` units, with their experts, are on their way."""
        self.launch_gather(unit)
        ahead = 0
        for following in later:
            ahead += not following.experts
            if ahead > self.plan.prefetch:
                break
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
            passed = [u for u in later if u not in units and u not in earlier]  # nor, in backward, this part or one before
            part.register_forward_pre_hook(partial(self._before_forward, units, later))
            part.register_forward_hook(partial(self._after_forward, units, done, earlier, passed))

    def _units_of(self, part: Any) -> list[Unit]:
        inside = set(part.parameters(recurse=False))
        return [u for u in self.units if any(m.parameter in inside for m in u.members)]

    def _before_forward(self, units: list[Unit], later: list[Unit], _part: Any, _args: Any) -> None:
        self._gather_all(units, [] if self.stage.keep.active else later)  # computing again: what comes next is backward

    def _after_forward(
        self, units: list[Unit], done: list[Unit], earlier: list[Unit], passed: list[Unit], _part: Any, _args: Any, out: Tensor
    ) -> None:
        if self.stage.keep.active:
            return  # backward follows, and needs them
        for unit in done if self.plan.reshard else ():
            self.free(unit)
        if out.requires_grad:
            out.register_hook(lambda _grad: self._backward_comes(units, earlier, passed))

    def _backward_comes(self, units: list[Unit], earlier: list[Unit], passed: list[Unit]) -> None:
        for unit in passed if self.only_input else ():  # else a unit goes with the last of its gradients
            self.free(unit)
        self._gather_all(units, earlier)

    def _gather_all(self, units: list[Unit], following: list[Unit]) -> None:
        for unit in units:
            self.gather(unit, following)

    def gradient_ready(self, parameter: nn.Parameter) -> None:
        """After a unit's last gradient its parameters are not needed any more."""
        super().gradient_ready(parameter)
        unit = self.unit_of[parameter]
        if unit.waiting == 0 and self.parameters_used:
            self.free(unit)

    def input_gradient_begins(self) -> None:
        """A part's parameters go as soon as backward has come to the part before."""
        self.only_input = True

    def input_gradient_ends(self) -> None:
        """The first part's units go last."""
        self.only_input = False
        for unit in self.units:
            self.free(unit)

    def backward_ends(self) -> None:
        """What got no gradient was not freed."""
        super().backward_ends()
        for unit in self.units:
            if unit.waiting and self.parameters_used:
                self.free(unit)

    def updated(self, unit: Unit) -> None:
        """Forward will gather."""


def _flatten(groups: list[list[Unit]]) -> list[Unit]:
    return list(dict.fromkeys(u for units in groups for u in units))


LADDER: dict[int, type[DataParallel]] = {0: DataParallel, 1: Zero1, 2: Zero2, 3: Zero3}


# ---- theory --------------------------------------------------------------------------------------------------------


def predict_layers(plan: Plan, layers: int) -> int:
    """Blocks of a stage that are whole at once: the one in use and those prefetched, or all when they are kept for backward.

    A segment that full recomputation runs again is whole until its backward has passed.
    """
    together = plan.recompute_every if plan.recompute == "full" else 1
    return min(max(plan.prefetch + 1, together), layers) if plan.reshard else layers
