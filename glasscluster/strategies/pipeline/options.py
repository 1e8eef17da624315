"""The options of pipeline parallelism, and which layers go to which stage."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from pydantic import ConfigDict, Field

from glasscluster.base.errors import InputError
from glasscluster.base.requests import Numbers, Options
from glasscluster.model.config import ModelConfig
from glasscluster.strategies.layout.sizes import Layout
from glasscluster.strategies.pipeline.schedules import FOLDED, SCHEDULES, chunks, default_name, make_schedule
from glasscluster.strategies.pipeline.schedules.base import Schedule


class PipelineOptions(Options):
    """The layers are cut into pp·V stages, which micro-batches pass one after the other."""

    model_config = ConfigDict(title="Pipeline parallelism")

    pp: int = Field(1, ge=1, description="pipeline stages")
    schedule: str = Field(
        "1f1b",
        description="order of forwards and backwards in the pipeline",
        json_schema_extra={"choices": list(SCHEDULES)},
    )
    virtual_stages: int = Field(1, ge=1, description="chunks of the model on each pipeline rank")
    layers_per_stage: Numbers | None = Field(None, description="layers of each stage, as 2,3,3,2")

    @property
    def stages(self) -> int:
        """How many stages the model is cut into, over all pipeline ranks."""
        return self.pp * self.virtual_stages

    def stage_layers(self, model: ModelConfig) -> list[list[int]]:
        """For each stage, the numbers of its layers."""
        counts = list(self.layers_per_stage or split_layers(model.layers, self.stages))
        starts = [sum(counts[:i]) for i in range(len(counts))]
        return [list(range(a, a + n)) for a, n in zip(starts, counts, strict=True)]

    def rules(self, model: ModelConfig, _layout: Layout) -> None:
        """Check that every stage has a layer, and that a list of layers adds up to the model."""
        chunks(self.schedule, self.virtual_stages)  # as many as the schedule has
        stages, v = self.stages, self.virtual_stages
        if stages > model.layers:
            why = f", and pp x virtual-stages = {stages}" if v > 1 else ""
            rule = f"every stage needs at least one of the {model.layers} layers{why}"
            if self.schedule in FOLDED and model.layers < v:
                raise InputError(
                    "layers", model.layers, f"{self.schedule} cuts them in {v} stages a rank", [v]
                )
            if v == 1 or self.schedule in FOLDED or self.pp > model.layers:
                raise InputError("pp", self.pp, rule, range(1, max(1, model.layers // v) + 1))
            raise InputError("virtual_stages", v, rule, range(1, model.layers // self.pp + 1))
        if self.layers_per_stage is not None:
            given = list(self.layers_per_stage)
            if len(given) != stages or sum(given) != model.layers or min(given) < 1:
                nearest = ",".join(map(str, split_layers(model.layers, stages)))
                rule = f"must be {stages} positive numbers that add up to {model.layers} layers"
                raise InputError("layers_per_stage", ",".join(map(str, given)), rule, [nearest])


@lru_cache(maxsize=32)  # every rank of a recording asks
def make_pipeline(name: str, p: int, m: int, v: int) -> Schedule:
    """The schedule that all ranks follow. It is made once and shared: read it, never change it."""
    return make_schedule(name, p, m, v)


def default_schedule(values: dict[str, Any]) -> dict[str, Any]:
    """Fill in what a plan leaves out: `interleaved` with virtual stages and no name, two stages where it is
    folded.
    """
    if "schedule" not in values:
        v = values.get("virtual_stages", 1)
        return {**values, "schedule": default_name(v)} if isinstance(v, int) else values
    return {"virtual_stages": 2, **values} if values["schedule"] in FOLDED else values


def split_layers(layers: int, chunks: int) -> list[int]:
    """Layers shared out evenly; a remainder leaves the first and last chunks short first (126 on 128:
    0,1,...,1,0).
    """
    base, extra = divmod(layers, chunks)
    # first, last, second, ...
    inward = [i // 2 if i % 2 == 0 else chunks - 1 - i // 2 for i in range(chunks)]
    short = set(inward[: chunks - extra])
    return [base + (0 if i in short or not extra else 1) for i in range(chunks)]
