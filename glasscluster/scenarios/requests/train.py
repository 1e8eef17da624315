"""The request of `glass train`."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from glasscluster.base.requests import Request, Seconds, Size, switch
from glasscluster.model.config import ModelConfig
from glasscluster.scenarios.requests.names import BACKENDS, one_of
from glasscluster.scenarios.requests.parts import ModelRequest, PlanRequest, RanksRequest
from glasscluster.strategies.plan import Plan

SOURCES = "SOURCE:WEIGHT (file, folder, python, english, chinese)"


class TextRequest(Request):
    """Asks for the text to train on."""

    model_config = ConfigDict(title="Text to train on")

    data: list[str] = Field(
        [],
        description=f"any text file; or several {SOURCES} [default: standard library]",
    )
    tokenizer: str | None = Field(
        None,
        description="a tokenizer.json of `glass tokenize train` [default: bytes]",
    )
    pack: bool = switch("documents whole in rows, none of which sees another")


class TrainingRun(RanksRequest):
    """Asks for a training run, its check and its folder."""

    model_config = ConfigDict(title="The run")

    steps: int = Field(3, ge=1, description="optimizer steps; figures are of the last")
    check: bool = Field(True, description="compare with one device in float64")
    backend: str | None = one_of(BACKENDS, None, "where ranks run")
    timeout: Seconds | None = Field(None, description="of one operation, as 30s")
    memory: Size | None = Field(
        None,
        description="capacity of a virtual GPU, as 16GB [default: the hardware's]",
    )
    weights: str | None = Field(None, description="folder in Hugging Face's layout to start from")
    save: str | None = Field(None, description="folder for the trained weights, in Hugging Face's layout")
    out: str | None = Field(None, description="folder to write to [default: runs/NAME-N]")


class TrainRequest(TrainingRun, TextRequest, ModelRequest, PlanRequest):
    """Asks for a training: a plan, a model, a text, a run."""

    parts: ClassVar[tuple[type[BaseModel], ...]] = (Plan, ModelConfig)
    first: ClassVar[tuple[str, ...] | None] = (
        *("dp", "tp", "pp", "cp", "ep", "zero", "schedule", "micro_batch", "global_batch", "recompute"),
        *("precision", "model", "layers", "hidden", "steps", "data", "backend", "hardware", "out"),
    )

    @model_validator(mode="after")
    def _runs(self) -> Self:
        if self.shape is not None:
            self.plan.check(self.shape)
        return self
