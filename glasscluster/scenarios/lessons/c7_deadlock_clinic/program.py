"""C7: six programs that hang, why two of them do not with small messages, and their repairs."""

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
NAMES = {
    "ring": ("all send first", "全部先发送"),
    "order": ("opposite order", "顺序相反"),
    "absent": ("one does not join", "有人缺席"),
    "tag": ("another tag", "标签不符"),
    "source": ("wrong sender", "来源写错"),
    "never": ("never sent", "从未发送"),
}


def steps_of(name: str, rank: int, n: int, repaired: bool) -> list[Any]:
    """What a rank does in one of the six programs, broken or repaired: steps of ("send" | "recv", peer, tag)."""
    left, right, other = (rank - 1) % n, (rank + 1) % n, 1 - rank
    if name == "ring":
        steps = [[("send", right, 0)], [("recv", left, 0)]]
        return steps[::-1] if repaired and rank % 2 else steps
    if name == "absent":  # the steps of a ring all-reduce
        return [[("recv", left, 0), ("send", right, 0)]] * (2 * (n - 1)) if repaired or right else []
    if rank > 1:
        return []
    if name == "order":
        return [
            [("recv" if rank else "send", other, tag)]
            for tag in ([1, 0] if rank and not repaired else [0, 1])
        ]
    if name == "never":
        return [[("send", 0, 0)]] * repaired if rank else [[("recv", 1, 0)]]
    wrong = {"tag": ("recv", 0, 3), "source": ("recv", 2, 2)}[name]
    return [[("recv", 0, 2) if repaired else wrong]] if rank else [[("send", 1, 2)]]


def program(gpu: Any, names: list[str], nbytes: int, repaired: bool) -> int:
    """Do it, with blocking sends and receives; returns how many steps this rank finished."""

    done, x = 0, torch.zeros(nbytes, dtype=torch.uint8)
    for name in names:
        steps = steps_of(name, gpu.rank, gpu.size, repaired)
        if name == "absent" and steps:
            gpu.comm.all_reduce(torch.zeros(gpu.size * nbytes, dtype=torch.uint8), algorithm="ring")
        for kind, peer, tag in [] if name == "absent" else [message for step in steps for message in step]:
            (gpu.comm.send if kind == "send" else gpu.comm.recv)(x, peer, tag)
        done += len(steps)
    return done


def circle(error: Any) -> str:
    """0 → 1 → 0."""
    return " → ".join(map(str, [*error.cycle, *error.cycle[:1]]))


def binary(nbytes: int) -> str:
    """64 B, 128 KiB."""
    return f"{nbytes / KIB:g} KiB" if nbytes >= KIB else f"{nbytes} B"


