"""DeepSeek-V2 (2405.04434) and V3 (2412.19437): keys and values from a latent, many small experts and one
that every token passes, the first layers without. V3's router is a sigmoid with a correction, and its experts
stand in groups.

    config.json                            here
    kv_lora_rank, q_lora_rank              kv-latent, q-latent
    qk_nope_head_dim = v_head_dim          head-dim
    qk_rope_head_dim                       rope-dim
    n_shared_experts x moe_intermediate_size   shared-ffn
    mscale_all_dim m of a yarn             attention-scale: (1 + 0.1 m ln factor)² / sqrt(d + d_R)

Names and keys: modeling_deepseek_v2.py, modeling_deepseek_v3.py, as transformers has them: the latents' norms
have an epsilon of 1e-6 of their own, and layers that predict more tokens at once (V3's last) are no part of
the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isclose, log
from typing import Any

from glasscluster.model.config import ModelConfig
from glasscluster.model.weights.families.base import Key, KeyRefused, Special, WeightsError, taken
from glasscluster.model.weights.families.llama import ALWAYS, LLAMA
from glasscluster.model.weights.families.mixtral import STACKED, without
from glasscluster.model.weights.families.rope import rope, temperature, turning, written


# ---- heads -------------------------------------------------------------------------------------------------
def sizes_in(content: Mapping[str, Any]) -> tuple[int, int]:
    """Elements of a head, and its rotary ones."""
    size, rotary = (taken(content, f"qk_{n}_head_dim", int, d) for n, d in (("nope", 128), ("rope", 64)))
    if content.get("head_dim") not in (None, rotary):
        raise KeyRefused("head_dim", content["head_dim"], f"it is qk_rope_head_dim = {rotary} here")
    return size, rotary


def heads_in(content: Mapping[str, Any], heads: int, key_heads: int | None) -> dict[str, Any]:
    """Sizes of a head. Keys and values must have one size, and as many key heads as heads.

    heads, key_heads: their numbers where config.json does not say them.
    """
    size, rotary = sizes_in(content)
    values = taken(content, "v_head_dim", int, 128)
    if values != size:
        raise KeyRefused("v_head_dim", values, f"as large as qk_nope_head_dim = {size} is known here")
    count = taken(content, "num_attention_heads", int, heads)
    keys = taken(content, "num_key_value_heads", int, key_heads, None)
    if keys not in (None, count):
        rule = f"as many as num_attention_heads = {count} are known here"
        raise KeyRefused("num_key_value_heads", keys, rule)
    return {"head_dim": size, "rope_dim": rotary}


def heads_of(config: ModelConfig) -> dict[str, Any]:
    """Their sizes of a head."""
    return {
        "qk_nope_head_dim": config.head_dim,
        "v_head_dim": config.head_dim,
        "qk_rope_head_dim": config.rotary,
        "num_key_value_heads": config.heads,
    }


def head_sizes(heads: int, key_heads: int | None) -> Special:
    """The keys of heads; the arguments are their numbers where config.json has none."""
    return Special(
        ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "num_key_value_heads"),
        lambda content: heads_in(content, heads, key_heads),
        heads_of,
        {"head_dim": "qk_nope_head_dim", "rope_dim": "qk_rope_head_dim", "kv_heads": "num_key_value_heads"},
    )


MOST = 1e6  # that scores are multiplied by


# ---- rotary positions, and what yarn does to the scores ----------------------------------------------------
def rope_and_scale(length: int) -> Special:
    """The keys of rotary positions; mscale_all_dim also scales the scores."""
    plain = rope(length=length)

    def ours(content: Mapping[str, Any]) -> dict[str, Any]:
        fields = plain.ours(content)
        turns = turning(content)
        weight = turns.take("mscale_all_dim", float, 0, 0)
        if turns.kind == "default" or not weight:
            return {**fields, "attention_scale": None}
        times = temperature(float(turns.needed("factor", float)), weight)
        elements = sum(sizes_in(content))
        if not 0 < times < MOST or elements < 1:
            raise KeyRefused(f"{turns.key}[mscale_all_dim]", weight, "scores cannot be scaled by it")
        return {**fields, "attention_scale": times**2 * elements**-0.5}

    def theirs(config: ModelConfig) -> dict[str, Any]:
        said = written(config)
        times = 1.0 if config.attention_scale is None else config.attention_scale * config.score_dim**0.5
        if isclose(times, 1.0, rel_tol=1e-12):
            return {"rope_parameters": said}
        if config.rope_scaling != "yarn" or config.rope_factor <= 1 or times < 1:
            raise WeightsError(f"rope_parameters has no word for attention_scale = {config.attention_scale}")
        said["mscale_all_dim"] = (times**0.5 - 1) / (0.1 * log(config.rope_factor))
        if "attention_factor" not in said:  # theirs would be a quotient of two
            said["attention_factor"] = temperature(config.rope_factor, 1.0)
        return {"rope_parameters": said}

    key_names = {**plain.fields, "attention_scale": "rope_scaling[mscale_all_dim]"}
    return Special(plain.keys, ours, theirs, key_names)


# ---- experts -----------------------------------------------------------------------------------------------
def shared(number: int, width: int) -> Special:
    """The expert that every token passes, as wide as several. number, width: where they are not said."""

    def ours(content: Mapping[str, Any]) -> dict[str, Any]:
        experts = taken(content, "n_shared_experts", int, number)
        each = taken(content, "moe_intermediate_size", int, width)
        if experts < 1:
            raise KeyRefused("n_shared_experts", experts, "one or more are known here")
        return {"expert_ffn": each, "shared_ffn": experts * each}

    def theirs(config: ModelConfig) -> dict[str, Any]:
        experts, rest = divmod(config.shared_ffn, config.expert_width)
        if rest or not experts:
            rule = f"n_shared_experts has no word for shared_ffn = {config.shared_ffn}"
            raise WeightsError(f"{rule}: it is a number of experts of width {config.expert_width}")
        return {"n_shared_experts": experts, "moe_intermediate_size": config.expert_width}

    keys = ("n_shared_experts", "moe_intermediate_size")
    return Special(keys, ours, theirs, {"expert_ffn": keys[1], "shared_ffn": keys[0]})


GROUPS = ("n_group", "topk_group")
GROUP_FIELDS = {"router_groups": "n_group", "router_top_groups": "topk_group"}


def groups_in(content: Mapping[str, Any], absent: tuple[int | None, int | None]) -> dict[str, Any]:
    """Groups of experts, and how many of them a token's experts come from."""
    fields = {}
    for ours, name, plain in zip(GROUP_FIELDS, GROUPS, absent, strict=True):
        fields[ours] = taken(content, name, int, plain)
        if fields[ours] is None:
            raise KeyRefused(name, None, "it must be a whole number")
    return fields


