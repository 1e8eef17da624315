"""A lesson: a scenario with six beats. Question, predict, run, see, check, explain.

A lesson is a folder that stands in `scenarios/lessons/`, named by its id and its subject:
`c3_ring_all_reduce` is C3. Nothing else lists it. In the folder are

    program.py    the programs that run on ranks, and the lesson: a function decorated with `@lesson`
    text.toml     all that people read, in both languages (see `scenarios/texts.py`)

The function runs real programs or plans, asks for a prediction (`lab.ask`), points at what to see
(`lab.tell`, `lab.figure`), states its ledger rows (`lab.row`, at least one) and explains (`lab.explain`).
docs/lessons.md says the rules that its texts follow, and tests/test_lesson_rules.py holds them.
What does not depend on the run (the question, the formula and its match class, the misconception it kills,
the interview card) is read from text.toml alone, so that lessons are listed without importing any program.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from glasscluster.base.errors import InputError
from glasscluster.base.text import Said
from glasscluster.scenarios.beats import Card, Class, FollowUp, Formula
from glasscluster.scenarios.in_code import Excerpt, excerpt
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

    def code(self) -> list[Excerpt]:
        """The lines of code that the lesson shows, read from their files."""
        tables = self.texts.content.get("code", [])
        return [
            excerpt(
                str(table.get("of", "")),
                self.texts.path.parent,
                self.texts.text_of(table.get("caption"), "code.caption"),
                table.get("from"),
                table.get("to"),
            )
            for table in tables
        ]

    def title_of(self, id_: str) -> Said:
        """The title of the lesson that answers one of the follow-up questions."""
        return find_lesson(id_).title

    def filled_card(self, blanks: dict[str, Any]) -> Card:
        """The card with its blanks filled, answers of the follow-up questions included."""
        fill, card = self.texts.filled_text, self.card
        follow_ups = tuple(
            replace(x, answer=x.answer and fill(x.answer, "card.follow_ups", blanks)) for x in card.follow_ups
        )
        question, short, long = (
            fill(text, f"card.{name}", blanks)
            for name, text in (("question", card.question), ("short", card.short), ("long", card.long))
        )
        return Card(question, short, long, follow_ups)


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
    card = Card(
        texts.plain("card", "question"),
        texts.plain("card", "short"),
        texts.plain("card", "long"),
        tuple(_follow_up(texts, table) for table in texts.table("card", "follow_ups")),
    )
    said = (texts.plain(name) for name in ("title", "topic", "question", "kills"))
    symbols = {name: texts.text_of(t, "formula.symbols") for name, t in formula.get("symbols", {}).items()}
    text = texts.plain("formula", "text") if isinstance(formula.get("text"), dict) else None
    if text is None:  # symbols alone, the same in both languages
        text = Said(*[unwrap(texts.table("formula", "text"))] * 2)
    contract: dict[str, Any] = {name: texts.table("formula", name) for name in ("id", "match", "source")}
    contract |= {"text": text, "source": unwrap(contract["source"]), "symbols": symbols}
    title, topic, question, kills = said
    return Lesson(id_, title, topic, question, kills, Formula(**contract), card, texts)


def _follow_up(texts: Texts, table: dict[str, Any]) -> FollowUp:
    where = "card.follow_ups"
    answer, lesson_id = table.get("answer"), table.get("lesson")
    if lesson_id is not None and lesson_id not in LESSONS:
        raise InputError(f"{where}.lesson", lesson_id, "unknown lesson", list(LESSONS))
    said = texts.text_of(answer, f"{where}.answer") if answer is not None else None
    return FollowUp(texts.text_of(table, where), said, lesson_id)


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
