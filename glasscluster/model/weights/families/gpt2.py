"""GPT-2 (Radford et al., 2019): modeling_gpt2.py stores its matrices transposed (Conv1D computes x W)."""

from __future__ import annotations

from glasscluster.model.weights.families.base import PLAIN, Family, Key
from glasscluster.model.weights.families.forms import TRANSPOSED

GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    base="transformer.",
    ends={
        "embedding.token": "transformer.wte.weight",
        "embedding.position": "transformer.wpe.weight",
        "head.norm_weight": "transformer.ln_f.weight",
        "head.norm_bias": "transformer.ln_f.bias",
        "head.table": "lm_head.weight",
    },
    layer="transformer.h.{}.",
    inside={
        "norm1": "ln_1",
        "q": "attn.c_attn",
        "k": "attn.c_attn",
        "v": "attn.c_attn",
        "out": "attn.c_proj",
        "norm2": "ln_2",
        "up": "mlp.c_fc",
        "down": "mlp.c_proj",
    },
    keys={
        "layers": Key("n_layer", 12),
        "hidden": Key("n_embd", 768),
        "heads": Key("n_head", 12),
        "ffn": Key("n_inner", None, None),
        "vocab": Key("vocab_size", 50257),
        "seq": Key("n_positions", 1024),
        "norm_eps": Key("layer_norm_epsilon", 1e-5, kind=float),
        "activation": Key(
            "activation_function",
            "gelu_new",
            kind=str,
            words={"gelu-tanh": "gelu_new", "gelu": "gelu", "relu": "relu"},
        ),
        "tied": Key("tie_word_embeddings", True, kind=bool),
        "init_std": Key("initializer_range", 0.02, kind=float),
    },
    always={**PLAIN, "norm": "layernorm", "bias": True, "position": "learned"},
    fixed={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    said={
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
    },
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    forms={f"{name}_weight": TRANSPOSED for name in ("q", "k", "v", "out", "up", "down")},
    unused=("transformer.h.*.attn.bias", "transformer.h.*.attn.masked_bias"),
)
