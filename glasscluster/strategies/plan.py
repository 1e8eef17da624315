"""The Plan: a parallel layout, validated. It is made of the strategies' own options and flat from outside.

Each strategy's folder has an options.py: the fields that are its options of `train`, `predict` and `plan`,
and `rules` that say which of their values go together with a model and the other axes. A strategy more is one
more part here; its other files are found by standing in its folder (folders.py).
"""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, model_validator

from glasscluster.base.errors import InputError
from glasscluster.base.requests import build, taken
from glasscluster.base.valid_choice import advised
from glasscluster.model.config import ModelConfig
from glasscluster.model.presets import PRESETS
from glasscluster.model.weights.families import is_path, read_shape
from glasscluster.strategies.context.options import ContextOptions
from glasscluster.strategies.data.options import DataOptions, ExchangeOptions
from glasscluster.strategies.experts.options import ExpertOptions
from glasscluster.strategies.layout.options import BatchOptions
from glasscluster.strategies.layout.padding import Padding
from glasscluster.strategies.memory.options import MemoryOptions
from glasscluster.strategies.numerics.options import PrecisionOptions, StepOptions
from glasscluster.strategies.pipeline.options import PipelineOptions, default_schedule, make_pipeline
from glasscluster.strategies.pipeline.schedules.base import Schedule
from glasscluster.strategies.tensor.options import TensorOptions

# In the order in which their rules are asked.
PARTS: tuple[type[Any], ...] = (
    *(PrecisionOptions, StepOptions, BatchOptions, DataOptions, ExchangeOptions),
    *(TensorOptions, ContextOptions, ExpertOptions, PipelineOptions, MemoryOptions),
)

# What may be chosen where every worker holds a whole replica; everything else stays as it is.
REPLICA_FIELDS = (
    *("dp", "micro_batch", "global_batch", "precision", "optimizer", "lr", "warmup", "decay", "decay_until"),
    *("decay_steps", "lr_floor", *ExchangeOptions.model_fields),
)


