"""C7: six programs that hang, why two of them do not hang with small messages, and their repairs."""

from __future__ import annotations

import re
from typing import Any

import networkx as nx
import torch

from glasscluster.base.errors import Deadlock
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.ranks.deadlock import standstill
from glasscluster.sim.run import Cluster
from glasscluster.visualize.figures.cells import Table, cells_figure
from glasscluster.visualize.figures.waits import Panel, waits_figure

RANKS, KIB = 4, 1024
NAMES = ("ring", "order", "absent", "tag", "source", "never")


def steps_of(name: str, rank: int, n: int, repaired: bool) -> list[Any]:
    """The steps of a rank in one of the six programs, broken or repaired: ("send" | "recv", peer, tag)."""
    left, right, other = (rank - 1) % n, (rank + 1) % n, 1 - rank
    if name == "ring":
        steps = [[("send", right, 0)], [("recv", left, 0)]]
        return steps[::-1] if repaired and rank % 2 else steps
    if name == "absent":  # the steps of a ring all-reduce
        return [[("recv", left, 0), ("send", right, 0)]] * (2 * (n - 1)) if repaired or right else []
    if rank > 1:
        return []
    if name == "order":
        tags = [1, 0] if rank and not repaired else [0, 1]
        return [[("recv" if rank else "send", other, tag)] for tag in tags]
    if name == "never":
        return [[("send", 0, 0)]] * repaired if rank else [[("recv", 1, 0)]]
    wrong = {"tag": ("recv", 0, 3), "source": ("recv", 2, 2)}[name]
    return [[("recv", 0, 2) if repaired else wrong]] if rank else [[("send", 1, 2)]]


def program(gpu: Any, names: list[str], nbytes: int, repaired: bool) -> int:
    """Run the steps with blocking sends and receives; return how many of them this rank finished."""

    done, x = 0, torch.zeros(nbytes, dtype=torch.uint8)
    for name in names:
        steps = steps_of(name, gpu.rank, gpu.size, repaired)
        if name == "absent" and steps:
            gpu.comm.all_reduce(torch.zeros(gpu.size * nbytes, dtype=torch.uint8), algorithm="ring")
        for kind, peer, tag in [] if name == "absent" else [message for step in steps for message in step]:
            (gpu.comm.send if kind == "send" else gpu.comm.recv)(x, peer, tag)
        done += len(steps)
    return done


def cycle_names(error: Any) -> str:
    """A cycle as text, such as 0 → 1 → 0."""
    return " → ".join(map(str, [*error.cycle, *error.cycle[:1]]))


def binary(nbytes: int) -> str:
    """A number of bytes as text, such as 64 B or 128 KiB."""
    return f"{nbytes / KIB:g} KiB" if nbytes >= KIB else f"{nbytes} B"


Case = tuple[str, int, int]  # a program, how many bytes are buffered, how many are sent


