"""The threads backend: every run reproducible, every deadlock seen at once, every failure named."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import run_plan
from plans import build, name, stratified
from programs import OUTSTANDING, all_send_first, expected, one_raises

from glasscluster.sim.cluster import Cluster
from glasscluster.sim.errors import CollectiveMismatch, Deadlock, GlassError, MessageLost, OutOfMemory, RankDied, ScenarioError
from glasscluster.sim.graph import ExecutionGraph
from glasscluster.sim.replay import replay
from glasscluster.strategies.plan import make_model, make_plan


def threads(gpus: int, **options) -> Cluster:
    return Cluster("classroom", gpus, "threads", **options)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("program", OUTSTANDING, ids=lambda p: p.__name__)
def test_outstanding_works_neither_deadlock_nor_swap_in_any_order_of_threads(program, seed):
    assert threads(4, seed=seed).run(program).results == [expected(program, r, 4) for r in range(4)]


def test_all_ranks_sending_first_is_an_immediate_error_with_the_cycle_and_the_source_lines():
    with pytest.raises(Deadlock) as caught:
        threads(4).run(all_send_first)
    error = caught.value
    assert sorted(error.cycle) == [0, 1, 2, 3]
    assert len(error.waits) == 4
    for rank in range(4):
        assert f"rank {rank}" in error.message
    assert len(re.findall(r"programs\.py:\d+", error.message)) == 4


def waits_for_nobody(gpu):
    if gpu.rank == 0:
        gpu.comm.recv(torch.zeros(3), 1)


def test_waiting_for_a_rank_that_has_finished_is_named():
    with pytest.raises(GlassError) as caught:
        threads(2).run(waits_for_nobody)
    assert isinstance(caught.value, (Deadlock, MessageLost))
    assert "rank 0" in caught.value.message


def sends_to_nobody(gpu):
    if gpu.rank == 0:
        gpu.comm.isend(torch.zeros(3), 1)


def test_a_message_that_nobody_receives_is_named():
    with pytest.raises(GlassError) as caught:
        threads(2).run(sends_to_nobody)
    assert isinstance(caught.value, (Deadlock, MessageLost))


def unequal(gpu):
    gpu.comm.all_reduce(torch.zeros(4 + gpu.rank))


def different(gpu):
    if gpu.rank == 0:
        gpu.comm.all_reduce(torch.zeros(6))
    else:
        gpu.comm.all_gather(torch.zeros(6))


@pytest.mark.parametrize("program", [unequal, different])
def test_ranks_that_disagree_about_a_collective_are_named(program):
    with pytest.raises((CollectiveMismatch, Deadlock)) as caught:
        threads(2).run(program)
    assert "rank" in caught.value.message


def test_a_rank_that_raises_is_named_with_its_line_and_what_was_recorded_is_kept():
    with pytest.raises(RankDied) as caught:
        threads(3).run(one_raises)
    assert caught.value.rank == 1
    assert "planted" in caught.value.message
    assert "programs.py" in caught.value.message
    assert caught.value.run is not None
    assert any(len(o.recording["table"]) for o in caught.value.run.outcomes if o.recording)


def test_a_full_virtual_gpu_says_who_is_resident():
    plan, model = make_plan(dp=2), make_model("tiny", layers=2, hidden=32)
    from glasscluster.strategies.trainer import Job, train_rank

    with pytest.raises(OutOfMemory) as caught:
        threads(2, memory_bytes=900_000).run(train_rank, Job(plan, model, steps=1))
    for word in ("parameters", "gradients", "optimizer", "Largest", "rank"):
        assert word in caught.value.message


@pytest.mark.parametrize("gpus", [0, -1])
def test_a_cluster_needs_a_gpu(gpus):
    with pytest.raises(ScenarioError, match="at least 1"):
        threads(gpus)


@pytest.mark.parametrize("choice", stratified()[:4], ids=name)
def test_another_thread_order_changes_no_bit_and_no_event(choice):
    plan, model = build(choice, "fp32")
    from glasscluster.strategies.trainer import Job, train_rank

    job = Job(plan, model, steps=2, capture=True)
    runs = [threads(plan.gpus, seed=s).run(train_rank, job) for s in (0, 1, 2)]
    for other in runs[1:]:
        assert runs[0].graph.difference(other.graph) is None
        for a, b in zip(runs[0].results, other.results, strict=True):
            assert all(torch.equal(a.weights[-1][n], b.weights[-1][n]) for n in a.weights[-1])


def two_groups(gpu):
    x = torch.tensor([float(gpu.rank)])
    group = gpu.comm.split(gpu.rank % 2)
    group.all_reduce(x)
    return group.rank, group.size, float(x)


def test_split_makes_groups_whose_ranks_keep_their_order():
    assert threads(5).run(two_groups).results == [(0, 3, 6.0), (0, 2, 4.0), (1, 3, 6.0), (1, 2, 4.0), (2, 3, 6.0)]


def reductions(gpu):
    out = []
    for op in ("sum", "max", "min", "avg"):
        x = torch.arange(5.0) * (gpu.rank + 1)
        gpu.comm.all_reduce(x, op=op)
        out.append(x)
    return out


def test_reductions_are_sum_max_min_and_avg_and_another_is_refused():
    base = torch.arange(5.0)
    for results in threads(4).run(reductions).results:
        for x, factor in zip(results, (10, 4, 1, 2.5), strict=True):
            assert torch.equal(x, base * factor)
    with pytest.raises(ScenarioError, match="unknown reduction"):
        threads(2).run(lambda gpu: gpu.comm.all_reduce(torch.zeros(2), op="prod"))


# ---- what a graph and a timeline always are ----------------------------------------------------------------------
@pytest.fixture(scope="module", params=[0, 5, 9])
def run(request):
    return run_plan(*build(stratified()[request.param], "fp32"))


def test_a_graph_survives_its_file_which_holds_no_pickle(run, tmp_path):
    path = tmp_path / "graph.npz"
    run.graph.save(path)
    again = ExecutionGraph.load(path)
    assert run.graph.difference(again) is None
    assert again.sha256() == run.graph.sha256()
    assert replay(again, "dgx-h100").makespan == run.replay("dgx-h100").makespan
    with np.load(path, allow_pickle=False) as content:
        assert all(content[k].dtype != object for k in content.files)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", b"\x80\x04\x95 a pickle", b"\x93NUMPY"])
def test_a_foreign_or_hostile_graph_file_is_refused_by_name(content, tmp_path):
    path = tmp_path / "graph.npz"
    path.write_bytes(content)
    with pytest.raises(ScenarioError, match="graph"):
        ExecutionGraph.load(path)


def test_a_pickle_inside_an_npz_is_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    path = tmp_path / "graph.npz"
    np.savez(path, meta=np.array([Bomb()], dtype=object))
    with pytest.raises(ScenarioError):
        ExecutionGraph.load(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("hardware", ["classroom", "dgx-h100", "pcie-4090"])
def test_replay_respects_every_dependency_and_runs_a_lane_one_after_the_other(run, hardware):
    graph, line = run.graph, run.replay(hardware)
    sources = graph.dep_idx
    targets = np.repeat(np.arange(len(graph)), np.diff(graph.dep_ptr))
    assert (line.start[targets] >= line.end[sources] - 1e-15).all()
    matched = graph.match >= 0
    assert (line.end[matched] >= line.end[graph.match[matched]] - 1e-15).all()
    assert (sources < targets).all()  # sorted once, when built
    order = np.lexsort((graph.order, graph.lane, graph.rank))
    same = (np.diff(graph.rank[order]) == 0) & (np.diff(graph.lane[order]) == 0)
    assert (line.start[order][1:][same] >= line.end[order][:-1][same] - 1e-15).all()


def test_replay_gives_the_same_seconds_each_time_and_a_straggler_only_adds(run):
    one, two = run.replay("classroom"), run.replay("classroom")
    assert np.array_equal(one.start, two.start)
    assert np.array_equal(one.end, two.end)
    slow = run.replay("classroom", slow_ranks={0: 50.0})
    assert (slow.end >= one.end - 1e-15).all()
    assert slow.makespan > one.makespan
    assert run.replay("classroom", rendezvous=True).makespan >= one.makespan - 1e-15


@pytest.mark.parametrize("hardware", ["classroom", "dgx-h100"])
def test_every_rank_s_seconds_add_up_and_the_critical_path_is_the_makespan(run, hardware):
    line = run.replay(hardware)
    for rank in range(line.graph.ranks):
        assert sum(line.breakdown(rank).values()) == pytest.approx(line.makespan, rel=1e-9)
        busy = float((line.end - line.start)[(line.graph.rank == rank) & (line.graph.lane == 0)].sum())
        assert busy + sum(g.length for g in line.gaps(rank)) == pytest.approx(line.makespan, rel=1e-9)
    path = line.critical_path
    assert line.start[path[0]] == 0
    assert line.end[path[-1]] == line.makespan
    for before, after in pairwise(path):
        deps = set(line.graph.dep_idx[line.graph.dep_ptr[after] : line.graph.dep_ptr[after + 1]].tolist()) | {int(line.graph.match[after])}
        assert before in deps
        assert line.start[after] == pytest.approx(line.end[before], abs=1e-4 * line.makespan) or before == line.graph.match[after]


def test_overlap_is_a_property_of_the_program():
    model = make_model("tiny", layers=4, hidden=64)
    spent = {o: run_plan(make_plan(dp=4, bucket=50_000, overlap=o), model, "dry").timeline for o in (True, False)}
    assert spent[True].makespan < spent[False].makespan
    assert sum(spent[True].graph.bytes_sent()) == sum(spent[False].graph.bytes_sent())


def test_zero_3_with_prefetch_overlaps_its_gathers_and_without_it_the_exposure_is_seen():
    model = make_model("tiny", hidden=128, seq=128)
    plans = [make_plan(dp=4, zero=3, micro_batch=2, global_batch=8, prefetch=k) for k in (1, 0)]
    exposed = [np.mean(run_plan(plan, model, "dry").timeline.exposed_comm()) for plan in plans]
    assert exposed[0] < exposed[1] / 2
