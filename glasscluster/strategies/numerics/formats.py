"""Number formats by the names that plans use."""

from __future__ import annotations

import torch

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WIDTH = {name: dtype.itemsize for name, dtype in DTYPES.items()}  # bytes of an element


def accumulator(precision: str) -> torch.dtype:
    """In which sums over many numbers are kept (losses, norms): fp32 at least."""
    return torch.float64 if precision == "fp64" else torch.float32
