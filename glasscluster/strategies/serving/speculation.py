"""Speculative decoding on ranks: what a pass of both models costs, and how many tokens it yields.

Follows Leviathan et al., "Fast inference from transformers via speculative decoding" (2211.17192). The
algorithm is in model/decoding/speculative.py; here both models run on the same tensor-parallel ranks, each
with a cache of its own. Symbols: p the target's distribution, q the draft's, γ guesses a pass, α the rate at
which guesses are accepted. Pass i is recorded as two micro-batches: in 2i the draft makes γ guesses, in
2i + 1 the target verifies them and draws.

    t_q(γ)           virtual seconds in which the draft makes γ guesses
    t_p(γ)           virtual seconds in which the target verifies γ + 1 tokens
    tokens a second  tokens a pass / (t_q(γ) + t_p(γ)); Eq 32 gives the tokens a pass, replay the seconds

The best γ depends on α and on the hardware: a further guess costs as much as the one before it, but is
accepted less often.

But: how many guesses are accepted depends on the data, so there is no dry run.
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
    """Everything a rank needs for speculative decoding.

    `target_state` and `draft_state` are whole parameters by full name. Without one, a model's weights are
    drawn from `seed` (the target's) or `seed + 1` (the draft's). `gamma`: guesses a pass.
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
    """What a rank brings back: for each sequence its new tokens, and how its guesses were judged."""

    tokens: list[list[int]] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)

    @property
    def accepted(self) -> list[int]:
        """How many guesses were accepted in each pass of each sequence."""
        return [n for judged in self.judged for n in judged.accepted]

    @property
    def tokens_per_pass(self) -> float:
        """Tokens generated in a pass, on average: the accepted guesses and one from the target itself."""
        return 1 + sum(self.accepted) / len(self.accepted)

    @property
    def alpha(self) -> float:
        """α: the mean of β = Σ min(p, q) over the guesses that were verified (2211.17192, section 3)."""
        overlap = [beta for judged in self.judged for beta in judged.overlap]
        return sum(overlap) / len(overlap)


def speculate_rank(gpu: GPU, job: SpeculationJob) -> RankSpeculation:
    """Decode on this rank (an SPMD program: every rank runs it, on threads, Ray and torchrun).

    Raises:
        InputError: on the dry backend, where tokens have no values.
    """
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
    """Run the target once on `tokens` tokens (the last one and the guesses) after a context.

    No data is needed, so that the dry backend records it for a model of any size.
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
    """Copy whole parameters, by full name, into a stage; each rank takes its shard of them."""
    parallel = stage.parts()[0].parallel
    constants = {name: (tensor, None) for name, tensor in stage.full_constants().items()}
    for name, (parameter, shard) in (stage.full_names() | constants).items():
        if name in state:
            whole = state[name].to(parameter)
            parameter.copy_(whole if shard is None else shard.take(whole, parallel.rank, parallel.size))


# ---- what was counted --------------------------------------------------------------------------------------
def pass_seconds(timeline: Timeline, first: int = 1) -> tuple[float, float]:
    """Mean virtual seconds in which a pass makes its guesses, and in which it verifies them.

    Passes before number `first` are left out, because they also prefill the prompts.
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
    """Pearson's chi-square test of counted against expected numbers.

    Cells that expect fewer than `least` are merged into one (Cochran, 1954).

    Returns:
        The statistic, its degrees of freedom, and the probability of a larger statistic.
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
    """The exact probability of every continuation of `tokens` tokens, of which there are V^tokens.

    Computed with one forward for each length, without a cache and without sampling. It is what samples are
    tested against.
    """
    probability: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(tokens):
        before = list(probability)
        p = sampling.probabilities(generate(stage, [[*prompt, *c] for c in before], 1).logits[0])
        probability = {
            (*c, t): probability[c] * float(share)
            for c, row in zip(before, p, strict=True)
            for t, share in enumerate(row)
        }
    return probability
