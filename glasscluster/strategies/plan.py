"""The Plan: a parallel layout, validated. Its fields are the options of `train`, `predict` and `plan`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import count
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from glasscluster.base.errors import InputError
from glasscluster.model.config import PRESETS, ModelConfig
from glasscluster.model.rate import RateSchedule
from glasscluster.strategies.layout.padding import Padding
from glasscluster.strategies.numerics.bad_batch import SkipRule
from glasscluster.strategies.pipeline.schedules import FOLDED, chunks, default_name, make_schedule
from glasscluster.strategies.pipeline.schedules.base import Schedule

MIB = 1024**2
Precision = Literal["fp64", "fp32", "bf16", "fp16", "fp8"]
ScheduleName = Literal[
    "gpipe",
    "1f1b",
    "eager-1f1b",
    "interleaved",
    "looped-bfs",
    "zb-h1",
    "zb-h2",
    "interleaved-zb",
    "zb-v",
    "dualpipe-v",
]

# What the contract names and this version does not run yet: field -> the values that do run.
AVAILABLE: dict[str, tuple[Any, ...]] = {
    "precision": ("fp64", "fp32", "bf16", "fp16"),
}

# What may be chosen where every worker holds a whole replica; everything else stays as it is.
REPLICA_FIELDS = (
    *("dp", "micro_batch", "global_batch", "precision", "optimizer", "lr", "warmup", "decay", "decay_until", "decay_steps", "lr_floor"),
    *("exchange", "servers", "staleness", "jitter"),
)


class Plan(BaseModel):
    """gpus = dp·tp·pp·cp; micro_batches = global_batch / (micro_batch·dp)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dp: int = Field(1, ge=1, description="data-parallel replicas")
    tp: int = Field(1, ge=1, description="tensor-parallel GPUs a layer is cut over")
    pp: int = Field(1, ge=1, description="pipeline stages")
    cp: int = Field(1, ge=1, description="context-parallel GPUs a sequence is cut over")
    ep: int = Field(1, ge=1, description="GPUs the experts are spread over")
    zero: Literal[0, 1, 2, 3] = Field(0, description="ZeRO stage")
    shard: int = Field(0, ge=0, description="neighbours on dp that share out the ZeRO states; 0 means all of dp")
    accumulate: Literal["sharded", "whole"] = Field("sharded", description="gradients of ZeRO-2 and 3 between micro-batches")
    reshard: bool = Field(True, description="ZeRO-3 frees a unit's parameters between forward and backward")
    offload: Literal["none", "optimizer"] = Field("none", description="states kept in host memory")
    sequence_parallel: bool = Field(False, description="norms and residuals cut along the sequence")
    schedule: ScheduleName = Field("1f1b", description="order of forwards and backwards in the pipeline")
    virtual_stages: int = Field(1, ge=1, description="chunks of the model on each pipeline rank")
    layers_per_stage: tuple[int, ...] | None = Field(None, description="layers of each stage, as 2,3,3,2")
    tp_overlap: bool = Field(False, description="sequence parallelism's gathers and scatters in pieces, under the matrices' products")
    context: Literal["ring", "striped", "zigzag", "ulysses"] = Field("ring", description="how context parallelism cuts a sequence")
    ulysses: int = Field(0, ge=0, description="neighbours on cp that exchange heads, inside a ring of such groups; 0: none, or all")
    micro_batch: int = Field(1, ge=1, description="sequences in a micro-batch")
    global_batch: int = Field(0, ge=0, description="sequences in an optimizer step over all GPUs; 0 means 2 x dp x pp")
    recompute: Literal["none", "selective", "full"] = Field("none", description="activations computed again in backward")
    recompute_every: int = Field(1, ge=1, description="layers a segment of full recomputation")
    precision: Precision = Field("fp32", description="number format of weights and activations")
    grad_dtype: Literal["same", "fp32"] = Field("same", description="number format of gradients")
    master_weights: Literal["auto", "none", "fp32"] = Field("auto", description="fp32 copies of narrow weights")
    bucket: int = Field(25 * MIB, ge=1, description="size of a gradient bucket, as 25MiB")
    first_bucket: int = Field(MIB, ge=1, description="size of the first bucket, if smaller than the others, as 1MiB")
    unused: Literal["error", "zero"] = Field("error", description="a parameter that got no gradient")
    overlap: bool = Field(True, description="launch the data-parallel reduction during backward")
    prefetch: int = Field(1, ge=0, description="units ZeRO-3 gathers ahead of use")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="update rule")
    lr: float = Field(1e-3, gt=0, description="learning rate, at its peak")
    warmup: int = Field(0, ge=0, description="updates over which the learning rate rises to its peak")
    decay: Literal["none", "cosine", "wsd"] = Field("none", description="how the learning rate falls after that: at once or at the end")
    decay_until: int = Field(0, ge=0, description="update at which the learning rate has reached its floor")
    decay_steps: int = Field(0, ge=0, description="updates the fall takes; 0: all after warm-up (cosine), the last tenth (wsd)")
    lr_floor: float = Field(0.0, ge=0, le=1, description="share of the peak at which the learning rate ends")
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0 means no clipping")
    skip_norm: float = Field(0.0, ge=0, description="skip a step whose gradient norm is so many times its running median; 0: never")
    skip_window: int = Field(16, ge=1, description="steps that this median is of; none is skipped for its size before so many")
    rollback: int = Field(0, ge=0, description="skipped steps in a row after which to return to the last snapshot; 0: never")
    snapshot_every: int = Field(10, ge=1, description="steps between snapshots, with --rollback")
    algorithm: Literal["ring", "native"] = Field("ring", description="our rings, or the collectives of gloo or NCCL")
    exchange: Literal["all-reduce", "parameter-server", "async-server"] = Field("all-reduce", description="how ranks come to new weights")
    servers: int = Field(0, ge=0, description="shards of the parameter server, on the first workers; 0 means one on every worker")
    staleness: int = Field(0, ge=0, description="clocks a worker of the async-server may be ahead of the slowest")
    jitter: float = Field(0.0, ge=0, description="async-server: a gradient takes 1 + jitter x Exp(1) times as long when the order is drawn")

    @model_validator(mode="before")
    @classmethod
    def _default_batch(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("global_batch"):
            dp, pp = values.get("dp", 1), values.get("pp", 1)
            if isinstance(dp, int) and isinstance(pp, int):
                values = {**values, "global_batch": 2 * dp * pp}
        if isinstance(values, dict):
            values = _default_schedule(values)
        if isinstance(values, dict) and values.get("exchange", "all-reduce") != "all-reduce":
            values = {"clip": 0.0, **values}  # no server sees the whole gradient
        return values

    @property
    def stages(self) -> int:
        """Of the pipeline: chunks that the model is cut into."""
        return self.pp * self.virtual_stages

    @property
    def pipeline(self) -> Schedule:
        """The schedule that all ranks follow: read it, never change it."""
        return _pipeline(self.schedule, self.pp, self.micro_batches, self.virtual_stages)

    @property
    def gpus(self) -> int:
        """World size."""
        return self.dp * self.tp * self.pp * self.cp

    @property
    def micro_batches(self) -> int:
        """m, per data-parallel rank."""
        return self.global_batch // (self.micro_batch * self.dp)

    @property
    def data_ranks(self) -> int:
        """Ranks that see different tokens and add up their gradients: dp·cp."""
        return self.dp * self.cp

    @property
    def shards(self) -> int:
        """N of the ZeRO formulas: ranks that share out what a stage shards."""
        return self.shard or self.data_ranks

    @property
    def expert_replicas(self) -> int:
        """Ranks that hold the same experts, add up their gradients and shard their states: dp·cp / ep."""
        return self.data_ranks // self.ep

    @property
    def padding(self) -> Padding:
        """What units are padded to."""
        experts = None if self.ep == 1 else self.expert_replicas if self.zero else 1
        return Padding(self.shards if self.zero else 1, experts)

    @property
    def heads_cut(self) -> int:
        """cp ranks that share out the heads inside attention; the other factor of cp is a ring."""
        return self.cp if self.context == "ulysses" else self.ulysses or 1

    @property
    def pieces(self) -> int:
        """Ranks that a sequence is cut over between layers."""
        return self.cp * (self.tp if self.sequence_parallel else 1)

    @property
    def bucket_limits(self) -> tuple[int, int]:
        """Bytes at which the first bucket and the others are full."""
        return min(self.first_bucket, self.bucket), self.bucket

    @property
    def rate(self) -> RateSchedule:
        """The learning rate over the run, as a share of its peak."""
        return RateSchedule(self.warmup, self.decay, self.decay_until, self.decay_steps, self.lr_floor)

    @property
    def skip_rule(self) -> SkipRule:
        """Which steps are not taken."""
        return SkipRule(self.skip_norm, self.skip_window, self.rollback, self.snapshot_every)

    @property
    def mesh(self) -> dict[str, int]:
        """Axis sizes for `gpu.make_mesh`."""
        return {"pp": self.pp, "dp": self.dp, "cp": self.cp, "tp": self.tp}

    @property
    def narrow(self) -> bool:
        """True for 16 bits or fewer."""
        return self.precision in ("bf16", "fp16", "fp8")

    @property
    def has_master(self) -> bool:
        """True when fp32 copies of the weights are kept by the optimizer."""
        return self.narrow and self.master_weights != "none"

    @property
    def wide_gradients(self) -> bool:
        """True when 16-bit parameters have fp32 gradients, kept and reduced apart from autograd's."""
        return self.narrow and self.grad_dtype == "fp32"

    @property
    def gradient_width(self) -> int:
        """Bytes of a gradient as it is kept and reduced."""
        return 4 if self.wide_gradients else {"fp64": 8, "fp32": 4}.get(self.precision, 2)

    def check(self, model: ModelConfig, runs: bool = True) -> None:
        """Raise InputError for a combination that cannot run: field, value, rule, nearest valid choice.

        `runs` False: it is only to be predicted, and may be in fp8, which has a cost (sim/time/cost.py) but does not run here.
        """
        for field, values in AVAILABLE.items():
            value = getattr(self, field)
            if value == "fp8" and not runs:
                continue
            if value == "fp8":
                raise InputError(field, value, "has a cost (glass predict) but does not run", values)
            if value not in values:
                raise InputError(field, value, "is not available in this version", values)
        if self.precision == "fp16" and not self.has_master:
            rule = "fp16 needs fp32 master weights: gradients divided by the loss scale in fp16 would vanish again"
            raise InputError("master_weights", self.master_weights, rule, ["auto", "fp32"])
        self.check_rate()
        step = self.micro_batch * self.dp
        if self.global_batch % step:
            near = [n for n in (self.global_batch // step * step, (self.global_batch // step + 1) * step) if n]
            raise InputError("global_batch", self.global_batch, f"must be a multiple of micro-batch x dp = {step}", near)
        if self.shard and self.data_ranks % self.shard:
            divisors = [k for k in range(1, self.data_ranks + 1) if self.data_ranks % k == 0]
            axes = f"dp = {self.dp}" if self.cp == 1 else f"dp x cp = {self.data_ranks}"
            raise InputError("shard", self.shard, f"must divide {axes}", divisors)
        if self.shard and not self.zero:
            raise InputError("shard", self.shard, "needs a ZeRO stage of 1, 2 or 3: stage 0 shards nothing", [0])
        if self.exchange != "all-reduce":
            self.check_exchange(model)
        elif self.servers or self.staleness or self.jitter:
            field = next(f for f in ("servers", "staleness", "jitter") if getattr(self, f))
            raise InputError(field, getattr(self, field), "needs --exchange parameter-server or async-server", [0])
        if model.patches and self.cp > 1:
            raise InputError("cp", self.cp, "cuts tokens; an image's pixels at the beginning of a sequence are none", [1])
        if self.sequence_parallel and model.seq % self.tp:
            fits = [t for t in range(1, model.seq + 1) if model.seq % t == 0]
            raise InputError("tp", self.tp, f"must divide seq = {model.seq} when the sequence is cut", fits)
        sizes = {"heads": model.heads, "ffn": model.width, **({"shared-ffn": model.shared_ffn} if model.shared_ffn else {})}
        for field, size in sizes.items():
            if size % self.tp:
                fits = [t for t in range(1, size + 1) if all(n % t == 0 for n in sizes.values())]
                raise InputError("tp", self.tp, f"must divide {field} = {size}", fits)
        self.check_heads(model)
        if self.tp_overlap and not self.sequence_parallel:
            raise InputError("tp_overlap", True, "cuts the gathers and scatters of --sequence-parallel in pieces", ["--sequence-parallel"])
        if self.cp > 1 or self.ulysses:
            self.check_context(model)
        if self.ep > 1:
            self.check_experts(model)
        chunks(self.schedule, self.virtual_stages)  # as many as the schedule has
        stages, v = self.stages, self.virtual_stages
        if stages > model.layers:
            fewer_ranks = v == 1 or self.schedule in FOLDED
            field, most = ("pp", model.layers // v) if fewer_ranks else ("virtual_stages", model.layers // self.pp)
            rule = f"every stage needs at least one of the {model.layers} layers" + (
                f", and pp x virtual-stages = {stages}" if v > 1 else ""
            )
            raise InputError(field, getattr(self, field), rule, range(1, most + 1))
        if self.layers_per_stage is not None:
            given = list(self.layers_per_stage)
            if len(given) != stages or sum(given) != model.layers or min(given) < 1:
                nearest_split = ",".join(map(str, split_layers(model.layers, stages)))
                rule = f"must be {stages} positive numbers that add up to {model.layers} layers"
                raise InputError("layers_per_stage", ",".join(map(str, given)), rule, [nearest_split])

    def check_rate(self) -> None:
        """A learning rate falls after it has risen; a return needs steps that are skipped."""
        if self.decay == "none":
            for field in ("decay_until", "decay_steps", "lr_floor"):
                if getattr(self, field):
                    raise InputError(field, getattr(self, field), "needs --decay cosine or wsd", [0])
        elif self.decay_until <= self.warmup:
            raise InputError("decay_until", self.decay_until, f"must be behind warmup = {self.warmup}", [self.warmup + 1])
        elif self.decay_steps > self.decay_until - self.warmup:
            rule = f"must fit between warmup = {self.warmup} and decay-until = {self.decay_until}"
            raise InputError("decay_steps", self.decay_steps, rule, [self.decay_until - self.warmup])
        if self.rollback and not self.skip_norm:
            raise InputError("rollback", self.rollback, "counts skipped steps: needs --skip-norm", [0])

    def check_heads(self, model: ModelConfig) -> None:
        """Tensor ranks have whole key-value heads, or as many of them share one."""
        heads = model.key_heads
        if heads % self.tp and (self.tp % heads or model.key_width % self.tp):
            fits = [t for t in range(1, model.heads + 1) if model.heads % t == 0 and (heads % t == 0 or t % heads == 0)]
            raise InputError("tp", self.tp, f"must divide kv-heads = {heads}, or be a multiple of them", fits)

    def check_context(self, model: ModelConfig) -> None:
        """A sequence is cut into equal pieces; Ulysses needs heads to share out; a ring needs flash attention's log-sum-exp."""
        if self.context == "ulysses" and self.ulysses not in (0, self.cp):
            raise InputError("ulysses", self.ulysses, "with --context ulysses every rank of cp exchanges heads", [0, self.cp])
        if self.cp % self.heads_cut:
            raise InputError("ulysses", self.ulysses, f"must divide cp = {self.cp}", [k for k in range(1, self.cp + 1) if self.cp % k == 0])
        rings, head_ranks = self.cp // self.heads_cut, self.heads_cut
        chunks = rings * (2 if self.context == "zigzag" else 1)

        def divides(seq: int) -> bool:
            return not (seq % chunks or seq // rings % (head_ranks * (self.tp if self.sequence_parallel else 1)))

        if not divides(model.seq):
            near = [next(n for n in numbers if divides(n)) for numbers in (range(model.seq, -1, -1), count(model.seq))]
            cut = f"cp = {self.cp} ({self.context})" + (f" and tp = {self.tp} (sequence parallel)" if self.sequence_parallel else "")
            raise InputError("seq", model.seq, f"must be cut into equal pieces by {cut}", [n for n in near if n])
        if rings > 1 and model.attention != "flash":
            raise InputError("attention", model.attention, "a ring merges blocks by flash attention's log-sum-exp", ["flash"])
        heads = {"heads": model.heads // self.tp, "kv-heads": max(1, model.key_heads // self.tp)}
        for field, local in heads.items():
            if local % head_ranks:
                fits = [k for k in range(1, self.cp + 1) if self.cp % k == 0 and all(n % k == 0 for n in heads.values())]
                shared = "ulysses" if self.ulysses else "cp"
                raise InputError(shared, head_ranks, f"a tensor rank has {local} {field} to share out", fits)

    def check_experts(self, model: ModelConfig) -> None:
        """Experts are spread evenly over neighbours that see different tokens."""
        if not model.experts:
            raise InputError("ep", self.ep, "needs a model with --experts", [1])
        if self.data_ranks % self.ep:
            divisors = [k for k in range(1, self.data_ranks + 1) if self.data_ranks % k == 0]
            raise InputError("ep", self.ep, f"must divide dp x cp = {self.data_ranks}", divisors)
        if model.experts % self.ep:
            divisors = [k for k in range(1, model.experts + 1) if model.experts % k == 0]
            raise InputError("ep", self.ep, f"must divide experts = {model.experts}", divisors)

    def check_exchange(self, model: ModelConfig) -> None:
        """What trains whole replicas (parameter servers, local SGD, backup workers) has no other option than these."""
        for field, info in type(self).model_fields.items():
            value, plain = getattr(self, field), 0.0 if field == "clip" else info.default
            if field not in REPLICA_FIELDS and value != plain:
                raise InputError(field, value, "is not available where every worker holds a whole replica", [plain])
        if self.precision not in ("fp64", "fp32"):
            raise InputError("precision", self.precision, "is not available where every worker holds a whole replica", ["fp32", "fp64"])
        if model.dropout:
            raise InputError("dropout", model.dropout, "is not available where every worker holds a whole replica", [0])
        if self.servers > self.dp:
            raise InputError("servers", self.servers, f"shards stand on the {self.dp} workers", range(self.dp + 1))
        for field in ("staleness", "jitter"):
            if self.exchange == "parameter-server" and getattr(self, field):
                raise InputError(field, getattr(self, field), "the synchronous server waits for everybody; ask for async-server", [0])

    def stage_layers(self, model: ModelConfig) -> list[list[int]]:
        """Layer numbers of each pipeline stage."""
        counts = list(self.layers_per_stage) if self.layers_per_stage else split_layers(model.layers, self.stages)
        starts = [sum(counts[:i]) for i in range(len(counts))]
        return [list(range(a, a + n)) for a, n in zip(starts, counts, strict=True)]


@lru_cache(maxsize=32)  # every rank of a recording asks
def _pipeline(name: str, p: int, m: int, v: int) -> Schedule:
    return make_schedule(name, p, m, v)


def _default_schedule(values: dict[str, Any]) -> dict[str, Any]:
    """Interleaved where there are virtual stages and no name, two of them where the schedule is folded."""
    if "schedule" not in values:
        return {**values, "schedule": default_name(v)} if isinstance(v := values.get("virtual_stages", 1), int) else values
    return {"virtual_stages": 2, **values} if values["schedule"] in FOLDED else values


def split_layers(layers: int, chunks: int) -> list[int]:
    """Layers shared out evenly; a remainder leaves the first and last chunks short first (126 on 128: 0,1,...,1,0)."""
    base, extra = divmod(layers, chunks)
    inward = [i // 2 if i % 2 == 0 else chunks - 1 - i // 2 for i in range(chunks)]  # first, last, second, ...
    short = set(inward[: chunks - extra])
    return [base + (0 if i in short or not extra else 1) for i in range(chunks)]


def build(cls: type[BaseModel], values: dict[str, Any]) -> Any:
    """A pydantic object, or InputError naming the first bad field."""
    try:
        return cls(**values)
    except ValidationError as problem:
        first = problem.errors()[0]
        message = str(first["msg"])
        if "|" in message:  # our own rules: field|value|rule|nearest
            field, value, rule, near = message.removeprefix("Value error, ").split("|")
            raise InputError(field, value, rule, [near]) from None
        field = ".".join(map(str, first["loc"])) or "options"
        choices: Sequence[Any] | None = None
        if first["type"] == "literal_error":
            choices = get_args(cls.model_fields[field].annotation)
        elif first["type"] == "extra_forbidden":
            choices, message = list(cls.model_fields), "unknown option"
        elif "greater_than" in first["type"]:
            choices = [first.get("ctx", {}).get("ge", first.get("ctx", {}).get("gt"))]
        raise InputError(field, first.get("input"), message, choices) from None


def make_plan(**values: Any) -> Plan:
    """A validated Plan from option names."""
    return build(Plan, values)


def make_model(preset: str = "tiny", **overrides: Any) -> ModelConfig:
    """A preset with overrides; None means "as the preset has it"."""
    if preset not in PRESETS:
        raise InputError("model", preset, "unknown preset", list(PRESETS))
    given = {k: v for k, v in overrides.items() if v is not None}
    return build(ModelConfig, {**PRESETS[preset], **given})
