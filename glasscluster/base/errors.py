"""The closed list of errors a run can end with, each naming rank, operation, peer and step.

A user mistake (a plan that cannot be, a file that is not there) is a `InputError`: exit code 2.
Everything else is a run that failed: exit code 3. Nothing here ever reaches a person as a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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


class ClusterLost(GlassError):
    """The cluster itself (not one rank) is gone."""


class InputError(GlassError, ValueError):
    """Bad input: field, value, rule, and the nearest valid choice.

    by_name: the field itself is unknown; the nearest is the choice that is spelled like it.
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
        self.nearest = nearest(field if by_name else value, choices) if choices is not None else None
        hint = f"; the nearest valid choice is {self.nearest}" if self.nearest is not None else ""
        super().__init__(f"{field} = {value!r}: {rule}{hint}")

    def as_dict(self) -> dict:
        """Field, value, rule and nearest choice, for `--json`."""
        return {
            "error": "InputError",
            "message": self.message,
            "field": self.field,
            "value": str(self.value),
            "rule": self.rule,
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
    options = list(choices)
    if not options:
        return None
    numbers = [o for o in options if isinstance(o, (int, float))]
    if isinstance(value, (int, float)) and len(numbers) == len(options):
        return min(numbers, key=lambda o: (abs(o - value), o))
    words = [str(o) for o in options]
    close = difflib.get_close_matches(str(value), words, n=1, cutoff=0.0)
    return close[0] if close else words[0]
