"""Speculative decoding: a small model guesses some tokens, the large one judges all of them in one pass, and
its distribution stays.

Follows Leviathan et al., 2211.17192, algorithm 1 (Chen et al., 2302.01318, algorithm 2, is the same rule).
Symbols: target p, draft q, γ guesses a pass.

    guess    x_1 ~ q_1, ..., x_γ ~ q_γ                    γ passes of the draft, one token each
    judge    p_1, ..., p_{γ+1}                            one pass of the target over the last token
                                                          and all guesses
    accept   x_i while r_i < p_i(x_i) / q_i(x_i)          r_i ~ U(0, 1); n guesses in a row
    correct  one token from (p_{n+1} - q_{n+1})₊, normed  where a guess was rejected;
                                                          from p_{γ+1} where none was (q_{γ+1} = 0)

A guess is accepted with probability β = Σ min(p, q), and what comes out of a position is p (their appendix
A.1). Greedy is the same rule with distributions that have one token. Rejected tokens leave both caches
(Cache.truncate). γ = 0 is plain generation.

    Eq 32  (1 - α^(γ+1)) / (1 - α) tokens a pass on average, if each guess is accepted with probability α
           whatever came before (their equation 1)

But: one draft, guesses in a row (no tree), γ the same in every pass. A sequence may overshoot its end by γ
tokens, which are cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from glasscluster.model.decoding.cache import Cache, StaticCache
from glasscluster.model.decoding.generate import GREEDY, Sampling
from glasscluster.model.decoding.packed import forward_packed
from glasscluster.model.gpt import GPTStage
from glasscluster.model.uses import check_use


class Guess(NamedTuple):
    """What the draft guessed for the sequences `of`: tokens [b, γ], and the distributions q [b, γ, V] they
    were drawn from.
    """

    of: list[int]
    tokens: Tensor
    q: Tensor


@dataclass
class Judged:
    """What each pass brought a sequence: its guesses, how many were accepted, the target's own token; β of
    guesses that were looked at.
    """

    guessed: list[list[int]] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    own: list[int] = field(default_factory=list)
    overlap: list[float] = field(default_factory=list)


@dataclass
class Speculation:
    """A generation by two models.

    Call guess and judge in turn until `done`; caches must be empty, with room for γ tokens more.

    On tensor-parallel ranks the same draws are made everywhere. ValueError: models that do not fit each
    other.
    """

    target: GPTStage
    draft: GPTStage
    prompts: Sequence[Sequence[int]]
    tokens: int
    gamma: int
    sampling: Sampling = GREEDY
    caches: tuple[Cache, Cache] | None = None

    def __post_init__(self) -> None:
        check(self)
        b, capacity = len(self.prompts), max(map(len, self.prompts)) + self.tokens + self.gamma
        target_cache, draft_cache = self.caches or (
            StaticCache(self.target, b, capacity),
            StaticCache(self.draft, b, capacity),
        )
        self.target_cache, self.draft_cache = target_cache, draft_cache
        self.sequences = [list(p) for p in self.prompts]
        self.judged = [Judged() for _ in self.prompts]
        self.draws = torch.Generator().manual_seed(self.sampling.seed)

    @property
    def running(self) -> list[int]:
        """Sequences that still need tokens."""
        return [
            b
            for b, (s, p) in enumerate(zip(self.sequences, self.prompts, strict=True))
            if len(s) < len(p) + self.tokens
        ]

    @property
    def done(self) -> bool:
        """All have theirs."""
        return not self.running

    @property
    def generated(self) -> list[list[int]]:
        """New tokens of each sequence, without what overshot."""
        return [s[len(p) : len(p) + self.tokens] for s, p in zip(self.sequences, self.prompts, strict=True)]

    def guess(self) -> Guess:
        """γ tokens of the draft behind each running sequence."""
        running = self.running
        tokens = torch.zeros(len(running), self.gamma, dtype=torch.int64)
        q = torch.zeros(len(running), self.gamma, self.draft.config.vocab, dtype=torch.float64)
        new = [self.sequences[b][self.draft_cache.lengths[b] :] for b in running]
        for i in range(self.gamma):
            q[:, i] = distribution(
                forward_packed(self.draft, self.draft_cache, self.rows(running, new)), self.sampling
            )
            tokens[:, i] = torch.multinomial(q[:, i], 1, generator=self.draws)[:, 0]
            new = tokens[:, i : i + 1].tolist()
        return Guess(running, tokens, q)

    def judge(self, guess: Guess) -> None:
        """One pass of the target: guesses are accepted up to the first that is rejected, and one token of its
        own is added.
        """
        unseen = [self.sequences[b][self.target_cache.lengths[b] :] for b in guess.of]
        new = [[*tokens, *guessed] for tokens, guessed in zip(unseen, guess.tokens.tolist(), strict=True)]
        logits = forward_packed(self.target, self.target_cache, self.rows(guess.of, new), self.gamma + 1)
        p = distribution(logits, self.sampling).view(len(guess.of), self.gamma + 1, -1)
        accepted, token = reject(p, guess.q, guess.tokens, self.draws)
        beta = torch.minimum(p[:, :-1], guess.q).sum(2)
        for row, (b, n, t) in enumerate(zip(guess.of, accepted.tolist(), token.tolist(), strict=True)):
            for cache in (self.target_cache, self.draft_cache):  # the draft has never seen its own last guess
                cache.truncate(b, min(cache.lengths[b], len(self.sequences[b]) + n))
            self.sequences[b] += [*guess.tokens[row, :n].tolist(), t]
            self.judged[b].guessed.append(guess.tokens[row].tolist())
            self.judged[b].accepted.append(n)
            self.judged[b].own.append(t)
            self.judged[b].overlap += beta[row, : n + 1].tolist()

    def rows(self, of: Sequence[int], new: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """New tokens by sequence of the caches; those that are done have none."""
        given = dict(zip(of, new, strict=True))
        return [given.get(b, ()) for b in range(len(self.prompts))]


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """[b, V] -> probabilities [b, V] on the CPU; greedy: all on the likeliest token."""
    if sampling.temperature:
        return sampling.probabilities(logits).cpu()
    return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).double().cpu()


def reject(p: Tensor, q: Tensor, guessed: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Algorithm 1 for b sequences: p [b, γ+1, V], q [b, γ, V], guessed [b, γ] -> how many are accepted [b],
    the token after them [b].
    """
    of_guess = guessed.unsqueeze(2)
    ratio = (p[:, :-1].gather(2, of_guess) / q.gather(2, of_guess))[..., 0]
    accept = torch.rand(ratio.shape, generator=draws, dtype=ratio.dtype) < ratio
    accepted = accept.long().cumprod(1).sum(1)
    at = accepted[:, None, None].expand(-1, 1, p.shape[2])
    rest = residual(p.gather(1, at)[:, 0], torch.cat([q, torch.zeros_like(p[:, :1])], 1).gather(1, at)[:, 0])
    return accepted, torch.multinomial(rest, 1, generator=draws)[:, 0]


