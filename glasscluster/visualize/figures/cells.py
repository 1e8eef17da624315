"""Tables of coloured cells, for example what every rank holds before and after a collective, the load of
every port, or which checks passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glasscluster.visualize.figures.layout import CELL_AXIS, GRID, INK, grid_cells, plain_layout
from glasscluster.visualize.figures.palette import SERIES, contrast
from glasscluster.visualize.figures.picture import Picture, trace

Parts = Sequence[tuple[int, int]]  # the (rank, chunk) pairs that were added up in one place
CELL, HEAD, FOOT = 38, 40, 62  # heights in pixels: a row of cells, the title above a table, the axis below it


@dataclass(frozen=True)
class Table:
    """A table of cells, by row and column; each cell has a text and a fill. `x` and `y` are axis titles."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    text: Sequence[Sequence[str]]
    fill: Sequence[Sequence[str]]
    x: str = ""
    y: str = ""


def cells_figure(tables: Sequence[Table], across: int = 1) -> Picture:
    """Draw the tables from left to right, `across` of them in a row."""

    figure, deep = Picture(), -(-len(tables) // across)
    tall, head = max(len(t.rows) for t in tables) * CELL, HEAD if any(t.title for t in tables) else 8
    height = deep * (head + tall + FOOT) + 10
    titles = []
    for i, table in enumerate(tables):
        down, right = divmod(i, across)
        top = 1 - (down * (head + tall + FOOT) + head) / height
        left, width = right / across, 1 / across
        x = [left + (0.14 * width if across > 1 else 0), left + width - (0.02 * width if across > 1 else 0)]
        y = [top - tall / height, top]
        number = "" if i == 0 else str(i + 1)
        figure.add_trace(_cells(table, number))
        axes: dict[str, Any] = {
            f"xaxis{number}": {
                "domain": x,
                "anchor": f"y{number}",
                **_ticks(table.columns, table.x),
                "range": [-0.5, len(table.columns) - 0.5],
            },
            f"yaxis{number}": {
                "domain": y,
                "anchor": f"x{number}",
                **_ticks(table.rows, table.y),
                "range": [len(table.rows) - 0.5, -0.5],
            },
        }
        if across == 1:
            axes[f"yaxis{number}"]["automargin"] = True
        figure.update_layout(**axes)
        where = {
            "x": x[0],
            "y": y[1],
            "xref": "paper",
            "yref": "paper",
            "xanchor": "left",
            "yanchor": "bottom",
        }
        titles.append({**where, "text": f"<b>{table.title}</b>", "showarrow": False})
    figure.update_layout(
        **plain_layout(height, left=20, right=16, top=0, bottom=0, size=14),
        annotations=titles,
        showlegend=False,
    )
    figure.update_layout(uniformtext={"minsize": 9, "mode": "hide"})
    return figure


def _ticks(names: Sequence[str], title: str) -> dict[str, Any]:
    return {
        "tickvals": list(range(len(names))),
        "ticktext": list(names),
        "title": {"text": title, "standoff": 6},
        **CELL_AXIS,
    }


def _cells(table: Table, number: str) -> Any:
    text = [t for row in table.text for t in row]
    fill = [c for row in table.fill for c in row]
    return trace(
        "bar",
        **grid_cells(len(table.rows), len(table.columns)),
        xaxis=f"x{number}",
        yaxis=f"y{number}",
        text=text,
        customdata=[
            f"{r} · {c}<br>{table.text[i][j]}"
            for i, r in enumerate(table.rows)
            for j, c in enumerate(table.columns)
        ],
        marker={"color": fill, "line": {"color": "#ffffff", "width": 2}},
        textfont={
            "color": [
                "#ffffff" if contrast("#ffffff", c) > contrast("#000000", c) else "#000000" for c in fill
            ],
            "size": 16,
        },
    )


def shade(share: float) -> str:
    """Return a blue for a number from 0 (nearly white) to 1 (dark)."""
    low, high = (232, 240, 247), (0, 82, 130)
    return "#" + "".join(
        f"{round(a + (b - a) * min(1.0, max(0.0, share))):02x}" for a, b in zip(low, high, strict=True)
    )


def blocks_figure(
    titles: Sequence[str], held: Sequence[Sequence[Sequence[Parts]]], x: str, y: str, across: int = 3
) -> Picture:
    """Draw a table for each title that shows what every rank holds in every place: `held[table][rank][place]`
    lists the (rank, chunk) pairs that were added up there.

    A chunk of one rank has that rank's letter and colour, a sum over all ranks is written Σ, and an empty
    place is grey.
    """
    tables = []
    for title, rows in zip(titles, held, strict=True):
        text = [
            [
                f"Σ{parts[0][1]}"
                if len(parts) == len(rows)
                else "+".join(f"{chr(97 + r)}{c}" for r, c in parts)
                for parts in row
            ]
            for row in rows
        ]
        fill = [
            [
                INK if len(parts) == len(rows) else SERIES[parts[0][0] % len(SERIES)] if parts else GRID
                for parts in row
            ]
            for row in rows
        ]
        names = [str(i) for i in range(len(rows))]
        tables.append(Table(title, names, names, text, fill, x, y))
    return cells_figure(tables, across)
