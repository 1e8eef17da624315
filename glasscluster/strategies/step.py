"""What the phases of a training step hand on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """What a rank trains on in a step: by micro-batch [b, s], and how many targets count."""

    inputs: list[Tensor]
    targets: list[Tensor]
    counted: Tensor


@dataclass
class Step:
    """What the phases of a step hand on. Scalars; loss and norm are summed until `agree` has divided them."""

    number: int
    batch: Batch
    loss: Tensor
    seed: Tensor | None = None  # what backward starts from: fp16's loss scale
    totals: Tensor = field(init=False)  # [loss, tokens], over all ranks
    norm: Tensor = field(init=False)  # of the mean gradient
    overflow: Tensor | None = field(init=False)  # ranks that overflowed
    scale: Tensor = field(init=False)  # what gradients are multiplied by in the update
    mean: Tensor = field(init=False)  # loss a token
    taken: bool = True
