"""A decision: whether a training step is taken.

There are two: fp16's loss scaler (loss_scale.py) and the guard against bad batches (bad_batch.py).
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Decision(Protocol):
    """Says whether a step is taken.

    All ranks have the same numbers, so they decide the same without another message.
    """

    def takes(self, norm: Tensor, overflow: Tensor | None) -> bool:
        """Whether the step is taken.

        norm: of the mean gradient. overflow: with a loss scale, the number of ranks that overflowed.
        """
