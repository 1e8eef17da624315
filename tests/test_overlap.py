"""Eq 14 is the replay's own answer, and the sweep's best bucket size is the best there is."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from helpers import run_plan
from hypothesis import given, settings
from hypothesis import strategies as st

from glasscluster.scenarios.jobs import buckets
from glasscluster.sim.recording.events import SEND
from glasscluster.sim.time.hardware import hardware
from glasscluster.strategies.data import overlap
from glasscluster.strategies.data import rows as data_rows
from glasscluster.strategies.layout.judged import Judged
from glasscluster.strategies.layout.units import cut
from glasscluster.strategies.plan import make_model, make_plan

SMALL = make_model("tiny", layers=1, hidden=8, heads=2, seq=8, vocab=16)
LINKS = {
    "as it is": hardware("classroom"),
    "slow wire": hardware("classroom").scaled(bandwidth=1 / 40, latency=1 / 50),
    "short wire": hardware("classroom").scaled(bandwidth=1 / 100, latency=1 / 1000),
}


def plan_of(**options):
    return make_plan(**{"dp": 2, "micro_batch": 4, "global_batch": 8, **options})


# ---- Eq 14 -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "hw",
    [*LINKS.values(), hardware("dgx-h100"), replace(hardware("dgx-a100-80gb"), node_size=1)],
    ids=[*LINKS, "nvlink", "nic"],
)
@pytest.mark.parametrize(
    "options",
    [
        {"bucket": 500},
        {"bucket": 3000, "first_bucket": 300},
        {"zero": 1, "bucket": 900},
        {"dp": 4, "micro_batch": 2, "bucket": 2000},
        {"dp": 2, "tp": 2, "bucket": 1500},
        {"dp": 2, "pp": 2, "micro_batch": 1, "bucket": 1500, "schedule": "gpipe"},
        {"bucket": 700, "precision": "bf16", "grad_dtype": "fp32"},
    ],
    ids=str,
)
def test_the_end_of_the_last_bucket_is_the_chain_s_and_lies_within_its_bounds(options, hw):
    plan, model = plan_of(**options), make_model("tiny", layers=2, hidden=16, heads=2, seq=8, vocab=32)
    line = run_plan(plan, model, "dry").replay(hw)
    (row,) = last_bucket(plan, line)
    assert row.verdict == "held", row
    assert row.match == "virtual"
    ready, ended, nbytes = buckets.reductions(line)
    operation = "reduce_scatter" if plan.zero else "all_reduce"
    cost = [
        overlap.on_a_ring(operation, plan.dp, hw.link(0, plan.tp), hw.gpu.reduce_rate)(b)
        for b in nbytes.tolist()
    ]
    low, high = overlap.bounds(ready.tolist(), cost)
    assert low <= ended.max() * (1 + 1e-12)
    assert ended.max() <= high * (1 + 1e-12)
    assert len(nbytes) > 2


def last_bucket(plan, timeline, model=SMALL):
    """The rows of seconds: without a graph there is nothing else to count."""
    return data_rows.predict(Judged(plan, model, timeline=timeline))


def reason(rows):
    """Why the one row is not applicable; it is neither held nor failed, and has no prediction."""
    (row,) = rows
    assert row.key == "last_bucket_reduced"
    assert (row.verdict, row.ok, row.predicted) == ("not applicable", None, None)
    assert row.because.zh != row.because.en
    return row.because.en


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"overlap": False}, "--no-overlap"),
        ({"zero": 2}, "ZeRO-2 and 3"),
        ({"zero": 3}, "ZeRO-2 and 3"),
        ({"dp": 3, "global_batch": 12, "bucket": 500}, "divide evenly"),
        ({"dp": 4, "zero": 1, "shard": 2, "micro_batch": 1}, "several kinds of groups"),
    ],
    ids=str,
)
def test_off_its_domain_the_row_says_why_it_is_not_applicable(options, why):
    plan = plan_of(**options)
    assert why in reason(last_bucket(plan, run_plan(plan, SMALL, "dry").timeline))


def test_without_data_parallel_ranks_there_is_no_row():
    plan = plan_of(dp=1)
    assert last_bucket(plan, run_plan(plan, SMALL, "dry").timeline) == []


def test_the_row_is_not_applicable_when_one_rank_is_late_or_the_group_s_links_differ():
    plan = plan_of(dp=4, micro_batch=2, bucket=500)
    run = run_plan(plan, SMALL, "dry")
    assert [row.verdict for row in last_bucket(plan, run.timeline)] == ["held"]
    slow, small_nodes = {1: 2.0}, replace(hardware("dgx-h100"), node_size=2)
    assert "same moment" in reason(last_bucket(plan, run.replay("classroom", slow_ranks=slow)))
    assert "links of several kinds" in reason(last_bucket(plan, run.replay(small_nodes)))
    assert "receivers" in reason(last_bucket(plan, run.replay("classroom", rendezvous=True)))


def test_a_longer_message_or_a_bucket_launched_at_the_end_fails_the_row():
    plan = plan_of(bucket=500)
    run = run_plan(plan, SMALL, "dry")
    graph = run.graph
    last = np.flatnonzero(
        (graph.kind == SEND) & (graph.label == graph.names.index(f"bucket {len(run.results[0].units) - 1}"))
    )
    graph.bytes[last[0]] += 64
    (row,) = last_bucket(plan, run.replay("classroom"))
    assert row.verdict == "failed"
    graph.bytes[last[0]] -= 64
    late = run_plan(plan.model_copy(update={"overlap": False}), SMALL, "dry").timeline
    on_time = run.replay("classroom")
    assert late.makespan > on_time.makespan
    chain, _ = overlap.predict_last_bucket(plan, on_time)
    assert abs(buckets.reductions(late)[1].max() - chain) > 1e-9 * chain


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(1e-3, 10)), min_size=1, max_size=12))
def test_the_chain_lies_within_its_bounds_whatever_the_buckets(pairs):
    ready, cost = sorted(r for r, _ in pairs), [c for _, c in pairs]
    low, high = overlap.bounds(ready, cost)
    assert low - 1e-9 <= overlap.end_of_chain(ready, cost) <= high + 1e-9


# ---- the best buckets --------------------------------------------------------------------------------------
def all_cuts(n: int):
    """Every way to cut n gradients into consecutive buckets."""
    for walls in itertools.product((False, True), repeat=n - 1):
        edges = [0, *(i + 1 for i, wall in enumerate(walls) if wall), n]
        yield [list(range(a, b)) for a, b in itertools.pairwise(edges)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 50)), min_size=1, max_size=9),
    st.floats(0, 2),
    st.floats(0.01, 1),
)
def test_the_best_of_all_cuts_is_found_without_trying_them(pairs, alpha, per_byte):
    ready, sizes = sorted(r for r, _ in pairs), [s for _, s in pairs]

    def cost(nbytes):
        return alpha + per_byte * nbytes

    end, found = overlap.best_buckets(ready, sizes, cost)
    tried = min(overlap.end_of_buckets(c, ready, sizes, cost) for c in all_cuts(len(sizes)))
    assert end == pytest.approx(tried, rel=1e-12)
    assert overlap.end_of_buckets(found, ready, sizes, cost) == pytest.approx(end, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=10))
def test_the_sizes_that_are_tried_make_all_buckets_that_any_size_makes(sizes):
    def made(size):
        return tuple(map(tuple, cut(sizes, size, size)))

    tried = overlap.bucket_sizes(sizes)
    assert {made(s) for s in tried} == {made(s) for s in range(1, sum(sizes) + 2)}
    assert len({made(s) for s in tried}) == len(tried)


@pytest.fixture(scope="module")
def swept():
    return dict(zip(LINKS, buckets.sweep(plan_of(), SMALL, list(LINKS.values())), strict=True))


@pytest.mark.parametrize("name", LINKS)
def test_the_sweep_s_best_bucket_size_is_the_best_by_exhaustive_search(swept, name):
    hw, plan = LINKS[name], plan_of()
    link_cost = overlap.on_a_ring("all_reduce", plan.dp, hw.link(0, 1))
    one_each = buckets.record(plan, SMALL, 1).replay(hw)  # a bucket a parameter: when each gradient is ready
    ready, _, sizes = (column.tolist() for column in buckets.reductions(one_each))
    assert len(sizes) == 16
    ends = {}  # by every bucket size there is, a byte apart; all cuts are 2^15
    for size in range(1, sum(sizes) + 2):
        made = cut(sizes, size, size)
        ends.setdefault(tuple(map(tuple, made)), overlap.end_of_buckets(made, ready, sizes, link_cost))
    assert len(ends) == len(swept[name])
    found = buckets.best(swept[name])
    assert found.end_s == pytest.approx(min(ends.values()), rel=1e-9)
    assert [s.end_s for s in swept[name]] == pytest.approx(list(ends.values()), rel=1e-9)
    free = min(overlap.end_of_buckets(c, ready, sizes, link_cost) for c in all_cuts(len(sizes)))
    assert overlap.best_buckets(ready, sizes, link_cost)[0] == pytest.approx(free, rel=1e-12)
    assert free <= found.end_s * (1 + 1e-12)


def test_the_three_links_have_three_different_best_sizes_and_parts_add_up(swept):
    assert len({buckets.best(rows).buckets for rows in swept.values()}) == 3
    for rows in swept.values():
        for s in rows:
            assert sum(s.breakdown_s.values()) == pytest.approx(s.step_s, rel=1e-9)
