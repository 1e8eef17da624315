"""The request of `glass plan`."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import BaseModel, Field, model_validator

from glasscluster.base.errors import InputError
from glasscluster.model.config import ModelConfig
from glasscluster.scenarios.requests.parts import ModelRequest, PlanRequest
from glasscluster.strategies.plan import Plan


class PlannerRequest(ModelRequest, PlanRequest):
    """Asks for the quickest layout of a model on some GPUs. A plan option that is given stays as it is."""

    parts: ClassVar[tuple[type[BaseModel], ...]] = (Plan, ModelConfig)
    first: ClassVar[tuple[str, ...] | None] = (
        *("model", "hardware", "gpus", "global_batch", "top", "precision", "out"),
        *("layers", "hidden", "seq"),
    )

    hardware: str = Field(
        "classroom",
        description="virtual clock: a name from `glass list`, or a profile file",
    )
    gpus: int = Field(8, ge=1, description="how many GPUs the layouts are for")
    top: int = Field(3, ge=1, le=10, description="how many of the quickest layouts are shown")
    out: str | None = Field(None, description="folder for a report with a map of all layouts")

    @classmethod
    def compose(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The model's shape; the plan's options are judged one by one, and together with every layout."""
        if not given.get("global_batch"):
            rule = "is needed: layouts are compared for the same sequences a step"
            raise InputError(
                "global_batch", given.get("global_batch", 0), rule, [8 * int(given.get("gpus", 8))]
            )
        return super().compose(given)

    @model_validator(mode="after")
    def _layout_fits(self) -> Self:
        """A given axis divides the GPUs."""
        size = 1
        for axis in ("dp", "tp", "pp", "cp"):
            size *= self.given.get(axis, 1)
            if self.gpus % size:
                near = [n for n in range(1, self.gpus + 1) if self.gpus % n == 0]
                raise InputError(axis, self.given[axis], f"must divide the {self.gpus} GPUs", near)
        return self
