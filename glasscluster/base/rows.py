"""A ledger row: one quantity as the paper's formula predicts it, as it was counted, simulated, measured; and
a verdict.

    row = Row("dp_gradients_sent", Said("gradients sent by dp", "dp 发送的梯度"), predicted=96, counted=96,
              source="Patarasuk-Yuan 2009 (Eq 9)")
    row.verdict                                   # "held"

A row is made where its quantity is known, with its name in both languages. Code finds a row by `key`, never
by name. A row whose two sides are not both there proves nothing: it is *not applicable* and says why. It is
never dropped, so that a check which leaves its domain is seen to leave it.

A ledger as a whole has a status: FAIL when a row failed; else PARTIAL when a check that was asked for, or is
on by default, could not be made (`not_checked` says which); else PASS. Rows that are not applicable change
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from glasscluster.base.text import Said

Match = Literal["exact", "virtual", "statistical"]
Verdict = Literal["held", "failed", "not applicable"]
HELD: Verdict = "held"
FAILED: Verdict = "failed"
NOT_APPLICABLE: Verdict = "not applicable"
Status = Literal["PASS", "PARTIAL", "FAIL"]
NOT_COUNTED = Said(
    "bytes sent: a library's own collectives ran (--algorithm native)",
    "发送的字节：运行的是库自带的集合通信（--algorithm native）",
)
NO_CHECKS = Said("anything: no check is stated", "没有陈述任何检查")
ONE_SIDED = Said("only one side of it is known here", "这里只知道其中一边")


@dataclass(frozen=True)
class Row:
    """One line of the ledger.

    Args:
        key: what code calls the row: lower case, words joined by underscores, the same in every run of its
        kind. name: what people call it, in both languages, with the numbers of this run in it. predicted: by
        the formula of `source`; None where no formula is claimed. counted: from the recording or the memory
        ledger, which know no formula; None where nothing was counted. simulated: from the replay on the
        chosen hardware, in virtual seconds. measured: on real accelerators only. unit: of all four, such as
        `bytes`, `s`, `FLOPs`, `relative`. match: `exact` and `statistical` rows hold |predicted - counted| <=
        tolerance; a `virtual` row holds
            |predicted - simulated| <= tolerance * |predicted|.
        tolerance: absolute, or relative where the match is virtual.
        source: paper and section, and the number of the formula in docs/formulas.md.
        why: why the row is not applicable; None where it is.
    """

    key: str
    name: Said
    predicted: float | None
    counted: float | None
    source: str
    simulated: float | None = None
    measured: float | None = None
    unit: str = "bytes"
    match: Match = "exact"
    tolerance: float = 0.0
    why: Said | None = None

    @property
    def observed(self) -> float | None:
        """The side that is held against the prediction: simulated for a virtual row, else counted."""
        return self.simulated if self.match == "virtual" else self.counted

    @property
    def verdict(self) -> Verdict:
        """`held`, `failed`, or `not applicable` (see `because`). A NaN never holds."""
        if self.why is not None or self.predicted is None or self.observed is None:
            return NOT_APPLICABLE
        allowed = self.tolerance * abs(self.predicted) if self.match == "virtual" else self.tolerance
        return HELD if abs(self.predicted - self.observed) <= allowed else FAILED

    @property
    def because(self) -> Said | None:
        """Why the row is not applicable; None where it held or failed."""
        if self.verdict != NOT_APPLICABLE:
            return None
        return self.why or ONE_SIDED

    @property
    def ok(self) -> bool | None:
        """True where it held, False where it failed, None where it is not applicable."""
        return None if self.verdict == NOT_APPLICABLE else self.verdict == HELD

    def of_run(self, run: str) -> Row:
        """The same row with the name of its run in front, for a ledger of several runs."""
        return replace(self, name=Said(f"{run}: {self.name.en}", f"{run}: {self.name.zh}"))

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: today's `name` is the English one, `names` has both."""
        because = self.because
        return {
            "key": self.key,
            "name": self.name.en,
            "names": {"en": self.name.en, "zh": self.name.zh},
            "ok": self.ok,
            "verdict": self.verdict,
            "why": None if because is None else because.en,
            "predicted": self.predicted,
            "counted": self.counted,
            "simulated": self.simulated,
            "measured": self.measured,
            "unit": self.unit,
            "match": self.match,
            "tolerance": self.tolerance,
            "source": self.source,
        }


def not_applicable(key: str, name: Said, why: Said, source: str, **options: Any) -> Row:
    """A row that this run is outside the domain of: shown with its reason, neither held nor failed."""
    return Row(
        key, name, options.pop("predicted", None), options.pop("counted", None), source, why=why, **options
    )


@dataclass(frozen=True)
class Tally:
    """How many rows held, failed, and were not applicable."""

    held: int
    failed: int
    not_applicable: int

    def __str__(self) -> str:
        return self.said.en

    @property
    def said(self) -> Said:
        """The sentence of every summary, all three counts in it."""
        return Said(
            f"{self.held} held, {self.failed} failed, {self.not_applicable} not applicable",
            f"{self.held} 项成立，{self.failed} 项不成立，{self.not_applicable} 项不适用",
        )


def tally(rows: Iterable[Row]) -> Tally:
    """Count the verdicts of a ledger."""
    verdicts = [row.verdict for row in rows]
    return Tally(verdicts.count(HELD), verdicts.count(FAILED), verdicts.count(NOT_APPLICABLE))


def status(rows: Iterable[Row], not_checked: Sequence[Said] = ()) -> Status:
    """What became of a ledger as a whole. `not_checked`: the checks that could not be made, and why."""
    if tally(rows).failed:
        return "FAIL"
    return "PARTIAL" if not_checked else "PASS"


def judged(rows: Sequence[Row], not_checked: Sequence[Said] = ()) -> dict[str, Any]:
    """The part of a command's JSON that tells what was checked: `status`, `not_checked` and `checks`."""
    return {
        "status": status(rows, not_checked),
        "not_checked": [check.en for check in not_checked],
        "checks": [row.as_dict() for row in rows],
    }
