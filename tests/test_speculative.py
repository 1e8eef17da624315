"""Speculative decoding: the target's distribution and its greedy tokens, whatever the draft; Eq 32's tokens a
pass.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from math import sqrt
from statistics import stdev
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glasscluster.base.errors import GlassError
from glasscluster.model.config import ModelConfig
from glasscluster.model.decoding import speculative
from glasscluster.model.decoding.cache import Cache, PagedCache
from glasscluster.model.decoding.generate import Sampling, generate
from glasscluster.model.decoding.speculative import (
    Speculation,
    predict_speedup,
    predict_tokens,
    reject,
    speculate,
)
from glasscluster.model.gpt import GPTStage
from glasscluster.sim.run import Cluster
from glasscluster.strategies.serving.speculation import (
    SpeculationJob,
    chi_square,
    joint,
    pass_seconds,
    speculate_rank,
)

PROMPTS = ((1, 2, 3, 4), (0,), (4, 4, 1))
RANDOM = Sampling(temperature=1.0, seed=5)


@lru_cache(maxsize=8)
def model(seed: int, **more: Any) -> GPTStage:
    shape = {
        "layers": 1,
        "hidden": 8,
        "heads": 2,
        "vocab": 5,
        "seq": 40,
        "init_std": 0.7,
        "tied": False,
        **more,
    }
    return GPTStage(ModelConfig(**shape), seed=seed, dtype=torch.float64)


def fixed(p: list[float]) -> GPTStage:
    """A model whose next token has these probabilities, whatever came before."""
    stage = GPTStage(model(0, vocab=len(p), hidden=4, heads=1).config, dtype=torch.float64)
    with torch.no_grad():
        stage.head.norm_weight.zero_()
        stage.head.norm_bias.copy_(torch.tensor([1.0, 0, 0, 0]))
        stage.head.table.zero_()
        stage.head.table[:, 0] = torch.tensor(p, dtype=torch.float64).log()
    return stage


def likely(tokens: int = 3, samples: int = 1500, gamma: int = 2) -> float:
    """How probable a χ² this large or larger is, if what speculation draws has the target's distribution."""
    target, draft, prompt = model(0), model(1, layers=2), (2, 0, 3)
    drawn = Counter(
        tuple(s) for s in speculate(target, draft, [prompt] * samples, tokens, gamma, RANDOM).generated
    )
    return chi_square(drawn, {c: samples * p for c, p in joint(target, prompt, tokens, RANDOM).items()})[2]


# ---- the distribution --------------------------------------------------------------------------------------
def test_samples_have_the_targets_distribution():
    assert likely() > 0.01
    assert sum(joint(model(0), (2, 0, 3), 3, RANDOM).values()) == pytest.approx(1)


