"""Sentences about a run, made from its own numbers in both languages, each with the view that shows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from glasscluster.base.breakdown import PAPERS, listed
from glasscluster.base.quantities import written_bytes, written_time
from glasscluster.base.rows import tally
from glasscluster.base.text import LANGUAGES, Said
from glasscluster.visualize.page.report import StoryStep
from glasscluster.visualize.words import word

if TYPE_CHECKING:
    from glasscluster.sim.run import Run
    from glasscluster.sim.time.timeline import Timeline


def story_of(run: Run, timeline: Timeline) -> Iterator[StoryStep]:
    """What can be said of any run, each sentence with the view it speaks of."""

    def step(key: str, view: str, **values: Any) -> StoryStep:
        said = {
            lang: {k: v.in_(lang) if isinstance(v, Said) else v for k, v in values.items()}
            for lang in LANGUAGES
        }
        return StoryStep(Said(*(word(key, lang, **said[lang]) for lang in LANGUAGES)), view)

    losses = [float(x) for x in getattr(run.results[-1], "losses", [])] if run.results else []
    if losses:
        yield step(
            "told_loss", "tab=checks", first=losses[0], last=losses[-1], steps=len(losses), gpus=run.gpus
        )
    said = timeline.summary()
    yield step(
        "told_time",
        "tab=timeline",
        step=written_time(said["makespan_s"]),
        hardware=timeline.hardware.name,
        rank=timeline.last_rank(),
        entries=listed(said["breakdown_s"]),
    )
    if said["bubble_fraction"] is not None:
        name, meaning = PAPERS["bubble_fraction"]
        shares = {"bubble": said["bubble_fraction"], "over": said["bubble_over_ideal"]}
        yield step("told_papers", "tab=timeline", name=name, meaning=meaning, **shares)
    peaks = [total for total, _ in run.peak_memory()]
    yield step("told_memory", "tab=memory", peak=written_bytes(max(peaks)))
    sent = run.graph.bytes_sent()
    if sum(sent):
        yield step("told_bytes", "tab=network", sent=written_bytes(max(sent)))
    if run.checks:
        counts = tally(run.checks).said
        yield StoryStep(Said(f"Checks: {counts.en}.", f"检查：{counts.zh}。"), "tab=ledger")