def groups_of(config: ModelConfig) -> dict[str, Any]:
    """Their keys."""
    return {"n_group": config.router_groups, "topk_group": config.router_top_groups}


def methods_in(content: Mapping[str, Any]) -> dict[str, Any]:
    """V2: groups count where topk_method says so."""
    method = content.get("topk_method", "greedy")
    if method == "greedy":
        return {"router_groups": 1, "router_top_groups": 1}
    if method != "group_limited_greedy":
        raise KeyRefused("topk_method", method, "greedy or group_limited_greedy is known here")
    return groups_in(content, (None, None))


def methods_of(config: ModelConfig) -> dict[str, Any]:
    """Their keys."""
    limited = config.router_groups > 1
    return {**groups_of(config), "topk_method": "group_limited_greedy" if limited else "greedy"}


# ---- the families ------------------------------------------------------------------------------------------
FIXED = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": False,
    "rms_norm_eps": 1e-6,  # that of the latents' norms, which config.json cannot say
    "moe_layer_freq": 1,
}
NOTES = {
    "ep_size": "how it was trained",
    "seq_aux": "how it was trained",
    "aux_loss_alpha": "how it was trained",
    "qk_head_dim": "qk_nope_head_dim + qk_rope_head_dim",
    "head_dim": "qk_rope_head_dim again",
}

