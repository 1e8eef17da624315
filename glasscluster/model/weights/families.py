"""Where families of models keep what: from our parts to the names in Hugging Face's state dicts and
config.json, as tables.

GPT-2 (Radford et al., 2019) · Llama (Touvron et al., 2302.13971) · BERT (Devlin et al., 1810.04805). The
names are those of transformers' modeling_*.py, the keys those of its configuration_*.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glasscluster.model.config import ModelConfig


class WeightsError(ValueError):
    """A folder that is not what its config.json says, or a model that the layout cannot say."""


@dataclass(frozen=True)
class Key:
    """A key of config.json: its name, what its absence (or null) means, and their word for each of ours."""

    name: str
    absent: Any = None
    words: Mapping[Any, Any] | None = None

    def ours(self, content: Mapping[str, Any]) -> Any:
        """The value in our words."""
        value = content.get(self.name)
        value = self.absent if value is None else value
        if self.words is None:
            return value
        for ours, theirs in self.words.items():
            if value == theirs:
                return ours
        raise WeightsError(
            f"config.json: {self.name} is {value!r}; one of {list(self.words.values())} is known here"
        )

    def theirs(self, value: Any) -> Any:
        """The value in their words."""
        if self.words is None:
            return value
        if value not in self.words:
            raise WeightsError(f"{self.name} has no word for {value!r}; it has one for {list(self.words)}")
        return self.words[value]


@dataclass(frozen=True)
class Family:
    """One architecture: tables, and what is fixed in it."""

    model_type: str
    architecture: str
    base: str  # in front of the names of all but the head; a file of the bare model lacks it
    ends: Mapping[str, str]  # parts outside the layers, by full name
    layer: str  # in front of a layer's names
    inside: Mapping[
        str, str
    ]  # a layer's parts: ours without _weight and _bias, theirs without .weight and .bias
    keys: Mapping[str, Key]  # fields of ModelConfig in config.json
    always: Mapping[str, Any]  # fields of ModelConfig that the family fixes
    fixed: Mapping[str, Any]  # keys of config.json that can have one value here
    said: Mapping[str, Any] = field(default_factory=dict)  # keys that are written and not read
    transposed: bool = False  # a layer's matrices are stored as [in, out]
    unused: tuple[str, ...] = ()  # patterns of tensors that older files have and nobody needs
    rope: bool = False  # config.json says how positions turn

    def name(self, part: str) -> str:
        """Their tensor that holds our part."""
        if part in self.ends:
            return self.ends[part]
        place, _, rest = part.rpartition(".")
        stem, _, kind = rest.rpartition("_")
        if not place.startswith("layers.") or stem not in self.inside:
            raise WeightsError(f"{self.model_type} has no place for {part}")
        return f"{self.layer.format(place.removeprefix('layers.'))}{self.inside[stem]}.{kind}"

    def is_transposed(self, part: str) -> bool:
        """Whether a part lies transposed in their tensor."""
        return (
            self.transposed and part.startswith("layers.") and part.endswith("_weight") and "norm" not in part
        )

    def to_config(self, content: Mapping[str, Any], **overrides: Any) -> ModelConfig:
        """config.json as our model."""
        for name, value in self.fixed.items():
            if content.get(name, value) != value:
                raise WeightsError(f"config.json: {name} is {content[name]!r}; only {value!r} is known here")
        values = {ours: key.ours(content) for ours, key in self.keys.items()}
        if self.rope:
            values |= rope_in(content)
        config = ModelConfig(**{**values, **self.always, **overrides})
        if content.get("head_dim") not in (None, config.head_dim):
            raise WeightsError(
                f"config.json: head_dim is {content['head_dim']}; only hidden / heads = "
                f"{config.head_dim} is known here"
            )
        return config

    def to_json(self, config: ModelConfig, dtype: str) -> dict[str, Any]:
        """Our model as config.json; WeightsError where it is none of this family."""
        if "kv_heads" not in self.keys and config.key_heads != config.heads:
            raise WeightsError(
                f"{self.model_type} has as many key heads as heads, this model {config.key_heads} of "
                f"{config.heads}"
            )
        for name, value in self.always.items():
            if getattr(config, name) != value:
                raise WeightsError(
                    f"{self.model_type} has {name} = {value}, this model {getattr(config, name)}"
                )
        written = {key.name: key.theirs(getattr(config, ours)) for ours, key in self.keys.items()}
        if self.rope:
            written["rope_parameters"] = rope_out(config)
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "dtype": dtype,
            **self.said,
            **self.fixed,
            **written,
        }


# ---- rotary positions: one dictionary since transformers 5, two keys before --------------------------------
SCALINGS = {"none": "default", "interpolation": "linear", "yarn": "yarn"}


def rope_in(content: Mapping[str, Any]) -> dict[str, Any]:
    """Our fields from config.json."""
    said = {
        "rope_theta": content.get("rope_theta", 10000.0),
        **(content.get("rope_scaling") or {}),
        **(content.get("rope_parameters") or {}),
    }
    kind = said.get("rope_type", said.get("type", "default"))
    known = {"rope_theta", "rope_type", "type", "factor", "original_max_position_embeddings"}
    if kind not in SCALINGS.values() or any(said[k] is not None for k in set(said) - known):
        raise WeightsError(
            f"config.json: rotary positions are {said}; known are {list(SCALINGS.values())} with "
            f"{sorted(known)}"
        )
    fields = {
        "rope_theta": float(said["rope_theta"]),
        "rope_scaling": next(ours for ours, theirs in SCALINGS.items() if theirs == kind),
    }
    if kind != "default":
        fields["rope_factor"] = float(said["factor"])
    if kind == "yarn":
        fields["rope_trained"] = said.get("original_max_position_embeddings")
    return fields


def rope_out(config: ModelConfig) -> dict[str, Any]:
    """config.json's dictionary from our fields."""
    if config.rope_scaling not in SCALINGS:
        raise WeightsError(
            f"rope_type has no word for {config.rope_scaling!r}; it has one for {list(SCALINGS)}"
        )
    said: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": SCALINGS[config.rope_scaling]}
    if config.rope_scaling != "none":
        said["factor"] = config.rope_factor
    if config.rope_scaling == "yarn":
        said["original_max_position_embeddings"] = config.rope_trained or max(
            1, round(config.seq / config.rope_factor)
        )
    return said


