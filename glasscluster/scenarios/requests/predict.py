"""The request of `glass predict`."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import BaseModel, Field, model_validator

from glasscluster.base.errors import InputError
from glasscluster.base.requests import switch
from glasscluster.model.config import ModelConfig
from glasscluster.scenarios.requests.parts import ModelRequest, PlanRequest
from glasscluster.strategies.plan import Plan

CSV_COLUMNS = ("model", "hardware", "rank")  # columns beside the fields of a plan and of a model


class PredictRequest(ModelRequest, PlanRequest):
    """Asks what a plan would cost, or every plan of a file."""

    parts: ClassVar[tuple[type[BaseModel], ...]] = (Plan, ModelConfig)
    first: ClassVar[tuple[str, ...] | None] = (
        *("dp", "tp", "pp", "cp", "ep", "zero", "schedule", "micro_batch", "global_batch", "recompute"),
        *("precision", "model", "layers", "hidden", "hardware", "rank", "slow_rank", "csv", "out", "expand"),
    )

    hardware: str = Field(
        "classroom",
        description="virtual clock: a name from `glass list`, or a profile file",
    )
    rank: str = Field("max", description="whose memory: max | last | a rank")
    slow_rank: list[str] = Field([], description="R:FACTOR, a straggler; may be repeated")
    expand: bool = switch("replay every GPU, also those that do the same")
    csv: str | None = Field(
        None,
        description="a file of rows, option names with _ as header; a row that fails has `error` filled, and "
        "the exit code is 0 unless all fail",
    )
    out: str | None = Field(None, description="with --csv: the file to write")
    processes: int = Field(
        0,
        ge=0,
        le=1024,
        description="with --csv: processes that share out the rows; 0: as the cores and rows allow",
    )
    advise: bool = switch("with --json, too, look for changes of a plan that does not fit: takes seconds")

    @model_validator(mode="after")
    def _can_be_recorded(self) -> Self:
        if self.out is not None and self.csv is None:
            rule = "is the file for the rows of --csv; a single prediction is printed (--json: as one object)"
            raise InputError("out", self.out, rule)
        if self.slow_rank and self.csv is not None:
            rule = "is for a single prediction: the rows of --csv have no column for it"
            raise InputError("slow_rank", ", ".join(self.slow_rank), rule)
        if self.csv is None and self.shape is not None:  # with a file every row is checked on its own
            self.plan.check(self.shape, runs=False)
        return self
