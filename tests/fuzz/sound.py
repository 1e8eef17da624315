"""What an answer of exit 0 must be, whatever was asked: numbers that can be, and that agree with each other.

Most mutations cannot say whether an input is nonsense. What was made of it can be looked at: a share is
from 0 to 1, seconds and bytes are not negative, parts add up to their sum, a verdict is that of its rows.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from typing import Any

SHARES = ("mfu", "mfu_causal", "hfu", "_fraction")  # how names of shares end
AMOUNTS = ("_s", "_bytes", "_gib", "_per_s", "_per_gpu", "makespan", "bubble_over_ideal", "steps", "messages")
SIGNED = ("memory_margin_gib",)  # what is left of a GPU's memory, negative where a step does not fit
GIVEN = ("model", "plan")  # what the user asked for: options have rules of their own
CLOSE = 1e-6
# columns of a table of predictions that every row without an error has
PREDICTED = ("iteration_time_s", "tokens_per_s_per_gpu", "mfu", "hfu", "bubble_fraction", "peak_memory_gib")
FREE_OF_NUMBERS = ("glass.tokenize", "glass.doctor", "glass.error")


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number of an answer, with the name of its key; a list's numbers have the list's."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in GIVEN:
                yield from numbers(inner, key if isinstance(inner, (int, float, list)) else f"{name}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from numbers(inner, name)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, value


def cannot_be(name: str, value: float) -> str | None:
    """What is wrong with one number, if anything is."""
    if not math.isfinite(value):
        return f"{name} is {value}"
    if name.endswith(SHARES) and not -CLOSE <= value <= 1 + CLOSE:
        return f"{name}, a share, is {value:g}"
    if name.endswith(AMOUNTS) and not name.endswith(SIGNED) and value < -1e-12:
        return f"{name} is {value:g}"
    return None


def differ(one: float, other: float) -> bool:
    """Whether two numbers that should be equal are not."""
    return not math.isclose(one, other, rel_tol=CLOSE, abs_tol=1e-15)


def unsound(answer: dict[str, Any]) -> list[str]:
    """What cannot be in an answer of a command that ended with exit 0; empty where nothing is wrong."""
    if str(answer.get("schema", "")).startswith(FREE_OF_NUMBERS):
        return []
    found = [said for name, value in numbers(answer) if (said := cannot_be(name, value))]
    found += _sums(answer) + _bubble(answer) + _verdict(answer)
    return [f"an answer that cannot be: {said}" for said in found[:3]]


def _sums(answer: dict[str, Any]) -> list[str]:
    """Parts add up to their sum: the time of a step, and the memory of a prediction."""
    found = []
    whole = answer.get("iteration_time_s", answer.get("makespan_s"))
    parts = answer.get("breakdown_s")
    if whole is not None and parts and differ(math.fsum(parts.values()), whole):
        found.append(f"breakdown_s adds up to {math.fsum(parts.values()):g}, and the step takes {whole:g}")
    if (held := answer.get("memory_gib")) and differ(math.fsum(held.values()), answer["peak_memory_gib"]):
        found.append(f"memory_gib adds up to {math.fsum(held.values()):g}, and the peak is another")
    if "fits" in answer and answer["fits"] != (answer["memory_margin_gib"] >= 0):
        found.append(f"fits is {answer['fits']}, and memory_margin_gib {answer['memory_margin_gib']:g}")
    if "losses" in answer and len(answer["losses"]) != answer["steps"]:
        found.append(f"{len(answer['losses'])} losses in {answer['steps']} steps")
    return found


def _bubble(answer: dict[str, Any]) -> list[str]:
    """Idle over all time, and idle over useful time, are of one and the same idle time."""
    share, ratio = answer.get("bubble_fraction"), answer.get("bubble_over_ideal")
    if share is None or ratio is None or not 0 <= share < 1 or not differ(share / (1 - share), ratio):
        return []
    return [f"bubble_fraction {share:g} and bubble_over_ideal {ratio:g} do not agree"]


def _verdict(answer: dict[str, Any]) -> list[str]:
    """Exit 0 means that no row failed; PASS that nothing is left unchecked; a row that holds is right."""
    rows, status = answer.get("checks", []), answer.get("status")
    found = [f"exit 0 though {row['key']} failed" for row in rows if row["verdict"] == "failed"]
    for row in rows:
        there = [row[side] for side in ("predicted", "counted", "simulated", "measured")]
        there = [x for x in there if isinstance(x, (int, float))]
        if row["verdict"] != "held":
            continue
        if row["match"] == "exact" and not row["tolerance"] and len(set(there)) > 1:
            found.append(f"{row['key']} is held with {there}")
        if len(there) < 2:
            found.append(f"{row['key']} is held, and there is nothing to compare")
    if status == "FAIL":
        found.append("exit 0 with FAIL")
    if status == "PASS" and answer.get("not_checked"):
        found.append(f"PASS though not checked: {answer['not_checked'][0]}")
    return found


def unsound_rows(text: str) -> list[str]:
    """What cannot be in the rows of a table of predictions."""
    found = []
    for row in csv.DictReader(io.StringIO(text)):
        if row.get("error"):
            continue
        said = [problem for name in PREDICTED if (problem := _of_cell(row, name))]
        found += [f"a row that cannot be: {problem}" for problem in said]
    return found[:3]


def _of_cell(row: dict[str, str], name: str) -> str | None:
    if name == "bubble_fraction" and row.get(name) == "":
        return None  # nothing is pipelined; a plan's own columns say whether that is so
    try:
        value = float(row[name])
    except (KeyError, ValueError, TypeError):
        return f"{name} holds {row.get(name)!r}, and there is no error"
    if name == "iteration_time_s" and value <= 0:
        return f"{name} is {value:g}"
    return cannot_be(name, value)
