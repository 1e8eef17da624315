"""A lesson: a scenario with six beats. Question, predict, run, see, check, explain.

A lesson is a folder that stands in `scenarios/lessons/`, named by its id and its subject:
`c3_ring_all_reduce` is C3. Nothing else lists it. In the folder are

    program.py    the programs that run on ranks, and the lesson: a function decorated with `@lesson`
    text.toml     all that people read, in both languages (see `scenarios/texts.py`)

The function runs real programs or plans, asks for a prediction (`lab.ask`), points at what to see
(`lab.tell`, `lab.figure`), states its ledger rows (`lab.row`, at least one) and explains (`lab.explain`).
What does not depend on the run (the question, the formula and its match class, the misconception it kills,
the interview card) is read from text.toml alone, so that lessons are listed without importing any program.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

from glasscluster.base.errors import InputError
from glasscluster.base.text import Said
from glasscluster.scenarios.scenario import REGISTRY, Scenario
from glasscluster.scenarios.texts import Texts, unwrap

HOME = Path(__file__).parent / "lessons"
NAME = re.compile(r"([a-z])(\d+)_[a-z0-9_]+")  # of a lesson's folder: its id, then its subject
FIRST_PART = "l"  # L0 opens the curriculum; the other parts follow by letter


def _order(folder: Path) -> tuple[bool, str, int]:
    part, number = NAME.fullmatch(folder.name).groups()  # type: ignore[union-attr]
    return part != FIRST_PART, part, int(number)


def lessons_in(home: Path) -> dict[str, Path]:
    """Id -> folder of every lesson that stands in a folder, in the order of the curriculum."""
    folders = [f for f in home.iterdir() if NAME.fullmatch(f.name) and (f / "text.toml").is_file()]
    return {f.name.split("_")[0].upper(): f for f in sorted(folders, key=_order)}


LESSONS: dict[str, Path] = lessons_in(HOME)
Class = Literal["X", "V", "T"]


@dataclass(frozen=True)
class Formula:
    """A row of the formula contract: id, the formula as text, its match class and its source."""

    id: str
    text: str
    match: Class
    source: str


@dataclass(frozen=True)
class Card:
    """The interview card; `lab.own_number` adds the number of your own run."""

    question: Said
    short: Said  # the 30-second answer
    long: Said  # the 2-minute answer
    follow_ups: tuple[Said, ...]


@dataclass(frozen=True)
class Lesson:
    """What a lesson says before anything has run: its text.toml, read and checked."""

    id: str
    title: Said
    topic: Said
    question: Said
    kills: Said
    formula: Formula
    card: Card
    texts: Texts


@dataclass(frozen=True)
class TaughtLesson(Scenario):
    """A scenario with the six beats: a lesson together with its program."""

    lesson: Lesson | None = None

    @property
    def texts(self) -> Texts | None:
        """What the lab tells from."""
        return self.lesson.texts if self.lesson else None


def read_lesson(folder: Path) -> Lesson:
    """The lesson of a folder, from its text.toml alone.

    Raises:
        InputError: the file is missing or not TOML, lacks a text, or gives another id than the folder's name.
    """
    texts = Texts.read(folder / "text.toml")
    id_, formula = texts.table("id"), texts.table("formula")
    if not NAME.fullmatch(folder.name) or not folder.name.startswith(f"{id_.lower()}_"):
        raise InputError("id", id_, f"the folder {folder.name} must be named by it, as {id_.lower()}_subject")
    if formula.get("match") not in get_args(Class):
        raise InputError("formula.match", formula.get("match"), "must be X, V or T", get_args(Class))
    follow_ups = range(len(texts.table("card", "follow_ups")))
    card = Card(
        texts.plain("card", "question"),
        texts.plain("card", "short"),
        texts.plain("card", "long"),
        tuple(texts.item("card", "follow_ups", index=i) for i in follow_ups),
    )
    said = (texts.plain(name) for name in ("title", "topic", "question", "kills"))
    contract: dict[str, Any] = {name: unwrap(value) for name, value in formula.items()}
    title, topic, question, kills = said
    return Lesson(id_, title, topic, question, kills, Formula(**contract), card, texts)


@cache
def find_lesson(id_: str) -> Lesson:
    """What a built-in lesson says, by id; its program is not imported."""
    return read_lesson(LESSONS[id_])


def taught_lesson(id_: str) -> TaughtLesson:
    """A built-in lesson by id, with its program: the one place that imports it."""
    import_module(f"glasscluster.scenarios.lessons.{LESSONS[id_].name}.program")
    taught = REGISTRY[id_]
    assert isinstance(taught, TaughtLesson)
    return taught


def lesson(
    function: Callable[..., None] | None = None, *, backend: str = "threads", hardware: str = "classroom"
) -> Callable[..., Any]:
    """Make a function a lesson, registered under the id that the text.toml beside it gives.

    Args:
        function: `function(lab, option: int = 4, ...)`; its docstring says what runs, its options are `glass
        run`'s. backend: where it runs unless `--backend` says otherwise. hardware: the virtual clock unless
        `--hardware` says otherwise.
    """
    if function is None:
        return lambda decorated: lesson(decorated, backend=backend, hardware=hardware)
    text = read_lesson(Path(inspect.getfile(function)).resolve().parent)
    REGISTRY[text.id] = TaughtLesson(text.id, function, text.title, backend, hardware, text)
    return function


def teaching_plan(taught: Lesson) -> list[tuple[str, Said]]:
    """Fifty minutes: (minutes, what happens)."""
    formula, run = taught.formula.text, f"glass run {taught.id}"
    question, kills, card = taught.question, taught.kills, taught.card.question
    return [
        ("0-5", Said(f"Ask: {question.en} Nobody answers aloud.", f"提问：{question.zh} 先不要说出答案。")),
        (
            "5-10",
            Said(
                "Everyone writes a number and opens the report with it.",
                "每人写下一个数字，带着它打开报告。",
            ),
        ),
        ("10-15", Said(f"Run it in front of the class: {run}", f"当堂运行：{run}")),
        (
            "15-28",
            Said(
                "Timeline and figures: find where the time or the bytes went; change one option.",
                "看时间线与图：找出时间或字节去了哪里；改一个选项。",
            ),
        ),
        (
            "28-36",
            Said(f"Ledger: derive {formula} and find the row.", f"账本：推导 {formula}，找到对应的一行。"),
        ),
        ("36-42", Said(f"Kill the misconception: {kills.en}", f"破除误解：{kills.zh}")),
        ("42-50", Said(f"In pairs, the interview card: {card.en}", f"两人一组练习面试卡：{card.zh}")),
    ]
