"""Continuous batching: every request gets the tokens it would get alone, no block is lost, and waste is Eq
33's.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glasscluster.base.errors import GlassError, InputError
from glasscluster.cli import main
from glasscluster.model.config import ModelConfig
from glasscluster.model.decoding import packed
from glasscluster.model.decoding.cache import KINDS, PagedCache, SlidingWindowCache, StaticCache
from glasscluster.model.decoding.generate import generate
from glasscluster.model.decoding.packed import forward_packed
from glasscluster.model.gpt import GPTStage
from glasscluster.scenarios.jobs import serving as scenario
from glasscluster.scenarios.jobs import serving_command
from glasscluster.scenarios.jobs.serving import serve
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import hardware
from glasscluster.strategies.serving import batching, serving
from glasscluster.strategies.serving.batching import Continuous, Request, Static, plan
from glasscluster.strategies.serving.serving import ServingJob

SHAPE: dict[str, Any] = {
    "layers": 2,
    "hidden": 16,
    "heads": 4,
    "vocab": 23,
    "seq": 32,
    "init_std": 0.5,
    "tied": False,
}
REQUESTS = tuple(
    Request(tuple((7 * i + 3 * j) % 23 for j in range(prompt)), tokens, arrival)
    for i, (prompt, tokens, arrival) in enumerate(
        [(5, 6, 0), (2, 9, 0), (9, 1, 0), (3, 8, 1e-5), (4, 2, 1.5e-5), (6, 7, 1.0)]
    )
)
FEW_DTYPE = torch.float64
FEW = ServingJob(
    ModelConfig(**SHAPE), REQUESTS, slots=3, block=2, blocks=8
)  # 8 blocks: sequences have to leave


def failed(job: ServingJob) -> set[str]:
    """Rows that do not hold, with the run's or the plan's error as one of them."""
    try:
        rows = serve(Cluster("classroom", job.tp, "threads"), job).checks
        return {r.key for r in rows if r.verdict != "held"}
    except GlassError as error:
        return {type(error).__name__}


# ---- who runs when -----------------------------------------------------------------------------------------
@st.composite
def loads(draw):
    block, slots = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    shape = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 12))
    requests = [Request((0,) * p, n, t / 2) for p, n, t in draw(st.lists(shape, min_size=1, max_size=8))]
    least = max(-(-r.cached // block) for r in requests)
    return requests, slots, block, least + draw(st.integers(0, 6))


@settings(max_examples=80, deadline=None)
@given(loads())
def test_everybody_is_served_in_the_end_and_nobody_has_what_another_has(load):
    requests, slots, block, blocks = load
    for policy in (Continuous(requests, slots, block, blocks), Static(requests, slots)):
        made = plan(requests, policy, lambda step: 1.0)
        chosen, cached = [0] * len(requests), [0] * len(requests)
        for step, (start, _) in zip(made.steps, made.times, strict=True):
            for _, r in step.preempted:
                cached[r] = 0
            assert (
                len({w.slot for w in step.work})
                == len({w.request for w in step.work})
                == len(step.work)
                <= slots
            )
            for w in step.work:
                assert requests[w.request].arrival_s <= start
                assert w.start == cached[w.request]
                cached[w.request] += w.count
                chosen[w.request] += w.count > 0
                assert w.count in (0, len(requests[w.request].prompt) + chosen[w.request] - 1 - w.start)
            if isinstance(policy, Continuous):
                assert sum(-(-(w.start + w.count) // block) for w in step.work) <= blocks
        assert chosen == [r.tokens for r in requests]
        if isinstance(policy, Continuous):
            assert (policy.unused, policy.running, set(policy.held.values())) == (blocks, {}, {0})
        else:
            idle = slots * len(made.steps) - sum(chosen)
            together = [[w.request for w in s.work] for s in made.steps if not any(w.start for w in s.work)]
            assert batching.predict_static(requests, together, slots) == (slots * len(made.steps), idle)


def test_a_slot_is_filled_in_the_step_after_its_request_ended_and_the_oldest_never_leaves():
    requests = [Request((0,) * 2, n) for n in (9, 1, 9, 1)]
    made = plan(requests, Continuous(requests, 2, 4, 99), lambda step: 1.0)
    assert [[(w.slot, w.request) for w in s.work] for s in made.steps[:3]] == [
        [(0, 0), (1, 1)],
        [(0, 0), (1, 2)],
        [(0, 0), (1, 2)],
    ]
    tight = plan(requests, Continuous(requests, 4, 1, 12), lambda step: 1.0)
    assert tight.preemptions
    assert 0 not in tight.preemptions


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("blocks", {"blocks": 5}),
        ("slots", {"slots": 0}),
        ("requests", {"requests": ()}),
        ("requests", {"requests": (Request((1,), 33),)}),
        ("policy", {"policy": "greedy"}),
        ("tp", {"tp": 3}),
        ("capacity_factor", {"model": ModelConfig(**SHAPE, experts=4, capacity_factor=1.0)}),
        ("objective", {"model": ModelConfig(**SHAPE | {"objective": "masked", "tied": True})}),
    ],
)
def test_what_can_never_be_served_is_refused(field: str, change: dict):
    asked = {
        "model": FEW.model,
        "requests": REQUESTS,
        "policy": "continuous",
        "slots": 3,
        "block": 2,
        "blocks": 8,
        "tp": 1,
        **change,
    }
    with pytest.raises(InputError) as refused:
        serving_command.check_job(ServingJob(**asked))
    assert refused.value.field == field


# ---- what runs ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"policy": "static"},
        {"tp": 2},
        {
            "model": ModelConfig(
                **SHAPE, position="rope", kv_heads=2, norm="rmsnorm", activation="swiglu", bias=False
            )
        },
        {"model": ModelConfig(**SHAPE, position="rope", kv_latent=12, rope_dim=4)},
        {"model": ModelConfig(**SHAPE, position="alibi"), "policy": "static", "tp": 2},
    ],
    ids=["continuous", "static", "tp", "llama", "latent", "alibi"],
)
def test_every_request_gets_the_tokens_it_gets_alone_and_the_run_takes_as_long_as_planned(
    more: dict, monkeypatch: pytest.MonkeyPatch
):
    job = replace(FEW, **more)
    if "model" in more:  # the same steps, without asking how long each takes
        monkeypatch.setattr(
            scenario,
            "make_schedule",
            lambda job, hw: plan(job.requests, job.make_policy(), lambda step: 1e-5),
        )
    made = serve(Cluster("classroom", job.tp, "threads"), job)
    assert {r.key for r in made.checks if r.verdict != "held"} == ({"end"} if "model" in more else set())
    assert len(made.run.results[0].tokens) == len(REQUESTS)
    if more.get("policy") != "static":
        assert made.recomputed > 0
        assert made.schedule.preemptions


def test_continuous_batching_has_more_tokens_a_second_and_less_that_is_empty_dry_as_on_threads():
    load = replace(
        FEW, requests=tuple(Request((1,) * (1 + i % 4), 1 + 5 * i % 8) for i in range(9)), blocks=20
    )
    both = {
        p: serve(Cluster("classroom", 1, "dry"), replace(load, policy=p)) for p in ("static", "continuous")
    }
    assert both["continuous"].tokens_per_s > both["static"].tokens_per_s
    assert both["continuous"].idle_slots < both["static"].idle_slots
    assert both["continuous"].empty_cache < both["static"].empty_cache
    real = serve(Cluster("classroom", 1, "threads"), load, checked=False)
    assert real.run.graph.sha256() == both["continuous"].run.graph.sha256()
    assert real.schedule.times == both["continuous"].schedule.times


@pytest.mark.soak
@settings(max_examples=30, deadline=None)
@given(loads(), st.sampled_from(["continuous", "static"]), st.sampled_from([1, 2]))
def test_any_load_is_served_as_alone(load, policy: str, tp: int):
    requests, slots, block, blocks = load
    asked = tuple(
        replace(r, prompt=tuple((5 * i + j) % 23 for j in range(len(r.prompt))))
        for i, r in enumerate(requests)
    )
    cache: dict[str, Any] = {"slots": slots, "block": block, "blocks": blocks}
    job = replace(FEW, requests=asked, policy=policy, tp=tp, **cache)  # type: ignore[arg-type]
    assert {r.verdict for r in serve(Cluster("classroom", tp, "threads"), job).checks} == {"held"}


def test_what_goes_wrong_in_serving_fails_a_row(monkeypatch: pytest.MonkeyPatch):
    equal = "logits_difference"
    honest = {
        blocks: serving.make_schedule(replace(FEW, blocks=blocks), hardware("classroom"))
        for blocks in (FEW.blocks, 40)
    }
    monkeypatch.setattr(scenario, "make_schedule", lambda job, hw: honest[job.blocks])
    assert failed(FEW) == set()
    free, pack, reserve = PagedCache.free, packed.Packing.pack, PagedCache.reserve
    with monkeypatch.context() as m:  # a sequence's rows go to another
        m.setattr(packed.Packing, "pack", lambda self, x: pack(self, x.roll(1, 0)))
        assert equal in failed(FEW)
    with monkeypatch.context() as m:  # a slot keeps its first block
        m.setattr(PagedCache, "free", keeps_one(free))
        assert failed(replace(FEW, blocks=40)) >= {"blocks_left"}
    with monkeypatch.context() as m:  # who has ended keeps its blocks
        m.setattr(PagedCache, "free", lambda self, b: None)
        assert failed(FEW) == {"RankDied"}
    with monkeypatch.context() as m:  # a block more than needed
        m.setattr(PagedCache, "reserve", lambda self, b, n: reserve(self, b, min(n + 2, self.capacity)))
        assert failed(replace(FEW, blocks=40)) >= {"cache_empty", "steps_with_too_many_empty"}
    with monkeypatch.context() as m:  # recomputation that forgets a token
        m.setattr(serving, "forward", forgetful(serving.forward))
        assert equal in failed(FEW)
    with monkeypatch.context() as m:  # a clock that is wrong by one step in ten thousand
        m.setattr(scenario, "make_schedule", lambda job, hw: late(honest[job.blocks]))
        assert failed(FEW) == {"end"}


def forgetful(honest: Any) -> Any:
    """What a request had before it was preempted is taken in without its last prompt token."""

    def forward(stage, cache, job, step, sequences):
        again = [
            w.request for w in step.work if not w.start and w.count > len(job.requests[w.request].prompt)
        ]
        return honest(
            stage, cache, job, step, [[s[0], *s[:-1]] if r in again else s for r, s in enumerate(sequences)]
        )

    return forward


def keeps_one(honest: Any) -> Any:
    """Freed but for a block."""

    def free(cache, sequence):
        first = cache.table[sequence][0]
        honest(cache, sequence)
        cache.unused.remove(first)
        cache.table[sequence][0] = first

    return free


def late(schedule: batching.Schedule) -> batching.Schedule:
    a, b = schedule.times[-1]
    return replace(schedule, times=(*schedule.times[:-1], (a, b * 1.0001)))


# ---- forgetting --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_that_forgets_some_tokens_goes_on_as_if_they_had_never_been(kind: str):
    stage = GPTStage(ModelConfig(**SHAPE), dtype=FEW_DTYPE)
    made = {"static": StaticCache, "paged": PagedCache, "sliding": SlidingWindowCache}[kind]
    cache = made(stage, 2, 20, *{"paged": (3,), "sliding": (20,)}.get(kind, ()))
    forward_packed(stage, cache, [(1, 2, 3, 4), (5, 6)])
    forward_packed(stage, cache, [(9, 9, 9, 9, 9), ()])
    cache.truncate(0, 4)
    assert cache.used_bytes == cache.token_bytes * {"paged": 2 * 3 + 3}.get(kind, 40)
    logits = forward_packed(stage, cache, [(5,), (7,)])
    for row, prompt in zip(logits, ((1, 2, 3, 4, 5), (5, 6, 7)), strict=True):
        assert (row - generate(stage, [prompt], 1).logits[0][0]).abs().max() < 1e-12
    with pytest.raises(ValueError, match="cannot stay"):
        cache.truncate(0, 6)


def test_a_ring_cannot_bring_back_what_it_has_written_over():
    stage = GPTStage(ModelConfig(**SHAPE), dtype=FEW_DTYPE)
    cache = SlidingWindowCache(stage, 1, 20, 4)
    forward_packed(stage, cache, [(1, 2, 3, 4, 5, 6)])
    with pytest.raises(ValueError, match="are gone"):
        cache.truncate(0, 4)
    cache.truncate(0, 5)  # the next one sees itself and three more
    cache.truncate(0, 0)
    assert cache.lengths == [0]


# ---- the command -------------------------------------------------------------------------------------------
def test_the_command_reads_requests_and_says_when_each_had_its_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "requests.json"
    file.write_text(
        json.dumps([{"prompt": "abc", "tokens": 3}, {"prompt": [1, 2], "tokens": 2, "arrival_s": 1e-6}])
    )
    shape = ["--layers", "1", "--hidden", "16", "--heads", "2", "--vocab", "128"]
    with pytest.raises(SystemExit) as left:
        main(
            ["serve", "--requests", str(file), "--slots", "1", *shape, "--out", str(tmp_path / "r"), "--json"]
        )
    said = json.loads(capsys.readouterr().out)
    assert left.value.code == 0
    assert json.loads((tmp_path / "r" / "run.json").read_text())["requests"] == said["requests"]
    assert said["schema"] == "glass.serve/1"
    assert [len(r["tokens"]) for r in said["requests"]] == [3, 2]
    first, second = said["requests"]
    assert first["latency_s"] == pytest.approx(said["steps"][2]["end_s"])
    assert second["time_to_first_token_s"] == pytest.approx(said["steps"][3]["end_s"] - 1e-6)
    file.write_text('[{"prompt": "abc"}]')
    with pytest.raises(SystemExit) as left:
        main(["serve", "--requests", str(file), *shape, "--json"])
    assert left.value.code == 2
    assert "requests[0].tokens" in capsys.readouterr().err
