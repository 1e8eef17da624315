"""Families of models in Hugging Face's layout, each tiny and randomly initialised, beside transformers' own."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch

from glasscluster.base.errors import InputError
from glasscluster.model.weights import hugging_face
from glasscluster.model.weights.families import FAMILIES, WeightsError
from glasscluster.strategies.judge.check import TOLERANCE, difference
from tests.their_models import SEQ, SIZES, VOCAB, Wide, loaded, read_back, same, text, theirs_of, transformers

pytestmark = pytest.mark.xdist_group("transformers")  # it is imported once
NAMES = list(SIZES)


# ---- logits and gradients ----------------------------------------------------------------------------------
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in NAMES}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_gradients_are_theirs(variant: str, tmp_path: Path):
    """To 1e-10 with their casts to float32 taken out, to 1e-5 as they are; from their own files."""
    name, more = VARIANTS[variant]
    with Wide():
        theirs = theirs_of(name, **more)
        theirs.save_pretrained(tmp_path)
        ours = hugging_face.load(tmp_path, torch.float64)
        assert same(ours, theirs) <= TOLERANCE
        assert ours.config.parameters() == sum(p.numel() for p in theirs.parameters())
        with torch.no_grad():  # the check can fail: one weight of each tensor moved by a millionth
            for parameter in ours.parameters():
                parameter.grad = None
                parameter.view(-1)[0].mul_(1 + 1e-6)
            theirs.zero_grad()
        assert same(ours, theirs) > TOLERANCE
    ours, theirs = hugging_face.load(tmp_path, torch.float64), read_back(tmp_path, name)
    assert same(ours, theirs) <= 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_we_save_they_read(variant: str, tmp_path: Path):
    name, more = VARIANTS[variant]
    with Wide():
        theirs_of(name, **more).save_pretrained(tmp_path / "theirs")
        ours = hugging_face.load(tmp_path / "theirs", torch.float64)
        hugging_face.save(ours, tmp_path / "ours", FAMILIES[name])
        assert same(ours, read_back(tmp_path / "ours", name)) <= TOLERANCE
        again = hugging_face.load(tmp_path / "ours", torch.float64)
    assert again.config == ours.config
    for mine, other in zip(again.state_dict().values(), ours.state_dict().values(), strict=True):
        assert torch.equal(mine, other)


# ---- config.json: absent keys, null keys, odd values -------------------------------------------------------
# keys that change no logits
NOTHING = (
    *(
        "architectures",
        "transformers_version",
        "dtype",
        "_name_or_path",
        "use_cache",
        "output_*",
        "return_dict",
    ),
    *("chunk_size_feed_forward", "is_encoder_decoder", "label2id", "id2label", "*dropout*", "*_pdrop"),
    *("summary_*", "reorder_and_upcast_attn", "*_token_id", "pretraining_tp", "attn_implementation"),
    *(
        "problem_type",
        "position_embedding_type",
        "router_aux_loss_coef",
        "use_sliding_window",
        "max_window_layers",
    ),
)


def read_by_them(content: dict[str, Any], folder: Path) -> Any:
    """Their configuration of a config.json, and what it means; (None, None) where they refuse it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        return config, meaning(config)
    except Exception:
        return None, None


