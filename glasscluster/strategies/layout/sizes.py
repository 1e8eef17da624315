"""What every strategy may ask of the layout: how many GPUs each axis has, and what follows from that."""

from __future__ import annotations

from typing import Protocol


class Layout(Protocol):
    """The axes of a plan. gpus = dp·tp·pp·cp; experts are spread over `ep` ranks taken out of dp·cp."""

    @property
    def dp(self) -> int:
        """Data-parallel replicas."""

    @property
    def tp(self) -> int:
        """Tensor-parallel ranks that a layer is cut over."""

    @property
    def pp(self) -> int:
        """Pipeline stages, counted in ranks."""

    @property
    def cp(self) -> int:
        """Context-parallel ranks that a sequence is cut over."""

    @property
    def ep(self) -> int:
        """Ranks that the experts are spread over."""

    @property
    def zero(self) -> int:
        """ZeRO stage."""

    @property
    def sequence_parallel(self) -> bool:
        """Whether norms and residuals are cut along the sequence over the tensor-parallel ranks."""

    @property
    def micro_batch(self) -> int:
        """Sequences in a micro-batch."""

    @property
    def micro_batches(self) -> int:
        """m: micro-batches of one data-parallel rank in one step."""

    @property
    def data_ranks(self) -> int:
        """Ranks that see different tokens and add up their gradients: dp·cp."""


def divisors(n: int) -> list[int]:
    """All whole numbers that divide n, ascending."""
    return [k for k in range(1, n + 1) if n % k == 0]
