"""BERT (Devlin et al., 1810.04805), as modeling_bert.py has it.

Files converted from the authors' own, as bert-base-uncased, call the parameters of norms gamma and beta.
"""

from __future__ import annotations

from glasscluster.model.weights.families.base import PLAIN, Family, Key

BERT = Family(
    model_type="bert",
    architecture="BertForMaskedLM",
    base="bert.",
    ends={
        "embedding.token": "bert.embeddings.word_embeddings.weight",
        "embedding.position": "bert.embeddings.position_embeddings.weight",
        "embedding.segment": "bert.embeddings.token_type_embeddings.weight",
        "embedding.norm_weight": "bert.embeddings.LayerNorm.weight",
        "embedding.norm_bias": "bert.embeddings.LayerNorm.bias",
        "head.transform_weight": "cls.predictions.transform.dense.weight",
        "head.transform_bias": "cls.predictions.transform.dense.bias",
        "head.transform_norm_weight": "cls.predictions.transform.LayerNorm.weight",
        "head.transform_norm_bias": "cls.predictions.transform.LayerNorm.bias",
        "head.logit_bias": "cls.predictions.bias",
        "head.table": "cls.predictions.decoder.weight",
    },
    layer="bert.encoder.layer.{}.",
    inside={
        "q": "attention.self.query",
        "k": "attention.self.key",
        "v": "attention.self.value",
        "out": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "up": "intermediate.dense",
        "down": "output.dense",
        "norm2": "output.LayerNorm",
    },
    keys={
        "layers": Key("num_hidden_layers", 12),
        "hidden": Key("hidden_size", 768),
        "heads": Key("num_attention_heads", 12),
        "ffn": Key("intermediate_size", 3072),
        "vocab": Key("vocab_size", 30522),
        "seq": Key("max_position_embeddings", 512),
        "norm_eps": Key("layer_norm_eps", 1e-12, kind=float),
        "init_std": Key("initializer_range", 0.02, kind=float),
    },
    always={
        **PLAIN,
        "objective": "masked",
        "norm": "layernorm",
        "norm_position": "post",
        "bias": True,
        "position": "learned",
        "activation": "gelu",
        "tied": True,
    },
    fixed={
        "tie_word_embeddings": True,
        "hidden_act": "gelu",
        "type_vocab_size": 2,
        "position_embedding_type": ("absolute", None),
        "is_decoder": False,
        "add_cross_attention": False,
    },
    said={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": None},
    unused=(
        "bert.embeddings.position_ids",
        "bert.pooler.*",
        "cls.seq_relationship.*",
        "cls.predictions.decoder.bias",
    ),
    renamed={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
)
