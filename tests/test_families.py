"""Families of models in Hugging Face's layout: each tiny and random, beside transformers' own."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from glasscluster.base.errors import InputError
from glasscluster.cli import main
from glasscluster.model.gpt import GPTStage
from glasscluster.model.weights import hugging_face
from glasscluster.model.weights.families import FAMILIES, WeightsError
from glasscluster.model.weights.families.base import alike, meant
from glasscluster.scenarios.jobs.model_checkup import examine_model
from glasscluster.scenarios.jobs.training import train
from glasscluster.sim.run import Cluster
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge.check import TOLERANCE, difference
from glasscluster.strategies.plan import make_model, make_plan
from tests.their_models import SEQ, SIZES, VOCAB, Wide, loaded, read_back, same, text, theirs_of, transformers

pytestmark = pytest.mark.xdist_group("transformers")  # it is imported once
NAMES = list(SIZES)


def glass(capsys: Any, *words: str) -> tuple[int, str, Any]:
    """Exit code, text, and the JSON object if it is one."""
    with pytest.raises(SystemExit) as done:
        main(list(words))
    out = capsys.readouterr().out
    return int(done.value.code or 0), out, json.loads(out) if "--json" in words else None


# ---- logits and gradients ----------------------------------------------------------------------------------
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
FULL, SLIDING = "full_attention", "sliding_attention"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in NAMES},
    "a yarn without its trained length": (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 50.0, "factor": 4.0}},
    ),
    "llama3's rope": (
        "llama",
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 50.0, **ROPES["llama3"]}},
    ),
    "all parameters of yarn": (
        "qwen3",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 50.0, **ROPES["yarn"]}},
    ),
    "heads of a size of their own": ("llama", {"head_dim": 6}),
    "a window": ("mistral", {"sliding_window": 5}),
    "no window": ("mistral", {"sliding_window": None}),
    "one expert a token, and a window": ("mixtral", {"num_experts_per_tok": 1, "sliding_window": 3}),
    "windows in all layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0, "layer_types": None},
    ),
    "a dense layer first, weights over their sum": (
        "qwen3_moe",
        {"mlp_only_layers": [0], "norm_topk_prob": True},
    ),
    "no caps, windows in all layers": (
        "gemma2",
        {
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "layer_types": [SLIDING, SLIDING],
        },
    ),
    "no latent of queries, groups": (
        "deepseek_v2",
        {
            "q_lora_rank": None,
            "topk_method": "group_limited_greedy",
            "n_group": 2,
            "topk_group": 1,
            "routed_scaling_factor": 1.7,
        },
    ),
    "rope in halves, weights as they are, yarn": (
        "deepseek_v3",
        {
            "rope_interleave": False,
            "norm_topk_prob": False,
            "rope_parameters": {"rope_type": "yarn", "rope_theta": 50.0, **ROPES["yarn"]},
        },
    ),
    "no windows, tied": ("gpt_oss", {"layer_types": [FULL, FULL], "tie_word_embeddings": True}),
}


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
    if variant != "no window":  # which is Llama's shape
        assert hugging_face.family_of(ours.config).model_type == name
    said, mine = meant(again.config), meant(ours.config)
    assert all(alike(said[field], value) for field, value in mine.items())
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
    *("moe_layer_freq", "scoring_func"),  # written by us, not theirs
    "num_nextn_predict_layers",  # layers that are no part of the model
)


def read_by_them(content: dict[str, Any]) -> Any:
    """Their configuration of a config.json, and what it means; (None, None) where they refuse it."""
    try:
        config = type(transformers.AutoConfig.for_model(content["model_type"])).from_dict(deepcopy(content))
        return config, meaning(config)
    except Exception:
        return None, None


# keys that say nothing to them where experts stand in no groups, and where they always do
GROUPS = {"deepseek_v2": ("n_group", "topk_group"), "deepseek_v3": ()}


def meaning(config: Any) -> dict[str, Any]:
    """What their model computes by: their keys, with the values that theirs modules work out."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    said = {k: v for k, v in config.to_dict().items() if not changes_nothing(k)}
    heads = said.get("num_attention_heads", said.get("n_head"))
    assert said.get("head_dim") or said.get("hidden_size", said.get("n_embd")) % heads == 0, "no model"
    assert heads % (said.get("num_key_value_heads") or heads) == 0, "no model"
    if "kv_lora_rank" in said:
        assert said["num_key_value_heads"] == heads, "no model"
        assert said["head_dim"] == said["qk_rope_head_dim"], "no model"
    if said.get("sliding_window", 1) is None:
        assert "sliding_attention" not in said.get("layer_types", ()), "no model"
    assert said.get("num_experts_per_tok", 0) <= said.get(
        "num_local_experts", said.get("n_routed_experts", 0)
    )
    rope = said.pop("rope_parameters", None)
    if rope is not None:
        said["rope"] = [rope["rope_theta"] ** 0.5]
        if rope["rope_type"] != "default":
            theta, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config)
            said["rope"] = [float(f"{x:.5g}") for x in (factor, *theta.tolist())]
    if said.get("head_dim") is None and "hidden_size" in said:
        said["head_dim"] = said["hidden_size"] // said["num_attention_heads"]
    said.pop("qk_head_dim", None)  # a sum of two others
    for flag in ("norm_topk_prob", "rope_interleave"):
        said[flag] = bool(said.get(flag))
    if said.get("n_inner", 0) is None:
        said["n_inner"] = 4 * said["n_embd"]
    if said["model_type"] == "deepseek_v3" or said.get("topk_method") == "greedy":
        said = {k: v for k, v in said.items() if k not in (*GROUPS[said["model_type"]], "topk_method")}
    if "sliding_attention" not in said.get("layer_types", ["sliding_attention"]):
        said["sliding_window"] = None
    return said


