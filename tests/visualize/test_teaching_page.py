"""The page in front of a class, on a phone and under the keyboard; and no figure that can be uploaded."""

from __future__ import annotations

import base64

import pytest
from helpers import until
from programs import pipeline_of_spans

from glasscluster.base.rows import Row
from glasscluster.base.text import Said
from glasscluster.sim.run import Cluster
from glasscluster.visualize.figures import plots
from glasscluster.visualize.figures.experts import Load, expert_load_figure
from glasscluster.visualize.figures.memory import StateBook, memory_by_strategy
from glasscluster.visualize.page import assemble, report
from glasscluster.visualize.words import CATALOGUE

pytestmark = pytest.mark.browser
PARTS = ("parameters", "gradients", "optimizer")
OPEN = "&guess=1"  # a prediction has been made
PROJECTOR = {"width": 1360, "height": 768}
DRAWN = "document.documentElement.dataset.drawing === 'no'"
SLIDE = ".slide.shown"
# the texts of a figure that have to be read from the back of a room, by kind
TEXTS = """(figure) => {
  const kinds = { tick: "[class*=tick] text", title: "text[class*=xtitle], text[class*=ytitle]",
    legend: ".legendtext", note: ".annotation-text" };
  return Object.entries(kinds).flatMap(([kind, query]) => [...figure.querySelectorAll(query)]
    .filter((text) => text.textContent.trim() && text.getBoundingClientRect().width > 0)
    .map((text) => { const { left, top, right, bottom } = text.getBoundingClientRect();
      return { kind, text: text.textContent, size: parseFloat(getComputedStyle(text).fontSize),
        left, top, right, bottom }; })); }"""


def sixteen_strategies(lang):
    """D3's figure of sixteen bars, each with its sum above it."""
    books = []
    for number in range(16):
        counted = {part: 1e6 * (17 - number) / (1 + k) for k, part in enumerate(PARTS)}
        books.append(StateBook(f"ZeRO-{number // 4}<br>offload", counted, counted, {"activations": 2e5}))
    return memory_by_strategy(books, lang)


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    said = Said("A question?", "一个问题？")
    rows = [
        Row(
            f"row_{i}",
            Said(f"largest difference of output {i} from torch's", f"输出 {i} 与 torch 的最大差异"),
            1,
            1,
            "",
        )
        for i in range(30)
    ]
    chapters = []
    for schedule in ("gpipe", "1f1b"):
        run = Cluster("classroom", 4, "dry", memory_bytes=None).run(pipeline_of_spans, 8, schedule)
        title = Said(f"Run {schedule}", f"运行 {schedule}")
        chapters.append(report.Chapter(schedule, title, run, {"classroom": run.timeline}, rows, said))
    curves = {
        "this GPT, as recorded": ([1, 2, 4, 8], [80, 60, 40, 20]),
        "ideal": ([1, 2, 4, 8], [70, 50, 30, 9]),
    }
    grown = {"textbook": ([256, 512, 2048], [3e5, 1.2e6, 2e7]), "tiled": ([256, 512, 2048], [9e4, 3e5, 4e6])}
    shared = ("Asked evenly", "A hot expert", "Hot, places limited")
    loads = [Load(name, [512] * 8, [500] * 8, 640) for name in shared]
    figures = [
        (Said("The bubble", "气泡"), lambda lang: plots.lines(curves, "micro-batches m", "bubble (%)")),
        (Said("The peak", "峰值"), sixteen_strategies),
        (
            Said("Elements moved", "搬运的元素"),
            lambda lang: plots.lines(grown, "N", "elements", log_x=True, log_y=True),
        ),
        (Said("Rows for each expert", "各专家的行数"), lambda lang: expert_load_figure(loads, lang)),
    ]
    finding = Said("35.4% of the GPUs' time is bubble.", "GPU 时间的 35.4% 是气泡。")
    formula = report.FormulaShown("Eq 20", Said("(p−1)/m", "(p−1)/m"), "V", "1811.06965", {})
    taught = report.LessonPage(
        id="T",
        question=said,
        prompt=said,
        answer=1.0,
        unit=Said("%", "%"),
        low=None,
        high=None,
        formula=formula,
        kills=said,
        explanation=said,
        points=[],
        card_question=said,
        card_short=said,
        card_long=said,
        follow_ups=[],
        own=None,
        code=[],
    )
    page = report.Report(
        "T", Said("A lesson", "一节课"), finding, chapters, [], 0, figures=figures, lesson=taught
    )
    return assemble.write_report(page, tmp_path_factory.mktemp("lesson") / "report.html")


