"""The model's switches against torch, Hugging Face's formulas and their own algebra; and what breaks them is
caught.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import differences, run_plan, worst
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import Largest

from glasscluster.base.errors import InputError
from glasscluster.model import gpt
from glasscluster.model.config import ModelConfig
from glasscluster.model.gpt import GPTStage
from glasscluster.model.kernels.flash import algorithm, costs, parts
from glasscluster.model.kernels.flash.operators import flash_attention
from glasscluster.model.kernels.flash.tiles import STRIP, TILE
from glasscluster.model.kernels.layer_norm import layer_norm
from glasscluster.model.kernels.rms_norm import rms_norm, scale_norm
from glasscluster.model.kernels.rope import angles, frequencies, rope, temperature
from glasscluster.model.layers.attention import unfused_attention
from glasscluster.model.layers.latent import predict_cache
from glasscluster.model.layers.position import alibi, buckets, sinusoidal, slopes
from glasscluster.model.parallel import IGNORE
from glasscluster.model.presets import PRESETS
from glasscluster.model.text.data import masked
from glasscluster.sim.run import Cluster
from glasscluster.strategies import assembly
from glasscluster.strategies.context import context_parallel, ulysses
from glasscluster.strategies.data import data_parallel
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge import check
from glasscluster.strategies.layout.tokens import tokens_of
from glasscluster.strategies.loader import Loader
from glasscluster.strategies.plan import make_model, make_plan

TOLERANCE = 1e-10
EPS = 1e-5


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        .to(dtype)
        .requires_grad_()
    )


# ---- norms -------------------------------------------------------------------------------------------------
def plain_scale_norm(x, g, eps):
    return g * x / x.norm(dim=-1, keepdim=True).clamp(min=eps)


NORMS = {
    "rmsnorm": (rms_norm, lambda x, w, eps: F.rms_norm(x, (x.shape[-1],), w, eps), 12),
    "scalenorm": (scale_norm, plain_scale_norm, 1),
    "layernorm without a bias": (
        lambda x, w, eps: layer_norm(x, w, None, eps),
        lambda x, w, eps: F.layer_norm(x, (x.shape[-1],), w, None, eps),
        12,
    ),
}


@pytest.mark.parametrize(("ours", "theirs", "width"), NORMS.values(), ids=NORMS)
def test_norms_are_torch_s_in_float64_with_their_gradients_also_of_what_lies_apart(ours, theirs, width):
    x, w = drawn(4, 3, 5, 12), drawn(width, seed=1)
    for view in (x, x.transpose(0, 2)):
        d_out = drawn(*view.shape, seed=2).detach()
        found, expected = (with_gradients(f, view, (x, w), d_out) for f in (ours, theirs))
        for a, b in zip(found, expected, strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-13)
    assert torch.autograd.gradcheck(lambda x, w: ours(x, w, EPS), (drawn(3, 12), w))


def with_gradients(f, view, inputs, d_out):
    y = f(view, inputs[1], EPS)
    return y, *torch.autograd.grad(y, inputs, d_out, retain_graph=True)


def test_a_scale_norm_of_nearly_nothing_divides_by_epsilon_and_its_gradient_knows():
    x, g = (drawn(3, 4) * 1e-9).detach().requires_grad_(), drawn(1)
    d_out = drawn(3, 4, seed=3).detach()
    for a, b in zip(
        *(with_gradients(f, x, (x, g), d_out) for f in (scale_norm, plain_scale_norm)), strict=True
    ):
        assert torch.allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("ours", "theirs", "width"), NORMS.values(), ids=NORMS)
def test_in_narrow_types_a_norm_errs_at_most_twice_as_much_as_torch_s(ours, theirs, width, dtype):
    x, w, d_out = (
        drawn(64, 12, dtype=dtype),
        drawn(width, seed=1, dtype=dtype),
        drawn(64, 12, seed=2, dtype=dtype).detach(),
    )
    exact = [t.detach().double().requires_grad_() for t in (x, w)]
    truth = with_gradients(theirs, exact[0], exact, d_out.double())
    mine, plain = (with_gradients(f, x, (x, w), d_out) for f in (ours, theirs))
    for a, b, true in zip(mine, plain, truth, strict=True):
        assert a.dtype == dtype
        ulp = torch.finfo(dtype).eps * true.abs().max().item()
        assert (a.double() - true).abs().max().item() <= 2 * (b.double() - true).abs().max().item() + ulp


# ---- rotary positions --------------------------------------------------------------------------------------
def model_of(d: int, **options: Any) -> ModelConfig:
    return make_model("tiny", hidden=d, heads=1, position="rope", **options)


LAYOUTS = [
    ("half", "none"),
    ("interleaved", "none"),
    ("half", "interpolation"),
    ("interleaved", "ntk"),
    ("half", "yarn"),
]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    st.integers(1, 8),
    st.integers(0, 4000),
    st.integers(0, 4000),
    st.integers(0, 4000),
    st.sampled_from(LAYOUTS),
)
def test_f4_scores_of_turned_queries_and_keys_depend_only_on_the_distance(half, m, n, shift, how):
    config = model_of(2 * half, rope_layout=how[0], rope_scaling=how[1], rope_factor=4.0, seq=512)
    q, k = (drawn(1, 1, 1, 2 * half, seed=s).detach() for s in (0, 1))

    def score(m: int, n: int) -> float:
        return float((rope(q, (m, 1), config) * rope(k, (n, 1), config)).sum())

    assert score(m, n) == pytest.approx(score(m + shift, n + shift), abs=1e-11)
    size = float(rope(q, (m, 1), config).norm() / q.norm())
    assert size == pytest.approx(temperature(how[1], 4.0), rel=1e-12)  # a turn changes no length


def test_rope_turns_pair_i_by_m_theta_i_written_out_with_complex_numbers():
    config, x = model_of(8, rope_layout="interleaved", rope_theta=100.0), drawn(2, 6, 3, 8)
    at = [4, 5, 6, 20, 21, 22]
    found = rope(x, (4, 3, 20, 3), config)
    angle = torch.tensor(at, dtype=torch.float64)[:, None] * 100.0 ** (
        -torch.arange(0, 8, 2, dtype=torch.float64) / 8
    )
    rotated = (
        torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angle), angle)[:, None]
    )
    assert torch.allclose(found, torch.view_as_real(rotated).flatten(-2), rtol=1e-12)
    assert torch.autograd.gradcheck(lambda x: rope(x, (4, 3, 20, 3), config), (x,))


def test_the_two_layouts_pair_the_same_columns_in_another_order():
    x, order = drawn(2, 5, 3, 8), torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    half, neighbours = (
        rope(t, (0, 5), model_of(8, rope_layout=layout))
        for t, layout in ((x, "half"), (x[..., order], "interleaved"))
    )
    assert torch.allclose(half[..., order], neighbours, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_turning_in_narrow_types_rounds_once(dtype):
    x, config = drawn(2, 30, 3, 8, dtype=dtype), model_of(8)
    exact, found = rope(x.double(), (500, 30), config), rope(x, (500, 30), config)
    assert found.dtype == dtype
    assert (found.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("scaling", ["none", "interpolation", "ntk", "yarn"])
def test_frequencies_are_hugging_face_s(scaling):
    rotary = pytest.importorskip("transformers.modeling_rope_utils")
    from transformers import LlamaConfig

    kind = {"none": "default", "interpolation": "linear", "ntk": "dynamic", "yarn": "yarn"}[scaling]
    theirs = LlamaConfig(hidden_size=256, num_attention_heads=4, max_position_embeddings=512)
    theirs.rope_parameters = {
        "rope_type": kind,
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 512,
    }
    ours = torch.tensor(frequencies(64, 10000.0, scaling, 4.0, 512))
    if scaling == "none":
        found, warm = 10000.0 ** (-torch.arange(0, 64, 2) / 64), 1.0
    elif (
        scaling == "ntk"
    ):  # theirs grows with the length seen: 4 n - 3 times the base's at n times the trained length
        found, warm = rotary.ROPE_INIT_FUNCTIONS[kind](theirs, "cpu", seq_len=int(512 * 7 / 4))
    else:
        found, warm = rotary.ROPE_INIT_FUNCTIONS[kind](theirs, "cpu")
    assert torch.allclose(ours, found, rtol=1e-5)
    assert warm == pytest.approx(temperature(scaling, 4.0))


def rope_of_hugging_face(
    kind: str, d: int, theta: float, longest: int, **said: Any
) -> tuple[list[float], float]:
    """Their angles and what they multiply by, of one set of parameters."""
    rotary = pytest.importorskip("transformers.modeling_rope_utils")
    from transformers import LlamaConfig

    theirs = LlamaConfig(hidden_size=d, num_attention_heads=1, max_position_embeddings=longest)
    theirs.rope_parameters = {"rope_type": kind, "rope_theta": theta, **said}
    found, warm = rotary.ROPE_INIT_FUNCTIONS[kind](theirs, "cpu")
    return found.tolist(), warm


HALVES, BASES = st.integers(2, 64), st.sampled_from([2.5, 100.0, 1e4, 5e5, 1e6])
LENGTHS, FACTORS = st.integers(1, 300_000), st.floats(1, 64)


def assert_same_rope(config: ModelConfig, d: int, theirs: tuple[list[float], float]) -> None:
    theta, scale = angles(config, d)
    # they compute in float32, in which a large power of the base is off by some units in the last place
    assert theta == pytest.approx(theirs[0], rel=2e-5)
    assert scale == pytest.approx(theirs[1], rel=1e-12)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(HALVES, BASES, LENGTHS, FACTORS, st.floats(0.05, 8), st.floats(1.01, 8))
def test_llama3_s_angles_are_hugging_face_s_for_any_parameters(half, base, trained, factor, low, times):
    said = {
        "low_freq_factor": low,
        "high_freq_factor": low * times,
        "original_max_position_embeddings": trained,
    }
    theirs = rope_of_hugging_face("llama3", 2 * half, base, trained, factor=factor, **said)
    bounds = {"rope_low_factor": low, "rope_high_factor": low * times}
    config = model_of(
        2 * half,
        rope_scaling="llama3",
        rope_factor=factor,
        rope_trained=trained,
        rope_theta=base,
        **bounds,
    )
    assert_same_rope(config, 2 * half, theirs)


WEIGHTS = st.sampled_from([None, 0.707, 1.0, 1.5])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    *(HALVES, BASES, LENGTHS, FACTORS, st.floats(0.1, 4), st.floats(1.1, 40), st.booleans()),
    *(st.sampled_from([None, 0.5, 1.3]), WEIGHTS, WEIGHTS),
)
def test_yarn_s_angles_and_factor_are_hugging_face_s_for_any_parameters(
    half, base, trained, factor, slow, times, truncate, given_factor, weight, weight_of_all
):
    said = {"beta_slow": slow, "beta_fast": slow * times, "truncate": truncate}
    said |= {"attention_factor": given_factor, "mscale": weight, "mscale_all_dim": weight_of_all}
    theirs = rope_of_hugging_face(
        *("yarn", 2 * half, base, trained), factor=factor, original_max_position_embeddings=trained, **said
    )
    ours = given_factor
    if ours is None and weight and weight_of_all:
        ours = temperature("yarn", factor, weight) / temperature("yarn", factor, weight_of_all)
    config = model_of(
        2 * half,
        rope_scaling="yarn",
        rope_factor=factor,
        rope_trained=trained,
        rope_theta=base,
        rope_beta_slow=slow,
        rope_beta_fast=slow * times,
        rope_truncate=truncate,
        rope_attention_factor=ours,
    )
    assert_same_rope(config, 2 * half, theirs)


PUBLISHED_ROPE: dict[str, tuple[str, int, float, dict[str, Any], dict[str, Any]]] = {
    # kind, d, base, what config.json says, our fields
    "Llama 3.1": (
        *("llama3", 128, 5e5),
        {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        {"rope_factor": 8.0, "rope_trained": 8192},
    ),
    "gpt-oss": (
        *("yarn", 64, 150_000.0),
        {
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
        {"rope_factor": 32.0, "rope_trained": 4096, "rope_truncate": False},
    ),
    "DeepSeek-V3": (
        *("yarn", 64, 10_000.0),
        {
            "factor": 40.0,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
        },
        {"rope_factor": 40.0, "rope_trained": 4096, "rope_attention_factor": 1.0},
    ),
}


@pytest.mark.parametrize("published", PUBLISHED_ROPE)
def test_published_rope_parameters_can_be_said(published):
    kind, d, base, said, ours = PUBLISHED_ROPE[published]
    config = model_of(d, rope_scaling=kind, rope_theta=base, **ours)
    assert_same_rope(config, d, rope_of_hugging_face(kind, d, base, 163_840, **said))


def test_scaled_frequencies_keep_what_their_papers_say():
    plain, d, s = frequencies(64, 10000.0), 64, 8.0
    stretched = frequencies(64, 10000.0, "ntk", s)
    assert stretched[0] == plain[0] == 1.0
    assert stretched[-1] == pytest.approx(plain[-1] / s)
    assert frequencies(64, 10000.0, "interpolation", s) == tuple(t / s for t in plain)
    yarn = frequencies(d, 10000.0, "yarn", s, 4096)
    turns = [4096 * t / (2 * math.pi) for t in plain]
    assert max(turns) > 40
    assert min(turns) < 0.8
    assert all(y == t for y, t, r in zip(yarn, plain, turns, strict=True) if r > 40)
    assert all(y == pytest.approx(t / s) for y, t, r in zip(yarn, plain, turns, strict=True) if r < 0.8)
    assert any(t / s < y < t for y, t in zip(yarn, plain, strict=True))
    assert temperature("yarn", 4.0) == 0.1 * math.log(4) + 1


def test_sines_are_the_paper_s():
    table = sinusoidal(50, 10)
    assert table[7, 4] == pytest.approx(math.sin(7 / 10000 ** (4 / 10)))
    assert table[49, 9] == pytest.approx(math.cos(49 / 10000 ** (8 / 10)))


# ---- shapes ------------------------------------------------------------------------------------------------
SWITCHES: tuple[dict[str, Any], ...] = (
    {
        "norm": "rmsnorm",
        "bias": False,
        "activation": "swiglu",
        "position": "rope",
        "kv_heads": 2,
        "tied": False,
    },
    {"norm": "scalenorm", "norm_position": "sandwich", "qk_norm": True, "position": "none"},
    {"norm_position": "post", "qk_norm": True, "position": "sinusoidal"},
    {"objective": "masked", "norm_position": "post", "position": "relative"},
    {"objective": "masked", "bias": False, "norm": "rmsnorm", "position": "alibi", "tied": False},
    {"kv_latent": 10, "q_latent": 8, "position": "rope", "norm": "rmsnorm", "bias": False},
    {"kv_latent": 10, "position": "rope", "rope_dim": 6},
    {"kv_latent": 10, "q_latent": 8, "position": "alibi"},
    {"bias": False, "qkv_bias": True, "qkv": "separate", "kv_heads": 2},
    {"norm_position": "sandwich", "bias": False, "qkv": "separate", "experts": 4, "shared_ffn": 8},
)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_the_parameter_count_is_that_of_the_tensors_with_any_switch(switches):
    model = make_model("tiny", layers=3, hidden=24, heads=4, vocab=50, seq=10, **switches)
    assert sum(p.numel() for p in GPTStage(model).parameters()) == model.parameters()


PUBLISHED = {
    "gpt2-small": 124_439_808,
    "llama2-7b": 6_738_415_616,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3-405b": 405_853_388_800,
    "mixtral-8x7b": 46_702_792_704,
    "bert-base": 109_514_298,  # with the head of masked language modelling
}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_as_many_parameters_as_its_tensors_and_as_published(preset):
    model = make_model(preset)
    assert sum(p.numel() for p in GPTStage(model, device="meta").parameters()) == model.parameters()
    assert model.parameters() == PUBLISHED.get(preset, model.parameters())


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"position": "rope", "hidden": 12, "heads": 4}, "position"),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
        ({"prefix": 2, "objective": "masked"}, "prefix"),
        ({"prefix": 64}, "prefix"),
        ({"position": "relative", "relative_distance": 8}, "relative_distance"),
        ({"q_latent": 8}, "q_latent"),
        ({"rope_dim": 8}, "rope_dim"),
        ({"kv_latent": 8, "kv_heads": 2}, "kv_heads"),
        ({"kv_latent": 8, "qk_norm": True}, "qk_norm"),
        ({"kv_latent": 8, "position": "rope", "rope_dim": 3}, "rope_dim"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_its_field(options, field):
    with pytest.raises(InputError) as said:
        make_model("tiny", **options)
    assert said.value.field == field
    assert said.value.nearest is not None


# ---- every strategy: tests/plans.py. Here: what breaks them is caught --------------------------------------
SHAPE: dict[str, Any] = {"layers": 2, "hidden": 16, "heads": 4, "seq": 8, "vocab": 42}


@pytest.fixture(autouse=True)
def fresh_reference():
    check._reference.cache_clear()
    yield
    check._reference.cache_clear()


def judge(switches: dict[str, Any], **options: Any) -> float:
    plan, model = (
        make_plan(**{"global_batch": 4, "lr": 1e-2, **options}),
        make_model("tiny", **{**SHAPE, **switches}),
    )
    plan.check(model)
    return worst(differences(plan, model, steps=1))


@pytest.mark.parametrize(
    "options",
    [{"cp": 2}, {"cp": 2, "context": "ulysses"}, {"cp": 2, "tp": 2, "sequence_parallel": True}],
    ids=str,
)
def test_turning_by_positions_that_are_not_the_rank_s_is_caught(monkeypatch, options):
    assert judge({"position": "rope"}, **options) <= TOLERANCE
    monkeypatch.setattr(gpt, "runs", lambda positions, each: (0, len(positions)))
    assert judge({"position": "rope"}, **options) > TOLERANCE


def test_turning_by_a_distance_too_much_changes_nothing_because_only_distances_count(monkeypatch):
    honest = gpt.runs
    monkeypatch.setattr(
        gpt, "runs", lambda positions, each: honest(tuple(p + 100 * (each == 1) for p in positions), each)
    )
    reference = GPTStage(make_model("tiny", **SHAPE, position="rope"), dtype=torch.float64)
    tokens = torch.arange(8)[None] % 42
    shifted = reference(tokens, tokens)
    monkeypatch.setattr(gpt, "runs", honest)
    assert torch.allclose(reference(tokens, tokens), shifted, rtol=1e-12)


@pytest.mark.parametrize("zero", [0, 3])
def test_norms_of_queries_whose_gradient_is_not_summed_over_heads_are_caught(monkeypatch, zero):
    options = {"tp": 2, "dp": 2, "zero": zero}
    assert judge({"qk_norm": True}, **options) <= TOLERANCE
    monkeypatch.setattr(assembly, "sum_over_heads", lambda parallel, units, partial: None)
    assert judge({"qk_norm": True}, **options) > TOLERANCE


def test_the_sum_over_heads_is_one_message_of_the_shared_norms_alone():
    plan, model = make_plan(tp=2, precision="fp64"), make_model("tiny", **SHAPE, qk_norm=True)
    graph = run_plan(plan, model, "dry").graph
    assert (
        sum(graph.bytes_sent(label="what all heads share")) == 2 * (2 - 1) * SHAPE["layers"] * 2 * 2 * 4 * 8
    )  # q and k, weight and bias


# ---- what is added to scores, and who sees whom ------------------------------------------------------------
def textbook(q, k, v, causal: bool, prefix: int, bias: torch.Tensor | None) -> torch.Tensor:
    """torch's attention with everything written down: an N x n mask and an N x n bias, key heads really
    repeated.
    """
    n, keys = q.shape[2], k.shape[2]
    i, j = torch.arange(n)[:, None], torch.arange(keys)[None]
    added = torch.zeros(n, keys, dtype=q.dtype) if bias is None else bias.to(q.dtype)[:, i - j + keys - 1]
    hidden = (j > i) & (j >= prefix) if causal else torch.zeros(n, keys, dtype=torch.bool)
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, added.masked_fill(hidden, -torch.inf))


def inputs(
    b: int, a: int, group: int, n: int, d: int, dtype: torch.dtype = torch.float64
) -> list[torch.Tensor]:
    wider = torch.float32 if dtype == torch.bfloat16 else dtype
    return [
        drawn(b, a * group, n, d, dtype=dtype),
        *(drawn(b, a, n, d, seed=s, dtype=dtype) for s in (1, 2)),
        drawn(a * group, 2 * n - 1, seed=3, dtype=wider),
    ]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 2),
    st.integers(1, 2),
    st.sampled_from([1, 3]),
    st.integers(1, 40),
    st.booleans(),
    st.integers(0, 12),
    st.booleans(),
    st.sampled_from([flash_attention, unfused_attention]),
)
def test_any_mask_and_bias_give_torch_s_output_and_gradients(b, a, group, n, causal, prefix, biased, attend):
    q, k, v, bias = inputs(b, a, group, n, 3)
    prefix, given_bias, wanted = (
        min(prefix, n - 1) if causal else 0,
        bias if biased else None,
        (q, k, v, *([bias] if biased else [])),
    )
    d_out = drawn(*q.shape, seed=4).detach()
    found, expected = (
        (out, *torch.autograd.grad(out, wanted, d_out))
        for out in (
            attend(q, k, v, causal, prefix=prefix, bias=given_bias),
            textbook(q, k, v, causal, prefix, given_bias),
        )
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-11)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 2),
    st.sampled_from([1, 2]),
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 9),
    st.data(),
)
def test_a_biased_kernel_in_tiles_of_any_size_is_the_textbook_s_and_its_traffic_is_the_formula_s(
    a, group, n, keys, tile, data
):
    causal = n == keys and data.draw(st.booleans())
    q, k, v, d_out = (
        drawn(2, h, m, 3, seed=s)
        for s, (h, m) in enumerate([(a * group, n), (a, keys), (a, keys), (a * group, n)])
    )
    bias = drawn(a * group, n + keys - 1, seed=5)
    expected = textbook(q, k, v, causal, 0, bias)
    expected = (expected, *torch.autograd.grad(expected, (q, k, v, bias), d_out))
    moved = {True: [0, 0], False: [0, 0]}
    q, k, v, d_out, bias = (x.detach() for x in (q, k, v, d_out, bias))
    for biased in (True, False):
        numbers, sums = (bias, torch.empty_like(bias)) if biased else (None, None)

        def meter(way: int, nbytes: int, biased=biased) -> None:
            moved[biased][way] += nbytes

        out, lse = algorithm.forward(
            q, k, v, causal, tile, lambda _what, x, meter=meter: meter(0, x), bias=numbers
        )
        found = algorithm.backward(
            d_out,
            q,
            k,
            v,
            out,
            lse,
            causal,
            tile,
            lambda _what, x, meter=meter: meter(1, x),
            bias=numbers,
            d_bias=sums,
        )
        if sums is not None:
            for ours, theirs in zip((out, *found, sums), expected, strict=True):
                assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-11)
    forward, backward = costs.bias_steps(n, causal, tile, keys)
    size = 8 * a * group
    assert moved[True][0] - moved[False][0] == size * forward
    assert moved[True][1] - moved[False][1] == size * (3 * backward + n + keys - 1)


def biased_program(gpu, learned: bool, causal: bool, prefix: int):
    q, k, v, bias = inputs(1, 2, 2, 150, 4, torch.float32)
    bias = bias if learned else bias.detach()
    flash_attention(q, k, v, causal, prefix, bias).sum().backward()


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize(("causal", "prefix"), [(True, 0), (False, 0), (True, 40)])
def test_the_recorded_costs_of_a_biased_kernel_are_those_of_a_counting_run(learned, causal, prefix):
    graph = Cluster("classroom", 1, "threads").run(biased_program, learned, causal, prefix).graph
    q, k, v, bias = (x.detach() for x in inputs(1, 2, 2, 150, 4, torch.float32))
    counted = {"forward": 0, "backward": 0}
    for part in parts.whole(150, causal, prefix):
        mine = bias[:, parts.distances(part, range(150), range(150), 150)]
        x = q[:, :, part.queries], k[:, :, part.keys], v[:, :, part.keys]
        for way in counted:

            def meter(_what: str, nbytes: int, way=way) -> None:
                counted[way] += nbytes

            if way == "forward":
                out, lse = algorithm.forward(*x, part.causal, meter=meter, bias=mine)
            else:
                sums = torch.empty_like(mine) if learned else None
                algorithm.backward(
                    torch.ones_like(x[0]), *x, out, lse, part.causal, meter=meter, bias=mine, d_bias=sums
                )
    for way, total in counted.items():
        rows = [
            r for r in range(len(graph)) if graph.names[graph.op[r]] == f"glasscluster.flash_biased_{way}"
        ]
        assert len(rows) == 1 + bool(prefix)
        assert sum(int(graph.bytes[r]) for r in rows) == total


def test_a_bias_never_makes_a_tensor_of_n_by_n():
    n, d = 1024, 8
    q, k, v, bias = inputs(1, 1, 1, n, d)
    with Largest() as seen:
        flash_attention(q, k, v, True, 100, bias).sum().backward()
    assert seen.numel <= max(n * d, 2 * TILE**2 * STRIP + 2 * n * TILE)


def test_buckets_are_hugging_face_s_t5():
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5").T5Attention
    for both in (True, False):
        for count, largest in ((32, 128), (8, 20), (6, 6)):
            theirs = t5._relative_position_bucket(
                -torch.arange(-199, 200), both, count, largest
            )  # theirs is key minus query
            assert torch.equal(buckets(200, count, largest, both), theirs)


def test_slopes_are_the_paper_s():
    assert slopes(8) == [2.0**-i for i in range(1, 9)]
    assert slopes(16)[:2] == [2**-0.5, 2**-1.0]
    assert slopes(12) == slopes(8) + slopes(16)[::2][:4]
    assert torch.equal(alibi(3, 8)[0], torch.tensor([-1.0, -0.5, 0.0, -0.5, -1.0], dtype=torch.float64))


@pytest.mark.parametrize("kind", ["ring", "striped", "zigzag"])
@pytest.mark.parametrize(("causal", "prefix"), [(True, 0), (True, 5), (True, 11), (False, 0)])
@pytest.mark.parametrize("jumps", [False, True])
def test_the_parts_of_all_ranks_are_what_the_mask_shows_each_pair_once(kind, causal, prefix, jumps):
    ranks, n = 3, 4
    seen = torch.zeros(ranks * n, ranks * n, dtype=torch.int64)
    for rank, source in itertools.product(range(ranks), repeat=2):
        mine, theirs = (tokens_of(kind, r, ranks, ranks * n) for r in (rank, source))
        for part in context_parallel.parts(kind, rank, source, ranks, n, causal, prefix, jumps):
            rows, cols = torch.tensor(list(mine))[part.queries], torch.tensor(list(theirs))[part.keys]
            square = torch.ones(len(rows), len(cols), dtype=torch.int64)
            seen[rows[:, None], cols[None]] += square.tril() if part.causal else square
            if jumps:
                columns = range(2 * ranks * n - 1)[parts.distances(part, mine, theirs, ranks * n)]
                apart = rows[:, None] - cols[None] + ranks * n - 1
                at = torch.arange(len(rows))[:, None] - torch.arange(len(cols))[None] + len(cols) - 1
                assert torch.equal(torch.tensor(list(columns))[at], apart)
    i, j = torch.arange(ranks * n)[:, None], torch.arange(ranks * n)[None]
    assert torch.equal(seen, ((j <= i) | (j < prefix) | (not causal)).long().expand_as(seen))


@pytest.mark.parametrize("position", ["relative", "alibi"])
@pytest.mark.parametrize(
    "options", [{"tp": 2}, {"cp": 2, "context": "zigzag"}, {"cp": 2, "context": "ulysses"}], ids=str
)
def test_numbers_of_other_heads_or_distances_are_caught(monkeypatch, position, options):
    switches = {"position": position, "relative_buckets": 6, "relative_distance": 6, "init_std": 0.2}
    assert judge(switches, **options) <= TOLERANCE
    if "tp" in options:
        honest = gpt.Block.score_bias
        monkeypatch.setattr(
            gpt.Block, "score_bias", lambda self, tokens: honest(self, tokens).roll(self.parallel.rank, 0)
        )
    elif options["context"] == "zigzag":
        monkeypatch.setattr(
            context_parallel, "distances", lambda part, q, k, s: parts.distances(part, range(s), range(s), s)
        )
    else:
        honest_chunk = ulysses.UlyssesContext.attend

        def first_heads(self, attention, q, k, v, causal, prefix, bias, *more):
            return honest_chunk(
                self, attention, q, k, v, causal, prefix, torch.cat([bias[: len(bias) // 2]] * 2), *more
            )

        monkeypatch.setattr(ulysses.UlyssesContext, "attend", first_heads)
    assert judge(switches, **options) > TOLERANCE


def test_a_table_whose_gradient_is_not_summed_over_dp_is_caught(monkeypatch):
    switches = {"position": "relative", "relative_buckets": 6, "relative_distance": 6}
    honest = data_parallel.DataParallel.finish

    def unsummed(self):
        for unit in self.units:
            for m in unit.members:
                if m.name.endswith("relative_table") and unit.comm.rank:
                    unit.grad[m.start : m.stop] *= 2  # as if the other rank's had not come
        honest(self)

    assert judge(switches, dp=2, overlap=False) <= TOLERANCE
    monkeypatch.setattr(data_parallel.DataParallel, "finish", unsummed)
    assert judge(switches, dp=2, overlap=False) > TOLERANCE


# ---- latents -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("q_latent", [0, 10])
def test_latent_attention_is_the_paper_s_equations_head_by_head(q_latent):
    model = make_model(
        "tiny",
        **SHAPE,
        kv_latent=12,
        q_latent=q_latent,
        position="rope",
        norm="rmsnorm",
        bias=False,
        rope_dim=2,
    )
    block, x = GPTStage(model, dtype=torch.float64).layers["0"], drawn(2, 8, 16).detach()
    d, d_r, a, s = 4, 2, 4, 8
    latents = x @ block.down_to_latents_weight.T
    c = F.rms_norm(latents[..., :12], (12,), block.kv_latent_norm_weight, 1e-5)
    k_rotary = rope(latents[..., None, 12:14], (0, s), model)[:, :, 0]
    c_q = F.rms_norm(latents[..., 14:], (10,), block.q_latent_norm_weight, 1e-5) if q_latent else x
    heads = []
    for head in range(a):
        kv, q = (
            w[head * n : (head + 1) * n]
            for w, n in ((block.kv_up_weight, 2 * d), (block.q_up_weight, d + d_r))
        )
        k_c, v, q_c, q_r = (
            c @ kv[:d].T,
            c @ kv[d:].T,
            c_q @ q[:d].T,
            rope((c_q @ q[d:].T)[:, :, None], (0, s), model)[:, :, 0],
        )
        scores = (q_c @ k_c.mT + q_r @ k_rotary.mT) / math.sqrt(d + d_r)
        heads.append(scores.masked_fill(torch.ones(s, s).triu(1).bool(), -torch.inf).softmax(-1) @ v)
    assert torch.allclose(block.attend(x, None), torch.cat(heads, -1), rtol=1e-11, atol=1e-13)


def test_f3_a_latent_cache_is_that_of_a_few_heads():
    llama = make_model("llama2-7b")
    full = 2 * llama.layers * llama.heads * llama.head_dim * 4096 * 2
    assert full == 2 * 1024**3
    latent = predict_cache(llama.layers, 4 * llama.head_dim, llama.head_dim // 2, 4096, 1, 2)
    assert latent / full == 4.5 / (
        2 * llama.heads
    )  # table 1: what grouped queries with 2.25 groups would keep


@pytest.mark.parametrize("zero", [0, 3])
def test_a_way_down_to_latents_whose_gradient_is_not_summed_over_heads_is_caught(monkeypatch, zero):
    switches, options = (
        {"kv_latent": 12, "q_latent": 10, "position": "rope"},
        {"tp": 2, "dp": 2, "zero": zero},
    )
    assert judge(switches, **options) <= TOLERANCE
    monkeypatch.setattr(assembly, "sum_over_heads", lambda parallel, units, partial: None)
    assert judge(switches, **options) > TOLERANCE


# ---- what is learned ---------------------------------------------------------------------------------------
def test_of_each_sequence_15_percent_are_predicted_and_of_them_80_10_10_are_hidden_changed_and_kept():
    tokens = torch.randint(0, 99, (400, 200), generator=torch.Generator().manual_seed(0))
    inputs, targets = masked(tokens, 100, 3, 7)
    chosen = targets != IGNORE
    assert (chosen.sum(1) == 30).all()
    assert torch.equal(targets[chosen], tokens[chosen])
    assert torch.equal(inputs[~chosen], tokens[~chosen])
    hidden, kept = (inputs[chosen] == 99).double().mean(), (inputs[chosen] == tokens[chosen]).double().mean()
    assert hidden.item() == pytest.approx(0.8, abs=0.02)
    assert kept.item() == pytest.approx(0.1, abs=0.02)
    again, other = masked(tokens[:2], 100, 3, 7), masked(tokens[:2], 100, 4, 7)
    assert torch.equal(again[0], inputs[:2])  # a sequence's masks do not depend on how many there are
    assert not torch.equal(other[1], targets[:2])
    assert masked(tokens[:1, :3], 100, 0, 0)[1].ne(IGNORE).sum() == 1


@pytest.mark.parametrize("sequences", [1, 3])
def test_a_prefix_is_given_and_not_predicted_and_its_last_token_predicts_the_first_behind_it(sequences):
    job = Job(make_plan(global_batch=sequences), make_model("tiny", seq=8, prefix=3))
    tokens, targets = job.batch(0)
    assert tokens.min() >= 0
    assert (targets[:, :2] == IGNORE).all()
    assert torch.equal(targets[:, 2:-1], tokens[:, 3:])


def test_a_token_of_a_prefix_sees_those_behind_it_and_no_other_does():
    model = GPTStage(make_model("tiny", **SHAPE, prefix=3), last=False, dtype=torch.float64)
    tokens = torch.arange(8)[None]
    for changed, seen_from in ((2, 0), (1, 0), (3, 3), (6, 6)):
        other = tokens.clone()
        other[0, changed] = 30
        moved = (model(tokens) - model(other)).abs().amax(-1)[0] > 0
        assert moved.tolist() == [i >= seen_from for i in range(8)]


@pytest.mark.parametrize(
    "options",
    [{"cp": 4}, {"dp": 2, "tp": 2, "sequence_parallel": True}, {"pp": 2, "schedule": "zb-h1"}],
    ids=str,
)
def test_a_masked_model_whose_ranks_average_their_own_loss_is_caught(monkeypatch, options):
    switches = {"objective": "masked", "norm_position": "post", "dropout": 0.1}
    assert judge(switches, **options) <= TOLERANCE
    honest = Loader.load

    def wrong(self, step):
        inputs, targets, count = honest(self, step)
        all_tokens = inputs[0].numel() if self.has_loss else 0  # as a causal model has it
        return inputs, targets, count * 0 + all_tokens

    monkeypatch.setattr(Loader, "load", wrong)
    assert judge(switches, **options) > TOLERANCE


def test_token_types_are_those_of_the_rank_s_tokens(monkeypatch):
    switches = {"objective": "masked", "norm_position": "post"}
    honest = gpt.Embedding.forward
    monkeypatch.setattr(
        gpt.Embedding,
        "forward",
        lambda self, tokens, draw=None, types=None: honest(self, tokens, draw, self.types[: tokens.shape[1]]),
    )
    assert judge(switches, dp=2) <= TOLERANCE
    assert judge(switches, cp=2) > TOLERANCE
