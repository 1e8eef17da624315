"""The gallery in a real browser: two views, search, arrow keys, and no answer before it is asked for."""

from __future__ import annotations

import pytest

from glasscluster.base.text import Said
from glasscluster.visualize.page.gallery import GalleryCard, write_gallery

pytestmark = pytest.mark.browser
THUMBNAIL = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><rect width="5" height="5"/></svg>'
TOPICS = {"pipeline": "流水线并行", "memory": "显存"}


def card(number: int, topic: str) -> GalleryCard:
    return GalleryCard(
        f"T{number}",
        Said(f"Lesson {number}", f"第 {number} 课"),
        Said(topic, TOPICS[topic]),
        Said(f"How long is step {number}?", f"第 {number} 步有多长？"),
        Said(f"What is asked about {number}?", f"关于 {number} 会问什么？"),
        (Said("And at twice the size?", "规模加倍呢？"),) if number == 2 else (),
        Said(f"Outcome {number}: 35.4 %", f"结果 {number}：35.4 %"),
        "PASS",
        Said("4 held", "4 项成立"),
        THUMBNAIL,
        f"T{number}/report.html",
    )


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    topics = ["pipeline", "pipeline", "memory", "memory", "pipeline"]
    cards = [card(i, topic) for i, topic in enumerate(topics)]
    return write_gallery(cards, tmp_path_factory.mktemp("gallery"))


def seen(page, query: str) -> list[str]:
    return [x.inner_text() for x in page.query_selector_all(query) if x.is_visible()]


def test_a_card_asks_and_what_came_out_is_closed_until_somebody_asks_for_it(index, visit):
    page = visit(index, 1360, "#lang=en")
    for view in ("topics", "questions"):
        page.click(f"#tab-{view}")
        assert "35.4" not in page.inner_text("body")
    page.click("#tab-topics")
    assert seen(page, ".tile p")[0] == "How long is step 0?"
    page.click("#answers")
    assert "Outcome 4: 35.4 %" in page.inner_text("body")
    page.click("#answers")
    assert "35.4" not in page.inner_text("body")
    assert page.problems == []


def test_lessons_are_found_by_topic_by_question_and_by_word_in_both_languages(index, visit):
    page = visit(index, 1360, "#lang=en")
    assert len(seen(page, ".tile")) == 5
    page.click('.topics [data-topic="memory"]')
    assert len(seen(page, ".tile")) == 2
    page.click("#tab-questions")
    questions = "#view-questions .asked > li > a"
    assert seen(page, questions) == ["What is asked about 2?", "What is asked about 3?"]
    assert seen(page, ".asked ul") == ["And at twice the size?"]
    page.click('.topics [data-topic=""]')
    page.fill("#search", "规模加倍")  # a word of the other language finds too
    assert seen(page, questions) == ["What is asked about 2?"]
    assert page.inner_text("#count") == "1"
    page.click("#language")
    assert seen(page, questions) == ["关于 2 会问什么？"]
    again = visit(index, 390, "#" + page.url.split("#")[1])  # the link shows the same
    assert seen(again, questions) == ["关于 2 会问什么？"]
    assert again.get_attribute(questions + ":visible", "href").endswith("T2/report.html#lang=zh")
    assert again.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.fill("#search", "35.4")  # a search must not give an answer away either
    assert seen(page, questions) == []
    assert page.problems == again.problems == []


def test_arrow_keys_move_between_views_topics_and_cards_each_a_single_stop(index, visit):
    page = visit(index, 1360, "#lang=en")
    focused = "document.activeElement"
    stops = page.evaluate(
        "[...document.querySelectorAll('a, button, input')].filter((x) => x.tabIndex >= 0 &&"
        " x.getClientRects().length).length"
    )
    assert stops == 6  # language, view, search, answers, topic, card
    page.focus("#tab-topics")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(f"{focused}.id") == "tab-questions"
    assert page.is_visible("#view-questions")
    page.keyboard.press("Home")
    assert page.is_visible("#view-topics")
    page.focus(".tile")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(f"{focused}.querySelector('h2').innerText") == "T1 · Lesson 1"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")  # five cards stand in two rows
    below = page.evaluate(f"{focused}.querySelector('h2').innerText")
    assert below == "T4 · Lesson 4"
    page.keyboard.press("ArrowUp")
    assert page.evaluate(f"{focused}.querySelector('h2').innerText") == "T0 · Lesson 0"
    assert page.problems == []
