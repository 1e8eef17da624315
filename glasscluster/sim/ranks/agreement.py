"""What ranks say of the same collective, compared before its data moves.

A collective works only if all its ranks mean the same: the operation, the reduction, the root, the length,
the dtype, the algorithm and its options, the group, and the place in the order of that group's collectives.
A reduction of which one rank takes the maximum and another the sum sends the same messages, and ends with
wrong numbers on every rank. So each rank describes its call (`describe`), and the second to come finds what
the first one said:

    rank 0   group dp, number 7:  all_reduce(ring), op sum, 8 x float32   ──►  noted
    rank 2   group dp, number 7:  all_reduce(ring), op max, 8 x float32   ──►  CollectiveMismatch on rank 2

On threads the calls are a dictionary (`Calls`). Between processes they lie in the store in which the process
group met (`StoreCalls`): one request a collective, about as long as one message, on TCP also where the data
goes over NCCL. This is control traffic: neither counted nor on the graph. Messages between two ranks are
compared in the same way, by number, dtype and length; on threads where they are delivered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol
from zlib import crc32

import torch

from glasscluster.base.errors import CollectiveMismatch

SLOTS = 256  # of a group's calls in the store; a call takes the place of the one that was SLOTS before it


class Call(NamedTuple):
    """One rank's description of a collective or a message."""

    key: str  # what is compared with what: a group, or a sender, receiver and tag
    where: str  # the same in words
    operation: str
    said: str  # everything that must be equal
    group: str = (
        ""  # the group's number and the mesh that it belongs to; every rank is in one group of a number
    )


class Store(Protocol):
    """What is used of torch.distributed's stores."""

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        """Set the key if it holds `expected` (an absent one: ""); returns what it holds then."""

    def set(self, key: str, value: str) -> None:
        """Set the key."""

    def check(self, keys: list[str]) -> bool:
        """Whether all the keys are there."""

    def get(self, key: str) -> bytes:
        """The key's value, which is there."""


def describe(
    operation: str,
    algorithm: str,
    x: torch.Tensor,
    group: tuple[str, str, Sequence[int]],
    options: dict[str, Any],
) -> Call:
    """A rank's call of a collective.

    Args:
        operation: such as all_reduce.
        algorithm: by its registered name.
        x: the buffer.
        group: the communicator's number with that of its mesh, its axis, its ranks.
        options: of the call: op, src or dst, the algorithm's own. Splits and tensors are left out: they
            differ between ranks.
    """
    number, axis, ranks = group
    words = [f"{operation}({algorithm})"]
    words += [f"{k} {v}" for k, v in sorted(options.items()) if isinstance(v, (int, str))]
    length = "" if operation == "all_to_all" else f"{x.numel()} x "
    words += [f"{length}{str(x.dtype).removeprefix('torch.')}", f"ranks {list(ranks)}"]
    return Call(f"{number} {min(ranks)}", f"the {axis} group", operation, "; ".join(words), number)


def memberships(call: Call, ranks: Sequence[int]) -> list[Call]:
    """What a rank says of each member of a group, when it first uses it: that the member is in this group
    too.

    Groups of one number do not overlap, so ranks that disagree about who is in a group name one rank in two.
    """
    said = f"ranks {list(ranks)}"
    return [Call(f"{call.group} member {m}", call.where, call.operation, said, call.group) for m in ranks]


def _place(value: str) -> tuple[int, int]:
    """The run and the number of the call that wrote a value into the store; of an absent one: before all."""
    run, _, number = value.partition("|")[0].partition(".")
    return (int(run), int(number)) if value else (-1, -1)


def mismatch(mine: Call, number: int, rank: int, first: int, said: str) -> CollectiveMismatch:
    """The error for two calls that differ. `first`: the rank that came first, and `said` what it said."""
    ours, theirs = mine.said.split("; "), said.split("; ")
    same = [word for word in ours if word in theirs]
    ends = [
        f"rank {r} has {', '.join(w for w in words if w not in same)}"
        for r, words in ((first, theirs), (rank, ours))
    ]
    return CollectiveMismatch(
        f"call {number} on {mine.where}" + (f" ({', '.join(same)})" if same else "") + ": " + "; ".join(ends),
        rank=rank,
        operation=mine.operation,
        peer=first,
    )


