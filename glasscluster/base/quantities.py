"""Sizes, rates and times as people write them: `25MiB`, `10GB/s`, `200Gb/s`, `10us` (docs/contract.md,
General).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from glasscluster.base.errors import InputError
from glasscluster.base.text import counted

SIZES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}
RATES = {
    "B/s": 1.0,
    "KB/s": 1e3,
    "MB/s": 1e6,
    "GB/s": 1e9,
    "TB/s": 1e12,
    "KiB/s": 1024.0,
    "MiB/s": 1024.0**2,
    "GiB/s": 1024.0**3,
    "Mb/s": 1e6 / 8,
    "Gb/s": 1e9 / 8,
    "Tb/s": 1e12 / 8,
}
TIMES = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_WRITTEN = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-zµ/]*)\s*")


def _parse(field: str, text: str, units: dict[str, float] | dict[str, int], bare: str) -> float:
    match = _WRITTEN.fullmatch(text)
    if match is None:
        raise InputError(
            field,
            text,
            f"must be a number and a unit, such as 4{next(iter(units))}",
            [f"1{u}" for u in units] if re.search(r"[0-9]", text) is None else None,
        )
    number, unit = match.groups()
    if (unit or bare) not in units:
        near = number + _nearest_unit(unit, units)
        raise InputError(field, text, f"the unit must be one of {' '.join(units)}", [near])
    value = float(number) * units[unit or bare]
    if not math.isfinite(value):
        raise InputError(field, text, "is too large")
    return value


def _nearest_unit(written: str, units: Iterable[str]) -> str:
    """The unit that somebody meant: the same but for capitals, else one of the same length, else one that is
    spelled like it; the largest of those that are equally near (nobody writes 64QB for bytes).
    """

    def distance(unit: str) -> tuple[bool, int, int]:
        pairs = zip(unit.lower(), written.lower(), strict=False)
        return unit.lower() != written.lower(), abs(len(unit) - len(written)), sum(a != b for a, b in pairs)

    return min(reversed(list(units)), key=distance)


def written_bytes(count: float) -> str:
    """Bytes as people say them: 1 KB, 16 GB, 1.5 MB."""
    for unit in ("TB", "GB", "MB", "KB"):
        size = {**SIZES, "TB": 10**12}[unit]
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return counted(int(count), "byte")


def parse_size(field: str, text: str) -> int:
    """Whole bytes; a bare number is bytes."""
    value = _parse(field, text, SIZES, "B")
    if value != int(value):
        raise InputError(
            field, text, "must be a whole number of bytes", [f"{round(value)}B", f"{int(value) + 1}B"]
        )
    return int(value)


def parse_rate(field: str, text: str) -> float:
    """Bytes per second; b is bits, B is bytes."""
    return _parse(field, text, RATES, "B/s")


def parse_time(field: str, text: str) -> float:
    """Seconds; a bare number is seconds."""
    return _parse(field, text, TIMES, "s")