@cache
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


def without_one(content: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    """Each key left out, and each null; of an older file only those of rotary positions."""
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
def test_a_key_left_out_or_null_means_what_it_means_to_them(name: str):
    """Read by them and by us, then ours written and read by them again: the same; and the same logits."""
    family, tokens, seen = FAMILIES[name], text()[0], []
    for kind, content in contents(name).items():
        for how, changed in without_one(content, kind).items():
            theirs, said = read_by_them(changed)
            try:
                ours = family.to_config(changed)
            except (WeightsError, InputError):
                assert theirs is None or {(name, how), ("", how)} & set(REFUSED_BY_US), (name, how)
                continue
            if theirs is None and ((name, how) in READ_BY_US or changes_nothing(how.split()[0])):
                continue
            assert theirs is not None, (name, how, "they refuse it")
            if said in seen:
                continue
            seen.append(said)
            _, back = read_by_them(family.to_json(ours, "float32"))
            assert back == said, (name, how)
            if (theirs.num_hidden_layers, theirs.hidden_size, theirs.vocab_size) == (2, 16, VOCAB):
                with Wide():
                    model = theirs_of(name, config=theirs)
                    mine = logits_in(loaded(model, family), tokens)
                    assert difference(mine, logits_of(model, tokens), 0.0) <= TOLERANCE, (name, how)


REFUSED_BY_US = (
    # a factor without a type says nothing to them
    ("", "no rope_scaling[rope_type]"),
    ("", "no rope_parameters[rope_type]"),
    # keys and values of different sizes
    ("", "no qk_nope_head_dim"),
    ("", "no v_head_dim"),
    ("deepseek_v2", "no qk_rope_head_dim"),  # they pass over a head_dim that is said
    # they read it, and cannot make a model of it
    ("qwen3_moe", "head_dim null"),
    ("deepseek_v3", "v_head_dim null"),
    ("deepseek_v2", "topk_method null"),
    # 3 layers without experts, and 2 in all
    ("deepseek_v3", "no first_k_dense_replace"),
    ("deepseek_v3", "first_k_dense_replace null"),
    ("deepseek_v2", "rope_scaling[factor] null"),
    ("deepseek_v3", "rope_scaling[factor] null"),
    *(("deepseek_v3", how) for how in ("no n_group", "n_group null", "no topk_group", "topk_group null")),
    ("deepseek_v2", "rope_parameters[factor] null"),
    # a factor below 1: 16 positions over the 4,096 of training
    ("gpt_oss", "rope_parameters[factor] null"),
)
# 32 heads of size 4 for hidden 16: they refuse it although the head size is given
READ_BY_US = (("llama", "no num_attention_heads"), ("deepseek_v3", "head_dim null"))


def logits_in(stage: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        x = stage.embedding(tokens, types_BS=types(tokens))
        x = stage.keep.layers(list(stage.layers.values()), x, None)
        return stage.head.logits(x)


ODD = (None, True, -1, 0, 0.5, 3, 1e300, "x", [], [3], {}, {"rope_type": 3}, 10**9)


@pytest.mark.parametrize("name", NAMES)
def test_odd_values_are_refused_by_key_or_make_a_model(name: str):
    """Whatever stands in a config.json: a model, or an error that names a key of it."""
    family = FAMILIES[name]
    for kind, content in contents(name).items():
        if kind not in ("as written", "yarn"):
            continue
        inside = {k: v for k, v in content.items() if isinstance(v, dict) and k.startswith("rope")}
        changes = [{**content, key: odd} for key in content for odd in ODD]
        changes += [{**content, k: {**v, n: odd}} for k, v in inside.items() for n in v for odd in ODD]
        for changed in changes:
            said = "config.json: a key is"
            try:
                family.to_config(changed)
            except WeightsError as problem:
                said = str(problem)
            assert re.match(r"config\.json: (a key|\w+(\[\w+\])?) is", said)


LLAMA = {"model_type": "llama", "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a dictionary that is a word": ({**LLAMA, "rope_scaling": "linear"}, "rope_scaling is 'linear'"),
    "a base that is null": ({**LLAMA, "rope_theta": None}, "rope_theta is None"),
    "no factor": ({**LLAMA, "rope_scaling": {"rope_type": "linear"}}, "rope_scaling[factor] is None"),
    "a factor below 1": (
        {**LLAMA, "rope_scaling": {"rope_type": "yarn", "factor": 0.5}},
        "rope_scaling[factor] is 0.5",
    ),
    "an unknown type": ({**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2}}, "'dynamic'; one of"),
    "heads that do not divide": ({**LLAMA, "num_attention_heads": 3}, "num_attention_heads is 3"),
    "no layer": ({"model_type": "gpt2", "n_layer": 0}, "n_layer is 0"),
    "no epsilon": ({**LLAMA, "rms_norm_eps": 0}, "rms_norm_eps is 0"),
    "a word for a number": ({**LLAMA, "hidden_size": "16"}, "hidden_size is '16'; it must be a whole number"),
    "biases": ({**LLAMA, "attention_bias": True}, "attention_bias is True; only False"),
    "an activation": ({**LLAMA, "hidden_act": "relu"}, "hidden_act is 'relu'"),
    "windows in some layers": (
        {**LLAMA, "model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 3},
        "max_window_layers is 3",
    ),
    "values of another size": ({**LLAMA, "model_type": "deepseek_v3", "v_head_dim": 4}, "v_head_dim is 4"),
    "a family that is not here": ({"model_type": "mamba"}, "model_type is 'mamba'; known are gpt2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_every_command_refuses_it_with_key_and_value(case: str, tmp_path: Path, capsys: Any):
    content, said = REFUSED[case]
    (tmp_path / "config.json").write_text(json.dumps(content))
    for command in ("predict", "train", "generate", "serve", "evaluate"):
        code, _, told = glass(capsys, command, "--model", str(tmp_path), "--json")
        assert (code, told["field"], told["value"]) == (2, "model", str(tmp_path))
        assert said in told["rule"]
    code, _, told = glass(capsys, "doctor", "--model", str(tmp_path), "--json")
    assert code == 1
    assert [
        row for row in told["refused"] if f"{row['key']} is {row['value']!r}; {row['why']}".find(said) >= 0
    ]


# ---- published models --------------------------------------------------------------------------------------
CONFIGS = sorted((Path(__file__).parent / "data" / "configs").glob("*.json"))


ONE_EACH = [file for file in CONFIGS if file.stem not in ("deepseek-v2", "gpt-oss-120b", "llama-3-70b")]


@pytest.mark.parametrize("file", ONE_EACH, ids=[file.stem for file in ONE_EACH])
def test_a_published_model_is_predicted(file: Path, capsys: Any):
    """Some layers of it, on one node: experts, where it has some, over all of its GPUs."""
    words = "--seq 256 --precision bf16 --hardware dgx-h200 --global-batch 8 --json".split()
    experts = make_model(str(file)).experts
    words += "--dp 8 --ep 8 --layers".split() if experts else "--dp 4 --tp 2 --layers".split()
    code, _, told = glass(capsys, "predict", "--model", str(file), *words, "4" if experts > 100 else "2")
    assert code == 0
    assert told["iteration_time_s"] > 0


PRESETS_OF = {
    "gpt2-small": "gpt2",
    "bert-base": "bert-base-uncased",
    "llama2-7b": "llama-2-7b",
    "llama3-70b": "llama-3-70b",
    "mistral-7b": "mistral-7b",
    "mixtral-8x7b": "mixtral-8x7b",
    "qwen2.5-7b": "qwen2.5-7b",
    "qwen3-8b": "qwen3-8b",
    "qwen3-30b-a3b": "qwen3-30b-a3b",
    "gemma2-9b": "gemma-2-9b",
    "deepseek-v2": "deepseek-v2",
    "deepseek-v3": "deepseek-v3",
    "gpt-oss-20b": "gpt-oss-20b",
}


@pytest.mark.parametrize("file", CONFIGS, ids=[file.stem for file in CONFIGS])
def test_a_published_model_has_as_many_parameters_as_theirs(file: Path):
    content = json.loads(file.read_text())
    ours = make_model(str(file))
    content.pop("quantization_config", None)
    config = transformers.AutoConfig.for_model(**content)
    with torch.device("meta"):
        model = getattr(transformers, FAMILIES[content["model_type"]].architecture)(config)
    assert ours.parameters() == model.num_parameters()
    assert ours.parameters() == sum(p.numel() for p, _ in GPTStage(ours, device="meta").full_names().values())
    assert ours.parameters() == PUBLISHED.get(file.stem, ours.parameters())


@pytest.mark.parametrize(("preset", "file"), PRESETS_OF.items())
def test_a_preset_is_the_published_model_but_for_its_length(preset: str, file: str):
    mine, theirs = (meant(make_model(m, seq=4096)) for m in (preset, str(CONFIGS[0].parent / f"{file}.json")))
    differ = {
        name: (mine[name], theirs.get(name)) for name in mine if not alike(theirs.get(name), mine[name])
    }
    assert set(differ) == ({"activation"} if preset == "gpt2-small" else set())  # the older preset has gelu


# what model cards and papers say, where they say it to the last parameter
PUBLISHED = {
    "gpt2": 124_439_808,
    "llama-2-7b": 6_738_415_616,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "gemma-2-9b": 9_241_705_984,
    "deepseek-v2-lite": 15_706_484_224,
}


def test_a_path_is_a_value_of_model_in_every_command(tmp_path: Path, capsys: Any):
    file = str(CONFIGS[0].parent / "llama-3.1-8b.json")
    small = "--layers 2 --hidden 32 --heads 4 --kv-heads 2 --ffn 48 --vocab 256 --seq 64".split()
    commands = {
        "predict": ["--tp", "2"],
        "train": ["--steps", "1", "--tp", "2", "--backend", "threads", "--out", str(tmp_path / "out")],
        "generate": ["--tokens", "2"],
        "serve": ["--count", "2", "--tokens", "2"],
        "evaluate": ["--items", "2", "--task", "perplexity"],
    }
    for command, more in commands.items():
        code, _, told = glass(capsys, command, "--model", file, *small, *more, "--json")
        assert code == 0, (command, told)
        assert told.get("model", {"rope_scaling": "llama3"})["rope_scaling"] == "llama3"


def test_a_folder_a_preset_and_an_unknown_name(tmp_path: Path, monkeypatch: Any):
    content = json.loads((CONFIGS[0].parent / "qwen3-8b.json").read_text())
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert make_model("mine", layers=4) == make_model(str(folder / "config.json"), layers=4)
    (tmp_path / "tiny").mkdir()
    assert make_model("tiny").layers == 4  # a preset's name is the preset's
    for name, said in {"nowhere/at/all": "cannot be read", "qwen": "unknown preset"}.items():
        with pytest.raises(InputError, match=said):
            make_model(name)


def test_another_hidden_needs_the_widths_that_the_file_says():
    qwen, llama = (str(CONFIGS[0].parent / f"{name}.json") for name in ("qwen3-8b", "llama-2-7b"))
    with pytest.raises(InputError, match="head_dim = 128 for hidden = 4096: give --head-dim or --heads too"):
        make_model(qwen, hidden=512)
    with pytest.raises(InputError, match="intermediate_size = 12288 for hidden = 4096: give --ffn too"):
        make_model(qwen, hidden=512, heads=4)
    assert make_model(qwen, hidden=512, heads=4, ffn=1024, kv_heads=4).head_dim == 128
    assert make_model(qwen, hidden=4096, heads=16, kv_heads=8).head_dim == 128
    assert make_model(llama, hidden=512, ffn=1024).head_dim == 16
    assert make_model(str(CONFIGS[0].parent / "gpt2.json"), hidden=384).ffn == 4 * 384


def test_weights_load_into_the_shape_of_a_path_or_are_refused(tmp_path: Path, capsys: Any):
    theirs_of("llama", vocab_size=256).save_pretrained(tmp_path / "weights")
    content = json.loads((tmp_path / "weights" / "config.json").read_text())
    (tmp_path / "same.json").write_text(json.dumps(content))
    (tmp_path / "other.json").write_text(json.dumps({**content, "rms_norm_eps": 1e-5}))
    words = ["generate", "--weights", str(tmp_path / "weights"), "--tokens", "2", "--prompt", "a", "--json"]
    assert glass(capsys, *words, "--model", str(tmp_path / "same.json"))[0] == 0
    code, _, told = glass(capsys, *words, "--model", str(tmp_path / "other.json"))
    assert (code, told["field"]) == (2, "model")
    assert "norm_eps = 1e-05, the config.json of the weights 1e-06" in told["rule"]


def test_doctor_says_on_one_screen_what_is_recognised_and_what_is_refused(tmp_path: Path, capsys: Any):
    for file in CONFIGS:
        code, out, _ = glass(capsys, "doctor", "--model", str(file))
        assert code == 0
        assert f"{make_model(str(file)).parameters():,} parameters" in out
        assert len(out.splitlines()) <= 50
    content = json.loads((CONFIGS[0].parent / "qwen3-8b.json").read_text())
    changed = {**content, "attention_bias": True, "hidden_act": "relu", "mystery": 3}
    (tmp_path / "odd.json").write_text(json.dumps(changed))
    code, _, told = glass(capsys, "doctor", "--model", str(tmp_path / "odd.json"), "--json")
    assert (code, told["ok"], told["parameters"]) == (1, False, None)
    assert [row["key"] for row in told["refused"]] == ["hidden_act", "attention_bias"]
    assert told["unknown"] == [{"key": "mystery", "value": 3}, {"key": "max_window_layers", "value": 36}][:1]
    theirs_of("qwen3").save_pretrained(tmp_path / "whole")
    code, _, told = glass(capsys, "doctor", "--model", str(tmp_path / "whole"), "--json")
    assert (code, told["weights"]["ok"], told["weights"]["tensors"]) == (0, True, 25)


# ---- files of other layouts --------------------------------------------------------------------------------
def test_berts_own_layout_with_gamma_and_beta_is_read(tmp_path: Path):
    """bert-base-uncased: norms have gamma and beta, and there is a pooler and a head for sentence pairs."""
    theirs_of("bert").save_pretrained(tmp_path)
    right = hugging_face.load(tmp_path, torch.float64)
    tensors = load_file(tmp_path / hugging_face.FILE)
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): x
        for n, x in tensors.items()
    }
    old |= {"bert.pooler.dense.weight": torch.zeros(16, 16), "cls.seq_relationship.bias": torch.zeros(2)}
    assert sum(n.endswith(("gamma", "beta")) for n in old) == 12
    save_file(old, tmp_path / hugging_face.FILE)
    again = hugging_face.load(tmp_path, torch.float64)
    for mine, other in zip(again.state_dict().values(), right.state_dict().values(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("name", [name for name in NAMES if FAMILIES[name].stacked])
def test_experts_stacked_in_one_tensor_are_read_too(name: str, tmp_path: Path):
    theirs = theirs_of(name)
    theirs.save_pretrained(tmp_path)
    right = hugging_face.load(tmp_path, torch.float64)
    save_file({n: x.clone() for n, x in theirs.state_dict().items()}, tmp_path / hugging_face.FILE)
    again = hugging_face.load(tmp_path, torch.float64)
    for mine, other in zip(again.state_dict().values(), right.state_dict().values(), strict=True):
        assert torch.equal(mine, other)


def test_layers_that_predict_more_tokens_are_passed_over(tmp_path: Path):
    theirs_of("deepseek_v3").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / hugging_face.FILE)
    save_file({**tensors, "model.layers.2.eh_proj.weight": torch.zeros(3)}, tmp_path / hugging_face.FILE)
    with hugging_face.Weights(tmp_path) as weights:
        assert weights.passed_over == ["model.layers.2.eh_proj.weight"]
    save_file({**tensors, "model.layers.3.eh_proj.weight": torch.zeros(3)}, tmp_path / hugging_face.FILE)
    with pytest.raises(WeightsError, match=r"nobody needs model.layers.3"):
        hugging_face.load(tmp_path)


LAST_LAYER = "model.layers.2.eh_proj.weight"


@pytest.mark.parametrize("words", ["train --steps 1 --no-check", "generate --tokens 1 --no-check"])
def test_tensors_that_are_passed_over_are_said_once(
    tmp_path: Path, capsys: Any, monkeypatch: Any, words: str
):
    monkeypatch.chdir(tmp_path)
    theirs_of("deepseek_v3").save_pretrained(tmp_path / "w")
    words += " --weights w --json --backend threads" + " --prompt-length 3" * words.startswith("generate")
    with pytest.raises(SystemExit):
        main(words.split())
    assert "passed over" not in capsys.readouterr().err
    tensors = load_file(tmp_path / "w" / hugging_face.FILE)
    save_file({**tensors, LAST_LAYER: torch.zeros(3)}, tmp_path / "w" / hugging_face.FILE)
    with pytest.raises(SystemExit):
        main(words.split())
    out, err = capsys.readouterr()
    assert "error" not in json.loads(out)
    said = [line for line in err.splitlines() if "passed over" in line]
    assert said == [
        f"w: 1 tensor passed over, which the model has no use for: {LAST_LAYER}; 1 of the layers that "
        "predict more tokens at once (num_nextn_predict_layers)"
    ]


def test_quantised_weights_are_refused_and_their_shapes_read(tmp_path: Path):
    theirs_of("llama").save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "quantization_config": {"bits": 4}}))
    assert make_model(str(tmp_path)).layers == 2
    with pytest.raises(WeightsError, match=r"quantization_config is \{'bits': 4\}"):
        hugging_face.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(content))
    tensors = load_file(tmp_path / hugging_face.FILE)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, tmp_path / hugging_face.FILE)
    with pytest.raises(WeightsError, match=r"model.norm.weight is of type I8"):
        hugging_face.load(tmp_path)


