"""The lab: what a scenario works with to run, to check, and to tell its story.

    @scenario("two-rings")
    def two_rings(lab, gpus: int = 4):
        '''What the docstring says is the story's first paragraph.'''
        run = lab.run("ring", ("A ring", "一个环"), program, gpus=gpus)
        expected = 2 * (gpus - 1) * SIZE
        lab.check("bytes sent", expected, sum(run.graph.bytes_sent()), "Patarasuk-Yuan 2009 (Eq 9)")
        lab.tell(("The ring sent it all.", "环把它全部发送了。"))

`glass run two-rings --gpus 8` runs a scenario by name, `glass run my_file.py` the one that a file holds.

A text is a pair of English and 中文, or a `Said`. A scenario with a text.toml, as every lesson has, gives a key
of that file instead, and values for the blanks of its text: `lab.tell("ring_sent", gpus=gpus)`.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glasscluster.base.errors import GlassError, InputError, ProgramFailed
from glasscluster.base.rows import NO_CHECKS, NOT_COUNTED, Match, Row, Status, judged, status, tally
from glasscluster.base.text import Said, counted
from glasscluster.scenarios.beats import Card, FollowUp, Prediction
from glasscluster.scenarios.jobs.folders import rewriting, write_ledger, write_run_json
from glasscluster.scenarios.jobs.layer_pictures import network_pictures
from glasscluster.scenarios.jobs.sources import check_data
from glasscluster.scenarios.jobs.training import train
from glasscluster.scenarios.scenario import Scenario, scenario
from glasscluster.scenarios.texts import Text, Texts, said
from glasscluster.sim.ranks.one_thread import one_thread
from glasscluster.sim.run import Cluster
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.trainer import train_rank
from glasscluster.visualize.page.assemble import write_report
from glasscluster.visualize.page.report import (
    Chapter,
    CodeShown,
    FollowUpShown,
    FormulaShown,
    LessonPage,
    Report,
    StoryStep,
)
from glasscluster.visualize.page.story import story_of
from glasscluster.visualize.page.trace import write_chrome_trace
from glasscluster.visualize.words import UNITS

Say = Callable[[str], None]


__all__ = ["Entry", "Lab", "Say", "perform", "scenario"]  # what a scenario's file imports

FEWEST_SENTENCES = 4  # of a story
FEWEST_OF_A_LESSON = 3  # which has them all of its own (docs/lessons.md)


@dataclass
class Entry:
    """One run in a scenario: what it was, and what it looks like on each hardware."""

    key: str
    title: Said
    run: Any
    timelines: dict[str, Any]
    checks: list[Row]
    note: Said | None = None
    trained: Any = None
    compared: bool = True


@dataclass
class Lab:
    """What a scenario is called with: it runs plans and programs, keeps their checks, and tells the story.

    One cluster is kept open for each number of GPUs, so Ray actors start once. After the scenario, `write`
    makes its report of `entries` (runs), `checks` (rows of its own), `story`, `figures` and the `finding`.

    Args:
        scenario: what is performed.
        backend: what its ranks run on.
        hardware: a name of the catalogue; every run is timed on it.
        device: cpu or cuda.
        seed: of weights, data, and the order in which threads run.
        timeout_s: seconds that one operation may wait; None: the backend's own limit.
        say: called with a line for people when something begins.

    Example:
        >>> import torch
        >>> from glasscluster.scenarios.lab import Lab, Scenario, perform
        >>> def program(gpu):
        ...     gpu.comm.all_reduce(torch.ones(1000))
        >>> def ring(lab, gpus: int = 2):
        ...     run = lab.run("ring", ("A ring", "一个环"), program, gpus=gpus)
        ...     expected = 2 * (gpus - 1) * 4000  # over all ranks, in bytes
        ...     lab.check("bytes sent", expected, sum(run.graph.bytes_sent()), "Patarasuk-Yuan 2009 (Eq 9)")
        >>> scenario = Scenario("ring", ring, ("A ring", "一个环"))
        >>> lab = perform(scenario, Lab(scenario, "threads", "classroom"), {"gpus": 4})
        >>> lab.status, lab.checks[0].verdict
        ('PASS', 'held')
    """

    scenario: Scenario
    backend: str
    hardware: str
    device: str = "cpu"
    seed: int = 0
    timeout_s: float | None = None
    say: Say = lambda _text: None
    entries: list[Entry] = field(default_factory=list)
    checks: list[Row] = field(default_factory=list)
    story: list[tuple[Said, str]] = field(default_factory=list)
    finding: Said = field(default_factory=lambda: Said("", ""))
    prompt: Prediction | None = None
    explanation: Said | None = None
    points: list[Said] = field(default_factory=list)
    own: Said | None = None
    card_values: dict[str, Any] = field(default_factory=dict)  # for the blanks of the card, by name
    figures: list[tuple[Said, Callable[[str], Any]]] = field(default_factory=list)
    _open: ExitStack = field(default_factory=ExitStack)
    _clusters: dict[int, Any] = field(default_factory=dict)

    # ---- run -----------------------------------------------------------------------------------------------
    def cluster(self, gpus: int) -> Any:
        """The cluster of a number of GPUs, started when it is first asked for.

        Args:
            gpus: how many ranks.

        Returns:
            A Cluster on this lab's backend and hardware.
        """
        if gpus not in self._clusters:
            if self.backend == "ray":  # actors are processes: keep those of one size at a time
                self.close()
                self._clusters.clear()
            options = {"timeout_s": self.timeout_s} if self.timeout_s else {}
            made = Cluster(self.hardware, gpus, self.backend, seed=self.seed, device=self.device, **options)
            self._clusters[gpus] = self._open.enter_context(made)
        return self._clusters[gpus]

    def train(
        self,
        key: str,
        title: Text,
        *,
        model: Any = "tiny",
        steps: int = 3,
        data: Any = None,
        checked: bool = True,
        also_on: Sequence[str] = (),
        note: Text | None = None,
        compared: bool = True,
        loss_scale: Any = None,
        **plan: Any,
    ) -> Any:
        """Train with a plan, compare it with one device, and keep the run with its checks.

        Args:
            key: what code and files call the run.
            title: what people read, in both languages.
            model: a preset's name, or a ModelConfig.
            steps: training steps.
            data: where tokens come from; None: drawn from the seed.
            checked: whether the same steps are trained on one device and compared.
            also_on: names of other hardware to replay the recording on.
            note: a text to stand beside the run in the report.
            compared: whether the report compares this run's bytes and time with the other runs'.
            loss_scale: the fp16 loss scale's rules; None: the usual ones.
            **plan: fields of `Plan`.

        Returns:
            A Trained: the run, its checks and its comparison with one device.

        Raises:
            InputError: for options that cannot run together.
            GlassError: the named error of the first rank that failed.
        """
        layout, shape = make_plan(**plan), make_model(model) if isinstance(model, str) else model
        layout.check(shape)
        check_data(data, shape.seq, shape.vocab)
        title = said(title)
        self.say(f"{title.en}: {counted(layout.gpus, self.backend + ' rank')}")
        job = Job(layout, shape, steps, data, self.seed, **({"loss_scale": loss_scale} if loss_scale else {}))
        trained = train(self.cluster(layout.gpus), job, checked=checked, say=self.say)
        if self.leader:
            noted = said(note) if note else None
            entry = Entry(key, title, trained.run, {}, trained.checks, noted, trained, compared)
            self._keep(entry, also_on)
        return trained

    def run(
        self,
        key: str,
        title: Text,
        program: Callable[..., Any],
        *args: Any,
        gpus: int = 4,
        also_on: Sequence[str] = (),
        clock: Any = None,
        **info: Any,
    ) -> Any:
        """Run a program on every rank, and keep the run.

        Args:
            key: what code and files call the run.
            title: what people read, in both languages.
            program: called as `program(gpu, *args)`.
            *args: the same on every rank.
            gpus: how many ranks.
            also_on: names of other hardware to replay the recording on.
            clock: a Hardware of the scenario's own to time this run; None: the lab's.
            **info: what the graph should remember about the run.

        Returns:
            A Run.

        Raises:
            GlassError: the named error of the first rank that failed.
        """
        title = said(title)
        self.say(f"{title.en}: {counted(gpus, self.backend + ' rank')}")
        run = self.cluster(gpus).run(program, *args, info=info)
        if clock is not None:
            run.hardware = clock
        if self.leader:
            self._keep(Entry(key, title, run, {}, run.checks), also_on)
        return run

    def dry(self, *, model: Any, **plan: Any) -> Any:
        """Record one step of a plan without computing it, on this lab's hardware: for sweeps beside what
        really ran.

        Args:
            model: a ModelConfig.
            **plan: fields of `Plan`.

        Returns:
            A Run of the dry backend, which is not kept for the report.

        Raises:
            InputError: for options that cannot run together.
        """
        layout = make_plan(**plan)
        layout.check(model)
        job = Job(layout, model, steps=1)
        return Cluster(self.hardware, layout.gpus, "dry", memory_bytes=None).run(
            train_rank, job, info=job_info(job)
        )

    def _keep(self, entry: Entry, also_on: Sequence[str]) -> None:
        entry.timelines[self.hardware] = entry.run.timeline
        for name in also_on:
            if name != self.hardware:
                entry.timelines[name] = entry.run.replay(name)
        self.entries.append(entry)

    @property
    def leader(self) -> bool:
        """False only in the other processes of a torchrun job."""
        return all(c.leader for c in self._clusters.values())

    # ---- tell ----------------------------------------------------------------------------------------------
    def check(
        self,
        key: str,
        predicted: float | None,
        counted: float | None,
        source: str,
        *,
        name: Said | None = None,
        **options: Any,
    ) -> Row:
        """Keep a row of the scenario's own ledger.

        Args:
            key: what code calls the row, and what people read when there is no `name`.
            predicted: by the formula of `source`, in the row's unit; None: there is no formula.
            counted: from what ran, in the same unit; None: nothing was counted.
            source: paper and section.
            name: what people read, in both languages.
            **options: fields of `base.rows.Row`: `unit`, `match`, `tolerance`, `simulated`, `why`.

        Returns:
            The row, with its verdict: held, failed or not applicable.
        """
        if name is None:
            name = Said(key, key)
        made = Row(key, name, predicted, counted, source, **options)
        self.checks.append(made)
        return made

    def row(
        self,
        key: str,
        /,
        predicted: float | None,
        counted: float | None,
        source: str,
        *,
        simulated: float | None = None,
        unit: str = "bytes",
        match: Match = "exact",
        tolerance: float = 0.0,
        **blanks: Any,
    ) -> Row:
        """Keep a row of the lesson's own ledger; its name is the text `rows.KEY`.

        Args:
            key: what code calls the row, and the key of its name in the text file.
            predicted: by the formula of `source`; None: there is no formula.
            counted: from what ran; None: nothing was counted.
            source: paper and section.
            simulated: from the timeline; None: nothing was.
            unit: of all four values.
            match: how they must agree: see `base.rows.Row`.
            tolerance: how far they may differ.
            **blanks: values for the blanks of the name, by name.

        Returns:
            The row, with its verdict.
        """
        name = self._texts.filled("rows", key, blanks=blanks)
        options: dict[str, Any] = {"unit": unit, "match": match, "tolerance": tolerance}
        return self.check(key, predicted, counted, source, name=name, simulated=simulated, **options)

    @property
    def _texts(self) -> Texts:
        if self.scenario.texts is None:
            raise InputError("text", self.scenario.name, "has no text.toml: give the text in both languages")
        return self.scenario.texts

    def text(self, key: str, /, **blanks: Any) -> Said:
        """A text of the text file: a title of a run or of a figure.

        Args:
            key: its key in the section `text`.
            **blanks: values for the blanks of the text, by name.

        Returns:
            The text in both languages.
        """
        return self._texts.filled("text", key, blanks=blanks)

    def word(self, key: str, lang: str, /, **blanks: Any) -> str:
        """A text of the text file in one language: a label in a figure.

        Args:
            key: its key in the section `text`.
            lang: en or zh, the language that the figure is drawn in.
            **blanks: values for the blanks of the text, by name.

        Returns:
            The text.
        """
        return self.text(key, **blanks).in_(lang)

    def _said(self, section: str, text: str | Text, blanks: dict[str, Any]) -> Said:
        """A text as it was given, or of a key of the text file."""
        return self._texts.filled(section, text, blanks=blanks) if isinstance(text, str) else said(text)

    def tell(self, text: str | Text, /, view: str = "", **blanks: Any) -> None:
        """Add a sentence to the story, linked to a view of the report.

        Args:
            text: a text in both languages, or its key in the section `tell` of the text file.
            view: a URL hash such as `tab=timeline&run=ddp`.
            **blanks: values for the blanks of the text, by name.
        """
        self.story.append((self._said("tell", text, blanks), view))

    def ask(self, text: str | Text, answer: float, unit: str = "", /, **blanks: Any) -> None:
        """Ask the reader for a number; the report shows nothing else until one is entered.

        In the text file the question may say `unit` in both languages, and `range = [low, high]`, between
        which an answer can lie; a guess outside it is refused with the reason. A bound may be the name of a
        blank.

        Args:
            text: the question in both languages, or its key in the section `ask` of the text file.
            answer: the right number.
            unit: of the number, unless the text file says it.
            **blanks: values for the blanks of the text, by name.
        """
        units, low, high = Said(unit, UNITS.get(unit, unit)), None, None
        if isinstance(text, str):
            table = self._texts.table("ask", text)
            if "unit" in table:
                units = self._texts.text_of(table["unit"], f"ask.{text}.unit")
            bounds = (blanks[x] if isinstance(x, str) else x for x in table.get("range", (None, None)))
            low, high = bounds
        self.prompt = Prediction(self._said("ask", text, blanks), float(answer), units, low, high)

    def explain(self, **blanks: Any) -> None:
        """Say why the answer came out so: the section `explain` of the text file, with points for the reader
        to tick off.

        Args:
            **blanks: values for the blanks of the text, by name.
        """
        self.explanation, self.points = (
            self._texts.filled("explain", blanks=blanks),
            self._texts.points(blanks),
        )

    def own_number(self, **blanks: Any) -> None:
        """Give the number of this run to the interview card: `own_number` of the text file.

        Args:
            **blanks: values for the blanks of the text, by name.
        """
        self.own = self._texts.filled("own_number", blanks=blanks)
        self.card_values = blanks | self.card_values

    def card(self, **blanks: Any) -> None:
        """Give values to the blanks of the interview card, its follow-up questions and the misconception.
        What `own_number` is given fills them too.

        Args:
            **blanks: values by name.
        """
        self.card_values |= blanks

    def figure(self, title: str | Text, make: Callable[[str], Any], /, **blanks: Any) -> None:
        """Add a figure of the scenario's own to the report.

        Args:
            title: a text in both languages, or its key in the section `text` of the text file.
            make: `make(lang)` returns a figure: one of `visualize.figures`, or a
                plotly.graph_objects.Figure.
            **blanks: values for the blanks of the text, by name.
        """
        self.figures.append((self._said("text", title, blanks), make))

    def conclude(self, text: Text | None = None, /, **blanks: Any) -> None:
        """Say in one sentence what was found.

        Args:
            text: the sentence in both languages; None: `conclude` of the text file.
            **blanks: values for the blanks of the text, by name.
        """
        self.finding = said(text) if text is not None else self._texts.filled("conclude", blanks=blanks)

    def close(self) -> None:
        """Stop the clusters."""
        self._open.close()
        self._open = ExitStack()

    # ---- write down ----------------------------------------------------------------------------------------
    @property
    def all_checks(self) -> list[Row]:
        """Every run's rows, named by run when there are several; then the scenario's own."""
        several = len(self.entries) > 1
        rows = [row.of_run(e.key) if several else row for e in self.entries for row in e.checks]
        return rows + self.checks

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not tally(self.all_checks).failed

    @property
    def not_checked(self) -> list[Said]:
        """What could not be checked: nothing at all, or the bytes of a run whose collectives a library ran.

        That a run is trained without a reference is the scenario's choice; its other checks stand for that.
        """
        unchecked = [] if self.all_checks else [NO_CHECKS]
        return unchecked + [_of_run(e, NOT_COUNTED) for e in self.entries if e.run.graph.has_native]

    @property
    def status(self) -> Status:
        """PASS, PARTIAL (something could not be checked) or FAIL."""
        return status(self.all_checks, self.not_checked)

    def as_json(self, report: Path | None) -> dict[str, Any]:
        """The `glass.run/1` object.

        Args:
            report: where the report was written; None: nowhere.

        Returns:
            What `--json` prints.
        """
        return {
            "schema": "glass.run/1",
            "name": self.scenario.name,
            "backend": self.backend,
            "hardware": self.hardware,
            "seed": self.seed,
            "runs": [_run_json(e) for e in self.entries],
            **judged(self.all_checks, self.not_checked),
            "figures": [
                {"kind": "timeline", "run": e.key, "hardware": h, "title": e.title.en}
                for e in self.entries
                for h in e.timelines
            ],
            "report": str(report) if report else None,
        }

    def _lesson_page(self) -> Any:
        """The beats of a lesson for the page; None for a plain scenario."""
        taught = self.scenario.lesson
        if taught is None or self.prompt is None:
            return None
        prompt, card, formula = self.prompt, self.filled_card(), taught.formula
        return LessonPage(
            id=taught.id,
            question=taught.question,
            prompt=prompt.text,
            answer=prompt.answer,
            unit=prompt.unit,
            low=prompt.low,
            high=prompt.high,
            formula=FormulaShown(formula.id, formula.text, formula.match, formula.source, formula.symbols),
            kills=self.misconception(),
            explanation=self.explanation or Said("", ""),
            points=self.points,
            card_question=card.question,
            card_short=card.short,
            card_long=card.long,
            follow_ups=[FollowUpShown(x.question, *self._answer(x)) for x in card.follow_ups],
            own=self.own,
            code=[CodeShown(x.path, x.first, x.last, x.file, x.caption) for x in taught.code()],
        )

    @property
    def _lesson(self) -> Any:
        if self.scenario.lesson is None:
            raise InputError("lesson", self.scenario.name, "is a scenario, and has no card")
        return self.scenario.lesson

    def filled_card(self) -> Card:
        """The lesson's card with the numbers of this run.

        Raises:
            InputError: a blank got no value, neither by `card` nor by `own_number`.
        """
        card: Card = self._lesson.filled_card(self.card_values)
        return card

    def misconception(self) -> Said:
        """The lesson's misconception with the numbers of this run."""
        return self._texts.filled("kills", blanks=self.card_values)

    def _answer(self, question: FollowUp) -> tuple[Said | None, str | None, Said | None]:
        """The answer to a follow-up question; or the lesson that has it, and that lesson's title."""
        title = self._lesson.title_of(question.lesson) if question.lesson else None
        return question.answer, question.lesson, title

    def _story_steps(self) -> list[Any]:
        """The scenario's own sentences; when they are few, what can be said of any run is added, from its
        numbers. A lesson with a story of its own is told by that story.
        """
        steps = [StoryStep(text, view or "tab=ledger") for text, view in self.story]
        fewest = FEWEST_OF_A_LESSON if self.scenario.lesson else FEWEST_SENTENCES
        if self.entries and len(steps) < fewest:
            entry = self.entries[-1]
            here = f"&run={entry.key}" if len(self.entries) > 1 else ""
            of_any_run = [
                StoryStep(step.text, step.view + here)
                for step in story_of(entry.run, entry.run.timeline)
                if not step.view.startswith("tab=checks")
            ]
            steps += of_any_run[: fewest - len(steps)]
        return steps

    def write(self, folder: Path) -> Path:
        """Write report.html, ledger.csv, and each run's graph and trace (in a folder of its own when there
        are several).

        Args:
            folder: an existing folder.

        Returns:
            The report's path.
        """
        with rewriting(folder) as beside:
            self._write(beside, folder / "report.html")
        return folder / "report.html"

    def _write(self, folder: Path, report: Path) -> None:
        for entry in self.entries:
            home = folder if len(self.entries) == 1 else folder / entry.key
            home.mkdir(exist_ok=True)
            entry.run.graph.save(home / "graph.npz")
            write_chrome_trace(entry.timelines[self.hardware], home / "trace.json")
        write_ledger(folder / "ledger.csv", self.all_checks)
        chapters = [
            Chapter(
                e.key,
                e.title,
                e.run,
                e.timelines,
                e.checks,
                note=e.note,
                compared=e.compared,
                equivalence=e.trained.comparison if e.trained is not None else None,
                network=network_pictures(e.trained) if e.trained is not None else {},
            )
            for e in self.entries
        ]
        page = Report(
            name=self.scenario.name,
            title=self.scenario.title,
            finding=self.finding,
            chapters=chapters,
            story=self._story_steps(),
            seed=self.seed,
            checks=self.checks,
            not_checked=self.not_checked,
            figures=self.figures,
            lesson=self._lesson_page(),
        )
        write_report(page, folder / "report.html")
        wall = {e.key: e.trained.wall_s for e in self.entries if e.trained is not None}
        write_run_json(folder, {**self.as_json(report), "wall_s": wall})


