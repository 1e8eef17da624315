"""What is recorded once and emitted again is, to the last bit, what running it records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from plans import SCHEDULES, build, every

from glasscluster.base.errors import OutOfMemory
from glasscluster.sim.ranks.backends.dry import DryWire, record_rank
from glasscluster.sim.ranks.gpu import GPU, Outcome, run_rank
from glasscluster.sim.recording import repeated
from glasscluster.sim.recording.events import FIELDS
from glasscluster.sim.recording.repeated import NotRepeated, Step, alike, first_and_last
from glasscluster.sim.recording.rows import Block, Log, Rows
from glasscluster.sim.recording.template import FRONTIER, Template
from glasscluster.strategies.job import Job
from glasscluster.strategies.pipeline.pipeline_parallel import PipelineExecutor
from glasscluster.strategies.pipeline.schedules import FOLDED
from glasscluster.strategies.plan import Plan, make_model, make_plan
from glasscluster.strategies.trainer import train_rank

SMALL = {"layers": 2, "hidden": 16, "seq": 8, "vocab": 40}
VALUES = ("losses", "weights", "constants")  # of a result: tensors, which a dry run has without numbers


def recorded(job: Job, rank: int, repeats: bool, capacity: float | None = None) -> tuple[Outcome, int]:
    """A rank's outcome, and how many actions were emitted."""
    made: list[Any] = []

    def program(gpu: GPU) -> Any:
        made.append(gpu.repeated)
        return train_rank(gpu, job)

    wire = DryWire(rank, job.plan.gpus, repeats)
    outcome = run_rank(wire, program, (), True, capacity, NotRepeated)
    return outcome, made[0].emitted if repeats else 0


def different(a: Outcome, b: Outcome) -> list[str]:
    """What differs between two outcomes of a rank, in any bit."""
    if a.error or b.error:
        return [] if str(a.error) == str(b.error) else ["error"]
    one, other = a.recording or {}, b.recording or {}
    arrays = {name: (one[name], other[name]) for name in ("table", "dep_counts", "deps")}
    m, n = one["memory"], other["memory"]
    arrays |= {name: (m[name], n[name]) for name in ("log", "waits", "before")}
    plain = {name: (one[name], other[name]) for name in ("rank", "names", "groups", "unknown_flops")}
    plain |= {"base": (m["base"], n["base"]), "named": (list(m["named"].items()), list(n["named"].items()))}
    mine, theirs = vars(a.result), vars(b.result)
    plain |= {name: (repr(mine[name]), repr(theirs[name])) for name in mine if name not in VALUES}
    return [name for name, (x, y) in arrays.items() if not np.array_equal(x, y)] + [
        name for name, (x, y) in plain.items() if x != y
    ]


def same(plan: Plan, model: Any, ranks: tuple[int, ...]) -> list[int]:
    """Record ranks both ways; returns how many actions of each were emitted."""
    job, emitted = Job(plan, model, steps=1), []
    for rank in sorted(set(ranks)):
        (ran, _), (again, actions) = recorded(job, rank, False), recorded(job, rank, True)
        assert ran.error is None, ran.error
        assert different(ran, again) == [], (plan, rank)
        emitted.append(actions)
    return emitted


def longer(choice: dict[str, Any], m: int) -> dict[str, Any]:
    """The choice with at least m micro-batches, as many as its pipeline's loops divide."""
    return choice | {"micro_batches": m + -m % choice["pp"]}


# ---- equal -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("choice", every(45))
def test_a_plan_is_recorded_as_if_every_action_had_run(choice):
    plan, model = build(longer(choice, 6))
    same(plan, model, (0, plan.gpus - 1))


