"""The ledger: predicted | counted | simulated | measured, a row a quantity. An empty cell means nobody knows, never zero."""

from __future__ import annotations

from typing import Any

from glasscluster.visualize.words import Said, row_name

COLUMNS = ("predicted", "counted", "simulated", "measured")


def number(value: float | None) -> str:
    """A number as a ledger shows it: whole numbers in full, the rest to nine digits."""
    if value is None:
        return ""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.9g}"


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
