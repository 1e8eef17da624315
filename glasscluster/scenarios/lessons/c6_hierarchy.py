"""C6: an all-reduce in two levels, against one ring through all nodes."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson

SIZES = [2**k for k in (16, 20, 24, 28, 32)]


def program(gpu: Any, algorithm: str, nbytes: int, node_size: int | None) -> float:
    """Sum a buffer of bytes; only the messages are timed."""
    import torch

    with gpu.unrecorded():
        x = torch.full((nbytes,), gpu.rank, dtype=torch.uint8, device=gpu.comm.wire.device)
    gpu.comm.all_reduce(x, algorithm=algorithm, node_size=node_size)
    with gpu.unrecorded():
        return 0.0 if x.device.type == "meta" else float(x[-1])


def between_nodes(graph: Any, g: int) -> list[int]:
    """Bytes that every rank sent to another node."""
    import numpy as np

    from glasscluster.sim.recording.events import SEND

    out = (graph.kind == SEND) & (graph.rank // g != graph.peer // g)
    return np.bincount(graph.rank[out], graph.bytes[out], minlength=graph.ranks).astype(int).tolist()


# fmt: off
@lesson(
    "C6",
    title=("Hierarchy", "分层通信"),
    topic=("communication", "通信"),
    question=("8 nodes of 8 GPUs, NVLink inside, InfiniBand between: how much faster than one flat ring is an all-reduce in two levels?",
              "8 个节点各 8 块 GPU，节点内 NVLink，节点间 InfiniBand：两级 all-reduce 比一个平坦的环快多少？"),
    formula=Formula("Eq 12", "2(g−1)(α₁ + S/(gβ₁)) + 2(M−1)(α₂ + S/(gMβ₂)) + (N−1)/N·S/γ; between nodes 2(M−1)/M·S/g sent per GPU", "V", "derivation; Horovod and NCCL practice"),
    kills=("“The speed-up is the ratio of the bandwidths.” A flat ring leaves a node through one GPU's port; two levels use all g ports, and still pay the slow wire for 1/g of the bytes.",
           "“加速比等于带宽之比。”平坦的环只从一块 GPU 的网口离开节点；分层用上全部 g 个网口，但仍要为 1/g 的字节付慢链路的时间。"),
    card=Card(
        ("Why is all-reduce done in levels on a cluster?", "为什么集群上的 all-reduce 要分层？"),
        ("Reduce-scatter inside the node, all-reduce 1/g between nodes, all-gather inside: the slow wire carries S/g per GPU, and steps fall from 2(N−1) to 2(g−1) + 2(M−1).",
         "节点内 reduce-scatter，节点间对 1/g 做 all-reduce，节点内 all-gather：慢链路每块 GPU 只承载 S/g，步数从 2(N−1) 降到 2(g−1) + 2(M−1)。"),
        ("A flat ring in rank order crosses nodes only at the borders, M times a round: every chunk passes that one port, so it takes about 2(N−1)/N·S/β₂ whatever NVLink does. In "
         "two levels: 2(g−1)/g·S/β₁ inside plus 2(M−1)/M·S/(gβ₂) between. For large S the gain is g·β₁ against about β₁ + gβ₂, never above g. For small S steps "
         "count: 2(N−1) against 2(g−1) + 2(M−1). NCCL runs several rings at once, each leaving a node by another port, which wins back most of the bandwidth part.",
         "按 rank 顺序的平坦环只在节点边界跨节点，每圈 M 次：每一块都要过那个网口，所以无论 NVLink 多快，约需 2(N−1)/N·S/β₂。分两级：节点内 2(g−1)/g·S/β₁，"
         "加上节点间 2(M−1)/M·S/(gβ₂)。S 大时收益约为 g·β₁ 比 β₁ + gβ₂，不会超过 g；S 小时看步数：2(N−1) 对 2(g−1) + 2(M−1)。"
         "NCCL 同时跑多个环，各从不同网口离开节点，带宽部分大多能赢回来。"),
        (("What if all GPUs of a node share one network port?", "若一个节点的所有 GPU 共用一个网口会怎样？"), ("When is a third level worth it?", "什么时候值得分三级？")),
    ),
    hardware="dgx-h100",
)
def hierarchy(lab: Lab, nodes: int = 2, large_nodes: int = 8, mib: int = 16) -> None:
    """A flat ring and a two-level all-reduce run on two nodes, then both are recorded without data on eight."""
    from glasscluster.sim.ranks.collectives import THEORY
    from glasscluster.sim.run import Cluster
    from glasscluster.sim.time.hardware import hardware
    from glasscluster.visualize.figures.plots import bars, lines

    hw = hardware(lab.hardware)
    g, nbytes = hw.node_size, mib * 2**20 // (nodes * large_nodes * hw.node_size) * nodes * large_nodes * hw.node_size
    flat = lab.run("flat", ("One flat ring", "一个平坦的环"), program, "ring", nbytes, None, gpus=nodes * g)
    levels = lab.run("levels", ("Two levels", "两级"), program, "hierarchical", nbytes, g, gpus=nodes * g)

    def dry(m: int, algorithm: str, size: int) -> Any:
        turns = {"turns": size} if algorithm == "ring" else {}  # a ring is the same all round: rank 0 is recorded, and turned
        return Cluster(hw, m * g, "dry", memory_bytes=None, **turns).run(program, algorithm, size, None if turns else g)

    sizes = [s * nodes * large_nodes * g // 2**7 for s in SIZES]
    counts = sorted({2, 4, nodes, large_nodes})
    big = {(m, s): (dry(m, "ring", s), dry(m, "hierarchical", s)) for m in counts for s in sizes}
    shown = sizes[-2]
    for m, run, size in ((nodes, levels, nbytes), (large_nodes, big[large_nodes, shown][1], shown)):
        crossed = between_nodes(run.graph, g)
        wires = THEORY["hierarchical"]("all_reduce", m * g, size, hw.intra, between=hw.inter, node_size=g).time_s
        assert wires is not None
        seconds = wires + (m * g - 1) * size / (m * g) / hw.gpu.reduce_rate  # and the additions
        lab.check(f"time in two levels, {m} x {g} GPUs", seconds, None, "Eq 12 and additions at γ", simulated=run.timeline.makespan, unit="s", match="virtual", tolerance=1e-9)
        lab.check(f"sent to another node by each GPU, {m} x {g} GPUs", 2 * (m - 1) * size // (m * g), crossed[0], "Eq 12")
        lab.check(f"GPUs that sent something else to another node, {m} x {g} GPUs", 0, sum(c != crossed[0] for c in crossed), "Eq 12", unit="ranks")
    n, ring = large_nodes * g, between_nodes(big[large_nodes, shown][0].graph, g)
    lab.check("sent to another node by a flat ring's last GPU of a node", 2 * (n - 1) * shown // n, ring[g - 1], "Eq 9")
    lab.check("ranks with a wrong sum", 0, sum(x != sum(range(nodes * g)) % 256 for x in flat.results + levels.results), "definition", unit="ranks")
    gain = {k: a.timeline.makespan / b.timeline.makespan for k, (a, b) in big.items()}
    ratio, found = hw.intra.bandwidth / hw.inter.bandwidth, gain[large_nodes, shown]
    lab.ask(f"{large_nodes} nodes of {g} GPUs ({hw.name}), {shown / 2**20:.4g} MiB: how many times as fast as a flat ring are two levels?",
            f"{large_nodes} 个节点各 {g} 块 GPU（{hw.name}），{shown / 2**20:.4g} MiB：两级比平坦的环快几倍？", found, "×")
    two, axes = (between_nodes(big[large_nodes, shown][1].graph, g),
                 {"en": ("flat ring", "two levels", "S through the GPU's network port"), "zh": ("平坦的环", "两级", "经该 GPU 网口的量（S）")})
    lab.figure((f"What each GPU of a node sends to other nodes, {large_nodes} × {g} GPUs", f"一个节点的每块 GPU 发往其他节点的量，{large_nodes} × {g} 块 GPU"),
               lambda lang: bars([f"GPU {i}" for i in range(g)], {axes[lang][0]: [b / shown for b in ring[:g]], axes[lang][1]: [b / shown for b in two[:g]]}, axes[lang][2]))
    names = {"en": ("{} nodes of {}", "ratio of the bandwidths", "buffer (MiB)", "times as fast as a flat ring"),
             "zh": ("{} 个节点 × {}", "带宽之比", "缓冲区（MiB）", "比平坦的环快几倍")}
    def gains(lang: str) -> Any:
        drawn = {names[lang][0].format(m, g): (sizes, [gain[m, s] for s in sizes]) for m in counts}
        figure = lines({**drawn, names[lang][1]: (sizes, [ratio] * len(sizes))}, *names[lang][2:], log_x=True)
        return figure.update_xaxes(tickvals=sizes, ticktext=[f"{s / 2**20:.4g}" for s in sizes])

    lab.figure(("Speed-up over a flat ring", "相对平坦环的加速比"), gains)
    own = flat.timeline.makespan / levels.timeline.makespan
    lab.tell(f"Run on {nodes} nodes, {nbytes / 2**20:.4g} MiB take {flat.timeline.makespan * 1e6:.4g} µs in a flat ring and {levels.timeline.makespan * 1e6:.4g} µs in two levels: {own:.3g} times as fast.",
             f"在 {nodes} 个节点上实际运行，{nbytes / 2**20:.4g} MiB：平坦的环 {flat.timeline.makespan * 1e6:.4g} µs，两级 {levels.timeline.makespan * 1e6:.4g} µs：快 {own:.3g} 倍。",
             "tab=timeline&run=levels")
    lab.tell(f"The flat ring leaves a node by one GPU, with {ring[g - 1] / shown:.4g} S; in two levels each of {g} GPUs sends {two[0] / shown:.4g} S to other nodes.",
             f"平坦的环只从一块 GPU 离开节点，带着 {ring[g - 1] / shown:.4g} S；分两级时 {g} 块 GPU 各向其他节点发送 {two[0] / shown:.4g} S。",
             "tab=network&run=flat")
    lab.tell(f"On {large_nodes} nodes and {shown / 2**20:.4g} MiB the speed-up is {found:.3g}; NVLink is {ratio:.3g} times as wide as a GPU's network port, and there are {g} ports.",
             f"{large_nodes} 个节点、{shown / 2**20:.4g} MiB 时加速比为 {found:.3g}；NVLink 的带宽是网口的 {ratio:.3g} 倍，网口有 {g} 个。")
    lab.tell(f"At {sizes[0]:,} bytes it is {gain[large_nodes, sizes[0]]:.3g}: there steps count, {2 * (n - 1)} against {2 * (g - 1) + 2 * (large_nodes - 1)}.",
             f"{sizes[0]:,} 字节时为 {gain[large_nodes, sizes[0]]:.3g}：此时看步数，{2 * (n - 1)} 对 {2 * (g - 1) + 2 * (large_nodes - 1)}。")
    lab.conclude(f"Two levels are {found:.3g} times as fast as one flat ring on {large_nodes} × {g} GPUs, not {ratio:.3g} times.",
                 f"{large_nodes} × {g} 块 GPU 上，两级比一个平坦的环快 {found:.3g} 倍，而不是 {ratio:.3g} 倍。")
    lab.explain("Two levels divide the slow wire's bytes among all ports, and add a fast part. The flat ring has one border port a node, through which everything goes.",
                "两级把慢链路的字节分给所有网口，再加上快的一段。平坦的环每个节点只有一个边界网口，一切都从那里过。",
                ("Between nodes a GPU sends 2(M−1)/M·S/g instead of 2(N−1)/N·S through one port.", "节点间每块 GPU 发送 2(M−1)/M·S/g，而不是全部 2(N−1)/N·S 过一个网口。"),
                ("The times of both levels add, so the gain is neither g nor β₁/β₂.", "两级的时间相加，所以收益既不是 g 也不是 β₁/β₂。"))
    lab.own_number(f"{found:.3g}× on {large_nodes} × {g} {hw.name} GPUs; {ratio:.3g}× is the ratio of the wires.", f"{large_nodes} × {g} 块 {hw.name} GPU：{found:.3g} 倍；链路带宽之比为 {ratio:.3g}。")
