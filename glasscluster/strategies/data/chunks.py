"""The managers of a rank that has several stages: one each, and together they answer as one.

Every stage's gradients become complete at a time of their own, so every stage has its own buckets, launches and hooks
(data_parallel.py and the ZeRO ladder above it); the step and the norm go over all of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from glasscluster.strategies.data.data_parallel import DataParallel, Pieces
from glasscluster.strategies.data.zero3 import Zero3
from glasscluster.strategies.layout.units import Unit


class Chunks:
    """`of[stage]` is the manager of one of this rank's stages."""

    def __init__(self, of: Mapping[int, DataParallel]) -> None:
        self.of = dict(of)
        self.all = list(self.of.values())
        for manager in self.all:
            if isinstance(manager, Zero3):
                manager.siblings = [m for m in self.all if isinstance(m, Zero3)]

    @property
    def units(self) -> list[Unit]:
        """Of all stages."""
        return [u for m in self.all for u in m.units]

    @property
    def most_layers(self) -> int:
        """ZeRO-3: blocks that were whole at once."""
        return max(getattr(m, "most_layers", 0) for m in self.all)

    def manager_of(self, unit: Unit) -> DataParallel:
        """Whose unit it is."""
        return next(m for m in self.all if unit in m.units)

    def owned(self, unit: Unit) -> slice:
        """Elements of its flat buffer that this rank updates."""
        return self.manager_of(unit).owned(unit)

    def gradient_slice(self, unit: Unit) -> Tensor:
        """The owned gradients."""
        return self.manager_of(unit).gradient_slice(unit)

    def close(self) -> None:
        """Let go of the parameters."""
        for m in self.all:
            m.close()

    def step_begins(self) -> None:
        """Before a step."""
        for m in self.all:
            m.step_begins()

    def finish(self) -> None:
        """Every gradient is reduced when this returns."""
        for m in self.all:
            m.finish()

    def norm_squared(self) -> Tensor:
        """Sum of squares of what this rank counts."""
        return torch.stack([m.norm_squared() for m in self.all]).sum() if len(self.all) > 1 else self.all[0].norm_squared()

    def overflowed(self) -> Tensor:
        """1.0 if one of the owned gradients is not finite, else 0.0."""
        return torch.stack([m.overflowed() for m in self.all]).amax() if len(self.all) > 1 else self.all[0].overflowed()

    def step(self, scale: Tensor, number: int) -> None:
        """Update the owned parameters and bring them up to date everywhere."""
        for m in self.all:
            m.step(scale, number)

    def step_ends(self) -> None:
        """Ready for the next step, without an update."""
        for m in self.all:
            m.step_ends()

    def keep(self) -> list[Pieces]:
        """By stage, copies of what this rank owns."""
        return [m.keep() for m in self.all]

    def restore(self, kept: list[Pieces]) -> None:
        """Everything is as it was kept, everywhere."""
        for m, pieces in zip(self.all, kept, strict=True):
            m.restore(pieces)

    def gradients(self) -> dict[str, Tensor]:
        """Reduced gradients by full parameter name."""
        return _union([m.gradients() for m in self.all])

    def weights(self) -> dict[str, Tensor]:
        """Parameters by full name."""
        return _union([m.weights() for m in self.all])


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal, also where both are no number: fp16's gradients may have overflowed."""
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def _union(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A tied table with two copies on a rank has one name: its copies must be the same."""
    out: dict[str, Tensor] = {}
    for part in parts:
        for name in out.keys() & part.keys():
            if part[name].device.type != "meta" and not _same(out[name], part[name]):
                raise AssertionError(f"this rank's copies of {name} differ")
        out |= part
    return out
