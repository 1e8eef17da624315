"""Ranks of a plan that do the same are recorded and replayed once, and every number stays what it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from plans import build, every

from glasscluster.sim.ranks.backends.dry import record_rank
from glasscluster.sim.recording.folded_by_roles import fold_roles
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.recording.relative import Partitions, difference, relative
from glasscluster.sim.recording.roles import representatives
from glasscluster.sim.time.equitable import refined
from glasscluster.sim.time.hardware import Hardware, hardware
from glasscluster.sim.time.memory_history import MemoryHistory
from glasscluster.sim.time.replay import replay
from glasscluster.sim.time.timeline import Timeline
from glasscluster.strategies.folding import Recorded
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.plan import Plan
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
        ways = [r.ways for r in one]
        groups = [{n: self.partitions[c] for n, c in r.cuts.items()} for r in one]
        role = refined(self.program, ways, groups, hw, slow)
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
