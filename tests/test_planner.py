"""`glass plan` gives what replaying every layout gives: its bounds are under all replays, and it says why."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import pytest

from glasscluster.base.errors import InputError
from glasscluster.cli import main
from glasscluster.scenarios.jobs.prediction import predict
from glasscluster.scenarios.planning.bounds import memory_bound, time_bound
from glasscluster.scenarios.planning.launch import chosen, megatron, torchrun, torchtitan
from glasscluster.scenarios.planning.layouts import SEARCHED, layouts
from glasscluster.scenarios.planning.search import GIB, search
from glasscluster.scenarios.planning.work import LEVELS, Works
from glasscluster.sim.time.hardware import hardware
from glasscluster.strategies.plan import Plan, make_model, make_plan

MODELS = {
    "two layers": make_model("tiny", layers=2, hidden=512, heads=8, seq=256, vocab=1024),
    "dense": make_model("tiny", layers=4, hidden=512, heads=8, seq=256, vocab=1024),
    "untied, grouped heads": make_model(
        *("tiny",), layers=3, hidden=256, heads=8, kv_heads=2, seq=128, vocab=512, tied=False, norm="rmsnorm"
    ),
    "experts": make_model("tiny", layers=2, hidden=128, heads=4, seq=64, vocab=256, experts=4, top_k=2),
}
BASE = Plan(global_batch=4, precision="bf16")
FEW = {"micro_batch": 1}
SIMPLE = {"micro_batch": 1, "recompute": "none", "cp": 1, "zero": 1}


@cache
def machine(name: str, node_size: int = 8, gigabytes: float = 80.0):
    """A machine with smaller nodes, or smaller memory."""
    hw = hardware(name)
    return replace(hw, node_size=node_size, gpu=replace(hw.gpu, memory_bytes=gigabytes * 1e9))


def some(model: str, gpus: int, every: int, fixed=None) -> list[Plan]:
    return layouts(gpus, MODELS[model], BASE, FEW if fixed is None else fixed)[::every]


@cache
def measured(plan, model, where):
    """What `glass predict` says of a plan; a plan that several tests have is replayed once."""
    name, node_size, *gigabytes = where
    if not gigabytes:
        return predict(plan, model, machine(name, node_size))
    content = measured(
        plan, model, (name, node_size)
    )  # less memory changes whether it fits, and nothing else
    return content | {"fits": content["peak_memory_gib"] * GIB <= gigabytes[0] * 1e9}


def violations(plans, model, where, factor: float = 1.0) -> list[str]:
    """The plans whose bound, times a factor, is above what a replay gives."""
    hw = machine(*where)
    wrong, works = [], Works(model, hw)
    for plan in plans:
        content = measured(plan, model, where)
        bounds = [factor * time_bound(plan, model, hw, works.of(plan, level)).seconds for level in LEVELS]
        if max(bounds) > content["iteration_time_s"] * (1 + 1e-9):
            wrong.append(f"time: {chosen(plan)}")
        if factor * memory_bound(plan, model) > content["peak_memory_gib"] * GIB:
            wrong.append(f"memory: {chosen(plan)}")
    return wrong


@pytest.mark.parametrize(
    ("model", "gpus", "every", "fixed", "name", "node"),
    [
        ("dense", 4, 79, None, "dgx-h100", 4),
        ("dense", 8, 211, {}, "dgx-h100", 4),
        ("untied, grouped heads", 4, 149, {}, "dgx-a100-80gb", 2),
        ("experts", 4, 211, {}, "dgx-h100", 8),
        ("dense", 2, 61, {}, "classroom", 8),
    ],
)
def test_no_bound_is_above_its_replay(model, gpus, every, fixed, name, node):
    plans = some(model, gpus, every, fixed)
    assert len(plans) >= 4
    assert violations(plans, MODELS[model], (name, node)) == []


def test_a_bound_that_is_too_high_is_noticed():
    plans = some("dense", 4, 79)
    wrong = violations(plans, MODELS["dense"], ("dgx-h100", 4), factor=2.0)
    assert [w for w in wrong if w.startswith("time")]
    assert [w for w in wrong if w.startswith("memory")]


def exhaustive(plans, model, where, top):
    """Every plan replayed: the quickest that fit, the first of equal ones first."""
    every = [(measured(plan, model, where), number) for number, plan in enumerate(plans)]
    fit = sorted((c["iteration_time_s"], number) for c, number in every if c["fits"])
    return [(plans[number], seconds) for seconds, number in fit[:top]], len(fit)


def searched(plans, model, where, top=3, **options):
    return search(plans, model, machine(*where), lambda plan: measured(plan, model, where), top, **options)


@pytest.mark.parametrize(("gpus", "every", "gigabytes"), [(8, 2, 80.0), (8, 2, 0.08)])
def test_the_search_equals_the_replay_of_every_layout(gpus, every, gigabytes):
    model, where = MODELS["two layers"], ("dgx-h100", 4, gigabytes)
    plans = some("two layers", gpus, every, SIMPLE)
    assert len(plans) > 8
    found = searched(plans, model, where)
    best, fitting = exhaustive(plans, model, where, 3)
    assert [(one.plan, one.seconds) for one in found.best] == best
    assert 0 < found.replayed < len(plans)
    assert found.considered == len(plans)
    assert fitting <= found.fitting


def test_a_bound_that_is_too_high_gives_another_answer():
    model, where = MODELS["two layers"], ("dgx-h100", 4, 80.0)
    plans = some("two layers", 8, 2, SIMPLE)

    def too_high(plan, *rest):
        bound = time_bound(plan, *rest)
        return replace(bound, seconds=bound.seconds * (10 if plan == best[0][0] else 1))

    best, _ = exhaustive(plans, model, where, 1)
    found = searched(plans, model, where, top=1, bound=too_high)
    assert found.best[0].plan != best[0][0]


@pytest.mark.soak
def test_on_eight_gpus_the_search_equals_the_replay_of_all_layouts():
    model, where = MODELS["dense"], ("dgx-h100", 4)
    plans = some("dense", 8, 1, {"micro_batch": 2, "recompute": "none"})
    assert violations(plans, model, where) == []
    found = searched(plans, model, where, top=10)
    assert [(one.plan, one.seconds) for one in found.best] == exhaustive(plans, model, where, 10)[0]
    assert found.replayed < len(plans)


# ---- which layouts -----------------------------------------------------------------------------------------
def test_every_layout_is_legal_and_each_stands_once():
    plans = layouts(8, MODELS["dense"], BASE, {})
    keys = [tuple(getattr(p, name) for name in SEARCHED) for p in plans]
    assert len(set(keys)) == len(keys)
    assert {p.gpus for p in plans} == {8}
    assert {p.schedule for p in plans if p.pp > 1} >= {"gpipe", "interleaved", "zb-v", "dualpipe-v"}
    assert {p.zero for p in plans} == {0, 1, 2, 3}
    for plan in plans[::100]:
        plan.check(MODELS["dense"])


def test_what_is_given_stays():
    plans = layouts(8, MODELS["dense"], BASE, {"tp": 2, "zero": 1, "schedule": "zb-h1"})
    assert {(p.tp, p.zero, p.schedule) for p in plans} == {(2, 1, "zb-h1")}


def test_a_layout_that_no_rule_admits_says_which_rule():
    with pytest.raises(InputError, match="needs at least one of the 4 layers") as refused:
        layouts(8, MODELS["dense"], BASE, {"pp": 8, "schedule": "1f1b"})
    assert refused.value.field == "pp"


# ---- what to type ------------------------------------------------------------------------------------------
def test_a_layout_is_said_in_the_words_of_three_frameworks():
    model, plan = (
        make_model("llama3-8b"),
        make_plan(
            dp=2,
            tp=2,
            pp=4,
            virtual_stages=2,
            zero=1,
            sequence_parallel=True,
            global_batch=64,
            precision="bf16",
        ),
    )
    line = torchrun(plan, {"model": "llama3-8b"}, hardware("dgx-h100"))
    assert line.startswith(
        "torchrun --nnodes 2 --nproc-per-node 8 -m glasscluster train --model llama3-8b --dp 2"
    )
    assert "--num-layers-per-virtual-pipeline-stage 4" in megatron(plan, model)
    assert "--use-distributed-optimizer" in megatron(plan, model)
    assert torchtitan(plan) is None  # it has no ZeRO 1
    whole = plan.model_copy(update={"zero": 3})
    assert megatron(whole, model) is None
    assert "--parallelism.pipeline_parallel_schedule Interleaved1F1B" in torchtitan(whole)
    assert "--parallelism.data_parallel_shard_degree 2" in torchtitan(whole)


# ---- the command -------------------------------------------------------------------------------------------
SMALL = (
    "plan",
    "--layers",
    "2",
    "--hidden",
    "128",
    "--seq",
    "64",
    "--hardware",
    "dgx-h100",
    "--gpus",
    "2",
    "--zero",
    "0",
)


def exit_code(line) -> int:
    with pytest.raises(SystemExit) as ended:
        main(line)
    return int(ended.value.code)


def test_the_command_shows_the_best_and_why_the_others_are_not(capsys, tmp_path):
    line = [*SMALL, "--global-batch", "2", "--recompute", "none", "--out", str(tmp_path / "p")]
    assert exit_code([*line, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["schema"] == "glass.plan/1"
    assert said["considered"] >= said["fitting"] >= len(said["best"]) == 3
    times = [best["iteration_time_s"] for best in said["best"]]
    assert times == sorted(times)
    assert said["best"][0]["plan"]["precision"] == "bf16"
    assert len(said["why_not"]) <= 10
    assert all(other["reason"]["en"] and other["reason"]["zh"] for other in said["why_not"])
    page = (tmp_path / "p" / "report.html").read_text(encoding="utf-8")
    assert "tp 2" in page


def test_the_command_needs_a_global_batch(capsys):
    assert exit_code([*SMALL, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["field"] == "global_batch"
