"""Pictures of where time goes, what moves, what is held, whether it is equal training: each from what ran."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import plotly.io
import pytest
from helpers import run_plan

from glasscluster.base.breakdown import capital, entry_of
from glasscluster.base.text import Said
from glasscluster.scenarios.jobs.training import train
from glasscluster.sim.ranks.collectives import ALGORITHMS
from glasscluster.sim.recording.events import REDUCE, SEND
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.replay import replay
from glasscluster.sim.time.what_if import critical_seconds, makespans_if_faster
from glasscluster.strategies.job import Job
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.visualize.figures import ledger, network, stepper, thumbnail
from glasscluster.visualize.figures.breakdown import critical_figure, idle_figure, split_figure
from glasscluster.visualize.figures.compare import comparison_figure, contender
from glasscluster.visualize.figures.equivalence import NOTHING, equivalence_figure
from glasscluster.visualize.figures.layout import TEMPLATE
from glasscluster.visualize.figures.memory import StateBook, memory_bars, memory_by_strategy, memory_over_time
from glasscluster.visualize.figures.picture import plotly_figure
from glasscluster.visualize.figures.side_by_side import side_by_side_figure
from glasscluster.visualize.figures.timeline import time_unit, timeline_axes, timeline_figure
from glasscluster.visualize.page.assemble import notebook_html, plotly_source
from glasscluster.visualize.page.chapters import plain, state_book
from glasscluster.visualize.page.report import Chapter

MODEL = make_model("tiny", layers=4, hidden=32, seq=16)
PLANS = {
    "pipeline": {"pp": 4, "schedule": "1f1b", "global_batch": 6},
    "buckets": {"dp": 4, "bucket": 2**13, "global_batch": 8},
    "zero-3": {"dp": 2, "tp": 2, "zero": 3, "global_batch": 4},
}


@pytest.fixture(scope="module")
def lines():
    return {name: run_plan(make_plan(**plan), MODEL).timeline for name, plan in PLANS.items()}


@pytest.fixture(scope="module")
def trained():
    with Cluster("classroom", 2, "threads") as cluster:
        return train(cluster, Job(make_plan(dp=2, zero=1, global_batch=4), MODEL, steps=3))


# ---- where the time goes -----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", list(PLANS))
def test_the_parts_of_every_rank_add_up_to_the_step_and_the_figure_shows_them(lines, name):
    line = lines[name]
    parts = line.split()
    for rank, part in enumerate(parts):
        assert sum(part.values()) == pytest.approx(line.makespan, rel=1e-12)
        assert min(part.values()) >= -1e-15
        exposed = sum(v for key, v in part.items() if key.startswith("exposed_"))
        assert exposed == pytest.approx(line.exposed_comm()[rank], abs=1e-15)
        whole = line.breakdown(rank)
        assert part["alone"] + part["overlapped"] == pytest.approx(whole.pop("compute"), rel=1e-12)
        assert {key: part[key] for key in whole} == whole
    factor, _ = time_unit(line.makespan)
    drawn = np.zeros(line.graph.ranks)
    for trace in plotly_figure(split_figure(line)).data:
        drawn += np.array(trace.x, dtype=float)
    assert drawn == pytest.approx([line.makespan * factor] * line.graph.ranks, rel=1e-5)


@pytest.mark.parametrize("name", list(PLANS))
def test_overlap_is_what_a_fine_ruler_measures(lines, name):
    line = lines[name]
    ticks = (np.arange(20_000) + 0.5) / 20_000 * line.makespan
    for rank, part in enumerate(line.split()):
        busy, moving = np.zeros(len(ticks), bool), np.zeros(len(ticks), bool)
        g = line.graph
        for row in np.flatnonzero((g.rank == rank) & (g.lane == 0) & (g.phase != 5)):
            busy |= (ticks >= line.start[row]) & (ticks < line.end[row])
        for work in line.communications():
            if work["rank"] == rank:
                moving |= (ticks >= work["start"]) & (ticks < work["end"])
        assert part["overlapped"] == pytest.approx(
            (busy & moving).mean() * line.makespan, abs=line.makespan / 500
        )


@pytest.mark.parametrize("name", list(PLANS))
def test_the_figure_of_idle_time_shows_every_gap_under_the_name_of_its_entry(lines, name):
    line = lines[name]
    gaps = Counter()
    for gap in line.all_gaps:
        gaps[capital(entry_of(gap.entry).name.en)] += gap.length
    factor, _ = time_unit(line.makespan)
    drawn = {trace.name: sum(map(float, trace.x)) / factor for trace in plotly_figure(idle_figure(line)).data}
    assert drawn == pytest.approx(gaps, rel=1e-5)
    assert ("Bubble" in drawn) == (name == "pipeline")


@pytest.mark.parametrize("name", list(PLANS))
def test_the_critical_path_adds_up_to_the_makespan_and_gains_are_replays(lines, name):
    line = lines[name]
    assert sum(critical_seconds(line).values()) == pytest.approx(line.makespan, rel=1e-12)
    faster = makespans_if_faster(line, 2.0)
    assert all(0 < v <= line.makespan * (1 + 1e-12) for v in faster.values())
    kind = "backward"
    assert faster[kind] == replay(line.graph, line.hardware, faster={kind: 2.0}).makespan < line.makespan
    again = makespans_if_faster(replay(line.graph, line.hardware, slow_ranks={0: 3.0}), 2.0)
    assert (
        again[kind]
        == replay(line.graph, line.hardware, slow_ranks={0: 3.0}, faster={kind: 2.0}).makespan
        > faster[kind]
    )
    texts = critical_figure(line).data[0]["text"]
    assert sum(float(re.search(r"\((\d+)%\)", t)[1]) for t in texts) == pytest.approx(100, abs=len(texts))


def test_timelines_side_by_side_share_an_axis_and_keep_every_bar(lines):
    chosen = [(n, lines[n]) for n in ("pipeline", "buckets")]
    figure = plotly_figure(side_by_side_figure(chosen))
    bars = sum(len(trace.x) for trace in figure.data)
    assert bars == sum(len(t.blocks()) + len(t.communications()) for _, t in chosen)
    factor, _ = time_unit(max(t.makespan for _, t in chosen))
    assert figure.layout.xaxis.range[1] >= max(t.makespan for _, t in chosen) * factor
    assert {a.text.split("</b>")[0][3:] for a in figure.layout.annotations} == {"pipeline", "buckets"}


# ---- what moves --------------------------------------------------------------------------------------------
def ring(gpu, operation, elements=24, algorithm="ring"):
    import torch

    x = torch.arange(float(elements)) + gpu.rank
    getattr(gpu.comm, operation)(x, algorithm=algorithm)


@pytest.fixture(scope="module")
def rings():
    return {
        op: Cluster("classroom", 4, "threads").run(ring, op).graph
        for op in ("all_reduce", "reduce_scatter", "all_gather", "broadcast")
    }


def held(graph: ExecutionGraph):
    (_, row), *_ = stepper.collectives(graph)
    return stepper.steps_of(graph, row)


def test_stepping_through_a_ring_ends_where_the_operation_must(rings):
    everyone = frozenset(range(4))
    steps = held(rings["all_reduce"])
    assert len(steps.moves) == 6
    assert all(len(m) == 4 for m in steps.moves)
    assert [len(h) for h in steps.holding[0][0]] == [1] * 4
    assert all(cell == everyone for row in steps.holding[-1] for cell in row)
    scattered = held(rings["reduce_scatter"])
    assert len(scattered.moves) == 3
    assert all(scattered.holding[-1][r][r] == everyone for r in range(4))
    gathered = held(rings["all_gather"])
    assert [[sorted(c) for c in row] for row in gathered.holding[0]] == [
        [[r] if c == r else [] for c in range(4)] for r in range(4)
    ]
    assert [[sorted(c) for c in row] for row in gathered.holding[-1]] == [[[c] for c in range(4)]] * 4
    spread = held(rings["broadcast"])
    assert all(cell == frozenset({0}) for row in spread.holding[-1] for cell in row)


def test_every_recorded_message_and_byte_of_the_collective_is_a_move(rings):
    for graph in rings.values():
        steps = held(graph)
        moved = np.zeros(4, int)
        for move in (m for moves in steps.moves for m in moves):
            moved[move.src] += move.bytes
        assert moved.tolist() == graph.bytes_sent()


EVERY = [
    (op, name)
    for op, algorithms in ALGORITHMS.items()
    for name in algorithms
    if name != "native" and op not in ("all_to_all", "barrier")
]


@pytest.mark.parametrize("n", [4, 6])
@pytest.mark.parametrize(("operation", "algorithm"), EVERY)
def test_any_algorithm_can_be_stepped_through_to_its_end(operation, algorithm, n):
    graph = Cluster("classroom", n, "threads").run(ring, operation, 24, algorithm).graph
    steps = held(graph)
    everyone, ends = frozenset(range(n)), [*steps.chunks[1:], steps.nbytes]
    width = steps.nbytes // n
    owner = [
        first // width if end <= (first // width + 1) * width else None
        for first, end in zip(steps.chunks, ends, strict=True)
    ]
    for rank, row in enumerate(steps.holding[-1]):
        for c, cell in enumerate(row):
            if (
                operation == "all_reduce"
                or (operation == "reduce" and rank == 0)
                or (operation == "reduce_scatter" and owner[c] == rank)
            ):
                assert cell == everyone
            elif operation == "broadcast" or (operation == "scatter" and owner[c] == rank):
                assert cell == frozenset({0})
            elif (operation == "all_gather" or (operation == "gather" and rank == 0)) and owner[
                c
            ] is not None:
                assert cell == frozenset({owner[c]})
    moved = sum(m.bytes for moves in steps.moves for m in moves)
    assert moved == sum(graph.bytes_sent())
    assert stepper.stepper_figure(graph) is not None


def test_an_addition_that_was_dropped_is_seen(rings):
    graph = rings["all_reduce"]
    lost = np.flatnonzero(graph.kind == REDUCE)[5]
    kinds = graph.kind.copy()
    kinds[lost] = -1
    columns = {c: getattr(graph, c) for c in graph.canonical_rows() if c not in ("edges", "match")} | {
        "kind": kinds
    }
    meta = {"names": graph.names, "groups": graph.groups, "ranks": graph.ranks, "memory": graph.memory}
    broken = held(ExecutionGraph(columns, graph.dep_ptr, graph.dep_idx, graph.match, meta))
    assert any(cell != frozenset(range(4)) for row in broken.holding[-1] for cell in row)


def test_the_stepper_has_a_view_a_step_and_none_without_a_collective(rings, lines):
    figure = plotly_figure(stepper.stepper_figure(rings["all_reduce"]))
    assert len(figure.layout.sliders[0].steps) == 7
    assert figure.layout.sliders[0].steps[-1].args[0]["text"][0] == ["all"] * 16
    assert stepper.stepper_figure(Cluster("classroom", 1, "threads").run(ring, "all_reduce").graph) is None


def test_the_matrix_shows_every_byte_of_all_axes_and_of_each(lines):
    graph = lines["zero-3"].graph
    figure = plotly_figure(network.traffic_figure(graph))
    labels = [b.label for b in figure.layout.updatemenus[0].buttons]
    assert labels == ["all axes", *dict.fromkeys(graph.axis[graph.kind == SEND].tolist())]
    for button, axis in zip(figure.layout.updatemenus[0].buttons, [None, *labels[1:]], strict=True):
        told = sum(
            int(re.search(r">([\d,]+) B", text)[1].replace(",", ""))
            for text in button.args[0]["customdata"][0]
        )
        assert told == sum(graph.bytes_sent(axis=axis))


# ---- what is held, and whether it is the same --------------------------------------------------------------
def test_states_by_strategy_are_the_counted_bytes_with_the_formula_s_beside(trained):
    chapter = Chapter("x", Said("x", "x"), trained.run, {"classroom": trained.timeline}, trained.checks)
    book = state_book(chapter)
    assert sum(book.counted.values()) * 2 == sum(
        sum(v.values()) for v in (r.state_bytes for r in trained.run.results)
    )
    figure = plotly_figure(memory_by_strategy([replace(book, name="zero-1")]))
    stacked = sum(float(trace.y[0]) for trace in figure.data[:3])
    assert stacked == pytest.approx(float(figure.data[-1].y[0]), rel=1e-5)
    rest = {"activations", "buffers"}
    assert sum(float(trace.y[0]) for trace in figure.data[3:-1]) * 1e3 == pytest.approx(
        sum(book.more[k] for k in rest), rel=1e-5
    )
    assert state_book(replace(chapter, checks=trained.checks[:1])) is None


def test_equivalence_shows_each_step_s_worst_tensor_and_each_tensor_alone(trained):
    compared = trained.comparison
    figure = plotly_figure(equivalence_figure(compared))
    for trace, kind in ((figure.data[2], "grad"), (figure.data[3], "weight")):
        assert len(trace.y) == 3
        assert max(trace.y) == pytest.approx(max(compared[f"max_rel_{kind}_diff"], NOTHING), rel=1e-3)
    buttons = figure.layout.updatemenus[0].buttons
    assert len(buttons) == 1 + len(compared["by_step"]["grad"][0])
    assert list(figure.data[0].y) == compared["reference_losses"]
    planted = {
        **compared,
        "by_step": {
            **compared["by_step"],
            "grad": [dict.fromkeys(s, 0.001) for s in compared["by_step"]["grad"]],
        },
    }
    assert min(equivalence_figure(planted).data[2]["y"]) == 1e-3


def test_the_ledger_figure_paints_a_failing_row_red(trained):
    assert "#a32a00" not in ledger.ledger_figure(trained.checks).data[1]["marker"]["color"]
    right = next(r for r in trained.checks if r.verdict == "held" and r.match == "exact")
    bad = [replace(right, counted=right.predicted + 8)]
    assert ledger.ledger_figure(bad).data[1]["marker"]["color"][0] == "#a32a00"
    assert ledger.ledger_figure([]) is None


# ---- alone in a notebook, small without a browser ----------------------------------------------------------
@pytest.fixture(scope="module")
def every_figure(lines, rings, trained):
    line, peaks = lines["pipeline"], trained.run.peak_memory()
    book = StateBook(
        "zero-1",
        dict.fromkeys(("parameters", "gradients", "optimizer"), 1e6),
        dict.fromkeys(("a", "b", "c"), 1e6),
    )
    two = [contender({"en": n, "zh": n}, t, peaks) for n, t in list(lines.items())[:2]]
    return {
        "1 timeline": lambda lang: timeline_figure(line, lang),
        "1 timeline axes": lambda lang: timeline_axes(line, lang),
        "2 side by side": lambda lang: side_by_side_figure(list(lines.items()), lang),
        "3 split": lambda lang: split_figure(line, lang),
        "4 idle": lambda lang: idle_figure(line, lang),
        "5 critical": lambda lang: critical_figure(line, lang),
        "6 memory": lambda lang: memory_over_time(trained.timeline, 0, lang),
        "6 peaks": lambda lang: memory_bars(peaks, lang),
        "7 states": lambda lang: memory_by_strategy([book], lang),
        "8 stepper": lambda lang: stepper.stepper_figure(rings["all_reduce"], lang),
        "10 matrix": lambda lang: network.traffic_figure(line.graph, lang),
        "10 sent": lambda lang: network.sent_figure(line.graph, lang),
        "13 ledger": lambda lang: ledger.ledger_figure(trained.checks, lang),
        "14 equivalence": lambda lang: equivalence_figure(trained.comparison, lang),
        "compare": lambda lang: comparison_figure(two, lang),
    }


def test_every_figure_has_a_thumbnail_with_something_on_it_and_no_script(every_figure):
    for name, make in every_figure.items():
        picture = thumbnail.figure_svg(make("en"), "<b>&")
        assert picture.startswith("<svg")
        assert "<title>&lt;b&gt;&amp;</title>" in picture
        assert "nan" not in picture, name
        assert len(re.findall(r"<(rect|polyline|polygon|circle)", picture)) >= (0 if "axes" in name else 1), (
            name
        )
        for x in re.findall(r'\bx="([-\d.]+)"', picture):
            assert -400 <= float(x) <= 800, (name, x)


@pytest.mark.browser
@pytest.mark.parametrize(
    "languages", [("en", "zh"), pytest.param(("zh", "en"), marks=pytest.mark.soak)]
)  # of one figure and the next
def test_every_figure_draws_alone_in_a_notebook(every_figure, languages, visit, tmp_path):
    for i, (name, make) in enumerate(every_figure.items()):
        lang = languages[i % 2]
        path = tmp_path / f"{name}-{lang}.html"
        path.write_text("<!doctype html><body>" + notebook_html(make(lang)))
        page = visit(path, 1000)
        page.frames[1].wait_for_selector(".main-svg")
        assert page.problems == [], name
        page.close()


# ---- one template, of which every entry is needed ----------------------------------------------------------
DRAWN = """async ([figures, template]) => {
  const room = document.getElementById("room");
  const said = (node) => node.nodeType !== 1 ? node.textContent || "" : node.tagName
    + Array.from(node.attributes, (a) => a.name + a.value.split(/; */).sort()).sort()
    + Array.from(node.childNodes, said).join("");
  const drawn = [];
  for (const { data, layout } of figures) {
    data.forEach((trace, i) => { trace.uid = "t" + i; });
    await moduleName.newPlot(room, data, { ...layout, width: 900, template });
    const { _uid, hovermode, hoverlabel } = room._fullLayout;
    const all = Array.from(room.querySelectorAll(".main-svg"), said).join("").replaceAll(_uid, "");
    drawn.push(all + hovermode + hoverlabel.align);
    moduleName.purge(room);
  }
  return drawn; }"""


def without(entry):
    """The template but for one entry, given by its path."""
    less = json.loads(json.dumps(TEMPLATE))
    inner = less
    for key in entry[:-1]:
        inner = inner[key]
    del inner[entry[-1]]
    return less


@pytest.mark.browser
def test_our_template_gives_every_figure_the_looks_of_plotly_s_own(every_figure, browser):
    page = browser.new_page(viewport={"width": 1000, "height": 700})
    page.set_content('<div id="room"></div>')
    page.add_script_tag(content=plotly_source())
    figures = [plain(make("en")) for make in every_figure.values()]
    whole = page.evaluate(DRAWN, [figures, plotly.io.templates["plotly"].to_plotly_json()])
    assert page.evaluate(DRAWN, [figures, TEMPLATE]) == whole
    assert all("path" in svg for svg in whole)
    for entry in (
        ("data", "bar", 0, "marker", "pattern", "fillmode"),
        ("layout", "hoverlabel", "align"),
        ("layout", "xaxis", "gridcolor"),
        ("layout", "xaxis", "title", "standoff"),
    ):
        assert page.evaluate(DRAWN, [figures, without(entry)]) != whole, entry
    page.close()
