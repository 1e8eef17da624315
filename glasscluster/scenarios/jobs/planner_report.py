"""The report of `glass plan`: a map of all ways to share out the GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasscluster.base.quantities import written_time
from glasscluster.base.text import Said
from glasscluster.scenarios.jobs.folders import output_folder, rewriting, write_run_json
from glasscluster.scenarios.planning.launch import written
from glasscluster.scenarios.planning.search import Found, Layout
from glasscluster.sim.time.hardware import Hardware
from glasscluster.visualize.figures.cells import Table, cells_figure, shade
from glasscluster.visualize.page.assemble import write_report
from glasscluster.visualize.page.report import Report, StoryStep

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FULL = "#e6e6e6"  # the fill of a cell where nothing fits


def write(content: dict[str, Any], outcome: Found, machine: Hardware, out: str) -> Path:
    """Write the report; returns its path."""
    folder = output_folder(out, "plan")
    with rewriting(folder) as beside:
        _write(content, outcome, machine, beside)
        write_run_json(beside, {**content, "report": str(folder / "report.html")})
    return folder / "report.html"


def _write(content: dict[str, Any], outcome: Found, machine: Hardware, folder: Path) -> None:
    name = f"{content['gpus']:,} GPUs · {machine.name}"
    if outcome.best:
        took = written_time(outcome.best[0].seconds)
        finding = Said(
            f"The quickest of {outcome.considered:,} legal layouts takes {took} a step (virtual); "
            f"{outcome.replayed:,} were replayed, and no bound of the others is under it.",
            f"{outcome.considered:,} 种合法布局中最快的一种每步 {took}（虚拟）；重放了 {outcome.replayed:,} 种，"
            "其余布局的下界都不低于它。",
        )
    else:
        finding = Said("No legal layout fits.", "没有放得下的合法布局。")
    title = Said(
        "Best step of each layout: replayed, or (with ≥) at least",
        "各布局的最快一步：重放所得，或（带 ≥）下界",
    )
    page = Report(
        "plan",
        Said(name, name),
        finding,
        [],
        [StoryStep(text, "") for text in _story(content)],
        figures=[(title, lambda lang: heat_map(outcome, machine, lang))],
    )
    write_report(page, folder / "report.html")


def _story(content: dict[str, Any]) -> list[Said]:
    """The best layouts with their numbers, then why the others are not among them."""
    said = []
    for best in content["best"]:
        took, left = written_time(best["iteration_time_s"]), f"{best['memory_margin_gib']:.1f} GiB"
        layout = written(best["plan"])
        said.append(Said(f"{layout}: {took} a step, {left} left.", f"{layout}：每步 {took}，剩余 {left}。"))
    for other in content["why_not"]:
        layout, why = written(other["plan"]), other["reason"]
        said.append(Said(f"{layout}: {why['en']}.", f"{layout}：{why['zh']}。"))
    return said


def heat_map(outcome: Found, machine: Hardware, lang: str) -> Figure:
    """Draw a table of cells: tensor and context parallelism down, the pipeline across; the best of each."""
    layouts = [*outcome.best, *outcome.others]
    downs = sorted({(one.plan.tp, one.plan.cp) for one in layouts})
    across = sorted({one.plan.pp for one in layouts})
    cells = {(down, pp): _best_of(layouts, down, pp, machine) for down in downs for pp in across}
    times = [one.seconds for one in cells.values() if one is not None and _may_fit(one, machine)]
    least, most = min(times, default=1.0), max(times, default=1.0)

    def fill(one: Layout | None) -> str:
        if one is None or not _may_fit(one, machine):
            return FULL
        return shade(1 - (one.seconds - least) / (most - least) if most > least else 1.0)

    return cells_figure(
        [
            Table(
                "",
                [f"tp {tp}" + (f" cp {cp}" if cp > 1 else "") for tp, cp in downs],
                [f"pp {pp}" for pp in across],
                [[_text(cells[down, pp], machine, lang) for pp in across] for down in downs],
                [[fill(cells[down, pp]) for pp in across] for down in downs],
            )
        ]
    )


def _may_fit(layout: Layout, machine: Hardware) -> bool:
    return layout.content.get("fits", True) and layout.bytes <= machine.gpu.memory_bytes


def _best_of(layouts: list[Layout], down: tuple[int, int], pp: int, machine: Hardware) -> Layout | None:
    these = [one for one in layouts if (one.plan.tp, one.plan.cp) == down and one.plan.pp == pp]
    return min(these, key=lambda one: (not _may_fit(one, machine), one.order), default=None)


def _text(layout: Layout | None, machine: Hardware, lang: str) -> str:
    if layout is None:
        return "–"
    if not _may_fit(layout, machine):
        return Said("too big", "放不下").in_(lang)
    return ("" if layout.content else "≥ ") + written_time(layout.seconds)
