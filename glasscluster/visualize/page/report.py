"""The report: one self-contained page about one or several runs. No server, no network, the same bytes each time."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from html import escape
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasscluster.base.rows import NO_CHECKS, Row, status, tally
from glasscluster.base.text import LANGUAGES, Said
from glasscluster.sim.recording.packed import pack_graph
from glasscluster.visualize.figures import ledger, network
from glasscluster.visualize.figures.breakdown import critical_figure, idle_figure, split_figure
from glasscluster.visualize.figures.compare import comparison_figure, contender
from glasscluster.visualize.figures.equivalence import equivalence_figure
from glasscluster.visualize.figures.memory import (
    StateBook,
    capacity_of,
    memory_bars,
    memory_by_strategy,
    memory_over_time,
)
from glasscluster.visualize.figures.palette import KINDS
from glasscluster.visualize.figures.side_by_side import side_by_side_figure
from glasscluster.visualize.figures.stepper import stepper_figure
from glasscluster.visualize.figures.timeline import (
    DRAWN_SINGLY,
    bar_count,
    time_unit,
    timeline_axes,
    timeline_figure,
)
from glasscluster.visualize.figures.topology import load_figure
from glasscluster.visualize.page.pack import pack_timeline
from glasscluster.visualize.words import CATALOGUE, word

if TYPE_CHECKING:
    from glasscluster.sim.run import Run
    from glasscluster.sim.time.timeline import Timeline

PLOTLY = "plotly-basic-4.1.1.min.js"
# Each file of ENGINE is a copy of the Python file that its header names, but for bar_arrays.js; none needs a
# page, so the tests run them under node.
ENGINE: tuple[str, ...] = ("packed.js", "order.js", "graph.js", "hardware.js", "cost.js", "critical_path.js", "idle.js")
ENGINE += ("bars.js", "timeline.js", "replay.js", "trace.js", "bar_arrays.js")
SCRIPTS = (*ENGINE, "canvas.js", "timeline_tab.js", "report.js")
PAGE_WORDS: tuple[str, ...] = (
    "show_table",
    "hide_table",
    "table_cut",
    "you_said",
    "not_a_number",
    "drawn",
    "follows",
    "whatif_idle",
    "whatif_says",
    "whatif_shared",
)
PAGE_WORDS += ("rank", "opt", "to_rank", "launched", "from_to", "length", "axis", "cause", "events", "messages_of")
PAGE_WORDS += ("forward", "backward", "weight", "recompute", "optimizer", "other", "collective", "p2p", "host", "bubble")
PAGE_WORDS += ("communication", "dependency", "warm-up", "drain")
TABS = ("story", "timeline", "memory", "network", "ledger", "checks")
MEMORY_CURVES = 4  # ranks whose memory over time is drawn: the fullest first


@dataclass
class Chapter:
    """One run in a report: its timelines by hardware (the first is shown first), its ledger rows, a remark."""

    key: str
    title: Said
    run: Run
    timelines: dict[str, Timeline]
    checks: list[Row] = field(default_factory=list)
    note: Said | None = None
    compared: bool = True
    equivalence: dict[str, Any] | None = None  # what strategies.check.compare returned
    network: dict[str, Callable[[str], Any]] = field(default_factory=dict)  # more pictures of who computes and sends what

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
class LessonPage:
    """The beats of a lesson around its run: question, prediction, formula, misconception, explanation, interview card."""

    id: str
    question: Said
    prompt: Said
    answer: float
    unit: str
    formula: str
    kills: Said
    explanation: Said
    points: list[Said]  # what a good explanation says; shown beside the reader's own sentence
    card_question: Said
    card_short: Said
    card_long: Said
    follow_ups: list[Said]
    own: Said | None


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


# ---- figures -----------------------------------------------------------------------------------------------------
def _plain(figure: Any) -> dict[str, Any]:
    from plotly.io import to_json

    content = json.loads(to_json(figure, engine="json"))
    return {"data": content["data"], "layout": content["layout"]}


def _changed(base: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in other.items() if base.get(k) != v}


def bilingual(make: Any) -> dict[str, Any] | None:
    """A figure in English and, as `zh`, only what is different in Chinese."""
    english = make("en")
    if english is None:
        return None
    base, other = _plain(english), _plain(make("zh"))
    patch = {
        "data": [_changed(a, b) for a, b in zip(base["data"], other["data"], strict=True)],
        "layout": _changed(base["layout"], other["layout"]),
    }
    return {**base, "zh": patch}


def _figures(report: Report) -> dict[str, Any]:
    """Every figure of the page by its id."""
    made: dict[str, Callable[[str], Any]] = {}
    for number, chapter in enumerate(report.chapters):
        made |= dict(_chapter_figures(number, chapter))
    compared = [c for c in report.chapters if c.compared]
    if len(compared) > 1:
        runs = [contender({"en": c.title.en, "zh": c.title.zh}, c.first, c.run.peak_memory()) for c in compared]
        made["compare"] = lambda lang: comparison_figure(runs, lang)
        if sum(bar_count(c.first) for c in compared) <= DRAWN_SINGLY:
            made["sides"] = lambda lang: side_by_side_figure([(c.title.in_(lang), c.first) for c in compared], lang)
    books = [(c, state_book(c)) for c in report.chapters if c.compared]
    if any(book for _, book in books):
        made["states"] = lambda lang: memory_by_strategy([replace(b, name=c.title.in_(lang)) for c, b in books if b], lang)
    made["rows"] = lambda lang: ledger.ledger_figure(report.all_checks(), lang)
    for number, (_, make) in enumerate(report.figures):
        made[f"own-{number}"] = make
    found = {key: bilingual(make) for key, make in made.items()}
    return {k: v for k, v in found.items() if v is not None}


def _chapter_figures(number: int, chapter: Chapter) -> Iterator[tuple[str, Callable[[str], Any]]]:
    """The figures of one run."""
    for place, t in enumerate(chapter.timelines.values()):
        here = f"{number}-{place}"
        yield f"tl-{here}", partial(timeline_axes if bar_count(t) > DRAWN_SINGLY else timeline_figure, t)
        yield f"split-{here}", partial(split_figure, t)
        yield f"idle-{here}", partial(idle_figure, t)
        yield f"path-{here}", partial(critical_figure, t)
    peaks, graph = chapter.run.peak_memory(), chapter.run.graph
    if any(total for total, _ in peaks):
        yield f"mem-{number}", partial(memory_bars, peaks, capacity=capacity_of(chapter.first))
        for rank in _curves(peaks):
            yield f"curve-{number}-{rank}", partial(memory_over_time, chapter.first, rank)
    yield f"net-{number}", partial(network.sent_figure, graph)
    yield f"matrix-{number}", partial(network.traffic_figure, graph)
    for name, make in chapter.network.items():
        yield f"net-{name}-{number}", make
    yield f"load-{number}", partial(load_figure, chapter.first)
    yield f"ring-{number}", partial(stepper_figure, graph)
    if chapter.equivalence:
        yield f"same-{number}", partial(equivalence_figure, chapter.equivalence)


def state_book(chapter: Chapter) -> StateBook | None:
    """Model states per GPU, counted and by the formula, from the rows that say so; None when the run has none."""
    by_key = {r.key: r for r in chapter.checks}
    rows = {k: by_key[f"{k}_held"] for k in ("parameters", "gradients", "optimizer") if f"{k}_held" in by_key}
    if len(rows) != 3:
        return None
    ranks, peaks = chapter.run.graph.ranks, chapter.run.peak_memory()
    more = {k: sum(split[k] for _, split in peaks) / ranks for k in ("activations", "buffers")}
    counted = {k: (r.counted or 0) / ranks for k, r in rows.items()}
    predicted = {k: (r.predicted or 0) / ranks for k, r in rows.items()}
    return StateBook("", counted, predicted, more)


def _curves(peaks: list[tuple[int, dict[str, int]]]) -> list[int]:
    """The fullest ranks, one for each distinct peak."""
    order = sorted(range(len(peaks)), key=lambda r: (-peaks[r][0], r))
    distinct: dict[int, int] = {}
    for rank in order:
        distinct.setdefault(peaks[rank][0], rank)
    return list(distinct.values())[:MEMORY_CURVES]


# ---- the page ----------------------------------------------------------------------------------------------------
def _summary(timeline: Timeline, model_flops: float) -> list[tuple[str, str]]:
    """Word key and value of the line under a timeline."""
    factor, unit = time_unit(timeline.makespan)
    said = timeline.summary(model_flops)
    rows = [
        ("table_step", f"{said['makespan_s'] * factor:.4g} {unit}"),
        ("table_bubble", f"{said['bubble_fraction']:.1%}"),
        ("over_ideal", f"{said['bubble_over_ideal']:.1%}"),
        ("table_exposed", f"{said['exposed_comm_s'] * factor:.4g} {unit}"),
    ]
    return rows + ([("table_mfu", f"{said['mfu']:.2%}")] if model_flops else [])


def _chapters(report: Report, figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for number, chapter in enumerate(report.chapters):
        flops = float(chapter.run.graph.info.get("model_flops", 0.0))
        own = [f"net-{name}-{number}" for name in chapter.network if name != "kept"]
        known = [f for f in (f"net-{number}", f"matrix-{number}", *own, f"load-{number}", f"ring-{number}") if f in figures]
        yield {
            "key": chapter.key,
            "order_fixed": bool(chapter.run.graph.info.get("order_fixed")),
            "title": chapter.title,
            "note": chapter.note,
            "timelines": [
                {
                    "hardware": name,
                    "figure": f"tl-{number}-{place}",
                    "more": [(key, f"{key}-{number}-{place}") for key in ("split", "idle", "path")],
                    "summary": _summary(t, flops),
                }
                for place, (name, t) in enumerate(chapter.timelines.items())
            ],
            "memory": [k for k in figures if k in (f"mem-{number}", f"net-kept-{number}") or k.startswith(f"curve-{number}-")],
            "network": known,
            "equivalence": f"same-{number}" if f"same-{number}" in figures else None,
            "ledger": ledger.lines(chapter.checks),
            "same": [r for r in ledger.lines(chapter.checks) if r["unit"] == "relative"],
            "counts": tally(chapter.checks).said,
        }


def _versions() -> str:
    found = []
    for name in ("glasscluster", "torch"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return " · ".join(found)


def ledger_csv(report: Report) -> str:
    """The ledger as CSV text, as the download button gives it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = ["predicted", "counted", "simulated", "measured", "unit", "ok", "source"]
    columns += ["key", "verdict", "why"]
    writer.writerow(["run", "quantity", *columns])
    sections = [(c.key, c.checks) for c in report.chapters] + [("", report.checks)]
    for key, rows in sections:
        for r in rows:
            content = r.as_dict()
            writer.writerow([key, r.name.en, *(content[column] for column in columns)])
    return out.getvalue()


