"""Llama (Touvron et al., 2302.13971) and those that changed little in it: Mistral (2310.06825).

Names and keys: modeling_llama.py, configuration_llama.py, configuration_mistral.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from glasscluster.model.weights.families.base import (
    NOT_ALLOWED,
    PLAIN,
    Family,
    Key,
    KeyRefused,
    Special,
    taken,
)
from glasscluster.model.weights.families.rope import rope
from glasscluster.model.weights.families.windows import all_layers

# What they all have: RMSNorm before a branch, rotary positions, SwiGLU.
ALWAYS: dict[str, Any] = {
    **PLAIN,
    "norm": "rmsnorm",
    "bias": False,
    "position": "rope",
    "rope_layout": "half",
    "activation": "swiglu",
}


def head_size(absent: int | None, null: Any = None) -> Special:
    """head_dim, where it is not hidden_size / num_attention_heads.

    absent: its value where it is not said; None: that quotient. null: what null means.
    """

    def ours(content: Mapping[str, Any]) -> dict[str, Any]:
        size = taken(content, "head_dim", int, absent, null if absent is None else NOT_ALLOWED)
        if size is not None and size < 1:
            raise KeyRefused("head_dim", size, "it must be at least 1")
        hidden, heads = content.get("hidden_size"), content.get("num_attention_heads")
        plain = isinstance(heads, int) and size is not None and size * heads == hidden
        return {"head_dim": 0 if plain or size is None else size}

    return Special(
        ("head_dim",), ours, lambda config: {"head_dim": config.head_dim}, {"head_dim": "head_dim"}
    )


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    base="model.",
    ends={
        "embedding.token": "model.embed_tokens.weight",
        "head.norm_weight": "model.norm.weight",
        "head.table": "lm_head.weight",
    },
    layer="model.layers.{}.",
    inside={
        "norm1": "input_layernorm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "out": "self_attn.o_proj",
        "norm2": "post_attention_layernorm",
        "gate": "mlp.gate_proj",
        "value": "mlp.up_proj",
        "down": "mlp.down_proj",
    },
    keys={
        "layers": Key("num_hidden_layers", 32),
        "hidden": Key("hidden_size", 4096),
        "heads": Key("num_attention_heads", 32),
        "kv_heads": Key("num_key_value_heads", None, None),
        "ffn": Key("intermediate_size", 11008),
        "vocab": Key("vocab_size", 32000),
        "seq": Key("max_position_embeddings", 2048),
        "norm_eps": Key("rms_norm_eps", 1e-6, kind=float),
        "tied": Key("tie_word_embeddings", False, kind=bool),
        "init_std": Key("initializer_range", 0.02, kind=float),
    },
    always=ALWAYS,
    fixed={"hidden_act": ("silu", "swish"), "attention_bias": False, "mlp_bias": False},
    specials=(rope(length=2048), head_size(None)),
    said={"attention_dropout": 0.0, "bos_token_id": None, "eos_token_id": None},
    unused=("model.layers.*.self_attn.rotary_emb.inv_freq",),
)

MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    architecture="MistralForCausalLM",
    keys={
        **LLAMA.keys,
        "kv_heads": Key("num_key_value_heads", 8),
        "ffn": Key("intermediate_size", 14336),
        "seq": Key("max_position_embeddings", 131072),
    },
    fixed={"hidden_act": ("silu", "swish")},
    specials=(rope(length=131072), head_size(None), all_layers(4096)),
)