def _of_run(entry: Entry, what: Said) -> Said:
    return Said(f"{entry.key}: {what.en}", f"{entry.key}: {what.zh}")


def _run_json(entry: Entry) -> dict[str, Any]:
    graph = entry.run.graph
    flops = graph.info.get("model_flops", 0.0), graph.info.get("causal_flops")
    if entry.trained is not None:
        content = entry.trained.as_json()
    else:
        peaks = entry.run.peak_memory()
        content = {
            "backend": entry.run.backend,
            "gpus": entry.run.gpus,
            "bytes_sent": None if graph.has_native else graph.traffic(),
            "peak_memory_bytes": [total for total, _ in peaks],
            "memory_bytes": {c: [split[c] for _, split in peaks] for c in peaks[0][1]},
            **entry.run.timeline.summary(*flops),
            **judged(entry.checks, [NOT_COUNTED] if graph.has_native else []),
        }
    replays = {name: timeline.summary(*flops) for name, timeline in entry.timelines.items()}
    return {"name": entry.key, **content, "replays": replays}


def perform(scenario: Scenario, lab: Lab, options: dict[str, Any]) -> Lab:
    """Call a scenario with its options, then stop its clusters whatever happened.

    Args:
        scenario: what to perform.
        lab: a new one, made for it.
        options: by name; what is left out has the function's default.

    Returns:
        The lab, with all that was run, checked and told.

    Raises:
        InputError: for an option that the scenario has not.
        ProgramFailed: for an error that a scenario of somebody's own raises, with the line.
    """
    known = scenario.options
    for name in options:
        if name not in known:
            raise InputError(name, options[name], f"{scenario.name} has no such option", list(known))
    try:
        with one_thread():
            scenario.function(lab, **options)
    except GlassError:
        raise
    except (Exception, SystemExit) as problem:
        file = inspect.getsourcefile(scenario.function) or ""
        if scenario.function.__module__.startswith(f"{__name__.split('.')[0]}."):
            raise  # a fault of ours
        lines = [f for f in traceback.extract_tb(problem.__traceback__) if f.filename == file]
        where = f" at {Path(file).name}:{lines[-1].lineno}, in {lines[-1].name}" if lines else ""
        said = " ".join(str(problem).split())
        raise ProgramFailed(
            f"scenario {scenario.name} raised {type(problem).__name__}: {said}{where}",
            operation=scenario.name,
        ) from problem
    finally:
        lab.close()
    return lab
