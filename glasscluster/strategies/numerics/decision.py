"""A decision: whether a training step is taken.

fp16's loss scale and the guard against bad batches are the two there are.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Decision(Protocol):
    """Says whether a step is taken.

    All ranks read the same numbers, so all decide alike without another message.
    """

    def takes(self, norm: Tensor, overflow: Tensor | None) -> bool:
        """Whether the step is taken.

        norm: of the mean gradient. overflow: with a loss scale, the number of ranks that overflowed.
        """