@lesson
def deadlock_clinic(lab: Lab, eager_kib: int = 64, small: int = 64, large_kib: int = 128) -> None:
    """Six broken programs run on four threads, with sends that wait and with sends that are buffered; each
    hang is reported at once.
    """
    eager, large = eager_kib * KIB, large_kib * KIB
    cases = [(e, s) for e in (0, eager) for s in (small, large)]
    deadlocks = {(name, e, s): run_broken(lab, name, e, s) for name in NAMES for e, s in cases}
    waits = {
        (n, e, s): standstill([steps_of(n, r, RANKS, False) for r in range(RANKS)], s, e)
        for n, e, s in deadlocks
    }
    fixed = [[step for name in NAMES for step in steps_of(name, r, RANKS, True)] for r in range(RANKS)]
    run = lab.run("repaired", lab.text("repaired"), program, list(NAMES), large, True, gpus=RANKS)
    hangs = {(e, s): sum(deadlocks[n, e, s] is not None for n in NAMES) for e, s in cases}
    lab.ask("hangs", hangs[eager, small], small=small, eager_kib=eager_kib, ranks=RANKS, programs=len(NAMES))
    for e, s in cases:
        ruled = sum(bool(waits[n, e, s]) for n in NAMES)
        lab.row("programs_that_hang", ruled, hangs[e, s], "rule", unit="programs", s=s, e=e)
    check_reports(lab, deadlocks, waits)
    done = sum(run.results)
    lab.row("steps_finished", sum(map(len, fixed)), done, "definition", unit="steps")

    stuck = {n: hang for n in NAMES if (hang := deadlocks[n, 0, large])}

    def who_waits(lang: str) -> Any:
        panels = []
        for name, hang in stuck.items():
            finished = set(range(RANKS)) - {w.rank for w in hang.waits}
            panels.append(Panel(lab.word(name, lang), RANKS, hang.waits, finished, hang.cycle))
        return waits_figure(panels, lang)

    lab.figure("who_waits", who_waits, large_kib=large_kib)
    lab.figure("what_passes", lambda lang: what_passes(lab, deadlocks, cases, lang))
    counts: dict[str, Any] = {"programs": len(NAMES), "small": small}
    unbuffered: dict[str, Any] = {"hang_unbuffered": hangs[0, small], "ring": cycle_names(stuck["ring"])}
    lab.tell("without_buffering", **counts, **unbuffered)
    buffered: dict[str, Any] = {
        "eager_kib": eager_kib,
        "hang_small": hangs[eager, small],
        "hang_large": hangs[eager, large],
        "large_kib": large_kib,
    }
    lab.tell("with_buffering", small=small, **buffered)
    tag = deadlocks["tag", eager, small]
    assert tag is not None
    near = next(w.near_miss for w in tag.waits if w.near_miss)
    rank, wanted, there = re.findall(r"\d+", near)
    lab.tell("near_miss", near=near, rank=rank, wanted=wanted, there=there)
    lab.tell("repaired", view="tab=timeline&run=repaired")
    lab.conclude(hidden=hangs[eager, large] - hangs[eager, small], **counts)
    lab.explain()
    lab.card(hang_unbuffered=hangs[0, small])
    lab.own_number(**counts, **buffered)


def run_broken(lab: Lab, name: str, eager: int, nbytes: int) -> Deadlock | None:
    """Run a broken program; return the deadlock it ends in, or None if it ends well."""
    cluster = Cluster(lab.hardware, RANKS, "threads", eager_bytes=eager, seed=lab.seed)
    try:
        cluster.run(program, [name], nbytes, False, record=False)
    except Deadlock as error:
        return error
    return None


def check_reports(lab: Lab, deadlocks: dict[Case, Deadlock | None], waits: dict[Case, Any]) -> None:
    """Check what each hang's error reports: who waits for whom, and the cycle, or the finished rank at the
    end of a chain.
    """
    other_waits = other_names = 0
    for key, error in deadlocks.items():
        reported = {w.rank: w.peer for w in error.waits} if error else {}
        other_waits += waits[key] != reported
        graph = nx.DiGraph(list(reported.items()))
        ends = {rank for rank in graph if not graph.out_degree(rank)}
        ruled = set().union(*nx.simple_cycles(graph)) or ends
        named: set[Any] = set(error.cycle) or {error.peer} if error else set()
        other_names += named != ruled
    lab.row("waits_not_as_ruled", 0, other_waits, "rule", unit="runs")
    lab.row("named_ranks", 0, other_names, "rule, by networkx", unit="runs")


def what_passes(
    lab: Lab, deadlocks: dict[Case, Deadlock | None], cases: list[tuple[int, int]], lang: str
) -> Any:
    """Draw the table of outcomes: a row for each program, a column for each case."""
    heads = []
    for eager, nbytes in cases:
        buffered = (
            lab.word("buffered", lang, size=binary(eager)) if eager else lab.word("nothing_buffered", lang)
        )
        heads.append(f"{binary(nbytes)}<br>{buffered}")
    text = [[outcome(lab, deadlocks[n, e, s], lang) for e, s in cases] for n in NAMES]
    fill = [["#56B4E9" if deadlocks[n, e, s] is None else "#E69F00" for e, s in cases] for n in NAMES]
    return cells_figure([Table("", [lab.word(n, lang) for n in NAMES], heads, text, fill)])


def outcome(lab: Lab, error: Deadlock | None, lang: str) -> str:
    """An outcome as text: passes, the cycle, or the rank that has finished."""
    if error is None:
        return lab.word("passes", lang)
    if error.cycle:
        return lab.word("hangs", lang, cycle=cycle_names(error))
    return lab.word("hangs_finished", lang, rank=error.peer)