@pytest.mark.parametrize(
    "index", ["{}", '{"weight_map": 3}', '{"weight_map": {"a": "../a"}}', "[", '{"weight_map": {"a": 1}}']
)
def test_an_odd_index_is_named(index: str, tmp_path: Path):
    theirs_of("gpt2").save_pretrained(tmp_path)
    (tmp_path / hugging_face.INDEX).write_text(index)
    with pytest.raises((WeightsError, InputError), match=r"model\.safetensors\.index\.json"):
        hugging_face.load(tmp_path)


# ---- on a cluster ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_a_cluster_of_eight_trains_it_as_one_device_does(name: str, tmp_path: Path):
    """Their weights on tp 2 x pp 2 x dp 2: losses, gradients and weights within 1e-10 in float64."""
    theirs_of(name).save_pretrained(tmp_path)
    with hugging_face.Weights(tmp_path) as weights:
        model = weights.config
    job = Job(make_plan(tp=2, pp=2, dp=2), model, steps=1, weights=str(tmp_path))
    trained = train(Cluster("classroom", 8), job)
    assert trained.ok
    assert trained.comparison is not None
    assert trained.comparison["max_rel_grad_diff"] <= TOLERANCE


def test_doctor_says_what_an_absent_size_means_and_what_stands_with_a_refused_key(tmp_path, capsys):
    content: dict[str, object] = {"model_type": "llama", "num_hidden_layers": 2, "rope_theta": 5e5}
    content["rope_scaling"] = {"rope_type": "dynamic", "factor": 2.0}
    (tmp_path / "config.json").write_text(json.dumps(content))
    report = examine_model(str(tmp_path))
    means = {row["key"]: (row["value"], row["means"]) for row in report["recognised"]}
    assert means["hidden_size"] == (None, "absent: hidden = 4096, as transformers has it")
    assert means["rope_theta"] == (5e5, "with rope_scaling, which is refused")
    assert "rope_scaling" not in means
    assert report["unknown"] == []