DEEPSEEK_V2 = replace(
    LLAMA,
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    inside={
        **without(LLAMA.inside, "q", "k", "v"),
        "kv_down": "self_attn.kv_a_proj_with_mqa",
        "q_down": "self_attn.q_a_proj",
        "kv_latent_norm": "self_attn.kv_a_layernorm",
        "q_latent_norm": "self_attn.q_a_layernorm",
        "kv_up": "self_attn.kv_b_proj",
        "q_up": "self_attn.q_b_proj",
        "router": "mlp.gate",
        "expert.gate": "mlp.experts.{}.gate_proj",
        "expert.value": "mlp.experts.{}.up_proj",
        "expert.down": "mlp.experts.{}.down_proj",
        "shared_gate": "mlp.shared_experts.gate_proj",
        "shared_value": "mlp.shared_experts.up_proj",
        "shared_down": "mlp.shared_experts.down_proj",
        "q_up_alone": "self_attn.q_proj",  # where queries have no latent
    },
    stacked=STACKED,
    keys={
        **without(LLAMA.keys, "kv_heads", "norm_eps"),
        "vocab": Key("vocab_size", 102400),
        "kv_latent": Key("kv_lora_rank", 512),
        "q_latent": Key("q_lora_rank", 1536, 0),
        "experts": Key("n_routed_experts", 64),
        "top_k": Key("num_experts_per_tok", None),
        "dense_layers": Key("first_k_dense_replace", 0),
        "router_scale": Key("routed_scaling_factor", 1.0, kind=float),
    },
    always={
        **without(ALWAYS, "experts", "kv_latent"),
        "rope_layout": "interleaved",
        "norm_eps": 1e-6,
        "router_normalised": False,
    },
    fixed={
        **FIXED,
        "mlp_bias": False,
        "norm_topk_prob": (False, None),
        "scoring_func": "softmax",
    },
    specials=(
        head_sizes(32, None),
        rope_and_scale(2048),
        shared(2, 1407),
        Special(("topk_method", *GROUPS), methods_in, methods_of, GROUP_FIELDS),
    ),
    unread={"aux_loss": 0.0},
    notes=NOTES,
    aliases={"num_experts": "n_routed_experts"},
)


def predicting_more(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Tensors of the layers behind the last, which predict more tokens at once."""
    layers, more = content.get("num_hidden_layers", 61), content.get("num_nextn_predict_layers", 0)
    if not isinstance(layers, int) or not isinstance(more, int):
        return ()
    return tuple(f"model.layers.{layers + i}.*" for i in range(min(more, 100)))


DEEPSEEK_V3 = replace(
    DEEPSEEK_V2,
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    whole={"router_correction": "mlp.gate.e_score_correction_bias"},
    keys={
        **DEEPSEEK_V2.keys,
        "layers": Key("num_hidden_layers", 61),
        "hidden": Key("hidden_size", 7168),
        "heads": Key("num_attention_heads", 128),
        "ffn": Key("intermediate_size", 18432),
        "vocab": Key("vocab_size", 129280),
        "seq": Key("max_position_embeddings", 4096),
        "experts": Key("n_routed_experts", 256),
        "top_k": Key("num_experts_per_tok", 8),
        "dense_layers": Key("first_k_dense_replace", 3),
        "router_scale": Key("routed_scaling_factor", 2.5, kind=float),
        "router_normalised": Key("norm_topk_prob", True, False, kind=bool),
        "rope_layout": Key(
            "rope_interleave", True, False, kind=bool, words={"interleaved": True, "half": False}
        ),
    },
    always={
        **without(DEEPSEEK_V2.always, "rope_layout", "router_normalised"),
        "router": "sigmoid",
        "router_bias": True,
    },
    fixed={**FIXED, "topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    specials=(
        head_sizes(128, 128),
        rope_and_scale(4096),
        shared(1, 2048),
        Special(GROUPS, lambda content: groups_in(content, (8, 4)), groups_of, GROUP_FIELDS),
    ),
    notes={
        **NOTES,
        "num_nextn_predict_layers": "layers that predict more tokens: no part of the model, their tensors "
        "are passed over",
    },
    aliases={"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"},
    beyond=predicting_more,
)
