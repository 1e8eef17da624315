"""Mixtral (2401.04088): Mistral with experts; and Qwen3-MoE (2505.09388), the same of Qwen3, whose experts
have a width of their own.

Files have a tensor for every matrix of every expert, a model in memory has them stacked (modeling_mixtral.py,
modeling_qwen3_moe.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from glasscluster.model.config import ModelConfig
from glasscluster.model.weights.families.base import NOT_ALLOWED, Key, KeyRefused, Special, taken
from glasscluster.model.weights.families.llama import ALWAYS, MISTRAL, head_size
from glasscluster.model.weights.families.qwen import QWEN3
from glasscluster.model.weights.families.rope import rope
from glasscluster.model.weights.families.windows import all_layers, length_in, window_of


def balance(coefficient: float) -> Special:
    """The load-balancing loss: its weight where output_router_logits is true, 0 otherwise.

    transformers does so too. coefficient: the weight where config.json has none.
    """

    def ours(content: Mapping[str, Any]) -> dict[str, Any]:
        weight = taken(content, "router_aux_loss_coef", float, coefficient)
        return {"aux_loss": float(weight) if taken(content, "output_router_logits", bool, False) else 0.0}

    def theirs(config: ModelConfig) -> dict[str, Any]:
        return {"router_aux_loss_coef": config.aux_loss, "output_router_logits": config.aux_loss > 0}

    fields = {"aux_loss": "router_aux_loss_coef"}
    return Special(("router_aux_loss_coef", "output_router_logits"), ours, theirs, fields)


def without(fixed: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """What a family fixes, without some fields that another one leaves free."""
    return {name: value for name, value in fixed.items() if name not in names}


STACKED = {"expert_up_weight": "mlp.experts.gate_up_proj", "expert_down_weight": "mlp.experts.down_proj"}

MIXTRAL = replace(
    MISTRAL,
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    inside={
        **without(MISTRAL.inside, "gate", "value", "down"),
        "router": "block_sparse_moe.gate",
        "expert.gate": "block_sparse_moe.experts.{}.w1",
        "expert.value": "block_sparse_moe.experts.{}.w3",
        "expert.down": "block_sparse_moe.experts.{}.w2",
    },
    stacked={"router": "mlp.gate", **STACKED},
    keys={
        **MISTRAL.keys,
        "norm_eps": Key("rms_norm_eps", 1e-5, kind=float),
        "experts": Key("num_local_experts", 8),
        "top_k": Key("num_experts_per_tok", 2),
    },
    always={**without(ALWAYS, "experts"), "shared_ffn": 0, "router_normalised": True},
    fixed={"hidden_act": ("silu", "swish"), "router_jitter_noise": 0.0},
    specials=(rope(1e6, length=131072), head_size(None), all_layers(None), balance(0.001)),
    aliases={"num_experts": "num_local_experts"},
)


# ---- Qwen3-MoE ---------------------------------------------------------------------------------------------
def used_window() -> Special:
    """Windows in all layers, where they are used at all."""

    def ours(content: Mapping[str, Any]) -> dict[str, Any]:
        used = taken(content, "use_sliding_window", bool, False)
        return {"window": length_in(content, 4096) if used else 0}

    def theirs(config: ModelConfig) -> dict[str, Any]:
        return {**window_of(config), "use_sliding_window": config.window > 0}

    return Special(("sliding_window", "use_sliding_window"), ours, theirs, {"window": "sliding_window"})


def first_dense() -> Special:
    """mlp_only_layers: the first ones, in our words."""

    def ours(content: Mapping[str, Any]) -> dict[str, Any]:
        layers = content.get("mlp_only_layers") or []
        if layers != list(range(len(layers) if isinstance(layers, list) else 0)):
            raise KeyRefused("mlp_only_layers", layers, "the first layers, as [0, 1], are known here")
        return {"dense_layers": len(layers)}

    def theirs(config: ModelConfig) -> dict[str, Any]:
        return {"mlp_only_layers": list(range(config.dense_layers))}

    return Special(("mlp_only_layers",), ours, theirs, {"dense_layers": "mlp_only_layers"})


QWEN3_MOE = replace(
    QWEN3,
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    inside={
        **QWEN3.inside,
        "router": "mlp.gate",
        "expert.gate": "mlp.experts.{}.gate_proj",
        "expert.value": "mlp.experts.{}.up_proj",
        "expert.down": "mlp.experts.{}.down_proj",
    },
    stacked=STACKED,
    keys={
        **QWEN3.keys,
        "layers": Key("num_hidden_layers", 24),
        "hidden": Key("hidden_size", 2048),
        "kv_heads": Key("num_key_value_heads", 4),
        "ffn": Key("intermediate_size", 6144),
        "expert_ffn": Key("moe_intermediate_size", 768),
        "experts": Key("num_local_experts", 128),
        "top_k": Key("num_experts_per_tok", 8),
        "router_normalised": Key("norm_topk_prob", False, kind=bool),
    },
    always={**without(ALWAYS, "experts"), "qk_norm": True, "shared_ffn": 0},
    fixed={"hidden_act": ("silu", "swish"), "attention_bias": False, "decoder_sparse_step": 1},
    specials=(rope(length=32768), used_window(), head_size(None, NOT_ALLOWED), first_dense(), balance(0.001)),
    aliases={"num_experts": "num_local_experts"},
)
