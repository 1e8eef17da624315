"""Pipelines of equal stages that really run: each stage one matmul, so F, I and W take the same time on the
clock.

    y = x w          F: x w          I: dy w^T          W: x^T dy          B = I and W

The executor is the one that trains the GPT. On links that cost nothing, or a fixed time in flight, what the
clock says of the run is what a closed form says of its schedule, to the last digit. Real stages are lessons
E4 and E11.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from glasscluster.sim.time.hardware import Hardware, hardware
from glasscluster.strategies.pipeline.pipeline_parallel import PipelineExecutor
from glasscluster.strategies.pipeline.schedules import make_schedule
from glasscluster.strategies.pipeline.weight_gradients import WeightGradients
from glasscluster.visualize.figures.pipelines import bars_of

if TYPE_CHECKING:
    from glasscluster.strategies.pipeline.schedules.base import Schedule

N = 32  # an activation is N x N, fp32
FREE = 1e30  # bytes per second: as good as no cost, and a number that a page can hold


def machine(f: float = 1e-3, hop: float = 0.0, n: int = N) -> Hardware:
    """Classroom with the peak at which F, I and W take `f` seconds each, memory that costs nothing, and `hop`
    seconds in flight.
    """
    room = hardware("classroom")
    link = replace(room.intra, name=f"{hop * 1e3:g} ms a hop", bandwidth=FREE, latency_s=hop, overhead_s=0.0)
    gpu = replace(room.gpu, memory_bandwidth=FREE, peak_flops={"fp32": 2 * n**3 / f})
    return replace(room, name=f"equal stages, {hop * 1e3:g} ms a hop", gpu=gpu, intra=link, inter=link)


def stages(gpu: Any, name: str, m: int, v: int = 1, n: int = N) -> dict[str, Any]:
    """Run one step of a schedule on a rank; return its weights' gradients (sums, by stage) and the most
    chunks it had live.

    All weights and inputs are ones, and the loss is the sum of the last stage's output: with S stages, every
    element of every gradient is m n^S, exactly.
    """
    import torch

    mesh = gpu.make_mesh({"pp": gpu.size})
    schedule = make_schedule(name, gpu.size, m, v)
    with gpu.unrecorded():
        weight_gradients = WeightGradients(gpu)
        mine = {s: _stage(n, weight_gradients) for s in schedule.stages_of(gpu.rank)}
        inputs = [torch.ones(n, n, requires_grad=True) for _ in range(m)]
        loss, seed = torch.zeros(n, n), torch.ones(n, n)
    executor = PipelineExecutor(
        gpu,
        mesh["pp"],
        schedule,
        mine,
        (n, n),
        torch.float32,
        dict.fromkeys(mine, Nobody()),
        weight_gradients,
    )
    executor.run(inputs, [None] * m, loss, seed)  # type: ignore[list-item]
    return {"gradients": {s: stage.w.grad for s, stage in mine.items()}, "live": executor.most_live}


def as_it_runs(schedule: Schedule) -> Schedule:
    """The schedule as a rank with one compute lane runs it: a slot of two operations is its F, then its B,
    and the output of F is sent before B begins.
    """
    return replace(schedule, together=frozenset())


class Nobody:
    """Stands in for gradient reduction: there is one copy of each stage, so nothing is sent."""

    def backward_begins(self, last: bool, parameters_used: bool = True) -> None:
        """Gather nothing."""

    def backward_ends(self) -> None:
        """Reduce nothing."""

    def input_gradient_begins(self) -> None:
        """Gather nothing."""

    def input_gradient_ends(self) -> None:
        """Free nothing."""

    def gradient_ready(self, parameter: Any) -> None:
        """Reduce nothing."""


def _stage(n: int, weight_gradients: Any) -> Any:
    """A stage of one matmul whose weight gradient can be deferred."""
    import torch
    from torch import nn

    class Matmul(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, w: Any) -> Any:
            ctx.save_for_backward(x, w)
            ctx.w = w
            return x @ w

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:  # type: ignore[override]
            x, w = ctx.saved_tensors
            is_deferred = weight_gradients.defer(ctx.w, lambda: x.t() @ dy)
            return dy @ w.t(), None if is_deferred else x.t() @ dy

    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(n, n))
            self.w.grad = torch.zeros(n, n)

        def forward(self, x: Any, _target: Any = None) -> Any:
            return Matmul.apply(x, self.w)

    return Stage()


def run_schedule(
    lab: Any, key: str, title: Any, name: str, p: int, m: int, v: int = 1, f: float = 1e-3, hop: float = 0.0
) -> Any:
    """Run a schedule in a lab; a rank's share of F takes f seconds (f/v a chunk).

    Returns (run, schedule, its metrics, its bars).
    """
    schedule = make_schedule(name, p, m, v)
    run = lab.run(key, title, stages, name, m, v, gpus=p, clock=machine(f / v, hop))
    if lab.leader:
        lab.entries[
            -1
        ].compared = False  # a chunk is as large as a stage here, so bytes of different v cannot be compared
    metrics = as_it_runs(schedule).validate(f / v, 2 * f / v, hop, f / v)
    return (
        run,
        schedule,
        metrics,
        bars_of(run.timeline, schedule.ranks, [schedule.stages_of(r) for r in range(p)]),
    )


def wrong_gradients(runs: Any) -> int:
    """How many elements of all ranks' gradients are not m n^S, over (run, schedule) pairs."""
    wrong = 0
    for run, schedule in runs:
        truth = float(schedule.micro_batches) * float(N) ** schedule.stages
        wrong += sum(int((g != truth).sum()) for result in run.results for g in result["gradients"].values())
    return wrong