def meaning(config: Any) -> dict[str, Any]:
    """What their model computes by: their keys, with the values that theirs modules work out."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    said = {k: v for k, v in config.to_dict().items() if not changes_nothing(k)}
    heads = said.get("num_attention_heads", said.get("n_head"))
    assert said.get("head_dim") or said.get("hidden_size", said.get("n_embd")) % heads == 0, "no model"
    assert heads % (said.get("num_key_value_heads") or heads) == 0, "no model"
    rope = said.pop("rope_parameters", None)
    if rope is not None:
        said["rope"] = [rope["rope_theta"] ** 0.5]
        if rope["rope_type"] != "default":
            theta, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config)
            said["rope"] = [float(f"{x:.5g}") for x in (factor, *theta.tolist())]
    if said.get("head_dim", 0) is None:
        said["head_dim"] = said["hidden_size"] // said["num_attention_heads"]
    if said.get("n_inner", 0) is None:
        said["n_inner"] = 4 * said["n_embd"]
    if "sliding_attention" not in said.get("layer_types", ["sliding_attention"]):
        said["sliding_window"] = None
    return said


def changes_nothing(key: str) -> bool:
    return any(fnmatch(key, pattern) for pattern in NOTHING)


def logits_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    more = {"token_type_ids": types(tokens)} if model.config.model_type == "bert" else {}
    with torch.no_grad():
        return model(tokens, **more).logits


def types(tokens: torch.Tensor) -> torch.Tensor:
    return (torch.arange(SEQ) >= SEQ // 2).long().expand_as(tokens)


def contents(name: str) -> dict[str, dict[str, Any]]:
    """config.json of a tiny model as they write it, and as older files have it."""
    found = {"as written": theirs_of(name).config.to_dict()}
    found["as written"].pop("attn_implementation", None)
    if "rope_parameters" in found["as written"]:
        old = {k: v for k, v in found["as written"].items() if k != "rope_parameters"}
        for kind, more in ROPES.items():
            found[kind] = {**old, "rope_theta": 50.0, "rope_scaling": {"rope_type": kind, **more}}
    return found


ROPES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "yarn": {
        "factor": 4.0,
        "original_max_position_embeddings": 4,
        "beta_fast": 4.0,
        "beta_slow": 2.0,
        "truncate": False,
        "attention_factor": 1.5,
        "mscale": 0.5,
        "mscale_all_dim": 0.7,
    },
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    },
}


def without_one(content: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    """Each key left out, and each null; of an older file those of rotary positions, and what is inside them."""
    made = {"nothing": content}
    for key in content:
        about_rope = key.startswith("rope") or key == "max_position_embeddings"
        if key == "model_type" or (kind != "as written" and not about_rope):
            continue
        made[f"no {key}"] = {k: v for k, v in content.items() if k != key}
        made[f"{key} null"] = {**content, key: None}
        inside = content[key] if isinstance(content[key], dict) and about_rope else {}
        for name in inside:
            made[f"no {key}[{name}]"] = {**content, key: {k: v for k, v in inside.items() if k != name}}
            made[f"{key}[{name}] null"] = {**content, key: {**inside, name: None}}
    return made


@pytest.mark.parametrize("name", NAMES)
def test_a_key_left_out_or_null_means_what_it_means_to_them(name: str, tmp_path: Path):
    """Read by them and by us, then ours written and read by them again: the same; and the same logits."""
    family, tokens = FAMILIES[name], text()[0]
    for kind, content in contents(name).items():
        _, whole = read_by_them(content, tmp_path)
        for how, changed in without_one(content, kind).items():
            theirs, said = read_by_them(changed, tmp_path)
            try:
                ours = family.to_config(changed)
            except (WeightsError, InputError):
                assert theirs is None or how in REFUSED_BY_US, (name, how)
                continue
            if theirs is None and ((name, how) in READ_BY_US or changes_nothing(how.split()[0])):
                continue
            assert theirs is not None, (name, how, "they refuse it")
            _, back = read_by_them(family.to_json(ours, "float32"), tmp_path)
            assert back == said, (name, how)
            small = (theirs.num_hidden_layers, theirs.hidden_size, theirs.vocab_size) == (2, 16, VOCAB)
            if not small or (how != "nothing" and whole == said):
                continue
            with Wide():
                model = theirs_of(name, config=theirs)
                mine = logits_in(loaded(model, family), tokens)
                assert difference(mine, logits_of(model, tokens), 0.0) <= TOLERANCE, (name, how)


# a factor without a type says nothing to them
REFUSED_BY_US = ("no rope_scaling[rope_type]",)
# 32 heads of size 4 for hidden 16: they refuse it although the head size is given
READ_BY_US = (("llama", "no num_attention_heads"),)


def logits_in(stage: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        x = stage.embedding(tokens, types_BS=types(tokens))
        x = stage.keep.layers(list(stage.layers.values()), x, None)
        return stage.head.logits(x)