class Plan(
    ExchangeOptions,
    StepOptions,
    PrecisionOptions,
    MemoryOptions,
    BatchOptions,
    ExpertOptions,
    ContextOptions,
    PipelineOptions,
    TensorOptions,
    DataOptions,
):
    """A parallel layout and every option of its strategies, validated on its own; `check` validates it for a
    model.

    A plan is frozen: `plan.model_copy(update=...)` makes another one. Every field is an option of `glass
    train`; `docs/contract.md` lists them. gpus = dp·tp·pp·cp and micro_batches = global_batch /
    (micro_batch·dp).

    Raises:
        InputError: (from `make_plan`) for an unknown option, or a value outside its range.

    Example:
        >>> from glasscluster.strategies.plan import make_model, make_plan
        >>> plan = make_plan(dp=2, tp=2, pp=2, zero=1, global_batch=16)
        >>> plan.gpus, plan.micro_batches, plan.mesh
        (8, 8, {'pp': 2, 'dp': 2, 'cp': 1, 'tp': 2})
        >>> plan.check(make_model("tiny"))
    """

    model_config = ConfigDict(title="Plan")

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = default_schedule(values)
        if not values.get("global_batch"):
            dp, pp = values.get("dp", 1), values.get("pp", 1)
            if isinstance(dp, int) and isinstance(pp, int):
                values = {**values, "global_batch": 2 * dp * pp}
        if values.get("exchange", "all-reduce") != "all-reduce":
            values = {"clip": 0.0, **values}  # no server sees the whole gradient
        return values

    # ---- what several parts make together ------------------------------------------------------------------
    @property
    def pipeline(self) -> Schedule:
        """The schedule that all ranks follow: read it, never change it."""
        return make_pipeline(self.schedule, self.pp, self.micro_batches, self.virtual_stages)

    @property
    def gpus(self) -> int:
        """How many ranks the plan needs: dp·tp·pp·cp."""
        return self.dp * self.tp * self.pp * self.cp

    @property
    def micro_batches(self) -> int:
        """m: micro-batches of one data-parallel rank in one step."""
        return self.global_batch // (self.micro_batch * self.dp)

    @property
    def data_ranks(self) -> int:
        """Ranks that see different tokens and add up their gradients: dp·cp."""
        return self.dp * self.cp

    @property
    def shards(self) -> int:
        """N of the ZeRO formulas: ranks that share out optimizer states, gradients or parameters."""
        return self.shard or self.data_ranks

    @property
    def expert_replicas(self) -> int:
        """Ranks that hold the same experts, add up their gradients and shard their states: dp·cp / ep."""
        return self.data_ranks // self.ep

    @property
    def padding(self) -> Padding:
        """To what multiples the buffers of units are filled up."""
        experts = None if self.ep == 1 else self.expert_replicas if self.zero else 1
        return Padding(self.shards if self.zero else 1, experts)

    @property
    def pieces(self) -> int:
        """Ranks that a sequence is cut over between layers."""
        return self.cp * (self.tp if self.sequence_parallel else 1)

    @property
    def mesh(self) -> dict[str, int]:
        """Axis sizes for `gpu.make_mesh`."""
        return {"pp": self.pp, "dp": self.dp, "cp": self.cp, "tp": self.tp}

    # ---- rules ---------------------------------------------------------------------------------------------
    def check(self, model: ModelConfig, runs: bool = True) -> None:
        """Check that the plan can run with a model.

        Args:
            model: the model's shape.
            runs: False where the plan is only predicted; then it may be in fp8, which has a cost
                (sim/time/cost.py) but does not run.

        Raises:
            InputError: naming the field, its value, the rule that it breaks and the nearest valid choice.

        Example:
            >>> from glasscluster.strategies.plan import make_model, make_plan
            >>> make_plan(tp=3).check(make_model("tiny"))
            Traceback (most recent call last):
            ...
            glasscluster.base.errors.InputError: ...
        """

        def judge(given: dict[str, Any]) -> None:
            plan = build(Plan, taken(Plan, given)) if given is not own else self
            shape = build(ModelConfig, taken(ModelConfig, given)) if given is not own else model
            plan._check(shape, runs)

        own = {**model.model_dump(), **self.model_dump()}
        advised(judge, own)

    def refusal(self, model: ModelConfig, runs: bool = True) -> InputError | None:
        """The first rule that the plan breaks with a model, or None: as `check`, and quick, because nothing
        looks for what would be allowed.

        Args:
            model: the model's shape.
            runs: as in `check`.

        Returns:
            What `check` would raise.

        Example:
            >>> from glasscluster.strategies.plan import make_model, make_plan
            >>> make_plan(tp=2).refusal(make_model("tiny")) is None
            True
            >>> make_plan(tp=3).refusal(make_model("tiny")).field
            'tp'
        """
        try:
            self._check(model, runs)
        except InputError as refused:
            return refused
        return None

    def _check(self, model: ModelConfig, runs: bool) -> None:
        if runs:
            self.runs()
        if self.exchange != "all-reduce":
            self.check_replica(model)
        for part in PARTS:
            part.rules(self, model, self)

    def check_replica(self, model: ModelConfig) -> None:
        """Check that no option is given that whole replicas (parameter servers, local SGD, backup workers) do
        not have.

        Args:
            model: the model's shape.

        Raises:
            InputError: naming the option.

        Example:
            >>> from glasscluster.strategies.plan import make_model, make_plan
            >>> make_plan(dp=2, zero=1, clip=0.0).check_replica(make_model("tiny"))
            Traceback (most recent call last):
            ...
            glasscluster.base.errors.InputError: ...
        """
        rule = "is not available where every worker holds a whole replica"
        for field, info in type(self).model_fields.items():
            value, plain = getattr(self, field), 0.0 if field == "clip" else info.default
            if field not in REPLICA_FIELDS and value != plain:
                raise InputError(field, value, rule, [plain])
        if self.precision not in ("fp64", "fp32"):
            raise InputError("precision", self.precision, rule, ["fp32", "fp64"])
        if model.dropout:
            raise InputError("dropout", model.dropout, rule, [0])


def make_plan(**values: Any) -> Plan:
    """Make a Plan from options.

    Args:
        **values: fields of `Plan` by name; all have defaults.

    Returns:
        The Plan.

    Raises:
        InputError: for an unknown option (with the nearest known one), or a value outside its range.

    Example:
        >>> from glasscluster.strategies.plan import make_plan
        >>> make_plan(dp=4, zero=2).gpus
        4
        >>> make_plan(dp=4, zeros=2)
        Traceback (most recent call last):
        ...
        glasscluster.base.errors.InputError: ...
    """
    return build(Plan, values)


def make_model(preset: str = "tiny", **overrides: Any) -> ModelConfig:
    """Make a model's shape from a preset, or from a config.json in Hugging Face's layout.

    Args:
        preset: a name of `PRESETS`: `tiny`, `gpt2-small`, `llama2-7b`, ...; or the path of a config.json, or
            of a folder with one: what has a slash, ends in .json, or is there.
        **overrides: fields of `ModelConfig`; None means "as the preset has it".

    Returns:
        The ModelConfig.

    Raises:
        InputError: for an unknown preset or field, a value outside its range, or a config.json that cannot be
            read: which key, and why.

    Example:
        >>> from glasscluster.strategies.plan import make_model
        >>> model = make_model("tiny", layers=2, hidden=32)
        >>> model.layers, model.ffn, model.head_dim
        (2, 128, 8)
    """
    given = {k: v for k, v in overrides.items() if v is not None}
    if preset not in PRESETS and is_path(preset):
        return read_shape(preset, **given)
    if preset not in PRESETS:
        raise InputError("model", preset, "unknown preset", list(PRESETS))
    return build(ModelConfig, {**PRESETS[preset], **given})
