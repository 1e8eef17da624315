"""In which number type a kernel adds up."""

from __future__ import annotations

import torch


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that a kernel accumulates in: float32 for 16-bit inputs, as on a GPU, else the inputs' own."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
