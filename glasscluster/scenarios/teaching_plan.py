"""Fifty minutes with a class, written from a lesson.

A lesson's text.toml says what happens when, and names what the class looks at and changes:

    [[plan]]
    minutes = "15-28"
    en = "{figure:elements}: ask why the lines are parallel. {option:n=4096}: what happens to {row:tiled}?"
    zh = "……"
    wrong.en = "the wrong answer to expect"
    wrong.zh = "……"

    {figure:KEY}         a figure of the lesson, by the key of its title in the section `text`
    {tab:NAME}           a tab of the report: story, timeline, memory, network, ledger, checks
    {row:KEY}            a row of the lesson's ledger, by the key of its name in the section `rows`
    {option:NAME=VALUE}  an option of the lesson, to run it again
    {slider:NAME=VALUE}  a slider of the timeline's "What if": bw, lat, flops, slow, faster

A lesson that has no `plan` yet gets the same seven beats as every other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.base.text import LANGUAGES, Said
from glasscluster.scenarios.lesson import Lesson
from glasscluster.scenarios.texts import left_open
from glasscluster.visualize.words import CATALOGUE

NAMED = re.compile(r"\{(figure|tab|row|option|slider):([^{}]+)\}")
TABS = ("story", "timeline", "memory", "network", "ledger", "checks")
SLIDERS = {name: CATALOGUE[f"whatif_{name}"] for name in ("bw", "lat", "flops", "slow", "faster")}


def teaching_plan(taught: Lesson) -> list[tuple[str, Said]]:
    """Fifty minutes: (minutes, what happens), the names in braces replaced by what they name.

    Raises:
        InputError: a name in braces that names nothing.
    """
    beats = taught.texts.content.get("plan")
    if beats is None:
        return _same_for_all(taught)
    return [(beat["minutes"], _beat(taught, beat)) for beat in beats]


def names_in(text: str) -> Iterator[tuple[str, str]]:
    """(kind, name) of everything that a beat names in braces: ("figure", "elements")."""
    for named in NAMED.finditer(text):
        yield named[1], named[2]


def _beat(taught: Lesson, beat: dict[str, Any]) -> Said:
    """What one beat says, and the wrong answer to expect."""
    text = taught.texts.text_of(beat, "plan")
    said = Said(*(_resolved(taught, text.in_(lang), lang) for lang in LANGUAGES))
    if "wrong" not in beat:
        return said
    wrong = taught.texts.text_of(beat["wrong"], "plan.wrong")
    return Said(f"{said.en} Expect to hear: “{wrong.en}”", f"{said.zh}预计会听到：“{wrong.zh}”")


def _resolved(taught: Lesson, text: str, lang: str) -> str:
    return NAMED.sub(lambda named: _said(taught, named[1], named[2], lang), text)


def _said(taught: Lesson, kind: str, name: str, lang: str) -> str:
    """What one name in braces is called by people."""
    if kind in ("figure", "row"):
        text = left_open(taught.texts.plain("text" if kind == "figure" else "rows", name)).in_(lang)
        return f"“{text}”"
    if kind == "tab":
        _one_of("plan.tab", name, TABS)
        return f"“{CATALOGUE['tab_' + name].in_(lang)}”"
    what, equals, value = name.partition("=")
    if not equals:
        raise InputError(f"plan.{kind}", name, "must be NAME=VALUE")
    if kind == "slider":
        _one_of("plan.slider", what, tuple(SLIDERS))
        return f"“{SLIDERS[what].in_(lang)}” = {value}"
    return f"glass run {taught.id} --{what.replace('_', '-')} {value}"


def _one_of(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(field, value, "names nothing", list(choices))


def _same_for_all(taught: Lesson) -> list[tuple[str, Said]]:
    formula, run = taught.formula.text, f"glass run {taught.id}"
    question, kills, card = taught.question, left_open(taught.kills), left_open(taught.card.question)
    return [
        ("0-5", Said(f"Ask: {question.en} Nobody answers aloud.", f"提问：{question.zh} 先不要说出答案。")),
        ("5-10", Said(f"Run it in front of the class: {run}", f"当堂运行：{run}")),
        (
            "10-15",
            Said(
                "Open the report; everyone writes a number down before anybody enters one.",
                "打开报告；在任何人输入之前，每人先写下一个数字。",
            ),
        ),
        (
            "15-28",
            Said(
                "Timeline and figures: find where the time or the bytes went; change one option.",
                "看时间线与图：找出时间或字节去了哪里；改一个选项。",
            ),
        ),
        (
            "28-36",
            Said(
                f"Ledger: derive {formula.en} and find the row.", f"账本：推导 {formula.zh}，找到对应的一行。"
            ),
        ),
        ("36-42", Said(f"The misconception: {kills.en}", f"常见误区：{kills.zh}")),
        ("42-50", Said(f"In pairs, the interview card: {card.en}", f"两人一组练习面试卡：{card.zh}")),
    ]


PAGE = """<!doctype html>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 14pt/1.5 system-ui, "Noto Sans CJK SC", sans-serif; max-width: 50em; margin: 2em auto; }}
td {{ vertical-align: top; padding: 0.5em 1em; border-top: 1px solid #9aa5b1; }}
td:first-child {{ white-space: nowrap; font-weight: 600; }}
tr {{ break-inside: avoid; }}
p {{ margin: 0 0 0.4em; }}
</style>
<h1>{title}</h1>
<table>
{rows}
</table>
"""


def printable(taught: Lesson) -> str:
    """The plan as a page to print."""
    title = escape(f"{taught.id} · {taught.title.en} · {taught.title.zh}")
    rows = (
        f'<tr><td>{minutes}</td><td><p>{escape(text.en)}</p><p lang="zh">{escape(text.zh)}</p></td></tr>'
        for minutes, text in teaching_plan(taught)
    )
    return PAGE.format(title=title, rows="\n".join(rows))


def plan_as_json(taught: Lesson) -> dict[str, Any]:
    """The `glass.lesson-plan/1` object."""
    plan = [{"minutes": minutes, "en": text.en, "zh": text.zh} for minutes, text in teaching_plan(taught)]
    return {"schema": "glass.lesson-plan/1", "lesson": taught.id, "plan": plan}
