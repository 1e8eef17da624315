"""Which memory was in use when: a rank's step as its memory ledger recorded it, in program order and, after a
replay, over virtual time.

    program     op 0 · op 1 · wait a · op 2 ...            the ledger's clock counts these
    log         (clock, category, change in bytes, number of the storage)

A change takes place when everything that the program had done or waited for by then is over. So the output of
an operation lives from the operation's start, memory that is freed after a wait is free when the awaited
event has ended, and a message's buffer lives from the message's launch, whatever other streams are doing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from glasscluster.sim.recording.events import CATEGORIES, PHASES
from glasscluster.sim.recording.graph import ExecutionGraph, compute_rows
from glasscluster.sim.recording.memory_log import TABLES, Resident, largest

if TYPE_CHECKING:
    from glasscluster.sim.time.timeline import Timeline


class MemoryHistory:
    """The live bytes of one rank after each change of its step.

    `levels[i]` are the bytes by category after i changes, `levels[0]` those when the step began.
    """

    def __init__(self, graph: ExecutionGraph, rank: int) -> None:
        self.graph, self.rank = graph, rank
        memory = graph.memory[rank]
        self.base, self.named = memory["base"], memory["named"]
        self.log, self.waits, self.before = (
            np.asarray(memory[k], dtype=np.int64).reshape(-1, width) for k, width in TABLES.items()
        )

    @cached_property
    def levels(self) -> np.ndarray:
        """Bytes by category after each change: [changes + 1, categories]."""
        changes = np.zeros((len(self.log) + 1, len(CATEGORIES)), dtype=np.int64)
        changes[0] = self.base
        changes[np.arange(1, len(self.log) + 1), self.log[:, 1]] = self.log[:, 2]
        return changes.cumsum(axis=0)

    @cached_property
    def total(self) -> np.ndarray:
        """Bytes of all categories together after each change: [changes + 1]."""
        return self.levels.sum(axis=1)

    @property
    def peak_at(self) -> int:
        """The number of changes at the peak: the first moment at which most bytes live."""
        return int(np.argmax(self.total))

    def peak(self) -> tuple[int, dict[str, int]]:
        """The most bytes that lived at once, and the bytes of each category at that moment."""
        split = self.levels[self.peak_at]
        return int(split.sum()), dict(zip(CATEGORIES, split.tolist(), strict=True))

    # ---- who -----------------------------------------------------------------------------------------------
    @cached_property
    def _rows(self) -> np.ndarray:
        return compute_rows(self.graph, self.rank)

    @cached_property
    def names(self) -> dict[int, tuple[str, int, str]]:
        """Phase, layer and name of every storage, by its number."""
        graph, rows = self.graph, self._rows
        known = {number: ("other", -1, name) for number, name in self.named.items()}
        for clock, _, _, number in self.log.tolist():
            if number not in known:
                place = clock - int(np.searchsorted(self.waits[:, 0], clock))
                row = int(rows[place]) if place < len(rows) else -1
                made = (PHASES[graph.phase[row]], int(graph.layer[row]), graph.names[graph.op[row]])
                known[number] = made if row >= 0 else ("other", -1, "")
        return known

    def walk(self) -> Iterator[dict[tuple[int, int], int]]:
        """Iterate over the step: bytes by (number of the storage, category), before it and after each change.

        It yields one dictionary, which it changes in place.
        """
        live = {(number, category): size for number, category, size in self.before.tolist()}
        yield live
        for _, category, change, number in self.log.tolist():
            left = live.get((number, category), 0) + change
            if left:
                live[number, category] = left
            else:
                live.pop((number, category), None)
            yield live

    def residents(self, at: int | None = None, top: int = 5) -> list[Resident]:
        """Return what held most bytes after `at` changes (None: at the peak). Storages of one name count
        together.
        """
        at = self.peak_at if at is None else at
        live = next(state for number, state in enumerate(self.walk()) if number == at)
        return self._largest(live, top)

    def _largest(self, live: Mapping[tuple[int, int], int], top: int) -> list[Resident]:
        names = self.names
        return largest(((CATEGORIES[c], *names[n], size) for (n, c), size in live.items()), top)

    # ---- when ----------------------------------------------------------------------------------------------
    def moments(self, timeline: Timeline) -> np.ndarray:
        """The virtual seconds of the step's beginning (0) and of each change: [changes + 1]."""
        ends = np.zeros(len(self._rows) + len(self.waits) + 1)
        waited = np.zeros(len(ends), dtype=bool)
        waited[self.waits[:, 0] + 1] = True
        ends[waited] = timeline.end[self._waited_rows()]
        ends[np.flatnonzero(~waited)[1:]] = timeline.end[self._rows]
        return np.append(0.0, np.maximum.accumulate(ends)[self.log[:, 0]])

    def _waited_rows(self) -> np.ndarray:
        graph = self.graph
        mine = graph.canonical[graph.rank[graph.canonical] == self.rank]  # by lane, then order within it
        width = int(graph.order[mine].max(initial=0)) + 1
        return mine[
            np.searchsorted(
                graph.lane[mine] * width + graph.order[mine], self.waits[:, 1] * width + self.waits[:, 2]
            )
        ]

    def over(self, timeline: Timeline) -> MemoryCurve:
        """Live bytes by category over virtual time.

        Of several changes at one moment it keeps the fullest, then the last.
        """
        when, chosen = self.moments(timeline), []
        for together in np.split(np.arange(len(when)), np.flatnonzero(np.diff(when)) + 1):
            chosen += sorted({int(together[np.argmax(self.total[together])]), int(together[-1])})
        if when[-1] < timeline.makespan:  # what is left stays alive until the end
            when, chosen = np.append(when, timeline.makespan), [*chosen, len(when)]
            levels, at = (
                np.append(self.levels, self.levels[-1:], axis=0),
                np.append(np.arange(len(when) - 1), len(when) - 2),
            )
            return MemoryCurve(self, when[chosen], levels[chosen], at[chosen])
        return MemoryCurve(self, when[chosen], self.levels[chosen], np.array(chosen))


@dataclass(frozen=True)
class MemoryCurve:
    """Seconds [moments], bytes by category [moments, categories], and how many changes came before each
    moment.
    """

    history: MemoryHistory
    times: np.ndarray
    levels: np.ndarray
    at: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> MemoryCurve:
        """The curve at some of its moments."""
        return MemoryCurve(self.history, self.times[chosen], self.levels[chosen], self.at[chosen])

    def residents(self, top: int = 5) -> list[list[Resident]]:
        """Return what held most bytes at each moment."""
        wanted, residents = set(self.at.tolist()), {}
        for number, live in enumerate(self.history.walk()):
            if number in wanted:
                residents[number] = self.history._largest(live, top)
        return [residents[number] for number in self.at.tolist()]
