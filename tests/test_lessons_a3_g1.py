"""What the lessons of caches and generation check can fail."""

from __future__ import annotations

import pytest

from glasscluster.base import operator_costs
from glasscluster.base.operator_costs import OperatorCost
from glasscluster.model.decoding import cache as caches
from glasscluster.model.kernels import cached_attention
from glasscluster.scenarios.lab import Lab, perform
from glasscluster.scenarios.lesson import taught_lesson
from glasscluster.sim.recording import operator_rules


def failed(id_: str) -> set[str]:
    taught = taught_lesson(id_)
    return {
        r.name.en
        for r in perform(taught, Lab(taught, taught.backend, taught.hardware), {}).checks
        if r.verdict == "failed"
    }


def test_a_kernel_that_reads_a_key_too_many_and_a_pool_too_large_fail_the_rows_of_decode(
    monkeypatch: pytest.MonkeyPatch,
):
    flops, nbytes = operator_costs.COSTS["glasscluster::cached_attention"]
    wasteful = OperatorCost(flops, lambda args, out: nbytes(args, out) + args[0].shape[0] * args[6][0] * 4)
    monkeypatch.setitem(operator_costs.COSTS, "glasscluster::cached_attention", wasteful)
    monkeypatch.setattr(operator_rules, "_rules", {})
    honest = caches.PagedCache.__init__
    monkeypatch.setattr(
        caches.PagedCache,
        "__init__",
        lambda self, stage, n, capacity, block: honest(self, stage, n, capacity + block, block),
    )
    attend = cached_attention.attend

    def forgetful(q, k, v, k_pool, v_pool, table, starts, *rest):
        return attend(q, k, v, k_pool.roll(1, 2), v_pool, table, starts, *rest)

    monkeypatch.setattr(cached_attention, "attend", forgetful)
    assert failed("G1") >= {
        "decode, batch 64: more bytes at 4096 tokens than at 128",
        "decode, batch 1: attention's FLOPs a byte",
        "largest logits difference from one device, float64, 9 tokens",
        "cache, rank 0",
    }


def test_a_slot_too_many_and_an_absorbed_query_that_forgets_its_rotary_part_fail_the_rows_of_the_cache(
    monkeypatch: pytest.MonkeyPatch,
):
    honest, absorb = caches.StaticCache.__init__, caches.absorb
    monkeypatch.setattr(
        caches.StaticCache, "__init__", lambda self, stage, n, most: honest(self, stage, n, most + 1)
    )

    def forgetful(block, q):
        made = absorb(block, q)
        made[..., block.config.kv_latent :] = 0
        return made

    monkeypatch.setattr(caches, "absorb", forgetful)
    rows = {
        f"{n}: cache of {what}"
        for n in ("MHA", "GQA", "MQA", "MLA")
        for what in ("the small model", "so many users")
    }
    assert failed("A3") >= {"largest logits difference from no cache, all four, float64"} | rows
