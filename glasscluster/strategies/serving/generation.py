"""Generation on tensor-parallel ranks: each computes and caches its own heads, and all sample the same token.

Follows Megatron-LM (1909.08053, section 3) for the matrices and Pope et al. (2211.05102) for the rest.
Symbols: t ranks, B sequences, S columns of a forward, that is tokens of each sequence with its padding (the
longest prompt in the prefill, 1 in a decode step), h hidden, V vocabulary (padded to a multiple of t), w
bytes an element.

    rank i  q_i, k_i, v_i ──► its cache, its heads ──► out_i ──g──► residual ... ──► logits_i
            ──all-gather──► argmax, or a sample drawn from the same seed on every rank

Step i is recorded as micro-batch i: 0 is the prefill, the others are decode steps.

    sent by all ranks, a forward  2 (t-1) B S h w for each of 2 all-reduces a layer and one of the embedding
                                  (Eq 18, forward), one more where every token passes a shared expert
                                  (t-1) B V w for the logits of one token a sequence
    cached on a rank              Eq 3 / t where t divides the key heads; one key head where t is larger
    decode, at least              (bytes of the parameters + bytes of the cache) / memory bandwidth
                                  seconds a step (Eq 31)

But: no pipeline, no sequence parallelism (a decode step has one token a sequence); every rank holds the whole
vocabulary's logits of one token a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from torch import Tensor

from glasscluster.model.config import ModelConfig
from glasscluster.model.decoding.cache import (
    NO_WINDOW,
    Cache,
    PagedCache,
    SlidingWindowCache,
    StaticCache,
    predict,
)
from glasscluster.model.decoding.generate import GREEDY, Generator, Sampling, listed
from glasscluster.model.gpt import GPTStage
from glasscluster.model.parallel import Unsharded
from glasscluster.model.weights import hugging_face
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.sim.ranks.mesh import Mesh
from glasscluster.sim.recording.events import COMPUTE
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.time.hardware import Hardware
from glasscluster.sim.time.timeline import Timeline
from glasscluster.strategies.numerics.formats import DTYPES
from glasscluster.strategies.tensor.tensor_parallel import TensorParallel

CacheKind = Literal["none", "static", "paged", "sliding"]


@dataclass(frozen=True)
class GenerationJob:
    """Everything a rank needs to generate.

    `weights` is a folder in Hugging Face's layout; without one the weights are drawn from `seed`. `block`:
    tokens of a block of the paged cache. `chunk`: tokens of the prompts that one forward takes; 0: all.
    """

    model: ModelConfig
    prompts: tuple[tuple[int, ...], ...]
    tokens: int
    cache: CacheKind = "static"
    tp: int = 1
    block: int = 16
    window: int = 0  # tokens that a sliding cache keeps, or attention without a cache looks back; 0: all
    chunk: int = 0
    precision: str = "fp32"
    sampling: Sampling = GREEDY
    seed: int = 0
    weights: str | None = None
    capture: bool = False
    algorithm: str = "ring"

    @property
    def capacity(self) -> int:
        """Cached tokens of the longest sequence. The last token chosen is never fed back, so never cached."""
        return max(map(len, self.prompts)) + self.tokens - 1

    @property
    def lengths(self) -> list[int]:
        """How many tokens of each sequence are cached in the end."""
        return [len(p) + self.tokens - 1 for p in self.prompts]

    @property
    def columns(self) -> list[int]:
        """Tokens a sequence, padding included, of every forward."""
        longest = max(map(len, self.prompts))
        if self.cache == "none":
            return [longest + i for i in range(self.tokens)]
        each = self.chunk or longest
        return [min(each, longest - a) for a in range(0, longest, each)] + [1] * (self.tokens - 1)

    def make_cache(self, stage: GPTStage) -> Cache | None:
        """An empty cache of the kind that the job names; None for `cache="none"`."""
        n = len(self.prompts)
        if self.cache == "paged":
            return PagedCache(stage, n, self.capacity, self.block)
        if self.cache == "sliding":
            return SlidingWindowCache(stage, n, self.capacity, self.window or self.capacity)
        return StaticCache(stage, n, self.capacity) if self.cache == "static" else None


@dataclass
class RankGeneration:
    """What a rank brings back: the new tokens of every sequence, and the bytes that it held at the end."""

    tokens: list[list[int]] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)  # with `capture`: [B, V] of every step
    parameter_bytes: int = 0
    cache_bytes: int = 0  # allocated, counted from the tensors
    used_bytes: int = 0  # of them, in blocks that a sequence has
    filled_bytes: int = 0  # of them, with a token's keys and values


def generate_rank(gpu: GPU, job: GenerationJob) -> RankGeneration:
    """Generate on this rank (an SPMD program: every rank runs it, on every backend)."""
    result = RankGeneration()
    with gpu.unrecorded():
        stage = make_stage(gpu, job.model, job.tp, job.precision, job.seed, job.weights, job.algorithm)
        cache = job.make_cache(stage)
        for parameter in stage.parameters():
            gpu.memory.register(parameter, "parameters")
        for pool in (t for pools in (cache.pools.values() if cache else ()) for t in pools):
            gpu.memory.register(pool, "buffers", "cache")
    gpu.start_step()
    window = job.window or None
    steps = iter(
        Generator(
            stage, job.prompts, job.tokens, cache, job.sampling, job.chunk, window if cache is None else None
        )
    )
    chosen: list[list[int]] = []
    for number in range(job.tokens):
        with gpu.region("forward", micro_batch=number):
            logits, tokens = next(steps)
        with gpu.unrecorded():
            chosen.append(listed(tokens))
            if job.capture and gpu.device.type != "meta":
                result.logits.append(logits.cpu())
    result.tokens = [list(t) for t in zip(*chosen, strict=True)] if gpu.device.type != "meta" else []
    result.parameter_bytes = sum(p.numel() * p.element_size() for p in stage.parameters())
    if cache is not None:
        result.cache_bytes, result.used_bytes, result.filled_bytes = (
            cache.bytes,
            cache.used_bytes,
            cache.filled_bytes,
        )
    return result


def make_stage(
    gpu: GPU,
    model: ModelConfig,
    tp: int = 1,
    precision: str = "fp32",
    seed: int = 0,
    weights: str | None = None,
    algorithm: str = "ring",
    mesh: Mesh | None = None,
) -> GPTStage:
    """All layers of a model, with this rank's heads and columns of each.

    `mesh`: the ranks' mesh, where tp is one of several axes. `weights`: a folder in Hugging Face's layout;
    None: drawn from the seed.
    """
    parallel = Unsharded()
    if tp > 1:
        mesh = mesh or gpu.make_mesh({"tp": tp})
        sharing = tp // model.key_heads
        parallel = TensorParallel(
            mesh["tp"], algorithm, mesh.inside(mesh["tp"], sharing, "heads") if sharing > 1 else None
        )
    stage = GPTStage(model, parallel=parallel, seed=seed, dtype=DTYPES[precision], device=gpu.device)
    for part in stage.parts():
        part.register_forward_pre_hook(
            lambda module, _args: gpu.recorder.enter_layer(getattr(module, "index", -1))
        )
    if weights is not None and gpu.device.type != "meta":
        hugging_face.fill(stage, weights)
    return stage


# ---- what was counted --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Phase:
    """One step of generation for the roofline model (Eq 31).

    Attributes:
        flops: FLOPs that one rank computed.
        bytes: bytes that it read from and wrote to its GPU memory.
        time_s: virtual seconds until the slowest rank had finished the step.
        peak: FLOPs a second that the GPU computes at most.
        bandwidth: bytes a second of the GPU's memory.
    """

    flops: int
    bytes: int
    time_s: float
    peak: float
    bandwidth: float

    @property
    def intensity(self) -> float:
        """Arithmetic intensity: FLOPs for each byte of memory traffic."""
        return self.flops / self.bytes

    @property
    def roof_s(self) -> float:
        """Eq 31: the least seconds that the step can take, however the work is cut into kernels."""
        return max(self.flops / self.peak, self.bytes / self.bandwidth)

    def as_dict(self) -> dict[str, Any]:
        """The fields and what follows from them, for JSON."""
        bound = "compute" if self.intensity >= self.peak / self.bandwidth else "memory"
        return {
            "flops": self.flops,
            "memory_traffic_bytes": self.bytes,
            "intensity_flops_per_byte": self.intensity,
            "ridge_flops_per_byte": self.peak / self.bandwidth,
            "bound": bound,
            "attainable_flops_per_s": min(self.peak, self.intensity * self.bandwidth),
            "time_s": self.time_s,
            "roof_time_s": self.roof_s,
        }


def phases(timeline: Timeline, hw: Hardware, precision: str, rank: int = 0) -> list[Phase]:
    """The prefill and each decode step of a replayed generation, as `rank` computed them."""
    graph = timeline.graph
    mine = (graph.rank == rank) & (graph.kind == COMPUTE)
    steps, before = [], 0.0
    for number in range(int(graph.micro_batch.max()) + 1):
        here = graph.micro_batch == number
        end = float(timeline.end[here].max())
        flops, nbytes = (int(column[mine & here].sum()) for column in (graph.flops, graph.bytes))
        steps.append(Phase(flops, nbytes, end - before, hw.gpu.peak(precision), hw.gpu.memory_bandwidth))
        before = end
    return steps


def mean(steps: list[Phase]) -> Phase | None:
    """The average of several steps; None if there are none."""
    if not steps:
        return None
    flops, nbytes = (round(sum(getattr(p, what) for p in steps) / len(steps)) for what in ("flops", "bytes"))
    return Phase(flops, nbytes, sum(p.time_s for p in steps) / len(steps), steps[0].peak, steps[0].bandwidth)


# ---- theory ------------------------------------------------------------------------------------------------
def predict_traffic(model: ModelConfig, tp: int, batch: int, columns: int, width: int) -> dict[str, int]:
    """Bytes that all ranks send in a forward of `columns` tokens of each of `batch` sequences (Eq 18, Eq 10).

    The head is applied to one token of each sequence. `width`: bytes an element.
    """
    one = 2 * (tp - 1) * batch * columns * model.hidden * width
    logits = (tp - 1) * batch * -(-model.vocab // tp) * tp * width
    shared = tp // model.key_heads  # ranks that gather one key-value head
    heads = model.layers * (shared - 1) * 2 * batch * columns * model.key_width * width if shared > 1 else 0
    pairs = sum(map(model.matrix_pairs, range(model.layers)))  # each is left with one all-reduce
    return {
        "layers": pairs * one,
        "embedding": one,
        "logits": logits if tp > 1 else 0,
        "key-value heads": heads,
    }


def predict_cache(job: GenerationJob, width: int) -> int:
    """Eq 3: bytes that a rank's cache allocates; `width`: bytes an element.

    A paged cache has enough blocks for every sequence to become as long as the longest.
    """
    slots = job.capacity
    if job.cache == "sliding":
        slots = min(slots, job.window or NO_WINDOW)
    if job.cache == "paged":
        slots = -(-slots // job.block) * job.block
    return predict(job.model, slots * len(job.prompts), width, job.tp) if job.cache != "none" else 0


def predict_floor(parameter_bytes: int, cache_bytes: int, hw: Hardware) -> float:
    """Eq 31: the least seconds of a decode step, in which all weights and all of the cache are read once."""
    return (parameter_bytes + cache_bytes) / hw.gpu.memory_bandwidth


def traffic(graph: ExecutionGraph) -> int:
    """Bytes that all ranks sent, as the recording counted them."""
    return int(np.sum(graph.bytes_sent()))
