"""Every option of a model, when it generates and serves on two tensor ranks: what one device says, and the bytes
that the formulas say; or refused by the option's own name.
"""

from __future__ import annotations

from typing import Any

import pytest

from glasscluster.base.errors import InputError
from glasscluster.model.config import ModelConfig
from glasscluster.scenarios.jobs import generation, serving
from glasscluster.scenarios.jobs.generation import check_model
from glasscluster.sim.run import Cluster
from glasscluster.strategies.serving.batching import Request
from glasscluster.strategies.serving.generation import GenerationJob
from glasscluster.strategies.serving.serving import ServingJob

SHAPE: dict[str, Any] = {
    "layers": 2,
    "hidden": 16,
    "heads": 4,
    "vocab": 43,
    "seq": 12,
    "init_std": 0.5,
}
LATENT = {"kv_latent": 10, "position": "rope"}
LLAMA3 = {
    "position": "rope",
    "rope_scaling": "llama3",
    "rope_factor": 2.0,
    "rope_trained": 12,
    "rope_theta": 4.0,
}
YARN = {"position": "rope", "rope_scaling": "yarn", "rope_factor": 4.0, "rope_trained": 50}
ROUTED = {"experts": 4, "hot_expert": 0.3}
# of each option the values that are tried, each with what it needs beside it; the option is named by its field
TRIED: dict[str, tuple[dict[str, Any], ...]] = {
    "layers": ({"layers": 3},),
    "hidden": ({"hidden": 24},),
    "heads": ({"heads": 2},),
    "kv_heads": ({"kv_heads": 2}, {"kv_heads": 1}, {"kv_heads": 1, "qkv": "separate", "position": "rope"}),
    "head_dim": ({"head_dim": 6}, {"head_dim": 6, "kv_heads": 1, "position": "rope"}),
    "window": ({"window": 3},),
    "window_layers": ({"window": 2, "window_layers": "alternate"},),
    "attention_scale": ({"attention_scale": 0.9},),
    "attention_cap": ({"attention_cap": 1.5},),
    "sinks": ({"sinks": True},),
    "qkv": ({"qkv": "separate"},),
    "kv_latent": (LATENT, {"kv_latent": 10}),
    "q_latent": ({**LATENT, "q_latent": 6},),
    "rope_dim": ({**LATENT, "rope_dim": 6},),
    "ffn": ({"ffn": 10},),
    "activation": tuple(
        {"activation": a} for a in ("gelu-tanh", "relu", "swiglu", "geglu", "swiglu-clamped")
    ),
    "experts": ({"experts": 4},),
    "top_k": ({**ROUTED, "top_k": 3}, {**ROUTED, "top_k": 1}),
    "capacity_factor": ({**ROUTED, "capacity_factor": 1.0},),
    "aux_loss": ({**ROUTED, "aux_loss": 0.0},),
    "shared_ffn": ({**ROUTED, "shared_ffn": 6},),
    "hot_expert": (ROUTED,),
    "expert_ffn": ({**ROUTED, "expert_ffn": 10, "ffn": 7},),
    "dense_layers": ({**ROUTED, "dense_layers": 1}, {**ROUTED, "dense_layers": 1, "shared_ffn": 6}),
    "expert_bias": ({**ROUTED, "expert_bias": True},),
    "router": ({**ROUTED, "router": "sigmoid"},),
    "router_bias": ({**ROUTED, "router_bias": True},),
    "router_groups": ({**ROUTED, "router_groups": 2},),
    "router_top_groups": ({**ROUTED, "router_groups": 4, "router_top_groups": 3},),
    "router_scale": ({**ROUTED, "router_scale": 3.0},),
    "router_normalised": ({**ROUTED, "router_normalised": False},),
    "vocab": ({"vocab": 50},),
    "seq": ({"seq": 20},),
    "tied": ({"tied": False},),
    "attention": ({"attention": "unfused"},),
    "norm": ({"norm": "rmsnorm"}, {"norm": "scalenorm"}),
    "norm_eps": ({"norm_eps": 1e-3},),
    "norm_position": ({"norm_position": "post"}, {"norm_position": "sandwich"}),
    "qk_norm": ({"qk_norm": True},),
    "bias": ({"bias": False},),
    "position": tuple({"position": p} for p in ("sinusoidal", "relative", "alibi", "rope", "none")),
    "relative_buckets": ({"position": "relative", "relative_buckets": 8},),
    "relative_distance": ({"position": "relative", "relative_distance": 40},),
    "rope_layout": ({"position": "rope", "rope_layout": "interleaved"},),
    "rope_theta": ({"position": "rope", "rope_theta": 50.0},),
    "rope_scaling": tuple(
        {"position": "rope", "rope_scaling": s, "rope_factor": 2.0}
        for s in ("interpolation", "ntk", "yarn", "llama3")
    ),
    "rope_factor": ({"position": "rope", "rope_scaling": "interpolation", "rope_factor": 3.0},),
    "rope_trained": ({"position": "rope", "rope_scaling": "yarn", "rope_factor": 2.0, "rope_trained": 7},),
    "rope_low_factor": ({**LLAMA3, "rope_low_factor": 0.5},),
    "rope_high_factor": ({**LLAMA3, "rope_high_factor": 2.5},),
    "rope_beta_fast": ({**YARN, "rope_beta_fast": 6.0},),
    "rope_beta_slow": ({**YARN, "rope_beta_slow": 0.5},),
    "rope_truncate": ({**YARN, "rope_truncate": False},),
    "rope_attention_factor": ({**YARN, "rope_attention_factor": 0.8},),
    "qkv_bias": ({"qkv_bias": False}, {"qkv_bias": True, "bias": False, "kv_heads": 1}),
    "embedding_scale": ({"embedding_scale": True},),
    "logit_cap": ({"logit_cap": 0.3}, {"logit_cap": 0.3, "vocab": 44}),
    "objective": ({"objective": "masked"},),
    "patches": ({"patches": 4},),
    "patch_size": ({"patch_size": 9},),
    "prefix": ({"prefix": 2},),
    "dropout": ({"dropout": 0.1},),
    "init_std": ({"init_std": 0.3},),
    "residual_init": ({"residual_init": "plain"},),
    "z_loss": ({"z_loss": 0.1},),
    "loss": ({"loss": "chunked"},),
    "loss_chunks": ({"loss": "chunked", "loss_chunks": 3},),
}
REFUSED = {
    "generate": {"capacity_factor", "objective", "patches", "dropout"},
    "serve": {"capacity_factor", "objective", "patches", "dropout", "prefix"},
}
EACH = [(field, values) for field, several in TRIED.items() for values in several]


def test_no_option_is_left_out():
    assert TRIED.keys() == ModelConfig.model_fields.keys()


@pytest.mark.parametrize(("field", "values"), EACH, ids=str)
def test_an_option_generates_and_serves_on_two_ranks_exactly_or_is_refused_by_name(field, values):
    model = ModelConfig(**{**SHAPE, **values})
    cluster = Cluster("classroom", 2, "threads", memory_bytes=None)
    for use, refused in REFUSED.items():
        if field in refused:
            with pytest.raises(InputError) as said:
                check_model(model, use, 2, "fp32")  # type: ignore[arg-type]
            assert said.value.field == field
            continue
        check_model(model, use, 2, "fp32")  # type: ignore[arg-type]
        if use == "generate":
            job = GenerationJob(model, ((1, 2, 3), (4, 5)), 3, tp=2)
            rows = generation.generate(cluster, job).checks
        else:
            requests = (Request((1, 2, 3), 3), Request((5,), 2))
            rows = serving.serve(cluster, ServingJob(model, requests, slots=2, block=2, tp=2)).checks
        assert not [row for row in rows if row.verdict != "held"], (use, rows)
        assert next(row for row in rows if row.key == "sent").predicted
