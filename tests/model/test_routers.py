"""Routers and experts beside transformers' own modules, with random weights in float64, forward and gradients.

Their modules compute some of it in float32. They are compared as they are, and with these casts taken out.
"""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glasscluster.model.config import ModelConfig
from glasscluster.model.gpt import Block
from glasscluster.model.layers import mlp, moe
from glasscluster.model.parallel import Unsharded

pytestmark = pytest.mark.xdist_group("transformers")  # imported once, beside tests/test_hugging_face.py
H, F, E = 8, 6, 8
SIZES = {"hidden_size": H, "num_attention_heads": 2, "num_experts_per_tok": 3}
SHAPE: dict[str, Any] = {
    "layers": 1,
    "hidden": H,
    "heads": 2,
    "vocab": 16,
    "seq": 10,
    "init_std": 0.7,
    "aux_loss": 0.0,
    "experts": E,
    "top_k": 3,
    "ffn": 20,
    "expert_ffn": F,
    "activation": "swiglu",
    "bias": False,
}
DEEPSEEK = {**SIZES, "n_routed_experts": E, "moe_intermediate_size": F, "n_shared_experts": 2}
V3 = {"router": "sigmoid", "router_bias": True, "shared_ffn": 2 * F, "router_scale": 2.5}
GROUPS = {"n_group": 4, "topk_group": 2}
OUR_GROUPS = {"router_groups": 4, "router_top_groups": 2}
# model, class of its configuration and of the module, its options, ours
CASES: dict[str, tuple[str, str, str, dict[str, Any], dict[str, Any]]] = {
    "Mixtral": (
        "mixtral",
        "MixtralConfig",
        "MixtralSparseMoeBlock",
        {**SIZES, "intermediate_size": F, "num_local_experts": E},
        {},
    ),
    **{
        f"Qwen3-MoE, normalised {n}": (
            "qwen3_moe",
            "Qwen3MoeConfig",
            "Qwen3MoeSparseMoeBlock",
            {**SIZES, "moe_intermediate_size": F, "num_experts": E, "norm_topk_prob": n},
            {"router_normalised": n},
        )
        for n in (True, False)
    },
    "DeepSeek-V2 Lite": (
        "deepseek_v2",
        "DeepseekV2Config",
        "DeepseekV2Moe",
        {**DEEPSEEK, "topk_method": "greedy", "routed_scaling_factor": 1.0},
        {"router_normalised": False, "shared_ffn": 2 * F},
    ),
    "DeepSeek-V2": (
        "deepseek_v2",
        "DeepseekV2Config",
        "DeepseekV2Moe",
        {**DEEPSEEK, **GROUPS, "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0},
        {"router_normalised": False, "shared_ffn": 2 * F, "router_scale": 16.0, **OUR_GROUPS},
    ),
    **{
        f"DeepSeek-V3, normalised {n}": (
            "deepseek_v3",
            "DeepseekV3Config",
            "DeepseekV3MoE",
            {**DEEPSEEK, **GROUPS, "routed_scaling_factor": 2.5, "norm_topk_prob": n},
            {**V3, **OUR_GROUPS, "router_normalised": n},
        )
        for n in (True, False)
    },
    "DeepSeek-V3, one group": (
        "deepseek_v3",
        "DeepseekV3Config",
        "DeepseekV3MoE",
        {**DEEPSEEK, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.5},
        V3,
    ),
    **{
        f"gpt-oss, {k} experts": (
            "gpt_oss",
            "GptOssConfig",
            "GptOssMLP",
            {**SIZES, "num_experts_per_tok": k, "intermediate_size": F, "num_local_experts": E},
            {"expert_bias": True, "activation": "swiglu-clamped", "router_normalised": True, "top_k": k},
        )
        for k in (3, 1)
    },
}


def modules(name: str, widened: bool) -> tuple[types.ModuleType, types.ModuleType]:
    """transformers' modeling and configuration of a model; widened: with float64 where it says float32."""
    place = f"transformers.models.{name}."
    modeling = importlib.import_module(f"{place}modeling_{name}")
    if widened:
        source = inspect.getsource(modeling).replace("torch.float32", "torch.float64")
        source = source.replace(".float()", ".double()").replace("dtype=torch.float,", "dtype=torch.float64,")
        modeling = types.ModuleType(modeling.__name__)
        modeling.__package__ = place.rstrip(".")
        exec(compile(source, modeling.__name__, "exec"), modeling.__dict__)
    return modeling, importlib.import_module(f"{place}configuration_{name}")


def plain(x: Tensor) -> Tensor:
    return x


def interleaved(x: Tensor) -> Tensor:
    """gpt-oss's first matrix [E, h, 2f], gate and value column by column, as ours [E, 2f, h]; and biases."""
    x = x.transpose(1, 2) if x.dim() == 3 else x
    return torch.cat([x[:, ::2], x[:, 1::2]], 1)


def names(theirs: nn.Module) -> dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """Their tensor of each of ours, and how it lies there."""
    if hasattr(theirs, "router"):
        router, experts = theirs.router, theirs.experts
        return {
            "router_weight": (router.weight, plain),
            "router_bias": (router.bias, plain),
            "expert_up_weight": (experts.gate_up_proj, interleaved),
            "expert_up_bias": (experts.gate_up_proj_bias, interleaved),
            "expert_down_weight": (experts.down_proj, lambda x: x.transpose(1, 2)),
            "expert_down_bias": (experts.down_proj_bias, plain),
        }
    found = {
        "router_weight": (theirs.gate.weight, plain),
        "expert_up_weight": (theirs.experts.gate_up_proj, plain),
        "expert_down_weight": (theirs.experts.down_proj, plain),
    }
    if hasattr(theirs, "shared_experts"):
        found["shared_down_weight"] = (theirs.shared_experts.down_proj.weight, plain)
    return found


def pair(case: str, widened: bool, **more: Any) -> tuple[nn.Module, Block]:
    """Their module and our block with the same numbers."""
    name, of_config, of_module, options, ours = CASES[case]
    modeling, configuration = modules(name, widened)
    theirs = getattr(modeling, of_module)(getattr(configuration, of_config)(**options)).double()
    block = Block(
        0, ModelConfig(**{**SHAPE, **ours, **more}), Unsharded(), 3, torch.empty(0, dtype=torch.float64)
    )
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
        for ours_name, (tensor, lies) in names(theirs).items():
            getattr(block, ours_name).copy_(lies(tensor))
        if hasattr(theirs, "shared_experts"):
            both = (theirs.shared_experts.gate_proj.weight, theirs.shared_experts.up_proj.weight)
            block.shared_up_weight.copy_(torch.cat(both))
        if hasattr(theirs, "gate") and hasattr(theirs.gate, "e_score_correction_bias"):
            block.router_correction.copy_(torch.randn(E, generator=draw) * 0.3)
            theirs.gate.e_score_correction_bias.copy_(block.router_correction)
    return theirs, block


def both(theirs: nn.Module, block: Block) -> dict[str, float]:
    """Largest difference of output and of every gradient, relative to the largest element."""
    draw = torch.Generator().manual_seed(6)
    x, d_y = (torch.randn(3, 10, H, generator=draw, dtype=torch.float64) for _ in range(2))
    mine, right = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = moe.experts(block, mine), theirs(right)
    expected = expected[0] if isinstance(expected, tuple) else expected
    y.backward(d_y)
    expected.backward(d_y)
    assert mine.grad is not None
    assert right.grad is not None
    compared = {"y": (y, expected), "dx": (mine.grad, right.grad)}
    for name, (tensor, lies) in names(theirs).items():
        compared[name] = (getattr(block, name).grad, lies(tensor.grad))
    if hasattr(theirs, "shared_experts"):
        shared = theirs.shared_experts
        whole = torch.cat([shared.gate_proj.weight.grad, shared.up_proj.weight.grad])
        compared["shared_up_weight"] = (block.shared_up_weight.grad, whole)
    assert {n for n, _ in block.named_parameters() if n in compared} == compared.keys() - {"y", "dx"}
    return {  # the weight of an only expert is 1, and the gradient of its router 0
        name: float((a - b).detach().abs().max()) / max(float(b.detach().abs().max()), 1e-3)
        for name, (a, b) in compared.items()
    }


@pytest.mark.parametrize(("widened", "tolerance"), [(False, 1e-5), (True, 1e-10)])
@pytest.mark.parametrize("case", CASES)
def test_a_router_and_its_experts_are_transformers_own(case, widened, tolerance):
    pytest.importorskip("transformers")
    found = both(*pair(case, widened))
    assert max(found.values()) <= tolerance, found


@pytest.mark.parametrize(
    ("case", "more"),
    [
        ("DeepSeek-V3, normalised True", {"router_bias": False}),
        ("DeepSeek-V3, normalised True", {"router_groups": 2, "router_top_groups": 1}),
        ("DeepSeek-V3, normalised True", {"router_scale": 1.0}),
        ("DeepSeek-V3, normalised True", {"router_normalised": False}),
        ("DeepSeek-V3, normalised True", {"router": "softmax"}),
        ("DeepSeek-V2", {"router_groups": 1, "router_top_groups": 1}),
        ("gpt-oss, 3 experts", {"activation": "swiglu"}),
        ("gpt-oss, 1 experts", {"router_normalised": None}),
    ],
    ids=str,
)
def test_every_switch_of_a_router_makes_a_difference(case, more):
    pytest.importorskip("transformers")
    theirs, block = pair(case, widened=False)
    block.config = block.config.model_copy(update=more)
    if more.get("router_bias") is False:
        block.router_correction.zero_()
    assert both(theirs, block)["y"] > 1e-3


def test_a_correction_moves_the_choice_and_not_the_weights_and_gets_no_gradient():
    config = ModelConfig(**{**SHAPE, **V3, "top_k": 1, "router_normalised": False, "router_scale": 1.0})
    x, router = torch.randn(1, 4, H, dtype=torch.float64), torch.randn(E, H, dtype=torch.float64)
    correction = torch.zeros(E, dtype=torch.float64)
    correction[5] = 10.0
    scores, weights, choices = moe.route(x, router, config, correction=correction)
    assert choices.unique().tolist() == [5]
    assert torch.equal(weights[..., 0], scores[..., 5])
    block = Block(0, config, Unsharded(), 0, torch.empty(0))
    assert "router_correction" not in dict(block.named_parameters())
    assert block.constants == ["layers.0.router_correction"]
    assert not block.router_correction.requires_grad
    assert float(block.router_correction.abs().min()) > 0  # a zero would hide a mistake


def test_a_group_is_as_good_as_its_best_expert_or_its_two_best_together():
    scores = torch.tensor([[[0.9, 0.1, 0.6, 0.5]]], dtype=torch.float64)
    grouped = {**SHAPE, "experts": 4, "top_k": 1, "router_groups": 2}
    for router, expected in (("softmax", 0), ("sigmoid", 2)):
        config = ModelConfig(**{**grouped, "router": router})
        assert moe.best(scores, config, None).flatten().tolist() == [expected]


@pytest.mark.parametrize("activation", ["geglu", "swiglu-clamped"])
def test_gates_are_those_of_gemma_and_of_gpt_oss(activation):
    x = torch.randn(5, 12, dtype=torch.float64) * 6
    gate, value = x[:, :6], x[:, 6:]
    if activation == "geglu":
        cubic = gate + 0.044715 * gate**3
        right = 0.5 * gate * (1 + torch.tanh((2 / torch.pi) ** 0.5 * cubic)) * value
    else:
        gate, value = torch.minimum(gate, torch.tensor(7.0)), value.clip(-7, 7)
        right = (value + 1) * gate / (1 + torch.exp(-1.702 * gate))
        assert (x > 7).any()
    assert torch.allclose(mlp.activate(x, activation), right, rtol=1e-12, atol=1e-14)
