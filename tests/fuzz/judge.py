"""What a case may end with. Everything else is a fault of the package."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from .case import BAD_ROW, HARMLESS, NONSENSE, Case, Sheet
from .sound import unsound, unsound_rows

LONGEST_MESSAGE = 2000  # characters
LONGEST_OUTPUT = 20_000  # characters on standard error, progress and all
# Seconds of its own work without a word of how far it is; of waiting, in which it would not run; and of work
# in all: what says again and again how far it is (12 of 2,000 ranks, 40 of 2,000 ranks) is large, no hang.
MOST_CPU_S, MOST_WAIT_S, MOST_SLOW_S = 5.0, 60.0, 15.0
MOST_BYTES = 2 << 30
CODES = (0, 1, 2, 3)
NAMED = re.compile(r"^([A-Z]\w+): (.+)$", re.DOTALL)
NO_BAD_ROW = re.compile(r" 0 with an error|\"errors\": 0")
HOW_FAR = re.compile(r"([0-9,]*[0-9]) of ([0-9,]*[0-9])")
OF_A_FIELD = re.compile(r"^\S.{0,300}? = ", re.DOTALL)


@dataclass
class Ending:
    """How a case ended: an exit code, or what stopped it."""

    code: int | None = None
    out: str = ""
    err: str = ""
    escaped: str | None = None  # a traceback that left main()
    stopped: str | None = None  # hang, crash or memory, by whom watched it
    cpu_s: float = 0.0
    silent_s: float = 0.0  # the longest stretch of that without a word of how far it is
    slow: str | None = None  # stopped, though it went on and said how far it was: not judged
    peak_bytes: int = 0
    table: str = ""  # the predictions that `predict --csv` wrote


class Words:
    """Listens to what a command says of how far it is: a word is a number that rises, of the same whole."""

    def __init__(self) -> None:
        self.last: dict[str, int] = {}
        self.rises, self.text = 0, ""

    def new(self, err: str) -> bool:
        """Whether standard error says more than it did."""
        more = False
        for line in err.splitlines():
            for match in HOW_FAR.finditer(line):
                whole, number = f"{line[: match.start()]} of {match[2]}", int(match[1].replace(",", ""))
                if number > self.last.get(whole, -1):
                    self.rises += whole in self.last
                    self.last[whole], self.text, more = number, line, True
        return more


def in_numbers(case: Case, ending: Ending) -> Case | None:
    """The same case with --json, whose numbers can be judged; None where it was refused or has it already."""
    words = case.sheet.words
    if ending.code != 0 or "--json" in words or "Usage" in ending.out:
        return None
    sheet = Sheet([*words, "--json"], case.sheet.files, case.sheet.stdin)
    return Case(case.kind, case.number, case.seed, sheet, case.mutations)


def faults(case: Case, ending: Ending) -> list[str]:
    """What is wrong with an ending, in words; empty where nothing is."""
    if ending.slow:
        return []
    if ending.stopped:
        return [ending.stopped]
    if ending.escaped:
        return [f"traceback: {ending.escaped.strip().splitlines()[-1][:200]}"]
    found = []
    if "Traceback (most recent call last)" in ending.err + ending.out:
        found.append("traceback on the screen")
    if "a fault of ours" in ending.err:
        found.append("a fault of ours")
    if re.search(r"\.py:\d+: \w*Warning: ", ending.err):
        found.append("a warning of Python's on the screen")
    if ending.code not in CODES:
        found.append(f"exit code {ending.code}")
    if ending.silent_s > MOST_CPU_S:
        found.append(f"took {ending.silent_s:.1f} s without a word of how far it was")
    if ending.peak_bytes > MOST_BYTES:
        found.append(f"took {ending.peak_bytes / 2**30:.1f} GiB")
    if ending.code == 0 and case.nature == NONSENSE:
        found.append("nonsense was taken")
    if ending.code == 0 and case.nature == BAD_ROW and NO_BAD_ROW.search(ending.out):
        found.append("nonsense was taken in a row")
    if ending.code == 0:
        found += unsound_rows(ending.table)
    if ending.code != 0 and case.nature == HARMLESS:
        found.append(f"what is right was refused: {ending.err.strip()[-200:]}")
    if len(ending.err) > LONGEST_OUTPUT:
        found.append(f"{len(ending.err):,} characters on standard error")
    if ending.code in (2, 3):
        found += _message(ending)
    return found + (_json(ending) if "--json" in case.sheet.words else [])


def _message(ending: Ending) -> list[str]:
    """The error is one of ours, of a reader's length, and a refusal names a field."""
    lines = ending.err.splitlines()
    starts = [i for i, line in enumerate(lines) if NAMED.match(line)]
    if not starts:
        if not ending.err.strip() and "Usage" in ending.out:  # help was the answer
            return []
        return [f"no named error: {ending.err.strip()[-100:]!r}"]
    message = "\n".join(lines[starts[-1] :])
    found = []
    if len(message) > LONGEST_MESSAGE:
        found.append(f"a message of {len(message):,} characters")
    match = NAMED.match(message)
    assert match is not None
    if match[1] in ("InputError", "DoesNotFit") and not OF_A_FIELD.match(match[2]):
        found.append(f"names no field: {message[:100]!r}")
    if "pydantic" in message or "Traceback" in message or "For further information" in message:
        found.append(f"somebody else's words: {message[:100]!r}")
    return found


def _json(ending: Ending) -> list[str]:
    """With --json there is one JSON object on standard output, with a schema."""

    def not_json(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    try:
        content = json.loads(ending.out, parse_constant=not_json)
    except ValueError as problem:
        return [f"--json: {problem}: {ending.out[:60]!r}"]
    if not isinstance(content, dict) or "schema" not in content:
        return ["--json: no object with a schema"]
    return unsound(content) if ending.code == 0 else []
