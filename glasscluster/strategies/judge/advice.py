"""What would fit: the cheapest change of a plan that does not fit the virtual GPU.

Tried are single changes and pairs of changes of different kinds:

    zero      a higher stage                   micro-batch  smaller, with more accumulation
    offload   the optimizer to the host        recompute    selective, full
    schedule  1F1B, which holds fewer at once  layout       another dp x tp x pp over the same GPUs
    bucket    a quarter                        reshard      ZeRO-3 frees parameters after forward
    loss      in chunks of tokens

Each is judged by recording it dry with the GPU's capacity, by the strategies' own code: one rank of each
pipeline stage (the others of a stage hold the same, up to the remainder of a division). Those recordings,
standing in for all ranks and replayed on the hardware, bound the step's time from below. In the order of
these bounds the plans that fit are recorded on every rank, until the next bound is above the times already
found: so what is advised fits, and nothing quicker that was tried does. Recomputation and offload only ever
add time, so they are not tried on top of a change that fits without them.
But: no three changes at once, and no change of the training itself (precision, global batch, optimizer) or of
what the model computes.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from glasscluster.base.errors import InputError, MessageLost, OutOfMemory
from glasscluster.base.quantities import written_bytes, written_time
from glasscluster.base.text import counted
from glasscluster.model.config import ModelConfig
from glasscluster.sim.ranks.backends.dry import record_rank, standing_in
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.recording.order import Cycle
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import Hardware
from glasscluster.sim.time.replay import replay
from glasscluster.strategies.folding import record
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.plan import Plan
from glasscluster.strategies.trainer import train_rank

MOST = 240  # plans tried
SECONDS = 30.0  # after which no further plan is tried
VERIFIED = 16  # plans recorded on every rank, or on one of each role
MOST_STANDING_IN = 256  # ranks for which recordings stand in: each is made anew, with a list of all of them
SMALLEST_BUCKET = 1 << 16
LAST_RESORTS = {"recompute", "recompute_nth", "offload"}
Change = dict[str, Any]


@dataclass(frozen=True)
class Fit:
    """A change that fits: the fields that change, the plan and the model, its fullest rank's bytes and the
    step's virtual seconds.
    """

    change: Change
    plan: Plan
    model: ModelConfig
    peak_bytes: int
    seconds: float

    @property
    def options(self) -> str:
        """The change as options of the command line: `--zero 2 --micro-batch 1`."""
        return " ".join(_option(name, value) for name, value in self.change.items())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "options": self.options,
            "change": self.change,
            "peak_memory_bytes": self.peak_bytes,
            "iteration_time_s": self.seconds,
        }


@dataclass
class Advice:
    """What was tried and what fits, the quickest first.

    `complete` is False when time or number ended the search.
    """

    best: list[Fit] = field(default_factory=list)
    candidates: int = 0
    tried: int = 0
    fitting: int = 0
    complete: bool = True

    def __str__(self) -> str:
        how = f"{self.tried} of {self.candidates} single and paired changes tried, {self.fitting} fit"
        if not self.best:
            return f"no change of the plan was found that fits ({how}; three at once are not tried)"
        first = self.best[0]
        return (
            f"the quickest change that fits is {first.options} "
            f"({first.peak_bytes:,} bytes, {written_time(first.seconds)} a step; {how})"
        )


def advise(
    plan: Plan,
    model: ModelConfig,
    hardware: Hardware,
    capacity: float,
    *,
    steps: int = 2,
    top: int = 3,
    most: int = MOST,
    seconds: float = SECONDS,
    say: Callable[[str], None] = lambda _text: None,
) -> Advice:
    """Try changes of `plan`; the same plan and capacity give the same advice unless the clock ended the
    search.
    """
    begun, listed = time.monotonic(), list(changes(plan, model))
    fitting: list[tuple[float, int, Change, Plan, ModelConfig]] = []
    enough: list[Change] = []  # changes that fit
    advice = Advice(candidates=len(listed))
    say(f"looking for a plan that fits {written_bytes(capacity)}: {counted(len(listed), 'change')} to judge")
    for number, (change, other, shape) in enumerate(listed):
        if any(_only_adds(change, less) for less in enough):
            continue
        if time.monotonic() - begun > seconds or advice.tried == most:
            advice.complete = False
            break
        advice.tried += 1
        if advice.tried % 40 == 0:
            say(f"{number + 1} of {len(listed)} changes judged, {len(fitting)} fit")
        recorded = stages(other, shape, capacity, 1, hardware.host.memory_bytes)
        if isinstance(recorded, list):
            bound = _at_least(other, shape, hardware, recorded)
            fitting.append((bound, advice.tried, change, other, shape))
            enough.append(change)
    advice.fitting = len(fitting)
    for number, (bound, _, change, other, shape) in enumerate(sorted(fitting, key=lambda f: f[:2])):
        if len(advice.best) >= top and bound >= advice.best[top - 1].seconds:
            break
        if number == VERIFIED or (time.monotonic() - begun > 2 * seconds and advice.best):
            advice.complete = False
            break
        try:
            peak, duration = on_every_rank(other, shape, hardware, capacity, steps)
        except OutOfMemory:
            continue
        fit = Fit(change, other, shape, peak, duration)
        advice.best = sorted([*advice.best, fit], key=lambda f: f.seconds)
    advice.best = advice.best[:top]
    say(str(advice))
    return advice


# ---- what to try -------------------------------------------------------------------------------------------
def changes(plan: Plan, model: ModelConfig) -> Iterator[tuple[Change, Plan, ModelConfig]]:
    """Single changes, then pairs of different kinds; each with its plan and model, if they can run."""
    kinds = singles(plan, model)
    seen = {(plan, model)}
    for change in [c for options in kinds for c in options]:
        yield from _made(plan, model, change, seen)
    for one, other in itertools.combinations(kinds, 2):
        for a, b in itertools.product(one, other):
            yield from _made(plan, model, {**a, **b}, seen)


def singles(plan: Plan, model: ModelConfig) -> list[list[Change]]:
    """The changes of each kind, the mildest first."""
    batches = [b for b in range(plan.micro_batch - 1, 0, -1) if plan.micro_batch % b == 0]
    kinds = {"none": 0, "selective": 1, "full": 2}
    recomputed: list[Change] = [
        {"recompute": kind, "recompute_modules": "core_attn"}  # modules are of selective recomputation alone
        for kind, rank in kinds.items()
        if rank > kinds.get(plan.recompute, 1)
    ]
    if plan.recompute_nth > 1:
        recomputed = [{"recompute_nth": 1}]
    return [
        [{"zero": stage} for stage in range(plan.zero + 1, 4)],
        [{"micro_batch": b} for b in batches],
        recomputed,
        [{"loss": "chunked"}] if model.loss == "whole" else [],
        [{"offload": "optimizer"}] if plan.offload == "none" else [],
        [{"schedule": "1f1b"}] if plan.schedule == "gpipe" else [],
        [{"bucket": plan.bucket // 4}] if plan.bucket // 4 >= SMALLEST_BUCKET else [],
        [] if plan.reshard else [{"reshard": True}],
        list(layouts(plan, model)),
    ]


def layouts(plan: Plan, model: ModelConfig) -> Iterator[Change]:
    """Other shares of dp, tp and pp in the same GPUs; cp stays."""
    gpus = plan.dp * plan.tp * plan.pp
    for pp in (p for p in range(1, min(gpus, model.layers) + 1) if gpus % p == 0):
        for tp in (t for t in range(1, gpus // pp + 1) if gpus // pp % t == 0):
            dp = gpus // pp // tp
            if (dp, tp, pp) != (plan.dp, plan.tp, plan.pp):
                yield {"dp": dp, "tp": tp, "pp": pp}


def _made(
    plan: Plan, model: ModelConfig, change: Change, seen: set[tuple[Plan, ModelConfig]]
) -> Iterator[tuple[Change, Plan, ModelConfig]]:
    of_model = {k: v for k, v in change.items() if k in ModelConfig.model_fields}
    values = {**plan.model_dump(), **{k: v for k, v in change.items() if k not in of_model}}
    if "pp" in change and change["pp"] != plan.pp:
        values["layers_per_stage"] = None
    if "dp" in change and change["dp"] != plan.dp:
        values["shard"] = 0
    if not _matters(values, change):
        return
    try:
        other = Plan(**values)
        shape = ModelConfig(**{**model.model_dump(), **of_model}) if of_model else model
        other.check(shape)
    except (InputError, ValueError):  # not available in this version, or does not divide
        return
    if (other, shape) not in seen:
        seen.add((other, shape))
        kept = {k: v for k, v in change.items() if getattr(model if k in of_model else plan, k) != v}
        yield kept, other, shape


def _only_adds(change: Change, less: Change) -> bool:
    """Whether `change` is `less`, which fits, and a last resort on top (or a stronger one)."""
    more = {k for k in change if k not in less or change[k] != less[k]}
    return less.keys() <= change.keys() and bool(more) and more <= LAST_RESORTS


def _matters(values: dict[str, Any], change: Change) -> bool:
    """Whether the change does anything: ZeRO needs replicas, a bucket one that is not a module, a schedule
    stages.
    """
    if "zero" in change and values["dp"] == 1:
        return False
    if "bucket" in change and (values["dp"] == 1 or values["zero"] == 3):
        return False
    return not ("schedule" in change and values["pp"] == 1)


def _option(name: str, value: Any) -> str:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value}"


# ---- how it is judged --------------------------------------------------------------------------------------
def stages(
    plan: Plan, model: ModelConfig, capacity: float | None, steps: int = 2, host_bytes: float | None = None
) -> list[dict[str, Any]] | OutOfMemory:
    """The dry recording of one rank of each pipeline stage, or what the first of them ran out of."""
    recorded = []
    for stage in range(plan.pp):
        outcome = record_rank(
            stage * plan.data_ranks * plan.tp, plan.gpus, train_rank, (_job(plan, model, steps),), capacity
        )
        if isinstance(outcome.error, OutOfMemory):
            return outcome.error
        if outcome.error is not None:
            raise outcome.error
        assert outcome.recording is not None
        if host_bytes is not None and outcome.result.host_bytes > host_bytes:
            return OutOfMemory(
                f"rank {outcome.rank} keeps {outcome.result.host_bytes:,} bytes in host memory of "
                f"{host_bytes:,.0f}"
            )
        recorded.append(outcome.recording)
    return recorded


def _job(plan: Plan, model: ModelConfig, steps: int) -> Job:
    """A step; two where buckets are filled anew after the first."""
    return Job(plan, model, steps=min(steps, 2) if plan.data_ranks > 1 and not plan.zero else 1)


def _at_least(plan: Plan, model: ModelConfig, hardware: Hardware, recorded: list[dict[str, Any]]) -> float:
    """A step takes at least as long: each rank of a stage does what the recorded one did.

    With cp or ep it may not. Of many GPUs the bound takes longer than the plan itself, folded.
    """
    if plan.cp > 1 or plan.ep > 1 or plan.gpus > MOST_STANDING_IN:
        return 0.0
    each = plan.dp * plan.tp
    every = [standing_in(recorded[rank // each], rank, plan.mesh, plan.shards) for rank in range(plan.gpus)]
    try:
        return replay(ExecutionGraph.build(every, job_info(_job(plan, model, 1))), hardware).makespan
    # a buffer of fewer elements than ranks: no bound, so it is recorded on every rank
    except (MessageLost, Cycle):
        return 0.0


def on_every_rank(
    plan: Plan, model: ModelConfig, hardware: Hardware, capacity: float | None, steps: int = 2
) -> tuple[int, float]:
    """Bytes of the fullest rank and seconds of a step, every rank recorded or one of each role; OutOfMemory
    when one does not fit.
    """
    recorded = record(Cluster(hardware, plan.gpus, "dry", memory_bytes=capacity), _job(plan, model, steps))
    return max(total for total, _ in recorded.peak_memory()), replay(recorded.graph, hardware).makespan


def surely_fits(plan: Plan, model: ModelConfig, capacity: float) -> bool:
    """True when even the whole model and all micro-batches on one GPU, counted generously, would not fill it.

    States, buckets, gathered copies and the optimizer's temporaries: 128 bytes a parameter. Activations:
    every tensor of a layer several times over at 8 bytes, of all micro-batches at once. A plan that passes
    need not be recorded to know that it fits.
    """
    widest = max(model.hidden, model.heads * model.score_dim)
    a_layer = 64 * widest + 16 * model.width + 8 * model.heads * model.seq
    if model.experts:  # a row for each of a token's experts, and what the router says of all
        each = 16 * (model.hidden + model.expert_width)
        a_layer += model.top_k * each + 16 * model.shared_ffn + 16 * model.experts
    tokens = plan.micro_batch * plan.micro_batches * model.seq
    activations = 8 * tokens * (model.layers * a_layer + 8 * model.hidden + 8 * model.vocab)
    return 128 * model.parameters() + activations <= capacity
