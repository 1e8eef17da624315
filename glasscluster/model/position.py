"""Positions that are not learned: fixed sines, added to the embedding. Rotary ones: rope.py.

sinusoidal   row m: sin(m / 10000^(2i/h)) in column 2i, cos of the same in column 2i+1      Vaswani et al., 1706.03762, section 3.5
"""

from __future__ import annotations

import torch
from torch import Tensor


def sinusoidal(seq: int, hidden: int) -> Tensor:
    """[s, h] in float64."""
    i = torch.arange(0, hidden, 2, dtype=torch.float64)
    angle = torch.arange(seq, dtype=torch.float64)[:, None] / 10000 ** (i / hidden)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :hidden]
