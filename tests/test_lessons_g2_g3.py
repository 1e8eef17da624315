"""What the lessons of serving check can fail."""

from __future__ import annotations

import pytest
import torch

from glasscluster.model.decoding import packed, speculative
from glasscluster.model.decoding.cache import PagedCache
from glasscluster.scenarios.lab import Lab, perform
from glasscluster.scenarios.lesson import taught_lesson
from glasscluster.scenarios.lessons.g2_continuous_batching import program as g2
from glasscluster.strategies.serving import batching


def failed(id_: str, **options: int) -> set[str]:
    taught = taught_lesson(id_)
    return {
        r.name.en
        for r in perform(taught, Lab(taught, taught.backend, taught.hardware), options).all_checks
        if r.verdict == "failed"
    }


def test_rows_mixed_up_a_slot_left_empty_and_a_block_too_many_fail_the_rows_of_continuous_batching(
    monkeypatch: pytest.MonkeyPatch,
):
    pack, reserve, step, together = (
        packed.Packing.pack,
        PagedCache.reserve,
        batching.Continuous.next,
        batching.Static.next,
    )
    monkeypatch.setattr(packed.Packing, "pack", lambda self, x: pack(self, x.roll(1, 0)))

    def greedy(self, b, n):  # a token too many, in a pool that has room for it
        reserve(self, b, min(n + (len(self.pools[0][0]) > 12), self.capacity))

    monkeypatch.setattr(PagedCache, "reserve", greedy)

    def lazy(self, now):  # a slot stays empty
        less = int(self.slots > 3)
        self.slots -= less
        made = step(self, now)
        self.slots += less
        return made

    def late(self, now):  # a batch of one less than there is room for
        self.slots -= self.slots > 3
        return together(self, now)

    monkeypatch.setattr(batching.Continuous, "next", lazy)
    monkeypatch.setattr(batching.Static, "next", late)
    monkeypatch.setattr(
        g2, "make_schedule", lambda job, hw: batching.plan(job.requests, job.make_policy(), lambda step: 1.0)
    )
    rows = failed("G2", requests=8)
    assert rows >= {
        "continuous: largest logits difference from a request alone, float64",
        "continuous: cache, slots without a token, all steps",
        "192 requests, 8 slots, static share without a token",
        "192 requests, continuous, share without a token while requests wait",
    }


def test_a_rejection_that_comes_too_seldom_and_is_corrected_from_p_fails_the_rows_of_speculation(
    monkeypatch: pytest.MonkeyPatch,
):
    rand = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *shape, **more: rand(*shape, **more) - 0.3)
    monkeypatch.setattr(speculative, "residual", lambda p, q: p)
    assert failed("G3") >= {
        "greedy tokens that the target alone chooses otherwise, float64",
        "χ² of 900 samples of three tokens against the exact distribution",
        *(f"tokens a pass, α = 0.8, γ = {gamma}" for gamma in (4, 8, 16)),
    }
