"""Torch with one thread, as every rank has it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, as ranks do.

    With more, sums would differ in their last bits; and the small matrices of a lesson's model take many
    times as long where other programs share the cores, because torch's threads wait for each other by
    spinning.

    Example:
        >>> import torch
        >>> with one_thread():
        ...     torch.get_num_threads()
        1
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
