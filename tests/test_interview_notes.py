"""The interview notes of docs/interview-notes.toml: every number is what its lesson's run gives, every row
held, the comparison that the verdict rests on is true of the run, and both pages say it; each of it broken on
purpose.

`pytest tests/test_interview_notes.py -k C3` performs lesson C3 and holds what is said of it.
"""

from __future__ import annotations

import importlib.util
import math
import re
import sys
import tomllib
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lesson_rules import naked, normal

from glasscluster.base.rows import HELD, NOT_APPLICABLE, Row
from glasscluster.base.text import LANGUAGES, Said
from glasscluster.scenarios.lesson import LESSONS

DOCS = Path(__file__).resolve().parent.parent / "docs"
LOOSEST = 0.12  # of a number's size: what a tolerance may be, so that it says something


def maker() -> Any:
    """The module that makes both pages."""
    spec = importlib.util.spec_from_file_location("make_notes", DOCS / "make_notes.py")
    assert spec is not None
    assert spec.loader is not None
    made = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


MAKER = maker()
CONTENT = tomllib.loads(MAKER.SOURCE.read_text(encoding="utf-8"))
NOTES = MAKER.read()
EACH = [
    pytest.param(x, id=f"{x.lesson}-{at}", marks=pytest.mark.xdist_group(f"lesson {x.lesson}"))
    for at, x in enumerate(NOTES.statements, 1)
]


# ---- what a run says to a statement ------------------------------------------------------------------------
def of_the_run(judged: Any, name: str, lab: Any) -> float:
    """A number of a statement, as the lesson's run has it.

    Raises:
        LookupError: no row or several rows are meant, or the card has no such value.
    """
    number = judged.numbers[name]
    if number.row is None:
        if number.blank not in lab.card_values:
            raise LookupError(f"{name}: the card of {judged.lesson} has no value {number.blank}")
        value = lab.card_values[number.blank]
    else:
        rows = [row for row in lab.all_checks if row.key == number.row and number.of(row.name.en)]
        if len(rows) != 1:
            raise LookupError(f"{name}: {len(rows)} rows are {number.row} with {number.at!r}")
        value = getattr(rows[0], number.side or "observed")
    value = float(value) / number.per
    return (
        value / (of_the_run(judged, number.over, lab) * judged.numbers[number.over].per)
        if number.over
        else value
    )


def true_of(comparison: str, values: dict[str, float]) -> bool:
    """Whether `a < b`, `a > b` or `a = b` (to 1e-9 of their size) is true of a run's numbers."""
    left, sign, right = MAKER.COMPARISON.fullmatch(comparison).groups()
    a, b = values[left], values[right] if right in values else float(right)
    equal = math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    return equal if sign == "=" else not equal and (a < b) == (sign == "<")


def complaints(judged: Any, lab: Any) -> list[str]:
    """What a lesson's run does not confirm of a statement."""
    found, values = [], {}
    for name, number in judged.numbers.items():
        try:
            values[name] = of_the_run(judged, name, lab)
        except LookupError as problem:
            found.append(str(problem))
            continue
        if not abs(values[name] - number.value) <= number.within + 1e-12 * abs(number.value):
            found.append(f"{name}: the run has {values[name]!r}, the page {number.value!r} ± {number.within}")
    for key in judged.rows:
        verdicts = [row.verdict for row in lab.all_checks if row.key == key]
        if HELD not in verdicts or set(verdicts) - {HELD, NOT_APPLICABLE}:
            found.append(f"row {key}: {', '.join(verdicts) or 'there is none'}")
    if len(values) == len(judged.numbers):
        found += [f"not so: {x}" for x in judged.shows if not true_of(x, values)]
    return found


@pytest.mark.parametrize("judged", EACH)
def test_a_lesson_s_run_shows_what_is_said_of_a_statement(judged, labs):
    assert complaints(judged, labs(judged.lesson)) == []


