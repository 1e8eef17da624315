"""Sizes, rates and times as people write them: `25MiB`, `10GB/s`, `200Gb/s`, `10us` (docs/contract.md,
General).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

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


# ---- writing them --------------------------------------------------------------------------------------
# Each unit a person reads, the largest first.
TIME_UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9))
BYTE_UNITS = (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3), ("B", 1.0))
PREFIXES = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))


def written_number(value: float, digits: int = 4) -> str:
    """A number of so many digits, as a person writes it: 11770 and not 1.177e+04. Whole digits are all shown.

    Example:
        >>> [written_number(x) for x in (11770.4, 0.123456, 1234567.0, 0.0)]
        ['11,770', '0.1235', '1,234,567', '0']
    """
    if abs(value) >= 10**digits or (value and abs(float(f"{value:.{digits}g}")) >= 10**digits):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def _in_units(value: float, units: Sequence[tuple[str, float]], digits: int) -> tuple[str, str]:
    """A number in the largest unit of which it is at least one (of those that are given), and that unit."""
    shown = abs(float(f"{value:.{digits}g}"))  # 999.96 ms is 1 s where four digits are shown
    unit, size = next(((u, s) for u, s in units if shown >= s * (1 - 1e-12)), units[-1])
    return written_number(value / size, digits), unit


def written_time(seconds: float, digits: int = 4) -> str:
    """A time in a unit that is easy to read.

    Example:
        >>> [written_time(t) for t in (11.77, 0.0125, 3.2e-6, 86400.0, 0.0)]
        ['11.77 s', '12.5 ms', '3.2 µs', '86,400 s', '0 s']
    """
    return "0 s" if seconds == 0 else " ".join(_in_units(seconds, TIME_UNITS, digits))


def written_bytes(count: float, digits: int = 4) -> str:
    """Bytes as people say them: 1 KB, 16 GB, 1.5 MB; less than that are counted: 12 bytes."""
    number, unit = _in_units(count, BYTE_UNITS, digits)
    return counted(int(count), "byte") if unit == "B" else f"{number} {unit}"


def written_rate(bytes_per_s: float, digits: int = 4) -> str:
    """Bytes in a second.

    Example:
        >>> written_rate(2.408e9), written_rate(25_530_000.0)
        ('2.408 GB/s', '25.53 MB/s')
    """
    number, unit = _in_units(bytes_per_s, BYTE_UNITS, digits)
    return f"{number} {unit}/s"


def written_count(value: float, what: str, digits: int = 4) -> str:
    """A large number of things that have a prefix, such as FLOPs.

    Example:
        >>> written_count(1.62e13, "FLOPs"), written_count(12, "FLOPs")
        ('16.2 TFLOPs', '12 FLOPs')
    """
    number, prefix = _in_units(value, PREFIXES, digits)
    return f"{number} {prefix}{what}"


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
