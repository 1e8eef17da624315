"""Ranks of a plan that do the same are recorded and replayed once, and every number stays what it was."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from plans import SCHEDULES, build, every

from glasscluster.base.errors import InputError
from glasscluster.scenarios.jobs.prediction import predict
from glasscluster.sim.ranks.backends.dry import record_rank
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.sim.recording import folded_by_roles
from glasscluster.sim.recording.folded_by_roles import fold_roles
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.recording.packed import pack_graph
from glasscluster.sim.recording.relative import NotAlike, Partitions, difference, relative
from glasscluster.sim.recording.roles import Roles, representatives
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.equitable import refined
from glasscluster.sim.time.hardware import Hardware, hardware
from glasscluster.sim.time.memory_history import MemoryHistory
from glasscluster.sim.time.replay import replay
from glasscluster.sim.time.timeline import Timeline
from glasscluster.strategies import folding
from glasscluster.strategies.folding import Recorded
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.pipeline.schedules import FOLDED
from glasscluster.strategies.plan import Plan, make_model, make_plan
from glasscluster.strategies.programs import programs
from glasscluster.strategies.trainer import train_rank

SMALL = {"layers": 2, "hidden": 16, "seq": 8, "vocab": 40}


class Both:
    """A plan's ranks, each recorded, and what folding makes of one recording of each program."""

    def __init__(self, plan: Plan, model: Any) -> None:
        job = Job(plan.model_copy(update={"algorithm": "native"}), model, steps=1)
        self.plan, self.info = job.plan, {"backend": "dry", **job_info(job)}
        outcomes = [record_rank(rank, plan.gpus, train_rank, (job,), None) for rank in range(plan.gpus)]
        assert not [o.error for o in outcomes if o.error]
        self.results = [o.result for o in outcomes]
        self.partitions: Partitions = {}
        self.told = [relative(o.recording or {}, self.partitions) for o in outcomes]
        self.whole = ExecutionGraph.build([o.recording or {} for o in outcomes], self.info)
        self.program = programs(job.plan, model)

    def unlike(self) -> list[str]:
        """What ranks of one program do not have in common."""
        first = representatives(self.program)[self.program].tolist()
        wrong = [
            f"ranks {a} and {b}: {d}"
            for b, a in enumerate(first)
            if (d := difference(self.told[a], self.told[b])) is not None
        ]
        return wrong + [
            f"ranks {a} and {b}: host bytes"
            for b, a in enumerate(first)
            if self.results[a].host_bytes != self.results[b].host_bytes
        ]

    def fold(self, hw: Hardware, slow: dict[int, float]) -> Recorded:
        one = [self.told[rank] for rank in representatives(self.program).tolist()]
        partners = [r.partners for r in one]
        groups = [{n: self.partitions[c] for n, c in r.cuts.items()} for r in one]
        role = refined(self.program, partners, groups, hw, slow)
        graph = fold_roles(one, self.program, role, self.partitions, self.info)
        return Recorded(graph, [self.results[r] for r in representatives(role).tolist()], "")


def differences(both: Both, folded: Recorded, hw: Hardware, slow: dict[int, float]) -> list[str]:
    """What a folded replay says otherwise than that of every rank: of each rank, and of all of them."""
    few = replay(folded.graph, hw, slow_ranks=slow)
    all_ = replay(both.whole, hw, slow_ranks=slow)
    wrong = []
    for rank in range(both.plan.gpus):
        role = folded.role_of(rank)
        mine, theirs = rows_of(both.whole, rank), rows_of(folded.graph, role)
        if len(mine) != len(theirs):
            wrong.append(f"rows of rank {rank}")
            continue
        for side in ("start", "end"):
            if not np.array_equal(getattr(all_, side)[mine], getattr(few, side)[theirs]):
                wrong.append(f"{side} of rank {rank}")
    for role in range(folded.graph.ranks):  # the last rank of each role; idle time is slow to find
        rank = max(r for r in range(both.plan.gpus) if folded.role_of(r) == role)
        if few.breakdown(role) != all_.breakdown(rank):
            wrong.append(f"breakdown of rank {rank}")
    said, right = told(few, both), told(all_, both)
    wrong += [key for key, value in right.items() if said[key] != value]
    peaks = [MemoryHistory(both.whole, rank).peak() for rank in range(both.plan.gpus)]
    wrong += [] if folded.peak_memory() == peaks else ["memory"]
    return wrong + ([] if folded.events == len(both.whole) else ["events"])


def rows_of(graph: ExecutionGraph, rank: int) -> np.ndarray:
    rows = graph.canonical
    return rows[graph.rank[rows] == rank]


def told(timeline: Timeline, both: Both) -> dict[str, Any]:
    """All that `glass predict` says of a timeline; of the critical path how long it is."""
    path = timeline.critical_path
    return {
        "makespan": timeline.makespan,
        "breakdown": timeline.breakdown(),
        "bubble": timeline.bubble(),
        "mfu": timeline.mfu(both.info["model_flops"]),
        "hfu": timeline.hfu(),
        "path begins": timeline.start[path[0]],
        "path ends": timeline.end[path[-1]],
    }


