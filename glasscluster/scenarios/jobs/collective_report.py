"""The report of `glass collective`: the run with its stepper, the traffic and load of links, and sweeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from glasscluster.base.quantities import written_rate, written_time
from glasscluster.base.text import Said, counted
from glasscluster.scenarios.jobs.folders import output_folder, rewriting, write_run_json
from glasscluster.sim.run import Run
from glasscluster.visualize.figures.collectives import bandwidth_figure, crossover_figure, scaling_figure
from glasscluster.visualize.page.assemble import write_report
from glasscluster.visualize.page.report import Chapter, Report, StoryStep

SHOWN_ROLES = 8  # that a note names by number


def write(content: dict[str, Any], run: Run | None, out: str) -> Path:
    """Write the report: the run with its stepper, the traffic and load of links, and figures of the
    sweeps.
    """
    folder = output_folder(out, "collective")
    with rewriting(folder) as beside:
        return _write(content, run, beside, folder)


def _write(content: dict[str, Any], run: Run | None, folder: Path, shown: Path) -> Path:
    rows = content.get("sweep", [])
    by_size = [r for r in rows if r["gpus"] == content["gpus"]]
    by_gpus = [r for r in rows if r["size_bytes"] == content["size_bytes"]]
    figures: list[tuple[Said, Callable[[str], Any]]] = []
    if len({r["size_bytes"] for r in by_size}) > 1:
        figures.append(
            (
                Said("Bus bandwidth against size", "总线带宽与大小"),
                lambda lang: bandwidth_figure(by_size, lang),
            )
        )
        figures.append(
            (
                Said("Time against size: who is fastest where", "时间与大小：谁在哪里最快"),
                lambda lang: crossover_figure(by_size, lang),
            )
        )
    if len({r["gpus"] for r in by_gpus}) > 1:
        figures.append(
            (
                Said("Time against the number of GPUs", "时间与 GPU 数"),
                lambda lang: scaling_figure(by_gpus, lang),
            )
        )
    gpus = counted(content["gpus"], "GPU")
    name = f"{content['operation']} · {content['algorithm']} · {gpus} · {content['hardware']}"
    took, bus = written_time(content["time_s"]), written_rate(content["bus_bandwidth_bytes_per_s"])
    finding = Said(
        f"{took} (virtual), bus bandwidth {bus}.",
        f"{took}（虚拟），总线带宽 {bus}。",
    )
    chapters, story = [], []
    if run is not None:
        run.graph.save(folder / "graph.npz")
        note, title = _roles(run), Said(name, name)
        if run.graph.fold is not None:  # every tab has this title above what it draws
            roles = run.graph.fold.shifts.roles
            one = "all alike, one of them shown" if roles == 1 else f"one of each of {roles:,} roles"
            title = Said(f"{name} · {one}", f"{name} · {roles:,} 种角色，每种显示一个")
        chapters = [Chapter("run", title, run, {run.timeline.hardware.name: run.timeline}, note=note)]
        story = [StoryStep(note, "tab=timeline")] if note else []
        story += [StoryStep(Said(*text), view) for text, view in _story(content)]
    page = Report("collective", Said(name, name), finding, chapters, story, figures=figures)
    write_report(page, folder / "report.html")
    write_run_json(folder, {**content, "report": str(shown / "report.html")})
    return shown / "report.html"


def _roles(run: Run) -> Said | None:
    """What a folded run shows: whom its ranks stand for; nothing of another run."""
    if run.graph.fold is None:
        return None
    shifts = run.graph.fold.shifts
    shown = ", ".join(map(str, shifts.representatives[:SHOWN_ROLES].tolist()))
    shown += ", ..." if shifts.roles > SHOWN_ROLES else ""
    return Said(
        f"{shifts.ranks:,} ranks have {counted(shifts.roles, 'role')}, each with {shifts.each:,} ranks that "
        f"do the same at the same time over wires alike. Shown is one rank of each role: {shown}; a message to "
        "a rank that is not shown is drawn to the one of its role.",
        f"{shifts.ranks:,} 个 rank 有 {shifts.roles:,} 种角色，每种 {shifts.each:,} 个，"
        f"它们同时在同样的链路上做同样的事。图中每种角色显示一个 rank：{shown}；"
        "发往未显示的 rank 的消息，画到与它同角色的那个 rank 上。",
    )


def _story(content: dict[str, Any]) -> list[tuple[tuple[str, str], str]]:
    """The sentences about the numbers, each with the view that shows it."""
    link, most, theory = (
        content["busiest_link"],
        max(content["bytes_sent_per_gpu"]),
        content["predicted_time_s"],
    )
    took = written_time(content["time_s"])
    said = [
        (
            f"{content['messages']:,} messages in {content['steps']} dependent steps; the busiest GPU "
            f"sends {most:,} bytes.",
            f"共 {content['messages']:,} 条消息，{content['steps']} 个相互依赖的步骤；发送最多的 GPU 发送 {most:,} 字节。",
            "tab=network",
        ),
        (
            f"The busiest link is {link['from']} → {link['to']}, in use for "
            f"{link['utilisation_fraction']:.0%} of the time.",
            f"最忙的链路是 {link['from']} → {link['to']}，占用率 {link['utilisation_fraction']:.0%}。",
            "tab=network",
        ),
    ]
    if content["contention"]:
        said.append(
            (
                f"Messages share links max-min fairly; it takes {took}.",
                f"消息按最大最小公平共享链路，用时 {took}。",
                "tab=timeline",
            )
        )
    elif theory is not None:
        said.append(
            (
                f"No link is shared: the closed form says {written_time(theory, 6)}, the replay "
                f"{written_time(content['time_s'], 6)}.",
                f"没有共享的链路：闭式解为 {written_time(theory, 6)}，重放为 {written_time(content['time_s'], 6)}。",
                "tab=timeline",
            )
        )
    return [((en, zh), view) for en, zh, view in said]
