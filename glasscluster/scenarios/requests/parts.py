"""Options that several commands have: a plan, a model's shape, the ranks and the clock of a run."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from glasscluster.base.requests import Request, build, choice, taken
from glasscluster.model.config import ModelConfig
from glasscluster.scenarios.requests.names import BACKENDS, DEVICES, one_of
from glasscluster.strategies.numerics.options import RUNS
from glasscluster.strategies.plan import Plan, make_model


class PlanRequest(Request):
    """Asks for a plan, by all of its options."""

    parts: ClassVar[tuple[type[BaseModel], ...]] = (Plan,)

    plan: Plan

    @classmethod
    def compose(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The plan."""
        return {**super().compose(given), "plan": build(Plan, taken(Plan, given))}


class ModelRequest(Request):
    """Asks for a model: a preset, and the fields of its shape that are otherwise."""

    parts: ClassVar[tuple[type[BaseModel], ...]] = (ModelConfig,)

    model: str = Field(
        "tiny", description="a name from `glass list`, or a config.json or its folder: the shape alone"
    )
    shape: ModelConfig | None  # None where a folder of weights has it; scenarios/jobs/shapes.py reads it

    @property
    def shape_given(self) -> dict[str, Any]:
        """The fields of the shape that were given."""
        return taken(ModelConfig, self.given)

    @classmethod
    def compose(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The shape."""
        if given.get("weights") is not None:
            return {**super().compose(given), "shape": None}
        preset = str(given.get("model", cls.model_fields["model"].default))
        return {**super().compose(given), "shape": make_model(preset, **taken(ModelConfig, given))}


class RanksRequest(Request):
    """Asks for ranks on a device, with a seed and a virtual clock."""

    model_config = ConfigDict(title="The run")

    device: str = one_of(DEVICES, "cpu", "what ranks compute on")
    seed: int = Field(0, description="of weights, data and thread order")
    hardware: str = Field(
        "classroom",
        description="virtual clock: a name from `glass list`, or a profile file",
    )


class DecodingRequest(ModelRequest, RanksRequest):
    """Asks for a model that goes on with texts, on tensor-parallel ranks."""

    weights: str | None = Field(None, description="folder in Hugging Face's layout [default: random weights]")
    tp: int = Field(1, ge=1, description="tensor-parallel GPUs")
    precision: str = choice("fp32", "number format of weights and activations", RUNS)
    check: bool = Field(True, description="compare with one device in float64")
    backend: str = one_of((*BACKENDS, "dry"), "threads", "where ranks run; dry: shapes only, at any scale")