@pytest.mark.soak
@pytest.mark.parametrize("choice", [p.values[0] for p in every(1)], ids=[p.id for p in every(1)])
def test_every_rank_of_a_plan_is_recorded_as_if_every_action_had_run(choice):
    plan, model = build(longer(choice, 14))
    same(plan, model, tuple(range(plan.gpus)))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_with_every_schedule_actions_are_emitted_and_nothing_differs(schedule):
    v = 2 if schedule in FOLDED or "interleaved" in schedule or "looped" in schedule else 1
    plan = make_plan(
        pp=2, schedule=schedule, virtual_stages=v, global_batch=8, layers_per_stage=(2, 1, 1, 1)[: 2 * v]
    )
    model = make_model("tiny", **SMALL | {"layers": 5 if v == 2 else 3})
    assert min(same(plan, model, (0, 1))) > 0


PLANS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "zero 1, small buckets": ({"dp": 2, "zero": 1, "bucket": 900, "first_bucket": 300}, {}),
    "zero 2": ({"dp": 2, "zero": 2}, {}),
    "zero 2, accumulated whole": ({"dp": 2, "zero": 2, "accumulate": "whole"}, {}),
    "zero 3 in a pipeline": ({"dp": 2, "pp": 2, "zero": 3}, {}),
    "zero 3, gathered once": ({"dp": 2, "zero": 3, "reshard": False}, {}),
    "hybrid shards, offload": ({"dp": 4, "zero": 2, "shard": 2, "offload": "optimizer"}, {}),
    "recompute": ({"pp": 2, "recompute": "full", "recompute_every": 2}, {}),
    "recompute the core": ({"tp": 2, "recompute": "selective"}, {"attention": "unfused"}),
    "ring": ({"cp": 2, "context": "zigzag"}, {}),
    "Ulysses": ({"cp": 2, "context": "ulysses"}, {}),
    "fp16": ({"precision": "fp16", "dp": 2}, {}),
    "bf16, wide gradients": ({"precision": "bf16", "dp": 2, "grad_dtype": "fp32"}, {}),
    "dropout": ({"tp": 2, "sequence_parallel": True, "tp_overlap": True}, {"dropout": 0.2}),
    "experts": ({"dp": 2, "ep": 2}, {"experts": 4, "capacity_factor": 1.0}),
    "experts, backward in two": ({"pp": 2, "schedule": "zb-h1"}, {"experts": 4, "shared_ffn": 16}),
    "norms behind": ({"pp": 2, "schedule": "zb-h1"}, {"norm_position": "post"}),
}


@pytest.mark.parametrize("name", PLANS)
def test_actions_are_emitted_and_nothing_differs(name):
    options, switches = PLANS[name]
    plan = make_plan(global_batch=(6 if options.get("zero") != 3 else 8) * options.get("dp", 1), **options)
    ranks = (0, plan.gpus - 1)[plan.pp == 1 :]
    assert min(same(plan, make_model("tiny", **SMALL | switches), ranks)) > 0


# ---- where it is off -------------------------------------------------------------------------------------
def job(**options: Any) -> Job:
    capture = options.pop("capture", False)
    plan = make_plan(pp=2, global_batch=10, **options)
    return Job(plan, make_model("tiny", **SMALL), steps=1, capture=capture)


def test_where_somebody_looks_on_every_action_runs():
    assert recorded(job(), 0, True)[1] == 10
    assert recorded(job(capture=True), 0, True)[1] == 0
    assert recorded(job(), 0, False)[1] == 0


def test_what_changes_on_the_way_is_noticed_and_all_of_it_is_run(monkeypatch):
    forward = PipelineExecutor._forward

    def other(self: PipelineExecutor, stage: int, i: int, x: torch.Tensor) -> Any:
        if i >= 5:  # which is emitted
            torch.ones(3, device=x.device)
        return forward(self, stage, i, x)

    monkeypatch.setattr(PipelineExecutor, "_forward", other)
    with pytest.raises(NotRepeated):
        recorded(job(), 0, True)
    again = record_rank(0, 2, train_rank, (job(),), None)
    assert different(again, recorded(job(), 0, False)[0]) == []


