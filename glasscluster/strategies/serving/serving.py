"""Serving on tensor-parallel ranks: a serving plan (batching.py) run on the model, one forward a step.

Every rank follows the same plan, computes and caches its own heads, and chooses the same tokens
(generation.py).

    static      tokens [slots, S], padded to the longest prompt, then [slots, 1]; a sequence that has ended is
                computed on, and its token thrown away; the cache has a slot of equal size for each sequence
    continuous  all new tokens packed side by side (model/decoding/packed.py); the cache takes blocks from a
                pool (PagedCache)

Step i is recorded as micro-batch i, and replay gives its virtual time. The plan's clock runs the same step on
the dry backend and replays that, so a run must take as long as was planned; a check compares the two. On
other hardware the order of the plan stays, and the times are those of that hardware.

    Eq 33  wasted share: static 1 - mean/max of the requests' tokens, in slots computed and in cache;
                         continuous at most block - 1 tokens of cache a sequence

But: greedy decoding only; an idle server is not recorded (time jumps to the next arrival).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from glasscluster.model.config import ModelConfig
from glasscluster.model.decoding.cache import Cache, PagedCache, StaticCache
from glasscluster.model.decoding.generate import forward as forward_padded
from glasscluster.model.decoding.generate import listed, pad
from glasscluster.model.decoding.packed import forward_packed
from glasscluster.model.gpt import GPTStage
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import Hardware
from glasscluster.sim.time.timeline import Timeline
from glasscluster.strategies.serving.batching import Continuous, Policy, Request, Schedule, Static, Step, plan
from glasscluster.strategies.serving.generation import make_stage, predict_traffic

PolicyName = Literal["continuous", "static"]


@dataclass(frozen=True)
class ServingJob:
    """Everything a rank needs to serve.

    Continuous batching has a pool of `blocks` blocks of `block` tokens. Static batching has `slots` slots,
    each with room for the longest request.
    """

    model: ModelConfig
    requests: tuple[Request, ...]
    policy: PolicyName = "continuous"
    slots: int = 4
    block: int = 8
    blocks: int = 32
    tp: int = 1
    precision: str = "fp32"
    seed: int = 0
    weights: str | None = None
    capture: bool = False
    algorithm: str = "ring"

    @property
    def capacity(self) -> int:
        """The most tokens that a request has in the cache."""
        return max(r.cached for r in self.requests)

    def make_policy(self) -> Policy:
        """The policy of the job, before its first step."""
        if self.policy == "static":
            return Static(self.requests, self.slots)
        return Continuous(self.requests, self.slots, self.block, self.blocks)

    def make_cache(self, stage: GPTStage) -> Cache:
        """An empty cache: paged for continuous batching, else static."""
        if self.policy == "static":
            return StaticCache(stage, self.slots, self.capacity)
        return PagedCache(stage, self.slots, self.capacity, self.block, self.blocks)


@dataclass
class RankServing:
    """What a rank brings back: each request's new tokens, and for every step what it computed and held."""

    tokens: list[list[int]] = field(default_factory=list)
    logits: list[list[Tensor]] = field(default_factory=list)  # with `capture`: [V] of each request's tokens
    computed: list[int] = field(default_factory=list)  # by step, sequences that a token was chosen for
    used: list[int] = field(default_factory=list)  # by step, those of them that had not ended
    reserved_bytes: list[int] = field(default_factory=list)  # by step, bytes of cache that sequences occupied
    filled_bytes: list[int] = field(default_factory=list)  # by step, bytes of them that hold a token
    parameter_bytes: int = 0
    cache_bytes: int = 0  # bytes that the cache allocated
    token_bytes: int = 0  # bytes of one token in the cache
    left_bytes: int = 0  # bytes of blocks that were not freed when all requests were done; 0 is right


def serve_rank(gpu: GPU, job: ServingJob, schedule: Schedule) -> RankServing:
    """Serve on this rank (an SPMD program: every rank runs it, on every backend)."""
    with gpu.unrecorded():
        stage, cache = set_up(gpu, job)
    sequences, made = [list(r.prompt) for r in job.requests], RankServing(logits=[[] for _ in job.requests])
    gpu.start_step()
    for number, step in enumerate(schedule.steps):
        for slot in (*step.cleared, *(slot for slot, _ in step.preempted)):
            cache.free(slot)
        with gpu.region("forward", micro_batch=number):
            logits = forward(stage, cache, job, step, sequences)
            chosen = logits.argmax(-1)
        made.reserved_bytes.append(cache.bytes if job.policy == "static" else cache.used_bytes)
        made.filled_bytes.append(cache.filled_bytes)
        with gpu.unrecorded():
            tokens = listed(chosen)
        used = [(row, work) for row, work in enumerate(step.work) if work.count]
        made.computed.append(len(tokens))
        made.used.append(len(used))
        for row, work in used:
            sequences[work.request].append(tokens[row])
            if job.capture:
                made.logits[work.request].append(logits[row])
            if (
                job.policy == "continuous"
                and len(sequences[work.request]) > job.requests[work.request].cached
            ):
                cache.free(work.slot)
    made.tokens = (
        [s[len(r.prompt) :] for s, r in zip(sequences, job.requests, strict=True)]
        if gpu.device.type != "meta"
        else []
    )
    made.parameter_bytes = sum(p.numel() * p.element_size() for p in stage.parameters())
    made.cache_bytes, made.token_bytes = cache.bytes, cache.token_bytes
    made.left_bytes = cache.used_bytes if job.policy == "continuous" else 0
    return made


