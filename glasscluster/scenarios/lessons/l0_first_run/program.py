"""L0: one training step on four GPUs, looked at."""

from __future__ import annotations

from glasscluster.base.breakdown import entry_of
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson


@lesson
def first_run(lab: Lab, gpus: int = 4, steps: int = 3) -> None:
    """Four ranks train a tiny GPT on real text with data parallelism; the last step is drawn."""
    trained = lab.train(
        "dp", lab.text("data_parallel"), steps=steps, dp=gpus, bucket=64 * 1024, global_batch=2 * gpus
    )
    line = trained.timeline
    compute = line.graph.lane == 0
    busy = float((line.end - line.start)[compute].sum()) / (line.makespan * gpus)
    gap = max(line.all_gaps, key=lambda g: g.length)
    lab.ask("busy_percent", 100 * busy, "%")
    lab.row(
        "largest_gradient_difference",
        0,
        trained.comparison["max_rel_grad_diff"],
        "Eq 13",
        unit="relative",
        tolerance=1e-10,
    )
    lab.tell(
        "average_gpu",
        view="tab=timeline",
        gpus=gpus,
        steps=steps,
        busy=busy,
        step_ms=line.makespan * 1e3,
    )
    lab.tell(
        "longest_gap_on_axis" if gap.axis and not gap.in_flight else "longest_gap",
        view="tab=timeline",
        rank=gap.rank,
        length_us=gap.length * 1e6,
        cause=entry_of(gap.entry).name,
        axis=gap.axis,
    )
    lab.conclude(busy=busy)
    lab.explain()
    lab.own_number(busy=busy, gpus=gpus)
