"""Long context and experts: every row of the two lessons can fail, and their pictures show what
was counted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import run_plan

from glasscluster.model.config import ModelConfig
from glasscluster.model.layers import moe
from glasscluster.scenarios.jobs.layer_pictures import network_pictures
from glasscluster.scenarios.jobs.trained import Trained
from glasscluster.scenarios.lab import Lab, perform
from glasscluster.scenarios.lesson import taught_lesson
from glasscluster.sim.recording.events import SEND
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.strategies.context import context_parallel
from glasscluster.strategies.context.options import ContextOptions
from glasscluster.strategies.experts import expert_parallel
from glasscluster.strategies.experts.expert_parallel import ExpertParallel
from glasscluster.strategies.job import Job
from glasscluster.strategies.layout import tokens as pieces
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.visualize.figures.causal import Shared, causal_figure, colours
from glasscluster.visualize.figures.experts import Load, expert_load_figure
from glasscluster.visualize.figures.network import MOST_RANKS, matrices_figure, matrix
from glasscluster.visualize.figures.palette import luminance
from glasscluster.visualize.figures.picture import plotly_figure

QUICK: dict[str, dict[str, Any]] = {"E9": {"s": 256}, "E10": {"steps": 1, "sequences": 1}}
WAYS = ("ring", "striped", "zigzag", "ulysses", "hybrid", "ring, MHA", "ulysses, MHA")
KINDS = ("even", "hot", "places")


def failed(id_: str, **options: Any) -> set[str]:
    """Rows that do not hold, quickly."""
    taught = taught_lesson(id_)
    return {
        r.name.en
        for r in perform(taught, Lab(taught, "threads", taught.hardware), {**QUICK[id_], **options}).checks
        if r.verdict == "failed"
    }


def altered(monkeypatch: pytest.MonkeyPatch, change: Any, backend: str = "threads") -> None:
    """Every recording is changed before anybody looks at it."""
    build = ExecutionGraph.build.__func__

    def changed(cls: Any, recordings: Any, info: dict[str, Any]) -> ExecutionGraph:
        graph = build(cls, recordings, info)
        if info["backend"] == backend:
            change(graph)
            received = np.flatnonzero(graph.match >= 0)
            graph.bytes[received] = graph.bytes[graph.match[received]]
        return graph

    monkeypatch.setattr(ExecutionGraph, "build", classmethod(changed))


@pytest.mark.parametrize("id_", list(QUICK))
def test_the_quick_form_of_the_lesson_holds_too(id_):
    assert failed(id_) == set()


# ---- E9 ----------------------------------------------------------------------------------------------------
def test_four_bytes_too_many_fail_the_rows_that_count_them(monkeypatch):
    altered(monkeypatch, lambda g: g.bytes.__setitem__(g.kind == SEND, g.bytes[g.kind == SEND] + 4))
    assert failed("E9") >= {f"{way}: sent by rank 0, forward and backward" for way in WAYS} | {
        "MHA ring: first launch to last arrival",
        "forward, MHA: the ring's bytes over Ulysses', N/2",
    }
    assert failed("E10") == {
        f"{kind}: pairs of ranks whose dispatch differs from the routing's" for kind in KINDS
    }


def test_one_rank_that_sends_or_computes_something_else_is_seen(monkeypatch):
    def one(graph: ExecutionGraph) -> None:
        graph.bytes[(graph.kind == SEND) & (graph.rank == 3)] += 4
        graph.flops[(graph.rank == 3) & (graph.flops > 0)] += 1

    altered(monkeypatch, one)
    assert failed("E9") >= {
        "ranks that sent other bytes, all runs",
        "ranks with other FLOPs than the layout's, all runs",
    }


def test_flops_of_the_last_rank_are_counted(monkeypatch):
    altered(monkeypatch, lambda g: g.flops.__setitem__((g.rank == 7) & (g.flops > 0), 1))
    assert failed("E9") >= {f"{way}: FLOPs of attention, rank 7" for way in WAYS}


@pytest.mark.parametrize(("name", "s", "factor"), [("GQA", 2048, 8), ("MHA", 2048, 0.125)])
def test_messages_of_another_length_are_late_or_not(monkeypatch, name, s, factor):
    altered(
        monkeypatch,
        lambda g: g.bytes.__setitem__(g.kind == SEND, (g.bytes[g.kind == SEND] * factor).astype(np.int64)),
    )
    assert f"{name} ring: whole blocks that wait for their keys, rank 7" in failed("E9", s=s)


def test_blocks_that_are_not_merged_or_tokens_in_other_hands_are_seen(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(context_parallel, "merge", lambda *blocks: None)
        assert failed("E9") == {"largest difference of output and gradients from one device"}
    right = pieces.tokens_of
    swapped = {"ring": "zigzag", "striped": "ring", "zigzag": "ring"}
    monkeypatch.setattr(context_parallel, "tokens_of", lambda kind, *rest: right(swapped[kind], *rest))
    assert failed("E9") >= {
        "plain ring: pairs of the last rank over the first's, to 2N−1",
        "striped: most pairs less fewest, a row a block",
        "zigzag: most pairs less fewest",
        "largest difference of output and gradients from one device",
    }


def test_a_plan_that_cuts_heads_is_seen(monkeypatch):
    monkeypatch.setattr(ContextOptions, "rules", lambda self, model, layout: None)
    assert failed("E9") == {"most ranks that Ulysses takes"}


# ---- E10 ---------------------------------------------------------------------------------------------------
LEFT = {f"rows that left their rank in the dispatch, {which}" for which in ("all ranks", "with a hot expert")}


def test_a_row_that_is_sent_twice_or_comes_back_changed_is_seen(monkeypatch):
    dispatch, combine = ExpertParallel.dispatch, ExpertParallel.combine
    with monkeypatch.context() as patch:
        patch.setattr(
            ExpertParallel,
            "dispatch",
            lambda self, x, counts: (dispatch(self, x, counts), dispatch(self, x, counts))[1],
        )
        rows = {f"{kind}: pairs of ranks whose dispatch differs from the routing's" for kind in KINDS}
        rows |= {f"{kind}: all-to-alls of rows, a layer and micro-batch" for kind in KINDS}
        assert failed("E10") == rows | LEFT
    monkeypatch.setattr(ExpertParallel, "combine", lambda self, *rest: combine(self, *rest) * 1.001)
    assert failed("E10") == {"largest difference of outputs from one device"}


def test_a_place_for_everybody_is_seen(monkeypatch):
    monkeypatch.setattr(moe, "places", lambda whole, config: whole >= 0)
    assert failed("E10") == {
        "places: assignments dropped, sequence by sequence",
        "places limited: most rows of a sequence that an expert took",
    }


def test_another_share_of_rows_and_another_weight_of_the_balance_are_seen(monkeypatch):
    balance = moe.balance
    with monkeypatch.context() as patch:
        patch.setattr(moe, "balance", lambda *rest: balance(*rest) * 1.0001)
        assert failed("E10") == {"auxiliary loss a token, uniform router"}
    monkeypatch.setattr(expert_parallel, "leaving", lambda tokens, k, n: tokens * k * (n - 2) / (n - 1))
    assert failed("E10", sequences=4) == LEFT


def test_flops_and_parameters_are_counted(monkeypatch):
    train, parameters = Lab.train, ModelConfig.parameters

    def more(self: Lab, *rest: Any, **options: Any) -> Trained:
        trained = train(self, *rest, **options)
        trained.run.results[0].units.append(("expert bucket", 8, 8))
        return trained

    altered(monkeypatch, lambda g: g.flops.__setitem__(np.flatnonzero((g.phase == 1) & (g.flops > 0))[:1], 1))
    monkeypatch.setattr(Lab, "train", more)
    monkeypatch.setattr(ModelConfig, "parameters", lambda self: parameters(self) + 10**9)
    assert failed("E10") == {
        "forward FLOPs: those of a dense model of width k·f and the routers'",
        "MLP parameters over that dense model's, E/k",
        "Mixtral 8x7B: all parameters, by this count",
        "Mixtral 8x7B: active parameters, by this count",
    }


# ---- the pictures ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", pieces.KINDS)
def test_the_mask_has_a_cell_for_every_visible_pair_in_its_owner_s_colour(kind):
    n, tokens, pairs = 4, 16, pieces.work(kind, 4, 64)
    queries = [next(r for r in range(n) if t in pieces.tokens_of(kind, r, n, tokens)) for t in range(tokens)]
    mask, work = plotly_figure(causal_figure([Shared(kind, queries, pairs)])).data
    assert len(mask.x) == tokens * (tokens + 1) // 2
    by_rank = [sum(c == colour for c in mask.marker.color) for colour in colours(n)]
    assert by_rank == [sum(t + 1 for t in pieces.tokens_of(kind, r, n, tokens)) for r in range(n)]
    assert list(work.y) == pytest.approx([p / (sum(pairs) / n) for p in pairs], rel=1e-5)
    assert list(work.marker.color) == colours(n)


def test_the_colours_of_ranks_go_from_light_to_dark():
    lights = [luminance(c) for c in colours(8)]
    assert lights == sorted(lights, reverse=True)
    assert len(set(lights)) == 8


def test_expert_bars_add_up_to_what_was_wanted_and_say_where_places_end():
    figure = plotly_figure(expert_load_figure([Load("a", [9, 1], [4, 1], 4), Load("b", [5, 5], [5, 5])]))
    kept, lost, *other = figure.data
    assert [(k or 0) + (d or 0) for k, d in zip(kept.y, lost.y, strict=True)] == [9, 1]
    assert [trace.xaxis for trace in other] == ["x2", "x2"]
    assert [shape.y0 for shape in figure.layout.shapes] == [5, 4, 5]
    assert any("4" in a.text for a in figure.layout.annotations)
    assert len(expert_load_figure([Load("b", [5, 5], [5, 5])]).data) == 1  # nothing was dropped


def test_a_matrix_of_one_axis_and_label_has_those_bytes_and_no_others():
    model = make_model("tiny", layers=2, hidden=16, seq=16, experts=4)
    run = run_plan(make_plan(cp=2, dp=2, ep=4, context="striped", global_batch=4), model)
    graph = run.graph
    for axis, label in (
        ("ep", "dispatch"),
        ("ep", "combine backward"),
        ("cp", ""),
        ("", ""),
        ("ep", "no such label"),
    ):
        sent = graph.bytes_sent(axis=axis or None, label=label or None)
        assert matrix(graph, axis, label).sum(1).tolist() == sent
    kept = [[sum(c) for c in zip(*r.routing_counts("kept"), strict=True)] for r in run.results]
    assert matrix(graph, "ep", "dispatch").tolist() == expert_parallel.traffic(kept, 16, 4)
    assert matrices_figure({"": np.zeros((2, 2))}) is None
    assert matrices_figure({"": np.ones((MOST_RANKS + 1, MOST_RANKS + 1))}) is None


@pytest.mark.parametrize(
    ("plan", "more", "expected"),
    [
        ({"cp": 4, "context": "zigzag"}, {}, {"causal"}),
        ({"cp": 4, "context": "striped", "ulysses": 2}, {}, {"causal"}),
        ({"cp": 2, "context": "ulysses"}, {}, set()),
        ({"dp": 2, "ep": 2}, {"experts": 4, "capacity_factor": 0.5}, {"experts", "dispatch"}),
        ({"dp": 2, "tp": 2}, {"experts": 4}, {"experts"}),
        ({"dp": 2}, {}, set()),
    ],
)
def test_a_trained_plan_has_the_pictures_that_tell_of_it(plan, more, expected):
    model, layout = make_model("tiny", layers=2, hidden=32, seq=32, **more), make_plan(**plan)
    run = run_plan(layout, model)
    every = network_pictures(Trained(Job(layout, model, 1), run, None))
    made = {name: make for name, make in every.items() if name in ("causal", "experts", "dispatch")}
    assert set(made) == expected
    for name, make in made.items():
        assert len(make("en").data) == len(make("zh").data) > 0
        if name == "experts":
            rows = sum(v or 0 for trace in make("en").data for v in trace["y"])
            assert rows == 2 * layout.global_batch * model.seq * model.layers


def test_a_report_shows_them_in_the_network_tab(tmp_path):
    from glasscluster.visualize.page.one_run import write_run_report

    model, layout = make_model("tiny", layers=1, hidden=16, seq=16, experts=4), make_plan(cp=2, dp=2, ep=4)
    trained = Trained(Job(layout, model, 1), run_plan(layout, model), None)
    text = write_run_report(trained.run, tmp_path / "report.html", network_pictures(trained)).read_text()
    for name in ("causal", "experts", "dispatch"):
        assert f'data-fig="net-{name}-0"' in text
