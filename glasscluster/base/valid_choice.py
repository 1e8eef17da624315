"""The nearest valid choice: one that every rule allows, not only the rule that refused a value.

A rule that refuses a value offers choices that it would allow itself. It does not know the other rules:
`--tp 8` with a sequence of 9 tokens that is cut must be 1, 3 or 9, but a model of 8 heads is not cut in 9. So
each choice is tried in the place of the value, with everything else as it was given. The nearest that all
rules allow is named. Where none does, because another option is wrong as well, it is the nearest from which
further advice leads to something that is allowed, in as few changes as possible. So whoever follows the
advice gets there: each change is one fewer.
But: where nothing leads there, it is the nearest choice that this rule allows, and the next refusal says
more.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from glasscluster.base.errors import InputError, by_nearness

T = TypeVar("T")
TRIED = (64, 8, 4, 2, 2)  # the choices that are tried for the first change, the second, ...: so many changes
MOST = 4000  # values that are judged for one advice

_looking: ContextVar[bool] = ContextVar("looking", default=False)  # somebody outside looks for advice


def advised(judge: Callable[[dict[str, Any]], T], given: dict[str, Any]) -> T:
    """What `judge` makes of options; its refusal names a choice that every rule of it allows.

    Where a judge calls another one, only the outer looks for a choice: it knows all the rules.

    Args:
        judge: takes options by name and raises an InputError for the first that cannot be.
        given: the options.

    Raises:
        InputError: the judge's.
    """
    if _looking.get():
        return judge(given)
    token = _looking.set(True)
    try:
        return judge(given)
    except InputError as refused:
        if refused.choices and not refused.by_name:
            refused.suggest(Search(judge).choice(given, refused))
        raise
    finally:
        _looking.reset(token)


@dataclass
class Search:
    """Looks for the fewest changes, each one that a refusal offers, after which nothing is refused."""

    judge: Callable[[dict[str, Any]], Any]
    judged: int = 0

    def choice(self, given: dict[str, Any], refused: InputError) -> object | None:
        """The first of those changes; None where no choice passes even the rules about its own field."""
        for changes in range(1, len(TRIED) + 1):
            if first := self.first_change(given, refused, changes, ()):
                return first[0]
            if self.judged > MOST:
                break
        return next((choice for choice, _ in self.allowed(given, refused, TRIED[0])), None)

    def first_change(
        self, given: dict[str, Any], refused: InputError, changes: int, changed: tuple[str, ...]
    ) -> list[object]:
        """The nearest choice that is allowed, or that at most `changes` - 1 further changes make so; or none.

        changed: the fields that have been changed so far; to change one twice would go round in a circle.
        """
        changed = (*changed, refused.field)
        reached = self.allowed(given, refused, TRIED[len(changed) - 1])
        for choice, other in reached:
            if other is None:
                return [choice]
        for choice, other in reached if changes > 1 else ():
            if other is None or other.field in changed or self.judged > MOST:
                continue
            if self.first_change({**given, refused.field: choice}, other, changes - 1, changed):
                return [choice]
        return []

    def allowed(
        self, given: dict[str, Any], refused: InputError, most: int
    ) -> list[tuple[object, InputError | None]]:
        """The choices that pass all rules about their own field, the nearest first, each with what is refused
        next. Another rule about the same field offers its own choices: they are tried, too.
        """
        offered = by_nearness(refused.value, refused.choices)[:most]
        passing: list[tuple[object, InputError | None]] = []
        for choice in offered:  # which grows while it is read
            self.judged += 1
            try:
                self.judge({**given, refused.field: choice})
            except InputError as other:
                if other.field != refused.field:
                    passing.append((choice, other))
                    continue
                further = [c for c in other.choices if c not in offered]
                offered += by_nearness(refused.value, further)[: most - len(offered)]
            else:
                passing.append((choice, None))
        order = by_nearness(refused.value, [choice for choice, _ in passing])
        return sorted(passing, key=lambda pair: order.index(pair[0]))