EMPTY: tuple[Any, ...] = (0, False, "", [])  # what an `if` takes for nothing


def test_a_value_that_is_empty_is_not_called_absent(tmp_path: Path, capsys: Any):
    """Every key of every family, and every one inside the dictionary of rotary positions."""
    for name in FAMILIES:
        for kind, content in contents(name).items():
            if kind not in ("as written", "yarn"):
                continue
            inside = {k: v for k, v in content.items() if isinstance(v, dict) and k.startswith("rope")}
            changes = [(k, {**content, k: empty}) for k in content for empty in EMPTY if k != "model_type"]
            changes += [
                (n, {**content, k: {**v, n: empty}}) for k, v in inside.items() for n in v for empty in EMPTY
            ]
            for key, changed in changes:
                (tmp_path / "config.json").write_text(json.dumps(changed))
                report = examine_model(str(tmp_path))
                said = [(r["key"], r["means"]) for r in report["recognised"]]
                said += [(r["key"], r["why"]) for r in report["refused"]]
                assert not [s for k, s in said if k.removesuffix("]").endswith(key) and "absent" in s]


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_a_factor_of_0_is_refused_by_the_dictionary_that_has_it(key: str, tmp_path: Path, capsys: Any):
    content = {**LLAMA, key: {"rope_type": "linear", "factor": 0}, "num_key_value_heads": None}
    (tmp_path / "config.json").write_text(json.dumps(content))
    code, out, _ = glass(capsys, "doctor", "--model", str(tmp_path))
    assert code == 1
    assert re.search(rf"REFUSED {key}\[factor\] +0 +rope_factor = 0\.0: must be at least 1", out)
    assert re.search(r"ok      num_key_value_heads +null ", out)
    assert "as it is absent" not in out


@pytest.mark.parametrize(("family", "key"), [("llama", "head_dim"), ("mixtral", "num_local_experts")])
def test_a_count_of_0_is_refused_by_its_key_though_0_means_something_to_us(family, key, tmp_path):
    content = {"model_type": family, "hidden_size": 64, "num_attention_heads": 4, key: 0}
    (tmp_path / "config.json").write_text(json.dumps(content))
    rows = examine_model(str(tmp_path))["refused"]
    assert [(row["key"], row["value"]) for row in rows] == [(key, 0)]
    assert "must be at least 1" in rows[0]["why"]
