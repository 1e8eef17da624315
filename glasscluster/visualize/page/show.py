"""A figure shown where its reader is: in a notebook's cell, or in a file that a browser opens."""

from __future__ import annotations

import os
import sys
import tempfile
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasscluster.base.files import write_text
from glasscluster.visualize.page.assemble import figure_page, notebook_html

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from glasscluster.visualize.figures.picture import Picture


def show(figure: Picture | Figure, name: str, path: str | Path | None = None) -> Path | None:
    """Show a figure, which zooms and says on hover what a bar is.

    Args:
        figure: a picture, or a figure of plotly's.
        name: what it is called on the terminal, and what its file is called.
        path: the file to write; by default one in a new temporary folder. A notebook needs none.

    Returns:
        The file that was written; its path has been printed. None in a notebook.
    """
    notebook = _notebook()
    if notebook is not None and path is None:
        notebook.display_pub.publish({"text/html": notebook_html(figure), "text/plain": f"<{name}>"})
        return None
    target = (
        Path(path) if path is not None else Path(tempfile.mkdtemp(prefix="glasscluster-")) / f"{name}.html"
    )
    write_text(target, figure_page(figure))
    print(f"{name}: {target}")
    if path is None and _has_screen():
        with suppress(webbrowser.Error):
            webbrowser.open(target.resolve().as_uri())
    return target


def _notebook() -> Any:
    """IPython's shell where it has a kernel, so that a cell can show HTML; None anywhere else."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell if hasattr(shell, "kernel") else None


def _has_screen() -> bool:
    """Whether a browser could open a window; on a server one would only take over the terminal."""
    return sys.platform in ("win32", "darwin") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
