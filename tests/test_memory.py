"""Memory: what lives, when and under which name; what does not fit, and the change of the plan that would."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import published_rows, run_plan
from plans import build, every
from test_cli import glass

from glasscluster.base.errors import DoesNotFit, OutOfMemory
from glasscluster.scenarios.jobs import training
from glasscluster.sim.recording.events import BEGIN, CATEGORIES, COLLECTIVE
from glasscluster.sim.recording.graph import ExecutionGraph, compute_rows
from glasscluster.sim.recording.memory_log import Resident, plain_operation
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import hardware
from glasscluster.sim.time.memory_history import MemoryHistory
from glasscluster.strategies.data.zero import predict_state
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.judge import accounts, advice
from glasscluster.strategies.layout.judged import Judged
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.trainer import train_rank

TABLE_1 = {  # ZeRO 1910.02054, table 1: GB of model states of 7.5 B parameters, by GPUs and stage
    1: ("120", "120", "120"),
    4: ("52.5", "41.3", "30"),
    16: ("35.6", "21.6", "7.5"),
    64: ("31.4", "16.6", "1.88"),
    256: ("30.4", "15.4", "0.47"),
    1024: ("30.1", "15.1", "0.12"),
}


# ---- the paper's table, and the same formula counted -------------------------------------------------------
def as_printed(stage: int, gpus: int, digits: int) -> float:
    exact = sum(predict_state(stage, 7_500_000_000, gpus, 2, 2, 12).values()) / 1e9
    return float(f"{exact + 1e-12:.{digits}f}")  # 41.25 is printed as 41.3


@pytest.mark.parametrize("gpus", TABLE_1)
def test_every_cell_of_table_1_of_the_zero_paper_is_the_formula_s(gpus):
    for stage, printed in enumerate(TABLE_1[gpus], start=1):
        assert as_printed(stage, gpus, len(printed.partition(".")[2])) == float(printed)


def test_the_quoted_cells_are_those_of_the_published_file():
    rows = published_rows("zero_table1_memory.csv")
    assert {(int(r["dp"]), int(r["zero_stage"]), r["gb_per_device"]) for r in rows} == {
        (gpus, stage, cell) for gpus, cells in TABLE_1.items() for stage, cell in enumerate(cells, start=1)
    }


@pytest.mark.parametrize("gpus", [1, 2, 3, 4])
@pytest.mark.parametrize("stage", range(4))
def test_a_small_model_holds_exactly_2_2_and_12_bytes_a_parameter_over_n(stage, gpus):
    plan, model = (
        make_plan(dp=gpus, zero=stage, precision="bf16", bucket=20_000),
        make_model("tiny", layers=2, hidden=20, heads=2, seq=7),
    )
    results = run_plan(plan, model).results
    padded = sum(size for _, _, size in results[0].units)
    assert sum(numel for _, numel, _ in results[0].units) == model.parameters()
    assert gpus == 1 or stage == 0 or padded % gpus == 0
    for rank in results:
        shares = [gpus if stage >= least else 1 for least in (3, 2, 1)]
        assert list(rank.state_bytes.values()) == [
            w * padded // n for w, n in zip((2, 2, 12), shares, strict=True)
        ]
    judged = Judged(plan, model, results=results)
    rows = accounts.rows(judged)
    assert {r.verdict for r in rows} <= {"held"}
    assert len(rows) == 3 + (stage == 3)
    for kind in ("parameters", "gradients", "optimizer"):
        results[-1].state_bytes[kind] += 1
        wrong = [r.key for r in accounts.rows(judged) if r.verdict != "held"]
        assert wrong == [f"{kind}_held"]
        results[-1].state_bytes[kind] -= 1


# ---- who and when ------------------------------------------------------------------------------------------
def recorded(**options):
    plan = make_plan(**options)
    return run_plan(
        plan, make_model("tiny", layers=2, hidden=32, seq=16, attention="unfused"), "dry", steps=2
    )


MANY = [
    {"dp": 3, "bucket": 9000},
    {"dp": 2, "zero": 3},
    {"pp": 2, "schedule": "gpipe"},
    {"tp": 2, "recompute": "full"},
]


@pytest.mark.parametrize("options", MANY, ids=str)
def test_what_lives_at_any_moment_adds_up_to_what_is_counted_there(options):
    graph = recorded(**options).graph
    for rank in graph.memory:
        history = MemoryHistory(graph, rank)
        assert history.levels[0].tolist() == graph.memory[rank]["base"]
        for at in sorted({0, history.peak_at, len(history.log) // 3, len(history.log)}):
            held = history.residents(at, top=10**6)
            by_category = [sum(r.bytes for r in held if r.category == c) for c in CATEGORIES]
            assert by_category == history.levels[at].tolist()
            assert [r.bytes for r in held] == sorted((r.bytes for r in held), reverse=True)
        total, split = history.peak()
        assert total == sum(split.values()) == history.total.max()


def test_activations_are_called_after_their_operation_layer_and_phase():
    history = MemoryHistory(recorded(micro_batch=2).graph, 0)
    said = {r.called for r in history.residents(top=100)}
    assert {"layer 0 forward: softmax", "layer 1 forward: gelu", "layer 1 forward: linear", "bucket"} <= said
    received = MemoryHistory(recorded(pp=2).graph, 1)
    everything = {r.called for at in range(0, len(received.log), 5) for r in received.residents(at, top=100)}
    assert "activation received" in everything
    assert [
        plain_operation(n) for n in ("add.Tensor", "glasscluster.softmax_forward", "addmm", "bucket 3")
    ] == ["add", "softmax", "linear", "bucket 3"]


def test_memory_moves_when_the_program_does_on_every_stream():
    """An operation's result lives from its start; a collective's staging from its launch until its wait,
    which is after its end.
    """
    run = recorded(dp=4, bucket=9000)
    graph, line = run.graph, run.timeline
    for rank in range(4):
        history = MemoryHistory(graph, rank)
        when, rows = history.moments(line)[1:], compute_rows(graph, rank)
        assert (np.diff(when) >= 0).all()
        staging = {n for n, called in history.named.items() if called.endswith("staging")}
        launches = np.flatnonzero((graph.rank == rank) & (graph.kind == BEGIN))
        ends = np.flatnonzero((graph.rank == rank) & (graph.kind == COLLECTIVE))
        first, last = {}, {}
        for (clock, _, change, number), moment in zip(history.log.tolist(), when.tolist(), strict=True):
            if number in staging:
                (first if change > 0 else last).setdefault(number, moment)
            elif change > 0 and number not in history.named:
                row = rows[clock - int(np.searchsorted(history.waits[:, 0], clock))]
                assert moment == line.start[row]
        assert len(staging) >= 8
        assert set(first.values()) <= set(line.start[launches].tolist())
        for number, moment in last.items():
            began = line.start[launches] == first[number]
            done = [line.end[e] for e in ends if graph.sequence[e] in graph.sequence[launches[began]]]
            assert moment >= min(done) > first[number]
        curve = line.memory(rank)
        assert curve.times[-1] == line.makespan
        assert curve.levels.sum(axis=1).max() == history.peak()[0]
        at_peak = curve.residents()[int(np.argmax(curve.levels.sum(axis=1)))]
        assert at_peak == history.residents()


def test_a_stored_graph_remembers_who_lived_when(tmp_path):
    graph = recorded(dp=2, zero=2).graph
    graph.save(tmp_path / "graph.npz")
    back = ExecutionGraph.load(tmp_path / "graph.npz")
    for rank in graph.memory:
        assert MemoryHistory(back, rank).residents() == MemoryHistory(graph, rank).residents()
        assert np.array_equal(MemoryHistory(back, rank).levels, MemoryHistory(graph, rank).levels)


# ---- full --------------------------------------------------------------------------------------------------
FULL = [
    {"dp": 2},
    {"dp": 2, "optimizer": "sgd"},
    {"dp": 2, "precision": "bf16"},
    {"dp": 2, "pp": 2, "zero": 3},
    {"dp": 3, "zero": 2},
]


@pytest.mark.parametrize("options", FULL, ids=str)
def test_a_dry_recording_says_to_the_byte_what_a_run_of_many_steps_needs(options):
    plan, model = make_plan(**options), make_model("tiny", layers=2, hidden=32, seq=8)
    peak, _ = advice.on_every_rank(plan, model, hardware("classroom"), None)
    run = Cluster("classroom", plan.gpus, "threads", memory_bytes=peak).run(
        train_rank, Job(plan, model, steps=4)
    )
    assert max(total for total, _ in run.peak_memory()) == peak
    with pytest.raises(OutOfMemory) as caught:
        Cluster("classroom", plan.gpus, "threads", memory_bytes=peak - 1).run(
            train_rank, Job(plan, model, steps=4)
        )
    assert f"make {peak:,} of {peak - 1:,}" in caught.value.message


def test_a_full_gpu_names_rank_phase_layer_and_what_holds_most():
    plan, model = (
        make_plan(micro_batch=4, global_batch=4),
        make_model("tiny", layers=3, hidden=32, seq=64, attention="unfused"),
    )
    peak, _ = advice.on_every_rank(plan, model, hardware("classroom"), None)
    with pytest.raises(OutOfMemory) as caught:
        Cluster("classroom", 1, "threads", memory_bytes=0.8 * peak).run(train_rank, Job(plan, model, steps=1))
    error, said = caught.value, caught.value.as_dict()
    assert (said["rank"], said["phase"]) == (0, "forward")
    assert said["layer"] == error.layer > 0
    assert f"forward of micro-batch 0, layer {error.layer}" in error.message
    assert len(said["residents"]) == 5
    assert any(r["called"] == "layer 0 forward: softmax" for r in said["residents"])
    assert sum(r["bytes"] for r in said["residents"]) <= peak


@pytest.mark.parametrize("choice", every(12))
def test_stand_ins_bound_the_step_from_below_and_the_generous_estimate_bounds_memory_from_above(choice):
    plan, model = build(choice)
    peak, seconds = advice.on_every_rank(plan, model, hardware("classroom"), None)
    stages = advice.stages(plan, model, None)
    assert isinstance(stages, list)
    bound = advice._at_least(plan, model, hardware("classroom"), stages)
    assert bound <= seconds * (1 + 1e-3)  # a remainder may make the stand-in's chunks longer than the others'
    assert not advice.surely_fits(plan, model, peak)


@pytest.fixture(scope="module")
def tight():
    """A plan, and a capacity that it does not fit."""
    plan, model = (
        make_plan(dp=2, micro_batch=2, global_batch=8),
        make_model("tiny", layers=2, hidden=32, seq=32),
    )
    peak, _ = advice.on_every_rank(plan, model, hardware("classroom"), None)
    return plan, model, int(0.7 * peak)


def test_the_advice_is_the_quickest_change_that_fits_and_it_really_fits(tight):
    plan, model, capacity = tight
    hw = hardware("classroom")
    found = advice.advise(plan, model, hw, capacity, seconds=600)
    assert found.complete
    assert found.best == sorted(found.best, key=lambda f: f.seconds)
    for fit in found.best:
        job = Job(fit.plan, fit.model, steps=3)
        run = Cluster("classroom", fit.plan.gpus, "threads", memory_bytes=capacity).run(
            train_rank, job, info=job_info(job)
        )
        assert max(total for total, _ in run.peak_memory()) <= fit.peak_bytes <= capacity
        assert run.timeline.makespan == pytest.approx(fit.seconds, rel=1e-9)
    times = {}
    for change, other, shape in advice.changes(plan, model):
        try:
            times[str(change)] = advice.on_every_rank(other, shape, hw, capacity)[1]
        except OutOfMemory:
            continue
    assert found.best[0].seconds == min(times.values()), sorted(times.items(), key=lambda kv: kv[1])[:3]


def test_a_plan_that_cannot_be_made_to_fit_is_said_so(tight):
    plan, model, _ = tight
    found = advice.advise(plan, model, hardware("classroom"), 1000.0)
    assert found.best == []
    assert "no change of the plan was found that fits" in str(found)


LAYOUT = [
    "--dp",
    "2",
    "--layers",
    "2",
    "--hidden",
    "32",
    "--seq",
    "32",
    "--micro-batch",
    "2",
    "--global-batch",
    "8",
]


def test_train_refuses_before_it_runs_and_says_what_would_fit(capsys, tight):
    code, out, err = glass(
        capsys, "train", *LAYOUT, "--memory", f"{tight[2]}B", "--backend", "threads", "--json"
    )
    said = json.loads(out)
    assert code == 2
    assert (said["error"], said["field"], said["nearest"]) == (
        "InputError",
        "memory",
        said["would_fit"][0]["options"],
    )
    assert "training" not in err
    assert said["residents"]
    assert said["would_fit"][0]["peak_memory_bytes"] <= tight[2]
    again = [*LAYOUT, *said["nearest"].split()]  # the last of an option given twice counts
    code, out, _ = glass(
        capsys, "train", *again, "--memory", f"{tight[2]}B", "--backend", "threads", "--json"
    )
    assert code == 0
    assert max(json.loads(out)["peak_memory_bytes"]) <= tight[2]


def test_a_loss_in_chunks_is_advised_where_the_logits_are_what_does_not_fit(capsys):
    """One GPU, one micro-batch, a large vocabulary: nothing else that is tried alone makes room."""
    words = "--layers 1 --hidden 8 --heads 2 --vocab 4096 --seq 256 --micro-batch 1 --global-batch 1".split()
    plan, model = (
        make_plan(micro_batch=1, global_batch=1),
        make_model("tiny", layers=1, hidden=8, heads=2, vocab=4096, seq=256),
    )
    whole, _ = advice.on_every_rank(plan, model, hardware("classroom"), None)
    chunked = model.model_copy(update={"loss": "chunked"})
    peak, _ = advice.on_every_rank(plan, chunked, hardware("classroom"), None)
    capacity = (whole + peak) // 2
    found = advice.advise(plan, model, hardware("classroom"), capacity)
    assert {"loss": "chunked"} in [fit.change for fit in found.best]
    pairs = [change for change, _, shape in advice.changes(plan, model) if shape.loss == "chunked"]
    assert {"loss": "chunked", "recompute": "full"} in pairs
    assert not [1 for change, _, _ in advice.changes(plan, chunked) if "loss" in change]
    run = ["train", *words, "--steps", "1", "--memory", f"{capacity}B", "--backend", "threads", "--json"]
    code, out, _ = glass(capsys, *run)
    assert (code, json.loads(out)["nearest"]) == (2, "--loss chunked")
    code, out, _ = glass(capsys, *run, "--loss", "chunked")
    assert code == 0
    assert max(json.loads(out)["peak_memory_bytes"]) <= capacity


KINDS = [{"objective": "masked"}, {"z_loss": 0.1}, {"experts": 4, "top_k": 2}, {"logit_cap": 30.0}]


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("layout", [{"tp": 2}, {"pp": 2}, {"dp": 2, "zero": 2}], ids=str)
def test_a_loss_in_chunks_that_is_advised_can_be_recorded(options, layout):
    model, plan = make_model("tiny", layers=2, **options), make_plan(global_batch=2, **layout)
    chunked = [(p, m) for change, p, m in advice.changes(plan, model) if change == {"loss": "chunked"}]
    assert len(chunked) == 1
    assert isinstance(advice.stages(*chunked[0], None, 1), list)


def test_what_runs_out_on_the_way_is_advised_too(tight):
    plan, model, capacity = tight
    with pytest.raises(OutOfMemory) as caught:
        training.train(
            Cluster("classroom", 2, "threads", memory_bytes=capacity),
            Job(plan, model, steps=1),
            checked=False,
        )
    assert caught.value.would_fit
    assert caught.value.would_fit[0]["options"] in caught.value.message
    with pytest.raises(DoesNotFit):
        training.check_memory(
            Cluster("classroom", 2, "threads", memory_bytes=capacity), Job(plan, model, steps=1)
        )


def test_predict_says_what_would_fit(capsys):
    big = "--layers 2 --hidden 8192 --seq 512 --heads 8 --dp 2".split()
    code, out, _ = glass(capsys, "predict", *big, "--json")
    assert json.loads(out)["would_fit"] == []  # it takes seconds: only who asks for it gets it
    code, out, _ = glass(capsys, "predict", *big, "--json", "--advise")
    said = json.loads(out)
    assert code == 0
    assert said["fits"] is False
    assert said["sentence"]["en"].split("; ")[1].startswith("DOES NOT FIT: ")
    assert said["residents"][0]["bytes"] > 0
    assert said["would_fit"][0]["peak_memory_bytes"] <= 16e9
    code, out, _ = glass(capsys, "predict", "--json")
    assert json.loads(out)["would_fit"] == []


def test_nothing_that_holds_memory_has_an_empty_name():
    assert Resident("parameters", "", 8, 276).called == "without a name"
    assert str(Resident("parameters", "", 8, 276)) == "parameters, without a name (x 276): 8 bytes"
    assert Resident("activations", "", 8, layer=3, phase="forward").called == "layer 3 forward"
