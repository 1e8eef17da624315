"""A layer's attention with every switch, against formulas written down in torch, and what of it is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import differences, run_plan, worst
from hypothesis import given, settings
from hypothesis import strategies as st
from test_activations import ANYWHERE, in_the_sum, judged_anywhere
from test_hugging_face import Wide

from glasscluster.base.errors import InputError
from glasscluster.base.operator_costs import cost_of
from glasscluster.model.config import ModelConfig
from glasscluster.model.decoding.cache import PagedCache, SlidingWindowCache, StaticCache
from glasscluster.model.decoding.generate import generate
from glasscluster.model.gpt import GPTStage
from glasscluster.model.kernels.flash import algorithm, costs
from glasscluster.model.kernels.flash.operators import flash_attention
from glasscluster.model.kernels.flash.parts import within
from glasscluster.model.kernels.scores import Scores, sink_gradient
from glasscluster.model.layers.attention import unfused_attention
from glasscluster.model.layers.dropout import Draw
from glasscluster.strategies.context import context_parallel, ulysses
from glasscluster.strategies.judge import accounts, check
from glasscluster.strategies.judge.activations import KEPT_OF_MLP, predict
from glasscluster.strategies.layout import tokens
from glasscluster.strategies.layout.judged import Judged
from glasscluster.strategies.layout.tokens import KINDS, parts, tokens_of, work
from glasscluster.strategies.plan import make_model, make_plan

SHAPE: dict[str, Any] = {"hidden": 16, "heads": 4, "seq": 16, "vocab": 32}


# ---- kernels against what is written down ------------------------------------------------------------------
def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def textbook(q, k, v, causal: bool, prefix: int, bias, how: Scores, sink) -> torch.Tensor:
    """All N x n scores, one operation after the other; key heads really repeated, a sink really one key more.

    In a rectangle a window counts from its first query and its first key.
    """
    n, keys = q.shape[2], k.shape[2]
    i, j = torch.arange(n)[:, None], torch.arange(keys)[None]
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q @ k.mT * (q.shape[3] ** -0.5 if how.scale is None else how.scale)
    scores = how.cap * torch.tanh(scores / how.cap) if how.cap else scores
    scores = scores if bias is None else scores + bias[:, i - j + keys - 1]
    hidden = (j > i) & (j >= prefix) if causal else torch.zeros(n, keys, dtype=torch.bool)
    hidden = hidden | (j <= i - how.window) if how.window else hidden
    scores = scores.masked_fill(hidden, -torch.inf)
    if sink is not None:
        scores = torch.cat([scores, sink[:, None, None].expand(*scores.shape[:3], 1)], -1)
    return scores.softmax(-1)[..., :keys] @ v


def inputs(b: int, a: int, group: int, n: int, keys: int, d: int, dtype: torch.dtype = torch.float64):
    """q, k, v, a bias by distance and sinks; the scores are large enough for a cap to bend them."""
    q, sink = drawn(b, a * group, n, d, dtype=dtype), drawn(a * group, seed=4, dtype=dtype)
    k, v = (drawn(b, a, keys, d, seed=s, dtype=dtype) for s in (1, 2))
    return q, k, v, drawn(a * group, n + keys - 1, seed=3), sink


def close(found, expected) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


hows = st.builds(
    Scores,
    scale=st.sampled_from([None, 0.7]),
    window=st.one_of(st.just(0), st.integers(1, 45)),
    cap=st.sampled_from([0.0, 1.5]),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 2), st.sampled_from([1, 3]), st.integers(1, 40)),
    hows,
    st.booleans(),
    st.booleans(),
    st.integers(0, 9),
    st.sampled_from([flash_attention, unfused_attention]),
)
def test_any_score_mask_and_sink_give_the_textbook_s_output_and_gradients(
    shape, how, biased, sinks, prefix, attend
):
    b, a, group, n = shape
    q, k, v, bias, sink = inputs(b, a, group, n, n, 3)
    prefix = 0 if how.window else min(prefix, n - 1)
    more: dict[str, Any] = {"bias": bias if biased else None, "how": how, "sink": sink if sinks else None}
    parameters = [q, k, v] + [bias] * biased + [sink] * sinks
    d_out = drawn(*q.shape, seed=5).detach()
    found, expected = (f(q, k, v, causal=True, prefix=prefix, **more) for f in (attend, textbook))
    close((found,), (expected,))
    close(*(torch.autograd.grad(out, parameters, d_out) for out in (found, expected)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from([1, 2]), st.integers(1, 60), st.integers(1, 60), st.integers(1, 9), hows, st.data())
def test_kernels_in_tiles_of_any_size_are_the_textbook_s_and_their_traffic_is_the_formula_s(
    group, n, keys, tile, how, data
):
    causal = n == keys and data.draw(st.booleans())
    if how.window:  # every query sees a key
        n = min(n, keys + how.window - 1)
        causal = causal and n == keys
    q, k, v, bias, _ = inputs(2, 2, group, n, keys, 3)
    given_bias, sums = data.draw(st.sampled_from([(None, None), (bias, torch.empty_like(bias))]))
    parameters = [q, k, v] + [bias] * (sums is not None)
    d_out = drawn(*q.shape, seed=5).detach()
    expected = textbook(q, k, v, causal, 0, given_bias, how, None)
    expected = expected.detach(), *torch.autograd.grad(expected, parameters, d_out)
    moved = []
    meter = lambda _what, nbytes: moved.append(nbytes)  # noqa: E731
    q, k, v, bias = (x.detach() for x in (q, k, v, bias))
    given_bias = None if sums is None else bias
    out, lse = algorithm.forward(q, k, v, causal, tile, meter, given_bias, how)
    forward, moved = sum(moved), []
    meter = lambda _what, nbytes: moved.append(nbytes)  # noqa: E731
    found = algorithm.backward(*(d_out, q, k, v, out, lse, causal, tile, meter, given_bias, sums), how=how)
    close((out, *found, *([] if sums is None else [sums])), expected)
    like = {"keys": keys, "group": group, "window": how.window}
    read = costs.bias_steps(n, causal, tile, keys, how.window) if sums is not None else (0, 0)
    more = 8 * 2 * group * read[0], 8 * 2 * group * (3 * read[1] + (n + keys - 1) * (sums is not None))
    assert forward == 2 * 2 * costs.forward_traffic(n, 3, causal, 8, 8, tile, **like) + more[0]
    assert sum(moved) == 2 * 2 * costs.backward_traffic(n, 3, causal, 8, 8, tile, **like) + more[1]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 9), st.integers(1, 30), st.booleans())
def test_the_pairs_of_a_window_are_the_tiles_that_hold_a_pair_it_sees(n, keys, tile, window, causal):
    keys = n if causal else keys
    n = min(n, keys + window - 1)
    causal = causal and n == keys
    i, j = torch.arange(n)[:, None], torch.arange(keys)[None]
    seen = (j > i - window) & ((j <= i) if causal else torch.ones(n, keys, dtype=torch.bool))
    computed = 0
    for r in range(0, n, tile):
        for c in range(0, keys, tile):
            here = seen[r : r + tile, c : c + tile]
            # without a causal mask keys behind are seen by all
            computed += here.numel() if here.any() else 0
    assert costs.tile_pairs(n, causal, tile, keys, window) == computed


def test_a_recorded_kernel_costs_what_its_tiles_do_with_a_window_and_names_no_scale():
    q, k, v, _, _ = (x.detach() for x in inputs(1, 2, 2, 300, 300, 4, torch.float32))
    how = Scores(0.3, 70, 2.0)
    flops, nbytes = cost_of("glasscluster::flash_forward")
    moved = []
    algorithm.forward(q, k, v, True, meter=lambda _what, n: moved.append(n), how=how)
    assert nbytes((q, k, v, True, *how), None) == sum(moved)
    assert flops((q, k, v, True, *how), None) == 4 * 4 * 4 * costs.tile_pairs(300, True, window=70)
    assert flops((q, k, v, True, None), None) > flops((q, k, v, True, *how), None)


def test_a_query_that_would_see_no_key_is_refused():
    q, k, v, _, _ = inputs(1, 1, 1, 9, 5, 2)
    with pytest.raises(ValueError, match="the last query sees no key"):
        flash_attention(q, k, v, False, how=Scores(window=4))


# ---- the size of a head ------------------------------------------------------------------------------------
def test_a_head_size_need_not_share_out_the_hidden_width():
    model = ModelConfig(layers=26, hidden=2304, heads=8, kv_heads=4, head_dim=256)  # Gemma 2, 2B
    assert (model.head_dim, model.query_width, model.key_width) == (256, 2048, 1024)
    assert ModelConfig(hidden=20, heads=3, head_dim=5).query_width == 15
    for refused, field in (({"heads": 3}, "heads"), ({"head_dim": 5, "position": "rope"}, "position")):
        with pytest.raises(InputError) as said:
            make_model("tiny", **{**SHAPE, **refused})
        assert said.value.field == field
        assert said.value.nearest


def test_the_products_of_attention_grow_with_the_head_size_and_nothing_else_does():
    flops = [make_model("tiny", **SHAPE, layers=1, head_dim=d).model_flops(1) for d in (4, 5)]
    matrices, scores = 4 * 16 * 4 * 1, 2 * 16 * 4 * 1  # weights of Q, K, V, output; q·k and p·v of all keys
    assert flops[1] - flops[0] == 3 * 2 * (matrices + scores)


@pytest.mark.parametrize("more", [{}, {"recompute": "selective"}, {"cut": True}], ids=str)
@pytest.mark.parametrize("attention", ["flash", "unfused"])
@pytest.mark.parametrize("position", ["learned", "rope"])
@pytest.mark.parametrize("context", ANYWHERE)
def test_a_layer_with_a_head_size_of_its_own_keeps_the_list_and_the_closed_form(
    context, position, attention, more
):
    if attention == "unfused":
        context = "ulysses"
    model = make_model("tiny", **SHAPE, kv_heads=4, head_dim=6, attention=attention, position=position)
    lines = judged_anywhere(model, 2, 2, 2, context, **more)
    assert [x for x in lines if not x.ok] == []
    said = predict(
        *(16, 2, 16, 4, 2, 2),
        dropout=False,
        flash=attention == "flash",
        recompute=more.get("recompute", "none"),
        sequence_parallel=more.get("cut", False),
        query_width=24,
        key_width=24,
        mlp=KEPT_OF_MLP["gelu"] * 64,
        cp=2,
        exchange=context == "ulysses",
    )
    assert in_the_sum(lines) == said


# ---- a window ----------------------------------------------------------------------------------------------
@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 45),
    st.integers(1, 5),
)
def test_parts_of_a_ring_are_the_pairs_of_the_window_each_once_and_nothing_outside_it(
    kind, ranks, each, window, tile
):
    n, everything = 2 * each, 2 * each * ranks  # of one rank, of all
    seen = torch.zeros(everything, everything, dtype=torch.int64)
    for rank in range(ranks):
        for source in range(ranks):
            mine, theirs = (torch.tensor(tokens_of(kind, r, ranks, everything)) for r in (rank, source))
            for part in parts(kind, rank, source, ranks, n, window=window):
                rows, cols = mine[part.queries], theirs[part.keys]
                i, j = torch.arange(len(rows))[:, None], torch.arange(len(cols))[None]
                here = (j <= i) | (not part.causal)
                here = here & (j > i - part.window) if part.window else here
                assert here.any(0).all()
                assert here.any(1).all()
                seen[rows[:, None], cols[None]] += here
    i, j = torch.arange(everything)[:, None], torch.arange(everything)[None]
    assert torch.equal(seen, ((j <= i) & (j > i - window)).long())
    assert sum(work(kind, ranks, everything, window=window)) == int(seen.sum())
    assert sum(work(kind, ranks, everything, tile=tile, window=window)) >= int(seen.sum())


def test_layers_have_the_window_all_or_in_turn():
    model = make_model("tiny", **SHAPE, layers=5, window=3, window_layers="alternate")
    assert [model.window_of(layer) for layer in range(5)] == [3, 0, 3, 0, 3]
    assert model.windows == {3: 3, 0: 2}
    assert make_model("tiny", **SHAPE, layers=5, window=3).windows == {3: 5}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"window": 3, "objective": "masked"}, "window"),
    ({"window": 3, "prefix": 2}, "window"),
    ({"window_layers": "alternate"}, "window_layers"),
    ({"attention_scale": 0.0}, "attention_scale"),
    ({"attention_cap": -1.0}, "attention_cap"),
    ({"attention_cap": 1.0, "kv_latent": 8}, "attention_cap"),
    ({"sinks": True, "kv_latent": 8}, "sinks"),
]


@pytest.mark.parametrize(("options", "field"), REFUSED, ids=str)
def test_what_cannot_be_is_refused_by_its_field(options, field):
    with pytest.raises(InputError) as said:
        make_model("tiny", **SHAPE, **options)
    assert said.value.field == field


def test_a_window_saves_flash_attention_s_work_and_not_the_unfused_kernel_s():
    shape = {"layers": 1, "hidden": 8, "heads": 1, "seq": 1024, "vocab": 8}
    flops = {
        (attention, window): int(
            run_plan(
                make_plan(global_batch=1),
                make_model("tiny", **shape, attention=attention, window=window),
                "dry",
            ).graph.flops.sum()
        )
        for attention in ("flash", "unfused")
        for window in (0, 100)
    }
    pairs = [costs.tile_pairs(1024, True, window=window) for window in (0, 100)]
    assert flops["flash", 0] - flops["flash", 100] == 14 * 8 * (pairs[0] - pairs[1])
    assert flops["unfused", 0] == flops["unfused", 100]


def test_a_sliding_cache_of_a_model_with_a_window_is_that_model():
    model = make_model("tiny", **SHAPE, layers=2, window=3, init_std=0.5)
    stage, prompts = GPTStage(model, dtype=torch.float64), ((1, 2, 3, 4, 5, 6), (7,))
    right = generate(stage, prompts, 5)
    cache = SlidingWindowCache(stage, 2, 10, 3)
    for kept in (cache, StaticCache(stage, 2, 10), PagedCache(stage, 2, 10, 2)):
        made = generate(stage, prompts, 5, kept)
        close(made.logits, right.logits)
    whole = GPTStage(make_model("tiny", **SHAPE, layers=2, init_std=0.5), dtype=torch.float64)
    close(generate(whole, prompts, 5, window=3).logits, right.logits)
    assert not torch.allclose(generate(whole, prompts, 5).logits[-1], right.logits[-1])
    assert cache.bytes < StaticCache(stage, 2, 10).bytes


# ---- a soft cap --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("recompute", ["none", "selective"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("attention", ["flash", "unfused"])
def test_a_layer_with_a_cap_a_window_and_sinks_keeps_the_scores_where_they_are_written_down(
    attention, dropout, recompute
):
    more = {"sinks": True, "attention_cap": 3.0, "window": 5, "dropout": dropout, "attention": attention}
    model = make_model("tiny", **SHAPE, position="rope", **more)
    lines = judged_anywhere(model, 2, 2, 2, "ulysses", recompute=recompute)
    assert [x for x in lines if not x.ok] == []
    kept = {"flash": attention == "flash", "recompute": recompute, "dropout": dropout > 0}
    mlp = KEPT_OF_MLP["gelu"] * 64
    said = predict(16, 2, 16, 4, 2, 2, **kept, capped=True, mlp=mlp, cp=2, exchange=True)
    assert in_the_sum(lines) == said


# ---- whole layers against transformers' --------------------------------------------------------------------
HEADS: dict[str, Any] = {
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "num_hidden_layers": 2,
    "sliding_window": 3,
    "attn_implementation": "eager",
}
OURS: dict[str, Any] = {
    "hidden": 16,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 6,
    "layers": 2,
    "seq": 12,
    "vocab": 8,
    "window": 3,
    "window_layers": "alternate",
    "position": "rope",
    "qkv": "separate",
    "init_std": 0.8,
}


def attention_of(family: str, layer: int) -> tuple[Any, ModelConfig]:
    """Their attention of a layer, and our model of the same."""
    if family == "gemma2":
        from transformers.models.gemma2 import modeling_gemma2 as theirs

        more = {"query_pre_attn_scalar": 11, "attn_logit_softcapping": 2.0}
        made = theirs.Gemma2Attention(theirs.Gemma2Config(**HEADS, **more), layer)
        return made, ModelConfig(**OURS, bias=False, attention_scale=11**-0.5, attention_cap=2.0)
    from transformers.models.gpt_oss import modeling_gpt_oss as theirs_too

    made = theirs_too.GptOssAttention(theirs_too.GptOssConfig(**HEADS), layer)
    return made, ModelConfig(**OURS, sinks=True)


@pytest.mark.parametrize("attention", ["flash", "unfused"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_a_layer_s_attention_is_that_of_gemma_2_and_gpt_oss_with_its_gradients(family, layer, attention):
    from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

    theirs, config = attention_of(family, layer)
    ours = GPTStage(config.model_copy(update={"attention": attention}), dtype=torch.float64).layers[
        str(layer)
    ]
    theirs = theirs.double()
    names = {f"{n}_proj.{kind}": f"{n}_{kind}" for n in "qkv" for kind in ("weight", "bias")}
    names |= {f"o_proj.{kind}": f"out_{kind}" for kind in ("weight", "bias")} | {"sinks": "sink"}
    for name, parameter in theirs.named_parameters():
        parameter.data = getattr(ours, names[name]).detach().clone()
    sees = causal_mask_function if layer else sliding_window_causal_mask_function(HEADS["sliding_window"])
    places = torch.arange(12)
    hidden = torch.tensor([[not sees(0, 0, i, j) for j in places] for i in places])
    mask = torch.zeros(12, 12, dtype=torch.float64).masked_fill(hidden, -torch.inf)[None, None]
    frequencies = 10000.0 ** -(torch.arange(0, 6, 2, dtype=torch.float64) / 6)
    angles = torch.arange(12)[:, None] * frequencies
    angles = angles if family == "gpt_oss" else torch.cat([angles, angles], -1)
    x, y = (drawn(2, 12, 16) for _ in range(2))
    rows = ours.parallel.row(ours.attend(x, None), ours.out_weight)
    out = rows if ours.get("out_bias") is None else rows + ours.out_bias
    with Wide():
        expected = theirs(y, (angles.cos()[None], angles.sin()[None]), mask)[0]
    close((out,), (expected,))
    d_out = drawn(*out.shape, seed=7).detach()
    out.backward(d_out)
    expected.backward(d_out)
    pairs = [(getattr(ours, names[name]).grad, p.grad) for name, p in theirs.named_parameters()]
    assert len(pairs) == (4 if family == "gemma2" else 9)
    close(*zip(*pairs, (x.grad, y.grad), strict=True))


@pytest.mark.parametrize("attention", ["flash", "unfused"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_sixteen_bits_errors_are_at_most_twice_plain_torch_s(dtype, attention):
    how, narrow = Scores(0.5, 20, 3.0), inputs(1, 2, 2, 70, 70, 16, dtype)
    q, k, v, _, sink = narrow
    exact = [x.detach().double().requires_grad_() for x in (q, k, v, sink)]
    attend = {"flash": flash_attention, "unfused": unfused_attention}[attention]
    d_out = drawn(*q.shape, seed=8, dtype=dtype).detach()

    def found(f: Any, *x: torch.Tensor) -> list[torch.Tensor]:
        out = f(*x)
        return [out.detach(), *torch.autograd.grad(out, x, d_out.to(out.dtype))]

    plain = found(lambda q, k, v, s: textbook(q, k, v, True, 0, None, how, s), q, k, v, sink)
    truth = found(lambda q, k, v, s: textbook(q, k, v, True, 0, None, how, s), *exact)
    ours = found(lambda q, k, v, s: attend(q, k, v, causal=True, how=how, sink=s), q, k, v, sink)
    for mine, theirs, right in zip(ours, plain, truth, strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - right).abs().max() <= 2 * (theirs.double() - right).abs().max()


# ---- documents, and what is wrong is caught ----------------------------------------------------------------
@pytest.mark.parametrize("attention", ["flash", "unfused"])
def test_packed_documents_have_windows_caps_and_sinks_of_their_own(attention):
    more = {"window": 3, "attention_cap": 2.0, "sinks": True, "position": "rope", "attention": attention}
    block = GPTStage(make_model("tiny", **SHAPE, **more, init_std=0.8), dtype=torch.float64).layers["0"]
    x, lengths = drawn(2, 16, 16), ((9, 7), (16,))
    packed = block.attend(x, Draw(0, 0, (0, 1), documents=lengths))
    for row, alone in enumerate(lengths):
        whole = [block.attend(piece[None], None)[0] for piece in x[row].split(alone)]
        close((packed[row],), (torch.cat(whole),))


@pytest.fixture
def fresh_reference():
    check._reference.cache_clear()
    yield
    check._reference.cache_clear()


WRONG: list[tuple[dict[str, Any], str, Any, str, Any]] = [
    ({"sinks": True}, "ring", context_parallel, "add_sink", lambda _out, _lse, _sink: None),
    ({"sinks": True}, "ring", context_parallel, "sink_gradient", lambda *x: sink_gradient(*x) * 1.01),
    ({"window": 3}, "zigzag", tokens, "within", lambda *x: within(*x[:3], x[3] + 1)),
    ({"window": 3}, "striped", tokens, "within", lambda *x: within(*x[:3], x[3] - 1)),
    (
        {"sinks": True},
        "ulysses",
        ulysses,
        "_heads_of",
        lambda x, _context: None if x is None else x[: len(x) // 2],
    ),
]


@pytest.mark.usefixtures("fresh_reference")
@pytest.mark.parametrize(("switch", "context", "module", "name", "wrong"), WRONG)
def test_what_a_context_parallel_rank_does_wrong_is_caught(monkeypatch, switch, context, module, name, wrong):
    plan = make_plan(global_batch=2, cp=2, context=context)
    model = make_model("tiny", **SHAPE, layers=1, init_std=0.5, **switch)
    assert worst(differences(plan, model, steps=1)) <= check.TOLERANCE
    monkeypatch.setattr(module, name, wrong)
    assert worst(differences(plan, model, steps=1)) > check.TOLERANCE


@pytest.mark.usefixtures("fresh_reference")
@pytest.mark.parametrize(
    ("layout", "attention"),
    [({"cp": 4, "context": "zigzag", "ulysses": 2}, "flash"), ({"tp": 2}, "unfused")],
    ids=["rings of groups", "unfused"],
)
def test_all_switches_together_are_exact_and_keep_every_row_when_the_core_runs_again(layout, attention):
    plan = make_plan(global_batch=2, recompute="selective", **layout)
    switches = {
        "window": 3,
        "window_layers": "alternate",
        "attention_cap": 1.5,
        "sinks": True,
        "head_dim": 6,
    }
    model = make_model("tiny", **SHAPE, layers=2, attention=attention, position="rope", **switches)
    plan.check(model)
    assert worst(differences(plan, model, steps=1)) <= check.TOLERANCE
    run = run_plan(plan, model)
    rows = accounts.rows(Judged(plan, model, run.graph, run.results, run.timeline))
    assert [row.key for row in rows if row.verdict == "failed"] == []
    assert {"flops_recomputed", "checkpoints_held"} <= {row.key for row in rows}
