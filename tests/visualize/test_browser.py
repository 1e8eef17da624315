"""The report in a real browser: no error, no request, every tab, two widths, two languages, hostile text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glasscluster.scenarios.lab import Lab, find, perform
from glasscluster.visualize import report
from glasscluster.visualize.words import CATALOGUE, Said

pytestmark = pytest.mark.browser
HOSTILE = '</script><img src=x onerror="window.stolen=1">\'"{{7*7}}'


@pytest.fixture(scope="module")
def lab():
    play = find("tour")
    return perform(play, Lab(play, "threads", "classroom"), {"steps": 1, "hidden": 32, "seq": 16})


@pytest.fixture(scope="module")
def page_file(lab, tmp_path_factory):
    return lab.write(tmp_path_factory.mktemp("tour"))


@pytest.mark.parametrize("width", [1360, 390])
def test_every_tab_opens_without_an_error_or_a_request_in_both_languages(visit, page_file, width):
    page = visit(page_file, width)
    for language in ("en", "zh"):
        for tab in report.TABS:
            page.click(f"#tab-{tab}")
            assert page.is_visible(f"#panel-{tab}")
            word = CATALOGUE[f"tab_{tab}"].in_(language)
            assert page.inner_text(f"#tab-{tab}") == word
            for plot in page.query_selector_all(f"#panel-{tab} .plot"):
                if plot.is_visible():
                    assert plot.query_selector(".main-svg"), tab
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")  # only figures scroll sideways
        page.click("#language")
    assert page.problems == []


def test_a_link_shows_what_its_sender_saw(visit, page_file):
    page = visit(page_file, 1360, "#tab=timeline&run=gpipe&hw=dgx-h100&lang=zh")
    assert page.inner_text("#panel-timeline .view:not([hidden]) h2").startswith("流水线并行")
    assert "dgx-h100" in page.text_content("#panel-timeline .view:not([hidden]) .xtitle")
    page.select_option('#panel-timeline select[data-pick="run"]', "tp")
    assert "run=tp" in page.url
    assert page.problems == []


def test_keys_pan_zoom_and_walk_and_every_figure_is_also_a_table(visit, page_file):
    page = visit(page_file, 1360, "#tab=timeline&run=gpipe&lang=en")
    look = "document.querySelector('#panel-timeline .view:not([hidden]) .plot').layout.xaxis.range.slice()"
    full = page.evaluate(look)
    page.keyboard.press("+")
    near = page.evaluate(look)
    assert near[1] - near[0] < full[1] - full[0]
    page.keyboard.press("ArrowRight")
    assert page.evaluate(look)[0] > near[0]
    page.keyboard.press("0")
    assert page.evaluate(look) == full
    page.keyboard.press("j")
    assert "rank 0" in page.inner_text("#selected")
    page.click("#panel-timeline .view:not([hidden]) .table-toggle")
    rows = page.query_selector_all("#panel-timeline .view:not([hidden]) .table-box tr")
    drawn = page.evaluate(
        "document.querySelector('#panel-timeline .view:not([hidden]) .plot').data.filter(t => t.hoverinfo !== 'skip')"
        ".reduce((n, t) => n + t.x.length, 0)"
    )
    assert len(rows) == drawn
    assert page.problems == []


def test_hostile_text_in_every_field_is_shown_and_never_run(visit, lab, tmp_path):
    bad = Said(HOSTILE, HOSTILE)
    entry = lab.entries[0]
    rows = [{**entry.checks[0], "name": HOSTILE, "source": HOSTILE, "unit": HOSTILE}]
    chapter = report.Chapter(HOSTILE, bad, entry.run, {HOSTILE: entry.run.timeline}, rows, bad)
    steps = [report.StoryStep(bad, HOSTILE)]
    path = report.write_report(report.Report(HOSTILE, bad, bad, [chapter], steps, 0, rows), tmp_path / "hostile.html")
    page = visit(path, 1360)
    for tab in report.TABS:
        page.click(f"#tab-{tab}")
    assert page.evaluate("window.stolen") is None
    assert HOSTILE in page.inner_text("h1")
    assert page.problems == []


def test_the_ledger_can_be_downloaded_as_csv(visit, page_file, lab):
    page = visit(page_file, 1360, "#tab=ledger")
    with page.expect_download() as started:
        page.click("#download")
    text = Path(started.value.path()).read_text()
    assert len(text.splitlines()) == 1 + len(lab.all_checks)


def test_the_data_block_is_plain_json(page_file):
    page = page_file.read_text()
    block = page.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert json.loads(block)["figures"]


def test_a_run_shows_itself_in_a_notebook_without_a_network(visit, lab, tmp_path):
    path = tmp_path / "cell.html"
    path.write_text("<!doctype html><body>" + lab.entries[0].run._repr_html_())
    page = visit(path, 1000)
    frame = page.frames[1]
    frame.wait_for_selector(".main-svg")
    assert "virtual time" in frame.text_content(".xtitle")
    assert page.problems == []
