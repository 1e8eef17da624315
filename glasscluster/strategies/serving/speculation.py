"""Speculative decoding on ranks, recorded: passes of the draft and passes of the target, and what a token
costs.

The algorithm is model/decoding/speculative.py; here both models stand on the same tensor-parallel ranks, each
with a cache of its own. Pass i is recorded as two micro-batches: 2i the draft's γ guesses, 2i + 1 the
target's judgement and the draws.

    t_q(γ)           virtual seconds of the γ guesses of a pass
    t_p(γ)           of judging γ + 1 tokens
    tokens a second  tokens a pass / (t_q(γ) + t_p(γ)): Eq 32 says the tokens a pass, replay the seconds

So the best γ follows from α and from the hardware: each guess more is accepted less often and costs as much
as the one before. But: how many guesses are accepted depends on data: there is no dry run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glasscluster.base.errors import InputError
from glasscluster.model.config import ModelConfig
from glasscluster.model.decoding.cache import StaticCache
from glasscluster.model.decoding.generate import GREEDY, Sampling, generate
from glasscluster.model.decoding.packed import forward_packed
from glasscluster.model.decoding.speculative import Judged, Speculation
from glasscluster.model.gpt import GPTStage
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.sim.time.timeline import Timeline
from glasscluster.strategies.serving.generation import make_stage

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class SpeculationJob:
    """Everything a rank needs. Whole parameters by full name, or weights drawn from the seed (the draft's
    from the next one).
    """

    target: ModelConfig
    draft: ModelConfig
    prompts: tuple[tuple[int, ...], ...]
    tokens: int
    gamma: int = 4
    sampling: Sampling = GREEDY
    tp: int = 1
    precision: str = "fp32"
    seed: int = 0
    target_state: State | None = None
    draft_state: State | None = None
    algorithm: str = "ring"


@dataclass
class RankSpeculation:
    """What a rank brings back, by sequence."""

    tokens: list[list[int]] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)

    @property
    def accepted(self) -> list[int]:
        """Guesses that each pass accepted, all sequences together."""
        return [n for judged in self.judged for n in judged.accepted]

    @property
    def tokens_per_pass(self) -> float:
        """With the target's own."""
        return 1 + sum(self.accepted) / len(self.accepted)

    @property
    def alpha(self) -> float:
        """Mean of β = Σ min(p, q) over the guesses that were looked at (2211.17192, definition 3.1)."""
        overlap = [beta for judged in self.judged for beta in judged.overlap]
        return sum(overlap) / len(overlap)


def speculate_rank(gpu: GPU, job: SpeculationJob) -> RankSpeculation:
    """The SPMD program: the same on threads, Ray and torchrun."""
    if gpu.device.type == "meta":
        raise InputError(
            "backend", "dry", "how many guesses are accepted depends on data", ["threads", "ray"]
        )
    with gpu.unrecorded():
        target = make_stage(gpu, job.target, job.tp, job.precision, job.seed, algorithm=job.algorithm)
        draft = make_stage(gpu, job.draft, job.tp, job.precision, job.seed + 1, algorithm=job.algorithm)
        for stage, state in ((target, job.target_state), (draft, job.draft_state)):
            fill(stage, state or {})
        made = Speculation(target, draft, job.prompts, job.tokens, job.gamma, job.sampling)
    gpu.start_step()
    number = 0
    while not made.done:
        with gpu.region("forward", micro_batch=2 * number):
            guess = made.guess()
        with gpu.region("forward", micro_batch=2 * number + 1):
            made.judge(guess)
        number += 1
    return RankSpeculation(made.generated, made.judged)


def judge_alone(gpu: GPU, model: ModelConfig, context: int, tokens: int, precision: str = "bf16") -> None:
    """A pass of the target over the last token and its guesses, `tokens` in all, behind a context; can be
    recorded dry at any scale.
    """
    with gpu.unrecorded():
        stage = make_stage(gpu, model, precision=precision)
        cache = StaticCache(stage, 1, context + tokens)
        cache.lengths = [context]
    gpu.start_step()
    with gpu.region("forward", micro_batch=0):
        forward_packed(stage, cache, [[0] * tokens], tokens)


@torch.no_grad()
def fill(stage: GPTStage, state: State) -> None:
    """Put whole parameters into a stage, each rank its part of them."""
    parallel = stage.parts()[0].parallel
    constants = {name: (tensor, None) for name, tensor in stage.full_constants().items()}
    for name, (parameter, shard) in (stage.full_names() | constants).items():
        if name in state:
            whole = state[name].to(parameter)
            parameter.copy_(whole if shard is None else shard.take(whole, parallel.rank, parallel.size))


# ---- what was counted --------------------------------------------------------------------------------------
def pass_seconds(timeline: Timeline, first: int = 1) -> tuple[float, float]:
    """Mean virtual seconds of a pass's guesses and of its judgement; passes before `first` (which take in the
    prompts) left out.
    """
    graph, parts, before = timeline.graph, ([0.0], [0.0]), 0.0
    for number in range(int(graph.micro_batch.max()) + 1):
        rows = graph.micro_batch == number
        end = float(timeline.end[rows].max()) if rows.any() else before
        if number >= 2 * first:
            parts[number % 2].append(end - before)
        before = end
    guess, judge = (sum(spent) / max(1, len(spent) - 1) for spent in parts)
    return guess, judge


def chi_square(counted: Counter, expected: Mapping, least: float = 5.0) -> tuple[float, int, float]:
    """Pearson's statistic of counts against expected ones, degrees of freedom, and the probability of a
    larger statistic.

    Cells that expect fewer than `least` are taken together (Cochran, 1954).
    """
    rare = {cell for cell, n in expected.items() if n < least}
    pairs = [(counted[cell], n) for cell, n in expected.items() if cell not in rare]
    if rare:
        pairs.append((sum(counted[cell] for cell in rare), sum(expected[cell] for cell in rare)))
    statistic, degrees = sum((n - e) ** 2 / e for n, e in pairs), len(pairs) - 1
    tail = torch.special.gammaincc(
        torch.tensor(degrees / 2, dtype=torch.float64), torch.tensor(statistic / 2, dtype=torch.float64)
    )
    return statistic, degrees, float(tail)


def joint(
    stage: GPTStage, prompt: Sequence[int], tokens: int, sampling: Sampling
) -> dict[tuple[int, ...], float]:
    """The exact probability of every continuation of so many tokens: V^tokens of them, one forward a length,
    no cache, no draws.
    """
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(tokens):
        before = list(found)
        p = sampling.probabilities(generate(stage, [[*prompt, *c] for c in before], 1).logits[0])
        found = {
            (*c, t): found[c] * float(share)
            for c, row in zip(before, p, strict=True)
            for t, share in enumerate(row)
        }
    return found
