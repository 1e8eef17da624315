"""Draw the pictures of this folder anew: `python docs/pictures.py` (headless Chromium, about two minutes)."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from glasscluster.scenarios import gallery
from glasscluster.scenarios.find_scenario import find
from glasscluster.scenarios.lab import Lab, perform
from glasscluster.visualize.page.one_run import write_run_report

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]
SLOWER = """() => { document.querySelector("details.whatif").open = true;
  const s = document.getElementById("whatif-bw"); s.value = "-3";
  s.dispatchEvent(new Event("input")); }"""


def shoot(
    browser: Any,
    page_file: Path,
    view: str,
    name: str,
    *,
    what: str = "",
    height: int = 820,
    width: int = 1360,
    steps: int = 0,
) -> None:
    """One picture of a view: the whole page, or the element that `what` selects."""
    page = browser.new_page(viewport={"width": 1360, "height": height}, reduced_motion="reduce")
    page.goto(page_file.as_uri() + "#" + view, timeout=180_000)  # ms
    page.wait_for_timeout(2500)
    if name == "what-if":
        page.evaluate(SLOWER)
        page.wait_for_timeout(1000)
    for _ in range(steps):
        (page.locator(what) if what else page.locator(".view:not([hidden])")).first.locator(
            '[data-step="1"]'
        ).click()
    if what:
        page.locator(what).first.screenshot(path=str(HERE / f"{name}.png"))
    else:
        page.screenshot(path=str(HERE / f"{name}.png"))
    page.close()


def draw_attention(browser: Any) -> None:
    """Attention's counted bytes and memory against length, a figure without a report."""
    from benchmarks.attention_costs import measure, picture
    from glasscluster.visualize.figures.picture import plotly_figure

    page = browser.new_page(viewport={"width": 900, "height": 460})
    page.set_content(
        plotly_figure(picture(measure())).to_html(include_plotlyjs=True, default_height="440px"),
        timeout=200_000,
    )
    page.wait_for_timeout(2500)
    page.screenshot(path=str(HERE / "attention.png"))
    page.close()


def collective_report(out: Path, algorithm: str, gpus: int = 16, **shape: Any) -> Path:
    """`glass collective` on a fat tree, swept over sizes against two others."""
    from glasscluster.scenarios.jobs.collective import CollectiveJob, collective
    from glasscluster.scenarios.jobs.wires import wires

    def make(n: int) -> Any:
        return wires(n, topology="fat-tree", bandwidth="25GB/s", latency="2us", **shape)

    job = CollectiveJob("all-reduce", algorithm, gpus, 16 * 2**20, make(gpus))
    others = ["tree", "halving-doubling"]
    return Path(collective(job, make, sweeps=["1KiB:256MiB"], against=others, out=str(out))["report"])


def main() -> None:
    """Everything that README and the pages of docs show; with the argument `attention`, the last alone."""
    from playwright.sync_api import sync_playwright

    if sys.argv[1:] == ["attention"]:
        with sync_playwright() as play:
            draw_attention(
                play.chromium.launch(
                    executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
                )
            )
        return

    from benchmarks.report import recorded

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        home = Path(folder)
        site, _ = gallery.build(str(home / "site"), "threads", None, print)
        tour = find("tour")
        page = perform(tour, Lab(tour, "threads", "classroom", say=print), {}).write(home)
        large = write_run_report(recorded(32, 800), home / "large.html")
        placed = collective_report(home / "placed", "ring", placement="random:1", oversubscription=4.0)
        tree = collective_report(home / "tree", "double-tree", gpus=8)
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        shoot(browser, site, "lang=en", "gallery", height=1240)
        shoot(browser, home / "site" / "E4" / "report.html", "lang=en", "lesson-locked", height=520)
        shoot(browser, home / "site" / "E4" / "report.html", "lang=zh&guess=27", "lesson-zh", height=1180)
        shoot(
            browser,
            home / "site" / "E4" / "report.html",
            "tab=timeline&lang=en&guess=27",
            "what-if",
            height=1100,
        )
        shoot(
            browser,
            home / "site" / "C3" / "report.html",
            "tab=network&lang=en&guess=2",
            "ring-stepper",
            what='[data-fig^="ring"]',
            steps=4,
        )
        shoot(browser, large, "tab=timeline&lang=en", "hundred-thousand", height=1290)
        shoot(browser, placed, "tab=network&lang=en", "link-load", what='figure[data-fig^="load"]', steps=9)
        shoot(browser, placed, "tab=story&lang=en", "crossover", what='figure[data-fig="own-1"]')
        shoot(
            browser,
            tree,
            "tab=network&lang=en",
            "double-tree-stepper",
            what='figure[data-fig^="ring"]',
            steps=3,
        )
        shoot(
            browser,
            home / "site" / "C7" / "report.html",
            "tab=story&lang=en&guess=6",
            "deadlock-clinic",
            what='figure[data-fig="own-0"]',
        )
        shoot(
            browser,
            home / "site" / "E8" / "report.html",
            "tab=story&lang=en&guess=3",
            "schedules",
            what='figure[data-fig="own-0"]',
        )
        shoot(
            browser,
            page,
            "tab=timeline&run=gpipe&lang=en",
            "gpipe-timeline",
            what='.view:not([hidden]) figure[data-fig^="tl"]',
        )
        draw_attention(browser)
        shoot(browser, page, "tab=story&lang=en", "comparison", what='figure[data-fig="compare"]')
        browser.close()


if __name__ == "__main__":
    main()
