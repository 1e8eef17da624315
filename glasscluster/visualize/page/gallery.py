"""The gallery: one page of cards that opens from disk, with a filter by topic and the glossary."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from glasscluster.base.files import write_text
from glasscluster.base.rows import Status
from glasscluster.base.text import Said
from glasscluster.visualize.page.assemble import script_hash
from glasscluster.visualize.words import CATALOGUE, GLOSSARY


@dataclass(frozen=True)
class GalleryCard:
    """A report in the gallery. It shows the question and not the answer. `link` is relative to the index."""

    id: str
    title: Said
    topic: Said
    question: Said
    status: Status
    counts: Said  # how many rows held, failed, were not applicable
    thumbnail: str  # SVG made by visualize.thumbnail
    link: str


def write_gallery(cards: list[GalleryCard], folder: Path) -> Path:
    """Write index.html."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("glasscluster.visualize", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates = files("glasscluster.visualize") / "templates"
    script, style = ((templates / name).read_text(encoding="utf-8") for name in ("gallery.js", "report.css"))
    topics = list(dict.fromkeys((c.topic.en, c.topic.zh) for c in cards))
    text = environment.get_template("gallery.html").render(
        cards=cards,
        topics=[Said(*t) for t in topics],
        glossary=GLOSSARY,
        W=CATALOGUE,
        script=script,
        style=style,
        policy=f"default-src 'none'; script-src {script_hash(script)}; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'",
    )
    path = folder / "index.html"
    write_text(path, text)
    return path
