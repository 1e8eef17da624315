"""Gemma 2 (2408.00118): norms before and behind each branch, GEGLU, caps on scores and logits, windows in
every other layer, embeddings times the root of hidden.

A norm multiplies by 1 + w, so its weight lies in the file less one. Names and keys: modeling_gemma2.py,
configuration_gemma2.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isclose
from typing import Any

from glasscluster.model.config import ModelConfig
from glasscluster.model.weights.families.base import Key, KeyRefused, Special, taken
from glasscluster.model.weights.families.forms import LESS_ONE
from glasscluster.model.weights.families.llama import ALWAYS, LLAMA, head_size
from glasscluster.model.weights.families.rope import rope
from glasscluster.model.weights.families.windows import every_other_layer

SEQ, LAYERS = 8192, 26
CAPS = {  # ours -> the key, and its value where it is absent
    "attention_cap": ("attn_logit_softcapping", 50.0),
    "logit_cap": ("final_logit_softcapping", 30.0),
}


def caps_in(content: Mapping[str, Any]) -> dict[str, Any]:
    """Both caps; null is none."""
    values = {ours: taken(content, name, float, absent, None) for ours, (name, absent) in CAPS.items()}
    for ours, value in values.items():
        if value is not None and value <= 0:
            raise KeyRefused(CAPS[ours][0], value, "it must be larger than 0, or null for none")
    return {ours: float(value or 0) for ours, value in values.items()}


def caps_of(config: ModelConfig) -> dict[str, Any]:
    """Their keys."""
    return {name: getattr(config, ours) or None for ours, (name, _) in CAPS.items()}


def scale_in(content: Mapping[str, Any]) -> dict[str, Any]:
    """Scores are divided by the root of query_pre_attn_scalar."""
    scalar = taken(content, "query_pre_attn_scalar", int, 256)
    if scalar <= 0:
        raise KeyRefused("query_pre_attn_scalar", scalar, "it must be larger than 0")
    return {"attention_scale": float(scalar) ** -0.5}


def scale_of(config: ModelConfig) -> dict[str, Any]:
    """The number whose root scores are divided by: a whole one where it is."""
    scalar = config.head_dim if config.attention_scale is None else config.attention_scale**-2
    whole = round(scalar)
    return {"query_pre_attn_scalar": whole if isclose(scalar, whole, rel_tol=1e-9) else scalar}


SCALE = Special(("query_pre_attn_scalar",), scale_in, scale_of, {"attention_scale": "query_pre_attn_scalar"})

GEMMA2 = replace(
    LLAMA,
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    inside={
        **LLAMA.inside,
        "after1": "post_attention_layernorm",
        "norm2": "pre_feedforward_layernorm",
        "after2": "post_feedforward_layernorm",
    },
    keys={
        **LLAMA.keys,
        "layers": Key("num_hidden_layers", LAYERS),
        "hidden": Key("hidden_size", 2304),
        "heads": Key("num_attention_heads", 8),
        "kv_heads": Key("num_key_value_heads", 4),
        "ffn": Key("intermediate_size", 9216),
        "vocab": Key("vocab_size", 256000),
        "seq": Key("max_position_embeddings", SEQ),
        "tied": Key("tie_word_embeddings", True, kind=bool),
    },
    always={**ALWAYS, "activation": "geglu", "norm_position": "sandwich", "embedding_scale": True},
    fixed={
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "use_bidirectional_attention": (None, False),
    },
    specials=(
        rope(length=SEQ),
        head_size(256),
        every_other_layer(4096, LAYERS),
        SCALE,
        Special(
            tuple(name for name, _ in CAPS.values()),
            caps_in,
            caps_of,
            {ours: name for ours, (name, _) in CAPS.items()},
        ),
    ),
    said={**LLAMA.said, "pad_token_id": None},
    notes={
        "hidden_act": "hidden_activation is what counts",
        "cache_implementation": "how transformers generates",
    },
    forms=dict.fromkeys(
        ("norm1_weight", "norm2_weight", "after1_weight", "after2_weight", "head.norm_weight"), LESS_ONE
    ),
)
