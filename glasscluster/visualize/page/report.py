"""What a report says, before it is a page: its chapters (a run each), its story, a lesson's beats, its rows.

`assemble.write_report` makes the one file of it; `one_run.write_run_report` fills one for a run by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasscluster.base.rows import NO_CHECKS, Row, status
from glasscluster.base.text import Said
from glasscluster.visualize.page.code import highlighted

if TYPE_CHECKING:
    from glasscluster.sim.run import Run
    from glasscluster.sim.time.timeline import Timeline


@dataclass
class Chapter:
    """One run in a report: its timelines by hardware (the first is shown first), its rows, a remark."""

    key: str
    title: Said
    run: Run
    timelines: dict[str, Timeline]
    checks: list[Row] = field(default_factory=list)
    note: Said | None = None
    compared: bool = True
    equivalence: dict[str, Any] | None = None  # what strategies.judge.check.compare returned
    # more pictures of who computes and sends what
    network: dict[str, Callable[[str], Any]] = field(default_factory=dict)

    @property
    def first(self) -> Timeline:
        """The timeline that is shown first."""
        return next(iter(self.timelines.values()))


@dataclass(frozen=True)
class StoryStep:
    """A sentence and the view it speaks of, as a URL hash such as `tab=timeline&run=ddp`."""

    text: Said
    view: str = ""


@dataclass(frozen=True)
class FormulaShown:
    """A lesson's formula: its number, its text, its match class, its source, and what each symbol means."""

    id: str
    text: Said
    match: str
    source: str
    symbols: dict[str, Said] = field(default_factory=dict)


@dataclass(frozen=True)
class FollowUpShown:
    """What is asked next; its answer, or the lesson that has it with its title."""

    question: Said
    answer: Said | None
    lesson: str | None
    title: Said | None


@dataclass(frozen=True)
class CodeShown:
    """Lines of a file, `first` to `last` from 1, that ran in the lesson; `path` is how people find it."""

    path: str
    first: int
    last: int
    file: Path
    caption: Said

    @property
    def html(self) -> str:
        """The lines, highlighted."""
        return highlighted(self.file.read_text(encoding="utf-8"), self.first, self.last)


@dataclass(frozen=True)
class LessonPage:
    """A lesson around its run: question, prediction, formula, misconception, explanation, card, code.

    `low`, `high`: between which numbers an answer can lie; None: anywhere.
    """

    id: str
    question: Said
    prompt: Said
    answer: float
    unit: Said
    low: float | None
    high: float | None
    formula: FormulaShown
    kills: Said
    explanation: Said
    points: list[Said]  # what a good explanation says; shown beside the reader's own sentence
    card_question: Said
    card_short: Said
    card_long: Said
    follow_ups: list[FollowUpShown]
    own: Said | None
    code: list[CodeShown]


@dataclass
class Report:
    """Everything on the page. `not_checked`: the checks that could not be made."""

    name: str
    title: Said
    finding: Said
    chapters: list[Chapter]
    story: list[StoryStep] = field(default_factory=list)
    seed: int | None = None
    checks: list[Row] = field(default_factory=list)
    not_checked: list[Said] = field(default_factory=list)
    figures: list[tuple[Said, Callable[[str], Any]]] = field(default_factory=list)
    lesson: LessonPage | None = None

    def all_checks(self) -> list[Row]:
        """Every row, the chapters' first."""
        return [r for c in self.chapters for r in c.checks] + self.checks

    def missing(self) -> list[Said]:
        """What the page says was not checked."""
        return self.not_checked or ([] if self.all_checks() else [NO_CHECKS])

    def verdict(self) -> str:
        """pass, fail or partial."""
        return status(self.all_checks(), self.missing()).lower()
