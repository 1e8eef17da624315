"""Every axis at once: tensor, sequence, context, expert, pipeline and data parallelism in one plan, exact on
every backend.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from helpers import differences, worst

from glasscluster.scenarios.jobs.training import train
from glasscluster.sim.run import Cluster
from glasscluster.strategies import assembly, trainer
from glasscluster.strategies.experts.expert_parallel import ExpertParallel
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge import check
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.trainer import train_rank

TOLERANCE = 1e-10
SHAPE: dict[str, Any] = {
    "layers": 2,
    "hidden": 16,
    "heads": 4,
    "seq": 16,
    "vocab": 42,
    "experts": 4,
    "top_k": 2,
    "activation": "swiglu",
}
MODEL = {**SHAPE, "kv_heads": 2, "qkv": "separate", "shared_ffn": 16, "capacity_factor": 1.0, "dropout": 0.1}
EVERYTHING = {
    "dp": 2,
    "cp": 2,
    "tp": 2,
    "pp": 2,
    "ep": 2,
    "sequence_parallel": True,
    "tp_overlap": True,
    "context": "zigzag",
    "zero": 1,
}
PLANS = {
    "everything": {},
    "zero 3, all experts apart": {"zero": 3, "ep": 4},
    "ulysses, no overlap, gpipe": {"context": "ulysses", "tp_overlap": False, "schedule": "gpipe", "zero": 0},
    "a sharded half, recomputation": {
        "zero": 2,
        "shard": 2,
        "recompute": "full",
        "tp_overlap": False,
        "context": "striped",
    },
}


def everything(**options):
    return make_plan(
        **{
            **EVERYTHING,
            "global_batch": 8,
            "micro_batch": 2,
            "clip": 0.01,
            "precision": "fp64",
            "bucket": 4000,
            **options,
        }
    )


@pytest.mark.parametrize("options", PLANS.values(), ids=PLANS)
def test_sixteen_ranks_with_every_axis_at_once_are_one_device(options):
    plan, model = (
        everything(**options),
        make_model("tiny", **{**MODEL, **({"kv_heads": 4} if options.get("context") == "ulysses" else {})}),
    )
    plan.check(model)
    assert plan.gpus == 16
    compared = differences(plan, model, steps=2)
    assert worst(compared) <= TOLERANCE, compared


def test_its_ledger_holds_and_every_axis_was_used():
    plan, model = everything(), make_model("tiny", **MODEL)
    trained = train(Cluster("classroom", plan.gpus, "threads"), Job(plan, model, steps=2))
    assert [r.key for r in trained.checks if r.verdict == "failed"] == []
    assert sum(r.verdict == "held" for r in trained.checks) >= 15
    graph = trained.run.graph
    assert all(min(graph.bytes_sent(axis=axis)) > 0 for axis in ("dp", "cp", "tp", "pp", "ep")), (
        graph.traffic()["by_axis"]
    )


@pytest.mark.parametrize("broken", ["norms", "experts", "tied"])
def test_one_axis_broken_among_all_is_caught(monkeypatch, broken):
    if broken == "norms":
        monkeypatch.setattr(assembly, "sum_over_tokens", lambda parallel, units: None)
    elif broken == "tied":
        monkeypatch.setattr(trainer.Trainer, "sum_tied", lambda self, step: None)
    else:
        honest = ExpertParallel.combine
        monkeypatch.setattr(
            ExpertParallel,
            "combine",
            lambda self, y, counts, arrived: honest(self, y.flip(0), counts, arrived),
        )
    assert worst(differences(everything(), make_model("tiny", **MODEL), steps=1)) > 1e-6


BIG: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dp 4, tp 4, pp 4": ({"dp": 4, "tp": 4, "pp": 4, "schedule": "zb-v", "zero": 1, "global_batch": 16}, {}),
    "with cp and ep": (
        {
            "dp": 2,
            "cp": 2,
            "tp": 4,
            "pp": 4,
            "ep": 4,
            "schedule": "interleaved",
            "virtual_stages": 2,
            "zero": 2,
            "global_batch": 8,
        },
        {"experts": 4, "top_k": 2},
    ),
}


@pytest.mark.parametrize(("options", "more"), BIG.values(), ids=BIG)
def test_sixty_four_ranks_are_one_device(options, more):
    plan = make_plan(sequence_parallel=True, lr=1e-2, **options)
    model = make_model("tiny", layers=8, hidden=16, heads=4, seq=16, vocab=64, **more)
    plan.check(model)
    assert plan.gpus == 64
    compared = differences(plan, model, steps=1)
    assert worst(compared) <= TOLERANCE, compared


# ---- the same family on processes --------------------------------------------------------------------------
SMALL: dict[str, Any] = {
    "cp": 2,
    "tp": 2,
    "ep": 2,
    "sequence_parallel": True,
    "context": "zigzag",
    "global_batch": 4,
    "precision": "fp64",
}


FAMILY: dict[str, dict[str, Any]] = {
    "plain": {},
    "overlapped, zero 1": {"tp_overlap": True, "zero": 1},
    "backward in two parts": {
        "cp": 1,
        "pp": 2,
        "ep": 1,
        "tp_overlap": True,
        "schedule": "dualpipe-v",
        "layers": 4,
    },
}


def trained_on(cluster: Cluster, options: dict[str, Any]) -> tuple[str, list[float]]:
    """The weights' hash and the losses, exact."""
    chosen = SMALL | SHAPE | options
    model = make_model("tiny", **{k: chosen.pop(k) for k in SHAPE})
    plan = make_plan(**chosen)
    job = Job(plan, model, steps=2, capture=True)
    compared = check.compare(cluster.run(train_rank, job).results, check.reference_for(job), plan)
    assert worst(compared) <= TOLERANCE, compared
    return compared["weights_sha256"], compared["losses"]


def on_threads(options: dict[str, Any]) -> tuple[str, list[float]]:
    return trained_on(Cluster("classroom", 4, "threads"), options)


@pytest.mark.ray
def test_four_actors_with_context_tensor_and_expert_parallelism_are_bit_equal_to_threads(actors):
    for name, options in FAMILY.items():
        assert trained_on(actors(4), options) == on_threads(options), name


@pytest.mark.torchrun
@pytest.mark.parametrize(  # all three on actors, above
    "options",
    [
        pytest.param(o, id=name, marks=[pytest.mark.soak] if i else [])
        for i, (name, o) in enumerate(FAMILY.items())
    ],
)
def test_four_processes_under_torchrun_are_bit_equal_to_threads(options, tmp_path, pool):
    words = [
        f"--{k.replace('_', '-')}" + ("" if v is True else f"={v}")
        for k, v in (SMALL | SHAPE | options).items()
    ]
    done = pool(
        4,
        "-m",
        "glasscluster",
        "train",
        *words,
        "--steps",
        "2",
        "--json",
        "--out",
        str(tmp_path / "run"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert said["status"] == "PASS"
    assert (said["weights_sha256"], said["losses"]) == on_threads(options)
