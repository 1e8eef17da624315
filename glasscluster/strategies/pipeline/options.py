"""The options of pipeline parallelism, and which layers go to which stage."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, field_validator

from glasscluster.base.errors import InputError
from glasscluster.base.requests import Numbers, Options
from glasscluster.base.text import counted
from glasscluster.model.config import ModelConfig
from glasscluster.strategies.layout.sizes import Layout
from glasscluster.strategies.pipeline.schedules import (
    FOLDED,
    SCHEDULES,
    chunks,
    default_name,
    make_schedule,
    placement,
)
from glasscluster.strategies.pipeline.schedules.base import Schedule
from glasscluster.strategies.pipeline.schedules.own import is_own, own_schedule


class PipelineOptions(Options):
    """The layers are cut into pp·V stages, which micro-batches pass one after the other."""

    model_config = ConfigDict(title="Pipeline parallelism")

    pp: int = Field(1, ge=1, description="pipeline stages")
    schedule: str = Field(
        "1f1b",
        description="order of forwards and backwards in the pipeline; or FILE, a list of your own",
        json_schema_extra={"choices": list(SCHEDULES)},
    )
    virtual_stages: int = Field(1, ge=1, description="chunks of the model on each pipeline rank")
    layers_per_stage: Numbers | None = Field(None, description="layers of each stage, as 2,3,3,2")

    @field_validator("schedule")
    @classmethod
    def _whole_path(cls, schedule: str) -> str:
        """A file is named by its whole path: ranks may be processes that work in other folders."""
        return str(Path(schedule).absolute()) if is_own(schedule) else schedule

    @property
    def stages(self) -> int:
        """How many stages the model is cut into, over all pipeline ranks."""
        return self.pp * self.virtual_stages

    def stage_layers(self, model: ModelConfig) -> list[list[int]]:
        """For each stage, the numbers of its layers."""
        counts = list(self.layers_per_stage or split_layers(model.layers, self.stages))
        starts = [sum(counts[:i]) for i in range(len(counts))]
        return [list(range(a, a + n)) for a, n in zip(starts, counts, strict=True)]

    def rules(self, model: ModelConfig, layout: Layout) -> None:
        """Check that every stage has a layer, and that a list of layers adds up to the model."""
        if is_own(self.schedule):
            self._as_its_file_says(layout)
        else:
            chunks(self.schedule, self.virtual_stages)  # as many as the schedule has
        stages, v = self.stages, self.virtual_stages
        most = model.layers + self._without_layers
        if stages > most:
            who = "every rank, and every stage between the first and the last,"
            rule = f"{who} needs at least one of the {model.layers} layers"
            if v == 1 or self.schedule in FOLDED or self.pp > model.layers:
                raise InputError("pp", self.pp, rule, range(1, max(1, most // v) + 1))
            raise InputError("virtual_stages", v, rule, range(1, most // self.pp + 1))
        if self.layers_per_stage is not None:
            self._check_layers(list(self.layers_per_stage), model.layers)

    @property
    def _holders(self) -> tuple[int, ...]:
        """The rank of each stage."""
        if is_own(self.schedule):
            return own_schedule(self.schedule).placement
        return placement(self.schedule, self.pp, self.virtual_stages)

    @property
    def _without_layers(self) -> int:
        """How many stages may be without a layer: the first has the embedding and the last the head, but a
        rank needs a layer on another of its stages.
        """
        if self.virtual_stages == 1:
            return 0
        holders = self._holders
        return 1 if self.virtual_stages == 2 and holders[0] == holders[-1] else 2

    def _check_layers(self, given: list[int], layers: int) -> None:
        """Refuse a list of layers that does not add up to the model, or leaves a rank without one."""
        stages = self.stages
        on_rank = [0] * self.pp
        for holder, count in zip(self._holders, given, strict=False):
            on_rank[holder] += count
        adds_up = len(given) == stages and sum(given) == layers
        if adds_up and min(given) >= 0 and min([*given[1:-1], *on_rank]) > 0:
            return
        ends = ", where the first and the last may be 0 if their rank has another" if stages > self.pp else ""
        nearest = ",".join(map(str, split_layers(layers, stages)))
        rule = f"must be {stages} positive numbers that add up to {layers} layers{ends}"
        raise InputError("layers_per_stage", ",".join(map(str, given)), rule, [nearest])

    def _as_its_file_says(self, layout: Layout) -> None:
        """Check that ranks, stages and micro-batches are those of the schedule in the file."""
        own = own_schedule(self.schedule)
        name, p, m = Path(self.schedule).name, len(own.ranks), own.micro_batches
        if self.pp != p:
            raise InputError("pp", self.pp, f"{name} lists {counted(p, 'rank')}", [p])
        if self.virtual_stages != own.stages // p:
            rule = f"{name} has {own.stages} stages on {counted(p, 'rank')}"
            raise InputError("virtual_stages", self.virtual_stages, rule, [own.stages // p])
        if layout.micro_batches != m:
            batch = layout.micro_batch * layout.dp
            rule = f"{name} lists micro-batches 0 to {m - 1}, each of micro-batch x dp = {batch} sequences"
            raise InputError("global_batch", layout.micro_batches * batch, rule, [m * batch])


def make_pipeline(name: str, p: int, m: int, v: int) -> Schedule:
    """The schedule that all ranks follow. It is made once and shared: read it, never change it."""
    return own_schedule(name) if is_own(name) else _made(name, p, m, v)


@lru_cache(maxsize=32)  # every rank of a recording asks
def _made(name: str, p: int, m: int, v: int) -> Schedule:
    return make_schedule(name, p, m, v)


def default_schedule(values: dict[str, Any]) -> dict[str, Any]:
    """Fill in what a plan leaves out: `interleaved` with virtual stages and no name, two stages where it is
    folded; ranks, stages and the global batch as the schedule in a file has them.
    """
    if isinstance(values.get("schedule"), str) and is_own(values["schedule"]):
        own = own_schedule(values["schedule"])
        p, dp, each = len(own.ranks), values.get("dp", 1), values.get("micro_batch", 1)
        values = {"pp": p, "virtual_stages": own.stages // p, **values}
        if not values.get("global_batch") and isinstance(dp, int) and isinstance(each, int):
            values["global_batch"] = own.micro_batches * each * dp
        return values
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