def test_a_backward_that_cannot_be_emitted_is_noticed(monkeypatch):
    backward = PipelineExecutor._backward

    def other(self: PipelineExecutor, action: Any, given: list[torch.Tensor]) -> Any:
        for _ in range(action.micro_batch):  # no two alike
            torch.ones(3, device="meta")
        return backward(self, action, given)

    monkeypatch.setattr(PipelineExecutor, "_backward", other)
    with pytest.raises(NotRepeated, match="nothing is known"):
        recorded(job(), 0, True)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_out_of_memory_is_said_as_if_every_action_had_run(schedule):
    whole = job(schedule=schedule)
    peak = 0
    for *_, change, _ in (recorded(whole, 0, False)[0].recording or {})["memory"]["log"].tolist():
        peak += max(change, 0)
    for share in (0.1, 0.3, 0.6):
        start = sum((recorded(whole, 0, False)[0].recording or {})["memory"]["base"])
        capacity = start + share * peak / 4
        ran = recorded(whole, 0, False, capacity)[0]
        again = record_rank(0, 2, train_rank, (whole,), capacity)
        assert different(ran, again) == []
        if share == 0.1:
            assert isinstance(ran.error, OutOfMemory)


# ---- the oracle can fail ---------------------------------------------------------------------------------
def column(name: str) -> Callable[[Template], Template]:
    def change(t: Template) -> Template:
        table = t.rows.table.copy()
        table[0, FIELDS.index(name)] += 1
        return replace(t, rows=Block(table, t.rows.counts, t.rows.follows))

    return change


def entry(table: str, at: int) -> Callable[[Template], Template]:
    def change(t: Template) -> Template:
        rows = getattr(t, table).copy()
        rows[-1, at] += 1
        return replace(t, **{table: rows})

    return change


def follows(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Template], Template]:
    return lambda t: replace(t, rows=Block(t.rows.table, t.rows.counts, change(t.rows.follows)))


def first_frontier(rows: np.ndarray) -> np.ndarray:
    changed = rows.copy()
    changed[np.flatnonzero(rows == FRONTIER)[0]] = 0
    return changed


def after_another(rows: np.ndarray) -> np.ndarray:
    changed = rows.copy()
    changed[np.flatnonzero(rows > 0)[-1]] -= 1
    return changed


def no_collective(rows: np.ndarray) -> np.ndarray:
    return np.where(rows < FRONTIER, FRONTIER, rows)


MUTATIONS: dict[str, Callable[[Template], Template]] = {
    **{name: column(name) for name in FIELDS if name != "micro_batch"},  # that one is the next
    "own micro-batch": lambda t: replace(t, own=~t.own),
    "frontier": follows(first_frontier),
    "dependency": follows(after_another),
    "collective before": follows(no_collective),
    "ticks": lambda t: replace(t, ticks=t.ticks + 1),
    "clock of a wait": entry("waits", 0),
    "row of a wait": entry("waits", 1),
    "frontier behind": lambda t: replace(t, frontier=(0,)),
    "launched": lambda t: replace(t, launched=tuple(n + (n > 0) for n in t.launched)),
    "last collective": lambda t: replace(t, last_collective=tuple(n and n - 1 for n in t.last_collective)),
    "layer": lambda t: replace(t, layer=t.layer + 1),
    "lanes": lambda t: replace(t, lanes={lane: n + 1 for lane, n in t.lanes.items()}),
    "clock of a storage": entry("log", 0),
    "category": lambda t: replace(t, log=np.where(np.arange(5) == 1, 0, t.log)),
    "bytes of a storage": entry("log", 2),
    "storage": entry("log", 4),
    "name": lambda t: replace(t, names=tuple((n, f"{name}s") for n, name in t.names)),
    "output": lambda t: (
        t if t.output is None else replace(t, output=replace(t.output, held=(0, *t.output.held[1:])))
    ),
    "checkpoints": lambda t: replace(
        t, notes=tuple((n, more * 9 + 99_999, take) for n, more, take in t.notes)
    ),
    "routing": lambda t: replace(t, said=tuple([] for _ in t.said)),
    "kept": lambda t: replace(t, kept=t.kept[:-1]),
}


