"""gpt-oss (2508.10925): experts with biases and a clamped SwiGLU, attention sinks, windows in every other
layer.

An expert's gate and value lie in turns in the columns of one matrix, and its matrices are transposed
(modeling_gpt_oss.py). The files that OpenAI gives away are quantised; shapes are read from their config.json,
weights are not.
"""

from __future__ import annotations

from dataclasses import replace

from glasscluster.model.weights.families.base import Key
from glasscluster.model.weights.families.forms import COLUMNS_IN_TURNS, IN_TURNS, TRANSPOSED
from glasscluster.model.weights.families.llama import ALWAYS, LLAMA, head_size
from glasscluster.model.weights.families.mixtral import balance, without
from glasscluster.model.weights.families.rope import TRAINED, rope
from glasscluster.model.weights.families.windows import every_other_layer

SEQ, LAYERS = 131072, 36
ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    TRAINED: 4096,
}

GPT_OSS = replace(
    LLAMA,
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    inside={**without(LLAMA.inside, "gate", "value", "down"), "router": "mlp.router"},
    whole={
        "sink": "self_attn.sinks",
        "expert_up_weight": "mlp.experts.gate_up_proj",
        "expert_up_bias": "mlp.experts.gate_up_proj_bias",
        "expert_down_weight": "mlp.experts.down_proj",
        "expert_down_bias": "mlp.experts.down_proj_bias",
    },
    forms={
        "expert_up_weight": COLUMNS_IN_TURNS,
        "expert_up_bias": IN_TURNS,
        "expert_down_weight": TRANSPOSED,
    },
    keys={
        **LLAMA.keys,
        "layers": Key("num_hidden_layers", LAYERS),
        "hidden": Key("hidden_size", 2880),
        "heads": Key("num_attention_heads", 64),
        "kv_heads": Key("num_key_value_heads", 8),
        "ffn": Key("intermediate_size", 2880),
        "vocab": Key("vocab_size", 201088),
        "seq": Key("max_position_embeddings", SEQ),
        "norm_eps": Key("rms_norm_eps", 1e-5, kind=float),
        "experts": Key("num_local_experts", 128),
        "top_k": Key("num_experts_per_tok", 4),
    },
    always={
        **without(ALWAYS, "experts"),
        "bias": True,
        "activation": "swiglu-clamped",
        "expert_bias": True,
        "router_normalised": True,
        "shared_ffn": 0,
        "sinks": True,
    },
    fixed={
        "hidden_act": ("silu", "swish"),
        "attention_bias": True,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
    },
    specials=(
        rope(150000.0, absent=ROPE, length=SEQ),
        head_size(64),
        every_other_layer(128, LAYERS),
        balance(0.001),
    ),
    notes={
        "initial_context_length": "the trained length, as rope_scaling says it",
        "experts_per_token": "num_experts_per_tok again",
    },
    aliases={"num_experts": "num_local_experts"},
)
