"""C4: what collectives are made of, and what can be made of them: an all-reduce, a transpose, a ZeRO step."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson

RATE = 0.25  # a power of two: with whole-number data every result is exact
PICTURED = 4  # ranks of the block pictures
TITLES = {"all-reduce": ("All-reduce", "all-reduce"), "halves": ("Reduce-scatter, then all-gather", "先 reduce-scatter 再 all-gather"),
          "scatter": ("Reduce-scatter alone", "单独的 reduce-scatter"), "root": ("Reduce to rank 0, then scatter", "归约到 rank 0 再散发"),
          "transpose": ("Transpose by all-to-all", "用 all-to-all 转置"), "zero": ("A ZeRO step", "一步 ZeRO")}  # fmt: skip


def whole(rank: int, elements: int) -> Any:
    """A buffer of small whole numbers, another on every rank."""
    import torch

    return ((torch.arange(elements) * 7 + rank * 5) % 11 - 5).float()


def program(gpu: Any, what: str, block: int) -> Any:
    """One composition on N·block² elements; returns what this rank ends with. Only messages are recorded."""
    import torch

    comm, n = gpu.comm, gpu.size
    with gpu.unrecorded():
        x, w = whole(gpu.rank, n * block * block), whole(n, n * block * block)
        columns = x.view(block, n, block).permute(1, 2, 0).contiguous()  # of a row of blocks, each block transposed
        out = torch.zeros_like(columns)
    if what == "all-reduce":
        comm.all_reduce(x, algorithm="ring")
    elif what == "root":
        comm.reduce(x, dst=0, algorithm="tree")
        comm.scatter(x, src=0, algorithm="tree")
    elif what == "transpose":
        comm.all_to_all(columns, out)
    else:
        comm.reduce_scatter(x, algorithm="ring")
        with gpu.unrecorded():  # ZeRO: each rank updates its shard with its chunk of the summed gradient
            comm.chunk(w).sub_(RATE * comm.chunk(x))
        if what != "scatter":
            comm.all_gather(x if what == "halves" else w, algorithm="ring")
    with gpu.unrecorded():
        rows = out.permute(1, 0, 2).reshape(block, -1)  # of the transposed matrix
        return {"all-reduce": x, "halves": x, "transpose": rows, "zero": w}.get(what, comm.chunk(x)).clone()


def digits(gpu: Any) -> list[Any]:
    """The same collectives on numbers in which digit k is chunk + 1 where rank k has contributed."""
    import torch

    n, mine = gpu.size, torch.arange(gpu.size) == gpu.rank
    start = torch.arange(1, n + 1) * 10**gpu.rank
    alone = torch.where(mine, start, 0)
    scattered, gathered, reduced, out = start.clone(), alone.clone(), start.clone(), torch.zeros_like(start)
    gpu.comm.reduce_scatter(scattered)
    gpu.comm.all_gather(gathered)
    gpu.comm.all_reduce(reduced)
    gpu.comm.all_to_all(start, out)
    stages = [start, torch.where(mine, scattered, 0), reduced, alone, gathered, out]  # reduce-scatter leaves scratch in other chunks
    return [[[(r, int(d) - 1) for r, d in enumerate(str(v)[::-1]) if d != "0"] for v in stage.tolist()] for stage in stages]


# fmt: off
@lesson(
    "C4",
    title=("Collective algebra", "集合通信代数"),
    topic=("communication", "通信"),
    question=("Which two collectives make an all-reduce, and is reduce-scatter a reduce and then a scatter?", "哪两个集合通信组成 all-reduce？reduce-scatter 就是先 reduce 再 scatter 吗？"),
    formula=Formula("Eq 10", "reduce-scatter, all-gather, all-to-all: (N−1)/N·S sent per rank each; all-reduce = the first two", "X", "Patarasuk-Yuan 2009; derivation"),
    kills=("“Reduce-scatter is a reduce to a root and a scatter from it.” The result is the same; but then a few ports, the root's first, carry what a ring spreads over all.",
           "“reduce-scatter 就是先归约到根、再从根散发。”结果相同；但少数端口（首先是根的）承担了环本来分摊给所有人的量。"),
    card=Card(
        ("Build all-reduce and a ZeRO step from primitives.", "用基本集合通信搭出 all-reduce 和一步 ZeRO。"),
        ("All-reduce is a reduce-scatter and an all-gather. ZeRO puts the optimizer between the two: the same bytes, and each rank updates 1/N.",
         "all-reduce 就是 reduce-scatter 加 all-gather。ZeRO 把优化器放在两者之间：字节相同，每个 rank 只更新 1/N。"),
        ("Reduce-scatter leaves rank r with chunk r of the sum: (N−1)/N·S sent. All-gather hands chunks round: the same again. One after the other they are the "
         "all-reduce, bit for bit. ZeRO updates the owned shard in between and gathers weights in place of gradients. All-to-all sends chunk j to rank j: transposing a "
         "matrix of row blocks, or moving tokens to experts. Reduce and scatter over a root give the same result, with S·log₂N into the root's port.",
         "reduce-scatter 让 rank r 得到和的第 r 块：发送 (N−1)/N·S。all-gather 把各块传遍：再发一遍。两者相接就是 all-reduce，逐位相同。ZeRO 在中间更新自己的分片，"
         "然后聚集的是权重而不是梯度。all-to-all 把第 j 块发给 rank j：转置按行分块的矩阵，或把 token 送到专家。经过根的 reduce 加 scatter 结果相同，但根的端口要收 S·log₂N。"),
        (("Which collective is the transpose of all-gather?", "all-gather 的转置是哪个集合通信？"), ("Where do MoE and Ulysses use all-to-all?", "MoE 与 Ulysses 在哪里用到 all-to-all？")),
    ),
)
def collective_algebra(lab: Lab, gpus: int = 8, block: int = 200) -> None:
    """Six compositions of collectives run on whole-number data, where equal means equal in every bit."""
    import torch

    from glasscluster.sim.ranks.collectives import THEORY
    from glasscluster.sim.time.hardware import hardware
    from glasscluster.visualize.figures.cells import blocks_figure
    from glasscluster.visualize.figures.plots import bars

    runs = {what: lab.run(what, title, program, what, block, gpus=gpus) for what, title in TITLES.items()}
    got, sent = {what: torch.stack(run.results) for what, run in runs.items()}, {what: run.graph.bytes_sent() for what, run in runs.items()}
    size, link = 4 * gpus * block * block, hardware(lab.hardware).link(0, 1)
    matrix = torch.cat([whole(r, gpus * block * block).view(block, -1) for r in range(gpus)])
    pairs = {"all-reduce and its two halves": (got["all-reduce"], got["halves"]),
             "reduce-scatter and a detour over rank 0": (got["scatter"], got["root"]),
             "all-to-all and torch's transpose": (got["transpose"].view(-1, gpus * block), matrix.T),
             "ZeRO step and full update": (got["zero"], whole(gpus, gpus * block * block) - RATE * got["all-reduce"])}
    for pair, (one, other) in pairs.items():
        lab.check(f"elements that differ: {pair}", 0, int((one != other).sum()), "definition", unit="elements")
    half = {"reduce-scatter": sent["scatter"], "all-gather": [a - b for a, b in zip(sent["halves"], sent["scatter"], strict=True)], "all-to-all": sent["transpose"]}
    whole_ones = {"all-reduce": sent["all-reduce"], "reduce-scatter and all-gather": sent["halves"], "a ZeRO step": sent["zero"]}
    for parts, each in ((1, half), (2, whole_ones)):
        for what, by_rank in each.items():
            lab.check(f"sent by each rank in {what}", parts * (gpus - 1) * size // gpus, by_rank[0], "Eq 10")
            lab.check(f"ranks that sent something else in {what}", 0, sum(b != by_rank[0] for b in by_rank), "Eq 10", unit="ranks")
    port = {what: [int(g.bytes[(g.rank == r) & (g.peer >= 0)].sum()) for r in range(gpus)] for what in ("scatter", "root") for g in [runs[what].graph]}
    lab.check("received by rank 0 on the detour", (gpus - 1).bit_length() * size, port["root"][0] - sent["root"][0], "binomial tree")
    spent = {what: run.timeline.makespan for what, run in runs.items()}
    added = size / hardware(lab.hardware).gpu.reduce_rate  # additions, where they take time
    for what, name, algorithm, adds in (("scatter", "a ring's reduce-scatter", "ring", (gpus - 1) / gpus), ("root", "the detour over rank 0", "tree", (gpus - 1).bit_length())):
        seconds = THEORY[algorithm]("reduce_scatter", gpus, size, link).time_s
        lab.check(f"time of {name}", seconds and seconds + adds * added, None, "Eq 8, Eq 10", simulated=spent[what], unit="s", match="virtual", tolerance=1e-9)
    ratio = spent["root"] / spent["scatter"]
    lab.ask(f"{gpus} GPUs, S = {size:,} bytes. Reducing to one GPU and scattering from it takes how many times as long as a ring's reduce-scatter?",
            f"{gpus} 块 GPU，S = {size:,} 字节。先归约到一块 GPU 再散发，用时是环形 reduce-scatter 的几倍？", ratio, "×")
    seen = lab.cluster(PICTURED).run(digits).results
    stages = {"en": ("before", "after reduce-scatter", "after all-reduce", "before all-gather", "after all-gather", "after all-to-all"),
              "zh": ("之前", "reduce-scatter 之后", "all-reduce 之后", "all-gather 之前", "all-gather 之后", "all-to-all 之后")}
    lab.figure(("Who is in which block: letter = rank, number = chunk, Σ = sum of all, grey = scratch", "每块里有谁：字母 = rank，数字 = 块，Σ = 全部之和，灰色 = 暂存"),
               lambda lang: blocks_figure(stages[lang], [list(table) for table in zip(*seen, strict=True)], {"en": "chunk", "zh": "块"}[lang], "rank"))
    ways = {"en": ("ring", "over rank 0", "through the port (S)"), "zh": ("环", "经过 rank 0", "端口流量（S）")}
    lab.figure(("A reduce-scatter in two ways: what passes each rank's port, in and out", "reduce-scatter 的两种做法：每个 rank 端口的收发之和"),
               lambda lang: bars([f"rank {r}" for r in range(gpus)], {ways[lang][k]: [b / size for b in port[w]] for k, w in enumerate(port)}, ways[lang][2]))
    a, b, c = sent["all-reduce"][0], half["reduce-scatter"][0], half["all-gather"][0]
    lab.tell(f"An all-reduce sends {a:,} bytes a rank; a reduce-scatter and an all-gather send {b:,} and {c:,}, and no bit of the result differs.",
             f"all-reduce 每个 rank 发送 {a:,} 字节；reduce-scatter 与 all-gather 分别发送 {b:,} 与 {c:,} 字节，结果逐位相同。",
             "tab=network&run=halves")
    lab.tell(f"With the optimizer between the halves it is a ZeRO step: {sent['zero'][0]:,} bytes a rank, and the weights of an all-reduce with a full update.",
             f"把优化器放在两半之间就是一步 ZeRO：每个 rank {sent['zero'][0]:,} 字节，权重与 all-reduce 加完整更新逐位相同。",
             "tab=timeline&run=zero")
    lab.tell(f"An all-to-all transposes a matrix of {gpus * block} rows with {sent['transpose'][0]:,} bytes a rank.",
             f"一次 all-to-all 转置 {gpus * block} 行的矩阵，每个 rank {sent['transpose'][0]:,} 字节。", "tab=network&run=transpose")
    lab.tell(f"Over rank 0 a reduce-scatter takes {spent['root'] * 1e6:.4g} µs instead of {spent['scatter'] * 1e6:.4g}: {port['root'][0] / size:.4g} S pass its port, {port['scatter'][0] / size:.4g} S a ring's.",
             f"经过 rank 0 的 reduce-scatter 要 {spent['root'] * 1e6:.4g} µs 而不是 {spent['scatter'] * 1e6:.4g} µs：它的端口通过 {port['root'][0] / size:.4g} S，环上每个端口 {port['scatter'][0] / size:.4g} S。",
             "tab=timeline&run=root")
    lab.conclude(f"All-reduce is reduce-scatter and all-gather, bit for bit; a detour over a root takes {ratio:.3g} times as long.",
                 f"all-reduce 就是 reduce-scatter 加 all-gather，逐位相同；绕道根用时 {ratio:.3g} 倍。")
    lab.explain("In a ring every port moves 1/N of the buffer in every step; over a root whole buffers queue at a few ports.",
                "环的每一步，每个端口都移动缓冲区的 1/N；经过根时，整个缓冲区在少数端口排队。",
                ("Reduce-scatter and all-gather send (N−1)/N·S each; together they are the all-reduce.", "reduce-scatter 与 all-gather 各发送 (N−1)/N·S，合起来就是 all-reduce。"),
                ("The same result does not mean the same cost: the ports near the root make the difference.", "结果相同不等于代价相同：差别在靠近根的端口。"))
    lab.own_number(f"{ratio:.3g}× for the detour over a root on {gpus} GPUs.", f"{gpus} 块 GPU 上绕道根：{ratio:.3g} 倍。")
