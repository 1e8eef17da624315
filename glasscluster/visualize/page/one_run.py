"""The report of one run by itself: what `glass train` and `Run.report` write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasscluster.base.text import Said, counted
from glasscluster.visualize.page.assemble import write_report
from glasscluster.visualize.page.report import Chapter, Report
from glasscluster.visualize.page.story import story_of

if TYPE_CHECKING:
    from glasscluster.sim.run import Run


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
    title, note, shown = _run_title(plan, run.gpus), _run_note(model), {timeline.hardware.name: timeline}
    chapter = Chapter("run", title, run, shown, run.checks, note, network=network or {})
    story = list(story_of(run, timeline))
    finding = story[1].text if len(story) > 1 and story[1].view == "tab=timeline" else story[0].text
    name, seed = str(run.info.get("name", "run")), run.info.get("seed")
    page = Report(name, chapter.title, finding, [chapter], story, seed, not_checked=list(not_checked))
    return write_report(page, path)


def _run_title(plan: dict[str, Any] | None, gpus: int) -> Said:
    if not plan:
        return Said(f"A program on {counted(gpus, 'GPU')}", f"{gpus} 块 GPU 上的程序")
    split = [f"{axis} {plan[axis]}" for axis in ("dp", "tp", "pp", "cp", "ep") if plan.get(axis, 1) > 1]
    zero = [f"ZeRO-{plan['zero']}"] if plan["zero"] else []
    more = zero + ([plan["schedule"]] if plan["pp"] > 1 else [])
    english, chinese = (" · ".join((split or [alone]) + more) for alone in ("one GPU", "单块 GPU"))
    return Said(f"Training on {counted(gpus, 'GPU')}: {english}", f"{gpus} 块 GPU 上的训练：{chinese}")


def _run_note(model: dict[str, Any] | None) -> Said | None:
    if not model:
        return None
    m = model
    return Said(
        f"Model: {m['layers']} × {m['hidden']}, {m['heads']} heads, seq {m['seq']}, vocab {m['vocab']}",
        f"模型：{m['layers']} × {m['hidden']}，{m['heads']} 个头，序列长度 {m['seq']}，词表 {m['vocab']}",
    )
