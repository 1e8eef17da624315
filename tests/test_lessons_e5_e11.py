"""Pipeline lessons: every row can fail, and the figures show what ran."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from glasscluster.scenarios.jobs import equal_stages
from glasscluster.scenarios.lab import Lab, perform
from glasscluster.scenarios.lesson import taught_lesson
from glasscluster.scenarios.lessons.e6_ping_pong_tax import program as e6
from glasscluster.scenarios.lessons.e7_interleaving import program as e7
from glasscluster.scenarios.lessons.e11_layout_puzzle import program as e11
from glasscluster.sim.recording.events import COMPUTE, SEND
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.recording.memory import Ledger
from glasscluster.sim.run import Cluster
from glasscluster.strategies.pipeline import options
from glasscluster.strategies.pipeline.schedules import base, make_schedule, one_f_one_b
from glasscluster.strategies.pipeline.weight_gradients import WeightGradients
from glasscluster.visualize.figures.picture import plotly_figure
from glasscluster.visualize.figures.pipelines import (
    ScheduleRun,
    bars_of,
    chunk_look,
    comparison_figure,
    held,
    staircase_figure,
)

TIMED = {
    "E5": [f"{n}: time of a step, f = 1 ms, b = 2 ms" for n in ("GPipe", "1F1B")],
    "E6": [
        f"{n}: {row}"
        for n in ("GPipe", "1F1B", "eager 1F1B")
        for row in ("time of a step, 0.25 ms a hop", "the same by its list alone")
    ],
    "E7": [
        f"v = {v}: {row}" for v in (1, 2, 4) for row in ("bubble over ideal", "time of a step by its list")
    ],
    "E8": [f"{n}: time of a step by its list" for n in ("1F1B", "ZB-H1", "ZB-H2", "ZB-V", "DualPipe-V")]
    + [f"{n}: largest span less its work" for n in ("1F1B", "ZB-H1")],
}


class OnlyEqualStages(Lab):
    """Leaves the GPT out: what is tested here is the lesson's own rows."""

    def train(self, *_: Any, **__: Any) -> Any:
        return None


def failed(id_: str, kind: type[Lab] = OnlyEqualStages) -> set[str]:
    taught = taught_lesson(id_)
    return {
        r.name.en
        for r in perform(taught, kind(taught, "threads", taught.hardware), {}).checks
        if r.verdict == "failed"
    }


