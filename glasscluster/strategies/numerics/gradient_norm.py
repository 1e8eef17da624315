"""Each rank's part of the gradient norm for clipping, and whether one of its gradients has overflowed.

    ‖g‖² = Σ over ranks of  Σ over the slices that this rank counts  ‖slice‖²

A gradient that several ranks have (that of a norm's weight, on every tensor-parallel rank) is counted by one
of them; `Member.counts` says whether it is this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from glasscluster.strategies.layout.units import Unit, counted


class HasUnits(Protocol):
    """A stage's data-parallel manager."""

    units: list[Unit]


def norm_squared(stages: Sequence[HasUnits], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The sum of squares of the owned gradients that this rank counts, over its pipeline stages: a scalar."""
    if len(stages) == 1:
        return _norm_squared(stages[0].units, dtype, device)
    return torch.stack([_norm_squared(stage.units, dtype, device) for stage in stages]).sum()


def overflowed(stages: Sequence[HasUnits], device: torch.device) -> Tensor:
    """1.0 if one of the owned gradients is not finite, else 0.0: a scalar."""
    if len(stages) == 1:
        return _overflowed(stages[0].units, device)
    return torch.stack([_overflowed(stage.units, device) for stage in stages]).amax()


def _norm_squared(units: Sequence[Unit], dtype: torch.dtype, device: torch.device) -> Tensor:
    total = torch.zeros((), dtype=dtype, device=device)
    for unit in units:
        for piece in counted(unit):
            norm = torch.linalg.vector_norm(unit.owned_gradient[piece], dtype=dtype)
            total.addcmul_(norm, norm)
    return total


def _overflowed(units: Sequence[Unit], device: torch.device) -> Tensor:
    not_finite = torch.zeros((), dtype=torch.float32, device=device)
    for unit in units:
        not_finite += (~torch.isfinite(unit.owned_gradient).all()).float()
    return not_finite.clamp_(max=1.0)
