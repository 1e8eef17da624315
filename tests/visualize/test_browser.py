"""The report in a real browser: no error, no request, every tab, widths, languages, what-if, hostile text."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from helpers import until, walk_through

from glasscluster.base.text import Said
from glasscluster.scenarios.find_scenario import find
from glasscluster.scenarios.lab import Lab, perform
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.recording.packed import load_packed
from glasscluster.sim.time.replay import replay
from glasscluster.visualize.page import assemble, report

pytestmark = pytest.mark.browser
HOSTILE = '</script><img src=x onerror="window.stolen=1">\'"{{7*7}}'
VIEW = "#panel-timeline .view:not([hidden])"


@pytest.fixture(scope="module")
def lab():
    scenario = find("tour")
    return perform(scenario, Lab(scenario, "threads", "classroom"), {"steps": 1, "hidden": 32, "seq": 16})


@pytest.fixture(scope="module")
def page_file(lab, tmp_path_factory):
    return lab.write(tmp_path_factory.mktemp("tour"))


@pytest.mark.parametrize(
    "widths", [(1360, 390), pytest.param((390, 1360), marks=pytest.mark.soak)]
)  # of one language and the other
def test_every_tab_opens_without_an_error_or_a_request_in_both_languages(visit, page_file, widths):
    page = visit(page_file, widths[0])
    walk_through(page, widths)
    assert page.problems == []


def test_a_link_shows_what_its_sender_saw(visit, page_file):
    page = visit(page_file, 1360, "#tab=timeline&run=gpipe&hw=dgx-h100&lang=zh")
    page.wait_for_selector(f"{VIEW} .xtitle")
    assert page.inner_text(f"{VIEW} h2").startswith("流水线并行")
    assert "dgx-h100" in page.text_content(f"{VIEW} .xtitle")
    page.select_option('#panel-timeline select[data-pick="run"]', "tp")
    assert "run=tp" in page.url
    assert page.problems == []


def test_keys_pan_zoom_and_walk_and_the_timeline_is_also_a_table(visit, page_file):
    page = visit(page_file, 1360, "#tab=timeline&run=gpipe&lang=en")
    until(page, "window.glassReady")
    look = f"document.querySelector('{VIEW} .plot').layout.xaxis.range.slice()"

    def press(key):
        page.keyboard.press(key)
        page.wait_for_timeout(150)
        return page.evaluate(look)

    full = page.evaluate(look)
    near = press("+")
    assert near[1] - near[0] < full[1] - full[0]
    assert press("ArrowRight")[0] > near[0]
    assert press("0") == full
    press("j")
    assert "rank 0" in page.inner_text("#selected")
    press("j")
    press("j")
    assert "waited for" in page.inner_text("#selected")
    page.click(f"{VIEW} .table-toggle")
    page.wait_for_selector(f"{VIEW} .table-box tr")
    rows = page.query_selector_all(f"{VIEW} .table-box tr")
    drawn = page.evaluate(
        f"document.querySelector('{VIEW} .plot').data.filter(t => t.hoverinfo !== 'skip')"
        ".reduce((n, t) => n + t.x.length, 0)"
    )
    assert len(rows) == drawn
    assert page.problems == []


def test_a_clicked_bar_names_what_it_waited_for_and_the_link_keeps_it(visit, page_file):
    page = visit(page_file, 1360, "#tab=timeline&run=gpipe&lang=en")
    until(page, "window.glassReady")
    box = page.query_selector(f"{VIEW} .plot .nsewdrag").bounding_box()
    bar = page.evaluate(f"""() => {{ const p = document.querySelector('{VIEW} .plot');
        const t = p.data.find((t) => t.meta === "forward"); const i = t.y.findIndex((y) => y > 1 && y < 2);
        return [p._fullLayout.xaxis.d2p(t.base[i] + t.x[i] / 2), p._fullLayout.yaxis.d2p(t.y[i])]; }}""")
    page.mouse.click(box["x"] + bar[0], box["y"] + bar[1])
    until(page, "document.getElementById('selected').textContent.includes('rank 1 · Forward 0')")
    told = page.inner_text("#selected")
    assert "waited for: rank 0 · send" in told
    assert re.search(r"sel=forward\.1\.\d+", page.url)
    page.click("#selected button")
    until(page, "document.getElementById('selected').textContent.startsWith('rank 0 · send')")
    again = visit(page_file, 1360, "#" + page.url.split("#")[1])
    until(again, "document.getElementById('selected').textContent.startsWith('rank 0 · send')")
    assert page.problems == again.problems == []


def test_a_moved_slider_replays_the_recording_and_says_what_python_says(visit, page_file, lab):
    page = visit(page_file, 1360, "#tab=timeline&run=ddp&lang=en")
    until(page, "window.glassReady")
    page.click("details.whatif summary")
    page.evaluate(
        """() => { const s = document.getElementById("whatif-bw");
        s.value = "-2"; s.dispatchEvent(new Event("input")); }"""
    )
    until(page, "document.getElementById('whatif-says').textContent.includes('→')")
    entry = next(e for e in lab.entries if e.key == "ddp")
    line = entry.run.timeline
    slower = replay(line.graph, line.hardware.scaled(bandwidth=0.25))
    said = page.inner_text("#whatif-says")
    scale = 1e6 if line.makespan < 1e-3 else 1e3
    shown = [float(x) for x in re.findall(r"([\d.]+) [mµ]s", said)[:2]]
    assert shown == pytest.approx([line.makespan * scale, slower.makespan * scale], rel=1e-3)
    assert f"{100 * (slower.makespan / line.makespan - 1):.1f}" in said
    assert page.is_visible(f"{VIEW} canvas.bars")
    until(page, "location.hash.includes('bw=0.25')")
    page.select_option("#whatif-kind", "backward")
    page.evaluate(
        """() => { const s = document.getElementById("whatif-faster");
        s.value = "1"; s.dispatchEvent(new Event("input")); }"""
    )
    both = replay(line.graph, line.hardware.scaled(bandwidth=0.25), faster={"backward": 2.0})
    until(page, f"document.getElementById('whatif-says').textContent.includes('{both.makespan * scale:.4g}')")
    page.click("#whatif-reset")
    until(page, "!location.hash.includes('bw=')")
    assert not page.is_visible(f"{VIEW} canvas.bars")
    assert page.problems == []


def test_the_stepper_goes_forward_and_back(visit, page_file):
    page = visit(page_file, 1360, "#tab=network&run=ddp&lang=en")
    until(page, "document.documentElement.dataset.drawing === 'no'")
    view = "#panel-network .view:not([hidden])"
    heading = f"() => document.querySelector('{view} .plot[id*=ring]').layout.annotations[0].text"
    assert "step 1: 4 messages" in page.evaluate(heading)
    page.click(f'{view} figure[data-fig^=ring] [data-step="1"]')
    assert "step 2" in page.evaluate(heading)
    page.click(f'{view} figure[data-fig^=ring] [data-step="-1"]')
    assert "step 1" in page.evaluate(heading)
    assert page.problems == []


def test_hostile_text_in_every_field_is_shown_and_never_run(visit, lab, tmp_path):
    bad = Said(HOSTILE, HOSTILE)
    entry = lab.entries[0]
    graph = ExecutionGraph.load(tmp_path_graph(entry, tmp_path))
    graph.names = [f"{n}{HOSTILE}" for n in graph.names]
    graph.info["name"] = HOSTILE
    run = type(entry.run).stored(replay(graph, "classroom"))
    rows = [replace(entry.checks[0], name=bad, source=HOSTILE, unit=HOSTILE)]
    chapter = report.Chapter(
        HOSTILE,
        bad,
        run,
        {HOSTILE: run.timeline},
        rows,
        bad,
        equivalence=hostile_tensors(entry.trained.comparison),
    )
    steps = [report.StoryStep(bad, HOSTILE)]
    taught = report.LessonPage(
        id=HOSTILE,
        question=bad,
        prompt=bad,
        answer=1.0,
        unit=bad,
        low=None,
        high=None,
        formula=report.FormulaShown(HOSTILE, bad, "V", HOSTILE, {HOSTILE: bad}),
        kills=bad,
        explanation=bad,
        points=[bad],
        card_question=bad,
        card_short=bad,
        card_long=bad,
        follow_ups=[
            report.FollowUpShown(bad, bad, None, None),
            report.FollowUpShown(bad, None, HOSTILE, bad),
        ],
        own=bad,
        code=[],
    )
    page_content = report.Report(HOSTILE, bad, bad, [chapter], steps, 0, rows, lesson=taught)
    path = assemble.write_report(page_content, tmp_path / "hostile.html")
    page = visit(
        path, 1360, "#guess=<img src=x onerror=window.stolen=1>&sel=<b>&bw=<i>&slow=<u>:9&faster=__proto__:2"
    )
    page.fill("#guess", "2")
    page.press("#guess", "Enter")
    for tab in assemble.TABS:
        page.click(f"#tab-{tab}")
        until(page, "document.documentElement.dataset.drawing === 'no'")
        for button in page.query_selector_all(f"#panel-{tab} .table-toggle"):
            if button.is_visible():
                button.click()
    page.click("#tab-timeline")
    page.keyboard.press("j")
    page.wait_for_timeout(200)
    assert page.evaluate("window.stolen") is None
    assert page.query_selector_all("img") == []
    assert HOSTILE in page.inner_text("h1")
    assert page.problems == []


def tmp_path_graph(entry, tmp_path):
    path = tmp_path / "graph.npz"
    entry.run.graph.save(path)
    return path


def hostile_tensors(compared):
    by_step = {
        kind: [{HOSTILE + name: v for name, v in step.items()} for step in steps]
        for kind, steps in compared["by_step"].items()
    }
    return {**compared, "by_step": by_step}


def test_ledger_trace_and_graph_can_be_downloaded(visit, page_file, lab, tmp_path):
    page = visit(page_file, 1360, "#tab=ledger&lang=en")

    def fetch(name):
        with page.expect_download() as started:
            page.click(f'[role="tabpanel"]:not([hidden]) [data-download="{name}"]')
        target = tmp_path / name
        started.value.save_as(target)
        return target

    assert len(fetch("ledger.csv").read_text().splitlines()) == 1 + len(lab.all_checks)
    page.click("#tab-timeline")
    trace = json.loads(fetch("trace.json").read_text())
    first = lab.entries[0].run
    assert sum(e["ph"] == "X" for e in trace["traceEvents"]) == len(first.graph) - first.graph.count("begin")
    assert first.graph.difference(load_packed(fetch("graph.json"))) is None
    assert page.problems == []


def test_the_data_block_is_plain_json(page_file):
    page = page_file.read_text()
    block = page.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert json.loads(block)["figures"]


def test_a_run_shows_itself_in_a_notebook_without_a_network(visit, lab, tmp_path):
    path = tmp_path / "cell.html"
    path.write_text("<!doctype html><body>" + lab.entries[0].run._repr_html_(), encoding="utf-8")
    page = visit(path, 1000)
    assert "virtual time" in page.text_content("svg")
    bar = page.query_selector("svg rect:has(title)").bounding_box()
    assert bar["width"] * bar["height"] > 0
    assert page.problems == []


def test_a_printed_page_holds_every_tab_of_the_chosen_run(visit, page_file, tmp_path):
    page = visit(page_file, 1360, "#tab=story&lang=en")
    page.emulate_media(media="print")
    for tab in assemble.TABS:
        assert page.is_visible(f"#panel-{tab} h2, #panel-{tab} .big, #panel-{tab} ol"), tab
    assert not page.is_visible("nav")


def test_a_report_that_was_cut_anywhere_shows_no_verdict(visit, page_file, tmp_path):
    whole = page_file.read_bytes()
    page = visit(page_file, 1360)
    assert page.inner_text("header .status:visible").split()[-1] == "PASS"
    for share in (0.2, 0.9, 0.999):
        cut = tmp_path / f"cut{share}.html"
        cut.write_bytes(whole[: int(share * len(whole))])
        page = visit(cut, 1360)
        assert "INCOMPLETE" in page.inner_text("header .status:visible")
        assert "PASS" not in page.inner_text("header")
