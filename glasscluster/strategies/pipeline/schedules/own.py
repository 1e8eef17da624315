"""A schedule of your own: a file in PyTorch's notation in the place of a name, as `--schedule mine.csv`.

It is judged when it is read, so that whatever comes back is complete, in order and free of deadlock. Ranks,
stages and micro-batches are those of the file.
But: every rank has the same number of stages, because a plan says how many by one number.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from glasscluster.base.errors import Deadlock, InputError
from glasscluster.base.files import is_file, read_text
from glasscluster.base.text import counted
from glasscluster.strategies.pipeline.schedules import registry
from glasscluster.strategies.pipeline.schedules.base import Schedule
from glasscluster.strategies.pipeline.schedules.notation import read_schedule

EVEN = "every rank must have as many"
ENDINGS = (".txt", ".csv", ".json")


def is_own(name: str) -> bool:
    """Whether the name of a schedule means a file: it has a slash or a file's ending, or is there."""
    if name in registry.REGISTRY:
        return False
    return os.sep in name or "/" in name or Path(name).suffix.lower() in ENDINGS or is_file(name)


def own_schedule(path: str) -> Schedule:
    """The schedule in a file, judged: it can run. It is read once and shared: never change it.

    Args:
        path: a text, a CSV or a JSON file (notation.py says what stands in it).

    Returns:
        The Schedule, called by the file's name.

    Raises:
        InputError: the file is not there; a word is no action; the list is incomplete, out of order or
            deadlocks; with rank, line and token.
    """
    if not is_file(path):
        raise InputError("schedule", path, "there is no such file, and no schedule of this name")
    there = os.stat(path)
    return _judged(path, there.st_mtime_ns, there.st_size)


@lru_cache(maxsize=32)  # every rank of a recording asks; a file that was written anew is read anew
def _judged(path: str, _written_ns: int, _size: int) -> Schedule:
    name = Path(path).name
    schedule = read_schedule(name, read_text("schedule", path), option="schedule", file=name)
    p, stages = len(schedule.ranks), {a.stage for actions in schedule.ranks for a in actions}
    if len(stages) % p and max(stages) == len(stages) - 1:
        raise InputError("schedule", name, f"has {len(stages)} stages on {counted(p, 'rank')}: {EVEN}")
    try:
        schedule.validate()
    except Deadlock as problem:
        raise InputError("schedule", name, problem.message) from None
    held = {rank: len(schedule.stages_of(rank)) for rank in range(len(schedule.ranks))}
    if len(set(held.values())) > 1:
        few = min(held, key=lambda rank: held[rank])
        rule = f"rank {few} has {held[few]} of {schedule.stages} stages on {counted(p, 'rank')}: {EVEN}"
        raise InputError("schedule", name, rule)
    return schedule