def altered(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Every recording is changed before anybody looks at it."""
    build = ExecutionGraph.build.__func__

    def changed(cls: Any, *args: Any) -> ExecutionGraph:
        graph = build(cls, *args)
        change(graph)
        received = np.flatnonzero(graph.match >= 0)
        graph.bytes[received] = graph.bytes[graph.match[received]]
        return graph

    monkeypatch.setattr(ExecutionGraph, "build", classmethod(changed))


@pytest.mark.parametrize("id_", ["E6", "E7", "E8"])
def test_one_operation_a_thousandth_longer_fails_every_time(id_, monkeypatch):
    def longer(graph: ExecutionGraph) -> None:
        rows = np.flatnonzero((graph.kind == COMPUTE) & (graph.rank == 1) & (graph.flops > 0))
        graph.flops[rows] += graph.flops[rows] // 1000

    altered(monkeypatch, longer)
    assert failed(id_) >= set(TIMED[id_])


@pytest.mark.parametrize("id_", ["E6", "E7"])
def test_a_message_too_many_fails_the_row_that_counts_them(id_, monkeypatch):
    count = ExecutionGraph.count
    monkeypatch.setattr(ExecutionGraph, "count", lambda self, kind: count(self, kind) + (kind == "send"))
    names = ("GPipe", "1F1B", "eager 1F1B") if id_ == "E6" else ("v = 1", "v = 2", "v = 4")
    assert failed(id_) == {f"{n}: messages" for n in names}


def test_a_hop_that_is_another_fails_the_formula_over_all_hops_and_the_limit(monkeypatch):
    right = equal_stages.machine
    with monkeypatch.context() as patch:
        patch.setattr(equal_stages, "machine", lambda f=1e-3, hop=0.0: right(f, 1.01 * hop))
        found = failed("E6")
    assert {
        f"{n}: largest error of the formula over {k} hops on its domain"
        for n, k in (("GPipe", 11), ("1F1B", 11), ("eager 1F1B", 7))
    } <= found
    monkeypatch.setattr(
        "glasscluster.strategies.pipeline.schedules.eager_1f1b.predict_hop_limit",
        lambda p, m, f, b: 0.9 * (f + b) / 2,
    )
    assert "eager 1F1B: the longest hop that it hides" in failed("E6")


def test_a_rank_that_holds_one_more_fails_the_rows_of_what_is_held(monkeypatch):
    with monkeypatch.context() as patch:
        for program in (e6, e7):
            patch.setattr(program, "held", lambda bars, rank: ([0.0], [max(held(bars, rank)[1]) + 1]))
        assert failed("E6") == {
            f"{n}: most micro-batches held by stage {s}"
            for n in ("GPipe", "1F1B", "eager 1F1B")
            for s in range(4)
        }
        assert failed("E7") >= {
            f"v = {v}: chunks held at most by rank {r}" for v in (1, 2, 4) for r in range(4)
        }
    honest = equal_stages.stages
    monkeypatch.setattr(equal_stages, "stages", lambda *args: (r := honest(*args)) | {"live": r["live"] + 1})
    names = ("1F1B", "ZB-H1", "ZB-H2", "ZB-V", "DualPipe-V")
    assert failed("E8") == {f"{n}: chunks held at most by rank {r}" for n in names for r in range(4)}


def test_a_weight_gradient_that_is_done_twice_fails_the_row_of_gradients(monkeypatch):
    honest = WeightGradients.weight_gradients

    def twice(self: Any, kept: Any, parameters: Any, ready: Any) -> None:
        for parts in kept.deferred.values():
            parts += parts[:1]
        honest(self, kept, parameters, ready)

    monkeypatch.setattr(WeightGradients, "weight_gradients", twice)
    assert "elements of gradients that are not m·n^S" in failed("E8")
    assert "elements of gradients that are not m·n^S" not in failed("E7")


def test_a_span_bubble_of_another_formula_is_seen(monkeypatch):
    for name in (
        "zb_h1.predict_span_bubble",
        "zb_h2.predict_span_bubble",
        "zb_v.predict_span_bubble",
        "dualpipe_v.predict_bubble",
    ):
        monkeypatch.setattr(
            f"glasscluster.strategies.pipeline.schedules.{name}", lambda p, m, f, b, w: p * (f + b)
        )
    plain = {f"{n}: largest span less its work" for n in ("ZB-H1", "ZB-H2", "ZB-V")}
    assert failed("E8") == plain | {"DualPipe-V, slots of two as written: largest span less its work"}


def test_1f1b_in_gpipe_s_order_fails_the_memory_lesson(monkeypatch):
    right = one_f_one_b.one_rank
    with monkeypatch.context() as patch:
        patch.setattr(one_f_one_b, "one_rank", lambda stage, m, warm_up: right(stage, m, m))
        options._made.cache_clear()
        found = failed("E5", Lab)
    options._made.cache_clear()  # nobody after this one gets such a list
    assert {f"1F1B: most micro-batches held by stage {s}" for s in range(4)} <= found
    assert {f"bytes that 1F1B holds less than GPipe, stage {s}" for s in range(4)} <= found
    assert "1F1B: bytes more on all stages for 24 micro-batches more" in found


def test_a_layout_left_out_bytes_and_states_that_differ_fail_the_puzzle(monkeypatch):
    few = [(8, 1, 1, 0), (8, 1, 1, 1), (8, 1, 1, 3), (1, 8, 1, 0), (2, 1, 4, 1)]
    monkeypatch.setattr(e11, "legal", lambda: few)
    assert failed("E11") == {"legal layouts of 8 GPUs"}

    def four_more(graph: ExecutionGraph) -> None:
        graph.bytes[graph.kind == SEND] += 4

    with monkeypatch.context() as patch:
        altered(patch, four_more)
        assert failed("E11") == {
            "legal layouts of 8 GPUs",
            "counted rows of all layouts that differ from their formula",
        }
    honest = Ledger.snapshot
    monkeypatch.setattr(Ledger, "snapshot", lambda self: {k: v + 8 for k, v in honest(self).items()})
    assert {f"dp 8, ZeRO-{z}: model states of all GPUs" for z in (0, 1, 3)} <= failed("E11")


# ---- pictures ----------------------------------------------------------------------------------------------
def drawn(name: str, p: int, m: int, v: int) -> tuple[Any, list[Any]]:
    schedule = make_schedule(name, p, m, v)
    line = (
        Cluster("classroom", p, "threads").run(equal_stages.stages, name, m, v).replay(equal_stages.machine())
    )
    return schedule, bars_of(line, schedule.ranks, [schedule.stages_of(r) for r in range(p)])


@pytest.mark.parametrize(
    ("name", "v"), [("gpipe", 1), ("interleaved", 3), ("zb-h2", 1), ("zb-v", 2), ("dualpipe-v", 2)]
)
def test_bars_are_the_schedule_s_actions_when_they_ran(name, v):
    schedule, bars = drawn(name, 3, 6, v)
    simulated = replace(schedule, together=frozenset()).validate(1e-3, 2e-3, 0.0, 1e-3)
    assert len(bars) == sum(map(len, schedule.ranks))
    for bar in bars:
        action = base.Action(schedule.stages_of(bar.rank)[bar.chunk], bar.kind, bar.micro_batch)
        assert (bar.begin, bar.end) == pytest.approx(
            (simulated.begin[action], simulated.end[action]), rel=1e-9, abs=1e-12
        ), action
    for r in range(3):
        assert max(held(bars, r)[1]) == simulated.peak_live[r]
        assert held(bars, r)[1][-1] == 0


def test_a_recording_of_another_schedule_is_refused():
    _, bars = drawn("gpipe", 2, 4, 1)
    line = (
        Cluster("classroom", 2, "threads")
        .run(equal_stages.stages, "gpipe", 4, 1)
        .replay(equal_stages.machine())
    )
    other = make_schedule("1f1b", 2, 4)
    with pytest.raises(ValueError, match=r"rank 0 recorded 0 operations where the schedule has 0B0"):
        bars_of(line, other.ranks, [[0], [1]])
    assert len(bars) == 16


def test_the_figures_have_a_bar_an_action_and_a_line_a_rank_in_both_languages():
    runs = [ScheduleRun(n, drawn(n, 2, 4, v)[1]) for n, v in (("1f1b", 1), ("zb-v", 2))]
    for lang, word in (("en", "Weight gradient, chunk 1"), ("zh", "权重梯度")):
        figure = plotly_figure(comparison_figure(runs, lang))
        assert sum(len(t.x) for t in figure.data) == 2 * 4 * 2 + 2 * 4 * 2 * 3
        assert any(word in t.name for t in figure.data)
        stairs = plotly_figure(staircase_figure(runs, lang))
        assert len(stairs.data) == 4
        assert max(max(t.y) for t in stairs.data) == 4
    assert chunk_look("forward", 0).fill == "#0072b2"
    assert len({chunk_look("weight", c).fill for c in range(4)}) == 4
