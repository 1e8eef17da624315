"""C7: six programs that hang, why two of them do not with small messages, and their repairs."""

from __future__ import annotations

import re
from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson

RANKS, KIB = 4, 1024
NAMES = {"ring": ("all send first", "全部先发送"), "order": ("opposite order", "顺序相反"), "absent": ("one does not join", "有人缺席"),
         "tag": ("another tag", "标签不符"), "source": ("wrong sender", "来源写错"), "never": ("never sent", "从未发送")}  # fmt: skip


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
        return [[("recv" if rank else "send", other, tag)] for tag in ([1, 0] if rank and not repaired else [0, 1])]
    if name == "never":
        return [[("send", 0, 0)]] * repaired if rank else [[("recv", 1, 0)]]
    wrong = {"tag": ("recv", 0, 3), "source": ("recv", 2, 2)}[name]
    return [[("recv", 0, 2) if repaired else wrong]] if rank else [[("send", 1, 2)]]


def program(gpu: Any, names: list[str], nbytes: int, repaired: bool) -> int:
    """Do it, with blocking sends and receives; returns how many steps this rank finished."""
    import torch

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


# fmt: off
@lesson(
    "C7",
    title=("Deadlock clinic", "死锁诊所"),
    topic=("communication", "通信"),
    question=("Why does it hang at 128 KiB but not at 64 B?", "为什么 128 KiB 时卡死，64 B 时却不会？"),
    formula=Formula("deadlock", "hangs ⇔ the wait chain of some rank closes a cycle or ends at a finished rank", "X", "Coffman, Elphick, Shoshani 1971 (wait-for graph)"),
    kills=("“It worked on small tensors, so it is correct.” Small sends were buffered; the wait was there all along.", "“小张量能跑通，所以程序正确。”小消息被缓冲了；等待关系一直都在。"),
    card=Card(
        ("Your job hangs. How do you find out why?", "你的任务卡住了，怎样查明原因？"),
        ("Ask every rank what it waits for and draw the arrows: a circle is a wrong order; an arrow to a finished rank is a missing call.",
         "问每个 rank 在等谁，画出箭头：成环说明顺序错了；指向已结束的 rank 说明少了一次调用。"),
        ("A blocking send of a large message returns when its receive is posted (rendezvous); a small one is copied and returns at once (eager). So a ring in "
         "which all send first hangs only above the threshold. Test with the threshold at zero: what passes then passes everywhere. Repair a cycle by "
         "letting half of the ranks receive first, or by posting both and waiting after; repair a chain by adding the call, the tag or the sender that is missing.",
         "大消息的阻塞发送要等对方的接收就位才返回（会合）；小消息被复制后立即返回（急切）。所以“全部先发送”的环只在阈值以上卡死。"
         "把阈值设为零来测试：此时能通过，就处处能通过。环的修法：一半 rank 先接收，或者先同时发起再等待；链的修法：补上缺少的调用、标签或发送方。"),
        (("What does NCCL do with unmatched sends?", "NCCL 遇到不配对的发送会怎样？"), ("Why do collectives need one order on all ranks?", "为什么集合通信在所有 rank 上顺序必须一致？")),
    ),
)
def deadlock_clinic(lab: Lab, eager_kib: int = 64, small: int = 64, large_kib: int = 128) -> None:
    """Six broken programs run on four threads, with sends that wait and with sends that are buffered; each hang is reported at once."""
    import networkx as nx

    from glasscluster.base.errors import Deadlock
    from glasscluster.sim.ranks.deadlock import standstill
    from glasscluster.sim.run import Cluster
    from glasscluster.visualize.figures.cells import Table, cells_figure
    from glasscluster.visualize.figures.waits import Panel, waits_figure

    eager, large = eager_kib * KIB, large_kib * KIB
    cases = [(e, s) for e in (0, eager) for s in (small, large)]
    found: dict[tuple[str, int, int], Deadlock | None] = dict.fromkeys((name, e, s) for name in NAMES for e, s in cases)
    waits = {k: standstill([steps_of(k[0], r, RANKS, False) for r in range(RANKS)], k[2], k[1]) for k in found}
    for key in found:
        try:
            Cluster(lab.hardware, RANKS, "threads", eager_bytes=key[1], seed=lab.seed).run(program, [key[0]], key[2], False, record=False)
        except Deadlock as error:
            found[key] = error
    reported = {k: {w.rank: w.peer for w in e.waits} if e else {} for k, e in found.items()}
    graphs = {k: nx.DiGraph(list(w.items())) for k, w in reported.items()}
    named: dict[Any, set[Any]] = {k: set(error.cycle) or {error.peer} if error else set() for k, error in found.items()}
    ruled = {k: set().union(*nx.simple_cycles(g)) or {r for r in g if not g.out_degree(r)} for k, g in graphs.items()}
    fixed = [[step for name in NAMES for step in steps_of(name, r, RANKS, True)] for r in range(RANKS)]
    run = lab.run("repaired", ("All six, repaired", "修复后的六个程序"), program, list(NAMES), large, True, gpus=RANKS)
    hangs = {(e, s): sum(found[n, e, s] is not None for n in NAMES) for e, s in cases}
    lab.ask(f"Six broken programs, messages of {small} B, sends of up to {eager_kib} KiB buffered: how many hang?",
            f"六个有错的程序，消息 {small} B，不超过 {eager_kib} KiB 的发送会被缓冲：几个会卡死？", hangs[eager, small], "programs")
    for e, s in cases:
        lab.check(f"programs that hang at {s} bytes, sends buffered up to {e}", sum(bool(waits[n, e, s]) for n in NAMES), hangs[e, s], "rule", unit="programs")
    lab.check("runs whose waits are not those of the rule", 0, sum(waits[k] != reported[k] for k in found), "rule", unit="runs")
    lab.check("hangs whose named ranks are not a cycle or a chain's end", 0, sum(named[k] != ruled[k] for k in found), "rule, by networkx", unit="runs")
    lab.check("repaired: steps finished without buffering", sum(map(len, fixed)), sum(run.results), "definition", unit="steps")
    stuck = {n: hang for n in NAMES if (hang := found[n, 0, large])}
    over = {n: set(range(RANKS)) - {w.rank for w in hang.waits} for n, hang in stuck.items()}
    lab.figure((f"Who waits for whom when nothing is buffered ({large_kib} KiB)", f"没有缓冲时谁在等谁（{large_kib} KiB）"),
               lambda lang: waits_figure([Panel(NAMES[n][lang == "zh"], RANKS, hang.waits, over[n], hang.cycle) for n, hang in stuck.items()], lang))
    says = {"en": ("passes", "hangs: {}", "hangs: rank {} has finished", "nothing buffered", "up to {} buffered"),
            "zh": ("通过", "卡死：{}", "卡死：rank {} 已结束", "没有缓冲", "缓冲不超过 {}")}

    def outcome(error: Deadlock | None, lang: str) -> str:
        if error is None:
            return says[lang][0]
        return says[lang][1].format(circle(error)) if error.cycle else says[lang][2].format(error.peer)

    def table(lang: str) -> Any:
        heads = [f"{binary(s)}<br>{says[lang][3 + bool(e)].format(binary(e))}" for e, s in cases]
        text = [[outcome(found[n, e, s], lang) for e, s in cases] for n in NAMES]
        fill = [["#56B4E9" if found[n, e, s] is None else "#E69F00" for e, s in cases] for n in NAMES]
        return cells_figure([Table("", [NAMES[n][lang == "zh"] for n in NAMES], heads, text, fill)])

    lab.figure(("What passes, and where the chain of waits leads", "哪些能通过；等待链通向哪里"), table)
    tag, ring = found["tag", eager, small], circle(stuck["ring"])
    assert tag is not None
    lab.tell(f"Without buffering {hangs[0, small]} of {len(NAMES)} hang at {small} B already; when all send first the cycle is {ring}.",
             f"没有缓冲时，{small} B 就有 {hangs[0, small]} 个（共 {len(NAMES)} 个）卡死；全部先发送时的环是 {ring}。")
    lab.tell(f"With sends of up to {eager_kib} KiB buffered, {hangs[eager, small]} hang at {small} B and {hangs[eager, large]} at {large_kib} KiB: the wait is still there, the size hides it.",
             f"缓冲不超过 {eager_kib} KiB 的发送后，{small} B 时 {hangs[eager, small]} 个卡死，{large_kib} KiB 时 {hangs[eager, large]} 个：等待关系还在，只是被消息大小掩盖了。")
    near = next(w.near_miss for w in tag.waits if w.near_miss)
    rank, wanted, there = re.findall(r"\d+", near)
    lab.tell(f"Where something else is there, the report says so: “{near}”.", f"若有别的消息在，报告会指出：rank {rank} 在等标签 {wanted}，同一发送方的一条标签 {there} 的消息正在排队。")
    lab.tell("Repaired, all six pass with nothing buffered; the timeline shows them one after the other.", "修复后六个程序在无缓冲时全部通过；时间线上依次可见。", "tab=timeline&run=repaired")
    lab.conclude(f"{hangs[eager, large] - hangs[eager, small]} of {len(NAMES)} programs pass at {small} B only because sends are buffered.",
                 f"{len(NAMES)} 个程序中有 {hangs[eager, large] - hangs[eager, small]} 个只因发送被缓冲才在 {small} B 时通过。")
    lab.explain("A send that waits adds an arrow from sender to receiver; a buffered one adds none. Arrows of receives stay, so only cycles of sends vanish.",
                "等待中的发送是一条从发送方到接收方的箭头；被缓冲的发送没有箭头。接收的箭头仍在，所以只有含发送的环会消失。",
                ("A large send waits for its receive, a small one is copied and returns.", "大消息的发送要等接收，小消息被复制后立即返回。"),
                ("A hang is a cycle of waits, or a chain that ends at a rank which has finished.", "卡死要么是等待成环，要么是等待链终止于已结束的 rank。"))
    lab.own_number(f"{hangs[eager, small]} of {len(NAMES)} hang at {small} B, {hangs[eager, large]} at {large_kib} KiB.",
                   f"{small} B 时 {len(NAMES)} 个中卡死 {hangs[eager, small]} 个，{large_kib} KiB 时 {hangs[eager, large]} 个。")
