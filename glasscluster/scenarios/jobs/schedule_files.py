"""`glass schedule --out FILE`: a schedule drawn on a page, or as a list that is read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glasscluster.base.files import write_text
from glasscluster.base.text import Said, counted
from glasscluster.scenarios.jobs.schedules import judged, summary
from glasscluster.scenarios.requests.stored import ScheduleRequest
from glasscluster.strategies.pipeline.schedules.base import Metrics, Schedule
from glasscluster.strategies.pipeline.schedules.notation import written_csv, written_lines
from glasscluster.visualize.figures.pipelines import Bar, ScheduleRun, comparison_figure, staircase_figure
from glasscluster.visualize.page.assemble import write_report
from glasscluster.visualize.page.report import Report, StoryStep
from glasscluster.visualize.words import word


def write_schedule(request: ScheduleRequest, content: dict[str, Any]) -> str:
    """Write the schedule of a request to its `out`, whose ending says as what; returns the path.

    Args:
        request: names the file.
        content: the `glass.schedule/1` object of the request.
    """
    assert request.out is not None
    ending = Path(request.out).suffix.lower()
    if ending == ".html":
        schedule, metrics = judged(request)
        write_report(schedule_page(schedule, metrics, content), Path(request.out))
    elif ending == ".csv":
        write_text(request.out, written_csv(content["ranks"]))
    elif ending == ".json":
        write_text(request.out, json.dumps(content) + "\n")
    else:
        lines = [*written_lines(content["ranks"]), *(f"# {said}" for said in summary(content))]
        write_text(request.out, "\n".join(lines) + "\n")
    return request.out


def schedule_page(schedule: Schedule, metrics: Metrics, content: dict[str, Any]) -> Report:
    """A page with the schedule on a time axis, and what each rank holds. Nothing ran: time is in the units of
    the costs.
    """
    p, m, name = len(schedule.ranks), schedule.micro_batches, Path(schedule.name).name
    ran = [ScheduleRun(name, bars(schedule, metrics))]
    title = Said(
        f"{name} on {counted(p, 'rank')}, {m} micro-batches: a list, not a run",
        f"{name}：{p} 个 rank，{m} 个微批次；这是列表，不是一次运行",
    )
    share, over = metrics.bubble_fraction, metrics.bubble_over_ideal
    finding = Said(
        f"Makespan {metrics.makespan:g}; idle {share:.1%} of all time, {over:.1%} of the work.",
        f"总时长 {metrics.makespan:g}；空闲占总时间 {share:.1%}，是有效时间的 {over:.1%}。",
    )
    most = max(metrics.peak_live)
    held = Said(
        f"The fullest rank holds the activations of {most} chunks of micro-batches; "
        f"{content['messages']} messages pass between ranks.",
        f"最满的 rank 持有 {most} 份微批次激活；rank 之间共传递 {content['messages']} 条消息。",
    )

    def axis(lang: str) -> str:
        return word("cost_units", lang)

    figures = [
        (
            Said("Who does what when", "谁在何时做什么"),
            lambda lang: comparison_figure(ran, lang, axis=axis(lang)),
        ),
        (
            Said("Activations held", "持有的激活"),
            lambda lang: staircase_figure(ran, lang, axis=axis(lang)),
        ),
    ]
    return Report("schedule", title, finding, [], [StoryStep(finding), StoryStep(held)], figures=figures)


def bars(schedule: Schedule, metrics: Metrics) -> list[Bar]:
    """A bar for every action, in units of the costs; a slot of two is its forward and then its backward."""
    made = []
    for rank in range(len(schedule.ranks)):
        stages = schedule.stages_of(rank)
        for slot in schedule.slots(rank):
            begin, end = metrics.begin[slot[0]], metrics.end[slot[0]]
            middle = begin + (end - begin) / 3  # a backward is two forwards of work, as a rule
            spans = [(begin, end)] if len(slot) == 1 else [(begin, middle), (middle, end)]
            for action, span in zip(slot, spans, strict=True):
                made.append(Bar(rank, action.kind, stages.index(action.stage), action.micro_batch, *span))
    return made
