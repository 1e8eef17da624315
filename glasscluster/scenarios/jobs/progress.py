"""What a job says while it works."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]


def silent(_text: str) -> None:
    """Report no progress."""
