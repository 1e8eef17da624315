"""A dry recording is the real one: events, bytes, FLOPs, dependencies, peak memory."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import run_plan
from hypothesis import HealthCheck, given, settings
from plans import build, choices, every, stratified

from glasscluster.sim.recording.events import COLUMNS, SEND
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.strategies.numerics.loss_scale import ScaleRule
from glasscluster.strategies.plan import make_model, make_plan

TOUR = {
    "ddp": {"dp": 4, "micro_batch": 2, "bucket": 256 * 1024},
    "zero3": {"dp": 4, "zero": 3, "micro_batch": 2},
    "zero3 without prefetch": {"dp": 4, "zero": 3, "micro_batch": 2, "prefetch": 0},
    "tp": {"tp": 4, "micro_batch": 8},
    "gpipe": {"pp": 4, "schedule": "gpipe"},
}


def same(plan, model) -> None:
    scale = ScaleRule(initial=1.0)  # so that fp16 skips no step: shapes cannot overflow
    real, dry = (run_plan(plan, model, backend, loss_scale=scale) for backend in ("threads", "dry"))
    assert real.graph.difference(dry.graph) is None
    assert real.graph.sha256() == dry.graph.sha256()
    assert real.peak_memory() == dry.peak_memory()
    for rank, memory in real.graph.memory.items():  # every change, its moment, its name
        assert all(
            np.array_equal(memory[table], dry.graph.memory[rank][table])
            for table in ("base", "log", "waits", "before")
        )
        assert memory["named"] == dry.graph.memory[rank]["named"]
    assert [r.state_bytes for r in real.results] == [r.state_bytes for r in dry.results]
    assert [r.checkpoint_bytes for r in real.results] == [r.checkpoint_bytes for r in dry.results]


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@pytest.mark.parametrize("options", TOUR.values(), ids=TOUR)
def test_the_tour_s_plans_are_recorded_dry_as_they_run(options, precision):
    same(make_plan(global_batch=8, precision=precision, **options), make_model("tiny", hidden=128, seq=128))


def dense(choice):
    """Without experts: where a token goes is data, and shapes do not have it (tests/test_experts.py has what
    is equal then).
    """
    return choice | {"experts": 0, "ep": 1}


@pytest.mark.parametrize("choice", every(5))
def test_a_plan_is_recorded_dry_as_it_runs(choice):
    same(*build(dense(choice)))


def test_stages_without_layers_are_recorded_dry_as_they_run():
    model = make_model("tiny", layers=6, hidden=16, seq=6, vocab=40)
    same(make_plan(pp=4, virtual_stages=2, dp=2, zero=1, global_batch=16), model)


LATER = ({}, {"zero": 3, "shard": 2}, {"offload": "optimizer", "zero": 2}, {"pp": 2, "schedule": "gpipe"})


@pytest.mark.parametrize("options", LATER, ids=str)
def test_a_later_step_with_its_rebuilt_buckets_is_recorded_dry_as_it_runs(options):
    plan = make_plan(dp=4, bucket=5000, first_bucket=800, global_batch=16, **options)
    model = make_model("tiny", layers=3, hidden=16, seq=6, vocab=40)
    first, later = run_plan(plan, model, "dry").graph, run_plan(plan, model, "dry", steps=2)
    real = run_plan(plan, model, steps=2)
    assert real.graph.difference(later.graph) is None
    assert real.peak_memory() == later.peak_memory()
    assert [r.host_bytes for r in real.results] == [r.host_bytes for r in later.results]
    assert (
        first.difference(later.graph) is None
    )  # a rebuild only changes places within a norm: `predict` may record step one


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(choices())
def test_any_plan_is_recorded_dry_as_it_runs(choice):
    same(*build(dense(choice)))


@pytest.mark.soak
@settings(
    max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True, database=None
)
@given(choices())
def test_any_plan_is_recorded_dry_as_it_runs_at_length(choice):
    same(*build(dense(choice)))


@pytest.fixture(scope="module")
def graph() -> ExecutionGraph:
    return run_plan(*build(stratified()[0], "fp32"), "dry").graph


def altered(graph: ExecutionGraph, column: str, row: int, by: int) -> ExecutionGraph:
    columns = {c: getattr(graph, c).copy() for c in COLUMNS}
    columns[column][row] += by
    meta = {
        "names": graph.names,
        "groups": graph.groups,
        "ranks": graph.ranks,
        "info": graph.info,
        "memory": graph.memory,
    }
    return ExecutionGraph(columns, graph.dep_ptr, graph.dep_idx, graph.match, meta)


@pytest.mark.parametrize(
    "column", ["bytes", "flops", "phase", "micro_batch", "peer", "label", "kind", "layer", "purpose", "op"]
)
def test_a_difference_in_any_column_of_any_event_is_seen(graph, column):
    for row in (0, len(graph) // 2, len(graph) - 1):
        by = -1 if column in ("op", "label") and getattr(graph, column)[row] > 0 else 1
        assert graph.difference(altered(graph, column, row, by)) is not None, (column, row)


def test_a_missing_event_or_dependency_is_seen():
    plan, model = make_plan(dp=2), make_model("tiny", layers=2, hidden=16, seq=6)
    graph = run_plan(plan, model, "dry").graph
    fewer = altered(graph, "bytes", 0, 0)
    last = int(np.flatnonzero(np.diff(graph.dep_ptr) > 1)[-1])
    cut = int(graph.dep_ptr[last])
    fewer.dep_idx = np.delete(graph.dep_idx, cut)
    fewer.dep_ptr = graph.dep_ptr - (np.arange(len(graph.dep_ptr)) > last)
    assert graph.difference(fewer) is not None
    sends = int((graph.kind == SEND).sum())
    other = run_plan(plan.model_copy(update={"bucket": 900}), model, "dry").graph
    assert int((other.kind == SEND).sum()) != sends
    assert graph.difference(other) is not None
