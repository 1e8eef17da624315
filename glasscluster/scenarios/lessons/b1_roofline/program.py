"""B1: eight operations on the roofline: which are bound by arithmetic, which by memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from glasscluster.model.kernels.flash.operators import flash_attention
from glasscluster.model.kernels.layer_norm import layer_norm
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.recording.events import COMPUTE
from glasscluster.sim.time.hardware import hardware
from glasscluster.visualize.figures.roofline import Dot, roofline_figure

OPERATIONS = (
    "square_matmul",
    "thin_matmul",
    "matrix_vector",
    "softmax",
    "layer_norm",
    "gelu",
    "addition",
    "flash_attention",
)
MACHINES = ("dgx-a100-80gb", "pcie-4090", "classroom")


def program(gpu: Any, n: int, d: int) -> None:
    """Run each operation once in fp32, each in a micro-batch of its own, which identifies it in the
    recording.
    """

    with gpu.unrecorded():
        draw = torch.Generator().manual_seed(0)
        a, b = torch.randn(2, n, n, generator=draw)
        thin, vector = torch.randn(n, 8, generator=draw), torch.randn(n, 1, generator=draw)
        weight, bias = torch.ones(n), torch.zeros(n)
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
    """The expected FLOPs of matrix products, and fp32 numbers through memory: operands read once, results
    written once; attention by Eq 7.
    """
    costs = (
        (2 * n**3, 3 * n * n),
        (16 * n * n, n * n + 16 * n),
        (2 * n * n, n * n + 2 * n),
        (0, 2 * n * n),
        (0, 2 * n * n + 4 * n),
        (0, 2 * n * n),
        (0, 3 * n * n),
        (16 * n * n * d, 4 * (2 * n * d + 2 * -(-n // 128) * n * d + n)),
    )
    return dict(zip(OPERATIONS, costs, strict=True))


ONCE = "operands once, results once; Eq 7"
READS = {"flash_attention": "Q and O once, K and V once a block of queries; Eq 7"}


@lesson(hardware="dgx-h100")
def roofline(lab: Lab, n: int = 512, d: int = 64) -> None:
    """Eight operations of a transformer run once; their FLOPs and bytes are counted, and replayed on GPUs
    with other ridges.
    """
    run = lab.run("operations", lab.text("eight_operations"), program, n, d, gpus=1, also_on=MACHINES)
    spots = {name: spot(run, i, name) for i, name in enumerate(OPERATIONS)}
    for name, (flops, numbers) in by_hand(n, d).items():
        operation, counted = lab.text(name), spots[name]
        source = "a multiplication and an addition each"
        lab.row("flops", flops, counted.flops, source, unit="FLOPs", operation=operation)
        lab.row("bytes", 4 * numbers, counted.bytes, READS.get(name, ONCE), operation=operation)

    here = hardware(lab.hardware).gpu
    for name, counted in spots.items():
        if counted.flops:
            check_rate(lab, name, counted)
    for machine in dict.fromkeys((lab.hardware, *MACHINES)):
        worst = error_of_times(run, spots, machine)
        source = "Eq 31: max(FLOPs/peak, bytes/bandwidth)"
        lab.row("error_of_times", 0, worst, source, unit="relative", tolerance=1e-6, machine=machine)
    h100 = hardware("dgx-h100").gpu
    ridge = h100.peak("bf16") / h100.memory_bandwidth
    lab.row("ridge", 295, round(ridge), "Eq 31: 989 TFLOP/s over 3.35 TB/s", unit="FLOPs a byte")

    square = spots["square_matmul"].flops / spots["square_matmul"].bytes
    vector = spots["matrix_vector"].flops / spots["matrix_vector"].bytes
    lab.ask("intensity", square, n=n)

    def drawn(lang: str) -> Any:
        named = {lab.word(name, lang): dot for name, dot in spots.items() if dot.flops}
        dots = {name: [dot._replace(name=name)] for name, dot in named.items()}
        return roofline_figure(here, "fp32", dots, lang)

    lab.figure("where_they_stand", drawn, hardware=lab.hardware)
    lab.tell("two_products", view="tab=timeline&run=operations", square=square, vector=vector)
    bound = sum(dot.flops / here.peak("fp32") >= dot.bytes / here.memory_bandwidth for dot in spots.values())
    counts: dict[str, Any] = {"bound": bound, "operations": len(OPERATIONS), "hardware": lab.hardware}
    counts["own_ridge"] = here.peak("fp32") / here.memory_bandwidth
    lab.tell("bound", view="tab=timeline&run=operations", **counts)
    lab.tell("ridge", view="tab=ledger", ridge=ridge)
    lab.tell("another_gpu", view="tab=timeline&run=operations")
    lab.conclude(**counts)
    lab.explain()
    crosses = 3 * ridge  # n where 2n / 3w is the ridge, w = 2
    lab.card(waiting=len(OPERATIONS) - bound, operations=len(OPERATIONS), ridge=ridge, crosses=crosses)
    lab.own_number(square=square, n=n)


def rows_of(run: Any, number: int) -> Any:
    """The rows of the graph that were recorded in one micro-batch."""
    return np.flatnonzero((run.graph.kind == COMPUTE) & (run.graph.micro_batch == number))


def spot(run: Any, number: int, name: str) -> Dot:
    """What one operation cost: FLOPs, bytes, seconds."""
    rows = rows_of(run, number)
    return Dot(
        name, int(run.graph.flops[rows].sum()), int(run.graph.bytes[rows].sum()), seconds(run.timeline, rows)
    )


def seconds(line: Any, rows: Any) -> float:
    """The time of some operations on a timeline, without their launches."""
    return float((line.end[rows] - line.start[rows]).sum()) - len(rows) * line.hardware.gpu.launch_s


def check_rate(lab: Lab, name: str, dot: Dot) -> None:
    """Check the FLOP/s reached on the lab's hardware against the roofline at the operation's intensity."""
    gpu = hardware(lab.hardware).gpu
    roof = min(gpu.peak("fp32"), dot.flops / dot.bytes * gpu.memory_bandwidth)
    reached = dot.flops / dot.seconds
    virtual: dict[str, Any] = {"unit": "FLOP/s", "match": "virtual", "tolerance": 1e-6}
    lab.row("rate", roof, None, "Eq 31", simulated=reached, **virtual, operation=lab.text(name))


def error_of_times(run: Any, spots: dict[str, Dot], machine: str) -> float:
    """The largest relative difference between an operation's time and the roofline's, on some hardware."""
    line, gpu = run.replay(machine), hardware(machine).gpu
    worst = 0.0
    for number, dot in enumerate(spots.values()):
        floor = max(dot.flops / gpu.peak("fp32"), dot.bytes / gpu.memory_bandwidth)
        worst = max(worst, abs(seconds(line, rows_of(run, number)) - floor) / floor)
    return worst