def test_a_rule_that_accepts_everything_or_corrects_from_p_does_not_and_nor_does_a_cache_that_keeps_all(
    monkeypatch,
):
    with monkeypatch.context() as m:
        m.setattr(torch, "rand", lambda *shape, **_: torch.zeros(*shape, dtype=torch.float64))
        assert likely(samples=700) < 1e-6
    with monkeypatch.context() as m:
        m.setattr(speculative, "residual", lambda p, q: p)
        assert likely(samples=700) < 1e-6
    with monkeypatch.context() as m:
        m.setattr(Cache, "truncate", lambda self, b, n: None)
        with pytest.raises((ValueError, RuntimeError)):  # there is nothing new to feed
            likely(samples=20)
    with monkeypatch.context() as m:  # a guess is judged by the distribution of the place before
        m.setattr(speculative, "reject", lambda p, *rest: reject(p.roll(1, 1), *rest))
        assert likely(samples=700) < 1e-6


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(0, 3), st.integers(0, 10_000))
def test_the_rule_gives_p_at_every_place_for_any_p_and_q(v: int, gamma: int, seed: int):
    """Exactly: over all guesses, probability of the first token that comes out; as the paper's appendix A.1,
    without draws.
    """
    p, q = torch.rand(2, v, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1e-3
    p, q = p / p.sum(), q / q.sum()
    rest = speculative.residual(p[None], q[None])[0]
    out = torch.minimum(p, q) + (1 - torch.minimum(p, q).sum()) * rest / rest.sum()
    assert (out - p).abs().max() < 1e-12
    many = 400
    guessed = torch.multinomial(q.expand(many, -1), max(1, gamma), replacement=True)[:, :gamma]
    accepted, token = reject(
        p.expand(many, gamma + 1, v), q.expand(many, gamma, v), guessed, torch.Generator().manual_seed(seed)
    )
    assert accepted.min() >= 0
    assert accepted.max() <= gamma
    assert (p[token] > 0).all()
    wrong = token[accepted < gamma]
    assert (rest[wrong] > 0).all()


# ---- greedy ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("gamma", [0, 1, 4])
@pytest.mark.parametrize(
    "more", [{}, {"position": "rope", "kv_heads": 1}, {"position": "rope", "kv_latent": 6, "rope_dim": 2}]
)
def test_greedy_tokens_are_the_targets_token_by_token(gamma: int, more: dict):
    target = model(0, vocab=23, hidden=16, layers=2, **more)
    for draft in (model(1, vocab=23), target):
        made = speculate(target, draft, PROMPTS, 9, gamma)
        assert made.generated == [generate(target, [p], 9).tokens[0] for p in PROMPTS]
        assert draft is not target or all(n == gamma for j in made.judged for n in j.accepted)


def test_paged_caches_give_rejected_tokens_blocks_back():
    target, draft = model(0, vocab=23, hidden=16, layers=2), model(1, vocab=23)
    caches = tuple(PagedCache(stage, 3, 20, block=2) for stage in (target, draft))
    made = Speculation(target, draft, PROMPTS, 9, 3, caches=caches)
    while not made.done:
        made.judge(made.guess())
        for cache in caches:
            blocks = [sum(block >= 0 for block in row) for row in cache.table]
            assert blocks == [-(-n // 2) for n in cache.lengths]
            assert len(cache.unused) + sum(blocks) == 30
    assert made.generated == [generate(target, [p], 9).tokens[0] for p in PROMPTS]


# ---- how many ----------------------------------------------------------------------------------------------
P, Q = [0.1, 0.2, 0.3, 0.4], [0.3, 0.2, 0.2, 0.3]  # Σ min = 0.8


@pytest.mark.parametrize("gamma", [1, 4])
def test_tokens_a_pass_are_f32s_where_each_guess_is_accepted_with_the_same_probability(gamma: int):
    made = speculate(fixed(P), fixed(Q), [(1,)] * 96, 24, gamma, RANDOM)
    assert {round(b, 12) for j in made.judged for b in j.overlap} == {0.8}
    tokens = [1 + n for j in made.judged for n in j.accepted]
    error = stdev(tokens) / sqrt(len(tokens))
    assert abs(sum(tokens) / len(tokens) - predict_tokens(0.8, gamma)) < 3 * error
    for wrong in (0.7, 0.9):
        assert abs(sum(tokens) / len(tokens) - predict_tokens(wrong, gamma)) > 3 * error


def test_the_numbers_of_the_formula():
    assert predict_tokens(0.8, 4) == pytest.approx(3.3616)
    assert predict_tokens(1, 4) == 5
    assert predict_tokens(0, 4) == 1
    assert predict_speedup(0.8, 4, 0.05) == pytest.approx(3.3616 / 1.2)


# ---- on ranks ----------------------------------------------------------------------------------------------
def test_tensor_ranks_draw_the_same_and_a_dry_run_is_refused():
    target, draft = (model(s, vocab=23, hidden=16, layers=layers).config for s, layers in ((0, 2), (1, 1)))
    one, two = (
        Cluster("classroom", tp, "threads").run(
            speculate_rank, SpeculationJob(target, draft, PROMPTS, 7, 3, RANDOM, tp, "fp64")
        )
        for tp in (1, 2)
    )
    assert one.results[0].tokens == two.results[0].tokens == two.results[1].tokens
    assert one.results[0].accepted == two.results[1].accepted
    guess, judge = pass_seconds(one.timeline)
    assert guess > 0 < judge
    with pytest.raises(GlassError, match="depends on data"):
        Cluster("classroom", 1, "dry").run(speculate_rank, SpeculationJob(target, draft, PROMPTS, 7))


@pytest.mark.parametrize(
    ("message", "more"),
    [
        ("γ", {"gamma": -1}),
        ("same tokens", {"draft": model(0)}),
        ("positions", {"tokens": 40}),
        ("at least one", {"prompts": [()]}),
    ],
)
def test_what_cannot_be_speculated_is_refused(message: str, more: dict):
    stage = model(1, vocab=23)
    with pytest.raises(ValueError, match=message):
        Speculation(**{"target": stage, "draft": stage, "prompts": PROMPTS, "tokens": 4, "gamma": 2, **more})