def residual(p: Tensor, q: Tensor) -> Tensor:
    """(p - q)₊, not normed: what the target has more of than the draft; [b, V]."""
    return (p - q).clamp(min=0)


def speculate(
    target: GPTStage,
    draft: GPTStage,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    gamma: int,
    sampling: Sampling = GREEDY,
) -> Speculation:
    """`tokens` new tokens after each prompt, γ guesses a pass."""
    made = Speculation(target, draft, prompts, tokens, gamma, sampling)
    while not made.done:
        made.judge(made.guess())
    return made


def check(speculation: Speculation) -> None:
    """ValueError where it would fail on the way."""
    if speculation.gamma < 0:
        raise ValueError(f"γ = {speculation.gamma}: the draft guesses no tokens (plain generation) or some")
    if not speculation.prompts or not all(speculation.prompts):
        raise ValueError("every prompt needs at least one token")
    if speculation.target.config.vocab != speculation.draft.config.vocab:
        raise ValueError(
            f"target and draft need the same tokens: {speculation.target.config.vocab} and "
            f"{speculation.draft.config.vocab}"
        )
    for name, stage in (("target", speculation.target), ("draft", speculation.draft)):
        config, most = (
            stage.config,
            max(map(len, speculation.prompts)) + speculation.tokens - 1 + speculation.gamma,
        )
        if most > config.seq:
            raise ValueError(f"prompt, tokens and guesses take {most} positions, the {name} has {config.seq}")
        check_use(config, "speculate")


# ---- theory ------------------------------------------------------------------------------------------------
def predict_tokens(alpha: float, gamma: int) -> float:
    """Eq 32: tokens of a pass of the target, on average, its own included."""
    return gamma + 1 if alpha == 1 else (1 - alpha ** (gamma + 1)) / (1 - alpha)


def predict_speedup(alpha: float, gamma: int, cost: float) -> float:
    """Theorem 3.8: against one token a pass, if a pass of the draft costs `cost` of the target's, and judging
    costs one pass.
    """
    return predict_tokens(alpha, gamma) / (gamma * cost + 1)
