"""`glass schedule`: a pipeline schedule as data."""

from __future__ import annotations

from glasscluster.base.breakdown import PAPERS
from glasscluster.commands.bodies import body
from glasscluster.commands.console import emit
from glasscluster.commands.options import command
from glasscluster.scenarios.requests.stored import ScheduleRequest


@command(ScheduleRequest)
def schedule(request: ScheduleRequest, as_json: bool) -> int:
    """A pipeline schedule as data: its actions, makespan, bubbles and live micro-batches."""
    content = body("schedule")(request)
    if as_json:
        emit(content)
        return 0
    for number, actions in enumerate(content["ranks"]):
        print(f"rank {number}: {' '.join(actions)}")
    said = [f"{name} {content[key]:.1%}" for key, (name, _) in PAPERS.items() if content[key] is not None]
    print(", ".join([f"makespan {content['makespan']:g}", *said]))
    print(f"chunks live at most {content['peak_live']}, messages {content['messages']}")
    return 0