def cluster(node_size: int) -> Hardware:
    return replace(hardware("dgx-h100"), node_size=node_size)


def check(plan: Plan, model: Any) -> list[int]:
    """Fold on nodes of several sizes, and with a slow rank; returns how many roles there were."""
    both = Both(plan, model)
    assert both.unlike() == []
    roles = []
    for size, slow in ((8, {}), (2, {}), (3, {plan.gpus - 1: 1.5})):
        folded = both.fold(cluster(size), slow)
        assert differences(both, folded, cluster(size), slow) == [], (plan, size, slow)
        roles.append(folded.graph.ranks)
    return roles


@pytest.mark.parametrize("choice", every(31))
def test_a_folded_plan_is_the_whole_one_to_the_bit(choice):
    check(*build(choice))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_stages_of_unequal_length_fold_under_every_schedule(schedule):
    v = 2 if schedule in FOLDED or "interleaved" in schedule or "looped" in schedule else 1
    sizes = {"dp": 3, "pp": 2, "schedule": schedule, "virtual_stages": v, "global_batch": 6}
    plan = make_plan(**sizes, layers_per_stage=(2, 1, 1, 1)[: 2 * v])
    roles = check(plan, make_model("tiny", **SMALL | {"layers": 5 if v == 2 else 3}))
    assert roles == [
        2,
        2,
        4,
    ]  # one a stage; with a slow rank it, and its neighbour on the other stage, are alone


PLANS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "dp": ({"dp": 6}, {}, 1),
    "dp and tp": ({"dp": 4, "tp": 2}, {}, 2),
    "sequence parallel": ({"dp": 4, "tp": 2, "sequence_parallel": True}, {}, 2),
    "a vocabulary that tp does not divide": ({"dp": 2, "tp": 4}, {"vocab": 41}, 3),
    "zero 1": ({"dp": 4, "tp": 2, "zero": 1}, {}, 8),
    "zero 3, hybrid shards": ({"dp": 6, "zero": 3, "shard": 2}, {}, 2),
    "experts": ({"dp": 6, "ep": 2}, {"experts": 4, "capacity_factor": 1.0}, 4),
    "offload": ({"dp": 6, "offload": "optimizer"}, {}, 1),
    "Ulysses": ({"dp": 3, "cp": 2, "context": "ulysses"}, {}, 1),
    "a ring": ({"dp": 3, "cp": 2}, {}, 2),
    "a ring in a ring": ({"cp": 4, "ulysses": 2, "context": "zigzag", "dp": 2}, {}, 2),
}


@pytest.mark.parametrize("name", PLANS)
def test_what_folds_and_into_how_many_roles(name):
    options, switches, roles = PLANS[name]
    plan = make_plan(global_batch=2 * options.get("dp", 1), **options)
    assert check(plan, make_model("tiny", **SMALL | switches))[0] == roles


# ---- cuts --------------------------------------------------------------------------------------------------
def test_a_cut_says_the_groups_of_every_rank():
    def program(gpu: GPU) -> dict[str, Any]:
        mesh = gpu.make_mesh({"pp": 2, "dp": 4, "cp": 2, "tp": 2})
        data = mesh.plane(("dp", "cp"), "dp")
        inner = mesh.inside(data, 4, "shard")
        comms = [mesh["pp"], mesh["tp"], mesh["cp"], data, inner, mesh.across(data, 4, "replicas")]
        comms += [mesh.across(inner, 2, "rings"), mesh.subset("pp", [1, 0], "tied")]
        return {comm.group: (comm.cut, comm.ranks) for comm in comms}

    for rank, groups in enumerate(Cluster("classroom", 32, "dry").run(program).results):
        for cut, ranks in groups.values():
            assert cut.partition.ranks_with(rank) == ranks
            place = ranks.index(rank)
            for shift in (0, 1, len(ranks) - 1):
                there = cut.partition.shifted(np.array([rank]), shift)
                assert there.tolist() == [ranks[(place + shift) % len(ranks)]]


# ---- what could go wrong is noticed ------------------------------------------------------------------------
@pytest.fixture(scope="module")
def both() -> Both:
    return Both(make_plan(dp=2, tp=2, pp=2, global_batch=4), make_model("tiny", **SMALL))


def test_a_program_that_is_too_large_is_noticed(both):
    assert both.unlike() == []
    assert representatives(both.program).tolist() != list(range(8))
    for one in ({0, 1}, {0, 4}, {5, 7, 1}):  # another tensor rank, another stage
        merged = copy(both)
        numbers = [0 if rank in one else rank + 1 for rank in range(8)]
        merged.program = np.unique(numbers, return_inverse=True)[1]
        assert merged.unlike() != [], one


