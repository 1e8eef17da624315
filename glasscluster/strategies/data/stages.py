"""The pipeline stages of a rank. Each has a manager (its ZeRO stage), and `Stages` treats them as one.

The gradients of different pipeline stages become complete at different times, so each has its own buckets and
its own reductions; the optimizer step goes over all of them. `LADDER` says which class implements which ZeRO
stage, and nothing else knows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from glasscluster.sim.ranks.gpu import GPU
from glasscluster.strategies.data.data_parallel import DataParallel
from glasscluster.strategies.data.optimizer import SliceOptimizer
from glasscluster.strategies.data.setup import StageSetup, gathered
from glasscluster.strategies.data.zero1 import Zero1
from glasscluster.strategies.data.zero2 import Zero2
from glasscluster.strategies.data.zero3 import Zero3
from glasscluster.strategies.layout.units import Unit, owned_members

Pieces = dict[str, list[Tensor]]  # parameter name -> what a rank owns of it and of its optimizer state


class Manager(Protocol):
    """What a ZeRO stage does with gradients in backward and with parameters in the step.

    Each ZeRO stage has a class with these methods. Where a pipeline schedule splits a backward in two, I is
    the part that computes gradients of inputs, and W the part that computes those of weights.
    """

    shared_out: bool  # a rank owns 1/N of every unit
    units: list[Unit]
    optimizer: SliceOptimizer

    def step_begins(self) -> None:
        """Called before a step. Without ZeRO, buckets may be filled anew."""

    def backward_begins(self, last: bool, parameters_used: bool = True) -> None:
        """Called before a micro-batch's backward, or its W.

        `last`: it is the last micro-batch of the step. `parameters_used`: False for W, which needs gradients
        and inputs but not the parameters.
        """

    def gradient_ready(self, parameter: nn.Parameter) -> None:
        """Called when a parameter's gradient of the micro-batch has been added."""

    def backward_ends(self) -> None:
        """Called after the backward, or W."""

    def input_gradient_begins(self) -> None:
        """Called before I, which uses parameters but computes no gradients of them."""

    def input_gradient_ends(self) -> None:
        """Called after I."""

    def finish(self) -> None:
        """Wait until every owned gradient is reduced."""

    def step(self, scale: Tensor, number: int) -> None:
        """Take step `number` (from 1) with gradients times `scale`, and bring parameters up to date."""

    def share(self, updated: Iterable[Unit]) -> None:
        """After the owned slices have new values: bring parameters up to date on every rank."""

    def clear(self) -> None:
        """Set gradients to zero."""


LADDER: dict[int, Callable[[StageSetup], Manager]] = {0: DataParallel, 1: Zero1, 2: Zero2, 3: Zero3}


class Stages:
    """The managers of this rank's pipeline stages; `of[stage]` is one."""

    def __init__(self, gpu: GPU, of: Mapping[int, Manager]) -> None:
        self.gpu, self.of = gpu, dict(of)
        self.all = list(self.of.values())
        self.hooks = [
            member.parameter.register_post_accumulate_grad_hook(manager.gradient_ready)
            for manager in self.all
            for unit in manager.units
            for member in unit.members
        ]

    def close(self) -> None:
        """Remove the hooks on the parameters.

        A hook on a tensor is a reference cycle that the garbage collector does not see, so that the model
        would never be freed.
        """
        for hook in self.hooks:
            hook.remove()

    @property
    def units(self) -> list[Unit]:
        """The units of all stages."""
        return [u for m in self.all for u in m.units]

    def step_begins(self) -> None:
        """Called before a step. Without ZeRO, buckets may be filled anew."""
        for m in self.all:
            m.step_begins()

    def finish(self) -> None:
        """Wait until every owned gradient is reduced."""
        for m in self.all:
            m.finish()

    def step(self, scale: Tensor, number: int) -> None:
        """Take step `number` (from 1) with gradients times `scale`, and bring parameters up to date."""
        for m in self.all:
            m.step(scale, number)
            m.optimizer.release()

    def clear(self) -> None:
        """Set gradients to zero, without an update."""
        for m in self.all:
            m.clear()

    # ---- snapshots -----------------------------------------------------------------------------------------
    def keep(self) -> list[Pieces]:
        """Copies of what this rank owns, stage by stage.

        They are kept by parameter name, because buckets may be filled anew before `restore`.
        """
        return [{name: [t.clone() for t in tensors] for name, tensors in pieces(m).items()} for m in self.all]

    def restore(self, kept: list[Pieces]) -> None:
        """Put back what `keep` copied, on every rank, and set gradients to zero."""
        for m, before in zip(self.all, kept, strict=True):
            put_back(m, before)
            m.share(m.units)
            m.clear()

    # ---- for the check -------------------------------------------------------------------------------------
    def gradients(self) -> dict[str, Tensor]:
        """Reduced gradients by full parameter name, whole along dp."""
        with self.gpu.unrecorded():
            of_stages = [_named(m, lambda unit: unit.owned_gradient) for m in self.all]
        return _union(of_stages)

    def weights(self) -> dict[str, Tensor]:
        """Parameters by full name, whole along dp."""
        with self.gpu.unrecorded():
            of_stages = [_named(m, lambda unit: unit.owned_parameters) for m in self.all]
        return _union(of_stages)


def pieces(manager: Manager) -> Pieces:
    """Views of what this rank owns: each parameter's part and the same part of its optimizer state."""
    owned: Pieces = {}
    for unit, state in zip(manager.units, manager.optimizer.state, strict=True):
        for member, part in owned_members(unit):
            owned[member.name] = [t[part] for t in (unit.owned_parameters, *state.tensors)]
    return owned


def put_back(manager: Manager, kept: Pieces) -> None:
    """Copy back into what this rank owns."""
    for name, tensors in pieces(manager).items():
        for tensor, values in zip(tensors, kept[name], strict=True):
            tensor.copy_(values)


def _named(manager: Manager, owned: Callable[[Unit], Tensor]) -> dict[str, Tensor]:
    """Owned slices by parameter, gathered whole along dp."""
    out: dict[str, Tensor] = {}
    for unit in manager.units:
        flat = gathered(unit, owned(unit)) if manager.shared_out else owned(unit).clone()
        out |= {m.name: flat[m.start : m.stop].view(m.parameter.shape).clone() for m in unit.members}
    return out


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal; NaN equals NaN, as fp16's gradients may have overflowed."""
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def _union(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The parameters of all stages by name.

    A tied table that has two copies on a rank must have equal copies.
    """
    out: dict[str, Tensor] = {}
    for part in parts:
        for name in out.keys() & part.keys():
            if part[name].device.type != "meta" and not _same(out[name], part[name]):
                raise AssertionError(f"this rank's copies of {name} differ")
        out |= part
    return out
