"""Closing what a failed run leaves open, without keeping its named error waiting.

Ray takes seconds to stop. A program that calls us finds everything closed when the error reaches it. A person
at a command wants to read who died: between `last_word_first` and its end the closing runs beside, in a
thread, while the error is named.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_beside: list[threading.Thread] = []
_late = False


@contextmanager
def last_word_first() -> Iterator[None]:
    """Inside, `close` does not wait; at the end everything is closed."""
    global _late
    before, _late = _late, True
    try:
        yield
    finally:
        _late = before
        finish()


def close(what: Callable[[], None]) -> None:
    """Close something: now, or beside what comes next."""
    if not _late:
        what()
        return

    def quietly() -> None:
        with suppress(Exception):  # the error of the run is the one that counts
            what()

    thread = threading.Thread(target=quietly, name="closing")
    _beside.append(thread)
    thread.start()


def finish() -> None:
    """Wait until everything is closed."""
    while _beside:
        _beside[-1].join()
        _beside.pop()