@pytest.mark.parametrize("judged", EACH)
def test_a_number_or_comparison_that_is_off_is_seen(judged, labs):
    lab = labs(judged.lesson)
    for name, number in judged.numbers.items():
        for sign in (1, -1):
            off = number.value + sign * (2.1 * number.within + 1e-6 * max(1.0, abs(number.value)))
            wrong = replace(judged, numbers=judged.numbers | {name: replace(number, value=off)})
            assert complaints(wrong, lab), f"{name} may be {off}"
        other = "blank" if number.row is None else "row"
        lost = replace(judged, numbers=judged.numbers | {name: replace(number, **{other: "no_such"})})
        assert complaints(lost, lab)
    assert complaints(replace(judged, rows=(*judged.rows, "no_such_row")), lab)
    for comparison in judged.shows:
        left, sign, right = comparison.split()
        turned = f"{left} {'<' if sign in '>=' else '>'} {right}"
        assert complaints(replace(judged, shows=(turned,)), lab), turned


def test_a_row_that_failed_is_seen():
    judged = next(x for x in NOTES.statements if x.numbers and "programs_that_hang" in x.rows)
    row = Row("programs_that_hang", Said("", ""), 1, 2, "")
    assert any(
        "failed" in said for said in complaints(judged, SimpleNamespace(all_checks=[row], card_values={}))
    )


# ---- what the file must have -------------------------------------------------------------------------------
def loose(judged: Any) -> list[str]:
    """The numbers with a tolerance that is large for them, and on which the verdict may depend."""
    return [
        name
        for name, x in judged.numbers.items()
        if x.within > (LOOSEST * abs(x.value) if x.value else 1e-9) and not firm(judged, name)
    ]


def firm(judged: Any, name: str) -> bool:
    """Whether what is shown of a number is true at both ends of its tolerance."""
    number, printed = judged.numbers[name], {key: x.value for key, x in judged.numbers.items()}
    about_it = [x for x in judged.shows if name in x.split()]
    ends = [printed | {name: number.value + side * number.within} for side in (1, -1)]
    return bool(about_it) and all(true_of(x, values) for x in about_it for values in ends)


def typed(judged: Any, lang: str) -> list[str]:
    """The numbers in a correction that come from nowhere: neither of the run nor of the statement."""
    known = {normal(x) for x in judged.constants}
    for text in (judged.says.in_(lang), *(x.at for x in judged.numbers.values())):
        known |= {normal(x) for x in naked(text)} | {normal(x) for x in re.findall(r"\d[\d,.]*\d|\d", text)}
    return [
        x
        for x in naked(MAKER.BLANK.sub("…", judged.why.in_(lang)))
        if normal(x).rstrip("%×xKMGiBms") not in known
    ]


@pytest.mark.parametrize("judged", NOTES.statements, ids=[x.values[0].lesson for x in EACH])
def test_a_statement_has_no_typed_number_and_no_tolerance_that_says_nothing(judged):
    assert loose(judged) == []
    assert [typed(judged, lang) for lang in LANGUAGES] == [[], []]
    for lang in LANGUAGES:
        blanks = set(MAKER.BLANK.findall(judged.why.in_(lang)))
        assert blanks == set(MAKER.BLANK.findall(judged.why.en)), "one language leaves a number out"
    unused = set(judged.numbers) - blanks - {x.over for x in judged.numbers.values()}
    assert not unused - {word for x in judged.shows for word in x.split()}, "a number that nothing is said of"


def test_a_typed_number_and_a_loose_tolerance_are_seen():
    judged = next(x for x in NOTES.statements if x.lesson == "C3")
    name, number = next(iter(judged.numbers.items()))
    assert loose(replace(judged, numbers={name: replace(number, within=0.2 * number.value)}))
    noisy = next(x for x in NOTES.statements if "become_zero" in x.rows)
    assert firm(noisy, "scaled")
    assert loose(
        replace(noisy, numbers=noisy.numbers | {"scaled": replace(noisy.numbers["scaled"], within=63)})
    )
    assert typed(replace(judged, why=Said("It is 3.7 S.", "")), "en") == ["3.7"]
    assert typed(replace(judged, why=Said("", "它是 3.7 S。")), "zh") == ["3.7"]


