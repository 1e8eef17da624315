"""What a layer keeps for backward is the paper's list, tensor by tensor; nothing is kept that is
not in it.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glasscluster.model.config import ModelConfig
from glasscluster.sim.recording.saved_for_backward import Saved
from glasscluster.sim.run import Cluster
from glasscluster.strategies.judge.activations import (
    KEPT_OF_MLP,
    PARTS,
    Line,
    account,
    kept_by_a_layer,
    predict,
    predict_layer,
)
from glasscluster.strategies.numerics.formats import DTYPES
from glasscluster.strategies.plan import make_model

GIB = 1024**3
KINDS_OF_KEEPING = ("none", "selective", "full")


def count(
    model: ModelConfig,
    b: int,
    t: int = 1,
    precision: str = "bf16",
    recompute: str = "none",
    backend: str = "dry",
    cut: bool = False,
) -> list[list[Saved]]:
    return (
        Cluster("classroom", t, backend, memory_bytes=None)
        .run(kept_by_a_layer, model, b, precision, recompute, cut)
        .results
    )


def judged(
    model: ModelConfig,
    b: int,
    t: int = 1,
    precision: str = "bf16",
    recompute: str = "none",
    cut: bool = False,
) -> list[Line]:
    terms = predict_layer(model, b, t, DTYPES[precision].itemsize, recompute, cut)
    ranks = [account(terms, saved) for saved in count(model, b, t, precision, recompute, cut=cut)]
    assert all(r == ranks[0] for r in ranks)
    return ranks[0]


def in_the_sum(lines: list[Line]) -> int:
    return sum(x.counted for x in lines if not x.separate)


SHAPES = st.tuples(
    st.integers(1, 3),
    st.integers(2, 9),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 3]),
    st.integers(1, 5),
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    SHAPES,
    st.sampled_from(["unfused", "flash"]),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from(list(DTYPES)),
    st.sampled_from(KINDS_OF_KEEPING),
    st.booleans(),
)
def test_any_layer_keeps_exactly_the_list_and_its_sum_is_the_closed_form(
    shape, attention, dropout, precision, recompute, cut
):
    b, s, t, heads, d = shape
    s = s * t if cut else s  # t cuts every sequence
    a, w = t * heads, DTYPES[precision].itemsize
    h = a * d
    model = make_model("tiny", hidden=h, heads=a, seq=s, vocab=4 * t, attention=attention, dropout=dropout)
    lines = judged(model, b, t, precision, recompute, cut)
    assert [x for x in lines if not x.ok] == []
    more = {"flash": attention == "flash", "recompute": recompute, "sequence_parallel": cut}
    assert in_the_sum(lines) == predict(s, b, h, a, t, w, dropout=dropout > 0, **more)


@pytest.mark.parametrize("recompute", KINDS_OF_KEEPING)
@pytest.mark.parametrize("attention", ["unfused", "flash"])
@pytest.mark.parametrize(("t", "cut"), [(1, False), (2, False), (2, True)])
def test_real_tensors_on_real_ranks_are_kept_as_shapes_are(t, cut, attention, recompute):
    model = make_model("tiny", hidden=16, seq=6, attention=attention, dropout=0.1)
    assert count(model, 2, t, "bf16", recompute, "threads", cut) == count(
        model, 2, t, "bf16", recompute, "dry", cut
    )


def test_the_equations_of_the_paper_in_its_own_symbols():
    s, b, h, a, t = 64, 3, 96, 6, 2
    sbh = s * b * h
    assert predict(s, b, h, a) == sbh * 34 + 5 * a * s * s * b  # eq. 1
    assert predict(s, b, h, a, t) == sbh * 10 + sbh * 24 // t + 5 * a * s * s * b // t  # eq. 2
    assert predict(s, b, h, a, t, sequence_parallel=True) == (sbh * 34 + 5 * a * s * s * b) // t  # eq. 4
    assert predict(s, b, h, a, t, sequence_parallel=True, recompute="selective") == 34 * sbh // t  # eq. 6
    assert predict(s, b, h, a, recompute="full") == 2 * sbh
    assert predict(s, b, h, a, dropout=False, w=4) == 64 * sbh + 4 * a * s * s * b
    assert predict(s, b, h, a, w=4) == sbh * (16 * 4 + 2) + a * s * s * b * (2 * 4 + 1)


@pytest.mark.parametrize(
    ("t", "recompute", "cut", "published"),
    [
        (1, "none", False, 2.67),
        (8, "none", False, 0.54),
        (8, "none", True, 0.33),
        (8, "selective", True, 0.10),
    ],
)
def test_a_layer_of_gpt_3_keeps_the_published_gib_counted_on_its_real_shapes(t, recompute, cut, published):
    model = make_model("gpt3-175b", attention="unfused", dropout=0.1)
    lines = judged(model, 1, t, "bf16", recompute, cut)
    assert all(x.ok for x in lines)
    assert round(in_the_sum(lines) / GIB, 2) == published


# ---- beyond the paper's layer: grouped queries, gates, context parallelism ---------------------------------
def judged_anywhere(
    model: ModelConfig,
    b: int,
    t: int,
    cp: int,
    context: str,
    precision: str = "bf16",
    recompute: str = "none",
    cut: bool = False,
) -> list[Line]:
    """Every rank's lines hold; those of rank 0. How many blocks a rank merges differs, what it keeps does
    not.
    """
    cluster = Cluster("classroom", t * cp, "dry", memory_bytes=None)
    ranks = cluster.run(kept_by_a_layer, model, b, precision, recompute, cut, cp, context).results
    lines = [
        account(
            predict_layer(model, b, t, DTYPES[precision].itemsize, recompute, cut, cp, context, rank // t),
            saved,
        )
        for rank, saved in enumerate(ranks)
    ]
    assert all(x == lines[0] for x in lines)
    assert {x.part for x in lines[0]} <= set(PARTS)
    return lines[0]


ANYWHERE = ("ring", "striped", "zigzag", "ulysses")


@settings(max_examples=90, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.tuples(
        st.integers(1, 2),
        st.integers(2, 4),
        st.sampled_from([1, 2]),
        st.sampled_from([1, 2, 3]),
        st.integers(2, 5),
    ),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([(1, 1), (2, 1), (1, 2), (3, 2)]),
    st.sampled_from(ANYWHERE),
    st.sampled_from(["flash", "unfused"]),
    st.sampled_from(["gelu", "relu", "swiglu", "gelu-tanh"]),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from(list(DTYPES)),
    st.sampled_from(KINDS_OF_KEEPING),
    st.booleans(),
    st.tuples(
        st.sampled_from(["layernorm", "rmsnorm", "scalenorm"]),
        st.booleans(),
        st.sampled_from(["learned", "rope", "none"]),
        st.sampled_from([None, True, False]),
    ),
)
def test_any_layer_with_grouped_queries_gates_and_a_cut_sequence_keeps_the_list_and_the_closed_form(
    shape, cp, groups, context, attention, activation, dropout, precision, recompute, cut, switches
):
    b, each, t, key_heads, d = shape
    queries, f = groups
    if attention == "unfused":
        context = "ulysses"  # a ring merges by log-sum-exp
    norm, bias, position, qkv_bias = switches
    d = 2 * d if position == "rope" else d
    kv = key_heads * t * (cp if context == "ulysses" else 1)  # on each rank at least one key head
    a, h = kv * queries, kv * queries * d
    s = each * cp * (2 if context == "zigzag" else 1) * (t if cut else 1)
    model = make_model(
        "tiny",
        hidden=h,
        heads=a,
        kv_heads=kv,
        ffn=f * t * 5,
        seq=s,
        vocab=4 * t,
        attention=attention,
        activation=activation,
        dropout=dropout,
        norm=norm,
        bias=bias,
        qkv_bias=qkv_bias,
        position=position,
    )
    lines = judged_anywhere(model, b, t, cp, context, precision, recompute, cut)
    assert [x for x in lines if not x.ok] == []
    more = {
        "flash": attention == "flash",
        "recompute": recompute,
        "sequence_parallel": cut,
        "key_width": kv * d,
        "cp": cp,
        "mlp": KEPT_OF_MLP[activation] * f * t * 5,
        "exchange": cp > 1 and context == "ulysses",
    }
    assert in_the_sum(lines) == predict(
        s, b, h, a, t, DTYPES[precision].itemsize, dropout=dropout > 0, **more
    )


@pytest.mark.parametrize("context", ANYWHERE)
@pytest.mark.parametrize("cut", [False, True])
def test_a_cut_sequence_is_kept_by_real_ranks_as_by_shapes(context, cut):
    model = make_model("tiny", hidden=16, heads=4, seq=16, activation="swiglu", dropout=0.1)
    real, dry = (
        Cluster("classroom", 4, backend, memory_bytes=None)
        .run(kept_by_a_layer, model, 2, "bf16", "none", cut, 2, context)
        .results
        for backend in ("threads", "dry")
    )
    assert real == dry


@pytest.mark.parametrize("context", ANYWHERE)
def test_context_parallelism_divides_what_a_rank_keeps_and_only_ulysses_keeps_the_output_twice(context):
    model = make_model("tiny", hidden=64, heads=4, seq=64, dropout=0.1)
    whole, parts = (in_the_sum(judged_anywhere(model, 1, 2, cp, context, cut=True)) for cp in (1, 2))
    assert parts == whole // 2 + (2 * 64 * 64 // 4 if context == "ulysses" else 0)


def test_grouped_queries_keep_fewer_keys_and_swiglu_one_tensor_more():
    shape = {"hidden": 64, "heads": 8, "seq": 32, "attention": "unfused"}
    mha = judged(make_model("tiny", **shape), 1, 2)
    gqa = judged(make_model("tiny", **shape, kv_heads=2), 1, 2)
    assert in_the_sum(mha) - in_the_sum(gqa) == 2 * 2 * 32 * (64 - 16) // 2  # of K and of V
    gelu, swiglu = (
        judged(make_model("tiny", **shape, ffn=128, activation=act), 1, 2) for act in ("gelu", "swiglu")
    )
    assert in_the_sum(swiglu) - in_the_sum(gelu) == 2 * 32 * 128 // 2


# ---- mutations ---------------------------------------------------------------------------------------------
MODEL = {"hidden": 16, "seq": 6, "attention": "unfused", "dropout": 0.1}


def test_each_dropped_or_resized_tensor_shows_in_exactly_its_own_line():
    model = make_model("tiny", **MODEL)
    saved, terms = count(model, 2)[0], predict_layer(model, 2)
    for at, kept in enumerate(saved):
        owner = next(x.name for x in terms if kept.maker in x.makers)
        for changed in ([], [dataclasses.replace(kept, nbytes=kept.nbytes + 1)]):
            lines = account(terms, saved[:at] + changed + saved[at + 1 :])
            assert [x.name for x in lines if not x.ok] == [owner]


def test_a_layer_that_keeps_one_tensor_more_is_caught_by_name(monkeypatch):
    honest = torch.nn.functional.gelu
    monkeypatch.setattr(torch.nn.functional, "gelu", lambda x: honest(x * torch.ones_like(x)))
    bad = [x for x in judged(make_model("tiny", **MODEL), 2) if not x.ok]
    assert any("not in the list: ones_like" in x.name for x in bad)


def test_a_mask_of_two_bytes_an_element_is_caught(monkeypatch):
    from glasscluster.model.layers import dropout

    class Wide(dropout.Dropout):
        @staticmethod
        def forward(ctx, x, keys, p, spans):
            out, mask = torch.ops.glasscluster.dropout_forward(x, keys, p, spans)
            ctx.save_for_backward(mask.to(x.dtype))
            return out

    monkeypatch.setattr(dropout, "Dropout", Wide)
    bad = [x.name for x in judged(make_model("tiny", **MODEL), 2) if not x.ok]
    assert {
        "mask of the attention's dropout",
        "mask of the MLP's dropout",
        "mask of the softmax's dropout",
    } <= set(bad)


def test_ring_attention_that_keeps_a_neighbour_s_keys_is_caught_by_name(monkeypatch):
    from glasscluster.strategies.context import context_parallel

    honest = context_parallel.RingContext.attend

    def hoard(self, attention, q, k, v, *more, **named):
        out = honest(self, attention, q, k, v, *more, **named)
        return out * (k * 1.0).sum().exp()  # backward needs another copy of the keys' sum

    monkeypatch.setattr(context_parallel.RingContext, "attend", hoard)
    bad = [
        x.name
        for x in judged_anywhere(
            make_model("tiny", **MODEL | {"attention": "flash", "seq": 8}), 2, 1, 2, "ring"
        )
        if not x.ok
    ]
    assert any("not in the list" in name for name in bad)


def test_swiglu_that_keeps_its_gate_by_itself_is_caught(monkeypatch):
    from glasscluster.model.layers import mlp

    def copying(x, activation):
        gate, value = x.chunk(2, -1)
        return torch.nn.functional.silu(gate.contiguous()) * value

    model = make_model("tiny", **MODEL, activation="swiglu")
    assert all(x.ok for x in judged(model, 2))
    monkeypatch.setattr(mlp, "activate", copying)
    assert any("not in the list: clone" in x.name for x in judged(model, 2) if not x.ok)


def test_a_sequence_that_is_not_cut_in_the_norms_shows_in_the_norms_lines(monkeypatch):
    from glasscluster.strategies.tensor.sequence_parallel import SequenceParallel

    model = make_model("tiny", **MODEL)
    monkeypatch.setattr(
        SequenceParallel, "pieces", property(lambda self: 1)
    )  # each rank is handed the whole sequence
    monkeypatch.setattr(SequenceParallel, "gather", lambda self, x, *rest, **more: (x, None))
    monkeypatch.setattr(SequenceParallel, "scatter", lambda self, x, *rest, **more: (x.clone(), None))
    bad = [x for x in judged(model, 2, 2, cut=True) if not x.ok]
    assert {"input of norm 1", "output of norm 1", "output of norm 2"} <= {x.name for x in bad}
    outside = [x for x in bad if x.predicted and x.part == "outside" and "norm" in x.name]
    assert outside
    assert all(x.counted == 2 * x.predicted for x in outside)
