"""Where a Timeline or a Run finds its pictures: names of things above `sim`, looked up when somebody asks to see.

`sim` imports nothing of `visualize`; it only knows these names, as an entry point would.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

RENDERERS = {
    "timeline": "glasscluster.visualize.figures.timeline:timeline_figure",
    "notebook": "glasscluster.visualize.page.report:notebook_html",
    "report": "glasscluster.visualize.page.report:write_run_report",
}


def renderer(what: str) -> Callable:
    """The function that draws `what`."""
    module, name = RENDERERS[what].split(":")
    return getattr(import_module(module), name)
