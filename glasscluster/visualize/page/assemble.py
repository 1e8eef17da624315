"""One file of a report: data, styles, scripts and plotly. No server, no network, the same bytes each time."""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import io
import json
from functools import lru_cache
from html import escape
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasscluster.base.breakdown import BUSY
from glasscluster.base.files import write_text
from glasscluster.base.rows import tally
from glasscluster.base.sources import Paper, cited, papers, source_said
from glasscluster.base.text import LANGUAGES, Said
from glasscluster.sim.time.idle import possible_entries
from glasscluster.visualize.figures import ledger
from glasscluster.visualize.figures.layout import TEMPLATE
from glasscluster.visualize.figures.palette import KINDS, kind_of_gap
from glasscluster.visualize.figures.picture import Picture
from glasscluster.visualize.page.chapters import chapter_contents, packed_graph, page_figures, plain, views
from glasscluster.visualize.page.report import LessonPage, Report
from glasscluster.visualize.words import CATALOGUE, word

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

PLOTLY = "plotly-basic-4.1.1.min.js"
# Each file of ENGINE is a copy of the Python file that its header names, but for bar_arrays.js; none needs a
# page, so the tests run them under node.
ENGINE: tuple[str, ...] = ("packed.js", "order.js", "graph.js", "hardware.js", "cost.js", "critical_path.js")
ENGINE += ("breakdown.js", "idle.js", "bars.js", "timeline.js", "replay.js", "trace.js", "bar_arrays.js")
SCRIPTS: tuple[str, ...] = (*ENGINE, "canvas.js", "timeline_tab.js")
SCRIPTS += ("roving.js", "large.js", "figures.js", "presentation.js", "report.js")
# words that every page's script may say; page_words adds what time goes to
PAGE_WORDS: tuple[str, ...] = ("show_table", "hide_table", "table_cut", "you_said", "not_a_number", "drawn")
PAGE_WORDS += ("out_of_range", "follows", "whatif_idle", "whatif_says", "whatif_shared", "whatif_folded")
PAGE_WORDS += ("rank", "opt", "to_rank", "launched", "from_to", "length", "axis", "events")
PAGE_WORDS += ("messages_of", "forward", "backward", "weight", "recompute", "optimizer", "other")
PAGE_WORDS += ("collective", "p2p", "host", "entry_exposed")
PAGE_WORDS += ("figure_tools", "stage_label", "slide_back", "slide_on", "slide_end", "download")
TABS = ("story", "timeline", "memory", "network", "ledger", "checks")


