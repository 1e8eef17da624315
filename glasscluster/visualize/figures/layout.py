"""The layout that all figures share: fonts, margins, a light grid, the legend below. It is written as
plotly's dictionaries, so this file does not import plotly.
"""

from __future__ import annotations

from typing import Any

FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans CJK SC', 'Noto Sans SC', sans-serif"
INK, GRID = "#1f2933", "#e4e7eb"
LEGEND = {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"}
QUIET_AXIS = {"gridcolor": GRID, "zeroline": False}
CELL_AXIS = {"fixedrange": True, "showgrid": False, "zeroline": False}


def plain_layout(
    height: float, *, left: int = 20, right: int = 20, top: int = 34, bottom: int = 92, size: int = 14
) -> dict[str, Any]:
    """Return the layout of a white figure, its height in pixels, with the legend in a row at the bottom."""
    return {
        "template": {},
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
