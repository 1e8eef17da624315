"""The closed list of errors a run can end with, each naming rank, operation, peer and step.

A user mistake (a plan that cannot be, a file that is not there) is a `InputError`: exit code 2.
Everything else is a run that failed: exit code 3. Nothing here ever reaches a person as a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from glasscluster.base.text import shown

# how alike two words must be for one to be taken as a slip of the other (difflib's own default)
ALIKE = 0.7
LONGEST_RULE = 1000  # characters of the rule in a message
LONGEST_COMPARED = 200  # characters of a word whose likeness to others is judged


class GlassError(Exception):
    """Base of every named error. `rank`, `operation`, `peer`, `step` are None where unknown."""

    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        rank: int | None = None,
        operation: str | None = None,
        peer: int | None = None,
        step: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.rank, self.operation, self.peer, self.step = rank, operation, peer, step

    def __reduce__(self):  # survive a trip between processes with the names intact
        return (_rebuild, (type(self), self.message, self.__dict__.copy()))

    def as_dict(self) -> dict:
        """What `--json` prints for a failed run."""
        return {
            "error": type(self).__name__,
            "message": self.message,
            "rank": self.rank,
            "operation": self.operation,
            "peer": self.peer,
            "step": self.step,
        }


def _rebuild(cls: type[GlassError], message: str, state: dict) -> GlassError:
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


class RankDied(GlassError):
    """A rank raised, or its process is gone."""


class RankStalled(GlassError):
    """A rank waited longer than the operation timeout."""


class MessageLost(GlassError):
    """A message was sent and nobody will ever receive it."""


class CollectiveMismatch(GlassError):
    """Ranks of one group disagree about what they are doing (operation, size or dtype)."""


class Deadlock(GlassError):
    """Every unfinished rank waits for another. `waits` holds one `Wait` per blocked rank."""

    def __init__(
        self, message: str, *, waits: list | None = None, cycle: list[int] | None = None, **names
    ) -> None:
        super().__init__(message, **names)
        self.waits, self.cycle = waits or [], cycle or []


class NonFinite(GlassError):
    """A loss or gradient became infinite or NaN."""


class GradientMissing(GlassError):
    """A parameter got no gradient, so its bucket can never be full."""


class OutOfMemory(GlassError):
    """The virtual GPU is full: where, what is resident (the largest first), and which changes of the plan
    would fit.
    """

    def __init__(
        self, message: str, *, phase: str = "", layer: int = -1, residents: list[dict] | None = None, **names
    ) -> None:
        super().__init__(message, **names)
        self.phase, self.layer, self.residents = phase, layer, residents or []
        self.would_fit: list[dict] = []

    def as_dict(self) -> dict:
        """With phase, layer, residents and advice."""
        more = {
            "phase": self.phase,
            "layer": self.layer,
            "residents": self.residents,
            "would_fit": self.would_fit,
        }
        return {**super().as_dict(), **more}

    def advise(self, said: str, would_fit: list[dict]) -> None:
        """Add which changes of the plan would fit."""
        self.message, self.would_fit = f"{self.message}. {said}", would_fit
        self.args = (self.message,)


class BackendUnavailable(GlassError):
    """The backend cannot run here, and why."""


class ProgramFailed(GlassError):
    """A scenario or a program of somebody's own raised outside its ranks: where, and what."""


class ClusterLost(GlassError):
    """The cluster itself (not one rank) is gone."""


class InputError(GlassError, ValueError):
    """Bad input: field, value, rule, and the nearest valid choice.

    choices: values that the rule itself allows. Who knows the other rules as well names the nearest of them
    that passes all (`suggest`, called by base/valid_choice.py).
    by_name: the field itself is unknown; the nearest is a choice that is spelled like it, if there is one.
    """

    exit_code = 2

    def __init__(
        self,
        field: str,
        value: object,
        rule: str,
        choices: Iterable[object] | None = None,
        *,
        by_name: bool = False,
    ) -> None:
        self.field, self.value, self.rule = field, value, rule
        self.by_name, self.choices = by_name, list(choices or ())
        if by_name:
            self.choices = alike(field, self.choices)
        self.nearest: object | None = None
        super().__init__("")
        self.suggest(nearest(field if by_name else value, self.choices))

    def suggest(self, choice: object | None) -> None:
        """Name this choice as the nearest valid one; None: no choice is known that would run."""
        self.nearest = choice
        hint = f"; the nearest valid choice is {shown(choice)}" if choice is not None else ""
        field, rule = shown(self.field) or "''", shown(self.rule, LONGEST_RULE)  # a name can be empty, too
        self.message = f"{field} = {shown(repr(self.value))}: {rule}{hint}"
        self.args = (self.message,)

    def as_dict(self) -> dict:
        """Field, value, rule and nearest choice, for `--json`."""
        return {
            "error": "InputError",
            "message": self.message,
            "field": shown(self.field),
            "value": shown(self.value),
            "rule": shown(self.rule, LONGEST_RULE),
            "nearest": self.nearest,
        }


class DoesNotFit(InputError):
    """A plan whose recording ran out of the virtual GPU before anything was started: bad input, with what
    would fit.
    """

    def __init__(self, capacity: float, out_of_memory: OutOfMemory, said: str, would_fit: list[dict]) -> None:
        super().__init__("memory", int(capacity), f"the plan does not fit: {out_of_memory.message}. {said}")
        self.rank, self.out_of_memory, self.would_fit = out_of_memory.rank, out_of_memory, would_fit
        self.nearest = would_fit[0]["options"] if would_fit else None

    def as_dict(self) -> dict:
        """With rank, phase, layer, residents and advice."""
        more = {
            k: v
            for k, v in self.out_of_memory.as_dict().items()
            if k in ("rank", "phase", "layer", "residents")
        }
        return {**super().as_dict(), **more, "would_fit": self.would_fit}


def nearest(value: object, choices: Iterable[object]) -> object | None:
    """The choice closest to `value`: by distance among numbers, by spelling among words."""
    return next(iter(by_nearness(value, choices)), None)


def by_nearness(value: object, choices: Iterable[object]) -> list[object]:
    """The choices, the closest to `value` first: by distance among numbers, by spelling among words."""
    options = list(choices)
    if isinstance(value, (int, float)) and all(isinstance(o, (int, float)) for o in options):
        return sorted(options, key=lambda o: (abs(o - value), o))  # type: ignore[operator]
    return sorted(options, key=lambda o: (_likeness(str(value), str(o)), str(o)), reverse=True)


def alike(word: str, choices: Iterable[object]) -> list[object]:
    """Those of the choices that are spelled so much like a word that it may have meant them."""
    return [o for o in choices if _likeness(word, str(o)) >= ALIKE]


def _likeness(a: str, b: str) -> float:
    """How much two words look alike, from 0 to 1; capitals, - and _ make no difference."""
    a, b = (word[:LONGEST_COMPARED].lower().replace("_", "-").lstrip("-") for word in (a, b))
    ratio = difflib.SequenceMatcher(None, b, a).ratio()
    begins = len(a) > 2 and b.startswith(a)  # a word that was cut short
    return max(ratio, ALIKE) if begins else ratio