@lesson
def deadlock_clinic(lab: Lab, eager_kib: int = 64, small: int = 64, large_kib: int = 128) -> None:
    """Six broken programs run on four threads, with sends that wait and with sends that are buffered; each hang is reported at once."""

    eager, large = eager_kib * KIB, large_kib * KIB
    cases = [(e, s) for e in (0, eager) for s in (small, large)]
    found: dict[tuple[str, int, int], Deadlock | None] = dict.fromkeys(
        (name, e, s) for name in NAMES for e, s in cases
    )
    waits = {
        k: standstill([steps_of(k[0], r, RANKS, False) for r in range(RANKS)], k[2], k[1]) for k in found
    }
    for key in found:
        try:
            Cluster(lab.hardware, RANKS, "threads", eager_bytes=key[1], seed=lab.seed).run(
                program, [key[0]], key[2], False, record=False
            )
        except Deadlock as error:
            found[key] = error
    reported = {k: {w.rank: w.peer for w in e.waits} if e else {} for k, e in found.items()}
    graphs = {k: nx.DiGraph(list(w.items())) for k, w in reported.items()}
    named: dict[Any, set[Any]] = {
        k: set(error.cycle) or {error.peer} if error else set() for k, error in found.items()
    }
    ruled = {
        k: set().union(*nx.simple_cycles(g)) or {r for r in g if not g.out_degree(r)}
        for k, g in graphs.items()
    }
    fixed = [[step for name in NAMES for step in steps_of(name, r, RANKS, True)] for r in range(RANKS)]
    run = lab.run("repaired", lab.text("all_six_repaired"), program, list(NAMES), large, True, gpus=RANKS)
    hangs = {(e, s): sum(found[n, e, s] is not None for n in NAMES) for e, s in cases}
    lab.ask("number", hangs[eager, small], "programs", small=small, eager_kib=eager_kib)
    for e, s in cases:
        lab.row(
            "programs_hang_bytes_sends_buffered_up",
            sum(bool(waits[n, e, s]) for n in NAMES),
            hangs[e, s],
            "rule",
            unit="programs",
            s=s,
            e=e,
        )
    lab.row(
        "runs_whose_waits_not_those_rule", 0, sum(waits[k] != reported[k] for k in found), "rule", unit="runs"
    )
    lab.row(
        "hangs_whose_named_ranks_not_cycle",
        0,
        sum(named[k] != ruled[k] for k in found),
        "rule, by networkx",
        unit="runs",
    )
    lab.row(
        "repaired_steps_finished_without_buffering",
        sum(map(len, fixed)),
        sum(run.results),
        "definition",
        unit="steps",
    )
    stuck = {n: hang for n in NAMES if (hang := found[n, 0, large])}
    over = {n: set(range(RANKS)) - {w.rank for w in hang.waits} for n, hang in stuck.items()}
    lab.figure(
        lab.text("who_waits_whom_when", large_kib=large_kib),
        lambda lang: waits_figure(
            [
                Panel(NAMES[n][lang == "zh"], RANKS, hang.waits, over[n], hang.cycle)
                for n, hang in stuck.items()
            ],
            lang,
        ),
    )

    def outcome(error: Deadlock | None, lang: str) -> str:
        if error is None:
            return lab.word("passes", lang)
        return (
            lab.word("hangs", lang).format(circle(error))
            if error.cycle
            else lab.word("hangs_rank_has_finished", lang).format(error.peer)
        )

    def table(lang: str) -> Any:
        heads = [f"{binary(s)}<br>{says[lang][3 + bool(e)].format(binary(e))}" for e, s in cases]
        text = [[outcome(found[n, e, s], lang) for e, s in cases] for n in NAMES]
        fill = [["#56B4E9" if found[n, e, s] is None else "#E69F00" for e, s in cases] for n in NAMES]
        return cells_figure([Table("", [NAMES[n][lang == "zh"] for n in NAMES], heads, text, fill)])

    lab.figure("passes_where_chain_waits", table)
    tag, ring = found["tag", eager, small], circle(stuck["ring"])
    assert tag is not None
    lab.tell(
        "without_buffering_hang_already",
        hang_unbuffered=hangs[0, small],
        programs=len(NAMES),
        small=small,
        ring=ring,
    )
    lab.tell(
        "sends_up_kib_buffered",
        eager_kib=eager_kib,
        hang_small=hangs[eager, small],
        small=small,
        hang_large=hangs[eager, large],
        large_kib=large_kib,
    )
    near = next(w.near_miss for w in tag.waits if w.near_miss)
    rank, wanted, there = re.findall(r"\d+", near)
    lab.tell("where_something_else_there", near=near, rank=rank, wanted=wanted, there=there)
    lab.tell("repaired_all_six_pass", view="tab=timeline&run=repaired")
    lab.conclude(hidden=hangs[eager, large] - hangs[eager, small], programs=len(NAMES), small=small)
    lab.explain()
    lab.own_number(
        hang_small=hangs[eager, small],
        programs=len(NAMES),
        small=small,
        hang_large=hangs[eager, large],
        large_kib=large_kib,
    )
