"""Rows of a file over several processes, in their order; one that fails stops no other.

    this process    row 0   row 2   row 1   ...      answers come in the rows' order
    worker 1        [0]     [2]
    worker 2        [1]          [3]

Workers are started anew (spawned), so that nobody inherits another's threads. They do not hear ctrl-C: this
process ends them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from glasscluster.base.errors import GlassError

T = TypeVar("T")
ROWS_EACH = 8  # for fewer a process is not worth its start: it imports torch


def processes_for(rows: int, wanted: int) -> int:
    """How many processes: as many as were asked for, or with 0 what the cores and the rows are good for."""
    return min(rows, wanted) if wanted else max(1, min(os.cpu_count() or 1, rows // ROWS_EACH))


def in_order(
    function: Callable[[T], dict[str, Any]], rows: Sequence[T], processes: int
) -> Iterator[dict[str, Any]]:
    """What a function makes of each row, in the rows' order.

    Args:
        function: of a module, so that another process finds it.
        rows: what it is called with.
        processes: how many; 1: this one.
    """
    if processes == 1:
        yield from map(function, rows)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _begin)
    answered = 0
    try:
        for answer in pool.map(function, rows):
            answered += 1
            yield answer
    except BrokenProcessPool:
        message = GlassError("a process that predicted rows was ended from outside").message
        yield from ({"error": message} for _ in rows[answered:])
    finally:  # also where whoever asks for rows is interrupted
        workers = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()


def _begin() -> None:
    """A terminal sends ctrl-C to all processes; the one that asked for the rows ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
