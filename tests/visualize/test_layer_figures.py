"""A layer's matrices by their shards, its strip of collectives, what it keeps: as recorded, not by rule."""

from __future__ import annotations

import pytest
import torch

from glasscluster.model.gpt import GPTStage
from glasscluster.model.parallel import Shard, Unsharded
from glasscluster.sim.recording.events import BACKWARD, COMPUTE, FORWARD
from glasscluster.sim.run import Cluster
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.trainer import train_rank
from glasscluster.visualize.figures.kept import by_layout
from glasscluster.visualize.figures.matrices import matrices, matrices_figure, pieces, stage_of
from glasscluster.visualize.figures.picture import plotly_figure
from glasscluster.visualize.figures.strip import layer_strip, named, strip_bars

MODELS = {
    "MHA": {"heads": 8},
    "GQA": {"heads": 8, "kv_heads": 2},
    "SwiGLU": {"heads": 8, "activation": "swiglu", "ffn": 168},
    "three matrices": {"heads": 8, "kv_heads": 4, "qkv": "separate"},
}


class Ranks(Unsharded):
    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.mark.parametrize("name", MODELS)
def test_what_is_drawn_for_a_rank_is_what_the_rank_holds(name):
    model, t = make_model("tiny", layers=1, **MODELS[name]), 4
    whole = GPTStage(model, [0], False, False).full_names()
    for rank in range(t):
        for full_name, (mine, shard) in (
            GPTStage(model, [0], False, False, Ranks(rank, t)).full_names().items()
        ):
            value = whole[full_name][0]
            held = [p for p in pieces(tuple(value.shape), shard, t) if p.rank in (rank, -1)]
            dim = shard.dim if shard else 0
            assert torch.equal(
                torch.cat([value.narrow(dim, p.start, p.stop - p.start) for p in held], dim), mine
            ), full_name


def test_pieces_cover_a_matrix_once_and_padding_is_nobody_s():
    for n, ranks in ((253, 4), (8, 8), (5, 8)):
        found = sorted((p.start, p.stop) for p in pieces((n, 3), Shard(0), ranks))
        assert [i for a, b in found for i in range(a, b)] == list(range(n))
    assert {p.block for p in pieces((12, 4), Shard(0, (8, 2, 2)), 2)} == {0, 1, 2}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_matrices_have_their_size_and_each_region_one_f_and_one_g(name, lang):
    model = make_model("tiny", **MODELS[name])
    figure = plotly_figure(matrices_figure({name: model}, 4, lang))
    area = (
        sum(w * h for trace in figure.data for w, h in zip(trace.width, trace.y, strict=True))
        * model.hidden**2
    )
    assert area == pytest.approx(sum(m.out * m.into for m in matrices(stage_of(model, 4), 4)), rel=1e-4)
    letters = [a.text[3] for a in figure.layout.annotations if a.text.startswith(("<b>f</b>", "<b>g</b>"))]
    assert sorted(letters) == ["f", "f", "g", "g"]
    assert [t.text[0] for t in figure.data] == ["0", "1", "2", "3"]
    shared = {
        "en": "2 key heads, each gathered by 2 neighbours",
        "zh": "2 个 KV 头，每个由相邻 2 个 rank 聚集",
    }[lang]
    assert (shared in [a.text for a in figure.layout.annotations]) == (name == "GQA")


def test_rows_before_columns_would_be_drawn_as_such(monkeypatch):
    from glasscluster.model.layers import mlp

    def swapped(block, name="", width=None):
        f = width or block.config.width
        block.weight("up_weight", f, block.config.hidden, std=1.0, shard=Shard(1))
        block.weight("down_weight", block.config.hidden, f, std=1.0, shard=Shard(0))

    monkeypatch.setattr(mlp, "declare", swapped)
    figure = plotly_figure(matrices_figure({"": make_model("tiny")}, 4))
    assert sorted(a.text[3] for a in figure.layout.annotations if a.text.startswith(("<b>f", "<b>g"))) == [
        "f",
        "f",
        "g",
        "g",
    ]
    order = [
        a.text[3]
        for a in sorted(figure.layout.annotations[1:], key=lambda a: a.x)
        if a.text.startswith(("<b>f", "<b>g"))
    ]
    assert order == ["f", "g", "g", "f"]


# ---- the strip ---------------------------------------------------------------------------------------------
def recorded(t: int = 2, **options):
    model = make_model("tiny", layers=2, hidden=32, seq=16)
    job = Job(make_plan(tp=t, micro_batch=1, global_batch=1, **options), model, steps=1)
    return Cluster("classroom", t, "dry", memory_bytes=None).run(train_rank, job, info=job_info(job)).timeline


ORDERS = {
    "tp": ({}, ["AR", "AR"], ["AR", "AR"]),
    "sp": ({"sequence_parallel": True}, ["AG", "RS", "AG", "RS"], ["AG", "AG", "RS", "AG", "AG", "RS"]),
}


@pytest.mark.parametrize("name", ORDERS)
def test_the_strip_shows_each_collective_where_it_stands(name):
    options, forward, backward = ORDERS[name]
    timeline = recorded(**options)
    for phase, expected in ((FORWARD, forward), (BACKWARD, backward)):
        bars = sorted(strip_bars(timeline, 1, phase, 0, {}), key=lambda bar: bar[2])
        assert [text for _, text, _, _ in bars if text in ("AR", "AG", "RS")] == expected


@pytest.mark.parametrize("phase", [FORWARD, BACKWARD])
def test_a_strip_s_compute_takes_what_the_replay_says_and_overlap_sends_pieces(phase):
    timeline = recorded(4, sequence_parallel=True, tp_overlap=True)
    g = timeline.graph
    rows = (g.rank == 0) & (g.layer == 1) & (g.phase == phase) & (g.kind == COMPUTE)
    bars = list(strip_bars(timeline, 1, phase, 0, {}))
    spent = sum(b - a for kind, _, a, b in bars if kind in ("product", "kernel", "elementwise"))
    assert spent == pytest.approx(1e3 * float((timeline.end - timeline.start)[rows].sum()))
    assert sum(kind == "ring_pieces" for kind, *_ in bars) == (4 if phase == FORWARD else 6) * 3


def test_a_product_is_named_by_its_flops_also_in_pieces():
    products = {600: "QKV", 200: "out", 800: "MLP"}
    assert [named(x, products) for x in (600, 150, 200, 100, 800, 7)] == [
        "QKV",
        "QKV",
        "out",
        "out",
        "MLP",
        None,
    ]


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_strip_and_stacks_draw_what_they_were_given(lang):
    strips = [("tp", recorded()), ("sp", recorded(sequence_parallel=True))]
    figure = plotly_figure(layer_strip(strips, 1, {}, lang))
    assert {row for trace in figure.data for row in map(round, trace.y)} == {0, 1}
    layouts = {"a": ({"outside": 3_000_000, "mlp": 1_000_000}, 4_000_000), "b": ({"scores": 500_000}, None)}
    figure = plotly_figure(by_layout(layouts, lang))
    sums = [sum(trace.y[i] for trace in figure.data if trace.type == "bar") for i in range(2)]
    assert sums == [4.0, 0.5]
    assert list(figure.data[-1].x) == ["a"]