def slides_of(page):
    """Every slide from the first to the last, drawn."""
    page.keyboard.press("p")
    of_all = int(page.inner_text("#slide-place").split("/")[1])
    while page.inner_text("#slide-place").split("/")[0].strip() != "1":
        page.keyboard.press("PageUp")
    for number in range(of_all):
        until(page, DRAWN)
        page.wait_for_timeout(30)
        assert page.inner_text("#slide-place") == f"{number + 1} / {of_all}"
        yield page.query_selector(SLIDE)
        page.keyboard.press(("ArrowRight", "PageDown", " ")[number % 3])


def lying_on_each_other(texts):
    found = []
    for i, a in enumerate(texts):
        for b in texts[i + 1 :]:
            aside = min(a["right"], b["right"]) - max(a["left"], b["left"])
            above = min(a["bottom"], b["bottom"]) - max(a["top"], b["top"])
            if a["kind"] == b["kind"] and aside > 2 and above > 3:
                found.append((a["text"], b["text"]))
    return found


# ---- the tool bar ------------------------------------------------------------------------------------------
def test_no_figure_can_be_uploaded_and_no_tool_opens_a_connection_or_a_window(visit, lesson):
    page = visit(lesson, 1360, f"#tab=timeline&lang=en{OPEN}")
    windows = len(page.context.pages)
    for tab in assemble.TABS:
        page.click(f"#tab-{tab}")
        until(page, DRAWN)
        assert page.query_selector_all(".modebar, .modebar-btn") == []
        for figure in page.query_selector_all(f"#panel-{tab} figure"):
            if not figure.is_visible():
                continue
            assert (
                figure.evaluate(
                    "(f) => [...f.querySelectorAll('button')].filter((b) => b.tabIndex === 0).length"
                )
                == 1
            )
    page.click("#tab-story")
    first = page.query_selector("figure[data-fig=own-0]")
    for tool in first.query_selector_all(".tool-bar button"):
        tool.click()
        page.keyboard.press("Escape")
    page.wait_for_timeout(300)
    said = page.evaluate("document.body.textContent").lower()
    assert "share chart" not in page.inner_text("body").lower()
    assert "plotly.com" not in said.replace(assemble.plotly_source().lower(), "")
    assert len(page.context.pages) == windows
    assert page.problems == []


COUNT = """async (address) => {
  const image = new Image(); image.src = address; await image.decode();
  const paper = new OffscreenCanvas(image.width, image.height), pen = paper.getContext("2d");
  pen.drawImage(image, 0, 0);
  const at = pen.getImageData(0, 0, image.width, image.height).data;
  let blue = 0;
  for (let i = 0; i < at.length; i += 4) blue += at[i] < 90 && at[i + 2] - at[i] > 90;
  return [image.width, image.height, blue]; }"""


def test_a_saved_picture_holds_what_is_seen_the_canvas_of_a_timeline_too(visit, lesson, tmp_path):
    painted = []
    for what_if in ("", "&flops=1.0000001"):  # bars by plotly, then bars on a canvas
        page = visit(lesson, 1360, f"#tab=timeline&lang=en{OPEN}{what_if}")
        until(page, "window.glassReady && " + DRAWN)
        assert page.is_visible("figure[data-fig=tl-0-0] canvas.bars") == bool(what_if)
        with page.expect_download() as started:
            page.click("figure[data-fig=tl-0-0] [data-do=save]")
        assert started.value.suggested_filename == "glasscluster-tl-0-0.png"
        started.value.save_as(tmp_path / "saved.png")
        encoded = base64.b64encode((tmp_path / "saved.png").read_bytes()).decode()
        painted.append(page.evaluate(COUNT, f"data:image/png;base64,{encoded}"))
        assert page.problems == []
    (width, height, by_plotly), (_, _, on_canvas) = painted
    assert (width, height) == (2 * 1304, 2 * (150 + 92 * 4))
    assert by_plotly > 10_000
    assert on_canvas == pytest.approx(by_plotly, rel=0.1)