class Calls:
    """What the ranks of one process have said of their collectives."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[int, str]] = Counter()
        self._said: dict[tuple[str, int], list[Any]] = {}

    def compare(self, rank: int, call: Call, ranks: Sequence[int]) -> None:
        """Compare a rank's next call of a group with what the first rank said of it; `ranks`: the group's.

        Raises:
            CollectiveMismatch: they differ.
        """
        if (rank, call.key) not in self._counts:
            for member in memberships(call, ranks):
                self._compare(rank, member, 0)
        self._compare(rank, call, len(ranks))

    def _compare(self, rank: int, call: Call, members: int) -> None:
        """members: ranks that will say the same; what they all have said is forgotten (0: it is kept)."""
        number = self._counts[rank, call.key]
        self._counts[rank, call.key] += 1
        note = self._said.setdefault((call.key, number), [rank, call.said, 0])
        if note[1] != call.said:
            raise mismatch(call, number, rank, note[0], note[1])
        note[2] += 1
        if note[2] == members:
            del self._said[call.key, number]


class StoreCalls:
    """The same between processes, in the store in which they met. One object a rank.

    A group's calls share SLOTS keys. A call replaces the one that was SLOTS before it, by comparing and
    setting in one request; so the store does not grow, and a rank that is ahead waits for nobody. Who comes
    to a call that was replaced already, because another rank is more than SLOTS calls ahead, keeps what it
    found for the call that it belongs to. There the calls before are compared as well: each value has a
    digest of all that its rank has said of the group.
    """

    def __init__(self, store: Store, rank: int) -> None:
        self.store, self.rank = store, rank
        self._run = 0
        self._counts: Counter[str] = Counter()
        self._seen: dict[str, str] = {}  # by key: the value that this rank found there last
        self._before: dict[str, int] = {}  # by group: a digest of what this rank has said in this run
        self.posted: Counter[tuple[int, int, int]] = Counter()  # of this run: sends less receives

    def start_run(self) -> None:
        """Number calls from 0 again; what earlier runs said is compared with nothing."""
        self._run += 1
        self._counts.clear()
        self._before.clear()
        self.posted.clear()

    def compare(self, call: Call, ranks: Sequence[int]) -> int:
        """Compare this rank's next call of a group with what the first rank said of it.

        Args:
            call: what this rank says.
            ranks: the group's.

        Returns:
            The call's number in its group and run, from 0.

        Raises:
            CollectiveMismatch: they differ.
        """
        if call.key not in self._counts:
            for member in memberships(call, ranks):
                self._compare(member)
        return self._compare(call)

    def _compare(self, call: Call) -> int:
        number = self._counts[call.key]
        self._counts[call.key] += 1
        key, now = f"glass/{call.key}/{number % SLOTS}", (self._run, number)
        before = self._before.get(call.key, 0)
        self._before[call.key] = crc32(call.said.encode(), before)
        there = self._seen.get(key, "")
        while (
            _place(there) < now
        ):  # else: an earlier call came so late that it found this one, or a later one
            mine = f"{self._run}.{number}|{self.rank}|{before:x}|{call.said}"
            there = self.store.compare_set(key, there, mine).decode()
            self._seen[key] = there
        _, first, digest, said = there.split("|", 3)
        if _place(there) != now:
            return number
        if said != call.said:
            raise mismatch(call, number, self.rank, int(first), said)
        if digest != f"{before:x}":
            both = f"rank {self.rank} and rank {first}"
            text = f"{both} differ in an earlier call on {call.where}, before call {number}"
            raise CollectiveMismatch(text, rank=self.rank, operation=call.operation, peer=int(first))
        return number

    def compare_message(self, kind: str, peer: int, tag: int, x: torch.Tensor) -> None:
        """Compare a message with what its other end says of it.

        Raises:
            CollectiveMismatch: lengths or dtypes differ.
        """
        src, dst = (self.rank, peer) if kind == "send" else (peer, self.rank)
        said = f"{x.numel()} x {str(x.dtype).removeprefix('torch.')}"
        self.posted[src, dst, tag] += 1 if kind == "send" else -1
        where = f"messages from rank {src} to rank {dst}"
        self._compare(Call(f"{src} to {dst} {tag}", where, kind, said))

    def compare_splits(
        self, call: Call, number: int, ranks: Sequence[int], sends: Sequence[int], receives: Sequence[int]
    ) -> None:
        """Compare what this rank sends each other one in an all-to-all with what that one expects of it.

        Both ends write first and read then, so the later of the two sees the other.

        Raises:
            CollectiveMismatch: a length differs.
        """
        base, when = f"glass/{call.key}/splits {number % SLOTS}", f"{self._run}.{number}"
        lengths = " ".join(map(str, [*sends, *receives]))
        self.store.set(f"{base}/{self.rank}", f"{when}|{lengths}")
        n, me = len(ranks), list(ranks).index(self.rank)
        for index, peer in enumerate(ranks):
            if peer == self.rank or not self.store.check([f"{base}/{peer}"]):
                continue
            then, _, text = self.store.get(f"{base}/{peer}").decode().partition("|")
            theirs = [int(word) for word in text.split()]
            if then != when or len(theirs) != 2 * n:
                continue
            ends = (
                (self.rank, peer, sends[index], theirs[n + me]),
                (peer, self.rank, theirs[me], receives[index]),
            )
            for src, dst, sent, expected in ends:
                if sent != expected:
                    raise CollectiveMismatch(
                        f"call {number} on {call.where}, all_to_all: rank {src} sends rank {dst} {sent} "
                        f"elements, which expects {expected}",
                        rank=dst,
                        operation="all_to_all",
                        peer=src,
                    )
