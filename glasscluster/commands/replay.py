"""`glass replay`: a recorded run on other hardware."""

from __future__ import annotations

from glasscluster.commands.bodies import body
from glasscluster.commands.console import emit, show_time
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
        f"{content['makespan_s'] * 1e3:.4f} ms on {content['hardware']} (virtual); "
        f"exposed communication {content['exposed_comm_s'] * 1e3:.4f} ms, mean of the ranks"
    )
    show_time(None, content["breakdown_s"], content)
    if content["report"]:
        print(f"report: {content['report']}")
    return 0
