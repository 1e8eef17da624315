"""The threads backend: every run reproducible, every deadlock seen at once, every failure named."""

from __future__ import annotations

import json
import random
import re
import sys
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import run_plan
from plans import build, name, stratified
from programs import OUTSTANDING, all_send_first, expected, one_raises, ring_while_waiting, two_in_flight

from glasscluster.base.errors import (
    CollectiveMismatch,
    Deadlock,
    GlassError,
    InputError,
    MessageLost,
    OutOfMemory,
    RankDied,
)
from glasscluster.sim.ranks.deadlock import source_line, standstill
from glasscluster.sim.recording import packed
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.replay import replay
from glasscluster.strategies.plan import make_model, make_plan


def threads(gpus: int, **options) -> Cluster:
    return Cluster("classroom", gpus, "threads", **options)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("program", OUTSTANDING, ids=lambda p: p.__name__)
def test_outstanding_works_neither_deadlock_nor_swap_in_any_order_of_threads(program, seed):
    assert threads(4, seed=seed).run(program).results == [expected(program, r, 4) for r in range(4)]


def calls(module: str):
    """A function of a module of this name, which calls what it is given."""
    names = {"__name__": module}
    exec("def run_rank(inner):\n    return inner()", names)
    return names["run_rank"]


@pytest.mark.parametrize("module", ["glasscluster.strategies.x", "__main__"])
def test_a_line_of_what_has_called_the_rank_is_not_the_program_s(module):
    """Below the program are Ray's actor or the command line, and above it is our wire."""
    inner = lambda: source_line(sys._getframe(1))  # noqa: E731
    for caller in ("glasscluster.sim.ranks.wire", module, "glasscluster.sim.ranks.gpu", "ray.util.tracing"):
        inner = partial(calls(caller), inner)
    assert inner() == "<string>:2"
    inner = lambda: source_line(sys._getframe(1))  # noqa: E731
    for caller in ("glasscluster.sim.ranks.wire", "glasscluster.sim.ranks.gpu", "ray.util.tracing"):
        inner = partial(calls(caller), inner)
    assert inner() == "unknown line"


def test_all_ranks_sending_first_is_an_immediate_error_with_the_cycle_and_the_source_lines():
    with pytest.raises(Deadlock) as caught:
        threads(4).run(all_send_first)
    error = caught.value
    assert sorted(error.cycle) == [0, 1, 2, 3]
    assert len(error.waits) == 4
    for rank in range(4):
        assert f"rank {rank}" in error.message
    assert len(re.findall(r"programs\.py:\d+", error.message)) == 4


# ---- sends that are buffered -------------------------------------------------------------------------------
KIB = 1024


def send_right_then_receive(gpu, nbytes: int) -> int:
    """Blocking send first; the buffer is overwritten as soon as the send returns."""
    x, out = torch.full((nbytes,), gpu.rank + 1, dtype=torch.uint8), torch.zeros(nbytes, dtype=torch.uint8)
    gpu.comm.send(x, (gpu.rank + 1) % gpu.size)
    x.fill_(99)
    gpu.comm.recv(out, (gpu.rank - 1) % gpu.size)
    assert bool((out == out[:1]).all())
    return int(out[0]) if nbytes else 0


@pytest.mark.parametrize("nbytes", [1, 64, 64 * KIB])
def test_small_sends_are_copied_away_and_return_at_once(nbytes):
    assert threads(4, eager_bytes=64 * KIB).run(send_right_then_receive, nbytes).results == [4, 1, 2, 3]


@pytest.mark.parametrize(
    ("eager", "nbytes"), [(0, 0), (0, 64), (63, 64), (64 * KIB, 64 * KIB + 1), (64 * KIB, 128 * KIB)]
)
def test_a_send_above_the_threshold_waits_and_the_cycle_is_named_at_once(eager, nbytes):
    with pytest.raises(Deadlock, match="passes only while sends are buffered") as caught:
        threads(4, eager_bytes=eager).run(send_right_then_receive, nbytes)
    assert sorted(caught.value.cycle) == [0, 1, 2, 3]
    assert [(w.rank, w.kind, w.peer, w.nbytes) for w in caught.value.waits] == [
        (r, "send", (r + 1) % 4, nbytes) for r in range(4)
    ]


