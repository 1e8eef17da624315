"""The recorder: writes down what one rank did, while it does it. It knows nothing of time.

Three things happen here. Compute: a torch dispatch mode sees every operation, forward and backward, and
notes FLOPs, slow-memory bytes, phase, layer and micro-batch. Messages: the communicator reports each send,
receive, local addition and collective, with what they depend on. Memory: the ledger hears of every new
storage. The model's code carries no recording.

A row is a tuple in the order of `FIELDS`; its place is (lane, order within the lane), so rows do not depend
on when the CPU happened to run a collective's steps. `graph.py` joins the ranks' rows into one graph.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from glasscluster.base.errors import InputError
from glasscluster.sim.recording.cuts import Cut
from glasscluster.sim.recording.events import COMPUTE, FIELDS, PHASES, RECOMPUTE
from glasscluster.sim.recording.memory import Ledger
from glasscluster.sim.recording.operator_rules import decomposed, rule_of
from glasscluster.sim.recording.rows import Log, Rows

_ACCUMULATE = 1 << 62
LARGEST_LABEL = (1 << 31) - 1  # of a layer or a micro-batch


def tensors(args):
    """The tensors in nested tuples and lists."""
    for a in args:
        if isinstance(a, torch.Tensor):
            yield a
        elif isinstance(a, (list, tuple)):
            yield from tensors(a)


def _check_label(name: str, value: object) -> None:
    """Refuse a layer or micro-batch that the graph has no room for, where it is given."""
    if value is None:
        return
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not -1 <= value <= LARGEST_LABEL:  # type: ignore[operator]
        raise InputError(name, value, f"must be a whole number from -1 to {LARGEST_LABEL}")


class Recorder:
    """Rows of one rank. While `paused` nothing is recorded (loaders, checks, the inside of collectives)."""

    def __init__(self, rank: int, ledger: Ledger) -> None:
        self.rank, self.ledger = rank, ledger
        self.rows = Rows(len(FIELDS))
        self.lane_length: dict[int, int] = {}
        self.frontier: tuple[int, ...] = ()  # rows that the next event of the program must follow
        self.ticks = 0  # operations and waits of the program so far: the memory ledger's clock
        self.waits = Log(2)  # (clock, row waited for)
        self.opened = 0  # the row with which the action under way began (repeated.py),
        self.reached_back = False  # and whether it waited for something from before it
        self.paused = False
        self.phase, self.layer, self.micro_batch = 0, -1, -1
        self.running = ""  # name of the operation that is being recorded
        self.names: dict[str, int] = {}
        self.unknown_flops: set[str] = set()  # operators whose FLOPs nobody knows, recorded as 0
        self.groups: dict[int, tuple[str, tuple[int, ...]]] = {}  # group -> (axis, the cluster's ranks)
        self.cuts: dict[int, Cut | None] = {}  # group -> how the mesh is cut into groups of its kind
        self._layer_spans: list[
            tuple[int, int]
        ] = []  # (first autograd sequence number, layer), forward order
        self.backward_at = -1  # the layer whose backward ran last

    # ---- rows ----------------------------------------------------------------------------------------------
    def name_id(self, name: str) -> int:
        """A small integer for a name."""
        return self.names.setdefault(name, len(self.names))

    def row(
        self, lane: int, kind: int, op: str, flops: int, nbytes: int, deps: tuple[int, ...], **more: Any
    ) -> int:
        """Append one row; returns its number on this rank."""
        order = self.lane_length.get(lane, 0)
        self.lane_length[lane] = order + 1
        self.ticks += lane == 0
        rows = self.rows
        rows.tail.append(
            (
                lane,
                order,
                kind,
                more.get("phase", self.phase),
                more["layer"] if "layer" in more else self.current_layer(),
                more.get("micro_batch", self.micro_batch),
                self.name_id(op),
                flops,
                nbytes,
                more.get("peer", -1),
                more.get("tag", 0),
                more.get("purpose", 0),
                self.name_id(more.get("label", "")),
                more.get("sequence", -1),
                more.get("offset", -1),
                deps,
            )
        )
        return rows.settled + len(rows.tail) - 1

    def compute(self, op: str, flops: int, nbytes: int) -> None:
        """Append one kernel on the compute lane; it follows all that the program has done or waited for."""
        self.frontier = (self.row(0, COMPUTE, op, flops, nbytes, self.frontier),)

    def waited(self, row: int) -> None:
        """Note that the program waited for `row` (a receive, a collective): what it does next follows it."""
        if row < self.opened:
            self.reached_back = True
        if row not in self.frontier:
            self.frontier = (*self.frontier, row)
            self.waits.append((self.ticks, row))
            self.ticks += 1

    # ---- where we are --------------------------------------------------------------------------------------
    @contextmanager
    def region(self, name: str | None = None, *, layer: int | None = None, micro_batch: int | None = None):
        """A context manager that labels what runs inside: a phase of `PHASES`, a layer, a micro-batch."""
        before = (self.phase, self.layer, self.micro_batch)
        _check_label("layer", layer)
        _check_label("micro_batch", micro_batch)
        if name is not None:
            self.phase = PHASES.index(name) if name in PHASES else 0
        self.layer = self.layer if layer is None else layer
        self.micro_batch = self.micro_batch if micro_batch is None else micro_batch
        try:
            yield
        finally:
            self.phase, self.layer, self.micro_batch = before

    @contextmanager
    def unrecorded(self):
        """A context manager: nothing inside is recorded (data loading, initialisation, the clones of a
        check).
        """
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    def enter_layer(self, layer: int) -> None:
        """Note that forward enters a layer (a module hook calls this); its backward belongs to that layer
        too.
        """
        self.layer = layer
        self._layer_spans.append((torch._C._autograd._get_sequence_nr(), layer))

    def current_layer(self) -> int:
        """The number of the layer that is being computed.

        In backward it is the layer whose forward made the autograd node that runs.
        """
        node = torch._C._current_autograd_node()
        if node is None or self.phase == RECOMPUTE:  # recomputation is a forward inside a backward
            return self.layer
        number = node._sequence_nr()
        if (
            number < _ACCUMULATE and self._layer_spans
        ):  # AccumulateGrad has no number of its own: stay where we were
            at = bisect.bisect_right(self._layer_spans, (number, 1 << 60)) - 1
            self.backward_at = self._layer_spans[at][1] if at >= 0 else -1
        return self.backward_at

    # ---- one operation -------------------------------------------------------------------------------------
    def operation(self, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
        """Record one operator; the dispatch mode calls this after each."""
        rule = rule_of(func)
        results = (
            (out,)
            if isinstance(out, torch.Tensor)
            else tuple(tensors(out))
            if isinstance(out, (list, tuple))
            else ()
        )
        if rule.allocates:
            self.running = rule.name
            self.ledger.allocated(results, self.phase)
        if not rule.event:
            return
        if rule.nbytes is not None:
            nbytes = rule.nbytes(args, out)
        else:
            nbytes = 0
            for i, a in enumerate(args):
                if i not in rule.write_only:
                    nbytes += _bytes_of(a)
            if kwargs:
                nbytes += sum(_bytes_of(v) for v in kwargs.values())
            if rule.mutated:
                nbytes += sum(_bytes_of(args[i]) for i in rule.mutated if i < len(args))
            else:
                nbytes += sum(t.numel() * t.element_size() for t in results)
        flops = rule.flops(args, out) if rule.flops else 0
        if flops is None:
            self.unknown_flops.add(rule.name)
            flops = 0
        row = self.row(0, COMPUTE, rule.name, flops, nbytes, self.frontier, layer=self.current_layer())
        self.frontier = (row,)

    def clear(self) -> None:
        """Forget the rows so far (labels and names stay)."""
        self.rows.clear()
        self.lane_length.clear()
        self._layer_spans.clear()
        self.waits.clear()
        self.unknown_flops.clear()
        self.frontier, self.ticks, self.opened = (), 0, 0

    def columns(self) -> dict[str, Any]:
        """All that travels from a rank to the graph: rows as arrays, names, groups and the memory log."""
        table, counts, flat = self.rows.all()
        return {
            "rank": self.rank,
            "table": table,
            "dep_counts": counts,
            "deps": flat,
            "names": list(self.names),
            "groups": dict(self.groups),
            "cuts": dict(self.cuts),
            "unknown_flops": sorted(self.unknown_flops),
            "memory": self._memory(table),
        }

    def _memory(self, table: np.ndarray) -> dict[str, Any]:
        """What the ledger wrote down of the step: base line, log, waits as (clock, lane, order), what lived
        before, names.

        Storages are numbered anew, in the order in which the step met them.
        """
        ledger, waits = self.ledger, self.waits.all()
        log, before = ledger.log.all(), np.array(ledger.before, dtype=np.int64).reshape(-1, 3)
        met, first, place = np.unique(
            np.concatenate([before[:, 0], log[:, 3]]), return_index=True, return_inverse=True
        )
        new = np.empty(len(met), dtype=np.int64)
        new[np.argsort(first)] = np.arange(len(met))
        numbers, number = new[place.reshape(-1)], dict(zip(met.tolist(), new.tolist(), strict=True))
        return {
            "base": list(ledger.base),
            "log": np.column_stack([log[:, :3], numbers[len(before) :]]),
            "waits": np.column_stack([waits[:, 0], table[waits[:, 1], :2]]),
            "before": np.column_stack([numbers[: len(before)], before[:, 1:]]),
            "named": {number[n]: name for n, name in ledger.names.items() if n in number},
        }

    # ---- what the memory ledger asks -----------------------------------------------------------------------
    def where(self) -> tuple[int, int, int]:
        """The phase, layer and micro-batch at this moment."""
        return self.phase, self.current_layer(), self.micro_batch

    def made_by(self, clock: int) -> tuple[int, int, str]:
        """Phase, layer and name of the operation that ran at a clock; it is searched for, as only errors need
        it.
        """
        number = clock - int((self.waits.all()[:, 0] < clock).sum())
        table = self.rows.all().table
        at = np.flatnonzero((table[:, 0] == 0) & (table[:, 1] == number))
        if not len(at):  # the very operation that is being recorded
            return self.phase, self.current_layer(), self.running
        row, names = table[at[0]].tolist(), list(self.names)
        return row[3], row[4], names[row[6]]


def _bytes_of(a: Any) -> int:
    if isinstance(a, torch.Tensor):
        return a.numel() * a.element_size()
    if isinstance(a, (list, tuple)):
        return sum(_bytes_of(x) for x in a)
    return 0


class RecordingMode(TorchDispatchMode):
    """A torch dispatch mode that sees every operator of one rank's thread, backward included."""

    def __init__(
        self, recorder: Recorder, operate: Callable[[Any, tuple, dict[str, Any]], Any] | None = None
    ) -> None:
        super().__init__()
        self.recorder, self.operate = recorder, operate

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # The default wraps __torch_dispatch__ in torch._disable_dynamo, which imports torch's compiler on
        # first use (over a second a process). Private: a torch without it ignores this and is merely slower.
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if (
            torch.is_inference_mode_enabled()
        ):  # here torch does not decompose its composite operators beforehand
            with self:
                result = decomposed(func, args, kwargs or {})
            if result is not NotImplemented:
                return result
        out = self.operate(func, args, kwargs or {}) if self.operate else func(*args, **(kwargs or {}))
        if not self.recorder.paused:
            self.recorder.operation(func, args, kwargs or {}, out)
        return out
