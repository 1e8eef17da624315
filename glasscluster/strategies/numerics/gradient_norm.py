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
    parts = []
    for units in stages:
        total = torch.zeros((), dtype=dtype, device=device)
        for unit in units:
            for piece in counted(unit):
                norm = torch.linalg.vector_norm(unit.owned_gradient[piece], dtype=dtype)
                total.addcmul_(norm, norm)
        parts.append(total)
    return torch.stack(parts).sum() if len(parts) > 1 else parts[0]


def overflowed(stages: Sequence[Sequence[Unit]], device: torch.device) -> Tensor:
    """1.0 if one of the owned gradients is not finite, else 0.0: a scalar."""
    parts = []
    for units in stages:
        found = torch.zeros((), dtype=torch.float32, device=device)
        for unit in units:
            found += (~torch.isfinite(unit.owned_gradient).all()).float()
        parts.append(found.clamp_(max=1.0))
    return torch.stack(parts).amax() if len(parts) > 1 else parts[0]
