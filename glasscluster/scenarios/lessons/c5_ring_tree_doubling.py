"""C5: ring, tree, recursive doubling and halving-doubling: which is faster at which size."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson

NAMES = {"ring": ("ring", "环"), "tree": ("binomial tree", "二项树"), "recursive-doubling": ("recursive doubling", "递归加倍"),
         "halving-doubling": ("halving-doubling", "折半-加倍")}  # fmt: skip
REAL, SMALL, LARGE = 8, 64, 65_536  # ranks that really run; bytes a rank of the two recordings without data


def program(gpu: Any, algorithm: str, nbytes: int) -> float:
    """Sum a buffer of bytes; only the messages are timed."""
    import torch

    with gpu.unrecorded():
        x = torch.full((nbytes,), gpu.rank, dtype=torch.uint8, device=gpu.comm.wire.device)
    gpu.comm.all_reduce(x, algorithm=algorithm)
    with gpu.unrecorded():
        return 0.0 if x.device.type == "meta" else float(x[-1])


def crossing(one: Any, other: Any) -> float:
    """The size at which two straight lines of time over size meet; each a pair ((size, time), (size, time))."""
    (level, slope), (level_2, slope_2) = (((t1 * s2 - t2 * s1) / (s2 - s1), (t2 - t1) / (s2 - s1)) for (s1, t1), (s2, t2) in (one, other))
    return (level - level_2) / (slope_2 - slope)


def decades(figure: Any) -> Any:
    """Powers of ten on both axes."""
    figure.update_xaxes(dtick=1, exponentformat="power")
    return figure.update_yaxes(dtick=1, exponentformat="power")


# fmt: off
@lesson(
    "C5",
    title=("Ring, tree, doubling", "算法选择"),
    topic=("communication", "通信"),
    question=("All-reduce on 256 GPUs: up to which size is a tree faster than a ring?", "256 块 GPU 的 all-reduce：多大以内树比环快？"),
    formula=Formula("Eq 8",
                    "ring 2(N−1)(α + S/(Nβ)); tree 2·log₂N·(α + S/β); recursive doubling log₂N·(α + S/β); halving-doubling 2·log₂N·α + 2(N−1)/N·S/β; additions at γ",
                    "V", "Thakur, Rabenseifner, Gropp 2005; Rabenseifner 2004"),
    kills=("“A ring is always optimal.” In bytes, yes; but it pays 2(N−1) latencies where a tree pays 2·log₂N, so small sums on many GPUs are faster by tree or doubling.",
           "“环总是最优。”就字节而言是的；但它付 2(N−1) 次延迟，树只付 2·log₂N 次，所以很多 GPU 上的小数据用树或加倍更快。"),
    card=Card(
        ("Why not always use a ring?", "为什么不总是用环？"),
        ("Latency: a ring takes 2(N−1) steps, a tree 2·log₂N with the whole buffer each. Where the curves cross grows about as α·β·N/log₂N.",
         "延迟：环走 2(N−1) 步，树走 2·log₂N 步、每步整个缓冲区。交点大致按 α·β·N/log₂N 增长。"),
        ("Ring: 2(N−1)α + 2(N−1)/N·S/β. Tree: 2·log₂N(α + S/β). Recursive doubling halves the tree's time: log₂N(α + S/β), the fewest steps. Halving-doubling sends "
         "the ring's bytes in 2·log₂N steps, so without sharing it beats the ring at any size, for N a power of two. But its partners are far apart: where wires are shared, "
         "a ring of neighbours wins. NCCL chooses by size among ring and double binary tree, which pipelines pieces so that both terms are small.",
         "环：2(N−1)α + 2(N−1)/N·S/β。树：2·log₂N(α + S/β)。递归加倍把树的时间减半：log₂N(α + S/β)，步数最少。折半-加倍用 2·log₂N 步发送与环同样多的字节，"
         "N 为 2 的幂且链路不共享时，任何大小都胜过环。但它的伙伴相距很远：链路共享时，相邻成环更好。NCCL 按大小在环与双二叉树之间选择，后者分片流水，两项都小。"),
        (("What changes when N is not a power of two?", "N 不是 2 的幂时有何变化？"), ("How does a double binary tree get full bandwidth?", "双二叉树怎样达到满带宽？")),
    ),
)
def ring_tree_doubling(lab: Lab, gpus: int = 256, nbytes: int = 8_000_000) -> None:
    """Four all-reduces run on 8 ranks; three of them are recorded on 256 without data, and their times over size are crossed."""
    from dataclasses import replace

    from glasscluster.base.errors import InputError
    from glasscluster.sim.ranks.collectives import THEORY
    from glasscluster.sim.run import Cluster
    from glasscluster.sim.time.hardware import hardware
    from glasscluster.sim.time.network import Cable, build
    from glasscluster.visualize.figures.plots import lines

    if gpus < 4 or gpus & (gpus - 1):
        raise InputError("gpus", gpus, "the closed forms hold for a power of two, from 4", [2**k for k in range(2, 11)])
    link, bits = hardware(lab.hardware).link(0, 1), gpus.bit_length() - 1
    wide = replace(hardware(lab.hardware), node_size=gpus, intra=link)  # one kind of wire between any two
    nbytes -= nbytes % REAL

    def form(algorithm: str, n: int, size: float) -> float:
        wires = THEORY[algorithm]("all_reduce", n, size, link).time_s
        assert wires is not None
        added = n.bit_length() - 1 if algorithm in ("tree", "recursive-doubling") else (n - 1) / n  # whole buffers, one after the other
        return wires + added * size / wide.gpu.reduce_rate

    runs = {a: lab.run(a, title, program, a, nbytes, gpus=REAL) for a, title in NAMES.items()}
    for a, run in runs.items():
        lab.check(f"time of {a}, N = {REAL}", form(a, REAL, nbytes), None, "Eq 8", simulated=run.timeline.makespan, unit="s", match="virtual", tolerance=1e-9)
    lab.check("ranks with a wrong sum", 0, sum(x != sum(range(REAL)) for run in runs.values() for x in run.results), "definition", unit="ranks")
    replayed: dict[str, list[tuple[int, float]]] = {}
    for a in ("ring", "tree", "recursive-doubling"):
        for size in (SMALL * gpus, LARGE * gpus):
            turns = {"turns": size} if a == "ring" else {}  # a ring is the same all round: rank 0 is recorded, and turned
            seconds = Cluster(wide, gpus, "dry", memory_bytes=None, **turns).run(program, a, size).timeline.makespan
            replayed.setdefault(a, []).append((size, seconds))
            lab.check(f"time of {a}, N = {gpus}, {size} bytes", form(a, gpus, size), None, "Eq 8", simulated=seconds, unit="s", match="virtual", tolerance=1e-9)
    ends, others = (SMALL * gpus, LARGE * gpus), ("tree", "recursive-doubling")
    theory = {a: crossing(*([(size, form(x, gpus, size)) for size in ends] for x in ("ring", a))) for a in others}
    met = {a: crossing(replayed["ring"], replayed[a]) for a in others}
    for a, meeting in theory.items():
        lab.check(f"size at which ring and {a} take the same time", meeting, None, "Eq 8, solved for S", simulated=met[a], match="virtual", tolerance=1e-9)
    lab.ask(f"{gpus} GPUs on {lab.hardware} (α = {link.alpha * 1e6:.3g} µs, β = {link.bandwidth / 1e9:.3g} GB/s): at which size, in MB, do ring and tree take equally long?",
            f"{lab.hardware} 的 {gpus} 块 GPU（α = {link.alpha * 1e6:.3g} µs，β = {link.bandwidth / 1e9:.3g} GB/s）：多少 MB 时环与树一样快？",
            met["tree"] / 1e6, "MB")
    sizes = [1024 * 4**k for k in range(11)]
    times = {a: [form(a, gpus, s) for s in sizes] for a in NAMES}
    turn = crossing(*([(s, form(a, gpus, s)) for s in sizes[:2]] for a in ("recursive-doubling", "halving-doubling")))
    axes = {"en": ("buffer (bytes)", "time of an all-reduce (ms)", "time ÷ the best one's", "replayed: "),
            "zh": ("缓冲区（字节）", "一次 all-reduce 的时间（ms）", "时间 ÷ 最快者", "重放：")}

    def curves(lang: str) -> Any:
        zh = lang == "zh"
        marks = {axes[lang][3] + NAMES[a][zh]: ([s for s, _ in points], [t * 1e3 for _, t in points]) for a, points in replayed.items()}
        figure = lines({**{NAMES[a][zh]: (sizes, [t * 1e3 for t in ts]) for a, ts in times.items()}, **marks}, *axes[lang][:2], log_x=True, log_y=True)
        for number, trace in enumerate(figure.data):
            trace.update(mode="lines" if number < len(times) else "markers", marker={"size": 14, "color": "#1f2933"})
        return decades(figure)

    lab.figure((f"Time over size for N = {gpus}: lines are formulas, marks what was replayed", f"N = {gpus} 时时间与大小：线为公式，点为重放"), curves)
    lab.figure((f"Who wins at which size, N = {gpus} (1 is the fastest)", f"各大小谁最快，N = {gpus}（1 为最快）"),
               lambda lang: decades(lines({NAMES[a][lang == "zh"]: (sizes, [t / min(times[b][i] for b in NAMES) for i, t in enumerate(ts)]) for a, ts in times.items()},
                                          axes[lang][0], axes[lang][2], log_x=True, log_y=True)))
    circle = replace(wide, topology=build("ring", REAL, Cable(link.bandwidth, link.latency_s, link.overhead_s)))
    shared = {a: runs[a].replay(circle, contention=True).makespan for a in ("ring", "halving-doubling")}
    lab.tell(f"At {REAL} ranks {nbytes / 1e6:.3g} MB take {runs['ring'].timeline.makespan * 1e3:.4g} ms by ring and {runs['tree'].timeline.makespan * 1e3:.4g} ms by tree: bytes decide.",
             f"{REAL} 个 rank 上 {nbytes / 1e6:.3g} MB：环 {runs['ring'].timeline.makespan * 1e3:.4g} ms，树 {runs['tree'].timeline.makespan * 1e3:.4g} ms：字节数决定。",
             "tab=timeline&run=tree")
    lab.tell(f"At {gpus} GPUs and {sizes[0]:,} bytes the ring takes {times['ring'][0] * 1e3:.4g} ms, the tree {times['tree'][0] * 1e3:.4g}: {2 * (gpus - 1)} latencies against {2 * bits}.",
             f"{gpus} 块 GPU、{sizes[0]:,} 字节时环要 {times['ring'][0] * 1e3:.4g} ms，树 {times['tree'][0] * 1e3:.4g} ms：{2 * (gpus - 1)} 次延迟对 {2 * bits} 次。")
    lab.tell(f"Ring and tree meet at {met['tree'] / 1e6:.4g} MB, ring and recursive doubling at {met['recursive-doubling'] / 1e6:.4g} MB.",
             f"环与树在 {met['tree'] / 1e6:.4g} MB 相交，环与递归加倍在 {met['recursive-doubling'] / 1e6:.4g} MB 相交。")
    lab.tell(f"Of all four, recursive doubling wins below {turn / 1e3:.4g} kB and halving-doubling above, as long as no wire is shared.",
             f"四者之中，小于 {turn / 1e3:.4g} kB 时递归加倍最快，大于时折半-加倍最快，前提是链路不共享。")
    lab.tell(f"On {REAL} GPUs cabled as a ring, with wires shared, the ring takes {shared['ring'] * 1e3:.4g} ms and halving-doubling {shared['halving-doubling'] * 1e3:.4g}: neighbours pay off.",
             f"{REAL} 块 GPU 连成环、计入链路共享时，环要 {shared['ring'] * 1e3:.4g} ms，折半-加倍 {shared['halving-doubling'] * 1e3:.4g} ms：相邻通信更划算。",
             "tab=timeline&run=halving-doubling")
    lab.conclude(f"On {gpus} GPUs a tree beats the ring below {met['tree'] / 1e6:.3g} MB.", f"{gpus} 块 GPU 上，小于 {met['tree'] / 1e6:.3g} MB 时树胜过环。")
    lab.explain("A ring pays a latency for every rank, a tree for every doubling; a tree pays whole buffers, a ring pieces. Where both weigh the same the curves cross.",
                "环为每个 rank 付一次延迟，树每次加倍付一次；树每步付整个缓冲区，环付一小块。两者相当处曲线相交。",
                ("Steps: 2(N−1) against 2·log₂N; bytes in a chain: 2S against 2S·log₂N.", "步数：2(N−1) 对 2·log₂N；链上的字节：2S 对 2S·log₂N。"),
                ("The crossing grows with α·β and with N/log₂N.", "交点随 α·β 与 N/log₂N 增长。"))
    lab.own_number(f"{met['tree'] / 1e6:.4g} MB for N = {gpus} on {lab.hardware}.", f"{lab.hardware} 的 {gpus} 块 GPU：{met['tree'] / 1e6:.4g} MB。")