# ---- in front of a class -----------------------------------------------------------------------------------
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_slide_is_one_figure_whose_text_is_read_from_the_back(visit, lesson, lang):
    page = visit(lesson, 1360, f"#tab=story&lang={lang}{OPEN}")
    page.set_viewport_size(PROJECTOR)
    until(page, DRAWN)
    shown = []
    for slide in slides_of(page):
        assert not page.is_visible("header")
        assert sum(s.is_visible() for s in page.query_selector_all(".slide")) == 1
        name = slide.get_attribute("data-fig") or "question"
        shown.append(name)
        if name == "question":
            continue
        texts = slide.evaluate(TEXTS)
        assert texts, name
        assert [t for t in texts if t["size"] < 25] == [], name
        scrolls = slide.evaluate("(s) => s.scrollHeight > s.clientHeight + 2")
        outside = [
            t
            for t in texts
            if t["left"] < -1 or t["right"] > 1361 or t["top"] < 50 or (t["bottom"] > 769 and not scrolls)
        ]
        assert [t["text"] for t in outside] == [], name
        assert lying_on_each_other(texts) == [], name
        if scrolls:  # and the slide says so
            assert slide.get_attribute("data-tall") is not None, name
            page.keyboard.press("ArrowDown")
            assert slide.evaluate("(s) => s.scrollTop") > 0
    assert shown[:3] == ["question", "own-0", "own-1"]
    assert "tl-0-0" in shown
    assert "tl-1-0" not in shown  # of the other run
    assert len(shown) == len(set(shown))
    assert page.problems == []


def test_a_presentation_begins_where_one_reads_and_leaves_the_page_as_it_was(visit, lesson):
    page = visit(lesson, 1360, f"#tab=timeline&lang=en{OPEN}")
    page.set_viewport_size(PROJECTOR)
    until(page, "window.glassReady && " + DRAWN)
    height = "document.querySelector('figure[data-fig=tl-0-0] .plot')._fullLayout.height"
    before = page.evaluate(height)
    page.keyboard.press("p")
    until(page, DRAWN)
    assert page.query_selector(SLIDE).get_attribute("data-fig") == "tl-0-0"
    assert "step" in page.inner_text("#slide-title")
    first = page.query_selector(f"{SLIDE} .bars .point")
    box = first.bounding_box()
    assert 56 <= box["y"] < 768 - box["height"]
    page.keyboard.press("j")
    until(page, "document.getElementById('selected').textContent.includes('rank 0')")
    said = page.query_selector("#selected").bounding_box()
    assert said["y"] + said["height"] <= 768
    link = "#" + page.url.split("#")[1]
    assert "show=tl-0-0" in link
    page.keyboard.press("Escape")
    until(page, DRAWN)
    assert page.is_visible("header")
    assert page.evaluate(height) == before
    page.click("#present")
    until(page, DRAWN)
    assert page.is_visible(SLIDE)
    again = visit(lesson, 1360, link)  # a link shows what its sender saw
    until(again, DRAWN)
    assert again.query_selector(SLIDE).get_attribute("data-fig") == "tl-0-0"
    unknown = visit(lesson, 1360, "#tab=story&show=%22]<b>&lang=en")
    until(unknown, DRAWN)
    assert unknown.query_selector(SLIDE) is None
    assert page.problems == again.problems == unknown.problems == []


def test_a_presentation_shows_no_answer_before_a_prediction(visit, lesson):
    page = visit(lesson, 1360, "#tab=timeline&lang=en&show=own-0")
    assert page.query_selector(SLIDE) is None
    page.click("#tab-story")
    page.keyboard.press("p")
    assert page.inner_text("#slide-place") == "1 / 1"
    assert "35.4" not in page.inner_text(SLIDE)
    page.fill("#guess", "30")
    page.press("#guess", "Enter")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("ArrowRight")
    until(page, DRAWN)
    assert page.query_selector(SLIDE).get_attribute("data-fig") == "own-0"
    assert page.problems == []


