"""A timeline in a notebook is a small picture, true to the recording; `show` says where the figure is."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from copy import copy
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from programs import pipeline_of_spans

from glasscluster.sim.run import Cluster
from glasscluster.sim.time.replay import replay
from glasscluster.visualize.figures import still
from glasscluster.visualize.figures.palette import KINDS
from glasscluster.visualize.figures.still import timeline_still
from glasscluster.visualize.figures.timeline import bar_count

SVG = "{http://www.w3.org/2000/svg}"
BUSY = ("forward", "backward", "other")
PLOT = still.WIDTH - still.LEFT - still.RIGHT


@pytest.fixture(scope="module")
def few():
    return Cluster("classroom", 4, "dry", memory_bytes=None).run(pipeline_of_spans, 6, "1f1b").timeline


@pytest.fixture(scope="module")
def many():
    return Cluster("classroom", 4, "dry", memory_bytes=None).run(pipeline_of_spans, 300, "1f1b").timeline


def busy_share(timeline, rank):
    rows = (timeline.graph.rank == rank) & (timeline.graph.lane == 0)
    return float((timeline.end - timeline.start)[rows].sum()) / timeline.makespan


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_bars_of_a_rank_are_as_long_as_it_was_busy_and_each_names_itself(few, lang):
    root = ElementTree.fromstring(timeline_still(few, lang))
    fills = {KINDS[k].fill for k in BUSY}
    drawn = defaultdict(float)
    for bar in root.iter(f"{SVG}rect"):
        says = bar.find(f"{SVG}title")
        if says is not None and bar.get("fill") in fills:
            drawn[int(re.search(r"rank (\d+)", says.text)[1])] += float(bar.get("width")) / PLOT
    for rank in range(4):
        assert drawn[rank] == pytest.approx(busy_share(few, rank), abs=0.01)
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert any(("virtual time" if lang == "en" else "虚拟时间") in w for w in words)


def test_above_two_thousand_bars_a_column_is_as_strong_as_it_was_busy(many):
    assert bar_count(many) > 2000
    root = ElementTree.fromstring(timeline_still(many))
    row = still.ROW
    drawn = defaultdict(float)
    for path in root.iter(f"{SVG}path"):
        if path.get("fill") not in {KINDS[k].fill for k in BUSY}:
            continue
        for y, width in re.findall(r"M[\d.]+ ([\d.]+)h([\d.]+)", path.get("d")):
            drawn[int((float(y) - still.TOP) // row)] += float(width) * float(path.get("fill-opacity"))
    for rank in range(4):
        assert drawn[rank] / PLOT == pytest.approx(busy_share(many, rank), abs=0.03)
    assert f"{len(many.graph):,} events" in "".join(root.itertext())


def test_three_displays_make_a_small_notebook_without_a_script_or_an_address(few, many):
    shown = [few._repr_html_(), many._repr_html_(), few._repr_html_()]
    assert sum(map(len, shown)) < 300_000
    for html in shown:
        assert "<script" not in html
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)


def test_hostile_names_in_a_recording_stay_text(few):
    graph = copy(few.graph)
    graph.names = [name + "</title><img src=x onerror=alert(1)>" for name in graph.names]
    drawn = timeline_still(replay(graph, few.hardware))
    assert "&lt;img src=x" in drawn
    assert [x for x in ElementTree.fromstring(drawn).iter() if x.tag.endswith("img")] == []


def test_shown_in_a_script_it_prints_where_the_figure_is(few, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setenv("DISPLAY", ":0")
    few.show()
    printed = capsys.readouterr().out.strip()
    assert re.fullmatch(rf"timeline: {re.escape(str(tmp_path))}/glasscluster-\w+/timeline\.html", printed)
    assert opened == [f"file://{printed.removeprefix('timeline: ')}"]
    few.show(tmp_path / "mine.html", lang="zh")
    assert capsys.readouterr().out == f"timeline: {tmp_path / 'mine.html'}\n"
    page = (tmp_path / "mine.html").read_text(encoding="utf-8")
    assert len(page) < 700_000
    assert "虚拟时间" in page
    assert len(opened) == 1  # a file of one's own is opened by its owner


def test_without_a_screen_no_browser_is_started(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("webbrowser.open", lambda address: pytest.fail("a browser was started"))
    few.show()
    assert "timeline.html" in capsys.readouterr().out


def test_shown_in_a_notebook_it_is_an_output_of_the_cell(few, monkeypatch, capsys):
    published = []
    shell = SimpleNamespace(kernel=object(), display_pub=SimpleNamespace(publish=published.append))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    few.show()
    assert capsys.readouterr().out == ""
    assert [x["text/html"][:8] for x in published] == ["<iframe "]
    assert len(published[0]["text/html"]) < 700_000
