"""Hugging Face's own models, randomly initialised: equal logits and gradients, loading both ways, the same
tokens.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from glasscluster.base.errors import InputError
from glasscluster.cli import main
from glasscluster.model.decoding.cache import PagedCache, SlidingWindowCache, StaticCache
from glasscluster.model.decoding.generate import generate
from glasscluster.model.gpt import GPTStage
from glasscluster.model.parallel import Unsharded
from glasscluster.model.weights import hugging_face
from glasscluster.model.weights.families import WeightsError
from glasscluster.scenarios.jobs.training import train
from glasscluster.sim.run import Cluster
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge.check import TOLERANCE, check_job, difference, reference_for
from glasscluster.strategies.plan import make_plan
from tests.their_models import (
    LLAMA,
    SEQ,
    SIZES,
    VOCAB,
    Wide,
    ours_of,
    read_back,
    same,
    text,
    theirs_of,
    transformers,
)

pytestmark = pytest.mark.xdist_group("transformers")  # it is imported once


@pytest.fixture
def wide():
    with Wide():
        yield


CASES = [
    ("gpt2", {}, {}),
    (
        "gpt2",
        {"tie_word_embeddings": False, "n_inner": 24, "activation_function": "relu"},
        {"qkv": "separate", "attention": "unfused"},
    ),
    ("llama", {}, {}),
    (
        "llama",
        {"num_key_value_heads": 1, "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "rope_theta": 500.0},
        {"qkv": "separate"},
    ),
    (
        "llama",
        {"num_key_value_heads": 4, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"attention": "unfused"},
    ),
    (
        "llama",
        {
            "rope_parameters": {
                "rope_theta": 100.0,
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 4,
            }
        },
        {},
    ),
    ("bert", {}, {}),
    ("bert", {"layer_norm_eps": 1e-5}, {"qkv": "separate", "attention": "unfused"}),
]


@pytest.mark.parametrize(("name", "more", "overrides"), CASES)
@pytest.mark.usefixtures("wide")
def test_their_model_is_ours(name: str, more: dict, overrides: dict, tmp_path: Path):
    theirs = theirs_of(name, **more)
    theirs.save_pretrained(tmp_path)
    ours = hugging_face.load(tmp_path, torch.float64, **overrides)
    assert same(ours, theirs) <= TOLERANCE
    with torch.no_grad():  # the check can fail: one weight of each tensor moved by a millionth
        for parameter in ours.parameters():
            parameter.grad = None
            parameter.view(-1)[0].mul_(1 + 1e-6)
        theirs.zero_grad()
    assert same(ours, theirs) > TOLERANCE


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("gpt2", {"qkv": "separate"}),
        ("gpt2", {"tied": False, "ffn": 24, "activation": "relu", "norm_eps": 1e-6}),
        ("llama", {}),
        (
            "llama",
            {
                "qkv": "separate",
                "tied": True,
                "rope_scaling": "interpolation",
                "rope_factor": 3.0,
                "rope_theta": 50.0,
            },
        ),
        ("llama", {"rope_scaling": "yarn", "rope_factor": 2.0, "rope_trained": 8}),
        ("bert", {"qkv": "separate"}),
    ],
)
@pytest.mark.usefixtures("wide")
def test_our_model_is_theirs(name: str, more: dict, tmp_path: Path):
    ours = ours_of(name, **more)
    theirs = read_back(hugging_face.save(ours, tmp_path), name)
    assert theirs.config.model_type == name
    assert same(ours, theirs) <= TOLERANCE
    again = hugging_face.load(tmp_path, torch.float64, **({"qkv": more["qkv"]} if "qkv" in more else {}))
    assert again.config == ours.config
    for parameter, (other, _) in zip(again.parameters(), ours.full_names().values(), strict=True):
        assert torch.equal(parameter, other)


@pytest.mark.parametrize("name", [name for name in SIZES if name != "bert"])
def test_greedy_tokens_are_theirs_with_and_without_a_cache(name: str, tmp_path: Path):
    theirs = theirs_of(name)
    theirs.save_pretrained(tmp_path)
    ours = hugging_face.load(tmp_path, torch.float64)
    prompts = [text()[0][0, :5].tolist(), text()[0][1, :5].tolist()]
    options = {
        "max_new_tokens": 8,
        "do_sample": False,
        "pad_token_id": 0,
        "attention_mask": torch.ones(2, 5, dtype=torch.int64),
    }
    right = [
        theirs.generate(torch.tensor(prompts), use_cache=cached, **options)[:, 5:].tolist()
        for cached in (True, False)
    ]
    made = [
        generate(ours, prompts, 8, cache).tokens
        for cache in (None, StaticCache(ours, 2, 12), PagedCache(ours, 2, 12, 3))
    ]
    assert right[0] == right[1] == made[0] == made[1] == made[2]


def test_llama_with_its_casts_to_float32_is_ours_to_float32(tmp_path: Path):
    theirs = theirs_of("llama")
    theirs.save_pretrained(tmp_path)
    assert TOLERANCE < same(hugging_face.load(tmp_path, torch.float64), theirs) <= 1e-5


@pytest.mark.usefixtures("wide")
def test_a_sliding_window_is_mistrals():
    ours = ours_of("llama")
    more = {
        "vocab_size": VOCAB,
        "sliding_window": 5,
        "attn_implementation": "eager",
        "eos_token_id": None,
        "rms_norm_eps": 1e-5,
    }
    theirs = (
        transformers.MistralForCausalLM(transformers.MistralConfig(**SIZES["llama"], **more)).double().eval()
    )
    tensors = hugging_face.state_dict(ours.config, {n: p.detach() for n, (p, _) in ours.full_names().items()})
    theirs.load_state_dict(tensors)
    prompts = text()[0][:, :7].tolist()
    made = generate(ours, prompts, 8, SlidingWindowCache(ours, 2, 14, 5))
    tokens = torch.tensor(prompts)
    for logits, chosen in zip(made.logits, zip(*made.tokens, strict=True), strict=True):
        with torch.no_grad():
            assert difference(logits, theirs(tokens, use_cache=False).logits[:, -1], 0.0) <= TOLERANCE
        tokens = torch.cat([tokens, torch.tensor(chosen)[:, None]], 1)
    assert made.tokens != generate(ours, prompts, 8, SlidingWindowCache(ours, 2, 14, 6)).tokens


# ---- files -------------------------------------------------------------------------------------------------
def test_a_file_of_the_bare_model_and_one_in_several_files_are_read(tmp_path: Path):
    theirs = theirs_of("gpt2")
    theirs.save_pretrained(tmp_path / "several", max_shard_size="8KB")
    assert (tmp_path / "several" / hugging_face.INDEX).exists()
    theirs.transformer.save_pretrained(tmp_path / "bare")
    right = dict(theirs.named_parameters())
    for folder in ("several", "bare"):
        ours = hugging_face.load(tmp_path / folder, torch.float64)
        found = hugging_face.state_dict(
            ours.config, {n: p.detach() for n, (p, _) in ours.full_names().items()}
        )
        assert set(found) == set(right)
        assert all(torch.equal(found[n], right[n]) for n in right)


def test_a_rank_reads_its_part(tmp_path: Path):
    whole = ours_of("gpt2", vocab=38)
    hugging_face.save(whole, tmp_path)

    class Half(Unsharded):
        size = 2

        def __init__(self, rank: int) -> None:
            self.rank = rank

    with hugging_face.Weights(tmp_path) as weights:
        for rank in range(2):
            stage = weights.fill(
                GPTStage(whole.config, [1], first=False, parallel=Half(rank), seed=5, dtype=torch.float64)
            )
            for name, (parameter, shard) in stage.full_names().items():
                full = dict(whole.full_names())[name][0]
                assert torch.equal(parameter, full if shard is None else shard.take(full, rank, 2))
        with pytest.raises(WeightsError, match="part of it"):
            hugging_face.save(stage, tmp_path / "x")


def damaged(folder: Path, tensors: dict[str, Tensor], **config: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **config}))
    save_file(tensors, folder / hugging_face.FILE)


DAMAGE = {
    "no tensor transformer.h.1.mlp.c_fc.bias": (lambda t: t.pop("transformer.h.1.mlp.c_fc.bias"), {}),
    "nobody needs transformer.h.0.extra": (lambda t: t.update({"transformer.h.0.extra": torch.zeros(1)}), {}),
    r"transformer.wpe.weight has shape \[15, 16\], config.json makes it \[16, 16\]": (
        lambda t: t.update({"transformer.wpe.weight": torch.zeros(15, 16)}),
        {},
    ),
    r"h.0.attn.c_attn.weight has shape \[48, 16\], config.json makes it \[16, 48\]": (  # not transposed
        lambda t: t.update({"transformer.h.0.attn.c_attn.weight": torch.zeros(48, 16)}),
        {},
    ),
    "tie_word_embeddings is False; only True": (
        lambda t: None,
        {"model_type": "bert", "tie_word_embeddings": False},
    ),
    "model_type is 'mamba'; known are": (lambda t: None, {"model_type": "mamba"}),
    "activation_function is 'silu'": (lambda t: None, {"activation_function": "silu"}),
    "scale_attn_weights is False": (lambda t: None, {"scale_attn_weights": False}),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_what_is_wrong_with_a_folder_is_named(message: str, tmp_path: Path):
    hugging_face.save(ours_of("gpt2"), tmp_path)
    hurt, config = DAMAGE[message]
    tensors = load_file(tmp_path / hugging_face.FILE)
    hurt(tensors)
    damaged(tmp_path, tensors, **config)
    with pytest.raises(WeightsError, match=message):
        hugging_face.load(tmp_path)


def test_old_buffers_are_passed_over_and_missing_files_named(tmp_path: Path):
    ours = ours_of("gpt2")
    hugging_face.save(ours, tmp_path)
    tensors = load_file(tmp_path / hugging_face.FILE)
    spare = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, SEQ, SEQ),
        "lm_head.weight": tensors["transformer.wte.weight"].clone(),
    }
    damaged(tmp_path, tensors | spare)
    again = hugging_face.load(tmp_path, torch.float64)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ours.parameters(), strict=True))
    (tmp_path / hugging_face.FILE).unlink()
    with pytest.raises(WeightsError, match=r"model.safetensors cannot be read"):
        hugging_face.load(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"config.json': cannot be read"):
        hugging_face.load(tmp_path)


@pytest.mark.parametrize(
    ("message", "more"),
    {
        "gpt2 has experts = 0, this model 2": {"experts": 2},
        "rope_type has no word for 'ntk'": {**LLAMA, "rope_scaling": "ntk", "rope_factor": 2.0},
        "llama has bias = False, this model True": {**LLAMA, "bias": True},
        "gpt2 has as many key heads as heads, this model 2 of 4": {"kv_heads": 2},
        "activation_function has no word for 'swiglu'": {"activation": "swiglu"},
    }.items(),
)
def test_a_model_that_no_family_has_is_refused(message: str, more: dict, tmp_path: Path):
    with pytest.raises(WeightsError, match=message):
        hugging_face.save(ours_of("gpt2", **more), tmp_path)


# ---- training and generating from a folder -----------------------------------------------------------------
def test_a_cluster_trains_from_their_weights(tmp_path: Path):
    theirs = theirs_of("gpt2")
    theirs.save_pretrained(tmp_path)
    with hugging_face.Weights(tmp_path) as weights:
        model = weights.config
    job = Job(make_plan(tp=2, pp=2, zero=1, dp=1), model, steps=2, weights=str(tmp_path))
    trained = train(Cluster("classroom", 4), job)
    assert trained.ok
    tokens, targets = job.batch(0)
    with torch.no_grad():
        loss = float(F.cross_entropy(theirs(tokens).logits.flatten(0, 1), targets.flatten()))
    assert trained.comparison is not None
    assert abs(trained.comparison["reference_losses"][0] - loss) <= TOLERANCE
    assert abs(reference_for(check_job(replace(job, weights=None))).losses[0] - loss) > 0.01


def glass(capsys: Any, *words: str) -> tuple[int, Any, str]:
    with pytest.raises(SystemExit) as done:
        main([*words, "--json"])
    said = capsys.readouterr()
    return done.value.code, json.loads(said.out) if said.out else None, said.err


def test_glass_generate_is_their_generate(tmp_path: Path, capsys: Any):
    theirs = theirs_of("gpt2", vocab_size=256)
    theirs.save_pretrained(tmp_path)
    prompts = torch.tensor([list(b"hello"), list(b"a dog")])
    options = {
        "max_new_tokens": 7,
        "do_sample": False,
        "pad_token_id": 0,
        "attention_mask": torch.ones_like(prompts),
    }
    right = theirs.generate(prompts, **options)[:, 5:].tolist()
    for more in (["--cache", "paged", "--block", "4"], ["--tp", "2"]):
        words = ["--prompt", "hello", "--prompt", "a dog", "--tokens", "7", "--precision", "fp64", *more]
        code, found, _ = glass(capsys, "generate", "--weights", str(tmp_path), *words)
        assert (code, found["schema"], found["tokens"]) == (0, "glass.generate/1", right)
        assert all(c["ok"] for c in found["checks"])
        assert found["text"][0] == bytes(right[0]).decode("utf-8", "replace")


USAGE = {
    "window = 0: a sliding cache needs a window": ["--cache", "sliding"],
    "window_layers = 'alternate': a sliding cache drops tokens that layers without a window see": [
        *("--cache", "sliding", "--window", "3", "--window-layers", "alternate")
    ],
    "window_layers = 'alternate': needs --window": ["--window-layers", "alternate"],
    "cache = 'statik': is unknown; the nearest valid choice is static": ["--cache", "statik"],
    "tp = 3: must divide heads = 4": ["--tp", "3"],
    "take 67 positions, the model has seq = 64; the nearest valid choice is 61": ["--tokens", "64"],
    "config.json': cannot be read": ["--weights", "nowhere"],
    "a text is taken as bytes, the vocabulary has 100 tokens": ["--vocab", "100"],
}


@pytest.mark.parametrize("message", USAGE)
def test_glass_generate_names_what_is_wrong(message: str, capsys: Any):
    code, _, said = glass(capsys, "generate", *USAGE[message])
    assert code == 2
    assert message in said


def test_glass_generate_says_what_a_big_model_would_take(capsys: Any):
    words = "--model gpt3-175b --prompt-length 512 --batch 4 --tokens 3 --tp 8 --precision bf16"
    words += " --backend dry --layers 4"
    code, found, _ = glass(capsys, "generate", "--hardware", "dgx-h100", *words.split())
    assert (code, found["tokens"], found["checked_tokens"]) == (0, [], 0)
    assert all(c["ok"] for c in found["checks"])
    assert (found["prefill"]["bound"], found["decode"]["bound"]) == ("compute", "memory")
    assert found["cache_bytes"] == [2 * 4 * 12288 // 8 * 4 * 514 * 2] * 8
