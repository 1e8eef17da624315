"""The gradient norm for clipping, and whether a gradient has overflowed: each rank's part, before ranks agree on it.

    ‖g‖² = Σ over ranks of  Σ over the slices that this rank counts  ‖slice‖²

What several ranks have alike (a norm's weight on every tensor rank) is counted by one of them: `Member.counts` says by which.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glasscluster.strategies.layout.units import Unit, counted


def norm_squared(stages: Sequence[Sequence[Unit]], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Sum of squares of the owned gradients that this rank counts, of the units of each of its stages: a scalar."""
    if len(stages) == 1:
        return _norm_squared(stages[0], dtype, device)
    return torch.stack([_norm_squared(units, dtype, device) for units in stages]).sum()


def overflowed(stages: Sequence[Sequence[Unit]], device: torch.device) -> Tensor:
    """1.0 if one of the owned gradients is not finite, else 0.0: a scalar."""
    if len(stages) == 1:
        return _overflowed(stages[0], device)
    return torch.stack([_overflowed(units, device) for units in stages]).amax()


def _norm_squared(units: Sequence[Unit], dtype: torch.dtype, device: torch.device) -> Tensor:
    total = torch.zeros((), dtype=dtype, device=device)
    for unit in units:
        for piece in counted(unit):
            norm = torch.linalg.vector_norm(unit.owned_gradient[piece], dtype=dtype)
            total.addcmul_(norm, norm)
    return total


def _overflowed(units: Sequence[Unit], device: torch.device) -> Tensor:
    found = torch.zeros((), dtype=torch.float32, device=device)
    for unit in units:
        found += (~torch.isfinite(unit.owned_gradient).all()).float()
    return found.clamp_(max=1.0)