def _versions() -> str:
    versions = []
    for name in ("glasscluster", "torch"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return " · ".join(versions)


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
    sums = (line.split() for line in (folder / "SHA256SUMS").read_text().splitlines())
    expected = {name: digest for digest, name in sums}
    if hashlib.sha256(source).hexdigest() != expected[PLOTLY]:
        raise RuntimeError(f"{PLOTLY} is not the file whose hash is in SHA256SUMS")
    return source.decode()


def script_hash(script: str) -> str:
    """What a content security policy says of a script that it allows."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"


def page_words(report: Report) -> dict[str, dict[str, str]]:
    """What the page's script says, by key and language: of the entries of time, those that can occur.

    A page without a pipeline so has no word about bubbles.
    """
    keys = list(PAGE_WORDS)
    for graph in (chapter.run.graph for chapter in report.chapters):
        for entry in possible_entries(graph):
            kind = kind_of_gap(entry)
            keys += [kind] if entry in BUSY else [kind, f"means_{kind}"]
            keys += [f"entry_{entry}"] if f"entry_{entry}" in CATALOGUE else []
        keys += ["whatif_papers"] if graph.pipelined else []
    return {key: {"en": CATALOGUE[key].en, "zh": CATALOGUE[key].zh} for key in keys}


def _json(content: Any) -> str:
    """JSON that may stand inside a script element."""
    text = json.dumps(content, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _asked(lesson: LessonPage) -> dict[str, Any]:
    """What the page judges a prediction by."""
    unit = {"en": lesson.unit.en, "zh": lesson.unit.zh}
    return {"answer": lesson.answer, "unit": unit, "low": lesson.low, "high": lesson.high}


def titled(source: str) -> str:
    """A source as HTML, in both languages where they differ: every arXiv number in it says its paper's
    authors and title on hover.
    """
    said = source_said(source)
    if said.en == said.zh:
        return _with_titles(source)
    return "".join(f'<span lang="{lang}">{_with_titles(said.in_(lang))}</span>' for lang in ("en", "zh"))


def _with_titles(source: str) -> str:
    known, text = papers(), escape(source)
    for id_ in cited(source):
        if id_ in known:
            text = text.replace(id_, f'<abbr title="{escape(known[id_].said)}">{id_}</abbr>')
    return text


def cited_papers(report: Report) -> list[Paper]:
    """The papers whose arXiv numbers the lesson's formula and rows cite."""
    sources = [report.lesson.formula.source] if report.lesson else []
    ids = dict.fromkeys(i for text in sources + [r.source for r in report.checks] for i in cited(text))
    return [papers()[id_] for id_ in ids if id_ in papers()]


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
    environment.filters["cited"] = titled
    templates = files("glasscluster.visualize") / "templates"
    style = (templates / "report.css").read_text(encoding="utf-8")
    figures = page_figures(report)
    own_scripts = "\n".join((templates / name).read_text(encoding="utf-8") for name in SCRIPTS)
    scripts = [plotly_source(), own_scripts]
    data = {
        "figures": figures,
        "graphs": [packed_graph(c) for c in report.chapters],
        "views": dict(views(report)),
        "template": TEMPLATE,
        "palette": {k: vars(look) for k, look in KINDS.items()},
        "ledger": ledger_csv(report),
        "words": page_words(report),
        "lesson": report.lesson and _asked(report.lesson),
    }
    hardware = list(dict.fromkeys(h for c in report.chapters for h in c.timelines))
    first = report.chapters[0].run if report.chapters else None
    chapters = list(chapter_contents(report, figures))
    return environment.get_template("report.html").render(
        report=report,
        chapters=chapters,
        utilisation=any(
            key == "table_hfu" for c in chapters for t in c["timelines"] for key, _ in t["summary"]
        ),
        own=ledger.lines(report.checks),
        papers=cited_papers(report),
        counts=tally(report.all_checks()).said,
        total=len(report.all_checks()),
        tabs=TABS if chapters or report.checks else TABS[:1],  # nothing ran: there is only what is told
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
        policy=f"default-src 'none'; script-src {' '.join(map(script_hash, scripts))}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'",
    )


def write_report(report: Report, path: Path) -> Path:
    """Write the page."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(report))
    return path


# plotly unpacks itself: a quarter of its size in a notebook that stores every output
UNPACK = """
(async () => {
  const packed = Uint8Array.from(atob(PLOTLY), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  document.head.append(Object.assign(document.createElement("script"), {
    textContent: await new Response(stream).text(),
  }));
  moduleName.newPlot("figure", FIGURE.data, FIGURE.layout, {responsive: true, displayModeBar: false});
})();
"""


@lru_cache(maxsize=1)
def _packed_plotly() -> str:
    return base64.b64encode(gzip.compress(plotly_source().encode(), 9, mtime=0)).decode()


def figure_page(figure: Picture | Figure) -> str:
    """A page of one figure that needs nothing beside it and opens no connection, about 0.6 MB."""
    content = plain(figure)
    content["layout"].setdefault("template", TEMPLATE)
    script = f'const PLOTLY = "{_packed_plotly()}", FIGURE = {_json(content)};{UNPACK}'
    return f"""<!doctype html><meta charset="utf-8"><title>GlassCluster</title>
<div id="figure"></div><script>{script}</script>"""


def notebook_html(figure: Picture | Figure) -> str:
    """A figure for a notebook's output cell: a frame that holds its page."""
    height = int(plain(figure)["layout"].get("height", 450)) + 24
    style = f"width:100%;height:{height}px;border:0"
    return f'<iframe srcdoc="{escape(figure_page(figure), quote=True)}" style="{style}"></iframe>'
