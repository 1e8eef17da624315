"""Mixtral (2401.04088): Mistral with experts. Files have a tensor for every matrix of every expert, a model in
memory has them stacked (modeling_mixtral.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from glasscluster.model.config import ModelConfig
from glasscluster.model.weights.families.base import Key, Special, taken
from glasscluster.model.weights.families.llama import ALWAYS, MISTRAL, head_size
from glasscluster.model.weights.families.rope import rope
from glasscluster.model.weights.families.windows import all_layers


def balance(coefficient: float) -> Special:
    """The load-balancing loss: its weight where config.json asks for it, 0 otherwise, as transformers has it."""

    def ours(content: Mapping[str, Any]) -> dict[str, Any]:
        weight = taken(content, "router_aux_loss_coef", float, coefficient)
        return {"aux_loss": float(weight) if taken(content, "output_router_logits", bool, False) else 0.0}

    def theirs(config: ModelConfig) -> dict[str, Any]:
        return {"router_aux_loss_coef": config.aux_loss, "output_router_logits": config.aux_loss > 0}

    fields = {"aux_loss": "router_aux_loss_coef"}
    return Special(("router_aux_loss_coef", "output_router_logits"), ours, theirs, fields)


def without(always: Mapping[str, Any], *fields: str) -> dict[str, Any]:
    """What a family fixes, without some fields that another one leaves free."""
    return {name: value for name, value in always.items() if name not in fields}


STACKED = {"expert_up_weight": "mlp.experts.gate_up_proj", "expert_down_weight": "mlp.experts.down_proj"}
OUTSIDE = {k: v for k, v in MISTRAL.inside.items() if k not in ("gate", "value", "down")}

MIXTRAL = replace(
    MISTRAL,
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    inside={
        **OUTSIDE,
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
    always={**without(ALWAYS, "experts"), "shared_ffn": 0, "capacity_factor": 0.0},
    fixed={"hidden_act": ("silu", "swish"), "router_jitter_noise": 0.0},
    specials=(rope(1e6, length=131072), head_size(None), all_layers(None), balance(0.001)),
    aliases={"num_experts": "num_local_experts"},
)
