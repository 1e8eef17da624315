"""Below what no replay of a layout can be: seconds of a step, and bytes of the fullest rank.

Symbols: m micro-batches, F_s and B_s a stage's forward and backward of one (work.py), Ψ a rank's parameters.

    rank r computes                    m Σ (F_s + B_s)     over its own stages
    it cannot start before             Σ F_s               of the stages before its first one, and their hops
    and what it sent back last takes   Σ B_s               of the same stages, and their hops
                                                           (0 where W can fill the end: zero bubble)
    its last gradients are reduced at  start + (m - 1)(F + B) + F + reduction   ZeRO 0 and 1, a stage a rank
    ZeRO 2 and 3 along dp              m reductions, or 2m gatherings: the longer of the two

    step >= max of these over the ranks, + optimizer, or the gathering of what it updated

    memory >= parameters + optimizer + gradients (Eq 15), or, before the first backward,
              parameters + optimizer + what the first forwards keep (Eq 17)

The optimizer waits for all ranks where gradients are clipped. A message of NCCL's takes at least its bytes
over the bandwidth that the whole would have.
But: with ep and hybrid sharding no data-parallel traffic is counted; what experts, latents or the head keep
is not either, and of these a layer's input alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, takewhile
from typing import NamedTuple

from glasscluster.model.config import ModelConfig
from glasscluster.scenarios.planning.work import Work
from glasscluster.sim.time.hardware import Hardware
from glasscluster.sim.time.nccl import model as nccl
from glasscluster.strategies.data.rows import optimizer_state
from glasscluster.strategies.data.zero import predict_state
from glasscluster.strategies.judge.activations import predict_layer
from glasscluster.strategies.pipeline.options import make_pipeline
from glasscluster.strategies.plan import Plan


@dataclass(frozen=True)
class Bound:
    """The least a step can take, and of what.

    Attributes:
        seconds: the bound itself.
        compute: of the rank that computes longest.
        window: until the last backward.
        traffic: of the data-parallel lane that is busy longest.
    """

    seconds: float
    compute: float
    window: float
    traffic: float


class Order(NamedTuple):
    """What the bounds need of a schedule.

    Attributes:
        placement: the rank of each stage.
        own_weights: whether W is done apart from I.
        first_forwards: for each rank the stages of the forwards that it does before its first backward.
    """

    placement: tuple[int, ...]
    own_weights: bool
    first_forwards: tuple[tuple[int, ...], ...]


def order_of(plan: Plan) -> Order:
    """What the bounds need of a plan's schedule."""
    return _order(plan.schedule, plan.pp, plan.micro_batches, plan.virtual_stages)


@lru_cache(maxsize=65536)
def _order(name: str, p: int, m: int, v: int) -> Order:
    schedule = make_pipeline(name, p, m, v)
    first = (takewhile(lambda action: action.kind == "F", actions) for actions in schedule.ranks)
    return Order(
        schedule.placement,
        any(action.kind == "W" for action in schedule.ranks[0]),
        tuple(tuple(action.stage for action in actions) for actions in first),
    )


def closest(one: Bound, other: Bound) -> Bound:
    """The higher of two bounds of the same layout."""
    return max(one, other, key=lambda bound: bound.seconds)


def time_bound(plan: Plan, model: ModelConfig, hw: Hardware, work: Work) -> Bound:
    """What a step takes at least."""
    layers, pipeline = plan.stage_layers(model), order_of(plan)
    last, holders, m = plan.stages - 1, pipeline.placement, plan.micro_batches
    each = [work.stage(layers[s], s == 0, s == last) for s in range(plan.stages)]
    own_weights = pipeline.own_weights
    parts, hop = parameters(plan, model), _hop(plan, model, hw)
    window = compute = traffic = reduced = updating = gathering = 0.0
    for rank in range(plan.pp):
        mine = [s for s, holder in enumerate(holders) if holder == rank]
        first = min(mine)
        crossed = hop * sum(a != b for a, b in pairwise(holders[: first + 1]))
        busy = m * sum(each[s][0] + each[s][1] for s in mine)
        begin = sum(f for f, _ in each[:first]) + crossed
        ends = 0.0 if own_weights else sum(b for _, b in each[:first]) + crossed
        psi = sum(parts[s] for s in mine)
        lane, after = _data_parallel(plan, psi, hw)
        compute, traffic = max(compute, busy), max(traffic, lane)
        window = max(window, begin + busy + ends)
        if len(mine) == 1 and plan.zero <= 1 and not own_weights:
            reduced = max(reduced, begin + busy - each[first][1] + lane)
        updating = max(updating, work.update * psi / (plan.shards if plan.zero else 1))
        gathering = max(gathering, after)
    done = max(window, traffic, reduced)
    behind = max(updating if plan.clip else 0.0, gathering)
    return Bound(done + behind, compute, window, traffic)


def _hop(plan: Plan, model: ModelConfig, hw: Hardware) -> float:
    """Seconds of an activation from one stage to the next, over the quickest link that may join them."""
    if plan.pp == 1 or hw.topology is not None:
        return 0.0
    link = (
        hw.inter
        if plan.gpus // plan.pp >= hw.node_size
        else max(hw.intra, hw.inter, key=lambda x: x.bandwidth)
    )
    nbytes = plan.width * plan.micro_batch * model.seq * model.hidden // plan.pieces
    return link.alpha + nbytes / link.bandwidth


