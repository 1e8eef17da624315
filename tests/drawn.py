"""Every picture that a test makes is given to plotly's own validators, which nobody here wrote.

`watch` hooks the place where pictures begin, so none escapes, whoever draws it: a figure's own test, a report,
a lesson, a scenario. `judge` raises on a property that plotly does not know or a value that it refuses.
"""

from __future__ import annotations

from glasscluster.visualize.figures.picture import Picture, plotly_figure

_made: list[Picture] = []


def watch() -> None:
    """From now on remember every picture."""
    begin = Picture.__init__

    def remembered(self: Picture, *traces: dict, columns: int = 1) -> None:
        begin(self, *traces, columns=columns)
        _made.append(self)

    Picture.__init__ = remembered  # type: ignore[method-assign]


def judge() -> int:
    """Give plotly all pictures since the last call; how many they were.

    Raises:
        ValueError: for the first that plotly refuses; its text says which property.
    """
    waiting = _made[:]
    _made.clear()
    for picture in waiting:
        plotly_figure(picture)
    return len(waiting)
