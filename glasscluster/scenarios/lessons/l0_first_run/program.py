"""L0: one training step on four GPUs, looked at."""

from __future__ import annotations

from typing import Any

import numpy as np

from glasscluster.base.breakdown import entry_of
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.recording.events import COMPUTE, SEND


@lesson
def first_run(lab: Lab, gpus: int = 4, steps: int = 3) -> None:
    """Four ranks train a tiny GPT on real text with data parallelism; the last step is drawn."""
    trained = lab.train(
        "dp", lab.text("data_parallel"), steps=steps, dp=gpus, bucket=64 * 1024, global_batch=2 * gpus
    )
    line, difference = trained.timeline, trained.comparison["max_rel_grad_diff"]
    compute = line.graph.lane == 0
    busy = float((line.end - line.start)[compute].sum()) / (line.makespan * gpus)
    lab.row("largest_gradient_difference", 0, difference, "Eq 13", unit="relative", tolerance=1e-10)
    expected = roofline_seconds(line) / (line.makespan * gpus)
    source = "Eq 31: max(FLOPs/peak, bytes/bandwidth)"
    lab.row(
        "busy", expected, None, source, simulated=busy, unit="of the step", match="virtual", tolerance=1e-9
    )

    sends = (line.graph.kind == SEND) & (line.graph.rank == 0)
    link, nbytes, messages = line.hardware.intra, int(line.graph.bytes[sends].sum()), int(sends.sum())
    spent: dict[str, Any] = {
        "compute": 1e3 * busy * line.makespan,
        "latencies": 1e3 * messages * link.alpha,
        "bytes": 1e3 * nbytes / link.bandwidth,
    }
    lab.ask(
        "busy_percent",
        100 * busy,
        compute=spent["compute"],
        messages=messages,
        kilobytes=nbytes / 1e3,
        gpus=gpus,
        latency=1e6 * link.alpha,
        bandwidth=link.bandwidth / 1e9,
    )
    step_ms = line.makespan * 1e3
    lab.tell("average_gpu", view="tab=timeline", gpus=gpus, steps=steps, busy=busy, step_ms=step_ms)
    lab.tell("messages", view="tab=network", messages=messages, **spent)
    gap = max(line.all_gaps, key=lambda g: g.length)
    lab.tell(
        "longest_gap_on_axis" if gap.axis and not gap.in_flight else "longest_gap",
        view="tab=timeline",
        rank=gap.rank,
        length_us=gap.length * 1e6,
        cause=entry_of(gap.entry).name,
        axis=gap.axis,
    )
    lab.tell("as_one_device", view="tab=checks", difference=difference)
    lab.conclude(busy=busy)
    lab.explain(**spent)
    lab.card(compute=spent["compute"], wire=spent["latencies"] + spent["bytes"], step=step_ms)
    lab.own_number(busy=busy, gpus=gpus)


def roofline_seconds(line: Any) -> float:
    """Seconds that all GPUs compute, by hand from FLOPs and bytes of each operation."""
    graph, gpu = line.graph, line.hardware.gpu
    rows = graph.kind == COMPUTE
    floor = np.maximum(graph.flops[rows] / gpu.peak("fp32"), graph.bytes[rows] / gpu.memory_bandwidth)
    return float(floor.sum()) + int(rows.sum()) * gpu.launch_s
