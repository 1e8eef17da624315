"""Generation: one token after the other, with a cache of keys and values or without.

    prefill  all tokens of the prompt at once (or in chunks): matrices times matrices,
             the arithmetic units are the limit
    decode   one token of each sequence a step: all weights and all of the cache are read for it,
             memory is the limit (Eq 31)

Prompts of unequal length are padded behind; a position belongs to a token, not to a column, so padding is
never attended to and its slots are overwritten. Without a cache every step computes all tokens again: the
same logits, s times the work. Sampling: temperature; the k most likely tokens (Fan et al., 1805.04833); the
smallest set of probability p (Holtzman et al., 1904.09751). But: sequences of a batch end together
(packed.py: when they like); no beam search.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from glasscluster.base.errors import InputError
from glasscluster.model.config import ModelConfig
from glasscluster.model.decoding.cache import Cache, Remember, Within, keeping
from glasscluster.model.gpt import GPTStage
from glasscluster.model.parallel import KeepAll
from glasscluster.model.uses import check_use

COLDEST = 1e-300  # the smallest temperature that a logit can be divided by; long before, sampling is greedy


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. Temperature 0 is greedy; top_k 0 and top_p 1 leave all tokens in."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def probabilities(self, logits: Tensor) -> Tensor:
        """[b, V] -> [b, V], what is out has 0."""
        logits = logits.double() / max(self.temperature, COLDEST)
        if self.top_k:
            least = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        if self.top_p < 1:
            p, order = logits.softmax(-1).sort(-1, descending=True)
            beyond = p.cumsum(-1) - p >= self.top_p
            beyond[:, 0] = False  # the likeliest stays: a set of probability 0 has one token, too
            logits = logits.masked_fill(beyond.scatter(-1, order, beyond), float("-inf"))
        return logits.softmax(-1)

    def choose(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """[b, V] -> [b]. The same generator draws the same tokens on every rank."""
        if not self.temperature:
            return logits.argmax(-1)
        if logits.device.type == "meta":
            return logits.new_empty(len(logits), dtype=torch.int64)
        return (
            torch.multinomial(self.probabilities(logits).cpu(), 1, generator=generator)
            .squeeze(-1)
            .to(logits.device)
        )


GREEDY = Sampling()


@dataclass
class Generated:
    """What came of it: each sequence's new tokens, and the logits [b, V] that each was chosen from."""

    tokens: list[list[int]] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)


@dataclass
class Generator:
    """One generation: the model, what its attention keeps, and how tokens are chosen. Iterating brings one
    token a sequence.

    Each step gives the logits [b, V] and the tokens [b] chosen from them; the first is the prefill. On every
    tensor-parallel rank the same tokens come out.
    """

    stage: GPTStage
    prompts: Sequence[Sequence[int]]
    tokens: int
    cache: Cache | None = None
    sampling: Sampling = GREEDY
    chunk: int = 0  # tokens of a prompt that are taken in at a time; 0: all
    window: int | None = None  # without a cache: how many tokens back attention looks

    def __post_init__(self) -> None:
        check(self)
        self.device = next(self.stage.parameters()).device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        draws, grown = torch.Generator().manual_seed(self.sampling.seed), [list(p) for p in self.prompts]
        chosen = None
        for _ in range(self.tokens):
            if self.cache is None:
                logits = self.forward(pad(grown, self.device), [range(len(s)) for s in grown])
            elif chosen is None:
                logits = self.prefill()
            else:
                logits = self.forward(chosen[:, None], self.cache.begin([1] * len(grown)))
            chosen = self.sampling.choose(logits, draws)
            yield logits, chosen
            if self.cache is None:
                for sequence, token in zip(grown, listed(chosen), strict=True):
                    sequence.append(token)

    def prefill(self) -> Tensor:
        """Fill the cache with the prompts; the logits after each."""
        assert self.cache is not None
        longest, made = max(map(len, self.prompts)), None
        each = self.chunk or longest
        for a in range(0, longest, each):
            pieces = [p[a : a + each] for p in self.prompts]
            logits = self.forward(pad(pieces, self.device), self.cache.begin([len(p) for p in pieces]))
            here = torch.tensor([len(p) > 0 for p in pieces], device=self.device)[:, None]
            made = logits if made is None else torch.where(here, logits, made)
        assert made is not None
        return made

    def forward(self, tokens: Tensor, positions: Sequence[range]) -> Tensor:
        """One step: see forward."""
        return forward(self.stage, tokens, positions, self.cache, self.window)