@pytest.mark.parametrize("program", [ring_while_waiting, two_in_flight], ids=lambda p: p.__name__)
@pytest.mark.parametrize("seed", range(3))
def test_buffering_changes_neither_results_nor_rows_of_a_program_that_finishes(program, seed):
    waits, buffered = (threads(4, seed=seed, eager_bytes=e).run(program) for e in (0, 1 << 20))
    assert buffered.results == waits.results == [expected(program, r, 4) for r in range(4)]
    assert waits.graph.difference(buffered.graph) is None
    assert waits.peak_memory() == buffered.peak_memory()


def test_buffering_is_an_option_of_threads_and_never_negative():
    with pytest.raises(InputError, match="eager_bytes = -1"):
        threads(2, eager_bytes=-1).run(two_groups)
    for backend in ("dry", "ray"):
        with pytest.raises(InputError, match=f"threads backend, not of {backend}"):
            Cluster("classroom", 2, backend, eager_bytes=64)


def test_a_buffered_message_that_nobody_receives_is_named_too():
    with pytest.raises(MessageLost, match=r"rank 0 posted a send with rank 1.*never received it"):
        threads(2, eager_bytes=64).run(sends_to_nobody)


def follow(gpu, steps_of_ranks) -> None:
    """Steps of ("send" | "recv", peer, tag): posted together, then awaited one by one."""
    for step in steps_of_ranks[gpu.rank]:
        post = {"send": gpu.comm.isend, "recv": gpu.comm.irecv}
        works = [post[kind](torch.zeros(16), peer, tag) for kind, peer, tag in step]
        for work in works:
            work.wait()


@pytest.mark.parametrize("eager", [0, 64])
def test_a_receive_that_waits_beside_another_message_says_which_is_there(eager):
    tag = [[[("send", 1, 2)]], [[("recv", 0, 3)]]]
    with pytest.raises(
        Deadlock, match="rank 1 waits for tag 3; a message with tag 2 from the same sender is queued"
    ):
        threads(2, eager_bytes=eager).run(follow, tag)
    source = [[[("send", 1, 0)]], [[("recv", 2, 0)]], []]
    with pytest.raises(Deadlock, match="rank 1 waits for rank 2; a message from rank 0 is queued"):
        threads(3, eager_bytes=eager).run(follow, source)


@pytest.mark.parametrize("eager", [0, 64])
@pytest.mark.parametrize("seed", range(40))
def test_who_waits_for_whom_is_what_following_the_lists_by_hand_says(seed, eager):
    draw = random.Random(seed)
    lists = [[] for _ in range(4)]
    for _ in range(
        draw.randint(2, 9)
    ):  # messages that have both ends, in an order of each rank's own, and sometimes one end only
        src, dst = draw.sample(range(4), 2)
        tag = draw.randint(0, 1)
        for rank, action in ((src, ("send", dst, tag)), (dst, ("recv", src, tag))):
            if draw.random() < 0.95:
                lists[rank].insert(draw.randint(0, len(lists[rank])), [action])
    for steps in lists:
        for i in range(len(steps) - 1, 0, -1):
            if draw.random() < 0.3:
                steps[i - 1 : i + 1] = [steps[i - 1] + steps[i]]
    waits = {}
    try:
        threads(4, seed=seed, eager_bytes=eager).run(follow, lists, record=False)
    except Deadlock as error:
        waits = {w.rank: w.peer for w in error.waits}
    except MessageLost:
        pass
    assert standstill(lists, 64, eager) == waits


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
    from glasscluster.strategies.job import Job
    from glasscluster.strategies.trainer import train_rank

    with pytest.raises(OutOfMemory) as caught:
        threads(2, memory_bytes=900_000).run(train_rank, Job(plan, model, steps=1))
    for word in ("parameters", "gradients", "optimizer", "Largest", "rank"):
        assert word in caught.value.message


@pytest.mark.parametrize("gpus", [0, -1])
def test_a_cluster_needs_a_gpu(gpus):
    with pytest.raises(InputError, match="at least 1"):
        threads(gpus)


@pytest.mark.parametrize("choice", stratified()[:3], ids=name)
def test_another_thread_order_changes_no_bit_and_no_event(choice):
    plan, model = build(choice)
    from glasscluster.strategies.job import Job
    from glasscluster.strategies.trainer import train_rank

    job = Job(plan, model, steps=2, capture=True)
    runs = [threads(plan.gpus, seed=s).run(train_rank, job) for s in (0, 1)]
    for other in runs[1:]:
        assert runs[0].graph.difference(other.graph) is None
        for a, b in zip(runs[0].results, other.results, strict=True):
            assert all(torch.equal(a.weights[-1][n], b.weights[-1][n]) for n in a.weights[-1])


