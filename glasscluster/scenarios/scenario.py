"""What a scenario is: a decorated function, its options from the signature, its story from the docstring.

Nothing here needs torch, so scenarios and lessons are listed without it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from glasscluster.base.text import Said
from glasscluster.scenarios.built_in import TITLES
from glasscluster.scenarios.texts import Text, Texts, said


@dataclass(frozen=True)
class Scenario:
    """A decorated function: its signature is its options, its docstring the story."""

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
        """The docstring."""
        return inspect.getdoc(self.function) or ""

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """Name -> parameter, the lab left out."""
        return dict(list(inspect.signature(self.function, eval_str=True).parameters.items())[1:])


REGISTRY: dict[str, Scenario] = {}


def scenario(name: str, *, title: Text | None = None, backend: str = "threads", hardware: str = "classroom") -> Callable[..., Any]:
    """Make a function a scenario."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        known = TITLES.get(name, Said(name, name))
        REGISTRY[name] = Scenario(name, function, said(title) if title else known, backend, hardware)
        return function

    return register
