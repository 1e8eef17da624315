"""The layout that all figures share: fonts, margins, a light grid, the legend below. It is written as
plotly's dictionaries, so this file does not import plotly.

TEMPLATE is what a figure has where it says nothing. A page holds it once and gives it to each figure that has
no template of its own (templates/figures.js). It is those entries of plotly's own default template that
change how some figure here looks; the whole of it, 7 kB, was in each figure.
"""

from __future__ import annotations

from typing import Any

FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans CJK SC', 'Noto Sans SC', sans-serif"
INK, GRID = "#1f2933", "#e4e7eb"
LEGEND = {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"}
QUIET_AXIS: dict[str, Any] = {"gridcolor": GRID, "zeroline": False}
CELL_AXIS: dict[str, Any] = {"fixedrange": True, "showgrid": False, "zeroline": False}


def plain_layout(
    height: float, *, left: int = 20, right: int = 20, top: int = 34, bottom: int = 92, size: int = 14
) -> dict[str, Any]:
    """Return the layout of a white figure, its height in pixels, with the legend in a row at the bottom."""
    return {
        "height": int(height),
        "font": {"family": FONT, "size": size, "color": INK},
        "margin": {"l": left, "r": right, "t": top, "b": bottom},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "legend": dict(LEGEND),
    }


def grid_cells(rows: int, columns: int, inset: float = 0.0) -> dict[str, Any]:
    """Return the geometry of a bar trace that draws a table of cells, row by row: cell (r, c) is centred at x
    = c, y = r.
    """
    return {
        "orientation": "h",
        "base": [c - 0.5 + inset / 2 for _ in range(rows) for c in range(columns)],
        "x": [1 - inset] * (rows * columns),
        "y": [r for r in range(rows) for _ in range(columns)],
        "width": 1 - inset,
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textangle": 0,
        "hovertemplate": "%{customdata}<extra></extra>",
        "showlegend": False,
    }


def _template() -> dict[str, Any]:
    axis = {
        "automargin": True,
        "gridcolor": "white",
        "title": {"standoff": 15},
        "zerolinecolor": "white",
        "zerolinewidth": 2,
    }
    colours = ["#636efa", "#EF553B", "#00cc96", "#ab63fa", "#FFA15A"]
    colours += ["#19d3f3", "#FF6692", "#B6E880", "#FF97FF", "#FECB52"]
    layout = {
        "annotationdefaults": {"arrowcolor": "#2a3f5f", "arrowhead": 0, "arrowwidth": 1},
        "autotypenumbers": "strict",  # bars that are named "2" and "4" stand beside each other
        "colorway": colours,
        "hoverlabel": {"align": "left"},
        "xaxis": axis,
        "yaxis": axis,
    }
    over = {"fillmode": "overlay"}  # a hatch lies on the colour, and does not take its place
    data = {"bar": [{"marker": {"pattern": over}}], "scatter": [{"fillpattern": over}]}
    return {"data": data, "layout": layout}


TEMPLATE = _template()
