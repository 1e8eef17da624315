"""What a scenario is: a decorated function, its options from the signature, its story from the docstring.

Nothing here needs torch, so scenarios and lessons are listed without it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.base.text import Said
from glasscluster.scenarios.built_in import TITLES
from glasscluster.scenarios.texts import Text, Texts, said


@dataclass(frozen=True)
class Scenario:
    """A decorated function: its signature is the scenario's options, its docstring the story.

    Attributes:
        name: what `glass run` calls it.
        function: called with a Lab and the options.
        title: in both languages.
        backend: what it runs on when nothing else is chosen.
        hardware: what it is timed on when nothing else is chosen.
    """

    name: str
    function: Callable[..., None]
    title: Said
    backend: str = "threads"
    hardware: str = "classroom"

    @property
    def texts(self) -> Texts | None:
        """The scenario's text.toml; None where it gives its texts itself."""
        return None

    @property
    def lesson(self) -> Any:
        """What text.toml says of a lesson; None for a scenario that is none."""
        return None

    @property
    def story(self) -> str:
        """The function's docstring: the first paragraph of the story."""
        return inspect.getdoc(self.function) or ""

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """The function's parameters by name, without the lab."""
        return dict(list(inspect.signature(self.function, eval_str=True).parameters.items())[1:])


REGISTRY: dict[str, Scenario] = {}
NAME = r"\w[\w-]{0,63}"


def scenario(
    name: str, *, title: Text | None = None, backend: str = "threads", hardware: str = "classroom"
) -> Callable[..., Any]:
    """Register the decorated function as a scenario.

    Args:
        name: what `glass run` calls it.
        title: in both languages; None: the title that a built-in scenario has, or the name.
        backend: what it runs on when nothing else is chosen.
        hardware: what it is timed on when nothing else is chosen.

    Returns:
        A decorator that returns the function unchanged.

    Raises:
        InputError: for a name that cannot be a folder's.
    """

    if not re.fullmatch(NAME, name):
        rule = "is also the name of a folder: letters, digits, - and _, beginning with a letter or digit"
        raise InputError("scenario name", name[:200], rule)

    def register(function: Callable[..., None]) -> Callable[..., None]:
        known = TITLES.get(name, Said(name, name))
        REGISTRY[name] = Scenario(name, function, said(title) if title else known, backend, hardware)
        return function

    return register
