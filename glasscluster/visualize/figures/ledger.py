"""The ledger: predicted | counted | simulated | measured, a row a quantity. An empty cell means nobody knows, never zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glasscluster.base.text import Said
from glasscluster.visualize.figures.layout import QUIET_AXIS, plain_layout
from glasscluster.visualize.page.words import row_name, word

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

NOTHING = 1e-17  # where an exact zero stands on the logarithmic axis

COLUMNS = ("predicted", "counted", "simulated", "measured")


def number(value: float | None) -> str:
    """A number as a ledger shows it: whole numbers in full, the rest to nine digits."""
    if value is None:
        return ""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.9g}"


def ledger_figure(rows: list[dict[str, Any]], lang: str = "en") -> Figure | None:
    """Every row with a prediction: how far the counted or simulated figure is from the formula, beside what is allowed."""
    import plotly.graph_objects as go

    known = [r for r in rows if r["predicted"] is not None and (r["counted"] is not None or r["simulated"] is not None)]
    if not known:
        return None
    names = [f"{i + 1}. {r['name'] if lang == 'en' else r.get('name_zh') or row_name(r['name'], lang)}" for i, r in enumerate(known)]
    found, allowed, hover = [], [], []
    for r in known:
        other = r["simulated"] if r["counted"] is None else r["counted"]
        relative = r["match"] == "virtual"
        scale = abs(r["predicted"]) or 1.0
        found.append(max(abs(other - r["predicted"]) / scale, NOTHING))
        allowed.append(max(r["tolerance"] if relative or not r["predicted"] else r["tolerance"] / scale, NOTHING))
        hover.append(f"{word('predicted', lang)} {number(r['predicted'])}<br>{word('found', lang)} {number(other)} {r['unit']}")
    figure = go.Figure()
    over = [f > a for f, a in zip(found, allowed, strict=True)]
    marks = [
        (word("allowed", lang), allowed, "line-ns-open", ["#52606d"] * len(known)),
        (word("found", lang), found, "circle", ["#a32a00" if bad else "#0072B2" for bad in over]),
    ]
    for label, values, symbol, colours in marks:
        look = {"symbol": symbol, "color": colours, "size": 13, "line": {"width": 3, "color": colours}}
        told = "%{y}<br>%{customdata}<extra></extra>"
        figure.add_trace(go.Scatter(name=label, x=values, y=names, mode="markers", customdata=hover, hovertemplate=told, marker=look))
    title = {"text": word("relative_difference", lang)}
    figure.update_layout(**plain_layout(140 + 28 * len(known), top=16))
    figure.update_xaxes(type="log", title=title, range=[-17.5, 1], dtick=3, exponentformat="power", **QUIET_AXIS)
    figure.update_yaxes(autorange="reversed", automargin=True, gridcolor="#eef2f6")
    return figure


def lines(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows ready for the page: names in two languages, cells as text."""
    return [
        {
            "name": Said(r["name"], r.get("name_zh") or row_name(r["name"], "zh")),
            "cells": [number(r[c]) for c in COLUMNS],
            "unit": r["unit"],
            "source": r["source"],
            "tolerance": number(r["tolerance"]),
            "ok": r["ok"],
        }
        for r in rows
    ]