@lru_cache(maxsize=1)
def plotly_source() -> str:
    """The vendored plotly.js, refused when its hash is not the one on record."""
    folder = files("glasscluster.visualize") / "vendor"
    source = (folder / PLOTLY).read_bytes()
    expected = {name: digest for digest, name in (line.split() for line in (folder / "SHA256SUMS").read_text().splitlines())}
    if hashlib.sha256(source).hexdigest() != expected[PLOTLY]:
        raise RuntimeError(f"{PLOTLY} is not the file whose hash is in SHA256SUMS")
    return source.decode()


def _hash(script: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"


def _json(content: Any) -> str:
    """JSON that may stand inside a script element."""
    text = json.dumps(content, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def render(report: Report) -> str:
    """The whole page as text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("glasscluster.visualize", "templates"),
        autoescape=jinja2.select_autoescape(default=True, default_for_string=True),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates = files("glasscluster.visualize") / "templates"
    style = (templates / "report.css").read_text(encoding="utf-8")
    figures = _figures(report)
    scripts = [plotly_source(), "\n".join((templates / name).read_text(encoding="utf-8") for name in SCRIPTS)]
    data = {
        "figures": figures,
        "graphs": [_packed(c) for c in report.chapters],
        "views": dict(_views(report)),
        "palette": {k: vars(look) for k, look in KINDS.items()},
        "ledger": ledger_csv(report),
        "words": {k: {"en": CATALOGUE[k].en, "zh": CATALOGUE[k].zh} for k in PAGE_WORDS},
        "lesson": None if report.lesson is None else {"answer": report.lesson.answer, "unit": report.lesson.unit},
    }
    hardware = list(dict.fromkeys(h for c in report.chapters for h in c.timelines))
    first = report.chapters[0].run if report.chapters else None
    return environment.get_template("report.html").render(
        report=report,
        chapters=list(_chapters(report, figures)),
        own=ledger.lines(report.checks),
        counts=tally(report.all_checks()).said,
        total=len(report.all_checks()),
        tabs=TABS,
        verdict=report.verdict(),
        hardware=hardware,
        backend=first.backend if first else "",
        versions=_versions(),
        figures=figures,
        W=CATALOGUE,
        say=lambda key, **values: Said(*(word(key, lang, **values) for lang in LANGUAGES)),
        scripts=scripts,
        style=style,
        data=_json(data),
        policy=f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'",
    )


def _packed(chapter: Chapter) -> dict[str, Any]:
    """The chapter's recording, for the page's engine. A rendezvous replay has more edges."""
    return pack_graph(chapter.run.graph, bool(chapter.first.replay_options.get("rendezvous")))


def _views(report: Report) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the page needs to replay each timeline: which graph, on what, in which unit, and whether on a canvas."""
    for number, chapter in enumerate(report.chapters):
        for place, timeline in enumerate(chapter.timelines.values()):
            factor, unit = time_unit(timeline.makespan)
            about = {"graph": number, "hardware": pack_timeline(timeline), "factor": factor, "unit": unit}
            yield f"tl-{number}-{place}", {**about, "canvas": bar_count(timeline) > DRAWN_SINGLY}


def write_report(report: Report, path: Path) -> Path:
    """Write the page."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(report), encoding="utf-8")
    return path


def notebook_html(figure: Any) -> str:
    """A figure for a notebook's output cell: a frame that holds everything it needs, also without a network."""
    content = _json(_plain(figure))
    page = f"""<!doctype html><meta charset="utf-8"><div id="figure"></div><script>{plotly_source()}</script>
<script>const f = {content}; moduleName.newPlot("figure", f.data, f.layout, {{responsive: true, displaylogo: false}});</script>"""
    height = int(figure.layout.height or 450) + 24
    return f'<iframe srcdoc="{escape(page, quote=True)}" style="width:100%;height:{height}px;border:0"></iframe>'


# ---- one run by itself -------------------------------------------------------------------------------------------
def write_run_report(
    run: Run,
    path: Path,
    network: dict[str, Callable[[str], Any]] | None = None,
    not_checked: Sequence[Said] = (),
) -> Path:
    """The page of a single run, with a story made from its numbers.

    `network`: more pictures for that tab. `not_checked`: checks that could not be made.
    """
    plan, model = run.info.get("plan"), run.info.get("model")
    timeline = run.timeline
    chapter = Chapter(
        "run", _run_title(plan, run.gpus), run, {timeline.hardware.name: timeline}, run.checks, _run_note(model), network=network or {}
    )
    story = list(story_of(run, timeline))
    finding = story[1].text if len(story) > 1 and story[1].view == "tab=timeline" else story[0].text
    name, seed = str(run.info.get("name", "run")), run.info.get("seed")
    page = Report(name, chapter.title, finding, [chapter], story, seed, not_checked=list(not_checked))
    return write_report(page, path)


def _run_title(plan: dict[str, Any] | None, gpus: int) -> Said:
    if not plan:
        return Said(f"A program on {gpus} GPUs", f"{gpus} 块 GPU 上的程序")
    axes = " · ".join(f"{a} {plan[a]}" for a in ("dp", "tp", "pp", "cp", "ep") if plan.get(a, 1) > 1) or "one GPU"
    more = (f" · ZeRO-{plan['zero']}" if plan["zero"] else "") + (f" · {plan['schedule']}" if plan["pp"] > 1 else "")
    return Said(f"Training on {gpus} GPUs: {axes}{more}", f"{gpus} 块 GPU 上的训练：{axes}{more}")


def _run_note(model: dict[str, Any] | None) -> Said | None:
    if not model:
        return None
    shape = f"{model['layers']} × {model['hidden']}, {model['heads']} heads, seq {model['seq']}, vocab {model['vocab']}"
    return Said(f"Model: {shape}", f"模型：{shape}")


def story_of(run: Run, timeline: Timeline) -> Iterator[StoryStep]:
    """What can be said of any run, each sentence with the view it speaks of."""

    def step(key: str, view: str, **values: Any) -> StoryStep:
        return StoryStep(Said(*(word(key, lang, **values) for lang in LANGUAGES)), view)

    losses = [float(x) for x in getattr(run.results[-1], "losses", [])] if run.results else []
    if losses:
        yield step("told_loss", "tab=checks", first=losses[0], last=losses[-1], steps=len(losses), gpus=run.gpus)
    said = timeline.summary()
    yield step(
        "told_time",
        "tab=timeline",
        step=said["makespan_s"] * 1e3,
        hardware=timeline.hardware.name,
        bubble=said["bubble_fraction"],
        exposed=said["exposed_comm_s"] * 1e3,
    )
    peaks = [total for total, _ in run.peak_memory()]
    yield step("told_memory", "tab=memory", peak=max(peaks) / 1e6)
    sent = run.graph.bytes_sent()
    if sum(sent):
        yield step("told_bytes", "tab=network", sent=max(sent) / 1e6)
    if run.checks:
        counts = tally(run.checks).said
        yield StoryStep(Said(f"Checks: {counts.en}.", f"检查：{counts.zh}。"), "tab=ledger")


__all__ = ["Chapter", "Report", "StoryStep", "render", "write_report", "write_run_report"]