def test_every_lesson_s_misconception_is_among_the_statements_and_verdicts_are_of_three_kinds():
    assert {x.lesson for x in NOTES.statements} == set(LESSONS)
    assert {x.verdict for x in NOTES.statements} == set(MAKER.VERDICTS)
    assert {x.subject for x in NOTES.statements} == set(NOTES.subjects)
    assert len({x.says.en for x in NOTES.statements}) == len(NOTES.statements)


# ---- both pages --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_page_is_what_the_file_says(lang):
    assert MAKER.PAGES[lang].read_text(encoding="utf-8") == MAKER.page(NOTES, lang), "docs/make_notes.py"


def test_both_pages_have_the_same_statements_in_the_same_order():
    english, chinese = (MAKER.page(NOTES, lang) for lang in LANGUAGES)
    keys = [re.findall(r"`(\w+)`", page.split("\n## ", 1)[1]) for page in (english, chinese)]
    lessons = [re.findall(r"^Lesson (\w+),", english, re.M), re.findall(r"^(\w+) 课《", chinese, re.M)]
    assert keys[0] == keys[1]
    assert lessons[0] == lessons[1]
    assert len(lessons[0]) == len(NOTES.statements)
    assert len(re.findall(r"^\*\*\d+\.\*\*", chinese, re.M)) == len(NOTES.statements)
    for page in (english, chinese):
        assert not re.search(r"[{}]", page)


BREAK = {
    "no Chinese statement": lambda x: x["says"].pop("zh"),
    "no English correction": lambda x: x["why"].update(en=" "),
    "a fourth verdict": lambda x: x.update(verdict="maybe"),
    "an unknown lesson": lambda x: x.update(lesson="Z9"),
    "an unknown subject": lambda x: x.update(subject="weather"),
    "no numbers": lambda x: x.pop("numbers"),
    "nothing shown": lambda x: x.pop("shows"),
    "a comparison of what is not there": lambda x: x.update(shows=["nothing > 1"]),
    "a blank that is no number": lambda x: x["why"].update(en="{nothing}"),
    "no tolerance": lambda x: next(iter(x["numbers"].values())).pop("within"),
    "a number from nowhere": lambda x: x["numbers"].update(a={"is": 1, "unit": "", "within": 0}),
    "a unit without Chinese": lambda x: next(iter(x["numbers"].values())).update(unit="furlongs"),
    "a misspelt option": lambda x: next(iter(x["numbers"].values())).update(wihtin=0),
    "a divisor that is not there": lambda x: next(iter(x["numbers"].values())).update(over="nothing"),
}


@pytest.mark.parametrize("broken", BREAK)
def test_a_file_that_lacks_something_makes_no_page(broken):
    content = deepcopy(CONTENT)
    BREAK[broken](content["statement"][0])
    with pytest.raises(ValueError, match=r"statement 1 of interview-notes\.toml"):
        MAKER.read(content)


@pytest.mark.parametrize(
    ("comparison", "true"),
    [
        ("a < b", True),
        ("a > b", False),
        ("a = b", False),
        ("a = 1", True),
        ("b > 1e-3", True),
        ("a < 1", False),
    ],
)
def test_a_comparison_is_read_as_it_stands(comparison, true):
    assert true_of(comparison, {"a": 1.0, "b": 2.0}) is true


def test_a_number_says_how_exact_it_is():
    def how(value: float, within: float) -> str:
        return MAKER.Number(value, Said("", ""), within).how.en

    assert (how(2, 0), how(3.88, 0.005), how(8377, 0.5), how(5.2, 0.3)) == (
        "exact",
        "rounded",
        "rounded",
        "± 0.3",
    )
    assert how(0, 1e-12) == "± 1e-12"
