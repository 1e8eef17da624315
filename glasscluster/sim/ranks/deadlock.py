"""Describes a deadlock in words: a cycle of ranks that wait for each other, or a chain that ends at a
finished rank.

The backends notice that ranks no longer progress: backends/threads.py at once, because it knows what every
rank waits for, process groups when an operation times out (backends/ray_actors.py). Both call this file.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glasscluster.base.errors import Deadlock


@dataclass(frozen=True)
class Wait:
    """What a blocked rank waits for."""

    rank: int
    kind: str
    peer: int
    what: str
    nbytes: int
    line: str
    near_miss: str = ""  # a message that was posted instead of the one waited for

    def __str__(self) -> str:
        way = "to" if self.kind == "send" else "from"
        inside = "" if self.what in ("send", "recv") else f" inside {self.what}"
        miss = f"; {self.near_miss}" if self.near_miss else ""
        return (
            f"rank {self.rank} waits in {self.kind} {way} rank {self.peer} ({self.nbytes:,} bytes)"
            f"{inside} at {self.line}{miss}"
        )


def describe_deadlock(waits: list[Wait], finished: Sequence[int]) -> Deadlock:
    """An error that tells who waits for whom: a cycle, or a chain that ends at a rank which has finished."""
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
            sending = all(by_rank[r].kind == "send" for r in cycle)
            everyone = (
                "; every rank is sending and nobody is receiving: this passes only while sends are buffered"
                if sending
                else ""
            )
            first = by_rank[cycle[0]]
            names = {"rank": first.rank, "operation": first.what, "peer": first.peer}
            return Deadlock(
                "\n  ".join([f"deadlock: cycle {arrows}{everyone}", *lines]),
                waits=waits,
                cycle=cycle,
                **names,
            )
    end = next((w for w in waits if w.peer in finished), waits[0])
    missing = "receives what" if end.kind == "send" else "sends what"
    text = (
        f"deadlock: the chain ends at finished rank {end.peer}: it never {missing} rank {end.rank} waits for"
    )
    return Deadlock(
        "\n  ".join([text, *lines]), waits=waits, rank=end.rank, operation=end.what, peer=end.peer
    )


def source_line(frame: Any) -> str:
    """The line of the user's program that a frame belongs to, as `file:line`.

    It is the innermost frame outside this package; without one, that of the strategy which called. What has
    called the rank (Ray's actor, the command line) is no part of the program.
    """
    package = __name__.split(".")[0]
    inside = "unknown line"
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if (module, frame.f_code.co_name) == (f"{package}.sim.ranks.gpu", "run_rank"):
            return inside
        where = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
        if not module.startswith((package + ".", "torch", "threading", "contextlib")):
            return where
        if inside == "unknown line" and not module.startswith(
            (package + ".sim", "torch", "threading", "contextlib")
        ):
            inside = where
        frame = frame.f_back
    return inside


def waiting_line(posted: str, frame: Any) -> str:
    """Where a rank waits: the line of its program, behind that of its own algorithm which posted the message
    (empty: the algorithm is this package's).
    """
    line = source_line(frame)
    return f"{posted}, called at {line}" if posted else line


PACKAGES = f"{os.sep}site-packages{os.sep}"


def raised_at(problem: BaseException) -> tuple[str, str]:
    """Where a program raised: `file:line` and the function.

    It is the innermost frame that is neither this package's nor a library's; without one, the innermost.
    """
    package, library = __name__.split(".")[0] + ".", os.path.dirname(os.__file__) + os.sep
    at, inside = problem.__traceback__, ("unknown line", "program")
    users = None
    while at is not None:
        code, module = at.tb_frame.f_code, at.tb_frame.f_globals.get("__name__", "")
        inside = f"{os.path.basename(code.co_filename)}:{at.tb_lineno}", code.co_name
        file = code.co_filename
        if (
            not module.startswith(package)
            and not file.startswith((library, "<frozen"))
            and PACKAGES not in file
        ):
            users = inside
        at = at.tb_next
    return users or inside


Step = Sequence[
    tuple[str, int, int]
]  # messages posted together and all awaited: ("send" | "recv", peer, tag)


def standstill(programs: Sequence[Sequence[Step]], nbytes: int, eager_bytes: int = 0) -> dict[int, int]:
    """Work out, without running anything, where programs of sends and receives get stuck.

    The k-th send of a (sender, receiver, tag) meets the k-th receive, so the result does not depend on the
    order in which ranks run.

    Args:
        programs: for each rank its steps; the messages of a step are posted together and all awaited.
        nbytes: the size of every message.
        eager_bytes: a send of at most so many bytes is done when it is posted; 0: no send is.

    Returns:
        From each rank that is stuck to the rank that it waits for. Empty: every rank finishes.
    """
    posted: Counter[tuple[str, int, int, int]] = Counter()
    at = [0] * len(programs)
    under_way: list[list[tuple[str, int, int, int, int]]] = [[] for _ in programs]

    def done(kind: str, src: int, dst: int, tag: int, nth: int) -> bool:
        buffered = kind == "send" and 0 < nbytes <= eager_bytes
        return buffered or posted["recv" if kind == "send" else "send", src, dst, tag] > nth

    moved = True
    while moved:
        moved = False
        for rank, steps in enumerate(programs):
            if at[rank] < len(steps) and not under_way[rank]:
                moved = True
                for kind, peer, tag in steps[at[rank]]:
                    key = (kind, rank, peer, tag) if kind == "send" else (kind, peer, rank, tag)
                    under_way[rank].append((*key, posted[key]))
                    posted[key] += 1
            if under_way[rank] and all(done(*message) for message in under_way[rank]):
                at[rank], under_way[rank], moved = at[rank] + 1, [], True
    stuck = {r: next(m for m in messages if not done(*m)) for r, messages in enumerate(under_way) if messages}
    return {r: src if kind == "recv" else dst for r, (kind, src, dst, _, _) in stuck.items()}
