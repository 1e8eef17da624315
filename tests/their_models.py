"""Hugging Face's own models, randomly initialised and tiny, beside ours: what tests of both need."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from glasscluster.model.config import ModelConfig
from glasscluster.model.gpt import GPTStage
from glasscluster.model.parallel import IGNORE
from glasscluster.model.weights import hugging_face
from glasscluster.model.weights.families import FAMILIES
from glasscluster.strategies.judge.check import difference

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

VOCAB, SEQ = 37, 16
_LLAMA_SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": SEQ,
}
_EXPERTS = {"moe_intermediate_size": 8}
_LATENTS = {
    **_LLAMA_SIZES,
    **_EXPERTS,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 12,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 2,
    "v_head_dim": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 4,
    "mscale": 0.7,
    "mscale_all_dim": 0.9,
}
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "n_layer": 2,
        "n_embd": 16,
        "n_head": 4,
        "n_positions": SEQ,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "llama": _LLAMA_SIZES,
    **{name: dict(_LLAMA_SIZES) for name in ("mistral", "qwen2")},
    "mixtral": {**_LLAMA_SIZES, "num_local_experts": 4, "head_dim": 4},
    "qwen3": {**_LLAMA_SIZES, "head_dim": 8},
    "qwen3_moe": {**_LLAMA_SIZES, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, **_EXPERTS},
    "gemma2": {**_LLAMA_SIZES, "head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 12},
    "deepseek_v2": {**_LATENTS, "n_shared_experts": 2, "rope_parameters": _YARN},
    "deepseek_v3": {**_LATENTS, "n_shared_experts": 1, "n_group": 2, "topk_group": 1},
    "gpt_oss": {
        **_LLAMA_SIZES,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 5,
    },
    "bert": {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": SEQ,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        # their embedding's row for padding learns nothing, ours is a row like any other
        "pad_token_id": None,
    },
}
LLAMA = {
    "kv_heads": 2,
    "ffn": 24,
    "norm": "rmsnorm",
    "bias": False,
    "position": "rope",
    "activation": "swiglu",
    "tied": False,
}
BERT = {"ffn": 24, "objective": "masked", "norm_position": "post", "norm_eps": 1e-12}
OURS: dict[str, dict[str, Any]] = {"gpt2": {"activation": "gelu-tanh"}, "llama": LLAMA, "bert": BERT}


class Wide(TorchFunctionMode):
    """Their casts to float32 keep float64.

    Llama's norms, softmax and rotary angles are in float32 whatever the model's type; in float64 that is an
    error of 1e-6.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        wide = lambda x: torch.float64 if x is torch.float32 else x  # noqa: E731
        return func(*map(wide, args), **{k: wide(v) for k, v in (kwargs or {}).items()})


def theirs_of(name: str, config: Any = None, **more: Any) -> Any:
    """Their model in float64 with weights large enough to matter, norms, biases and buffers included."""
    values = {
        **SIZES[name],
        "vocab_size": VOCAB,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "attn_implementation": "eager",
        **more,
    }
    torch.manual_seed(0)
    config = config or transformers.AutoConfig.for_model(name, **values)
    config._attn_implementation = config._experts_implementation = "eager"
    model = getattr(transformers, FAMILIES[name].architecture)(config).double().eval()
    buffers = (b for name, b in model.named_buffers() if "correction" in name)
    for tensor in (*model.parameters(), *buffers):
        torch.nn.init.normal_(tensor, std=0.3)
    return model


def loaded(theirs: Any, family: Any) -> GPTStage:
    """Our model with the weights of theirs, from its memory."""
    config = family.to_config(theirs.config.to_dict())
    layout, found = hugging_face.Layout(family.in_memory(), config), theirs.state_dict()
    stage = GPTStage(config, dtype=torch.float64)
    with torch.no_grad():
        for name, tensor in hugging_face.tensors_of(stage).items():
            tensor.copy_(layout.to_ours(name, found))
    return stage


def ours_of(name: str, **more: Any) -> GPTStage:
    """Our model of the same size."""
    values = {
        "layers": 2,
        "hidden": 16,
        "heads": 4,
        "vocab": VOCAB,
        "seq": SEQ,
        "init_std": 0.3,
        **OURS[name],
        **more,
    }
    return GPTStage(ModelConfig(**values), dtype=torch.float64)


def read_back(folder: Path, name: str) -> Any:
    """transformers' from_pretrained."""
    auto = transformers.AutoModelForMaskedLM if name == "bert" else transformers.AutoModelForCausalLM
    model, said = auto.from_pretrained(
        folder,
        attn_implementation="eager",
        experts_implementation="eager",
        dtype=torch.float64,
        output_loading_info=True,
    )
    assert not any(said.values()), said
    return model.eval()


def text(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randint(0, VOCAB, (2, SEQ), generator=generator) for _ in range(2))
    return x, y


def same(ours: GPTStage, theirs: Any) -> float:
    """The largest difference of logits, loss and every gradient by name, and that each side has all of the
    other's.
    """
    tokens, targets = text()
    more = {}
    if ours.config.objective == "masked":
        targets = torch.where(torch.arange(SEQ) % 3 == 1, targets, IGNORE)
        more["token_type_ids"] = (torch.arange(SEQ) >= SEQ // 2).long().expand_as(tokens)
    logits = theirs(tokens, **more).logits
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    loss.backward()
    mine = ours(tokens, targets)
    mine.backward()
    with torch.no_grad():
        x = ours.keep.layers(list(ours.layers.values()), ours.embedding(tokens), None)
        worst = [difference(ours.head.logits(x), logits, 0.0), difference(mine.detach(), loss.detach(), 0.0)]
    mine_by_name = {name: p.grad for name, (p, _) in ours.full_names().items()}
    assert all(g is not None for g in mine_by_name.values())
    family = FAMILIES[theirs.config.model_type]
    found = hugging_face.state_dict(ours.config, mine_by_name, family, in_memory=True, gradients=True)
    right = {name: p.grad for name, p in theirs.named_parameters()}
    assert set(found) == set(right)
    floor = 1e-3 * max(float(g.abs().max()) for g in right.values())
    return max(worst + [difference(found[name], right[name], floor) for name in right])
