"""`glass schedule`: a pipeline schedule as data."""

from __future__ import annotations

from glasscluster.commands.bodies import body
from glasscluster.commands.console import emit
from glasscluster.commands.options import command
from glasscluster.scenarios.requests.stored import ScheduleRequest


@command(ScheduleRequest)
def schedule(request: ScheduleRequest, as_json: bool) -> int:
    """A pipeline schedule as data: its actions, makespan, bubbles and live micro-batches.
    What it prints is a file that `--validate` and `glass train --schedule` read.
    """
    content = body("schedule")(request)
    if request.out is not None:
        content["out"] = body("schedule out")(request, content)
    if as_json:
        emit(content)
        return 0
    for number, actions in enumerate(content["ranks"]):
        print(f"rank {number}: {' '.join(actions)}")
    for line in body("schedule summary")(
        content
    ):  # as remarks, so that what is printed is a file that --schedule reads
        print(f"# {line}")
    if request.out is not None:
        print(f"# written: {request.out}")
    return 0