@torch.no_grad()
def forward(
    stage: GPTStage,
    tokens: Tensor,
    positions: Sequence[range],
    cache: Cache | None,
    window: int | None = None,
) -> Tensor:
    """[b, S] -> the logits [b, V] after each sequence's last token here; a sequence that has none here gets
    its padding's.

    positions: of each sequence's tokens, as cache.begin gives them; what is behind them is padding. window:
    without a cache.
    """
    width = tokens.shape[1]
    assert stage.embedding is not None
    assert stage.head is not None
    rows = [range(r.start, r.start + width) for r in positions]
    x = stage.embedding(tokens, positions=rows)

    def kept(block: Any) -> KeepAll | None:
        """What a block's attention does with keys and values; None: what it does in training."""
        if cache is not None:
            return Remember(cache, block, rows)
        return Within(window, block) if window else None

    with keeping(stage, kept):
        for block in stage.layers.values():
            x = block(x)
    if cache is not None:
        cache.end()
    last = torch.tensor([max(0, len(r) - 1) for r in positions], device=x.device)
    return stage.head.logits(x.gather(1, last[:, None, None].expand(-1, 1, x.shape[2])))[:, 0]


def pad(sequences: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """[b, longest], zeros behind."""
    longest = max(map(len, sequences))
    return torch.tensor(
        [[*s, *[0] * (longest - len(s))] for s in sequences], dtype=torch.int64, device=device
    )


def listed(chosen: Tensor) -> list[int]:
    """Tokens as numbers; zeros where there is no data."""
    return [0] * len(chosen) if chosen.device.type == "meta" else chosen.tolist()


def generate(
    stage: GPTStage, prompts: Sequence[Sequence[int]], tokens: int, cache: Cache | None = None, **options: Any
) -> Generated:
    """`tokens` new tokens after each prompt; a cache must be empty. Options are Generator's."""
    steps = list(Generator(stage, prompts, tokens, cache, **options))
    return Generated(
        [list(t) for t in zip(*(listed(chosen) for _, chosen in steps), strict=True)],
        [logits for logits, _ in steps],
    )


def check(generator: Generator) -> None:
    """ValueError where generation would fail on the way."""
    config, prompts, tokens, cache = (
        generator.stage.config,
        generator.prompts,
        generator.tokens,
        generator.cache,
    )
    if not prompts or not all(len(p) for p in prompts):
        raise ValueError("every prompt needs at least one token")
    check_use(config, "generate")
    if (most := max(t for p in prompts for t in p)) >= config.vocab:
        raise ValueError(f"the vocabulary has tokens 0 to {config.vocab - 1}, a prompt has {most}")
    if (longest := max(map(len, prompts)) + tokens - 1) > config.seq:
        raise ValueError(
            f"the longest prompt and {tokens} new tokens need {longest} positions, the model has {config.seq}"
        )
    check_prefix(config, prompts, generator.chunk, bool(generator.window) or windowed(cache))
    if cache is not None and (any(cache.lengths) or len(cache.lengths) != len(prompts)):
        raise ValueError(
            f"the cache has sequences of {cache.lengths} tokens; {len(prompts)} empty ones are needed"
        )


def check_prefix(
    config: ModelConfig, prompts: Sequence[Sequence[int]], chunk: int = 0, window: bool = False
) -> None:
    """A prefix is seen at once: whole in every prompt and in its first chunk, without a window; else
    InputError.
    """
    longest = 0 if window else min([*map(len, prompts), chunk or config.seq])
    if config.prefix > longest:
        rule = "has to be seen at once: in every prompt, in its first chunk, without a window"
        raise InputError("prefix", config.prefix, rule, [longest])


def windowed(cache: Cache | None) -> bool:
    """Whether old tokens are dropped."""
    return cache is not None and cache.window < cache.capacity
