"""The requests of `glass run`, `glass lessons` and `glass gallery`."""

from __future__ import annotations

from pydantic import Field

from glasscluster.base.requests import Request, Seconds, argument
from glasscluster.scenarios.requests.names import BACKENDS, DEVICES, one_of


class RunRequest(Request):
    """Asks for a scenario to be performed; the scenario's own options stand beside it."""

    scenario: str = argument("a name from `glass list`, or FILE.py")
    backend: str | None = one_of(BACKENDS, None, "where ranks run")
    device: str = one_of(DEVICES, "cpu", "what ranks compute on")
    seed: int = Field(0, description="of weights, data and thread order")
    hardware: str | None = Field(None, description="virtual clock [default: the scenario's]")
    timeout: Seconds | None = Field(None, description="of one operation, as 30s")
    out: str | None = Field(None, description="folder to write to [default: runs/NAME-N]")
    guess: float | None = Field(None, description="of a lesson: your prediction; then the answer is shown")
    answer: bool = Field(False, description="of a lesson: show what was found, why, the card and the code")


class LessonsRequest(Request):
    """Asks for the list of lessons, or for the plan of one."""

    plan: str | None = Field(None, description="the 50-minute plan of a lesson, for a teacher")
    new: str | None = Field(None, description="write the skeleton of a lesson, such as c8_my_subject")
    out: str = Field(
        ".", description="the folder that --new writes it in; FILE.html with --plan: a page to print"
    )


class GalleryRequest(Request):
    """Asks for the reports of lessons and an index of them."""

    out: str = Field("site", description="folder to write to")
    backend: str | None = one_of(BACKENDS, None, "where ranks run")
    only: str | None = Field(None, description="lessons, as L0,E4 [default: all]")
