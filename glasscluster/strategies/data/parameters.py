"""When parameters are whole under ZeRO-3: gathered before a part of the model uses them, and freed after.

Follows PyTorch FSDP (Zhao et al., 2304.11277), section 3. A unit is a block; the parameters outside blocks
(embedding, final norm, head) are the root unit, which stays whole during a pass.

    forward     gather(1)  gather(2) ┐ block 1 │ free(1)  gather(3) ┐ block 2 │ free(2) ...      prefetch = 1
    backward    ... gather(2)  gather(1) ┐ block 2 │ free(2)   block 1 │ free(1)

Hooks gather and free: before and after a module's forward, and when the gradient of its output arrives. In
backward a unit is freed when the last of its gradients has come (zero3.py). At most prefetch + 1 blocks are
whole at once.

But: the prefetch limit is a number of units, not of bytes; while backward recomputes activations, nothing is
prefetched.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from glasscluster.model.gpt import GPTStage
from glasscluster.sim.ranks.communicator import Work
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.strategies.data.setup import StageOptions, WholeLayers
from glasscluster.strategies.layout.units import Unit


class GatheredParameters:
    """Frees all units' parameters at first; from then on hooks gather them before use and free them after it.

    `layers` counts the blocks that are whole.
    """

    def __init__(
        self,
        gpu: GPU,
        stage: GPTStage,
        units: list[Unit],
        options: StageOptions,
        layers: WholeLayers,
    ) -> None:
        self.gpu, self.stage, self.units, self.options, self.layers = gpu, stage, units, options, layers
        self.whole: dict[str, Work | None] = {}  # gathered units, and the work to wait for while under way
        self.only_input = False  # True during I, the first part of a backward in two
        for unit in units:
            gpu.memory.register(unit.flat, "buffers", f"{unit.name} gathered")
            gpu.memory.register(unit.owned_parameters, "parameters", unit.name)
            gpu.memory.resize(unit.flat, 0)
        parts = stage.parts()
        of_part = [self._units_of(part) for part in parts]
        for number, (part, mine) in enumerate(zip(parts, of_part, strict=True)):
            following, earlier = _flatten(of_part[number + 1 :]), _flatten(of_part[:number][::-1])
            done = [u for u in mine if u not in following]  # no later part of forward needs them
            # when backward comes to this part, neither it nor an earlier part needs these
            passed = [u for u in following if u not in mine and u not in earlier]
            part.register_forward_pre_hook(partial(self._before_forward, mine, following))
            part.register_forward_hook(partial(self._after_forward, mine, done, earlier, passed))

    # ---- gather and free -----------------------------------------------------------------------------------
    def launch(self, unit: Unit) -> None:
        """Start to gather a unit, unless it is whole or on its way."""
        if unit.name in self.whole:
            return
        self.gpu.memory.resize(unit.flat, unit.nbytes)
        if unit.layer >= 0:
            self.layers.add()
        with torch.no_grad():
            unit.flat[unit.owned].copy_(unit.owned_parameters)
        self.whole[unit.name] = unit.comm.all_gather(
            unit.flat,
            algorithm=self.options.algorithm,
            async_op=True,
            purpose="parameters",
            label=unit.name,
        )

    def gather(self, unit: Unit, following: list[Unit]) -> None:
        """Gather a unit, and start to gather those that follow.

        The unit is whole when this returns; the next `prefetch` units, with their experts, are on their way.
        """
        self.launch(unit)
        ahead = 0
        for upcoming in following:
            ahead += not upcoming.experts
            if ahead > self.options.prefetch:
                break
            self.launch(upcoming)
        work = self.whole[unit.name]
        if work is not None:
            work.wait()
            self.whole[unit.name] = None

    def free(self, unit: Unit) -> None:
        """Free a unit's parameters; the owned slice is kept in a tensor of its own."""
        if self.whole.pop(unit.name, "absent") != "absent":
            self.layers.now -= unit.layer >= 0
            self.gpu.memory.resize(unit.flat, 0)

    # ---- when ----------------------------------------------------------------------------------------------
    def input_gradient_begins(self) -> None:
        """Called before I: from now on a unit is freed when backward has come to the part before it.

        I computes no gradients of parameters, after which units could be freed.
        """
        self.only_input = True

    def input_gradient_ends(self) -> None:
        """Called after I: free the units of the first part."""
        self.only_input = False
        for unit in self.units:
            self.free(unit)

    def _units_of(self, part: Any) -> list[Unit]:
        inside = set(part.parameters(recurse=False))
        return [u for u in self.units if any(m.parameter in inside for m in u.members)]

    def _before_forward(self, units: list[Unit], following: list[Unit], _part: Any, _args: Any) -> None:
        # when activations are recomputed, what comes next is backward: gather nothing ahead
        self._gather_all(units, [] if self.stage.keep.active else following)

    def _after_forward(
        self,
        units: list[Unit],
        done: list[Unit],
        earlier: list[Unit],
        passed: list[Unit],
        _part: Any,
        _args: Any,
        out: Tensor,
    ) -> None:
        if self.stage.keep.active:
            return  # the forward was a recomputation: backward follows and needs the parameters
        for unit in done if self.options.reshard else ():
            self.free(unit)
        if out.requires_grad:
            out.register_hook(lambda _grad: self._backward_comes(units, earlier, passed))

    def _backward_comes(self, units: list[Unit], earlier: list[Unit], passed: list[Unit]) -> None:
        for unit in passed if self.only_input else ():  # else a unit is freed after the last of its gradients
            self.free(unit)
        self._gather_all(units, earlier)

    def _gather_all(self, units: list[Unit], following: list[Unit]) -> None:
        for unit in units:
            self.gather(unit, following)


def _flatten(groups: list[list[Unit]]) -> list[Unit]:
    return list(dict.fromkeys(u for units in groups for u in units))
