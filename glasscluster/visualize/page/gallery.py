"""The gallery: one page that opens from disk, with the lessons by topic and by interview question."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from glasscluster.base.files import write_text
from glasscluster.base.rows import Status
from glasscluster.base.text import Said
from glasscluster.visualize.page.assemble import script_hash
from glasscluster.visualize.words import CATALOGUE, GLOSSARY

# a card each with its picture; a line each with the questions that follow
VIEWS = {"topics": "gallery_topics", "questions": "gallery_questions"}


@dataclass(frozen=True)
class GalleryCard:
    """A report in the gallery. `link` is relative to the index.

    The card shows the lesson's question; what came out (`finding`) stays closed until the reader asks.
    """

    id: str
    title: Said
    topic: Said
    question: Said
    interview: Said  # the interview card's question
    follow_ups: tuple[Said, ...]
    finding: Said
    status: Status
    counts: Said  # how many rows held, failed, were not applicable
    thumbnail: str  # SVG made by visualize.thumbnail
    link: str

    @property
    def words(self) -> str:
        """What the search looks in: everything but the finding, in both languages and lower case."""
        said = (self.title, self.topic, self.question, self.interview, *self.follow_ups)
        return " ".join([self.id, *(text for x in said for text in (x.en, x.zh))]).lower()


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
    names = ("roving.js", "gallery.js", "report.css")
    roving, own, style = ((templates / name).read_text(encoding="utf-8") for name in names)
    script = f"{roving}\n{own}"
    topics = list(dict.fromkeys((c.topic.en, c.topic.zh) for c in cards))
    text = environment.get_template("gallery.html").render(
        cards=cards,
        views=VIEWS,
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
