"""What is drawn is what was recorded, and it says so in two languages."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

import glasscluster.visualize as package
from glasscluster.base.breakdown import ENTRIES, PAPERS
from glasscluster.base.rows import Row, not_applicable
from glasscluster.base.text import Said
from glasscluster.scenarios.find_scenario import find
from glasscluster.scenarios.jobs.training import train
from glasscluster.scenarios.lab import Lab, perform
from glasscluster.sim.run import Cluster
from glasscluster.strategies.job import Job
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.visualize import words
from glasscluster.visualize.figures import palette, timeline
from glasscluster.visualize.figures.memory import memory_bars
from glasscluster.visualize.figures.network import matrix
from glasscluster.visualize.figures.palette import IDLE_KINDS
from glasscluster.visualize.figures.picture import plotly_figure
from glasscluster.visualize.page import assemble, one_run, report, trace
from glasscluster.visualize.words import CATALOGUE


@pytest.fixture(scope="module")
def trained():
    plan = make_plan(pp=2, dp=2, schedule="gpipe", global_batch=8)
    with Cluster("classroom", 4, "threads") as cluster:
        return train(
            cluster, Job(plan, make_model("tiny", layers=2, hidden=32, seq=16), steps=1), checked=False
        )


@pytest.fixture(scope="module")
def tour():
    scenario = find("tour")
    lab = Lab(scenario, "threads", "classroom")
    return perform(scenario, lab, {"steps": 1, "hidden": 32, "seq": 16})


def test_every_word_has_both_languages_with_the_same_blanks_and_is_used():
    files = (
        p for p in Path(package.__file__).parent.parent.rglob("*") if p.suffix in (".py", ".html", ".js")
    )
    sources = "".join(p.read_text() for p in files)
    computed = "forward backward weight other parameters gradients activations buffers collective p2p "
    computed += "pass fail partial "
    computed += (
        "split_title idle_title path_title largest_grad largest_weight"  # keys that code puts together
    )
    computed += " part_outside part_attention part_mlp part_scores"
    computed += " serving_prefill serving_decode serving_again serving_held cache_tokens cache_empty"
    made = {*computed.split(), *(f"tab_{t}" for t in assemble.TABS)}
    made |= {*IDLE_KINDS, *ENTRIES, *(f"entry_{key}" for key in ENTRIES)}
    made |= {f"means_{key}" for key in IDLE_KINDS} | {f"table_{key}" for key in PAPERS}
    for key, said in CATALOGUE.items():
        assert said.en.strip(), key
        assert said.zh.strip(), key
        blanks = [sorted(re.findall(r"{(\w+)", text)) for text in (said.en, said.zh)]
        assert blanks[0] == blanks[1], key
        elsewhere = sources.replace(f'"{key}": Said', "")
        assert key in made or re.search(rf"""["']{re.escape(key)}["']""", elsewhere), f"{key} is unused"


def test_every_ledger_row_of_the_tour_has_a_chinese_name(tour):
    assert [row.name for row in tour.all_checks if row.name.zh == row.name.en] == []


def test_text_on_every_colour_has_a_contrast_of_at_least_4_5():
    for looks in (palette.KINDS, palette.MEMORY):
        for name, look in looks.items():
            assert palette.contrast(look.fill, look.text) >= 4.5, name
    style = (Path(package.__file__).parent / "templates" / "report.css").read_text()
    for colour in re.findall(r"[^-]color: (#[0-9a-fA-F]{6})", style):
        assert palette.contrast(colour, "#ffffff") >= 4.5, colour


def test_no_two_kinds_share_both_colour_and_hatch():
    for looks in (palette.KINDS, palette.MEMORY):
        assert len({(v.fill, v.hatch) for v in looks.values()}) == len(looks)


def test_the_bars_of_a_rank_add_up_to_its_busy_time_and_with_the_gaps_to_the_makespan(trained):
    line = trained.timeline
    figure = plotly_figure(timeline.timeline_figure(line))
    spans: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    factor, _ = timeline.time_unit(line.makespan)
    for bars in figure.data:
        if bars.name == words.word("critical"):
            continue
        for y, x in zip(bars.y, bars.x, strict=True):
            spans[bars.name][int(y)] += x / factor
    comm = {words.word("collective"), words.word("p2p")}
    gaps = {words.word(kind) for kind in IDLE_KINDS}
    for rank in range(4):
        drawn = sum(v[rank] for k, v in spans.items() if k not in comm)
        assert drawn == pytest.approx(line.makespan, rel=1e-5)
        busy = sum(v[rank] for k, v in spans.items() if k not in comm | gaps)
        mine = (line.graph.rank == rank) & (line.graph.lane == 0)
        assert busy == pytest.approx(float((line.end - line.start)[mine].sum()), rel=1e-5)


def test_too_many_bars_are_joined_and_the_figure_says_how_many(trained, monkeypatch):
    monkeypatch.setattr(timeline, "DRAWN_SINGLY", 10)
    monkeypatch.setattr(timeline, "PIXELS", 20)
    figure = plotly_figure(timeline.timeline_figure(trained.timeline))
    note = figure.layout.annotations[0].text
    assert f"{len(trained.run.graph):,} events" in note
    joined = int(re.search(r"(\d+) shorter ones", note)[1])
    drawn = int(re.search(r"(\d+) blocks", note)[1])
    assert joined + drawn == len(trained.timeline.blocks()) + len(trained.timeline.communications())


def test_memory_bars_and_curve_reach_the_recorded_peak(trained):
    peaks = trained.run.peak_memory()
    figure = plotly_figure(memory_bars(peaks))
    heights = np.sum([bars.y for bars in figure.data], axis=0)
    assert heights * 1e6 == pytest.approx(
        [total for total, _ in peaks], rel=1e-4
    ) or heights * 1e3 == pytest.approx([total for total, _ in peaks], rel=1e-4)
    for rank, (total, _) in enumerate(peaks):
        assert int(trained.timeline.memory(rank).levels.sum(axis=1).max()) == total


def test_the_traffic_matrix_has_every_byte_that_was_sent(trained):
    graph = trained.run.graph
    assert matrix(graph).sum(axis=1).tolist() == graph.bytes_sent()


def test_the_perfetto_trace_has_every_event_once_and_an_arrow_for_every_message(trained):
    graph = trained.run.graph
    content = trace.chrome_trace(trained.timeline)["traceEvents"]
    spans = [e for e in content if e["ph"] == "X"]
    assert len(spans) == len(graph) - graph.count("begin")
    assert sum(e["ph"] == "s" for e in content) == sum(e["ph"] == "f" for e in content) == graph.count("recv")
    assert max(e["ts"] + e["dur"] for e in spans) == pytest.approx(trained.timeline.makespan * 1e6, rel=1e-6)
    assert json.loads(json.dumps(content)) == content


def test_the_page_is_the_same_bytes_each_time_and_refuses_a_tampered_plotly(
    tour, trained, tmp_path, monkeypatch
):
    pages = [one_run.write_run_report(trained.run, tmp_path / n).read_bytes() for n in ("a.html", "b.html")]
    assert pages[0] == pages[1]
    monkeypatch.setattr(assemble.hashlib, "sha256", lambda _data: assemble.hashlib.md5(b"tampered"))
    assemble.plotly_source.cache_clear()
    with pytest.raises(RuntimeError, match="SHA256SUMS"):
        assemble.plotly_source()
    assemble.plotly_source.cache_clear()


def test_a_failed_row_makes_the_page_say_fail(trained):
    row = Row("planted", Said("planted", "埋下的"), 1, 2, "nowhere")
    chapter = report.Chapter("x", Said("x", "x"), trained.run, {"classroom": trained.timeline}, [row])
    page = assemble.render(report.Report("n", Said("t", "t"), Said("f", "f"), [chapter]))
    assert 'class="status fail"' in page
    assert "✗" in page


def page_of(trained, rows, **more):
    chapter = report.Chapter("x", Said("x", "x"), trained.run, {"classroom": trained.timeline}, rows)
    return report.Report("n", Said("t", "t"), Said("f", "f"), [chapter], **more)


def test_a_row_that_is_not_applicable_is_shown_with_its_reason_in_both_languages_and_fails_nothing(trained):
    name, why = Said("the row", "这一行"), Said("its terms do not hold here", "其条件在此不成立")
    off = not_applicable("off", name, why, "nowhere", predicted=3)
    made = page_of(trained, [*trained.checks, off])
    page = assemble.render(made)
    assert 'class="status pass"' in page
    (line,) = re.findall(r'<tr class="off">.*?</tr>', page, re.S)
    for text in (*vars(name).values(), *vars(why).values(), "– ", "not applicable", "不适用"):
        assert text in line
    assert f"{len(trained.checks)} held, 0 failed, 1 not applicable" in page
    assert f"{len(trained.checks)} 项成立，0 项不成立，1 项不适用" in page
    last = assemble.ledger_csv(made).splitlines()[-1]
    assert last == "x,the row,3,,,,bytes,,nowhere,off,not applicable,its terms do not hold here"


def test_a_page_whose_run_was_not_fully_checked_is_partial_and_says_what_is_missing(trained):
    page = assemble.render(page_of(trained, trained.checks, not_checked=[Said("that much", "那些")]))
    assert 'class="status partial"' in page
    assert "that much" in page
    assert "那些" in page
    assert 'class="status partial"' in assemble.render(page_of(trained, []))
