"""Number formats by the names that plans use."""

from __future__ import annotations

import torch

from glasscluster.strategies.numerics.widths import TORCH

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, called) for name, called in TORCH.items()}


def accumulator(precision: str) -> torch.dtype:
    """The type in which losses and norms are summed: fp64 for fp64, else fp32."""
    return torch.float64 if precision == "fp64" else torch.float32
