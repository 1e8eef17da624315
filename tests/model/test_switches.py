"""Every switch of a model, with everything that can be done with a model: exact, or refused by its field.

SWITCHES has one entry a switch. Each is trained in every layout beside one device and beside the formulas,
recorded dry, generated with and served; REFUSED has what cannot be, by its field.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from glasscluster.base.errors import InputError
from glasscluster.base.rows import FAILED, Row
from glasscluster.model.gpt import GPTStage
from glasscluster.model.parallel import IGNORE
from glasscluster.scenarios.jobs import generation, serving, training
from glasscluster.sim.run import Cluster
from glasscluster.strategies.job import Job
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.serving.batching import Request
from glasscluster.strategies.serving.evaluation import loglikelihoods
from glasscluster.strategies.serving.generation import GenerationJob
from glasscluster.strategies.serving.serving import ServingJob

SHAPE: dict[str, Any] = {"layers": 2, "hidden": 16, "heads": 4, "seq": 8, "vocab": 42}
QWEN2 = {"bias": False, "norm": "rmsnorm", "position": "rope", "kv_heads": 2}
SWITCHES: dict[str, dict[str, Any]] = {
    "a head size of its own": {"head_dim": 6, "kv_heads": 2, "position": "rope"},
    "a head size and a scale, latents": {
        "head_dim": 6,
        "kv_latent": 10,
        "q_latent": 8,
        "position": "rope",
        "attention_scale": 0.9,
    },
    "a scale of the scores": {"attention_scale": 0.9, "position": "alibi"},
    "a soft cap": {"attention_cap": 1.5, "attention_scale": 0.9, "position": "rope", "kv_heads": 2},
    "a soft cap and sinks, latents": {"attention_cap": 1.5, "kv_latent": 10, "bias": False, "sinks": True},
    "sinks": {"sinks": True, "head_dim": 6, "kv_heads": 2, "position": "rope"},
    "sinks beside windows and biases by distance": {
        "sinks": True,
        "window": 3,
        "window_layers": "alternate",
        "position": "relative",
    },
    "a window": {"window": 3, "window_layers": "alternate", "position": "rope", "kv_heads": 2},
    "a window of all layers, beside a bias by distance": {"window": 5, "position": "relative"},
    "biases on queries, keys and values alone": {**QWEN2, "qkv_bias": True},
    "biases on all but them": {"qkv_bias": False, "activation": "swiglu"},
    "llama3's rope": {
        **QWEN2,
        "rope_scaling": "llama3",
        "rope_factor": 2.0,
        "rope_trained": 12,
        "rope_theta": 4.0,
        "rope_low_factor": 0.5,
        "rope_high_factor": 2.5,
    },
    "yarn's parameters": {
        "position": "rope",
        "rope_scaling": "yarn",
        "rope_factor": 4.0,
        "rope_trained": 50,
        "rope_beta_fast": 6.0,
        "rope_beta_slow": 0.5,
        "rope_truncate": False,
        "rope_attention_factor": 0.8,
    },
    "scaled embeddings": {"embedding_scale": True, "norm_position": "sandwich"},
    "capped logits": {"logit_cap": 0.05, "z_loss": 0.1},
}
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of the plan, of the model
    "flash": ({"dp": 2, "zero": 3}, {}),
    "unfused": ({}, {"attention": "unfused", "dropout": 0.1}),
    **{f"cp 2 {c}": ({"cp": 2, "context": c}, {}) for c in ("ring", "striped", "zigzag", "ulysses")},
    "tp 2": ({"tp": 2}, {"tied": False}),
    "tp 4, separate": ({"tp": 4}, {"qkv": "separate"}),
    "sequence-parallel": ({"tp": 2, "sequence_parallel": True, "tp_overlap": True}, {}),
    "pp 2": ({"pp": 2, "schedule": "zb-h1"}, {}),
    "recompute full": ({"tp": 2, "recompute": "full"}, {}),
    "recompute selective": ({"tp": 2, "recompute": "selective"}, {}),
}


def model_with(switch: str, **more: Any) -> Any:
    return make_model("tiny", **{**SHAPE, **SWITCHES[switch], **more})


def failed(rows: list[Row]) -> list[tuple[str, float | None, float | None]]:
    return [(row.key, row.predicted, row.found) for row in rows if row.verdict == FAILED]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_in_a_layout_equals_one_device_keeps_every_formula_and_is_recorded_dry(switch, layout):
    options, more = LAYOUTS[layout]
    plan, model = make_plan(global_batch=4, **options), model_with(switch, **more)
    plan.check(model)
    job = Job(plan, model, steps=1)
    with Cluster("classroom", plan.gpus, "threads", memory_bytes=None) as cluster:
        trained = training.train(cluster, job)
    assert trained.comparison is not None
    assert not failed(trained.checks)
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
    assert not failed(made.checks)
    requests = (Request((1, 2, 3), 3), Request((5,), 4, 1e-5))
    served = serving.serve(cluster, ServingJob(model, requests, slots=2, block=2, tp=tp))
    assert not failed(served.checks)


REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"kv_latent": 8, "qkv_bias": True}, "qkv_bias"),
    ({"rope_scaling": "llama3"}, "rope_scaling"),
    ({"position": "rope", "rope_low_factor": 2.0}, "rope_low_factor"),
    ({"position": "rope", "rope_scaling": "yarn", "rope_high_factor": 2.0}, "rope_high_factor"),
    (
        {"position": "rope", "rope_scaling": "llama3", "rope_low_factor": 8.0},
        "rope_high_factor",
    ),
    ({"position": "rope", "rope_scaling": "llama3", "rope_beta_fast": 8.0}, "rope_beta_fast"),
    ({"position": "rope", "rope_truncate": False}, "rope_truncate"),
    ({"position": "rope", "rope_scaling": "ntk", "rope_attention_factor": 1.1}, "rope_attention_factor"),
    ({"position": "rope", "rope_scaling": "yarn", "rope_beta_slow": 40.0}, "rope_beta_fast"),
    ({"logit_cap": -1.0}, "logit_cap"),
)


@pytest.mark.parametrize(("options", "field"), REFUSED, ids=str)
def test_what_a_switch_cannot_be_is_refused_by_its_field_and_the_nearest_value_works(options, field):
    with pytest.raises(InputError) as said:
        make_model("tiny", **options)
    assert said.value.field == field
    near = said.value.nearest
    assert near is not None or "leave it out" in said.value.rule
    make_model("tiny", **{**options, field: near})


# ---- what a switch computes --------------------------------------------------------------------------------
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]])


def test_capped_logits_are_those_of_the_plain_model_through_a_tanh_in_training_and_in_scoring():
    plain, capped = (
        GPTStage(make_model("tiny", **SHAPE, init_std=0.5, logit_cap=cap), dtype=torch.float64)
        for cap in (0.0, 3.0)
    )
    x = plain.keep.layers(list(plain.layers.values()), plain.embedding(TOKENS), None)
    expected = 3 * torch.tanh(plain.head.scores(x) / 3)
    loss = F.cross_entropy(expected[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten(), reduction="sum")
    targets = F.pad(TOKENS[:, 1:], (0, 1), value=IGNORE)
    found = capped(TOKENS, targets)
    assert torch.allclose(found, loss, rtol=1e-12)
    assert plain.head.scores(x).abs().max() > 3 > expected.abs().max()  # the cap is felt
    gradients = [torch.autograd.grad(y, list(m.parameters())) for y, m in ((loss, plain), (found, capped))]
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)
    scores = loglikelihoods(capped, [(row.tolist(), 7) for row in TOKENS])
    assert torch.allclose(scores.sum(), -loss, rtol=1e-12)


def test_scaled_embeddings_are_rows_times_the_root_of_hidden_and_patches_and_positions_are_not_scaled():
    options = {**SHAPE, "patches": 2, "patch_size": 4}
    plain, scaled = (
        GPTStage(make_model("tiny", **options, embedding_scale=on), dtype=torch.float64).embedding
        for on in (False, True)
    )
    x = torch.cat([torch.full((2, 8), 200), TOKENS[:, 2:]], 1)
    added = (SHAPE["hidden"] ** 0.5 - 1) * plain.token[TOKENS]
    added[:, :2] = 0
    assert torch.allclose(scaled(x), plain(x) + added, rtol=1e-12)
