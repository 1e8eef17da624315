"""Above 2,000 bars: the canvas shows what the table says, hides nothing silently, hover finds what ran."""

from __future__ import annotations

import re

import numpy as np
import pytest
from helpers import until
from programs import pipeline_of_spans

from glasscluster.sim.run import Cluster
from glasscluster.visualize.figures.palette import IDLE_KINDS
from glasscluster.visualize.figures.picture import plotly_figure
from glasscluster.visualize.figures.timeline import bar_count, timeline_figure
from glasscluster.visualize.page.one_run import write_run_report

pytestmark = pytest.mark.browser
PLOT = "document.querySelector('#panel-timeline .view:not([hidden]) .plot')"
# the share of a rank's compute lane that is opaque, by pixel columns, along its upper edge (no digits there)
BUSY = """(ranks) => {
  const c = document.querySelector('#panel-timeline canvas.bars'), g = c.getContext('2d');
  const rows = c.height / (ranks - 0.02 + 0.06), found = [];
  for (let r = 0; r < ranks; r++) {
    const line = g.getImageData(0, Math.round((r + 0.06 + 0.1) * rows), c.width, 1).data;
    let sum = 0;
    for (let i = 3; i < line.length; i += 4) sum += line[i];
    found.push(sum / 255 / c.width);
  }
  return found; }"""


@pytest.fixture(scope="module", params=["gpipe", "1f1b"])
def spans(request, tmp_path_factory):
    run = Cluster("classroom", 8, "dry", memory_bytes=None).run(pipeline_of_spans, 400, request.param)
    return run, write_run_report(run, tmp_path_factory.mktemp("spans") / "report.html")


def hide(page, *kinds):
    """As a click on the legend does."""
    chosen = f"{PLOT}.data.map((t, i) => kinds.includes(t.meta) ? i : -1).filter((i) => i >= 0)"
    hidden = f"moduleName.restyle({PLOT}, {{visible: 'legendonly'}}, {chosen})"
    page.evaluate(f"(kinds) => {hidden}", list(kinds))


def test_opaque_pixels_are_busy_seconds_within_a_percent_at_every_zoom(spans, visit):
    run, path = spans
    line, ranks = run.timeline, run.gpus
    assert bar_count(line) > 2000
    page = visit(path, 1360, "#tab=timeline&lang=en")
    until(page, "window.glassReady")
    hide(page, *IDLE_KINDS, "critical")
    full = page.evaluate(f"{PLOT}.layout.xaxis.range.slice()")
    unit = full[1] / (line.makespan * 1.004)
    for a, b in ((0.0, 1.0), (0.3, 0.55), (0.48, 0.52), (0.5, 0.504)):
        window = [a * full[1], b * full[1]]
        page.evaluate(f"(r) => moduleName.relayout({PLOT}, {{'xaxis.range': r}})", window)
        drawn = page.evaluate(BUSY, ranks)
        low, high = (x / unit for x in window)
        for rank in range(ranks):
            rows = (line.graph.rank == rank) & (line.graph.lane == 0)
            inside = np.clip(line.end[rows], low, high) - np.clip(line.start[rows], low, high)
            assert drawn[rank] == pytest.approx(inside.sum() / (high - low), abs=0.01), (rank, a, b)
    assert [
        p for p in page.problems if "getImageData" not in p
    ] == []  # that one is about this test's reading of pixels


def test_no_event_goes_missing_without_being_said(spans, visit):
    run, path = spans
    page = visit(path, 1360, "#tab=timeline&lang=en")
    until(page, "window.glassReady")
    told = page.inner_text("#panel-timeline .view:not([hidden]) .drawn")
    events, bars, single, binned = (
        int(x.replace(",", "")) for x in re.findall(r"[\d,]+(?= events| bars| drawn| binned)", told)
    )
    gaps = sum(g.length > 0 for g in run.timeline.all_gaps)
    assert events == len(run.graph)
    assert bars == bar_count(run.timeline) + gaps == single + binned
    assert binned > 0


def test_hover_and_click_find_the_recorded_event(spans, visit):
    run, path = spans
    line = run.timeline
    page = visit(path, 1360, "#tab=timeline&lang=en")
    until(page, "window.glassReady")
    block = next(b for b in line.blocks() if b["rank"] == 3 and b["micro_batch"] == 200 and b["phase"] == 1)
    full = page.evaluate(f"{PLOT}.layout.xaxis.range.slice()")
    unit = full[1] / (line.makespan * 1.004)
    middle, length = (block["start"] + block["end"]) / 2 * unit, (block["end"] - block["start"]) * unit
    page.evaluate(
        f"(r) => moduleName.relayout({PLOT}, {{'xaxis.range': r}})",
        [middle - 10 * length, middle + 10 * length],
    )
    box = page.query_selector("#panel-timeline .view:not([hidden]) .plot .nsewdrag").bounding_box()
    y = (3 + 0.26 + 0.06) / (run.gpus - 0.02 + 0.06)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + y * box["height"])
    assert "rank 3 · Forward 200" in page.inner_text("#panel-timeline .view:not([hidden]) .tip")
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + y * box["height"])
    until(page, "document.getElementById('selected').textContent.includes('waited for')")
    assert "rank 2 · send" in page.inner_text("#selected")
    page.click("#panel-timeline .view:not([hidden]) .table-toggle")
    until(
        page, "document.querySelectorAll('#panel-timeline .view:not([hidden]) .table-box tr').length > 1000"
    )
    assert "trace.json has everything" in page.inner_text(
        "#panel-timeline .view:not([hidden]) .table-box tr:last-child"
    )
    assert page.problems == []


def test_the_canvas_and_the_bars_of_plotly_are_the_same_rectangles(visit, tmp_path):
    run = Cluster("classroom", 4, "dry", memory_bytes=None).run(pipeline_of_spans, 6, "1f1b")
    path = write_run_report(run, tmp_path / "small.html")
    page = visit(
        path, 1360, "#tab=timeline&lang=en&flops=1.0000001"
    )  # a what-if that changes nothing one can see
    until(page, "window.glassReady")
    hide(page, *IDLE_KINDS, "critical")
    drawn = page.evaluate(BUSY, 4)
    figure = plotly_figure(timeline_figure(run.timeline))
    span = figure.layout.xaxis.range[1]
    for rank in range(4):
        bars = sum(
            x
            for t in figure.data
            if t.meta in ("forward", "backward")
            for x, y in zip(t.x, t.y, strict=True)
            if int(y) == rank
        )
        assert drawn[rank] == pytest.approx(bars / span, abs=0.01)