def folded_as(both: Both, program: np.ndarray, role: np.ndarray) -> Recorded:
    one = [both.told[rank] for rank in representatives(program).tolist()]
    graph = fold_roles(one, program, role, both.partitions, both.info)
    return Recorded(graph, [both.results[r] for r in representatives(role).tolist()], "")


def test_a_role_that_is_too_large_is_noticed():
    plan = make_plan(dp=3, pp=2, global_batch=6)
    both, hw = Both(plan, make_model("tiny", **SMALL)), cluster(4)
    # ranks 0 and 3 are on one node, 2 and 5 are not
    assert both.program.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(InputError, match="was made for"):
        replay(folded_as(both, both.program, both.program).graph, hw)
    one_node = both.fold(cluster(8), {}).graph
    assert one_node.ranks == 2
    with pytest.raises(InputError, match="was made for"):
        replay(one_node, cluster(8), slow_ranks={1: 2.0})
    assert check_only(both, hw, {}) == []


def check_only(both: Both, hw: Hardware, slow: dict[int, float]) -> list[str]:
    return differences(both, both.fold(hw, slow), hw, slow)


def test_contention_is_refused(both):
    graph = both.fold(cluster(8), {}).graph
    with pytest.raises(InputError, match="which messages meet"):
        replay(graph, cluster(8), contention=True)


def test_neither_a_file_nor_a_page_holds_roles(both, tmp_path):
    graph = both.fold(cluster(8), {}).graph
    with pytest.raises(InputError, match="which no file says"):
        graph.save(tmp_path / "graph.npz")
    with pytest.raises(InputError, match="which no page shows"):
        pack_graph(graph)


def wrong_costs(monkeypatch) -> None:
    """A collective's cost from the group of another rank: as if all of it were on one node."""
    monkeypatch.setattr(Roles, "members", lambda self, role, group: tuple(
        range(len(self.partitions[role][group].ranks_with(int(self.representatives[role]))))))  # fmt: skip


def wrong_memory(monkeypatch) -> None:
    of_every_rank = Roles.of_every_rank
    monkeypatch.setattr(Roles, "of_every_rank", lambda self, by: of_every_rank(self, by[::-1]))


def wrong_wire(monkeypatch) -> None:
    monkeypatch.setattr(folded_by_roles, "_peers", lambda recorded, rank, groups: np.where(
        _peers(recorded, rank, groups) >= 0, rank, -1))  # fmt: skip


def wrong_count(monkeypatch) -> None:
    monkeypatch.setattr(Roles, "each", property(lambda self: np.ones(self.roles, np.int64)))


_peers = folded_by_roles._peers


@pytest.mark.parametrize("plant", [wrong_costs, wrong_memory, wrong_wire, wrong_count])
def test_a_planted_mistake_is_noticed(plant, monkeypatch):
    both, hw = Both(make_plan(dp=4, pp=2, global_batch=8), make_model("tiny", **SMALL)), cluster(2)
    assert check_only(both, hw, {}) == []
    plant(monkeypatch)
    try:
        assert check_only(both, hw, {})
    except (InputError, NotAlike):
        return


def test_a_group_that_is_no_part_of_the_mesh_is_not_folded():
    def program(gpu: GPU) -> None:
        gpu.comm.all_reduce(torch.ones(4, device=gpu.device), algorithm="native")

    recording = record_rank(0, 4, program, (), None).recording
    with pytest.raises(NotAlike, match="no part of its mesh"):
        relative(recording or {}, {})


# ---- the command -------------------------------------------------------------------------------------------
def test_predict_says_the_same_folded_and_expanded():
    plan, model = make_plan(dp=4, tp=2, global_batch=8), make_model("tiny", **SMALL)
    for slow in (None, {3: 1.4}):
        folded = predict(plan, model, "dgx-h100", slow=slow)
        whole = predict(plan, model, "dgx-h100", slow=slow, expand=True)
        assert {k for k in whole if whole[k] != folded[k]} == {"roles", "wall_s"}
        assert (folded["roles"] or 8) == (2 if slow is None else 4)
        assert whole["roles"] is None


def test_what_is_not_alike_is_recorded_whole_and_said(monkeypatch):
    monkeypatch.setattr(folding, "programs", lambda plan, model: np.zeros(plan.gpus, np.int64))
    said: list[str] = []
    plan, model = make_plan(dp=2, tp=2, global_batch=4), make_model("tiny", **SMALL)
    folded = predict(plan, model, "dgx-h100", say=said.append)
    assert folded["roles"] is None
    assert any("ranks 0 and 3 of one program differ" in text for text in said)


def test_our_own_rings_are_recorded_whole():
    plan, model = make_plan(dp=2, tp=2, global_batch=4), make_model("tiny", **SMALL)
    assert predict(plan, model, "classroom")["roles"] is None
    assert predict(plan.model_copy(update={"algorithm": "native"}), model, "classroom")["roles"] == 2
