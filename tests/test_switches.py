"""The model's switches against torch, Hugging Face's formulas and their own algebra; and what breaks them is caught."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import differences, run_plan, worst
from hypothesis import given, settings
from hypothesis import strategies as st

from glasscluster.model import gpt
from glasscluster.model.config import PRESETS, ModelConfig
from glasscluster.model.gpt import GPTStage
from glasscluster.model.layer_norm import layer_norm
from glasscluster.model.position import sinusoidal
from glasscluster.model.rms_norm import rms_norm, scale_norm
from glasscluster.model.rope import frequencies, rope, temperature
from glasscluster.sim.errors import ScenarioError
from glasscluster.strategies import check, trainer
from glasscluster.strategies.plan import make_model, make_plan

TOLERANCE = 1e-10
EPS = 1e-5


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).requires_grad_()


# ---- norms ---------------------------------------------------------------------------------------------------------
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
    for a, b in zip(*(with_gradients(f, x, (x, g), d_out) for f in (scale_norm, plain_scale_norm)), strict=True):
        assert torch.allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("ours", "theirs", "width"), NORMS.values(), ids=NORMS)
def test_in_narrow_types_a_norm_errs_at_most_twice_as_much_as_torch_s(ours, theirs, width, dtype):
    x, w, d_out = drawn(64, 12, dtype=dtype), drawn(width, seed=1, dtype=dtype), drawn(64, 12, seed=2, dtype=dtype).detach()
    exact = [t.detach().double().requires_grad_() for t in (x, w)]
    truth = with_gradients(theirs, exact[0], exact, d_out.double())
    mine, plain = (with_gradients(f, x, (x, w), d_out) for f in (ours, theirs))
    for a, b, true in zip(mine, plain, truth, strict=True):
        assert a.dtype == dtype
        ulp = torch.finfo(dtype).eps * true.abs().max().item()
        assert (a.double() - true).abs().max().item() <= 2 * (b.double() - true).abs().max().item() + ulp


# ---- rotary positions ----------------------------------------------------------------------------------------------
def model_of(d: int, **options: Any) -> ModelConfig:
    return make_model("tiny", hidden=d, heads=1, position="rope", **options)


LAYOUTS = [("half", "none"), ("interleaved", "none"), ("half", "interpolation"), ("interleaved", "ntk"), ("half", "yarn")]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 8), st.integers(0, 4000), st.integers(0, 4000), st.integers(0, 4000), st.sampled_from(LAYOUTS))
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
    angle = torch.tensor(at, dtype=torch.float64)[:, None] * 100.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angle), angle)[:, None]
    assert torch.allclose(found, torch.view_as_real(turned).flatten(-2), rtol=1e-12)
    assert torch.autograd.gradcheck(lambda x: rope(x, (4, 3, 20, 3), config), (x,))


def test_the_two_layouts_pair_the_same_columns_in_another_order():
    x, order = drawn(2, 5, 3, 8), torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    half, neighbours = (rope(t, (0, 5), model_of(8, rope_layout=layout)) for t, layout in ((x, "half"), (x[..., order], "interleaved")))
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
        "rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 512,
    }  # fmt: skip
    ours = torch.tensor(frequencies(64, 10000.0, scaling, 4.0, 512))
    if scaling == "none":
        found, warm = 10000.0 ** (-torch.arange(0, 64, 2) / 64), 1.0
    elif scaling == "ntk":  # theirs grows with the length seen: 4 n - 3 times the base's at n times the trained length
        found, warm = rotary.ROPE_INIT_FUNCTIONS[kind](theirs, "cpu", seq_len=int(512 * 7 / 4))
    else:
        found, warm = rotary.ROPE_INIT_FUNCTIONS[kind](theirs, "cpu")
    assert torch.allclose(ours, found, rtol=1e-5)
    assert warm == pytest.approx(temperature(scaling, 4.0))


def test_scaled_frequencies_keep_what_their_papers_say():
    plain, d, s = frequencies(64, 10000.0), 64, 8.0
    stretched = frequencies(64, 10000.0, "ntk", s)
    assert stretched[0] == plain[0] == 1.0
    assert stretched[-1] == pytest.approx(plain[-1] / s)
    assert frequencies(64, 10000.0, "interpolation", s) == tuple(t / s for t in plain)
    yarn = frequencies(d, 10000.0, "yarn", s, 4096)
    turns = [4096 * t / (2 * math.pi) for t in plain]
    assert all(y == t for y, t, r in zip(yarn, plain, turns, strict=True) if r > 40)
    assert all(y == pytest.approx(t / s) for y, t, r in zip(yarn, plain, turns, strict=True) if r < 0.8)
    assert any(t / s < y < t for y, t in zip(yarn, plain, strict=True))
    assert temperature("yarn", 4.0) == 0.1 * math.log(4) + 1


def test_sines_are_the_paper_s():
    table = sinusoidal(50, 10)
    assert table[7, 4] == pytest.approx(math.sin(7 / 10000 ** (4 / 10)))
    assert table[49, 9] == pytest.approx(math.cos(49 / 10000 ** (8 / 10)))


# ---- shapes --------------------------------------------------------------------------------------------------------
SWITCHES: tuple[dict[str, Any], ...] = (
    {"norm": "rmsnorm", "bias": False, "activation": "swiglu", "position": "rope", "kv_heads": 2, "tied": False},
    {"norm": "scalenorm", "norm_position": "sandwich", "qk_norm": True, "position": "none"},
    {"norm_position": "post", "qk_norm": True, "position": "sinusoidal"},
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
}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_as_many_parameters_as_its_tensors_and_as_published(preset):
    model = make_model(preset)
    assert sum(p.numel() for p in GPTStage(model, device="meta").parameters()) == model.parameters()
    assert model.parameters() == PUBLISHED.get(preset, model.parameters())


@pytest.mark.parametrize(
    ("options", "field"),
    [({"position": "rope", "hidden": 12, "heads": 4}, "position"), ({"rope_scaling": "yarn"}, "rope_scaling")],
    ids=str,
)
def test_what_cannot_be_is_refused_by_its_field(options, field):
    with pytest.raises(ScenarioError, match="nearest valid choice") as said:
        make_model("tiny", **options)
    assert said.value.field == field


# ---- every strategy: tests/plans.py. Here: what breaks them is caught ----------------------------------------------
SHAPE: dict[str, Any] = {"layers": 2, "hidden": 16, "heads": 4, "seq": 8, "vocab": 42}


@pytest.fixture(autouse=True)
def fresh_reference():
    check._reference.cache_clear()
    yield
    check._reference.cache_clear()


def judge(switches: dict[str, Any], **options: Any) -> float:
    plan, model = make_plan(**{"global_batch": 4, "lr": 1e-2, **options}), make_model("tiny", **{**SHAPE, **switches})
    plan.check(model)
    return worst(differences(plan, model, steps=2))


@pytest.mark.parametrize("options", [{"cp": 2}, {"cp": 2, "context": "ulysses"}, {"cp": 2, "tp": 2, "sequence_parallel": True}], ids=str)
def test_turning_by_positions_that_are_not_the_rank_s_is_caught(monkeypatch, options):
    assert judge({"position": "rope"}, **options) <= TOLERANCE
    monkeypatch.setattr(gpt, "runs", lambda positions, each: (0, len(positions)))
    assert judge({"position": "rope"}, **options) > TOLERANCE


def test_turning_by_a_distance_too_much_changes_nothing_because_only_distances_count(monkeypatch):
    honest = gpt.runs
    monkeypatch.setattr(gpt, "runs", lambda positions, each: honest(tuple(p + 100 * (each == 1) for p in positions), each))
    reference = GPTStage(make_model("tiny", **SHAPE, position="rope"), dtype=torch.float64)
    tokens = torch.arange(8)[None] % 42
    shifted = reference(tokens, tokens)
    monkeypatch.setattr(gpt, "runs", honest)
    assert torch.allclose(reference(tokens, tokens), shifted, rtol=1e-12)


@pytest.mark.parametrize("zero", [0, 3])
def test_norms_of_queries_whose_gradient_is_not_summed_over_heads_are_caught(monkeypatch, zero):
    options = {"tp": 2, "dp": 2, "zero": zero}
    assert judge({"qk_norm": True}, **options) <= TOLERANCE
    monkeypatch.setattr(trainer, "sum_over_heads", lambda parallel, manager, partial: None)
    assert judge({"qk_norm": True}, **options) > TOLERANCE


def test_the_sum_over_heads_is_one_message_of_the_shared_norms_alone():
    plan, model = make_plan(tp=2, precision="fp64"), make_model("tiny", **SHAPE, qk_norm=True)
    graph = run_plan(plan, model, "dry").graph
    assert sum(graph.bytes_sent(label="what all heads share")) == 2 * (2 - 1) * SHAPE["layers"] * 2 * 2 * 4 * 8  # q and k, weight and bias
