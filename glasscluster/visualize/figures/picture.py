"""A figure as plotly.js draws it: a dict of `data` (traces) and `layout`, made without plotly's Python.

    picture = Picture(trace("bar", x=["a", "b"], y=[1, 2]))
    picture.update_layout(**plain_layout(320)).update_yaxes(title={"text": "MB"})

The methods are the few of plotly's Figure that our figures need, with its names and its results; a test calls
both. But: nothing is validated here, for that took most of the time of a report. The tests give every picture
that they make to plotly's validators instead. Whoever wants to go on in plotly calls `plotly_figure`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glasscluster.visualize.figures.layout import TEMPLATE

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Trace = dict[str, Any]
WHOLE = ("paper_bgcolor", "plot_bgcolor", "error_x", "error_y")  # names in which _ does not mean "of"


def trace(kind: str, **properties: Any) -> Trace:
    """A trace (`kind`: bar or scatter) with those of the properties that are not None."""
    return _merged({"type": kind}, properties)


class Picture(dict[str, Any]):
    """A figure as a dict that is JSON; plotly's `go.Figure(picture)` takes it as well.

    Settings are merged into what is there; `a_b=1` means `a={"b": 1}`, and None takes a setting away.
    `row` and `col` count from 1, and None means all: only a picture of `panels` has more than one.

    Args:
        *traces: the first traces, as `trace` makes them.
        columns: how many panels are beside each other.
    """

    def __init__(self, *traces: Trace, columns: int = 1) -> None:
        super().__init__(data=list(traces), layout={})
        self._columns = columns

    @property
    def data(self) -> list[Trace]:
        """The traces, in the order in which they are drawn."""
        return self["data"]

    @property
    def layout(self) -> dict[str, Any]:
        """Axes, legend, annotations, shapes, margins."""
        return self["layout"]

    def add_trace(self, added: Trace, row: int | None = None, col: int | None = None) -> Picture:
        """Add a trace, to a panel if `row` and `col` name one."""
        if row is not None and col is not None:
            number = _number((row - 1) * self._columns + col)
            added = {**added, "xaxis": f"x{number}", "yaxis": f"y{number}"}
        self.data.append(added)
        return self

    def add_annotation(self, **settings: Any) -> Picture:
        """Add a text, with or without an arrow."""
        self.layout.setdefault("annotations", []).append(_merged({}, settings))
        return self

    def add_shape(self, **settings: Any) -> Picture:
        """Add a line or a rectangle."""
        self.layout.setdefault("shapes", []).append(_merged({}, settings))
        return self

    def add_vline(self, x: float, **look: Any) -> Picture:
        """Add a line from the bottom to the top of the plot."""
        return self.add_shape(type="line", x0=x, x1=x, y0=0, y1=1, xref="x", yref="y domain", **look)

    def add_hline(self, y: float, **look: Any) -> Picture:
        """Add a line from the left to the right of the plot."""
        return self.add_shape(type="line", x0=0, x1=1, y0=y, y1=y, xref="x domain", yref="y", **look)

    def add_vrect(self, x0: float, x1: float, **look: Any) -> Picture:
        """Shade the plot from x0 to x1."""
        return self.add_shape(type="rect", x0=x0, x1=x1, y0=0, y1=1, xref="x", yref="y domain", **look)

    def update_layout(self, settings: Mapping[str, Any] | None = None, /, **more: Any) -> Picture:
        """Change the layout."""
        self["layout"] = _merged(self.layout, {**(settings or {}), **more})
        return self

    def update_xaxes(self, row: int | None = None, col: int | None = None, **settings: Any) -> Picture:
        """Change the x axes."""
        return self._update_axes("x", row, col, settings)

    def update_yaxes(self, row: int | None = None, col: int | None = None, **settings: Any) -> Picture:
        """Change the y axes."""
        return self._update_axes("y", row, col, settings)

    def update_traces(self, **settings: Any) -> Picture:
        """Change every trace."""
        self["data"] = [_merged(one, settings) for one in self.data]
        return self

    def update_annotations(self, **settings: Any) -> Picture:
        """Change every annotation."""
        noted = [_merged(one, settings) for one in self.layout.get("annotations", [])]
        return self.update_layout(annotations=noted)

    def _update_axes(
        self, letter: str, row: int | None, col: int | None, settings: Mapping[str, Any]
    ) -> Picture:
        self.layout.setdefault(f"{letter}axis", {})
        for name in list(self._axes(letter, row, col)):
            self.layout[name] = _merged(self.layout[name], settings)
        return self

    def _axes(self, letter: str, row: int | None, col: int | None) -> Iterator[str]:
        for name in self.layout:
            if matched := re.fullmatch(rf"{letter}axis(\d*)", name):
                down, right = divmod(int(matched[1] or 1) - 1, self._columns)
                if row in (None, down + 1) and col in (None, right + 1):
                    yield name


def panels(
    rows: int,
    cols: int,
    *,
    subplot_titles: Sequence[str] = (),
    shared_xaxes: bool = False,
    shared_yaxes: bool = False,
    horizontal_spacing: float = 0.1,
    vertical_spacing: float = 0.1,
    column_widths: Sequence[float] | None = None,
) -> Picture:
    """A picture of panels in rows and columns, each with axes of its own, as plotly's make_subplots makes it.

    Args:
        rows: how many are below each other.
        cols: how many are beside each other.
        subplot_titles: what stands above each panel, row by row.
        shared_xaxes: whether all panels of a column have the x axis of the lowest.
        shared_yaxes: whether all panels of a row have the y axis of the first.
        horizontal_spacing: between two columns, as a part of the whole width.
        vertical_spacing: between two rows, as a part of the whole height.
        column_widths: in any unit; by default all are equal.

    Returns:
        A picture without traces.
    """
    shares = column_widths or [1.0] * cols
    widths = [(1.0 - horizontal_spacing * (cols - 1)) * share / sum(shares) for share in shares]
    height = (1.0 - vertical_spacing * (rows - 1)) / rows
    picture = Picture(columns=cols)
    for place in range(rows * cols):
        down, right = divmod(place, cols)
        number = _number(place + 1)
        left = sum(widths[:right]) + right * horizontal_spacing
        low = (rows - 1 - down) * (height + vertical_spacing)
        x: dict[str, Any] = {"anchor": f"y{number}", "domain": [left, left + widths[right]]}
        y: dict[str, Any] = {"anchor": f"x{number}", "domain": [low, low + height]}
        if shared_xaxes and down < rows - 1:
            x |= {"matches": f"x{_number((rows - 1) * cols + right + 1)}", "showticklabels": False}
        if shared_yaxes and right > 0:
            y |= {"matches": f"y{_number(down * cols + 1)}", "showticklabels": False}
        picture.update_layout({f"xaxis{number}": x, f"yaxis{number}": y})
        if place < len(subplot_titles):
            picture.add_annotation(
                text=subplot_titles[place],
                x=left + widths[right] / 2,
                y=low + height,
                xref="paper",
                yref="paper",
                xanchor="center",
                yanchor="bottom",
                showarrow=False,
                font={"size": 16},
            )
    return picture


def plotly_figure(picture: Picture) -> Figure:
    """The picture as a plotly.graph_objects.Figure, with the template that a page gives it.

    Raises:
        ValueError: if plotly knows no such property.
    """
    import plotly.graph_objects as go

    layout = {"template": TEMPLATE, **picture["layout"]}
    return go.Figure({"data": picture["data"], "layout": layout})


def _number(place: int) -> str:
    """How plotly numbers axes: the first has no number."""
    return "" if place == 1 else str(place)


def _merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the settings of `change`, both as they were."""
    out = dict(base)
    for name, value in change.items():
        first, _, rest = name.partition("_")
        if rest and name not in WHOLE:
            name, value = first, {rest: value}
        if isinstance(value, Mapping):
            out[name] = _merged(out.get(name) or {}, value)
        elif value is None:
            out.pop(name, None)
        else:
            out[name] = value
    return out
