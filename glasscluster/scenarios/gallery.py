"""`glass gallery`: run the lessons, write their reports and an index of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.base.rows import tally
from glasscluster.scenarios.jobs.folders import output_folder
from glasscluster.scenarios.lab import Lab, Say, perform
from glasscluster.scenarios.lesson import LESSONS, find_lesson, taught_lesson
from glasscluster.scenarios.requests.scenarios import GalleryRequest
from glasscluster.sim.recording.events import FORWARD
from glasscluster.visualize.figures.thumbnail import figure_svg, timeline_svg
from glasscluster.visualize.page.chapters import plain
from glasscluster.visualize.page.gallery import GalleryCard, write_gallery


def gallery_command(request: GalleryRequest, say: Say) -> tuple[Path, list[dict[str, Any]]]:
    """Run `glass gallery`: write the lessons' reports; return the index and one row a lesson."""
    only = request.only.split(",") if request.only else None
    return build(request.out, request.backend or "threads", only, say)


def build(out: str, backend: str, only: list[str] | None, say: Say) -> tuple[Path, list[dict[str, Any]]]:
    """Run the lessons and write their reports; return the index and one row a lesson."""
    for name in only or []:
        if name.upper() not in LESSONS:
            raise InputError("only", name, "unknown lesson", list(LESSONS))
    folder, cards, rows = output_folder(out, "gallery"), [], []
    wanted = [n.upper() for n in only] if only else list(LESSONS)
    for number, id_ in enumerate(wanted, start=1):
        taught = taught_lesson(id_)
        say(f"{id_} {taught.title.en} ({number} of {len(wanted)})")
        lab = perform(taught, Lab(taught, backend, taught.hardware), {})
        home = folder / id_
        home.mkdir(exist_ok=True)
        lab.write(home)
        counts, text = tally(lab.all_checks), find_lesson(id_)
        card = GalleryCard(
            id_,
            taught.title,
            text.topic,
            text.question,
            text.card.question,
            tuple(each.question for each in text.card.follow_ups),
            lab.finding,
            lab.status,
            counts.said,
            _thumbnail(lab, taught.title.en),
            f"{id_}/report.html",
        )
        cards.append(card)
        rows.append(
            {
                "id": id_,
                "ok": lab.ok,
                "status": lab.status,
                "not_checked": [check.en for check in lab.not_checked],
                "checks": len(lab.all_checks),
                **asdict(counts),
                "report": str(home / "report.html"),
            }
        )
    return write_gallery(cards, folder), rows


def _thumbnail(lab: Lab, title: str) -> str:
    """The timeline of the largest run that trained on several ranks (one rank's is a single bar), else the
    lesson's first figure.
    """
    several = [e.run for e in lab.entries if e.run.graph.ranks > 1]
    trained = [run.timeline for run in several if (run.graph.phase == FORWARD).any()]
    if trained or not lab.figures:
        return timeline_svg(
            max(trained or [e.run.timeline for e in lab.entries], key=lambda t: len(t.graph)), title
        )
    return figure_svg(plain(lab.figures[0][1]("en")), title)
