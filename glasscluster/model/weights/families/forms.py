"""In which form a part lies in a tensor of theirs: as it is, transposed, less one, its columns interleaved.

Each form is a pair of functions on tensors, one the other's inverse. Gradients go the same way, but for the
constant that a norm's weight is stored less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _same(x: Any) -> Any:
    return x


@dataclass(frozen=True)
class Form:
    """One way: `ours` makes our part of their tensor, `theirs` the reverse; `gradient` is the reverse for
    gradients, where these differ from weights.
    """

    ours: Callable[[Any], Any] = _same
    theirs: Callable[[Any], Any] = _same
    gradient: Callable[[Any], Any] | None = None


def _columns_to_rows(x: Any) -> Any:
    """[E, h, 2f] with gate and value in turns -> [E, 2f, h] with all rows of the gate first."""
    return _separated(x.transpose(1, 2))


def _rows_to_columns(x: Any) -> Any:
    return _in_turns(x).transpose(1, 2)


def _separated(x: Any) -> Any:
    """[E, 2f, ...] with gate and value in turns -> all of the gate before the value."""
    return x.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)


def _in_turns(x: Any) -> Any:
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


PLAIN_FORM = Form()
TRANSPOSED = Form(lambda x: x.transpose(-1, -2), lambda x: x.transpose(-1, -2))
# Gemma's norm multiplies by 1 + w
LESS_ONE = Form(lambda x: x + 1, lambda x: x - 1, _same)
# gpt-oss: [E, h, 2f] and its bias [E, 2f], gate and value in turns
COLUMNS_IN_TURNS = Form(_columns_to_rows, _rows_to_columns)
IN_TURNS = Form(_separated, _in_turns)
