"""Qwen2 and 2.5 (2407.10671, 2412.15115): Llama with biases on queries, keys and values alone; and Qwen3
(2505.09388): none of them, a head size of its own, and norms of queries and keys, head by head.

Names and keys: modeling_qwen2.py, modeling_qwen3.py and their configurations.
"""

from __future__ import annotations

from dataclasses import replace

from glasscluster.model.weights.families.base import Key
from glasscluster.model.weights.families.llama import ALWAYS, LLAMA, head_size
from glasscluster.model.weights.families.rope import rope
from glasscluster.model.weights.families.windows import some_layers

SEQ = 32768
KEYS = {
    **LLAMA.keys,
    "kv_heads": Key("num_key_value_heads", 32, None),
    "ffn": Key("intermediate_size", 22016),
    "vocab": Key("vocab_size", 151936),
    "seq": Key("max_position_embeddings", SEQ),
}

QWEN2 = replace(
    LLAMA,
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    keys=KEYS,
    always={**ALWAYS, "qkv_bias": True},
    fixed={"hidden_act": ("silu", "swish")},
    specials=(rope(length=SEQ), some_layers()),
)

QWEN3 = replace(
    QWEN2,
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    inside={**LLAMA.inside, "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"},
    always={**ALWAYS, "qk_norm": True},
    fixed={"hidden_act": ("silu", "swish"), "attention_bias": False},
    specials=(rope(length=SEQ), some_layers(), head_size(128)),
)
