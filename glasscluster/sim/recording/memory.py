"""Virtual GPU memory: the bytes of every live storage by category, over program order.

A storage is counted from the operation that made it until Python lets go of it (a weak reference says when),
so what is counted is what really lived, saved activations and temporaries included. Parameters, gradients,
optimizer state and communication buffers are registered by who owns them; everything else is an activation,
and is called after the operation that made it. What lived when is asked of the log
afterwards: sim/time/memory_history.py, which also finds the peak.
Fragmentation and a kernel's own workspace are not modelled.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from glasscluster.base.errors import OutOfMemory
from glasscluster.sim.recording.events import CATEGORIES, OPTIMIZER, OTHER, PHASES
from glasscluster.sim.recording.memory_log import Resident, largest
from glasscluster.sim.recording.rows import Log

ACTIVATIONS, BUFFERS = CATEGORIES.index("activations"), CATEGORIES.index("buffers")
BEFORE = "from before the step"
Where = tuple[int, int, int]  # phase, layer, micro-batch


class Ledger:
    """Live bytes of one rank, and a log of their changes.

    A row of `log` is (clock, category, change in bytes, number of the storage). The clock counts what the
    program has
    done: its operations, and its waits.
    """

    def __init__(self, rank: int, capacity: float | None = None) -> None:
        self.rank, self.capacity = rank, capacity
        self.now = [0] * len(CATEGORIES)
        self.total = 0
        self.log = Log(4)
        self.live: dict[
            int, tuple[int, int, str, weakref.ref | None, int]
        ] = {}  # storage -> (category, bytes, name, reference, number); without a reference: see repeated.py
        self.names: dict[int, str] = {}  # number -> name, of the storages that somebody named
        self.next_number = 0
        self.noted: list[tuple[str, int, Callable[[int], None]]] = []  # what `note` was asked, and said
        self.host: dict[
            int, tuple[int, weakref.ref]
        ] = {}  # storage -> (bytes, reference): in host memory, not on the GPU
        # the next three are the recorder's: what the program has done so far, where it is, and (phase, layer,
        # operation) of a clock
        self.clock = lambda: 0
        self.where: Callable[[], Where] = lambda: (0, -1, -1)
        self.made_by: Callable[[int], tuple[int, int, str]] = lambda _clock: (0, -1, "")
        self.base = [0] * len(CATEGORIES)
        self.before: list[
            tuple[int, int, int]
        ] = []  # (number, category, bytes) of what lived when the step began

    # ---- what the recorder and the owners tell us ----------------------------------------------------------
    def allocated(self, tensors: Iterable[torch.Tensor], phase: int) -> None:
        """Count the new storages of an operation: as buffers within the optimizer's step, else as
        activations.
        """
        category = BUFFERS if phase == OPTIMIZER else ACTIVATIONS
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self.live and storage._cdata not in self.host:
                self._add(storage, category, "")

    def register(self, tensor: torch.Tensor, category: str, name: str = "") -> torch.Tensor:
        """Count a tensor under a category, and give it a name there; returns the tensor."""
        storage = tensor.untyped_storage()
        if storage._cdata in self.live:
            old, nbytes, _, reference, number = self.live[storage._cdata]
            new = CATEGORIES.index(category)
            self.live[storage._cdata] = (new, nbytes, name, reference, number)
            self._call(number, name)
            if new != old:
                self._change(old, -nbytes, number)
                self._change(new, nbytes, number)
        else:
            self._add(storage, CATEGORIES.index(category), name)
        return tensor

    def call(self, tensor: torch.Tensor, name: str) -> None:
        """Give a tensor a name, in the category that it is counted in."""
        key = tensor.untyped_storage()._cdata
        if key in self.live:
            category, nbytes, _, reference, number = self.live[key]
            self.live[key] = (category, nbytes, name, reference, number)
            self._call(number, name)

    def on_host(self, tensor: torch.Tensor, name: str = "") -> torch.Tensor:
        """Count a tensor as living in host memory, none of it on the GPU; returns the tensor."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.live:
            self._freed(key, self.live[key][3])
        self.host[key] = (storage.nbytes(), weakref.ref(storage, lambda _: self.host.pop(key, None)))
        return tensor

    @property
    def host_bytes(self) -> int:
        """Bytes that live in host memory for this rank."""
        return sum(nbytes for nbytes, _ in self.host.values())

    def resize(self, tensor: torch.Tensor, nbytes: int) -> None:
        """Resize a registered tensor's storage (ZeRO-3 frees gathered parameters this way) and count it."""
        storage = tensor.untyped_storage()
        category, old, name, reference, number = self.live[storage._cdata]
        storage.resize_(nbytes)
        self.live[storage._cdata] = (category, nbytes, name, reference, number)
        self._change(category, nbytes - old, number)

    def _add(self, storage: torch.UntypedStorage, category: int, name: str) -> None:
        number = self.next_number
        self.next_number += 1
        self.adopt(storage, category, name, number)
        self._call(number, name)
        self._change(category, storage.nbytes(), number)

    def adopt(self, storage: torch.UntypedStorage, category: int, name: str, number: int) -> None:
        """Know a storage by a number from now until Python lets go of it; its bytes are counted already."""
        key = storage._cdata
        freed = weakref.ref(storage, partial(self._freed, key))
        self.live[key] = (category, storage.nbytes(), name, freed, number)

    def number_of(self, tensor: torch.Tensor) -> int:
        """The number of a tensor's storage; -1 if it is not counted here."""
        entry = self.live.get(tensor.untyped_storage()._cdata)
        return -1 if entry is None else entry[4]

    def by_number(self) -> dict[int, tuple[int, int, str]]:
        """Category, bytes and name of each live storage, by its number."""
        return {number: (category, nbytes, name) for category, nbytes, name, _, number in self.live.values()}

    def hold(self, key: int, held: tuple[int, int, str]) -> None:
        """Count a live storage as of this category, bytes and name; the log has it already."""
        _, _, _, reference, number = self.live[key]
        self.live[key] = (*held, reference, number)
        self._call(number, held[2])

    def _call(self, number: int, name: str) -> None:
        if name:
            self.names[number] = name

    def _freed(self, key: int, _reference: weakref.ref | None) -> None:
        category, nbytes, _, _, number = self.live.pop(key)
        self._change(category, -nbytes, number)

    def _change(self, category: int, nbytes: int, number: int) -> None:
        if nbytes == 0:
            return
        self.now[category] += nbytes
        self.total += nbytes
        self.log.append((self.clock(), category, nbytes, number))
        if nbytes > 0 and self.capacity is not None and self.total > self.capacity:
            raise self._out_of_memory(nbytes)

    @contextmanager
    def rearranging(self) -> Iterator[None]:
        """A context manager for moving state between steps.

        What exists twice while it moves is counted, but may exceed the GPU's capacity.
        """
        capacity, self.capacity = self.capacity, None
        try:
            yield
        finally:
            self.capacity = capacity

    # ---- questions -----------------------------------------------------------------------------------------
    def start(self) -> None:
        """Begin the step to be measured: what lives now is its base line."""
        self.base = list(self.now)
        self.before = [
            (number, category, nbytes) for category, nbytes, _, _, number in self.live.values() if nbytes
        ]
        self.names = {number: name or BEFORE for _, _, name, _, number in self.live.values()}
        self.log.clear()
        self.noted.clear()

    def snapshot(self) -> dict[str, int]:
        """Bytes by category at this moment."""
        return dict(zip(CATEGORIES, self.now, strict=True))

    def named(self, name: str) -> int:
        """Bytes of the live storages that were registered under a name."""
        return sum(nbytes for _, nbytes, known_as, _, _ in self.live.values() if known_as == name)

    def note(self, name: str, take: Callable[[int], None]) -> None:
        """Tell `take` the bytes that live under a name at this moment.

        It is told again where what is recorded now is recorded again without being run (repeated.py).
        """
        nbytes = self.named(name)
        self.noted.append((name, nbytes, take))
        take(nbytes)

    def residents(self, top: int = 5) -> list[Resident]:
        """What holds most bytes now: live storages, those of one name together."""
        born = {number: clock for clock, _, _, number in self.log.all()[::-1].tolist()}
        held = []
        for category, nbytes, _, _, number in self.live.values():
            phase, layer, name = (
                (0, -1, self.names[number]) if number in self.names else self.made_by(born.get(number, 0))
            )
            held.append((CATEGORIES[category], PHASES[phase], layer, name, nbytes))
        return largest(held, top)

    def _out_of_memory(self, wanted: int) -> OutOfMemory:
        capacity, self.capacity = self.capacity, None  # say it once: unwinding frees and allocates too
        assert capacity is not None
        phase, layer, micro_batch = self.where()
        doing = (
            f"in {PHASES[phase]}"
            if phase != OTHER
            else "in a phase without a name"
            if self.clock()
            else "while setting up"
        )
        place = doing
        if micro_batch >= 0:
            place += f" of micro-batch {micro_batch}"
        if layer >= 0:
            place += f", layer {layer}"
        by_category = ", ".join(f"{name} {value:,}" for name, value in self.snapshot().items() if value)
        residents = self.residents()
        return OutOfMemory(
            f"rank {self.rank} is out of virtual memory {place}: {wanted:,} bytes more make "
            f"{self.total:,} of {capacity:,.0f}. "
            f"Resident: {by_category}. Largest: {'; '.join(map(str, residents))}",
            phase=PHASES[phase],
            layer=layer,
            residents=[r.as_dict() for r in residents],
            rank=self.rank,
            operation="allocate",
        )
