"""The lab: what a scenario works with. It runs plans and programs, replays them, keeps checks, and tells the story.

    @scenario("two-rings")
    def two_rings(lab, gpus: int = 4):
        '''What the docstring says is the story's first paragraph.'''
        run = lab.run("ring", ("A ring", "一个环"), program, gpus=gpus)
        lab.check("bytes sent", 2 * (gpus - 1) * SIZE, sum(run.graph.bytes_sent()), "Patarasuk-Yuan 2009 (Eq 9)")
        lab.tell(("The ring sent it all.", "环把它全部发送了。"))

`glass run two-rings --gpus 8`, or `glass run my_file.py` for a file that holds one.

What is said is given as a text (a pair of English and 中文, or a `Said`). A scenario with a text.toml, as every lesson
has, gives a key of that file instead, and the values of the blanks: `lab.tell("ring_sent", gpus=gpus)`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.base.rows import NO_CHECKS, NOT_COUNTED, Match, Row, Status, judged, status, tally
from glasscluster.base.text import Said
from glasscluster.scenarios.built_in import TITLES
from glasscluster.scenarios.texts import Text, Texts, said

Say = Callable[[str], None]


@dataclass(frozen=True)
class Scenario:
    """A decorated function: its signature is its options, its docstring the story."""

    name: str
    function: Callable[..., None]
    title: Said
    backend: str = "threads"
    hardware: str = "classroom"

    @property
    def texts(self) -> Texts | None:
        """The scenario's text.toml; None where it gives its texts itself."""
        return None

    @property
    def lesson(self) -> Any:
        """What text.toml says of a lesson; None for a scenario that is none."""
        return None

    @property
    def story(self) -> str:
        """The docstring."""
        return inspect.getdoc(self.function) or ""

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """Name -> parameter, the lab left out."""
        return dict(list(inspect.signature(self.function, eval_str=True).parameters.items())[1:])


FEWEST_SENTENCES = 4  # of a story
REGISTRY: dict[str, Scenario] = {}