@pytest.fixture(scope="module")
def whole() -> tuple[Job, Outcome]:
    plan = make_plan(dp=2, ep=2, pp=2, zero=2, recompute="full", global_batch=12)
    wanted = Job(plan, make_model("tiny", **SMALL | {"experts": 4}), steps=1)
    return wanted, recorded(wanted, 0, False)[0]


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_changed_template_is_noticed(name, whole, monkeypatch):
    wanted, ran = whole
    placed = repeated.placed
    monkeypatch.setattr(repeated, "placed", lambda t, *more: placed(MUTATIONS[name](t), *more))
    try:
        again, emitted = recorded(wanted, 0, True)
    except NotRepeated:
        return
    assert again.error is not None or (emitted and different(ran, again)), name


def test_an_unchanged_template_is_right(whole):
    wanted, ran = whole
    again, emitted = recorded(wanted, 0, True)
    assert emitted
    assert different(ran, again) == []


def test_two_templates_that_differ_anywhere_are_not_the_same(whole, monkeypatch):
    seen: list[Template] = []
    placed = repeated.placed
    monkeypatch.setattr(repeated, "placed", lambda t, *more: placed((seen.append(t), t)[1], *more))
    recorded(whole[0], 0, True)
    t = next(t for t in seen if t.output is not None and t.notes == () and t.kept)
    assert t.same(replace(t))
    assert not t.same(column("bytes")(t))
    changed = {f.name for f in fields(t)} - {"rows", "own", "of", "waits", "log"}
    for name in changed:
        assert not t.same(replace(t, **{name: ("another",)})), name
    for name in ("own", "of", "waits", "log"):
        assert not t.same(replace(t, **{name: getattr(t, name)[:-1]})), name


# ---- which ones run --------------------------------------------------------------------------------------
def one_f_one_b(m: int, ahead: int) -> list[Step]:
    order = [("F", i) for i in range(ahead)]
    for i in range(m):
        order += [("F", i + ahead)] if i + ahead < m else []
        order += [("B", i)]
    return [Step((kind, kind == "B" and i == m - 1), i, 0) for kind, i in order]


def test_first_and_last_micro_batches_run():
    assert first_and_last(one_f_one_b(20, 1)) == {0, 1, 2, 18, 19}


@pytest.mark.parametrize("ahead", [0, 1, 8, 20])
def test_where_an_action_changes_what_lasts_each_that_runs_finds_what_it_would_have(ahead):
    steps = one_f_one_b(20, ahead)
    chosen = alike(steps)
    assert (len(chosen) < 20) == (ahead != 1), "between two that run, one that is emitted would change it"
    last: dict[bool, Any] = {False: None, True: None}  # of all, and of those that ran
    for step in steps:
        if step.chain in chosen:
            assert last[False] == last[True]
            last[True] = step.key
        last[False] = step.key


def test_rows_one_by_one_and_in_blocks_are_one_table():
    rows, log = Rows(2), Log(2)
    rows.tail.append((1, 2, ()))
    rows.tail.append((3, 4, (0,)))
    rows.put(Block(np.array([[5, 6]]), np.array([2]), np.array([0, 1])))
    rows.tail.append((7, 8, (2,)))
    assert len(rows) == 4
    table, counts, follow = rows.all()
    assert table.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert counts.tolist() == [0, 1, 2, 1]
    assert follow.tolist() == [0, 0, 1, 2]
    log.append((1, 2))
    log.put(np.array([[3, 4]]))
    assert log.all().tolist() == [[1, 2], [3, 4]]
    for empty in (Rows(2).all().table, Log(2).all()):
        assert empty.shape == (0, 2)