PLAIN = {
    "norm_position": "pre",
    "qk_norm": False,
    "experts": 0,
    "objective": "causal",
    "prefix": 0,
    "kv_latent": 0,
    "head_size": None,
    "attention_scale": None,
    "window": 0,
    "attention_cap": 0.0,
    "sinks": False,
}

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
        "ffn": Key("n_inner"),
        "vocab": Key("vocab_size", 50257),
        "seq": Key("n_positions", 1024),
        "norm_eps": Key("layer_norm_epsilon", 1e-5),
        "activation": Key(
            "activation_function", "gelu_new", {"gelu-tanh": "gelu_new", "gelu": "gelu", "relu": "relu"}
        ),
        "tied": Key("tie_word_embeddings", True),
        "init_std": Key("initializer_range", 0.02),
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
    transposed=True,
    unused=("transformer.h.*.attn.bias", "transformer.h.*.attn.masked_bias"),
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
        "kv_heads": Key("num_key_value_heads"),
        "ffn": Key("intermediate_size", 11008),
        "vocab": Key("vocab_size", 32000),
        "seq": Key("max_position_embeddings", 2048),
        "norm_eps": Key("rms_norm_eps", 1e-6),
        "tied": Key("tie_word_embeddings", False),
        "init_std": Key("initializer_range", 0.02),
    },
    always={
        **PLAIN,
        "norm": "rmsnorm",
        "bias": False,
        "position": "rope",
        "rope_layout": "half",
        "activation": "swiglu",
    },
    fixed={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    said={"attention_dropout": 0.0, "bos_token_id": None, "eos_token_id": None},
    unused=("model.layers.*.self_attn.rotary_emb.inv_freq",),
    rope=True,
)

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
        "norm_eps": Key("layer_norm_eps", 1e-12),
        "init_std": Key("initializer_range", 0.02),
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
        "position_embedding_type": "absolute",
        "is_decoder": False,
    },
    said={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": None},
    unused=(
        "bert.embeddings.position_ids",
        "bert.pooler.*",
        "cls.seq_relationship.*",
        "cls.predictions.decoder.bias",
    ),
)

FAMILIES = {family.model_type: family for family in (GPT2, LLAMA, BERT)}
