"""`glass replay`: a recorded run on other hardware."""

from __future__ import annotations

from glasscluster.base.quantities import written_time
from glasscluster.commands.bodies import body
from glasscluster.commands.console import emit, launches_said, show_time
from glasscluster.commands.options import command
from glasscluster.scenarios.requests.stored import ReplayRequest


@command(ReplayRequest)
def replay(request: ReplayRequest, as_json: bool) -> int:
    """Put a recorded run on other hardware: no torch, no ranks, milliseconds."""
    content = body("replay")(request)
    if as_json:
        emit(content)
        return 0
    print(
        f"{written_time(content['makespan_s'], 6)} on {content['hardware']} (virtual); "
        f"exposed communication {written_time(content['exposed_comm_s'], 6)}, mean of the ranks"
    )
    show_time(None, content["breakdown_s"], content)
    if said := launches_said(content, content["makespan_s"]):
        print(said)
    if content["report"]:
        print(f"report: {content['report']}")
    return 0