def scenario(name: str, *, title: Text | None = None, backend: str = "threads", hardware: str = "classroom") -> Callable[..., Any]:
    """Make a function a scenario."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        known = TITLES.get(name, Said(name, name))
        REGISTRY[name] = Scenario(name, function, said(title) if title else known, backend, hardware)
        return function

    return register


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
    """Handed to a scenario. One cluster a number of GPUs is kept open, so actors start once."""

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
    prompt: tuple[Said, float, str] | None = None  # what to predict, the answer, its unit
    explanation: Said | None = None
    points: list[Said] = field(default_factory=list)
    own: Said | None = None
    figures: list[tuple[Said, Callable[[str], Any]]] = field(default_factory=list)
    _open: ExitStack = field(default_factory=ExitStack)
    _clusters: dict[int, Any] = field(default_factory=dict)

    # ---- run -----------------------------------------------------------------------------------------------------
    def cluster(self, gpus: int) -> Any:
        """The cluster of this many GPUs (started at the first run on it)."""
        from glasscluster.sim.run import Cluster

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
        """Train with a plan, check it against one device, count it; returns a Trained."""
        from glasscluster.scenarios.jobs.sources import check_data
        from glasscluster.scenarios.jobs.training import train
        from glasscluster.strategies.job import Job
        from glasscluster.strategies.plan import make_model, make_plan

        layout, shape = make_plan(**plan), make_model(model) if isinstance(model, str) else model
        layout.check(shape)
        check_data(data, shape.seq, shape.vocab)
        title = said(title)
        self.say(f"{title.en}: {layout.gpus} {self.backend} ranks")
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
        """Run `program(gpu, *args)` on every rank; returns a Run. `clock`: a Hardware of the scenario's own, instead of the lab's."""
        title = said(title)
        self.say(f"{title.en}: {gpus} {self.backend} ranks")
        run = self.cluster(gpus).run(program, *args, info=info)
        if clock is not None:
            run.hardware = clock
        if self.leader:
            self._keep(Entry(key, title, run, {}, run.checks), also_on)
        return run

    def dry(self, *, model: Any, **plan: Any) -> Any:
        """A plan recorded dry (shapes only) on this lab's hardware: for sweeps beside what really ran."""
        from glasscluster.sim.run import Cluster
        from glasscluster.strategies.job import Job, job_info
        from glasscluster.strategies.plan import make_plan
        from glasscluster.strategies.trainer import train_rank

        layout = make_plan(**plan)
        layout.check(model)
        job = Job(layout, model, steps=1)
        return Cluster(self.hardware, layout.gpus, "dry", memory_bytes=None).run(train_rank, job, info=job_info(job))

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

    # ---- tell ----------------------------------------------------------------------------------------------------
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
        """A ledger row of the scenario: `lab.check("bytes sent", 96, sum(sent), "Patarasuk-Yuan 2009")`.

        Args:
            key: what code calls the row, and what people read when there is no `name`.
            predicted: by the formula of `source`.
            counted: from what ran.
            source: paper and section.
            name: what people read, in both languages.
            options: fields of `base.rows.Row`: `unit`, `match`, `tolerance`, `simulated`, `why`.
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
        """A ledger row of the lesson itself; its name is the text `rows.KEY`. See `base.rows.Row` for the values."""
        name = self._texts.filled("rows", key, blanks=blanks)
        options: dict[str, Any] = {"unit": unit, "match": match, "tolerance": tolerance}
        return self.check(key, predicted, counted, source, name=name, simulated=simulated, **options)

    @property
    def _texts(self) -> Texts:
        if self.scenario.texts is None:
            raise InputError("text", self.scenario.name, "has no text.toml: give the text in both languages")
        return self.scenario.texts

    def text(self, key: str, /, **blanks: Any) -> Said:
        """A title of a run or a figure: the text `text.KEY` with its blanks filled."""
        return self._texts.filled("text", key, blanks=blanks)

    def word(self, key: str, lang: str, /, **blanks: Any) -> str:
        """A label in a figure: the text `text.KEY` in the language that the figure is drawn in."""
        return self.text(key, **blanks).in_(lang)

    def _said(self, section: str, text: str | Text, blanks: dict[str, Any]) -> Said:
        """A text as it was given, or of a key of the text file."""
        return self._texts.filled(section, text, blanks=blanks) if isinstance(text, str) else said(text)

    def tell(self, text: str | Text, /, view: str = "", **blanks: Any) -> None:
        """A sentence of the story, linked to a view of the report.

        Args:
            text: a text, or the key of one below `tell` in the text file.
            view: a URL hash such as `tab=timeline&run=ddp`.
            blanks: the values of the text's blanks.
        """
        self.story.append((self._said("tell", text, blanks), view))

    def ask(self, text: str | Text, answer: float, unit: str, /, **blanks: Any) -> None:
        """The number to predict; the report shows nothing else until one is entered."""
        self.prompt = (self._said("ask", text, blanks), float(answer), unit)

    def explain(self, **blanks: Any) -> None:
        """Why it came out so: `explain` of the text file; its points are for the reader to tick off."""
        self.explanation, self.points = self._texts.filled("explain", blanks=blanks), self._texts.points(blanks)

    def own_number(self, **blanks: Any) -> None:
        """For the interview card: the number this run gave, `own_number` of the text file."""
        self.own = self._texts.filled("own_number", blanks=blanks)

    def figure(self, title: str | Text, make: Callable[[str], Any], /, **blanks: Any) -> None:
        """A figure of the scenario's own.

        Args:
            title: a text, or the key of one below `text` in the text file.
            make: `make(lang)` returns a plotly figure.
            blanks: the values of the title's blanks.
        """
        self.figures.append((self._said("text", title, blanks), make))

    def conclude(self, text: Text | None = None, /, **blanks: Any) -> None:
        """The one-sentence finding: a text, or `conclude` of the text file."""
        self.finding = said(text) if text is not None else self._texts.filled("conclude", blanks=blanks)

    def close(self) -> None:
        """Stop the clusters."""
        self._open.close()
        self._open = ExitStack()

    # ---- write down ----------------------------------------------------------------------------------------------
    @property
    def all_checks(self) -> list[Row]:
        """Every run's rows, named by run when there are several, then the scenario's own."""
        several = len(self.entries) > 1
        rows = [row.of_run(e.key) if several else row for e in self.entries for row in e.checks]
        return rows + self.checks

    @property
    def ok(self) -> bool:
        """No check failed."""
        return not tally(self.all_checks).failed

    @property
    def not_checked(self) -> list[Said]:
        """What could not be checked: nothing at all, or the bytes of a run whose collectives are a library's.

        That a run is trained without a reference is the scenario's choice; its other checks stand for that.
        """
        found = [] if self.all_checks else [NO_CHECKS]
        return found + [_of_run(e, NOT_COUNTED) for e in self.entries if e.run.graph.has_native]

    @property
    def status(self) -> Status:
        """PASS, PARTIAL or FAIL."""
        return status(self.all_checks, self.not_checked)

    def as_json(self, report: Path | None) -> dict[str, Any]:
        """The `glass.run/1` object."""
        return {
            "schema": "glass.run/1",
            "name": self.scenario.name,
            "backend": self.backend,
            "hardware": self.hardware,
            "seed": self.seed,
            "runs": [_run_json(e) for e in self.entries],
            **judged(self.all_checks, self.not_checked),
            "figures": [{"kind": "timeline", "run": e.key, "hardware": h, "title": e.title.en} for e in self.entries for h in e.timelines],
            "report": str(report) if report else None,
        }

    def _lesson_page(self) -> Any:
        """The beats of a lesson for the page; None for a plain scenario."""
        from glasscluster.visualize.page.report import LessonPage

        taught = self.scenario.lesson
        if taught is None or self.prompt is None:
            return None
        (prompt, answer, unit), card, formula = self.prompt, taught.card, taught.formula
        return LessonPage(
            id=taught.id,
            question=taught.question,
            prompt=prompt,
            answer=answer,
            unit=unit,
            formula=f"{formula.id} · {formula.text} · {formula.match} · {formula.source}",
            kills=taught.kills,
            explanation=self.explanation or Said("", ""),
            points=self.points,
            card_question=card.question,
            card_short=card.short,
            card_long=card.long,
            follow_ups=list(card.follow_ups),
            own=self.own,
        )

    def _told(self) -> list[Any]:
        """The scenario's own sentences; when they are few, what can be said of any run is added, from its numbers."""
        from glasscluster.visualize.page.report import StoryStep
        from glasscluster.visualize.page.story import told

        steps = [StoryStep(text, view or "tab=ledger") for text, view in self.story]
        if self.entries and len(steps) < FEWEST_SENTENCES:
            entry = self.entries[-1]
            here = f"&run={entry.key}" if len(self.entries) > 1 else ""
            said = [StoryStep(s.text, s.view + here) for s in told(entry.run, entry.run.timeline) if not s.view.startswith("tab=checks")]
            steps += said[: FEWEST_SENTENCES - len(steps)]
        return steps

    def write(self, folder: Path) -> Path:
        """report.html, ledger.csv, and each run's graph and trace (in a folder of its own when there are several)."""
        from glasscluster.scenarios.jobs.training import network_pictures, write_ledger, write_run_json
        from glasscluster.visualize.page.assemble import write_report
        from glasscluster.visualize.page.report import Chapter, Report
        from glasscluster.visualize.page.trace import write_chrome_trace

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
            story=self._told(),
            seed=self.seed,
            checks=self.checks,
            not_checked=self.not_checked,
            figures=self.figures,
            lesson=self._lesson_page(),
        )
        report = write_report(page, folder / "report.html")
        wall = {e.key: e.trained.wall_s for e in self.entries if e.trained is not None}
        write_run_json(folder, {**self.as_json(report), "wall_s": wall})
        return report


def _of_run(entry: Entry, what: Said) -> Said:
    return Said(f"{entry.key}: {what.en}", f"{entry.key}: {what.zh}")


def _run_json(entry: Entry) -> dict[str, Any]:
    graph = entry.run.graph
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
            **entry.run.timeline.summary(graph.info.get("model_flops", 0.0)),
            **judged(entry.checks, [NOT_COUNTED] if graph.has_native else []),
        }
    replays = {name: timeline.summary(graph.info.get("model_flops", 0.0)) for name, timeline in entry.timelines.items()}
    return {"name": entry.key, **content, "replays": replays}


def perform(play: Scenario, lab: Lab, options: dict[str, Any]) -> Lab:
    """Call the scenario with its options, then stop its clusters whatever happened."""
    known = play.options
    for name in options:
        if name not in known:
            raise InputError(name, options[name], f"{play.name} has no such option", list(known))
    try:
        play.function(lab, **options)
    finally:
        lab.close()
    return lab