@pytest.mark.parametrize("program", OUTSTANDING)
def test_rows_do_not_depend_on_when_a_collective_s_steps_ran_beside_messages_of_the_program(program):
    graphs = [threads(4, seed=s).run(program).graph for s in range(6)]
    for other in graphs[1:]:
        assert graphs[0].difference(other) is None
    dry = Cluster("classroom", 4, "dry", memory_bytes=None).run(program).graph
    assert graphs[0].difference(dry) is None


def two_groups(gpu):
    x = torch.tensor([float(gpu.rank)])
    group = gpu.comm.split(gpu.rank % 2)
    group.all_reduce(x)
    return group.rank, group.size, float(x)


def test_split_makes_groups_whose_ranks_keep_their_order():
    assert threads(5).run(two_groups).results == [
        (0, 3, 6.0),
        (0, 2, 4.0),
        (1, 3, 6.0),
        (1, 2, 4.0),
        (2, 3, 6.0),
    ]


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
    with pytest.raises(InputError, match="unknown reduction"):
        threads(2).run(lambda gpu: gpu.comm.all_reduce(torch.zeros(2), op="prod"))


# ---- what a graph and a timeline always are ----------------------------------------------------------------
@pytest.fixture(scope="module", params=[0, 5, 9])
def run(request):
    return run_plan(*build(stratified()[request.param]))


def beside_its_rows(graph):
    """What a graph knows that its canonical rows do not show: as JSON, which has no tuples and names keys by
    words.
    """
    memory = {
        r: {k: x.tolist() if hasattr(x, "tolist") else x for k, x in m.items()}
        for r, m in graph.memory.items()
    }
    return json.loads(json.dumps([graph.ranks, graph.info, graph.groups, memory], sort_keys=True))


def read_back(graph, path):
    """A graph by way of its file, and by way of a report's download."""
    graph.save(path / "graph.npz")
    (path / "graph.json").write_text(json.dumps({"format": packed.FORMAT, **packed.pack_graph(graph)}))
    return ExecutionGraph.load(path / "graph.npz"), packed.load_packed(path / "graph.json")


def test_a_graph_survives_its_files_with_all_that_it_knows(run, tmp_path):
    for again in read_back(run.graph, tmp_path):
        assert run.graph.difference(again) is None
        assert beside_its_rows(again) == beside_its_rows(run.graph)
        assert {type(g) for groups in again.groups.values() for g in groups} == {int}
        assert replay(again, "dgx-h100").makespan == run.replay("dgx-h100").makespan


@pytest.mark.parametrize("plan", stratified()[3::20], ids=name)
def test_a_graph_of_any_plan_survives_its_files(plan, tmp_path):
    graph = run_plan(*build(plan), "dry").graph
    for again in read_back(graph, tmp_path):
        assert graph.difference(again) is None
        assert beside_its_rows(again) == beside_its_rows(graph)


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
    with pytest.raises(InputError, match="graph"):
        ExecutionGraph.load(path)


def test_a_pickle_inside_an_npz_is_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    path = tmp_path / "graph.npz"
    np.savez(path, meta=np.array([Bomb()], dtype=object))
    with pytest.raises(InputError):
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
        deps = set(line.graph.dep_idx[line.graph.dep_ptr[after] : line.graph.dep_ptr[after + 1]].tolist()) | {
            int(line.graph.match[after])
        }
        assert before in deps
        assert (
            line.start[after] == pytest.approx(line.end[before], abs=1e-4 * line.makespan)
            or before == line.graph.match[after]
        )


def test_overlap_is_a_property_of_the_program():
    model = make_model("tiny", layers=4, hidden=64)
    spent = {
        o: run_plan(make_plan(dp=4, bucket=50_000, overlap=o), model, "dry").timeline for o in (True, False)
    }
    assert spent[True].makespan < spent[False].makespan
    assert sum(spent[True].graph.bytes_sent()) == sum(spent[False].graph.bytes_sent())


def test_zero_3_with_prefetch_overlaps_its_gathers_and_without_it_the_exposure_is_seen():
    model = make_model("tiny", hidden=128, seq=128)
    plans = [make_plan(dp=4, zero=3, micro_batch=2, global_batch=8, prefetch=k) for k in (1, 0)]
    exposed = [np.mean(run_plan(plan, model, "dry").timeline.exposed_comm()) for plan in plans]
    assert exposed[0] < exposed[1] / 2
