"""The lab: what a scenario works with. It runs plans and programs, replays them, keeps checks, and tells the story.

    @scenario("two-rings")
    def two_rings(lab, gpus: int = 4):
        '''What the docstring says is the story's first paragraph.'''
        run = lab.run("ring", ("A ring", "一个环"), program, gpus=gpus)
        lab.check("bytes sent", 2 * (gpus - 1) * SIZE, sum(run.graph.bytes_sent()), "Patarasuk-Yuan 2009 (F9)")

`glass run two-rings --gpus 8`, or `glass run my_file.py` for a file that holds one.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glasscluster.base.errors import InputError

Text = tuple[str, str]  # English, 中文
Say = Callable[[str], None]


@dataclass(frozen=True)
class Scenario:
    """A decorated function: its signature is its options, its docstring the story."""

    name: str
    function: Callable[..., None]
    title: Text
    backend: str = "threads"
    hardware: str = "classroom"

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
BUILT_IN = {  # name -> the module that holds it
    "tour": "glasscluster.scenarios.tour",
    "async_servers": "glasscluster.scenarios.async_servers",
    "diloco": "glasscluster.scenarios.diloco",
    "zoo": "glasscluster.scenarios.zoo.zoo",
    "preference": "glasscluster.scenarios.preference",
    "emergency_room": "glasscluster.scenarios.emergency_room.emergency_room",
    "captions": "glasscluster.scenarios.captions",
}


def scenario(name: str, *, title: Text | None = None, backend: str = "threads", hardware: str = "classroom") -> Callable[..., Any]:
    """Make a function a scenario."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        REGISTRY[name] = Scenario(name, function, title or (name, name), backend, hardware)
        return function

    return register


def find(name: str) -> Scenario:
    """A built-in scenario or lesson by name, or the one in a file."""
    from glasscluster.scenarios.lesson import LESSONS, find_lesson

    if name.endswith(".py"):
        return _from_file(Path(name))
    if name.upper() in LESSONS:
        return find_lesson(name.upper())
    if name in BUILT_IN:
        importlib.import_module(BUILT_IN[name])
        return REGISTRY[name]
    raise InputError("scenario", name, "unknown scenario, and not a .py file", [*BUILT_IN, *LESSONS])


