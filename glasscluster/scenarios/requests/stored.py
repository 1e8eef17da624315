"""The requests of `glass replay` and `glass schedule`, which run no program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from glasscluster.base.requests import Request, argument, switch
from glasscluster.strategies.pipeline.schedules import SCHEDULES


class ReplayRequest(Request):
    """Asks for a recorded run on some hardware."""

    run: str = argument("a run folder or a graph.npz")
    hardware: str = Field(
        "classroom",
        description="virtual clock: a name from `glass list`, or a profile file",
    )
    slow_rank: list[str] = Field([], description="R:FACTOR, a straggler; may be repeated")
    rendezvous: bool = switch("a message starts when its receiver is there")
    contention: bool = Field(False, description="messages share ports and links")
    out: str | None = Field(None, description="folder to write to [default: runs/NAME-N]")


class ScheduleRequest(Request):
    """Asks for a pipeline schedule as data, by name or from a file."""

    called: ClassVar[Mapping[str, str]] = {"schedule": "name"}

    name: str | None = argument(f"{' | '.join(SCHEDULES)}; or a file; with --validate any name", None)
    pp: int | None = Field(None, ge=1, description="pipeline ranks [default: as many as the file lists]")
    micro_batches: int | None = Field(
        None, ge=1, description="micro-batches [default: as many as the file lists]"
    )
    virtual_stages: int | None = Field(
        None,
        ge=1,
        description="chunks of the model on a rank (1; 2 where folded)",
    )
    costs: str = Field(
        "f=1,b=2,w=1,c=0",
        description="of a chunk: f forward, b whole backward, w its weight part; c a hop",
    )
    validate_: str | None = Field(
        None,
        alias="validate",
        description="a schedule file to judge instead: one line a rank, as text, CSV or JSON",
    )
    out: str | None = Field(
        None,
        description="also write it: page.html with the schedule drawn, or a .txt, .csv or .json to read back",
    )
