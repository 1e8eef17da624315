"""Where a rank's time goes: on runs whose seconds can be worked out by hand, and that it always adds up."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from helpers import run_plan

from glasscluster.base.breakdown import AXES, ENTRIES, in_order, listed, tenths
from glasscluster.sim.recording.events import COMPUTE, OPTIMIZER, RECOMPUTE
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import hardware
from glasscluster.sim.time.replay import replay
from glasscluster.sim.time.timeline import USEFUL
from glasscluster.strategies.plan import make_model, make_plan


# ---- by hand -----------------------------------------------------------------------------------------------
def wait_for_one(gpu, side: int, elements: int, axis: str) -> None:
    """Rank 1 computes a little, waits for a message of rank 0, which computes first, and computes again."""
    comm = gpu.make_mesh({axis: 2})[axis]
    a = torch.ones(side if gpu.rank == 0 else 2, side if gpu.rank == 0 else 2)
    a @ a
    message = torch.ones(elements)
    if gpu.rank == 0:
        comm.send(message, 1)
    else:
        comm.recv(message, 0)
    message + message


@pytest.mark.parametrize(("axis", "rest"), [("pp", "bubble"), ("dp", "wait")])
@pytest.mark.parametrize(("side", "elements"), [(1024, 1000), (32, 1_000_000)], ids=["late", "long"])
def test_a_wait_is_exposed_while_its_message_is_in_flight_and_before_that_a_bubble_only_in_a_pipeline(
    side, elements, axis, rest
):
    run = Cluster("classroom", 2, "dry", memory_bytes=None).run(wait_for_one, side, elements, axis)
    wire, line = hardware("classroom").intra, run.timeline
    on_the_wire = wire.overhead_s + 4 * elements / wire.bandwidth + wire.latency_s
    send = next(w for w in line.communications() if w["rank"] == 0)
    gaps = [g for g in line.gaps(1) if g.row >= 0]
    assert [(g.entry, g.awaited, g.axis) for g in gaps] == [(rest, 0, axis), (f"exposed_{axis}", 0, axis)]
    late, moving = gaps
    assert moving.in_flight
    assert not late.in_flight
    assert late.end == moving.start == pytest.approx(send["start"], rel=1e-12)
    assert moving.length == pytest.approx(on_the_wire, rel=1e-9)
    assert line.exposed_comm()[1] == moving.length
    spent = line.breakdown(1)
    assert spent[f"exposed_{axis}"] == moving.length
    assert spent[rest] == pytest.approx(late.length + sum(g.length for g in line.gaps(1) if g.row < 0))
    # the sender ends first: the other end of the pipeline is a stage that it waits for, another rank is not
    assert [g.entry for g in line.gaps(0) if g.row < 0] == [rest]


def come_late(gpu, late: int) -> None:
    """Two pipelines of two stages; all four ranks meet in a sum, to which one of them comes late."""
    gpu.make_mesh({"pp": 2, "tp": 2})["pp"]
    side = 1024 if gpu.rank == late else 2
    a = torch.ones(side, side)
    a @ a
    gpu.comm.all_reduce(torch.ones(8))
    a + a


@pytest.mark.parametrize("late", range(4))
def test_who_waits_for_a_rank_of_the_own_stage_is_in_no_bubble(late):
    line = Cluster("classroom", 4, "dry", memory_bytes=None).run(come_late, late).timeline
    assert line.graph.stages == [0, 0, 1, 1]
    for rank in set(range(4)) - {late}:
        first = next(g for g in line.gaps(rank) if g.length > 1e-4)
        assert first.awaited == late
        assert first.entry == ("wait" if late // 2 == rank // 2 else "bubble")


def test_the_papers_bubble_has_the_time_of_messages_in_it_and_the_entry_has_not():
    model = make_model("tiny", layers=4, hidden=32, seq=16)
    line = run_plan(make_plan(pp=4, schedule="gpipe", global_batch=6), model, "dry").timeline
    first, last = line.window
    inside = dict.fromkeys(("bubble", "exposed_pp", "other"), 0.0)
    for gap in line.all_gaps:
        length = max(0.0, min(gap.end, last) - max(gap.start, first))
        inside[gap.entry if gap.entry in inside else "other"] += length
    whole = line.bubble()["bubble_fraction"] * (last - first) * line.graph.ranks
    rest = sum(  # compute that is neither forward nor backward, between both
        max(0.0, min(line.end[row], last) - max(line.start[row], first))
        for row in np.flatnonzero((line.graph.kind == COMPUTE) & ~np.isin(line.graph.phase, USEFUL))
    )
    assert sum(inside.values()) + rest == pytest.approx(whole, rel=1e-9)
    assert 0 < inside["bubble"] < whole - inside["exposed_pp"] + 1e-15
    assert inside["exposed_pp"] > 0


# ---- always ------------------------------------------------------------------------------------------------
MODEL: dict[str, Any] = {"layers": 4, "hidden": 32, "seq": 16}
PLANS: dict[str, dict[str, Any]] = {
    "one GPU": {},
    "dp": {"dp": 4, "bucket": 2**13, "global_batch": 8},
    "zero-1": {"dp": 2, "zero": 1},
    "zero-2, offload": {"dp": 2, "zero": 2, "offload": "optimizer", "bucket": 2**13},
    "zero-3": {"dp": 4, "zero": 3},
    "hybrid shards": {"dp": 4, "zero": 3, "shard": 2},
    "tp": {"tp": 4},
    "tp, sequence-parallel, overlapped": {"tp": 2, "sequence_parallel": True, "tp_overlap": True},
    "ring": {"cp": 2, "dp": 2},
    "ulysses": {"cp": 2, "context": "ulysses"},
    "ep": {"dp": 4, "ep": 4},
    "gpipe": {"pp": 4, "schedule": "gpipe", "global_batch": 6},
    "1f1b, recompute": {"pp": 2, "recompute": "full", "global_batch": 6},
    "interleaved": {"pp": 2, "schedule": "interleaved", "virtual_stages": 2, "global_batch": 4},
    "zb-h1": {"pp": 2, "schedule": "zb-h1", "global_batch": 4},
    "zb-v": {"pp": 2, "schedule": "zb-v", "virtual_stages": 2, "global_batch": 4},
    "everything": {"dp": 2, "tp": 2, "pp": 2, "cp": 2, "zero": 1, "global_batch": 8},
    "pp, ep, zero": {"dp": 2, "pp": 2, "ep": 2, "zero": 2, "global_batch": 8},
}
MACHINES = ("classroom", "dgx-h100")


@cache
def graph_of(name: str) -> Any:
    plan = PLANS[name]
    experts = {"experts": 4} if "ep" in plan else {}
    return run_plan(make_plan(**plan), make_model("tiny", **MODEL, **experts), "dry").graph


@pytest.mark.parametrize("options", [{}, {"slow_ranks": {0: 3.0}}, {"rendezvous": True}], ids=str)
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", PLANS)
def test_the_entries_of_every_rank_add_up_to_its_time_and_each_holds_what_its_definition_says(
    name, machine, options
):
    plan, line = PLANS[name], replay(graph_of(name), machine, **options)
    graph, pipelined = line.graph, plan.get("pp", 1) > 1
    assert graph.pipelined == pipelined
    for rank, split in enumerate(line.split()):
        spent, gaps = line.breakdown(rank), line.gaps(rank)
        assert list(spent) == list(ENTRIES)
        assert min(spent.values()) >= 0
        assert sum(spent.values()) == pytest.approx(line.makespan, rel=1e-12)
        assert sum(split.values()) == pytest.approx(line.makespan, rel=1e-12)
        assert sum(tenths(spent).values()) == 1000
        # busy time, straight from the events
        for entry, phases in (("recompute", {RECOMPUTE}), ("optimizer", {OPTIMIZER})):
            rows = (graph.rank == rank) & (graph.kind == COMPUTE) & np.isin(graph.phase, list(phases))
            assert spent[entry] == pytest.approx((line.end - line.start)[rows].sum(), rel=1e-12)
        # gaps lie in order between the events, and none has two reasons
        mine = (graph.rank == rank) & (graph.kind == COMPUTE)
        spans = sorted(
            [(g.start, g.end) for g in gaps] + list(zip(line.start[mine], line.end[mine], strict=True))
        )
        assert all(a[1] <= b[0] + 1e-15 for a, b in itertools.pairwise(spans))
        for axis in AXES:
            if plan.get(axis, 1) == 1 and not (axis == "dp" and plan.get("cp", 1) > 1):
                assert spent[f"exposed_{axis}"] == 0, axis
        assert pipelined or spent["bubble"] == 0
        assert ("offload" in plan) or spent["host"] == 0
        assert ("recompute" in plan) == (spent["recompute"] > 0)
        if pipelined:  # for each bubble there is a rank of another stage that has not sent yet
            for gap in gaps:
                assert gap.entry != "bubble" or graph.stages[gap.awaited] != graph.stages[rank]
    papers = line.bubble()
    assert all((value is None) == (not pipelined) for value in papers.values())
    said = line.summary()
    assert said["breakdown_s"] == line.breakdown(line.last_rank())
    assert said["exposed_comm_per_rank_s"] == pytest.approx(
        [sum(v for k, v in line.breakdown(r).items() if k.startswith("exposed_")) for r in range(graph.ranks)]
    )


# ---- in words ----------------------------------------------------------------------------------------------
def test_shares_are_rounded_so_that_they_add_up_to_a_hundred_percent():
    thirds = {"optimizer": 1.0, "compute": 1.0, "wait": 1.0}
    assert tenths(thirds) == {"compute": 334, "wait": 333, "optimizer": 333}
    assert listed(thirds).en == "compute 33.4%, other waiting 33.3%, optimizer 33.3%"
    assert listed(thirds).zh == "计算 33.4%、其他等待 33.3%、优化器 33.3%"
    assert tenths({"compute": 1.0, "wait": 1e-9}) == {"compute": 1000}
    assert tenths({"compute": 0.0}) == {}
    rng = np.random.default_rng(0)
    for _ in range(200):
        spent = dict(zip(ENTRIES, rng.exponential(size=len(ENTRIES)) ** 4, strict=True))
        shares = tenths(spent)
        assert sum(shares.values()) == 1000
        for key, share in shares.items():
            assert abs(share - 1000 * spent[key] / sum(spent.values())) < 1


def test_axes_of_a_user_s_own_program_stand_behind_those_of_plans():
    keys = ["wait", "exposed_world", "optimizer", "exposed_dp", "exposed_mine", "compute", "host"]
    order = ["compute", "exposed_dp", "exposed_mine", "exposed_world", "host", "wait", "optimizer"]
    assert in_order(keys) == order
