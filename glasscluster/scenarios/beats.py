"""What a lesson's beats are made of: its formula, its interview card, and what it asks for.

A lesson reads them from its text.toml, the lab fills them with the numbers of a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from glasscluster.base.errors import InputError
from glasscluster.base.text import Said

Class = Literal["X", "V", "T"]


@dataclass(frozen=True)
class Formula:
    """A row of the formula contract: id, the formula as text, its match class and its source.

    `symbols`: what each symbol of the text means, by the symbol.
    """

    id: str
    text: Said
    match: Class
    source: str
    symbols: dict[str, Said]


@dataclass(frozen=True)
class FollowUp:
    """What is asked next, with its answer, or with the id of the lesson that answers it."""

    question: Said
    answer: Said | None = None
    lesson: str | None = None


@dataclass(frozen=True)
class Card:
    """The interview card. Its texts may have blanks, which `lab.card` and `lab.own_number` fill."""

    question: Said
    short: Said  # the 30-second answer
    long: Said  # the 2-minute answer
    follow_ups: tuple[FollowUp, ...]


@dataclass(frozen=True)
class Prediction:
    """What the reader is asked to predict: the question, the right number, its unit, between which numbers
    an answer can lie (None: anywhere).
    """

    text: Said
    answer: float
    unit: Said
    low: float | None = None
    high: float | None = None

    def judged(self, guess: float) -> Said:
        """What a guess is told.

        Raises:
            InputError: it is outside what the answer can be.
        """
        self.check(guess)
        says = f"{guess:.6g} {{unit}}", f"{self.answer:.6g} {{unit}}"
        return Said(
            "You said {}; it was {}.".format(*(x.format(unit=self.unit.en) for x in says)),
            "你的预测 {}；实际 {}。".format(*(x.format(unit=self.unit.zh) for x in says)),
        )

    def check(self, guess: float) -> None:
        """Refuse a guess that cannot be the answer, with the reason."""
        if self.low is not None and self.high is not None and not self.low <= guess <= self.high:
            rule = f"the answer is in {self.unit.en} and lies between {self.low:g} and {self.high:g}"
            raise InputError("guess", guess, rule)
