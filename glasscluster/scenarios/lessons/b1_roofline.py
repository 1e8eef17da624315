"""B1: eight operations on the roofline: which wait for arithmetic, which for memory."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson

OPERATIONS = {
    "square matmul": "方阵乘", "thin matmul": "瘦矩阵乘", "matrix-vector product": "矩阵-向量乘", "softmax": "softmax",
    "layer norm": "层归一化", "GELU": "GELU", "addition": "加法", "flash attention": "flash 注意力",
}  # fmt: skip
MACHINES = ("dgx-a100-80gb", "pcie-4090", "classroom")


# fmt: off
def program(gpu: Any, n: int, d: int) -> None:
    """Each operation once, in fp32, in a micro-batch of its own so that it is told apart."""
    import torch

    from glasscluster.model.kernels.flash.operators import flash_attention
    from glasscluster.model.kernels.layer_norm import layer_norm

    with gpu.unrecorded():
        draw = torch.Generator().manual_seed(0)
        a, b = torch.randn(2, n, n, generator=draw)
        thin, vector, weight, bias = torch.randn(n, 8, generator=draw), torch.randn(n, 1, generator=draw), torch.ones(n), torch.zeros(n)
        q, k, v = torch.randn(3, 1, 4, n, d, generator=draw)
    work = (lambda: a @ b, lambda: a @ thin, lambda: a @ vector, lambda: a.softmax(-1), lambda: layer_norm(a, weight, bias, 1e-5),
            lambda: torch.nn.functional.gelu(a), lambda: a + b, lambda: flash_attention(q, k, v, False))
    for number, do in enumerate(work):
        with gpu.region("forward", layer=0, micro_batch=number):
            do()


def by_hand(n: int, d: int) -> dict[str, tuple[int, int]]:
    """FLOPs of matrix products, and fp32 numbers through memory: operands read once, results written once; attention by Eq 7."""
    return dict(zip(OPERATIONS, (
        (2 * n**3, 3 * n * n), (16 * n * n, n * n + 16 * n), (2 * n * n, n * n + 2 * n), (0, 2 * n * n), (0, 2 * n * n + 4 * n),
        (0, 2 * n * n), (0, 3 * n * n), (16 * n * n * d, 4 * (2 * n * d + 2 * -(-n // 128) * n * d + n)),
    ), strict=True))


@lesson(
    "B1",
    title=("The roofline", "屋顶线模型"),
    topic=("one GPU", "单卡"),
    question=("Is this operation waiting for arithmetic or for memory?", "这个操作在等算力还是在等访存？"),
    formula=Formula("Eq 31", "FLOP/s reached = min(peak, I · bandwidth), I = FLOPs / bytes; the ridge lies at peak / bandwidth", "V", "Williams 2009"),
    kills=("“More TFLOPS is faster.” Left of the ridge an operation takes its bytes over the bandwidth, whatever the peak.", "“TFLOPS 越高越快。”在屋脊左侧，操作的用时是字节数除以带宽，与峰值无关。"),
    card=Card(
        ("What is the roofline, and where do a matmul, softmax and decode lie on it?", "什么是屋顶线？矩阵乘、softmax 和解码在哪里？"),
        ("Divide FLOPs by bytes. Above peak over bandwidth (295 for an H100 in bf16) arithmetic is the limit, below it memory. Big matmuls are above, all else is below.",
         "用 FLOPs 除以字节数。高于峰值除以带宽（H100 bf16 为 295）时受算力限制，低于它时受访存限制。大矩阵乘在上方，其余都在下方。"),
        ("A kernel takes at least FLOPs/peak and at least bytes/bandwidth; the larger is its floor. An n×n matmul of w-byte numbers has intensity 2n³/(3wn²) = 2n/(3w): in bf16 it crosses the H100's ridge at about n = 900. A matrix-vector product, which is what decode does, has 2/w: "
         "1 FLOP a byte in bf16, so about 295 sequences must share the weights before arithmetic counts. Elementwise operations and norms have about none: fuse them into what reads their input anyway. FlashAttention's gain is exactly this: the same FLOPs, fewer bytes, so it moves to the right. "
         "The roofline is a bound: latencies, launches and bad tiles put a kernel below it.",
         "内核用时至少为 FLOPs/峰值，也至少为 字节/带宽；较大者是下限。n×n 矩阵乘、每个数 w 字节时强度为 2n³/(3wn²) = 2n/(3w)：bf16 下约 n = 900 时越过 H100 的屋脊。解码做的矩阵-向量乘为 2/w："
         "bf16 下每字节 1 次运算，所以约需 295 条序列共用权重，算力才重要。逐元素操作与归一化几乎为零：应并入本来就要读其输入的内核。FlashAttention 的收益正在于此：FLOPs 相同、字节更少，于是右移。"
         "屋顶线是上界：延迟、启动和不好的分块会使内核低于它。"),
        (("At which batch does decode reach the ridge?", "批多大时解码到达屋脊？"), ("What does fusing two elementwise kernels change?", "融合两个逐元素内核改变了什么？")),
    ),
    hardware="dgx-h100",
)
def roofline(lab: Lab, n: int = 512, d: int = 64) -> None:
    """Eight operations of a transformer run once; their FLOPs and bytes are counted, and replayed on GPUs with other ridges."""
    import numpy as np

    from glasscluster.sim.recording.events import COMPUTE
    from glasscluster.sim.time.hardware import hardware
    from glasscluster.visualize.figures.roofline import Dot, roofline_figure

    run = lab.run("operations", ("Eight operations", "八个操作"), program, n, d, gpus=1, also_on=MACHINES)
    graph, hand = run.graph, by_hand(n, d)
    rows = {name: np.flatnonzero((graph.kind == COMPUTE) & (graph.micro_batch == i)) for i, name in enumerate(OPERATIONS)}
    spots = [Dot(name, int(graph.flops[mine].sum()), int(graph.bytes[mine].sum()), _seconds(run.timeline, mine)) for name, mine in rows.items()]
    for spot in spots:
        lab.check(f"{spot.name}: FLOPs of matrix products", hand[spot.name][0], spot.flops, "a multiplication and an addition each", unit="FLOPs")
        lab.check(f"{spot.name}: bytes through memory", 4 * hand[spot.name][1], spot.bytes, "operands once, results once; Eq 7")
    compute: list[str] = []
    for machine in dict.fromkeys((lab.hardware, *MACHINES)):
        line, gpu = run.replay(machine), hardware(machine).gpu
        peak, worst = gpu.peak("fp32"), 0.0
        for spot in spots:
            mine = rows[spot.name]
            spent = _seconds(line, mine)
            floor = max(spot.flops / peak, spot.bytes / gpu.memory_bandwidth)
            worst = max(worst, abs(spent - floor) / floor)
            if machine == lab.hardware:
                compute += [spot.name] if spot.flops / peak >= spot.bytes / gpu.memory_bandwidth else []
                if spot.flops:
                    reached = min(peak, spot.flops / spot.bytes * gpu.memory_bandwidth)
                    lab.check(f"{spot.name}: FLOP/s reached", reached, None, "Eq 31", simulated=spot.flops / spent, unit="FLOP/s", match="virtual", tolerance=1e-6)
        lab.check(f"largest error of the roofline's times on {machine}", 0, worst, "Eq 31: max(FLOPs/peak, bytes/bandwidth)", unit="relative", tolerance=1e-6)
    h100 = hardware("dgx-h100").gpu
    ridge = h100.peak("bf16") / h100.memory_bandwidth
    lab.check("ridge of an H100 in bf16", 295, round(ridge), "Eq 31: 989 TFLOP/s over 3.35 TB/s", unit="FLOPs a byte")
    intensity = {s.name: s.flops / s.bytes for s in spots}
    lab.ask(f"An fp32 matmul of {n} × {n} by {n} × {n}: how many FLOPs for each byte it moves?", f"fp32 的 {n} × {n} 乘 {n} × {n}：每搬一个字节做多少次运算？", intensity["square matmul"], "FLOPs a byte")

    def drawn(lang: str) -> Any:
        named = [dot._replace(name=OPERATIONS[dot.name] if lang == "zh" else dot.name) for dot in spots if dot.flops]
        return roofline_figure(hardware(lab.hardware).gpu, "fp32", {dot.name: [dot] for dot in named}, lang)

    lab.figure((f"Where four of them stand on {lab.hardware}, fp32 without tensor cores", f"其中四个操作在 {lab.hardware} 屋顶线上的位置（fp32，不用张量核）"), drawn)
    lab.tell(f"A square matmul does {intensity['square matmul']:.2f} FLOPs a byte, a matrix-vector product {intensity['matrix-vector product']:.2f}.",
             f"方阵乘每字节做 {intensity['square matmul']:.2f} 次运算，矩阵-向量乘 {intensity['matrix-vector product']:.2f} 次。", "tab=timeline&run=operations")
    lab.tell(f"On {lab.hardware} in fp32, {len(compute)} of {len(OPERATIONS)} operations wait for arithmetic, the others for memory.",
             f"在 {lab.hardware}（fp32）上，{len(OPERATIONS)} 个操作中有 {len(compute)} 个在等算力，其余在等访存。", "tab=timeline&run=operations")
    lab.tell(f"In bf16 an H100's ridge lies at {ridge:.0f} FLOPs a byte: decode, at about 1, is far to its left.", f"bf16 下 H100 的屋脊在每字节 {ridge:.0f} 次运算：解码约为 1，远在其左。", "tab=ledger")
    lab.tell("Choose another GPU in the timeline: the ridge moves, and with it what every operation waits for.", "在时间线里换一种 GPU：屋脊移动，各操作所等待的东西也随之改变。", "tab=timeline&run=operations")
    lab.conclude(f"{len(compute)} of {len(OPERATIONS)} operations are bound by arithmetic on {lab.hardware}, the rest by memory.", f"在 {lab.hardware} 上，{len(OPERATIONS)} 个操作中 {len(compute)} 个受算力限制，其余受访存限制。")
    lab.explain("Every operation takes the longer of its arithmetic and its traffic. Only products of large matrices use a byte often enough for arithmetic to be the longer.",
                "每个操作的用时取决于运算与访存中较长的一个。只有大矩阵乘对每个字节的使用次数足够多，使运算成为较长的那个。",
                ("Intensity is FLOPs over bytes; the ridge is peak over bandwidth.", "强度是 FLOPs 除以字节；屋脊是峰值除以带宽。"), ("Left of the ridge, only fewer bytes make it faster.", "在屋脊左侧，只有减少字节才会更快。"))
    lab.own_number(f"{intensity['square matmul']:.2f} FLOPs a byte for n = {n} in fp32.", f"n = {n}、fp32：每字节 {intensity['square matmul']:.2f} 次运算。")


def _seconds(line: Any, rows: Any) -> float:
    """Time of some operations on a timeline, without their launches."""
    return float((line.end[rows] - line.start[rows]).sum()) - len(rows) * line.hardware.gpu.launch_s
