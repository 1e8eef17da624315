"""`glass plan`: the quickest layout of a model on some GPUs."""

from __future__ import annotations

from typing import Any

from glasscluster.base.quantities import written_time
from glasscluster.base.text import counted
from glasscluster.commands.bodies import body
from glasscluster.commands.console import emit, progress
from glasscluster.commands.options import command
from glasscluster.scenarios.planning.launch import written
from glasscluster.scenarios.requests.plan import PlannerRequest


@command(PlannerRequest)
def plan(request: PlannerRequest, as_json: bool) -> int:
    """The quickest layouts of a model on some GPUs, and why the others are not.

    Every layout that the rules admit is bounded from below; those with the lowest bounds are replayed, until
    no bound is under the best. A plan option that is given stays as it is; precision is bf16 where the GPU
    has it.
    """
    with progress() as say:
        content = body("plan")(request, say)
    if as_json:
        emit(content)
    else:
        show(content)
    return 0


def show(content: dict[str, Any]) -> None:
    """The best layouts with what to type, then the others with their reasons."""
    print(
        f"{counted(content['considered'], 'legal layout')} of {counted(content['gpus'], 'GPU')} on "
        f"{content['hardware']}, {content['fitting']:,} may fit, {content['replayed']:,} replayed"
    )
    if not content["best"]:
        print("none of them fits")
    for number, best in enumerate(content["best"], 1):
        print(
            f"{number}. {written_time(best['iteration_time_s'])} a step (virtual), MFU {best['mfu']:.1%}, "
            f"{best['memory_margin_gib']:.1f} of {best['memory_capacity_gib']:.1f} GiB left: "
            f"{written(best['plan'])}"
        )
    for best in content["best"][:1]:
        for name in ("torchrun", "megatron", "torchtitan"):
            said = best[name] or "has no such layout"
            print(f"   {said}" if name == "torchrun" else f"   {name}: {said}")
    for other in content["why_not"]:
        print(f"  {written(other['plan'])}: {other['reason']['en']}")
    if content["report"]:
        print(f"report: {content['report']}")
