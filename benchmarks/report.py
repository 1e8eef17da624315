"""The report in a browser: size, load, zoom and a what-if step, at 10,000, 100,000 and (asked for) 1,000,000
bars.

Goals: 10,000 bars load in 1 s; 100,000 in 2 s, zoom in 100 ms, 3 MB; 1,000,000 in 5 s, 15 MB; a slider step
over 4,096 spans in 50 ms. Load is from the start of navigation to two frames after the timeline was drawn.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from glasscluster.sim.run import Cluster, Run
from glasscluster.visualize.page.one_run import write_run_report

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

SIZES = {"10,000": (16, 160), "100,000": (32, 800)}
LARGE = {"1,000,000": (64, 4000)}
REPEATS = 5
LOADED = """() => new Promise((done) => { const look = () => window.glassReady
  ? requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now())))
  : setTimeout(look, 5); look(); })"""
ZOOM = """() => new Promise((done) => {
  const plot = document.querySelector("#panel-timeline .view:not([hidden]) .plot");
  const full = plot._fullLayout.xaxis.range.slice();
  const middle = (full[0] + full[1]) / 2, width = 0.01 * (full[1] - full[0]), begun = performance.now();
  moduleName.relayout(plot, { "xaxis.range": [middle - width, middle + width] }).then(() => {
    const spent = performance.now() - begun;
    moduleName.relayout(plot, { "xaxis.range": full }).then(() => done(spent)); });
})"""
SLIDE = """(n) => new Promise((done) => {
  const slider = document.getElementById("whatif-bw"), times = [];
  const step = (i) => {
    if (i === n) { done(times); return; }
    const begun = performance.now();
    slider.value = String(-4 + (8 * i) / n);
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    requestAnimationFrame(() => setTimeout(() => { times.push(performance.now() - begun); step(i + 1); }, 0));
  };
  step(0);
})"""


def recorded(ranks: int, micro_batches: int, schedule: str = "gpipe") -> Run:
    """A pipeline of one event a span, recorded dry."""
    from programs import pipeline_of_spans

    return Cluster("classroom", ranks, "dry", memory_bytes=None).run(
        pipeline_of_spans, micro_batches, schedule
    )


def in_browser(pages: dict[str, Path], repeats: int = REPEATS) -> dict[str, dict[str, float]]:
    """Medians of load, zoom and slider step for each page, milliseconds."""
    from playwright.sync_api import sync_playwright

    found = {}
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for name, path in pages.items():
            loads, zooms, steps = [], [], []
            for _ in range(repeats):
                page = browser.new_page(viewport={"width": 1360, "height": 900}, reduced_motion="reduce")
                page.goto(path.as_uri() + "#tab=timeline")
                loads.append(page.evaluate(LOADED))
                zooms += [page.evaluate(ZOOM) for _ in range(3)]
                steps += page.evaluate(SLIDE, 8)[1:]
                page.close()
            found[name] = {
                "load_ms": median(loads),
                "zoom_ms": median(zooms),
                "slider_step_ms": median(steps),
            }
        browser.close()
    return found


def measure(large: bool = False) -> dict[str, Any]:
    """Sizes and medians by number of bars."""
    from glasscluster.visualize.figures.timeline import bar_count

    with tempfile.TemporaryDirectory() as folder:
        pages, about = {}, {}
        shapes = {"4,096 spans": (16, 128), **SIZES, **(LARGE if large else {})}
        for name, (ranks, m) in shapes.items():
            run = recorded(ranks, m, "1f1b" if "spans" in name else "gpipe")
            pages[name] = write_run_report(run, Path(folder) / f"{name}.html")
            about[name] = {
                "events": len(run.graph),
                "bars": bar_count(run.timeline),
                "MB": round(pages[name].stat().st_size / 1e6, 2),
            }
        times = in_browser(pages)
    return {name: {**about[name], **{k: round(v, 1) for k, v in times[name].items()}} for name in pages}


if __name__ == "__main__":
    import json

    print(json.dumps(measure("--large" in sys.argv), indent=1))
