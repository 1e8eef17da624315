"""Pipeline schedules, as data: one file each, executed by `pipeline_parallel.py`, judged by `base.validate`."""

from __future__ import annotations

from collections.abc import Callable

from glasscluster.sim.errors import ScenarioError
from glasscluster.strategies.schedules import gpipe, one_f_one_b
from glasscluster.strategies.schedules.base import Action, Schedule

SCHEDULES: dict[str, Callable[[int, int], Schedule]] = {"gpipe": gpipe.schedule, "1f1b": one_f_one_b.schedule}


def make_schedule(name: str, stages: int, micro_batches: int) -> Schedule:
    """A schedule by name for p stages and m micro-batches."""
    if name not in SCHEDULES:
        raise ScenarioError("schedule", name, "is not available in this version", list(SCHEDULES))
    return SCHEDULES[name](stages, micro_batches)


__all__ = ["SCHEDULES", "Action", "Schedule", "make_schedule"]
