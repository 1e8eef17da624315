"""What an action recorded, as a template: everything is told relative to the moment at which it began.

    rows            place in their lane · collective's number on its communicator · own micro-batch
    dependencies    a row of the action itself  ·  the frontier at its begin, whole  ·  a communicator's
                    collective before it
    clock           ticks since its begin, in waits and in the memory's log
    storages        made by it  ·  kept for it by an action before, of its micro-batch  ·  given to it, to be
                    freed by it or kept  ·  lent to it  ·  there since the step began

`taken` makes a template of what was just recorded; `Unlike` says why something has no such description.
placing.py records it once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from glasscluster.sim.recording.events import (
    CATEGORIES,
    COLLECTIVE,
    FIELDS,
    HOST,
    LANES_PER_GROUP,
    RECV,
    SEND,
)
from glasscluster.sim.recording.memory import Ledger
from glasscluster.sim.recording.recorder import Recorder
from glasscluster.sim.recording.rows import Block

LANE, ORDER, KIND, LAYER, MICRO_BATCH, SEQUENCE = (
    FIELDS.index(name) for name in ("lane", "order", "kind", "layer", "micro_batch", "sequence")
)
# in the place of a row that is followed: all that the program had done; and smaller ones, FRONTIER - 1 - i:
# the last collective of communicator i
FRONTIER = -1
UNSET = -3  # in the place of the layer whose backward ran last, until one runs
MADE, KEPT, GIVEN, LENT, LASTING = range(5)  # whose a storage is
COLLECTIVE_LANES = (0, 1, 2)  # of a communicator: their rows follow collectives, not the program

Held = tuple[int, int, str]  # a live storage: category, bytes, name


class Queue(Protocol):
    """What a template needs to know of a communicator."""

    group: int
    launched: int
    last_collective: int


@dataclass(frozen=True)
class Output:
    """A tensor that an action hands on, in a storage that it made."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    held: Held
    made: int  # the how-manieth of the storages that the action made

    def again(self, device: torch.device | None) -> Tensor:
        """A tensor of the same shape."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)


@dataclass(frozen=True)
class Template:
    """What an action recorded, relative to its begin. Two actions recorded the same if these are equal."""

    rows: Block
    own: np.ndarray  # rows that are labelled with the action's own micro-batch
    of: np.ndarray  # for each row the communicator whose collectives it counts; -1: none
    lanes: dict[int, int]  # rows a lane
    ticks: int
    waits: np.ndarray  # [waits, 2]
    frontier: tuple[int, ...]
    launched: tuple[int, ...]  # collectives a communicator
    last_collective: tuple[int | None, ...]  # a communicator's last row; None: the one before
    layer: int
    backward_at: int
    log: np.ndarray  # clock, category, change, whose, which: [changes, 5]
    made: int
    names: tuple[tuple[int, str], ...]  # of storages that it made
    kept: tuple[tuple[int, int, Held], ...]  # whose, which: what lives on for the micro-batch's next action
    lent: tuple[Held | None, ...]  # what it was lent, afterwards
    lasting: tuple[tuple[int, Held], ...]  # what it changed of what was there
    output: Output | None
    notes: tuple[tuple[str, int, Callable[[int], None]], ...]  # name, bytes more than at the begin, who heard
    said: tuple[list[Any], ...]  # what it appended to each journal

    def same(self, other: Template) -> bool:
        """Whether two actions recorded the same."""
        return all(_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    @cached_property
    def lane_places(self) -> tuple[list[int], np.ndarray]:
        """The lanes that there are, and for each row which of them is its."""
        lanes, place = np.unique(self.rows.table[:, LANE], return_inverse=True)
        return lanes.tolist(), place.reshape(-1)

    @cached_property
    def change(self) -> np.ndarray:
        """Bytes more of each category when it is over."""
        return np.bincount(self.log[:, 1], self.log[:, 2], minlength=len(CATEGORIES)).astype(np.int64)

    @cached_property
    def rise(self) -> int:
        """The most bytes more than at its begin that live at any moment."""
        return int(self.log[:, 2].cumsum().max(initial=0))

    def living(self, begin: Begin) -> list[tuple[int, Held]]:
        """What lives on for the micro-batch's next action if this one began then: number, and how held."""
        of = {KEPT: begin.kept, GIVEN: begin.given_numbers}
        return [(begin.number + n if who == MADE else of[who][n], held) for who, n, held in self.kept]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, Tensor):  # without values
        return isinstance(b, Tensor) and (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and _equal([*a.items()], [*b.items()])
    return bool(a == b)


@dataclass
class Begin:
    """The moment at which an action began.

    Attributes:
        kept: numbers of storages that live for it since an earlier action of its micro-batch.
        lent: tensors that it uses.
        given: those that belong to it from now on: it may free them, or keep them for the next action.
        lasting: storages with a smaller number were there when the step began.
        journals: lists that actions append to.
    """

    recorder: Recorder
    ledger: Ledger
    queues: Sequence[Queue]
    kept: Sequence[int]
    lent: Sequence[Tensor]
    given: Sequence[Tensor]
    lasting: int
    journals: Sequence[list[Any]]
    row: int = field(init=False)
    ticks: int = field(init=False)
    frontier: tuple[int, ...] = field(init=False)
    lanes: dict[int, int] = field(init=False)
    launched: list[int] = field(init=False)
    last_collective: list[int] = field(init=False)
    number: int = field(init=False)
    lent_numbers: list[int] = field(init=False)  # -1: the ledger does not know it
    given_numbers: list[int] = field(init=False)
    backward_at: int = field(init=False)

    def __post_init__(self) -> None:
        recorder, ledger = self.recorder, self.ledger
        self.row, self.ticks, self.frontier = len(recorder.rows), recorder.ticks, recorder.frontier
        self.lanes = dict(recorder.lane_length)
        self.launched = [q.launched for q in self.queues]
        self.last_collective = [q.last_collective for q in self.queues]
        self.number, self.backward_at = ledger.next_number, recorder.backward_at
        self.lent_numbers = [ledger.number_of(x) for x in self.lent]
        self.given_numbers = [ledger.number_of(x) for x in self.given]

    def open(self) -> None:
        """Tell what is recorded from now on from what was there."""
        recorder, ledger = self.recorder, self.ledger
        recorder.rows.settle()
        recorder.waits.settle()
        ledger.log.settle()
        ledger.noted.clear()
        recorder.opened, recorder.reached_back, recorder.backward_at = self.row, False, UNSET
        self.lengths = [len(journal) for journal in self.journals]
        self.live, self.named, self.hosted = ledger.by_number(), len(ledger.names), len(ledger.host)


class Unlike(Exception):
    """Something that an action recorded has no description that would hold for another one."""


def taken(begin: Begin, output: Tensor | None) -> Template:
    """The template of what was recorded since `begin`. The rows themselves stay where they are.

    Raises:
        Unlike: if it has none.
    """
    recorder, ledger = begin.recorder, begin.ledger
    rows, waits, log = recorder.rows.settle(), recorder.waits.settle(), ledger.log.settle()
    unset = rows.table[:, LAYER] == UNSET
    rows.table[unset, LAYER] = begin.backward_at
    backward_at = recorder.backward_at
    if backward_at == UNSET:
        recorder.backward_at = begin.backward_at
    reached_back, recorder.opened = recorder.reached_back, 0
    if unset.any() or reached_back or len(ledger.host) != begin.hosted:
        raise Unlike("it reaches back: to a work, a layer or a copy on the host from before it")
    return Template(
        backward_at=backward_at,
        layer=recorder.layer,
        ticks=recorder.ticks - begin.ticks,
        said=tuple(journal[n:] for journal, n in zip(begin.journals, begin.lengths, strict=True)),
        **_rows(begin, rows, waits),
        **_memory(begin, log, output),
    )


# ---- rows --------------------------------------------------------------------------------------------------
def _rows(begin: Begin, rows: Block, waits: np.ndarray) -> dict[str, Any]:
    recorder, queues = begin.recorder, begin.queues
    if len(queues) != len(begin.launched):
        raise Unlike("it made a communicator")
    table = rows.table.copy()
    lanes = {
        lane: length - begin.lanes.get(lane, 0)
        for lane, length in sorted(recorder.lane_length.items())
        if length != begin.lanes.get(lane, 0)
    }
    for lane in lanes:
        table[table[:, LANE] == lane, ORDER] -= begin.lanes.get(lane, 0)
    own = table[:, MICRO_BATCH] == recorder.micro_batch
    table[own, MICRO_BATCH] = 0
    of = _communicators(begin, table)
    counted = of >= 0
    table[counted, SEQUENCE] -= np.array(begin.launched, dtype=np.int64)[of[counted]]
    waited = waits - [begin.ticks, begin.row]
    _all_waited_for(table, waited)
    return {
        "rows": Block(table, *_follows(begin, rows, table)),
        "own": own,
        "of": of,
        "lanes": lanes,
        "waits": waited,
        "frontier": _relative(begin, recorder.frontier),
        "launched": tuple(q.launched - n for q, n in zip(queues, begin.launched, strict=True)),
        "last_collective": tuple(
            None if q.last_collective == before else q.last_collective - begin.row
            for q, before in zip(queues, begin.last_collective, strict=True)
        ),
    }


def _communicators(begin: Begin, table: np.ndarray) -> np.ndarray:
    """For each row that counts its communicator's collectives, which of the communicators that is."""
    active = [i for i, q in enumerate(begin.queues) if q.launched != begin.launched[i]]
    groups = [begin.queues[i].group for i in active]
    if len(set(groups)) != len(groups) or (table[:, KIND] == HOST).any():
        raise Unlike("two communicators share their lanes, or the host has work")
    of, group = np.full(len(table), -1), (table[:, LANE] - 1) // LANES_PER_GROUP
    for i, number in zip(active, groups, strict=True):
        of[(table[:, SEQUENCE] >= 0) & (group == number)] = i
    if ((of < 0) != (table[:, SEQUENCE] < 0)).any():
        raise Unlike("a collective is of a communicator that launched none")
    return of


def _all_waited_for(table: np.ndarray, waited: np.ndarray) -> None:
    """Nothing that the action launched is still under way: a later action would wait for it."""
    which = (table[:, LANE] - 1) % LANES_PER_GROUP
    messages = np.isin(table[:, KIND], (SEND, RECV)) & (which > COLLECTIVE_LANES[-1])
    launched = np.flatnonzero((table[:, KIND] == COLLECTIVE) | messages)
    if not np.isin(launched, waited[:, 1]).all():
        raise Unlike("something that it launched is still under way")


def _follows(begin: Begin, rows: Block, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many rows each row follows, and which: the frontier counts as one."""
    follows, counts = rows.follows - begin.row, rows.counts.copy()
    ends = rows.counts.cumsum()
    owner = np.repeat(np.arange(len(table)), rows.counts)
    parts, done = list[np.ndarray](), 0
    for row in np.unique(owner[follows < 0]).tolist():
        first, last = int(ends[row] - rows.counts[row]), int(ends[row])
        lane = int(table[row, LANE])
        if lane and (lane - 1) % LANES_PER_GROUP in COLLECTIVE_LANES:
            relative = _after_collective(
                begin, (lane - 1) // LANES_PER_GROUP, rows.follows[first:last].tolist()
            )
        else:
            relative = _relative(begin, tuple(rows.follows[first:last].tolist()))
        parts += [follows[done:first], np.array(relative, dtype=np.int64)]
        counts[row], done = len(relative), last
    return counts, np.concatenate([*parts, follows[done:]])


def _relative(begin: Begin, rows: tuple[int, ...]) -> tuple[int, ...]:
    """What the program has done or waited for, from `begin` on: all that it had done before is one."""
    before = begin.frontier
    relative: tuple[int, ...] = ()
    if before and rows[: len(before)] == before:
        rows, relative = rows[len(before) :], (FRONTIER,)
    if any(row < begin.row for row in rows):
        raise Unlike("a row follows a part of what the program had done")
    return (*relative, *(row - begin.row for row in rows))


def _after_collective(begin: Begin, group: int, rows: list[int]) -> tuple[int, ...]:
    """What a step of a collective follows: rows of the action, or the collective before it."""
    mine = [i for i, q in enumerate(begin.queues) if q.group == group and q.launched != begin.launched[i]]
    if len(mine) != 1 or any(r < begin.row and r != begin.last_collective[mine[0]] for r in rows):
        raise Unlike("a collective follows something other than the one before it")
    return tuple(r - begin.row if r >= begin.row else FRONTIER - 1 - mine[0] for r in rows)


# ---- memory ------------------------------------------------------------------------------------------------
def _memory(begin: Begin, log: np.ndarray, output: Tensor | None) -> dict[str, Any]:
    ledger, live = begin.ledger, begin.ledger.by_number()
    whose = _Whose(begin)
    relative = np.array([(*row[:3], *whose(row[3])) for row in log.tolist()], dtype=np.int64).reshape(-1, 5)
    relative[:, 0] -= begin.ticks
    handed = None if output is None else _output(begin, output)
    out = -1 if handed is None else begin.number + handed.made
    kept = [n for n in (*begin.kept, *begin.given_numbers) if n in live]
    kept += [n for n in live if n >= begin.number and n != out]
    others = set(begin.live).difference(begin.kept, begin.given_numbers, begin.lent_numbers)
    changed = sorted(n for n in others if live.get(n) != begin.live[n])
    if any(n >= begin.lasting or n not in live for n in changed):
        raise Unlike("storages that are neither its own nor lasting ones changed")
    names = list(ledger.names)[begin.named :]
    if any(n < begin.number for n in names):
        raise Unlike("it names a storage from before it for the first time")
    totals: dict[str, int] = {}
    for _, nbytes, name in begin.live.values():
        totals[name] = totals.get(name, 0) + nbytes
    return {
        "log": relative,
        "made": ledger.next_number - begin.number,
        "names": tuple((n - begin.number, ledger.names[n]) for n in names),
        "kept": tuple((*whose(n), live[n]) for n in kept),
        "lent": tuple(live.get(n) for n in begin.lent_numbers),
        "lasting": tuple((n, live[n]) for n in changed),
        "output": handed,
        "notes": tuple((name, nbytes - totals.get(name, 0), take) for name, nbytes, take in ledger.noted),
    }


class _Whose:
    """Says of a storage's number whose it is, and which of them."""

    def __init__(self, begin: Begin) -> None:
        self.begin = begin
        sides = {KEPT: begin.kept, GIVEN: begin.given_numbers, LENT: begin.lent_numbers}
        self.known = {
            n: (whose, i) for whose, numbers in sides.items() for i, n in enumerate(numbers) if n >= 0
        }

    def __call__(self, number: int) -> tuple[int, int]:
        if number >= self.begin.number:
            return MADE, number - self.begin.number
        if number in self.known:
            return self.known[number]
        if number < self.begin.lasting:
            return LASTING, number
        raise Unlike("a storage of another action is freed or changed")


def _output(begin: Begin, x: Tensor) -> Output:
    """The tensor that is handed on: it fills a storage that the action made."""
    entry = begin.ledger.live.get(x.untyped_storage()._cdata)
    if entry is None or entry[4] < begin.number:
        raise Unlike("it hands on a storage that it did not make")
    category, nbytes, name, _, number = entry
    made = Output(tuple(x.shape), x.stride(), x.dtype, (category, nbytes, name), number - begin.number)
    with begin.recorder.unrecorded():
        fills = made.again(x.device).untyped_storage().nbytes() == nbytes
    if not fills or x.storage_offset():
        raise Unlike("it hands on a part of a storage")
    return made
