"""Records a template once more, as if its action ran now: the other way round than template.py takes it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from glasscluster.sim.recording.rows import Block
from glasscluster.sim.recording.template import (
    FRONTIER,
    GIVEN,
    KEPT,
    LENT,
    MADE,
    MICRO_BATCH,
    ORDER,
    SEQUENCE,
    UNSET,
    Begin,
    Template,
)


def placed(t: Template, now: Begin, device: torch.device | None) -> Tensor | None:
    """Record a template once more, as if its action ran now; returns the tensor that the action hands on."""
    for journal, entries in zip(now.journals, t.said, strict=True):
        journal.extend(entries)
    _place_rows(t, now)
    return _place_memory(t, now, device)


def _place_rows(t: Template, now: Begin) -> None:
    recorder, table = now.recorder, t.rows.table.copy()
    lanes, place = t.lane_places
    table[:, ORDER] += np.array([now.lanes.get(lane, 0) for lane in lanes], dtype=np.int64)[place]
    table[t.own, MICRO_BATCH] = recorder.micro_batch
    counted = t.of >= 0
    table[counted, SEQUENCE] += np.array(now.launched, dtype=np.int64)[t.of[counted]]
    counts, follows = _place_follows(t, now)
    recorder.rows.put(Block(table, counts, follows))
    for lane, length in t.lanes.items():
        recorder.lane_length[lane] = recorder.lane_length.get(lane, 0) + length
    recorder.waits.put(t.waits + np.array([now.ticks, now.row]))
    recorder.ticks += t.ticks
    before = now.frontier
    recorder.frontier = tuple(
        row for relative in t.frontier for row in (before if relative == FRONTIER else (relative + now.row,))
    )
    recorder.layer = t.layer
    recorder.backward_at = now.backward_at if t.backward_at == UNSET else t.backward_at
    for queue, launched, last in zip(now.queues, t.launched, t.last_collective, strict=True):
        queue.launched += launched
        queue.last_collective = queue.last_collective if last is None else last + now.row


def _place_follows(t: Template, now: Begin) -> tuple[np.ndarray, np.ndarray]:
    """How many rows each row follows now, and which."""
    relative, counts = t.rows.follows, t.rows.counts
    follows = relative + now.row
    for i, last in enumerate(now.last_collective):
        follows[relative == FRONTIER - 1 - i] = last
    whole = relative == FRONTIER
    each = np.where(whole, len(now.frontier), 1)
    owner = np.repeat(np.arange(len(counts)), counts)
    follows = np.repeat(follows, each)
    follows[np.repeat(whole, each)] = np.tile(np.array(now.frontier, dtype=np.int64), int(whole.sum()))
    return np.bincount(np.repeat(owner, each), minlength=len(counts)), follows


def _place_memory(t: Template, now: Begin, device: torch.device | None) -> Tensor | None:
    ledger = now.ledger
    for name, more, take in t.notes:
        take(ledger.named(name) + more)
    log = np.empty((len(t.log), 4), dtype=np.int64)
    log[:, :3], log[:, 3] = t.log[:, :3], t.log[:, 4]
    log[:, 0] += now.ticks
    whose = t.log[:, 3]
    log[whose == MADE, 3] += now.number
    for kind, numbers in ((KEPT, now.kept), (GIVEN, now.given_numbers), (LENT, now.lent_numbers)):
        of = whose == kind
        if of.any():
            log[of, 3] = np.array(numbers, dtype=np.int64)[t.log[of, 4]]
    ledger.log.put(log)
    ledger.now = [n + int(more) for n, more in zip(ledger.now, t.change, strict=True)]
    ledger.total = sum(ledger.now)
    ledger.next_number += t.made
    ledger.names.update((now.number + n, name) for n, name in t.names)
    for x, held in zip(now.lent, t.lent, strict=True):
        if held is not None:
            ledger.hold(x.untyped_storage()._cdata, held)
    for x in now.given:
        ledger.live.pop(x.untyped_storage()._cdata, None)  # if it is kept, it is entered below
    keys = {entry[4]: key for key, entry in ledger.live.items()} if t.lasting else {}
    for number, held in t.lasting:
        ledger.hold(keys[number], held)
    for number in now.kept:
        ledger.live.pop(_key(number))
    for number, held in t.living(now):
        ledger.live[_key(number)] = (*held, None, number)
        if held[2]:
            ledger.names[number] = held[2]
    return _hand_on(t, now, device)


def _key(number: int) -> int:
    """The ledger's key of a storage that only the ledger knows; those of real ones are addresses."""
    return -1 - number


def _hand_on(t: Template, now: Begin, device: torch.device | None) -> Tensor | None:
    if t.output is None:
        return None
    with now.recorder.unrecorded():
        x = t.output.again(device)
    category, _, name = t.output.held
    now.ledger.adopt(x.untyped_storage(), category, name, now.number + t.output.made)
    return x