def set_up(gpu: GPU, job: ServingJob) -> tuple[GPTStage, Cache]:
    """The model and an empty cache, both registered with the memory recorder."""
    stage = make_stage(gpu, job.model, job.tp, job.precision, job.seed, job.weights, job.algorithm)
    cache = job.make_cache(stage)
    for parameter in stage.parameters():
        gpu.memory.register(parameter, "parameters")
    for pool in (t for pools in cache.pools.values() for t in pools):
        gpu.memory.register(pool, "buffers", "cache")
    return stage, cache


def forward(
    stage: GPTStage, cache: Cache, job: ServingJob, step: Step, sequences: Sequence[Sequence[int]]
) -> Tensor:
    """Run the model on a step.

    Returns logits: [slots, V] with static batching, [len(step.work), V] with continuous batching.
    """
    new: list[Sequence[int]] = [() for _ in range(job.slots)]
    for work in step.work:
        new[work.slot] = sequences[work.request][work.start : work.start + work.count]
    if job.policy == "continuous":
        return forward_packed(stage, cache, new)
    return forward_padded(
        stage, pad(new, next(stage.parameters()).device), cache.begin([len(tokens) for tokens in new]), cache
    )


# ---- time --------------------------------------------------------------------------------------------------
def one_step(gpu: GPU, job: ServingJob, step: Step) -> None:
    """Record one step alone, with a cache as full as it would be at that step. For the plan's clock."""
    with gpu.unrecorded():
        stage, cache = set_up(gpu, job)
        for work in step.work:
            cache.reserve(work.slot, work.start)
            cache.lengths[work.slot] = work.start
    gpu.start_step()
    longest = max(w.start + w.count for w in step.work)
    with gpu.region("forward", micro_batch=0):
        forward(stage, cache, job, step, [[0] * longest for _ in job.requests]).argmax(-1)


def make_schedule(job: ServingJob, hardware: Hardware) -> Schedule:
    """Plan a job on the virtual clock of some hardware: each step runs on the dry backend and is replayed."""
    cluster = Cluster(hardware, job.tp, "dry", memory_bytes=None)

    def clock(step: Step) -> float:
        return cluster.run(one_step, job, step, info={"precision": job.precision}).timeline.makespan

    return plan(job.requests, job.make_policy(), clock)


def step_times(timeline: Timeline, job: ServingJob, schedule: Schedule) -> list[tuple[float, float]]:
    """When each step of a recorded run begins and ends, in seconds.

    A step takes as long as in the replay. It begins when the step before it has ended and its requests have
    arrived.
    """
    graph, times, now, before = timeline.graph, list[tuple[float, float]](), 0.0, 0.0
    for number, step in enumerate(schedule.steps):
        end = float(timeline.end[graph.micro_batch == number].max())
        now = max(now, *(job.requests[w.request].arrival_s for w in step.work))
        times.append((now, now + end - before))
        now, before = now + end - before, end
    return times


def token_times(
    job: ServingJob, schedule: Schedule, times: Sequence[tuple[float, float]]
) -> list[list[float]]:
    """For each request, when it got its first, second, ... token, in seconds.

    A token is there at the end of the step that chose it.
    """
    tokens_at: list[list[float]] = [[] for _ in job.requests]
    for step, (_, end) in zip(schedule.steps, times, strict=True):
        for work in step.work:
            if work.count:
                tokens_at[work.request].append(end)
    return tokens_at


# ---- theory ------------------------------------------------------------------------------------------------
def predict_paged(schedule: Schedule, block: int) -> list[int]:
    """Eq 33: for each step, how many tokens more would fit into the occupied blocks.

    They are at most block - 1 for each sequence.
    """
    return [sum(-(w.start + w.count) % block for w in step.work) for step in schedule.steps]


def predict_sent(job: ServingJob, schedule: Schedule, width: int) -> int:
    """Bytes that all ranks send over a whole plan: for each step what generation.predict_traffic says.

    The all-reduces of the layers and the one of the embedding carry all columns, padding included; the logits
    are gathered for one token of each sequence.
    """
    sent = 0
    for step in schedule.steps:
        columns, chosen = sum(w.count for w in step.work), len(step.work)
        if job.policy == "static":
            columns, chosen = job.slots * max(w.count for w in step.work), job.slots
        predicted = predict_traffic(job.model, job.tp, 1, columns, width)
        sent += sum(predicted.values()) + (chosen - 1) * predicted["logits"]
    return sent
