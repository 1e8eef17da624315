"""Where a Timeline or a Run finds its pictures, when somebody asks to see.

What records and what times know nothing of drawing. The package itself, which stands above all of its rooms,
declares here which function draws what (glasscluster/__init__.py); it is imported at the first picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

_RENDERERS: dict[str, str] = {}


def declare(renderers: Mapping[str, str]) -> None:
    """Say where pictures are drawn: what is asked for -> `module:function`."""
    _RENDERERS.update(renderers)


def renderer(what: str) -> Callable:
    """The function that draws `what`; KeyError names what can be drawn."""
    if what not in _RENDERERS:
        raise KeyError(f"nothing draws {what!r}; there are {', '.join(sorted(_RENDERERS))}")
    module, name = _RENDERERS[what].split(":")
    return getattr(import_module(module), name)