def test_a_projector_shows_the_whole_timeline_of_four_ranks_at_once(visit, lesson):
    page = visit(lesson, 1360, f"#tab=timeline&lang=en{OPEN}")
    page.set_viewport_size(PROJECTOR)
    until(page, "window.glassReady && " + DRAWN)
    plot = page.query_selector("figure[data-fig=tl-0-0] .plot .nsewdrag").bounding_box()
    assert plot["y"] < 260
    assert plot["y"] + plot["height"] < 768
    page.click("#tab-story")
    until(page, DRAWN)
    assert page.query_selector("#panel-story h2").bounding_box()["y"] < 130
    page.set_viewport_size({"width": 907, "height": 512})  # 150 % of zoom on the same projector
    page.click("#tab-timeline")
    until(page, DRAWN)
    plot = page.query_selector("figure[data-fig=tl-0-0] .plot .nsewdrag").bounding_box()
    assert plot["y"] + plot["height"] / 4 < 512  # of the first rank both lanes


# ---- on a phone --------------------------------------------------------------------------------------------
def test_a_phone_says_that_a_figure_scrolls_until_its_end_and_no_labels_meet(visit, lesson):
    page = visit(lesson, 390, f"#tab=story&lang=zh{OPEN}")
    until(page, DRAWN)
    figure = page.query_selector("figure[data-fig=own-1]")
    assert figure.query_selector(".sideways").inner_text() == CATALOGUE["sideways"].zh
    frame = figure.query_selector(".frame")
    sign = "(f) => [f.dataset.more.trim(), getComputedStyle(f, '::after').content]"
    assert frame.evaluate(sign) == ["right", '"›"']
    assert lying_on_each_other(figure.evaluate(TEXTS)) == []
    figure.query_selector(".scroll").evaluate("(s) => { s.scrollLeft = s.scrollWidth; }")
    page.wait_for_timeout(100)
    assert frame.evaluate("(f) => f.dataset.more.trim()") == "left"
    for tab in assemble.TABS:
        page.click(f"#tab-{tab}")
        until(page, DRAWN)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), tab
    page.set_viewport_size(PROJECTOR)
    page.click("#tab-story")
    page.wait_for_timeout(500)
    assert frame.evaluate("(f) => f.dataset.more.trim()") == ""
    assert not figure.query_selector(".sideways").is_visible()
    assert page.problems == []


# ---- keyboard ----------------------------------------------------------------------------------------------
def test_arrow_keys_move_between_tabs_and_the_timeline_page_has_few_stops(visit, lesson):
    page = visit(lesson, 1360, f"#tab=story&lang=en{OPEN}")
    page.set_viewport_size(PROJECTOR)
    until(page, DRAWN)
    page.focus("#tab-story")
    page.keyboard.press("ArrowRight")
    until(page, "window.glassReady && " + DRAWN)
    assert page.evaluate("document.activeElement.id") == "tab-timeline"
    assert page.is_visible("#panel-timeline")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.id") == "tab-checks"
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    until(page, DRAWN)
    full = page.evaluate("document.querySelector('figure[data-fig=tl-0-0] .plot').layout.xaxis.range[1]")
    stops = []
    for _ in range(40):
        page.keyboard.press("Tab")
        stop = page.evaluate("((e) => e.id || e.className || e.tagName)(document.activeElement)")
        if stop in ("present", "language", "BODY"):
            break
        stops.append(stop)
        if stop == "stage":
            page.keyboard.press("+")
            page.keyboard.press("ArrowRight")
            page.wait_for_timeout(150)
            near = page.evaluate("document.querySelector('figure[data-fig=tl-0-0] .plot').layout.xaxis.range")
            assert near[0] > 0
            assert near[1] - near[0] < full
            page.keyboard.press("j")
            until(page, "document.getElementById('selected').textContent.includes('rank')")
            said = page.query_selector("#selected")
            assert said.get_attribute("aria-live") == "polite"
            box = said.bounding_box()
            assert 0 <= box["y"] < 768 - box["height"] + 1
            page.keyboard.press("Escape")
            until(page, "document.getElementById('selected').textContent === ''")
    assert stops.count("stage") == 1
    assert len(stops) <= 12, stops
    assert page.problems == []
