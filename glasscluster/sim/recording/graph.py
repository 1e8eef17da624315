"""The execution graph: what every rank did, as columns of events and their dependencies. No time in it.

One row an event. A lane is a stream of a rank: 0 is compute; every communicator has six more: whole
collectives and local additions, their sends, their receives, their launches, the program's own sends, the
program's own receives. Events of a lane follow each other; `deps` adds the edges of the program (launch,
wait) and `match` the message that a receive waits for. Rows are topologically sorted once, when the graph
is built. Two graphs are the same when their canonical rows (rank, lane, order) are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from glasscluster.base.errors import InputError, MessageLost
from glasscluster.base.files import replacing
from glasscluster.sim.recording.arrays import read_npz
from glasscluster.sim.recording.events import (
    BACKWARD,
    BEGIN,
    COLLECTIVE,
    COLUMNS,
    COMPUTE,
    FIELDS,
    FORWARD,
    HOST,
    KINDS,
    LANES_PER_GROUP,
    PURPOSES,
    RECV,
    SEND,
)
from glasscluster.sim.recording.fold import Fold
from glasscluster.sim.recording.fold import from_file as fold_from_file
from glasscluster.sim.recording.memory_log import as_columns, from_columns
from glasscluster.sim.recording.order import csr, longest_chain, topological_order
from glasscluster.sim.recording.roles import Roles
from glasscluster.sim.recording.sound import Unsound, check

FORMAT = 4
FOLDED_FORMAT = 5  # of a folded graph, which older versions would take for a whole one


class ExecutionGraph:
    """What every rank did, as columns of events and their dependencies; there is no time in it.

    Each column is a numpy int64 array with one entry an event: [events]. `Run.graph` makes a graph, `load`
    reads one.

    Attributes:
        rank, lane, order: where an event stands: its rank, the stream of that rank, its place in the stream.
        kind, phase, purpose: positions in `KINDS`, `PHASES`, `PURPOSES`.
        layer, micro_batch: what the program was working on; -1: nothing named.
        op, label: positions in `names`; -1: none.
        flops, bytes: floating-point operations, and bytes read and written (of a message: its payload).
        peer, tag: of a message, the other rank (as the cluster numbers it) and its tag; -1: no message.
        sequence: of a collective, how many its communicator had launched before.
        offset: of a message or addition of a collective, its first byte within the collective's buffer; -1
            elsewhere.
        dep_ptr, dep_idx: event i follows the rows dep_idx[dep_ptr[i]:dep_ptr[i+1]], which all stand before
            it.
        match: of a receive, the row of its send; -1 for all else.
        names: operators, collectives and labels by number.
        groups: for each rank, from a communicator's number to its axis and ranks.
        ranks: how many ranks.
        info: what the run wants remembered: backend, precision, FLOPs of the model, ...
        memory: for each rank, what lived when: see sim/time/memory_history.py.
        fold: of a folded graph, whose ranks are roles, whom they stand for (folded.py); otherwise None.
        roles: the same of a graph that is folded by roles (roles.py); otherwise None.

    Args:
        columns: the columns by name.
        dep_ptr, dep_idx, match, meta: as above; `meta` has names, groups, ranks, info and memory.

    Example:
        >>> import torch
        >>> from glasscluster import Cluster
        >>> def program(gpu):
        ...     a = torch.ones(8, 8, device=gpu.device)
        ...     gpu.comm.all_reduce(a @ a)
        >>> graph = Cluster("classroom", gpus=2).run(program).graph
        >>> graph
        ExecutionGraph(2 ranks, 18 events, 2,048 FLOPs)
        >>> graph.bytes_sent(), graph.count("send"), graph.message_chain()
        ([256, 256], 4, 2)
    """

    rank: np.ndarray
    lane: np.ndarray
    order: np.ndarray
    kind: np.ndarray
    phase: np.ndarray
    layer: np.ndarray
    micro_batch: np.ndarray
    op: np.ndarray
    flops: np.ndarray
    bytes: np.ndarray
    peer: np.ndarray
    tag: np.ndarray
    purpose: np.ndarray
    label: np.ndarray
    sequence: np.ndarray
    offset: (
        np.ndarray
    )  # of a message or addition of a collective: first byte within the collective's buffer, -1 in staging

    def __init__(
        self,
        columns: dict[str, np.ndarray],
        dep_ptr: np.ndarray,
        dep_idx: np.ndarray,
        match: np.ndarray,
        meta: dict,
    ) -> None:
        for name in COLUMNS:
            setattr(self, name, columns[name])
        self.dep_ptr, self.dep_idx, self.match = dep_ptr, dep_idx, match
        self.names: list[str] = meta["names"]
        self.groups: dict[int, dict[int, tuple[str, list[int]]]] = meta[
            "groups"
        ]  # rank -> group -> (axis, ranks)
        self.ranks: int = meta["ranks"]
        self.info: dict[str, Any] = meta.get("info", {})
        self.memory: dict[int, dict[str, Any]] = meta[
            "memory"
        ]  # rank -> what the ledger wrote down: see sim/time/memory_history.py
        self.fold: Fold | None = None
        self.roles: Roles | None = None

    def __len__(self) -> int:
        return len(self.rank)

    def __repr__(self) -> str:
        unknown = self.info.get("unknown_flops", [])
        but = f" without those of {', '.join(unknown)}, which nobody knows" if unknown else ""
        return f"ExecutionGraph({self.ranks} ranks, {len(self):,} events, {self.flops.sum():,} FLOPs{but})"

    # ---- build ---------------------------------------------------------------------------------------------
    @classmethod
    def build(cls, recordings: Sequence[dict], info: dict | None = None) -> ExecutionGraph:
        """Join the ranks' recordings: unify names, match messages, add the order of lanes, sort
        topologically.

        Args:
            recordings: one a rank, as `Recorder.columns` returns them.
            info: what the graph should remember about the run.

        Returns:
            The graph.

        Raises:
            MessageLost: if a send has no receive, or a receive no send.
        """
        recordings = sorted(recordings, key=lambda r: r["rank"])
        names = sorted({n for r in recordings for n in r["names"]})
        number = {n: i for i, n in enumerate(names)}
        pending: dict[str, list[np.ndarray]] = {c: [] for c in COLUMNS}
        sources, targets, offset = [], [], 0
        for r in recordings:
            table = r["table"]
            rename = np.array([number[n] for n in r["names"]] or [0], dtype=np.int64)
            pending["rank"].append(np.full(len(table), r["rank"], dtype=np.int64))
            for i, field in enumerate(FIELDS):
                column = table[:, i]
                pending[field].append(rename[column] if field in ("op", "label") and len(column) else column)
            targets.append(np.repeat(np.arange(len(table)), r["dep_counts"]) + offset)
            sources.append(r["deps"] + offset)
            offset += len(table)
        columns = {c: np.concatenate(v) if v else np.empty(0, np.int64) for c, v in pending.items()}
        none = [np.empty(0, np.int64)]
        source, target = np.concatenate(none + sources), np.concatenate(none + targets)
        unknown = sorted({name for r in recordings for name in r["unknown_flops"]})  # operators, counted as 0
        meta = {
            "names": names,
            "groups": {r["rank"]: {g: (a, list(m)) for g, (a, m) in r["groups"].items()} for r in recordings},
            "ranks": len(recordings),
            "memory": {r["rank"]: r["memory"] for r in recordings},
            "info": dict(info or {}) | ({"unknown_flops": unknown} if unknown else {}),
        }
        # a lane is a stream: each event follows the one before it
        by_lane = np.lexsort((columns["order"], columns["lane"], columns["rank"]))
        same = (np.diff(columns["rank"][by_lane]) == 0) & (np.diff(columns["lane"][by_lane]) == 0)
        source = np.concatenate([source, by_lane[:-1][same]])
        target = np.concatenate([target, by_lane[1:][same]])
        match = _match_messages(columns, names)
        received = np.flatnonzero(match >= 0)
        joined_source, joined_target = _native_joins(columns, meta)
        source = np.concatenate([source, joined_source])
        target = np.concatenate([target, joined_target])
        order = topological_order(
            len(match), np.concatenate([source, match[received]]), np.concatenate([target, received]), by_lane
        )
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        columns = {c: v[order] for c, v in columns.items()}
        match = np.where(match[order] >= 0, place[match[order]], -1)
        dep_ptr, dep_idx = csr(len(order), place[source], place[target])
        return cls(columns, dep_ptr, dep_idx, match, meta)

    # ---- sameness ------------------------------------------------------------------------------------------
    @cached_property
    def canonical(self) -> np.ndarray:
        """Row numbers in canonical order: by rank, lane, and order within the lane; [events]."""
        return np.lexsort((self.order, self.lane, self.rank))

    @cached_property
    def place(self) -> np.ndarray:
        """Each row's place in canonical order; [events]."""
        place = np.empty_like(self.canonical)
        place[self.canonical] = np.arange(len(self))
        return place

    def dependencies(self, row: int) -> np.ndarray:
        """The rows that an event follows, in its rank and lanes.

        The send that a receive waits for is in `match`.

        Args:
            row: an event.

        Returns:
            Row numbers, all smaller than `row`.
        """
        return self.dep_idx[self.dep_ptr[row] : self.dep_ptr[row + 1]]

    def canonical_rows(self) -> dict[str, np.ndarray]:
        """Every column, the dependencies and the matched sends, in canonical order and with names spelled
        out.

        Two graphs are the same when these are.
        """
        order, place = self.canonical, self.place
        rows = {c: getattr(self, c)[order] for c in COLUMNS}
        names = np.array([*self.names, ""])
        rows["op"], rows["label"] = names[rows["op"]], names[rows["label"]]
        edges_to = place[np.repeat(np.arange(len(self)), np.diff(self.dep_ptr))]
        edges = np.stack([edges_to, place[self.dep_idx]]) if len(edges_to) else np.zeros((2, 0), np.int64)
        rows["edges"] = np.unique(edges, axis=1)
        rows["match"] = np.where(self.match[order] >= 0, place[self.match[order]], -1)
        return rows

    def difference(self, other: ExecutionGraph) -> str | None:
        """Compare two graphs by their canonical rows.

        Args:
            other: another graph.

        Returns:
            None when they are the same; otherwise the first column and row in which they differ.
        """
        if len(self) != len(other):
            return f"{len(self)} events against {len(other)}"
        mine, theirs = self.canonical_rows(), other.canonical_rows()
        for column, a in mine.items():
            b = theirs[column]
            if a.shape != b.shape:
                return f"{column}: {a.shape[-1]} against {b.shape[-1]}"
            if not np.array_equal(a, b):
                at = int(np.flatnonzero((a != b).reshape(-1, a.shape[-1]).any(axis=0))[0])
                where = {c: mine[c][at] for c in ("rank", "lane", "order", "op")} if at < len(self) else at
                return f"{column} differs first at {where}: {a[..., at]} against {b[..., at]}"
        return None

    def sha256(self) -> str:
        """A fingerprint of the canonical rows, in hexadecimal digits."""
        digest = hashlib.sha256()
        for column, values in self.canonical_rows().items():
            digest.update(column.encode())
            digest.update(
                "\n".join(values).encode()
                if values.dtype.kind == "U"
                else np.ascontiguousarray(values).tobytes()
            )
        return digest.hexdigest()

    # ---- questions -----------------------------------------------------------------------------------------
    @property
    def gpus(self) -> int:
        """How many ranks the cluster has; `ranks` of a graph that is folded by roles are its roles."""
        return self.ranks if self.roles is None else self.roles.gpus

    @property
    def stand_for(self) -> np.ndarray:
        """How many ranks of the cluster each of the graph's stands for, [ranks]."""
        return np.ones(self.ranks, np.int64) if self.roles is None else self.roles.each

    @cached_property
    def group(self) -> np.ndarray:
        """Each event's communicator, by number; -1 for compute; [events]."""
        return np.where(self.lane == 0, -1, (self.lane - 1) // LANES_PER_GROUP)

    def axis_of(self, rank: int, group: int) -> str:
        """The axis of a communicator.

        Args:
            rank: one of its ranks.
            group: its number.

        Returns:
            Such as `dp`.
        """
        return self.groups[rank][group][0]

    @cached_property
    def stages(self) -> list[int]:
        """Each rank's pipeline stage: its place in its longest communicator on the axis `pp`, else 0."""
        pipelines = (
            [ranks for axis, ranks in self.groups.get(rank, {}).values() if axis == "pp" and rank in ranks]
            for rank in range(self.ranks)
        )
        longest = (max(groups, key=len, default=(rank,)) for rank, groups in enumerate(pipelines))
        return [tuple(ranks).index(rank) for rank, ranks in enumerate(longest)]

    @property
    def pipelined(self) -> bool:
        """Whether there is a pipeline: stages on different ranks, which wait for each other."""
        return any(self.stages)

    @cached_property
    def axis(self) -> np.ndarray:
        """Each event's axis, such as `dp`; an empty string for compute; [events]."""
        pairs = np.stack([self.rank, self.group], axis=1)
        unique, inverse = np.unique(pairs, axis=0, return_inverse=True)
        names = np.array([self.axis_of(int(r), int(g)) if g >= 0 else "" for r, g in unique] or [""])
        return names[inverse.reshape(-1)] if len(pairs) else np.empty(0, dtype="U1")

    def where(
        self,
        *,
        axis: str | None = None,
        purpose: str | None = None,
        label: str | None = None,
        group: int | None = None,
    ) -> np.ndarray:
        """Which events belong to an axis, a purpose, a label or a communicator.

        Args:
            axis: only events on this axis.
            purpose: only those that carry this, one of `PURPOSES`.
            label: only those of this name.
            group: only those of the communicator with this number.

        Returns:
            One bool an event.
        """
        chosen = np.ones(len(self), bool)
        if axis is not None:
            chosen &= self.axis == axis
        if purpose is not None:
            chosen &= self.purpose == PURPOSES.index(purpose)
        if label is not None:
            chosen &= self.label == (self.names.index(label) if label in self.names else -1)
        if group is not None:
            chosen &= self.group == group
        return chosen

    def bytes_sent(self, **of: Any) -> list[int]:
        """Payload bytes that left each rank.

        Args:
            **of: which messages to count, as in `where`: `axis`, `purpose`, `label`, `group`.

        Returns:
            One number a rank.
        """
        chosen = (self.kind == SEND) & self.where(**of)
        return (
            np.bincount(self.rank[chosen], self.bytes[chosen], minlength=self.ranks).astype(np.int64).tolist()
        )

    def algorithms(self, where: np.ndarray) -> set[str]:
        """The algorithms that collectives ran with.

        Args:
            where: one bool an event: which events to look at (see `where`).

        Returns:
            Names such as `ring` or `native`.
        """
        ops = np.unique(self.op[where & (self.kind == COLLECTIVE)])
        return {self.names[op].partition("/")[2] for op in ops.tolist()}

    def host_bytes(self, op: str) -> list[int]:
        """Bytes that each rank exchanged with its host.

        Args:
            op: `down` (to the host), `up` (from it), or `update` (read and written in the host's memory).

        Returns:
            One number a rank.
        """
        chosen = (self.kind == HOST) & (self.op == (self.names.index(op) if op in self.names else -1))
        return (
            np.bincount(self.rank[chosen], self.bytes[chosen], minlength=self.ranks).astype(np.int64).tolist()
        )

    def traffic(self) -> dict[str, dict[str, list[int]]]:
        """Bytes sent by each rank, `by_axis` and `by_purpose`: `bytes_sent` of docs/contract.md."""
        known = ["dp", "tp", "pp", "cp", "ep"]
        axes = [*known, *sorted(set(self.axis[self.kind == SEND].tolist()) - {*known, ""})]
        return {
            "by_axis": {a: self.bytes_sent(axis=a) for a in axes},
            "by_purpose": {p: self.bytes_sent(purpose=p) for p in PURPOSES},
        }

    @property
    def has_native(self) -> bool:
        """Whether a collective was handed to gloo or NCCL, whose bytes nobody counted."""
        return any(
            n.endswith("/native") and (self.op[self.kind == COLLECTIVE] == i).any()
            for i, n in enumerate(self.names)
        )

    def in_flight(self, rank: int) -> int:
        """How many micro-batches a rank had in flight at once: their forward begun, their backward not.

        Args:
            rank: a rank.

        Returns:
            The most, in the rank's program order.
        """
        rows, live, best = compute_rows(self, rank), set[int](), 0
        for phase, micro_batch in zip(
            self.phase[rows].tolist(), self.micro_batch[rows].tolist(), strict=True
        ):
            if phase == FORWARD:
                live.add(micro_batch)
                best = max(best, len(live))
            elif phase == BACKWARD:
                live.discard(micro_batch)
        return best

    def message_chain(self) -> int:
        """The longest chain of messages of which each waits for the one before.

        Two messages that only use the same port after each other are no chain.
        """
        message = (self.kind == SEND) | (self.kind == RECV)
        stream = self.rank * (self.lane.max(initial=0) + 1) + self.lane
        sends = self.kind == SEND
        return int(longest_chain(self.dep_ptr, self.dep_idx, self.match, stream, message, sends))

    def count(self, kind: str) -> int:
        """How many events of a kind there are.

        Args:
            kind: one of `KINDS`, such as `compute` or `send`.

        Returns:
            The number, over all ranks.
        """
        return int((self.kind == KINDS.index(kind)).sum())

    # ---- files ---------------------------------------------------------------------------------------------
    def save(self, path: str | Path) -> None:
        """Write the graph as a compressed .npz file, without pickle.

        Args:
            path: the file to write, or to replace.

        Raises:
            InputError: the graph is folded by roles, which no file holds.
        """
        if self.roles is not None:
            rule = f"holds {self.ranks:,} roles of {self.gpus:,} GPUs, which no file says: record every GPU"
            raise InputError("graph", str(path), rule)
        memory, beside = as_columns(self.memory)
        meta = {
            "format": FORMAT,
            "names": self.names,
            "ranks": self.ranks,
            "info": self.info,
            "groups": {str(r): {str(g): v for g, v in gs.items()} for r, gs in self.groups.items()},
            "memory": beside,
        }
        arrays = {c: getattr(self, c) for c in COLUMNS} | memory
        arrays |= {"dep_ptr": self.dep_ptr, "dep_idx": self.dep_idx, "match": self.match}
        if self.fold is not None:
            shifts = {"dims": self.fold.shifts.dims, "steps": self.fold.shifts.steps}
            meta |= {"format": FOLDED_FORMAT, "shifts": shifts}
            arrays["fold_peer"] = self.fold.peer
        with replacing(path) as beside_it, beside_it.open("wb") as written:
            np.savez_compressed(written, meta=np.array(json.dumps(meta)), **arrays)

    @classmethod
    def load(cls, path: str | Path) -> ExecutionGraph:
        """Read what `save` wrote.

        Args:
            path: the file.

        Returns:
            The graph.

        Raises:
            InputError: if the file cannot be read, is no graph, or has a format of another version.
        """
        try:
            data = read_npz("graph", path)
            meta = json.loads(str(data["meta"]))
            if meta["format"] not in (FORMAT, FOLDED_FORMAT):
                raise InputError(
                    "graph", str(path), f"has format {meta['format']}, this version reads {FORMAT}"
                )
            columns = {c: data[c] for c in COLUMNS}
            full = {
                "names": meta["names"],
                "ranks": meta["ranks"],
                "info": meta["info"],
                "groups": {
                    int(r): {int(g): (a, m) for g, (a, m) in gs.items()} for r, gs in meta["groups"].items()
                },
                "memory": from_columns(data, meta["memory"]),
            }
            graph = cls(columns, data["dep_ptr"], data["dep_idx"], data["match"], full)
            check(graph)
            if meta["format"] == FOLDED_FORMAT:
                graph.fold = fold_from_file(meta["shifts"], data["fold_peer"], graph.rank, graph.peer)
            return graph
        except InputError:
            raise
        except Unsound as problem:
            raise InputError("graph", str(path), f"is not a recorded graph: {problem}") from None
        except Exception as problem:  # a damaged or foreign file fails in many ways inside numpy
            raise InputError(
                "graph", str(path), f"is not a recorded graph ({type(problem).__name__})"
            ) from None


def _match_messages(columns: dict[str, np.ndarray], names: list[str]) -> np.ndarray:
    """For each receive the row of its send: messages of one (sender, receiver, group, tag) keep
    their order.
    """
    match = np.full(len(columns["rank"]), -1, dtype=np.int64)
    group = (columns["lane"] - 1) // LANES_PER_GROUP
    sides = []
    for kind, source, target in ((SEND, "rank", "peer"), (RECV, "peer", "rank")):
        rows = np.flatnonzero(columns["kind"] == kind)
        keys = np.stack([columns[source][rows], columns[target][rows], group[rows], columns["tag"][rows]])
        order = np.lexsort((columns["order"][rows], *keys[::-1]))
        sides.append((rows[order], keys[:, order]))
    (sends, sent), (receives, received) = sides
    if sent.shape != received.shape or not np.array_equal(sent, received):
        every, place = np.unique(np.concatenate([sent, received], axis=1), axis=1, return_inverse=True)
        side = np.repeat([1, -1], [sent.shape[1], received.shape[1]])
        at = int(np.flatnonzero(np.bincount(place.reshape(-1), side))[0])
        src, dst, _, tag = every[:, at].tolist()
        counts = [int((s == every[:, at, None]).all(axis=0).sum()) for s in (sent, received)]
        raise MessageLost(
            f"rank {src} recorded {counts[0]} sends to rank {dst} (tag {tag - 1}), rank {dst} "
            f"{counts[1]} receives",
            rank=src,
            operation="send",
            peer=dst,
        )
    match[receives] = sends
    return match


def _native_joins(columns: dict[str, np.ndarray], meta: dict) -> tuple[np.ndarray, np.ndarray]:
    """A native collective has no steps: it ends after every member of its group has launched it."""
    native = [i for i, n in enumerate(meta["names"]) if n.endswith("/native")]
    ends = np.flatnonzero((columns["kind"] == COLLECTIVE) & np.isin(columns["op"], native))
    if not len(ends):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    group = (columns["lane"] - 1) // LANES_PER_GROUP  # a launch and its end are on two lanes of one group
    begins = np.flatnonzero(columns["kind"] == BEGIN)
    most = group.max() + 1, columns["sequence"].max() + 1

    def key(rank: Any, rows: np.ndarray) -> np.ndarray:
        return (rank * most[0] + group[rows]) * most[1] + columns["sequence"][rows]

    known = key(columns["rank"][begins], begins)
    order = np.argsort(known)
    known, begins = known[order], begins[order]
    source, target = [], []
    by_group = columns["rank"][ends] * most[0] + group[ends]
    for one in np.unique(by_group).tolist():
        rows = ends[by_group == one]
        for member in set(meta["groups"][one // most[0]][one % most[0]][1]):
            wanted = key(member, rows)
            at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
            if (known[at] != wanted).any():
                raise KeyError(f"rank {member} did not launch a collective of rank {one // most[0]}")
            source.append(begins[at])
            target.append(rows)
    return np.concatenate(source), np.concatenate(target)


def rendezvous_edges(graph: ExecutionGraph) -> tuple[np.ndarray, np.ndarray]:
    """A graph's dependencies where a send also follows what the posting of its receive follows.

    Args:
        graph: the graph.

    Returns:
        The rows that are waited for, and the rows that wait: one pair an edge.
    """
    source, target = graph.dep_idx, np.repeat(np.arange(len(graph)), np.diff(graph.dep_ptr))
    posted = graph.kind[target] == RECV
    return np.concatenate([source, source[posted]]), np.concatenate([target, graph.match[target[posted]]])


def compute_rows(graph: ExecutionGraph, rank: int) -> np.ndarray:
    """A rank's compute events in program order.

    Args:
        graph: the graph.
        rank: a rank.

    Returns:
        Row numbers.
    """
    rows = np.flatnonzero((graph.rank == rank) & (graph.kind == COMPUTE))
    return rows[np.argsort(graph.order[rows])]
