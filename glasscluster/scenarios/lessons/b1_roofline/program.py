"""B1: eight operations on the roofline: which wait for arithmetic, which for memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from glasscluster.model.flash_attention import flash_attention
from glasscluster.model.layer_norm import layer_norm
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.recording.events import COMPUTE
from glasscluster.sim.time.hardware import hardware
from glasscluster.visualize.figures.roofline import Dot, roofline_figure

OPERATIONS = {
    "square matmul": "方阵乘",
    "thin matmul": "瘦矩阵乘",
    "matrix-vector product": "矩阵-向量乘",
    "softmax": "softmax",
    "layer norm": "层归一化",
    "GELU": "GELU",
    "addition": "加法",
    "flash attention": "flash 注意力",
}
MACHINES = ("dgx-a100-80gb", "pcie-4090", "classroom")


def program(gpu: Any, n: int, d: int) -> None:
    """Each operation once, in fp32, in a micro-batch of its own so that it is told apart."""

    with gpu.unrecorded():
        draw = torch.Generator().manual_seed(0)
        a, b = torch.randn(2, n, n, generator=draw)
        thin, vector, weight, bias = (
            torch.randn(n, 8, generator=draw),
            torch.randn(n, 1, generator=draw),
            torch.ones(n),
            torch.zeros(n),
        )
        q, k, v = torch.randn(3, 1, 4, n, d, generator=draw)
    work = (
        lambda: a @ b,
        lambda: a @ thin,
        lambda: a @ vector,
        lambda: a.softmax(-1),
        lambda: layer_norm(a, weight, bias, 1e-5),
        lambda: torch.nn.functional.gelu(a),
        lambda: a + b,
        lambda: flash_attention(q, k, v, False),
    )
    for number, do in enumerate(work):
        with gpu.region("forward", layer=0, micro_batch=number):
            do()


def by_hand(n: int, d: int) -> dict[str, tuple[int, int]]:
    """FLOPs of matrix products, and fp32 numbers through memory: operands read once, results written once; attention by F7."""
    return dict(
        zip(
            OPERATIONS,
            (
                (2 * n**3, 3 * n * n),
                (16 * n * n, n * n + 16 * n),
                (2 * n * n, n * n + 2 * n),
                (0, 2 * n * n),
                (0, 2 * n * n + 4 * n),
                (0, 2 * n * n),
                (0, 3 * n * n),
                (16 * n * n * d, 4 * (2 * n * d + 2 * -(-n // 128) * n * d + n)),
            ),
            strict=True,
        )
    )


@lesson(hardware="dgx-h100")
def roofline(lab: Lab, n: int = 512, d: int = 64) -> None:
    """Eight operations of a transformer run once; their FLOPs and bytes are counted, and replayed on GPUs with other ridges."""

    run = lab.run("operations", lab.text("eight_operations"), program, n, d, gpus=1, also_on=MACHINES)
    graph, hand = run.graph, by_hand(n, d)
    rows = {
        name: np.flatnonzero((graph.kind == COMPUTE) & (graph.micro_batch == i))
        for i, name in enumerate(OPERATIONS)
    }
    spots = [
        Dot(name, int(graph.flops[mine].sum()), int(graph.bytes[mine].sum()), _seconds(run.timeline, mine))
        for name, mine in rows.items()
    ]
    for spot in spots:
        lab.row(
            "flops_matrix_products",
            hand[spot.name][0],
            spot.flops,
            "a multiplication and an addition each",
            unit="FLOPs",
            operation=spot.name,
        )
        lab.row(
            "bytes_through_memory",
            4 * hand[spot.name][1],
            spot.bytes,
            "operands once, results once; F7",
            operation=spot.name,
        )
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
                    lab.row(
                        "flop_reached",
                        reached,
                        None,
                        "F31",
                        simulated=spot.flops / spent,
                        unit="FLOP/s",
                        match="virtual",
                        tolerance=1e-6,
                        operation=spot.name,
                    )
        lab.row(
            "largest_error_roofline_times",
            0,
            worst,
            "F31: max(FLOPs/peak, bytes/bandwidth)",
            unit="relative",
            tolerance=1e-6,
            machine=machine,
        )
    h100 = hardware("dgx-h100").gpu
    ridge = h100.peak("bf16") / h100.memory_bandwidth
    lab.row("ridge_h100_bf16", 295, round(ridge), "F31: 989 TFLOP/s over 3.35 TB/s", unit="FLOPs a byte")
    intensity = {s.name: s.flops / s.bytes for s in spots}
    lab.ask("number", intensity["square matmul"], "FLOPs a byte", n=n)

    def drawn(lang: str) -> Any:
        named = [
            dot._replace(name=OPERATIONS[dot.name] if lang == "zh" else dot.name)
            for dot in spots
            if dot.flops
        ]
        return roofline_figure(hardware(lab.hardware).gpu, "fp32", {dot.name: [dot] for dot in named}, lang)

    lab.figure(lab.text("where_four_them_stand", hardware=lab.hardware), drawn)
    lab.tell(
        "square_matmul_does_flops",
        view="tab=timeline&run=operations",
        square=intensity["square matmul"],
        vector=intensity["matrix-vector product"],
    )
    lab.tell(
        "fp32_operations_wait_arithmetic",
        view="tab=timeline&run=operations",
        hardware=lab.hardware,
        bound=len(compute),
        operations=len(OPERATIONS),
    )
    lab.tell("bf16_h100_ridge_lies", view="tab=ledger", ridge=ridge)
    lab.tell("choose_another_gpu_timeline", view="tab=timeline&run=operations")
    lab.conclude(bound=len(compute), operations=len(OPERATIONS), hardware=lab.hardware)
    lab.explain()
    lab.own_number(square=intensity["square matmul"], n=n)


def _seconds(line: Any, rows: Any) -> float:
    """Time of some operations on a timeline, without their launches."""
    return float((line.end[rows] - line.start[rows]).sum()) - len(rows) * line.hardware.gpu.launch_s
