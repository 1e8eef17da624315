"""Who waits for whom, in words: a cycle, or a chain that ends at a finished rank."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glasscluster.sim.errors import Deadlock


@dataclass(frozen=True)
class Wait:
    """What a blocked rank waits for."""

    rank: int
    kind: str
    peer: int
    what: str
    nbytes: int
    line: str

    def __str__(self) -> str:
        way = "to" if self.kind == "send" else "from"
        inside = "" if self.what in ("send", "recv") else f" inside {self.what}"
        return f"rank {self.rank} waits in {self.kind} {way} rank {self.peer} ({self.nbytes:,} bytes){inside} at {self.line}"


def describe_deadlock(waits: list[Wait], finished: Sequence[int]) -> Deadlock:
    """The wait-for graph in words: a cycle, or a chain that ends at a finished rank."""
    by_rank = {w.rank: w for w in waits}
    lines = [str(w) for w in waits]
    for start in by_rank:
        path, at = [], start
        while at in by_rank and at not in path:
            path.append(at)
            at = by_rank[at].peer
        if at in path:
            cycle = path[path.index(at) :]
            arrows = " → ".join(map(str, [*cycle, cycle[0]]))
            everyone = "; every rank is sending and nobody is receiving" if all(by_rank[r].kind == "send" for r in cycle) else ""
            first = by_rank[cycle[0]]
            names = {"rank": first.rank, "operation": first.what, "peer": first.peer}
            return Deadlock("\n  ".join([f"deadlock: cycle {arrows}{everyone}", *lines]), waits=waits, cycle=cycle, **names)
    end = next((w for w in waits if w.peer in finished), waits[0])
    missing = "receives what" if end.kind == "send" else "sends what"
    text = f"deadlock: the chain ends at finished rank {end.peer}: it never {missing} rank {end.rank} waits for"
    return Deadlock("\n  ".join([text, *lines]), waits=waits, rank=end.rank, operation=end.what, peer=end.peer)


def source_line(frame: Any) -> str:
    """file:line of the innermost frame outside this package (else of the strategy that called)."""
    package = __name__.split(".")[0]
    inside = "unknown line"
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        where = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
        if not module.startswith((package + ".", "torch", "threading", "contextlib")):
            return where
        if inside == "unknown line" and not module.startswith((package + ".sim", "torch", "threading", "contextlib")):
            inside = where
        frame = frame.f_back
    return inside
