"""Run a plan and judge it: what most tests do."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

from glasscluster.model.config import ModelConfig
from glasscluster.sim.run import Cluster, Run
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.judge import check
from glasscluster.strategies.plan import Plan
from glasscluster.strategies.trainer import train_rank

PUBLISHED = Path(__file__).parent / "data" / "published"  # its README.md says where each table is from


def published_rows(name: str) -> list[dict[str, str]]:
    """The rows of a table that others published."""
    return list(csv.DictReader((PUBLISHED / name).read_text(encoding="utf-8").splitlines()))


def run_plan(plan: Plan, model: ModelConfig, backend: str = "threads", **options: Any) -> Run:
    """Train on a backend; options are Job's."""
    job = Job(plan, model, **{"steps": 1, **options})
    return Cluster("classroom", plan.gpus, backend, memory_bytes=None).run(
        train_rank, job, info=job_info(job)
    )


def differences(plan: Plan, model: ModelConfig, steps: int = 3, **options: Any) -> dict[str, Any]:
    """Largest differences from one device over `steps` steps in float64, on threads; options are Job's."""
    job = Job(plan.model_copy(update={"precision": "fp64"}), model, steps=steps, capture=True, **options)
    results = (
        Cluster("classroom", plan.gpus, "threads", memory_bytes=None)
        .run(train_rank, job, record=False)
        .results
    )
    return check.compare(results, check.reference_for(job), job.plan)


def worst(compared: dict[str, Any]) -> float:
    """The largest of gradient, weight and loss difference."""
    return max(compared[f"max_rel_{k}_diff"] for k in ("grad", "weight", "loss"))


def until(page: Any, expression: str, seconds: float = 15.0) -> None:
    """Wait for a JavaScript expression to hold (playwright's own wait would need eval, which our pages
    forbid).
    """
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        if time.monotonic() > end:
            raise AssertionError(f"never came true: {expression}; selected: {page.inner_text('#selected')!r}")
        page.wait_for_timeout(20)


OUTSIDE = """(panel) => {
    const found = [];
    for (const plot of document.querySelectorAll(panel + " .plot")) {
        const frame = plot.querySelector(".main-svg")?.getBoundingClientRect();
        for (const text of frame?.width ? plot.querySelectorAll(".main-svg text") : []) {
            const box = text.getBoundingClientRect(), style = getComputedStyle(text);
            const over = Math.max(frame.left - box.left, box.right - frame.right, frame.top - box.top,
                box.bottom - frame.bottom);
            const drawn = box.width && Number(style.fillOpacity) && Number(style.opacity);
            if (drawn && over > 1 && !text.closest(".plot .plot"))  // those at data go with it, when it is zoomed
                found.push(`${text.getAttribute("class") || text.parentNode.getAttribute("class")}: ` +
                    `${text.textContent}, ${over.toFixed(1)} px outside`);
        }
    }
    return found;
}"""


def clipped(page: Any, panel: str) -> list[str]:
    """Titles, labels, annotations and legends of a panel's figures that reach beyond their figure, by more than
    the pixel that a glyph's box is rounded to. What lies beyond is not drawn.
    """
    return page.evaluate(OUTSIDE, panel)


def walk_through(page: Any, widths: tuple[int, ...] = ()) -> None:
    """Enter a prediction where one is asked, then open every tab in both languages, and see every figure
    drawn.

    `widths`: one a language, instead of the page's own.
    """
    from glasscluster.visualize.page.assemble import TABS
    from glasscluster.visualize.words import CATALOGUE

    if page.query_selector("#predict"):
        assert not page.is_visible("#panel-story ol.story"), "the answer is open before anybody predicted"
        for guess in ("12", "1"):  # one of them lies within the lesson's range
            page.fill("#guess", guess)
            page.press("#guess", "Enter")
            if page.is_visible("#panel-story ol.story"):
                break
        assert page.is_visible("#panel-story ol.story")
    start = page.evaluate("document.documentElement.lang")
    for place, language in enumerate((start, "zh" if start == "en" else "en")):
        if widths:
            page.set_viewport_size({"width": widths[place], "height": 760})
        for tab in TABS:
            page.click(f"#tab-{tab}")
            assert page.is_visible(f"#panel-{tab}")
            assert page.inner_text(f"#tab-{tab}") == CATALOGUE[f"tab_{tab}"].in_(language)
            until(page, "document.documentElement.dataset.drawing === 'no'")
            for plot in page.query_selector_all(f"#panel-{tab} .plot"):
                if plot.is_visible():
                    assert plot.query_selector(".main-svg"), tab
            cut = clipped(page, f"#panel-{tab}")
            assert cut == [], (tab, language, cut)
            wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert wide <= 0, (
                f"{tab} scrolls sideways by {wide} px"
            )  # only figures may, inside their own frame
        page.click("#language")
