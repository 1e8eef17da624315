"""C3: ring all-reduce, message by message."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


def program(gpu: Any, elements: int, members: int) -> float:
    """Sum a vector over the first `members` ranks with our ring."""
    import torch

    group = gpu.comm if members == gpu.size else gpu.comm.split(int(gpu.rank < members))
    x = torch.full((elements,), float(gpu.rank))
    if gpu.rank < members:
        group.all_reduce(x, algorithm="ring")
    return float(x[0])


@lesson(
    "C3",
    title=("Ring all-reduce", "环形全归约"),
    topic=("communication", "通信"),
    question=("How much does each GPU send to sum one buffer over eight GPUs?", "八块 GPU 对一个缓冲区求和，每块要发送多少？"),
    formula=Formula(
        "Eq 9, Eq 8", "2(N−1)/N·S sent per rank;  2(N−1)(α + S/(Nβ))", "X", "Patarasuk-Yuan 2009; Thakur et al. 2005 (time: V)"
    ),
    kills=(
        "“All-reduce traffic grows with N.” A rank's bytes stay below 2S; what grows is the number of steps, and with it the latency.",
        "“all-reduce 的通信量随 N 增长。”每个 rank 的字节数不超过 2S；增长的是步数，也就是延迟。",
    ),
    card=Card(
        ("Derive the cost of ring all-reduce.", "推导环形 all-reduce 的代价。"),
        (
            "Cut the buffer into N chunks. N−1 steps of reduce-scatter and N−1 of all-gather, a chunk each: 2(N−1)/N·S bytes, 2(N−1) latencies.",
            "把缓冲区切成 N 块。reduce-scatter 走 N−1 步，all-gather 再走 N−1 步，每步一块：2(N−1)/N·S 字节，2(N−1) 次延迟。",
        ),
        (
            "In each step every rank sends one chunk to its right neighbour and receives one from the left, so all links work all the time. "
            "After N−1 steps rank r holds chunk r summed; N−1 more steps hand the sums round. Lower bound: each rank must send (N−1)/N·S to "
            "have its data summed elsewhere and as much again to give results back, so the ring is bandwidth optimal. Its latency "
            "is linear in N; trees and halving-doubling have log N.",
            "每一步每个 rank 向右邻发一块、从左邻收一块，所有链路始终在工作。N−1 步后 rank r 持有块 r 的和；再走 N−1 步把结果传遍。"
            "下界：每个 rank 至少要发出 (N−1)/N·S 供别处求和，再发同样多把结果送回，所以环在带宽上最优。延迟与 N 成正比；树形与折半-加倍为 log N。",
        ),
        (("When does a tree win?", "什么时候树形更好？"), ("Why do the bits not depend on timing?", "为什么结果的每一位都与时序无关？")),
    ),
)
def ring_all_reduce(lab: Lab, gpus: int = 8, elements: int = 800_000) -> None:
    """The ring that trains the models sums one vector; every message is drawn."""
    from glasscluster.sim.time.hardware import hardware
    from glasscluster.visualize.figures.plots import lines, messages

    elements -= elements % gpus
    run = lab.run("ring", ("Ring all-reduce", "环形 all-reduce"), program, elements, gpus, gpus=gpus)
    size, link, added = 4 * elements, hardware(lab.hardware).link(0, 1), hardware(lab.hardware).gpu.reduce_rate
    sent = run.graph.bytes_sent()
    lab.ask(
        f"A buffer of S bytes on {gpus} GPUs: how many S does each GPU send?",
        f"{gpus} 块 GPU，缓冲区 S 字节：每块发送几个 S？",
        sent[0] / size,
        "S",
    )
    lab.check("sent by every rank", 2 * (gpus - 1) * size // gpus, sent[0], "Eq 9")
    lab.check("ranks that sent something else", 0, sum(s != sent[0] for s in sent), "Eq 9", unit="ranks")
    lab.check("ranks with a wrong sum", 0, sum(r != sum(range(gpus)) for r in run.results), "definition", unit="ranks")
    predicted = 2 * (gpus - 1) * (link.alpha + size / gpus / link.bandwidth) + (gpus - 1) * size / gpus / added
    lab.check(
        "time on " + lab.hardware, predicted, None, "Eq 8", simulated=_moving(run.timeline), unit="s", match="virtual", tolerance=1e-9
    )
    lab.figure(
        ("Every message, numbered in the order its rank sent it", "每条消息，按发送顺序编号"), lambda lang: messages(run.timeline, lang)
    )
    counts = [n for n in (2, 3, 4, 6, 8) if n <= gpus]
    volumes, latencies = [], []
    for n in counts:
        other = lab.cluster(gpus).run(program, 24 * 10_000, n)
        volumes.append(max(other.graph.bytes_sent()) / (4 * 24 * 10_000))
        latencies.append(2 * (n - 1))
    names = {"en": ("sent per GPU, in S", "steps / 10", "GPUs N", ""), "zh": ("每卡发送量（以 S 计）", "步数 / 10", "GPU 数 N", "")}
    lab.figure(
        ("What grows with N and what does not", "什么随 N 增长，什么不增长"),
        lambda lang: lines({names[lang][0]: (counts, volumes), names[lang][1]: (counts, [x / 10 for x in latencies])}, *names[lang][2:]),
    )
    lab.tell(
        f"Every rank sent {sent[0]:,} bytes for a buffer of {size:,}: {sent[0] / size:.4g} S, in {2 * (gpus - 1)} steps.",
        f"缓冲区 {size:,} 字节，每个 rank 发送 {sent[0]:,} 字节：{sent[0] / size:.4g} S，共 {2 * (gpus - 1)} 步。",
        "tab=network",
    )
    lab.conclude(f"Each GPU sends {sent[0] / size:.4g} S, never more than 2 S.", f"每块 GPU 发送 {sent[0] / size:.4g} S，永远不超过 2 S。")
    lab.explain(
        "Each chunk travels once round the ring to be summed and once more to be known: 2(N−1) hops of S/N bytes for every rank.",
        "每一块绕环一圈完成求和，再绕一圈让所有人知道：每个 rank 发送 2(N−1) 次、每次 S/N 字节。",
        (
            "Two halves: reduce-scatter and all-gather, N−1 chunks of S/N each.",
            "分两半：reduce-scatter 与 all-gather，各 N−1 块，每块 S/N。",
        ),
        ("Bytes stay below 2S for any N; steps, and so latency, grow with N.", "字节数对任何 N 都小于 2S；步数（即延迟）随 N 增长。"),
    )
    lab.own_number(f"{sent[0] / size:.4g} S at N = {gpus}.", f"N = {gpus} 时 {sent[0] / size:.4g} S。")


def _moving(timeline: Any) -> float:
    """From the launch of the all-reduce to its end on the last rank."""
    works = timeline.communications()
    return max(w["end"] for w in works) - max(w["launched"] for w in works)
