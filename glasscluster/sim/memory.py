"""Virtual GPU memory: the bytes of every live storage by category, over program order.

A storage is counted from the operation that made it until Python lets go of it (a weak reference says when),
so what is counted is what really lived, saved activations and temporaries included. Parameters, gradients,
optimizer state and communication buffers are registered by who owns them; everything else is an activation.
Fragmentation and a kernel's own workspace are not modelled.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial

import torch

from glasscluster.sim.errors import OutOfMemory
from glasscluster.sim.vocabulary import CATEGORIES, OPTIMIZER

ACTIVATIONS, BUFFERS = CATEGORIES.index("activations"), CATEGORIES.index("buffers")


class Ledger:
    """Live bytes of one rank. `log` holds (rows recorded so far, category, change in bytes)."""

    def __init__(self, rank: int, capacity: float | None = None) -> None:
        self.rank, self.capacity = rank, capacity
        self.now = [0] * len(CATEGORIES)
        self.total = 0
        self.log: list[tuple[int, int, int]] = []
        self.live: dict[int, tuple[int, int, str, weakref.ref]] = {}  # storage -> (category, bytes, name, reference)
        self.clock = lambda: 0  # set by the recorder's owner: rows recorded so far
        self.where = lambda: ""  # for the out-of-memory message: phase and layer
        self.base = [0] * len(CATEGORIES)

    # ---- what the recorder and the owners tell us --------------------------------------------------------------
    def allocated(self, tensors: Iterable[torch.Tensor], phase: int) -> None:
        """New results of an operation: temporaries of the optimizer are buffers, all else activations."""
        category = BUFFERS if phase == OPTIMIZER else ACTIVATIONS
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self.live:
                self._add(storage, category, "")

    def register(self, tensor: torch.Tensor, category: str, name: str = "") -> torch.Tensor:
        """Say what a tensor is for; moves it there if it was counted elsewhere. Returns the tensor."""
        storage = tensor.untyped_storage()
        if storage._cdata in self.live:
            old, nbytes, _, reference = self.live[storage._cdata]
            self._change(old, -nbytes)
            self.live[storage._cdata] = (CATEGORIES.index(category), nbytes, name, reference)
            self._change(CATEGORIES.index(category), nbytes)
        else:
            self._add(storage, CATEGORIES.index(category), name)
        return tensor

    def resize(self, tensor: torch.Tensor, nbytes: int) -> None:
        """Resize a registered tensor's storage (ZeRO-3 frees gathered parameters this way) and count it."""
        storage = tensor.untyped_storage()
        category, old, name, reference = self.live[storage._cdata]
        storage.resize_(nbytes)
        self.live[storage._cdata] = (category, nbytes, name, reference)
        self._change(category, nbytes - old)

    def _add(self, storage: torch.UntypedStorage, category: int, name: str) -> None:
        key = storage._cdata
        self.live[key] = (category, storage.nbytes(), name, weakref.ref(storage, partial(self._freed, key)))
        self._change(category, storage.nbytes())

    def _freed(self, key: int, _reference: weakref.ref) -> None:
        category, nbytes, _, _ = self.live.pop(key)
        self._change(category, -nbytes)

    def _change(self, category: int, nbytes: int) -> None:
        if nbytes == 0:
            return
        self.now[category] += nbytes
        self.total += nbytes
        self.log.append((self.clock(), category, nbytes))
        if nbytes > 0 and self.capacity is not None and self.total > self.capacity:
            raise self._out_of_memory(nbytes)

    # ---- questions -------------------------------------------------------------------------------------------
    def start(self) -> None:
        """The step to be measured starts here: what lives now is its base line."""
        self.base = list(self.now)
        self.log.clear()

    def snapshot(self) -> dict[str, int]:
        """Bytes by category at this moment."""
        return dict(zip(CATEGORIES, self.now, strict=True))

    def residents(self, top: int = 5) -> list[tuple[str, str, int]]:
        """The largest live storages: (category, name, bytes)."""
        rows = sorted(((CATEGORIES[c], n or "unnamed", b) for c, b, n, _ in self.live.values()), key=lambda r: -r[2])
        return rows[:top]

    def _out_of_memory(self, wanted: int) -> OutOfMemory:
        assert self.capacity is not None
        by_category = ", ".join(f"{name} {value:,}" for name, value in self.snapshot().items() if value)
        largest = "; ".join(f"{category} {name}: {size:,} bytes" for category, name, size in self.residents())
        self.capacity = None  # say it once: unwinding frees and allocates too
        return OutOfMemory(
            f"rank {self.rank} is out of virtual memory{self.where()}: {wanted:,} bytes more make {self.total:,} of a capacity "
            f"that is smaller. Resident: {by_category}. Largest: {largest}",
            rank=self.rank,
            operation="allocate",
        )


def peak(base: list[int], log: list[tuple[int, int, int]]) -> tuple[int, dict[str, int]]:
    """Highest sum over categories during the step, and its split at that instant (they add up)."""
    now, best, split = list(base), sum(base), list(base)
    total = best
    for _, category, change in log:
        now[category] += change
        total += change
        if total > best:
            best, split = total, list(now)
    return best, dict(zip(CATEGORIES, split, strict=True))