def _data_parallel(plan: Plan, psi: float, hw: Hardware) -> tuple[float, float]:
    """Seconds of the data-parallel lane before the optimizer, and behind it."""
    if plan.data_ranks == 1 or plan.ep > 1 or plan.shard or hw.topology is not None:
        return 0.0, 0.0
    gradients, weights, m = psi * plan.gradient_width, psi * plan.width, plan.micro_batches
    if plan.zero == 0:
        return _moving("all_reduce", gradients, plan, hw), 0.0
    scattered = _moving("reduce_scatter", gradients, plan, hw)
    gathered = _moving("all_gather", weights, plan, hw)
    if plan.zero == 1:
        return scattered, gathered
    times = m if plan.accumulate == "sharded" else 1
    if plan.zero == 2:
        return times * scattered, gathered
    return max(times * scattered, (2 * m if plan.reshard else m) * gathered), 0.0


def _moving(operation: str, nbytes: float, plan: Plan, hw: Hardware) -> float:
    """Seconds that the bytes of a collective over all data-parallel ranks move at least."""
    return _seconds(operation, int(nbytes), plan.data_ranks, plan.tp, hw.name, _Held(hw))


class _Held:
    """A machine as an argument that a cache does not look at."""

    def __init__(self, machine: Hardware) -> None:
        self.machine = machine

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and self.machine is other.machine

    def __hash__(self) -> int:
        return id(self.machine)


@lru_cache(maxsize=4096)
def _seconds(operation: str, nbytes: int, n: int, stride: int, _name: str, held: _Held) -> float:
    hw = held.machine
    members = range(0, n * stride, stride)
    nodes = len({member // hw.node_size for member in members})
    if hw.gpu.sm:
        as_built = hw.scaled(bandwidth=1 / hw.bandwidth_scale, latency=1 / hw.latency_scale)
        chosen = nccl.choose(operation, max(1, nbytes), as_built, n, node_size=-(-n // nodes))
        return (chosen.time_s - chosen.latency_s) / hw.bandwidth_scale
    slowest = hw.inter if nodes > 1 else hw.intra
    return (2 if operation == "all_reduce" else 1) * (n - 1) / n * nbytes / slowest.bandwidth


# ---- bytes -------------------------------------------------------------------------------------------------
def parameters(plan: Plan, model: ModelConfig) -> list[float]:
    """Parameters that a rank has of each stage, at least: what tensor ranks have whole counts as cut."""
    layers, cut = plan.stage_layers(model), plan.tp * plan.ep
    table = model.vocab * model.hidden
    sizes = _layer_sizes(model)
    out = []
    for stage, numbers in enumerate(layers):
        own = sum(sizes[number] for number in numbers) + table * (stage == 0)
        out.append((own + table * (stage == len(layers) - 1 and not model.tied)) / cut)
    return out


@lru_cache(maxsize=64)
def _layer_sizes(model: ModelConfig) -> tuple[int, ...]:
    upto = [model.model_copy(update={"layers": n}).parameters() for n in range(1, model.layers + 1)]
    steps = [b - a for a, b in pairwise(upto)]
    return (min(steps, default=0), *steps)


def memory_bound(plan: Plan, model: ModelConfig) -> float:
    """Bytes that the fullest rank holds at least."""
    moments, width = optimizer_state(plan)
    on_gpu = 0 if plan.offload == "optimizer" else (moments + plan.has_master) * width
    parts, layers, most = parameters(plan, model), plan.stage_layers(model), 0.0
    kept, shards = _kept(plan, model), plan.shards if plan.ep == 1 else plan.data_ranks
    pipeline = order_of(plan)
    for rank, first in enumerate(pipeline.first_forwards):
        mine = [s for s, holder in enumerate(pipeline.placement) if holder == rank]
        psi = sum(parts[s] for s in mine)
        held = predict_state(plan.zero, int(psi), shards, plan.width, plan.gradient_width, on_gpu)
        live = kept * sum(len(layers[stage]) for stage in first)
        most = max(most, held["parameters"] + held["optimizer"] + max(held["gradients"], live))
    return most


PLAIN = ("experts", "kv_latent", "qk_norm", "patches", "sinks")  # of a model that Eq 17's list is whole for


def _kept(plan: Plan, model: ModelConfig) -> int:
    """Bytes that a layer keeps of a micro-batch."""
    return _layer_keeps(
        model,
        plan.micro_batch,
        plan.tp,
        plan.width,
        plan.recompute,
        plan.sequence_parallel,
        plan.cp,
        plan.context,
    )


@lru_cache(maxsize=4096)
def _layer_keeps(
    model: ModelConfig, b: int, t: int, w: int, recompute: str, sequence: bool, cp: int, context: str
) -> int:
    plain = model.norm_position == "pre" and not any(getattr(model, name) for name in PLAIN)
    if recompute not in ("none", "selective", "full") or not plain or model.key_heads < t:
        recompute = "full"
    if model.attention != "flash" and cp > 1:
        recompute = "full"
    return sum(term.nbytes for term in predict_layer(model, b, t, w, recompute, sequence, cp, context))
