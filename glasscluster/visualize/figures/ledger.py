"""The ledger: one row for each quantity, with the columns predicted, counted, simulated and measured. An
empty cell means unknown, never zero.
"""

from __future__ import annotations

import math
from typing import Any

from glasscluster.base.rows import FAILED, HELD, NOT_APPLICABLE, Row
from glasscluster.base.text import Said
from glasscluster.visualize.figures.layout import QUIET_AXIS, plain_layout
from glasscluster.visualize.figures.picture import Picture, trace
from glasscluster.visualize.words import UNITS, word

NOTHING = 1e-17  # an exact zero is drawn here, because a logarithmic axis has no zero

COLUMNS = ("predicted", "counted", "simulated", "measured")
LOOKS = {HELD: "ok", FAILED: "bad", NOT_APPLICABLE: "off"}  # CSS classes of report.css
GOOD, BAD, QUIET = "#0072B2", "#a32a00", "#52606d"


def number(value: float | None) -> str:
    """Write a number as the ledger shows it: whole numbers in full, others to nine digits, without powers of
    ten where they are large.
    """
    if value is None:
        return ""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1e9 <= abs(value) < math.inf else f"{value:.9g}"


def ledger_figure(rows: list[Row], lang: str = "en") -> Picture | None:
    """Draw how far the counted or simulated value of each row is from its formula, beside the tolerance.

    A row that is not applicable has no such distance. It is still listed, in grey, and says why on hover.
    """

    if not rows:
        return None
    names = [f"{i + 1}. {row.name.in_(lang)}" for i, row in enumerate(rows)]
    judged = [(name, row) for name, row in zip(names, rows, strict=True) if row.verdict != NOT_APPLICABLE]
    off = [(name, row.because.in_(lang)) for name, row in zip(names, rows, strict=True) if row.because]
    distances, allowed, hover = [], [], []
    for _, row in judged:
        assert row.predicted is not None
        assert row.observed is not None
        relative = row.match == "virtual"
        scale = abs(row.predicted) or 1.0
        distances.append(max(abs(row.observed - row.predicted) / scale, NOTHING))
        allowed.append(max(row.tolerance if relative else row.tolerance / scale, NOTHING))
        said = f"{word('predicted', lang)} {number(row.predicted)}"
        hover.append(f"{said}<br>{word('observed', lang)} {number(row.observed)} {_unit(row).in_(lang)}")
    figure = Picture()
    colours = [BAD if row.verdict == FAILED else GOOD for _, row in judged]
    marks = [
        (word("allowed", lang), allowed, "line-ns-open", [QUIET] * len(judged)),
        (word("observed", lang), distances, "circle", colours),
    ]
    for label, values, symbol, colour in marks:
        look = {"symbol": symbol, "color": colour, "size": 13, "line": {"width": 3, "color": colour}}
        template = "%{y}<br>%{customdata}<extra></extra>"
        places = {
            "x": values,
            "y": [name for name, _ in judged],
            "customdata": hover,
            "hovertemplate": template,
        }
        figure.add_trace(trace("scatter", name=label, mode="markers", marker=look, **places))
    if off:
        template = "%{y}<br>%{customdata}<extra></extra>"
        label = word("not_applicable", lang)
        look = {"textfont": {"color": QUIET}, "textposition": "middle right", "hovertemplate": template}
        texts = {"text": [f"– {label}"] * len(off), "customdata": [why for _, why in off]}
        places = {"x": [NOTHING] * len(off), "y": [name for name, _ in off]}
        figure.add_trace(
            trace("scatter", name=label, mode="text", showlegend=False, **look, **places, **texts)
        )
    title = {"text": word("relative_difference", lang)}
    figure.update_layout(**plain_layout(140 + 28 * len(rows), top=16))
    figure.update_xaxes(
        type="log", title=title, range=[-17.5, 1], dtick=3, exponentformat="power", **QUIET_AXIS
    )
    order: dict[str, Any] = {"categoryorder": "array", "categoryarray": names}
    figure.update_yaxes(autorange="reversed", automargin=True, gridcolor="#eef2f6", **order)
    return figure


def _unit(row: Row) -> Said:
    """Return a row's unit in both languages."""
    return Said(row.unit, UNITS.get(row.unit, row.unit))


def lines(rows: list[Row]) -> list[dict[str, Any]]:
    """Prepare rows for the page: names and reasons in both languages, cells as text, and the CSS class of
    each row.
    """
    return [
        {
            "name": row.name,
            "cells": [number(getattr(row, column)) for column in COLUMNS],
            "unit": row.unit,
            "unit_said": _unit(row),
            "source": row.source,
            "tolerance": number(row.tolerance),
            "look": LOOKS[row.verdict],
            "why": row.because,
        }
        for row in rows
    ]
