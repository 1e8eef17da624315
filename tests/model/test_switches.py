"""Every switch of a model, with everything that can be done with a model: exact, or refused by its field.

SWITCHES has one entry a switch. Each is trained in every layout beside one device and beside the formulas,
recorded dry, generated with and served.
"""

from __future__ import annotations

from typing import Any

import pytest

from glasscluster.base.rows import tally
from glasscluster.model.gpt import GPTStage
from glasscluster.scenarios.jobs import generation, serving, training
from glasscluster.sim.run import Cluster
from glasscluster.strategies.job import Job
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.serving.batching import Request
from glasscluster.strategies.serving.generation import GenerationJob
from glasscluster.strategies.serving.serving import ServingJob

SHAPE: dict[str, Any] = {"layers": 2, "hidden": 16, "heads": 4, "seq": 8, "vocab": 42}
SWITCHES: dict[str, dict[str, Any]] = {
    "a head size of its own": {"head_size": 6, "kv_heads": 2, "position": "rope"},
    "a head size and a scale, latents": {
        "head_size": 6,
        "kv_latent": 10,
        "q_latent": 8,
        "position": "rope",
        "attention_scale": 0.9,
    },
    "a scale of the scores": {"attention_scale": 0.9, "position": "alibi"},
    "a soft cap": {"attention_cap": 1.5, "attention_scale": 0.9, "position": "rope", "kv_heads": 2},
    "a soft cap, latents": {"attention_cap": 1.5, "kv_latent": 10, "bias": False, "window": 5},
    "sinks": {"sinks": True, "head_size": 6, "kv_heads": 2, "position": "rope"},
    "sinks beside windows and biases by distance": {
        "sinks": True,
        "window": 3,
        "window_layers": "alternate",
        "position": "relative",
    },
    "a window": {"window": 3, "window_layers": "alternate", "position": "rope", "kv_heads": 2},
    "a window of all layers, beside a bias by distance": {"window": 5, "position": "relative"},
}
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of the plan, of the model
    "flash": ({"dp": 2, "zero": 3}, {}),
    "unfused": ({}, {"attention": "unfused", "dropout": 0.1}),
    **{f"cp 2 {c}": ({"cp": 2, "context": c}, {}) for c in ("ring", "striped", "zigzag", "ulysses")},
    "cp 4, rings of groups": ({"cp": 4, "context": "zigzag", "ulysses": 2, "recompute": "selective"}, {}),
    "tp 2": ({"tp": 2}, {"tied": False}),
    "tp 4, separate": ({"tp": 4}, {"qkv": "separate"}),
    "sequence-parallel": ({"tp": 2, "sequence_parallel": True, "tp_overlap": True}, {}),
    "pp 2": ({"pp": 2, "schedule": "zb-h1"}, {}),
    "recompute full": ({"tp": 2, "recompute": "full"}, {}),
    "recompute selective": ({"tp": 2, "recompute": "selective"}, {}),
    "recompute selective, unfused": ({"recompute": "selective"}, {"attention": "unfused"}),
}


def model_with(switch: str, **more: Any) -> Any:
    return make_model("tiny", **{**SHAPE, **SWITCHES[switch], **more})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_in_a_layout_equals_one_device_keeps_every_formula_and_is_recorded_dry(switch, layout):
    options, more = LAYOUTS[layout]
    plan, model = make_plan(global_batch=4, **options), model_with(switch, **more)
    plan.check(model)
    job = Job(plan, model, steps=1)
    with Cluster("classroom", plan.gpus, "threads", memory_bytes=None) as cluster:
        trained = training.train(cluster, job)
    assert not [row for row in trained.checks if row.verdict == "failed"], tally(trained.checks)
    assert trained.comparison is not None
    with Cluster("classroom", plan.gpus, "dry", memory_bytes=None) as cluster:
        dry = training.train(cluster, job, checked=False)
    assert trained.run.graph.difference(dry.run.graph) is None
    assert trained.run.peak_memory() == dry.run.peak_memory()


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_counts_its_parameters(switch):
    for more in ({}, {"bias": False, "qkv": "separate"}):
        model = model_with(switch, **more)
        assert sum(p.numel() for p in GPTStage(model).parameters()) == model.parameters()


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_generates_and_serves_what_one_device_says(switch, tp):
    model = model_with(switch, init_std=0.5)
    cluster = Cluster("classroom", tp, "threads", memory_bytes=None)
    made = generation.generate(cluster, GenerationJob(model, ((1, 2, 3), (4,)), 4, "paged", tp, block=2))
    assert made.ok, made.checks
    requests = (Request((1, 2, 3), 3), Request((5,), 4))
    served = serving.serve(cluster, ServingJob(model, requests, slots=2, block=2, tp=tp))
    assert served.ok, served.checks