def _from_file(path: Path) -> Scenario:
    if not path.is_file():
        raise InputError("scenario", str(path), "there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # so that pickling a program of this file finds it
    try:
        spec.loader.exec_module(module)
    except Exception as problem:
        raise InputError("scenario", str(path), f"the file fails on import: {type(problem).__name__}: {problem}") from None
    new = [name for name, play in REGISTRY.items() if play.function.__globals__ is module.__dict__]
    if len(new) != 1:
        raise InputError("scenario", str(path), f"the file must hold one function decorated with @scenario(...), it has {len(new)}")
    return REGISTRY[new[0]]


@dataclass
class Entry:
    """One run in a scenario: what it was, and what it looks like on each hardware."""

    key: str
    title: Text
    run: Any
    timelines: dict[str, Any]
    checks: list[dict[str, Any]]
    note: Text | None = None
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
    checks: list[dict[str, Any]] = field(default_factory=list)
    story: list[tuple[Text, str]] = field(default_factory=list)
    finding: Text = ("", "")
    prompt: tuple[Text, float, str] | None = None  # what to predict, the answer, its unit
    explanation: Text | None = None
    points: list[Text] = field(default_factory=list)
    own: Text | None = None
    figures: list[tuple[Text, Callable[[str], Any]]] = field(default_factory=list)
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
        self.say(f"{title[0]}: {layout.gpus} {self.backend} ranks")
        job = Job(layout, shape, steps, data, self.seed, **({"loss_scale": loss_scale} if loss_scale else {}))
        trained = train(self.cluster(layout.gpus), job, checked=checked, say=self.say)
        if self.leader:
            entry = Entry(key, title, trained.run, {}, trained.checks, note, trained, compared)
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
        self.say(f"{title[0]}: {gpus} {self.backend} ranks")
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
    def check(self, name: str, predicted: float | None, counted: float | None, source: str, **options: Any) -> dict[str, Any]:
        """A ledger row of the scenario itself; see strategies.accounts.row for the options."""
        from glasscluster.strategies.judge.accounts import row

        made = row(name, predicted, counted, source, **options)
        self.checks.append(made)
        return made

    def tell(self, en: str, zh: str, view: str = "") -> None:
        """A sentence of the story, linked to a view of the report (a URL hash such as `tab=timeline&run=ddp`)."""
        self.story.append(((en, zh), view))

    def ask(self, en: str, zh: str, answer: float, unit: str) -> None:
        """The number to predict; the report shows nothing else until one is entered."""
        self.prompt = ((en, zh), float(answer), unit)

    def explain(self, en: str, zh: str, *points: Text) -> None:
        """Why it came out so; `points` are what a good explanation says, for the reader to tick off."""
        self.explanation, self.points = (en, zh), list(points)

    def own_number(self, en: str, zh: str) -> None:
        """For the interview card: the number this run gave."""
        self.own = (en, zh)

    def figure(self, title: Text, make: Callable[[str], Any]) -> None:
        """A figure of the lesson's own; `make(lang)` returns a plotly figure."""
        self.figures.append((title, make))

    def conclude(self, en: str, zh: str) -> None:
        """The one-sentence finding."""
        self.finding = (en, zh)

    def close(self) -> None:
        """Stop the clusters."""
        self._open.close()
        self._open = ExitStack()

    # ---- write down ----------------------------------------------------------------------------------------------
    @property
    def all_checks(self) -> list[dict[str, Any]]:
        """Every run's rows, named by run when there are several, then the scenario's own."""
        several = len(self.entries) > 1
        rows = [{**r, "name": f"{e.key}: {r['name']}" if several else r["name"]} for e in self.entries for r in e.checks]
        return rows + self.checks

    @property
    def ok(self) -> bool:
        """Every check held."""
        return all(r["ok"] for r in self.all_checks)

    def as_json(self, report: Path | None) -> dict[str, Any]:
        """The `glass.run/1` object."""
        return {
            "schema": "glass.run/1",
            "name": self.scenario.name,
            "backend": self.backend,
            "hardware": self.hardware,
            "seed": self.seed,
            "runs": [_run_json(e) for e in self.entries],
            "checks": self.all_checks,
            "figures": [{"kind": "timeline", "run": e.key, "hardware": h, "title": e.title[0]} for e in self.entries for h in e.timelines],
            "report": str(report) if report else None,
        }

    def _lesson_page(self) -> Any:
        """The beats of a lesson for the page; None for a plain scenario."""
        from glasscluster.base.text import Said
        from glasscluster.scenarios.lesson import Lesson
        from glasscluster.visualize.page.report import LessonPage

        taught = self.scenario
        if not isinstance(taught, Lesson) or self.prompt is None:
            return None
        (prompt, answer, unit), card, formula = self.prompt, taught.card, taught.formula
        return LessonPage(
            id=taught.id,
            question=Said(*taught.question),
            prompt=Said(*prompt),
            answer=answer,
            unit=unit,
            formula=f"{formula.id} · {formula.text} · {formula.match} · {formula.source}",
            kills=Said(*taught.kills),
            explanation=Said(*(self.explanation or ("", ""))),
            points=[Said(*p) for p in self.points],
            card_question=Said(*card.question),
            card_short=Said(*card.short),
            card_long=Said(*card.long),
            follow_ups=[Said(*f) for f in card.follow_ups],
            own=Said(*self.own) if self.own else None,
        )

    def _told(self) -> list[Any]:
        """The scenario's own sentences; when they are few, what can be said of any run is added, from its numbers."""
        from glasscluster.base.text import Said
        from glasscluster.visualize.page.report import StoryStep, told

        steps = [StoryStep(Said(*text), view or "tab=ledger") for text, view in self.story]
        if self.entries and len(steps) < FEWEST_SENTENCES:
            entry = self.entries[-1]
            here = f"&run={entry.key}" if len(self.entries) > 1 else ""
            said = [StoryStep(s.text, s.view + here) for s in told(entry.run, entry.run.timeline) if not s.view.startswith("tab=checks")]
            steps += said[: FEWEST_SENTENCES - len(steps)]
        return steps

    def write(self, folder: Path) -> Path:
        """report.html, ledger.csv, and each run's graph and trace (in a folder of its own when there are several)."""
        from glasscluster.base.text import Said
        from glasscluster.scenarios.jobs.training import network_pictures, write_ledger, write_run_json
        from glasscluster.visualize.page.report import Chapter, Report, write_report
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
                Said(*e.title),
                e.run,
                e.timelines,
                e.checks,
                note=Said(*e.note) if e.note else None,
                compared=e.compared,
                equivalence=e.trained.comparison if e.trained is not None else None,
                network=network_pictures(e.trained) if e.trained is not None else {},
            )
            for e in self.entries
        ]
        page = Report(
            name=self.scenario.name,
            title=Said(*self.scenario.title),
            finding=Said(*self.finding),
            chapters=chapters,
            story=self._told(),
            seed=self.seed,
            checks=self.checks,
            figures=[(Said(*title), make) for title, make in self.figures],
            lesson=self._lesson_page(),
        )
        report = write_report(page, folder / "report.html")
        wall = {e.key: e.trained.wall_s for e in self.entries if e.trained is not None}
        write_run_json(folder, {**self.as_json(report), "wall_s": wall})
        return report


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
            "checks": entry.checks,
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
