"""`glass schedule`: a pipeline schedule as data, by name or from a file; judged, drawn, written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from glasscluster.base.breakdown import PAPERS
from glasscluster.base.errors import Deadlock, InputError, nearest
from glasscluster.base.files import read_text
from glasscluster.scenarios.requests.stored import ScheduleRequest
from glasscluster.strategies.pipeline.schedules import LOOPED, SCHEDULES, chunks, make_schedule
from glasscluster.strategies.pipeline.schedules.base import Metrics, Schedule
from glasscluster.strategies.pipeline.schedules.notation import read_schedule
from glasscluster.strategies.pipeline.schedules.own import is_own

ENDINGS = (".html", ".csv", ".txt", ".json")  # of --out: what is written is chosen by it


def schedule_command(request: ScheduleRequest) -> dict[str, Any]:
    """Run `glass schedule`: a schedule by name, or one in a file, which passes or ends with exit code 1."""
    try:
        return request.prepared(schedule_of)
    except (Deadlock, InputError) as problem:
        file = request.validate_ is not None or is_own(request.name or "")
        if file and (isinstance(problem, Deadlock) or problem.field == "schedule"):
            problem.exit_code = 1  # the file was read and judged, and did not pass
        raise


def schedule_of(request: ScheduleRequest) -> dict[str, Any]:
    """The `glass.schedule/1` object of a request."""
    if request.out is not None and Path(request.out).suffix.lower() not in ENDINGS:
        stem = Path(request.out).stem or "schedule"  # with_suffix raises where there is no name
        rule = f"must end in {', '.join(ENDINGS)}: a page with the schedule drawn, or a list to read back"
        raise InputError("out", request.out, rule, [f"{stem}{ending}" for ending in ENDINGS])
    schedule, metrics = judged(request)
    ranks = len(schedule.ranks)
    return {
        "schema": "glass.schedule/1",
        "name": schedule.name,
        "pp": ranks,
        "micro_batches": schedule.micro_batches,
        "virtual_stages": schedule.stages // ranks,
        "placement": list(schedule.placement),
        "ranks": [schedule.written(rank) for rank in range(ranks)],
        "makespan": metrics.makespan,
        **{key: getattr(metrics, key) if ranks > 1 else None for key in PAPERS},
        "peak_live": metrics.peak_live,
        "peak_postponed": metrics.peak_postponed,
        "weights_held": metrics.weights_held,
        "messages": schedule.messages,
    }


def judged(request: ScheduleRequest) -> tuple[Schedule, Metrics]:
    """The schedule of a request and what it costs.

    Raises:
        InputError: for an unknown name, numbers that it cannot have, or a list that is no schedule.
        Deadlock: if its ranks wait for each other.
    """
    spent, schedule = _costs(request.costs), _schedule(request)
    return schedule, schedule.validate(spent["f"], spent["b"], spent["c"], spent["w"])


def _schedule(request: ScheduleRequest) -> Schedule:
    name, p, m, v = request.name, request.pp, request.micro_batches, request.virtual_stages
    if request.validate_ is not None:
        return _read(name or Path(request.validate_).name, "validate", request.validate_, p, m, v)
    if name is None:
        raise InputError("name", "", "is needed: a schedule's name, or a file with one", SCHEDULES)
    if is_own(name):
        return _read(name, "schedule", name, p, m, v)
    if p is None or m is None:
        field, what = ("pp", "pipeline ranks") if p is None else ("micro_batches", "micro-batches of a step")
        raise InputError(field, "", f"is needed: how many {what} there are, such as 4")
    return make_schedule(name, p, m, v)


def _read(name: str, option: str, path: str, p: int | None, m: int | None, v: int | None) -> Schedule:
    """A schedule file; the stages of a name that we know are ours, of any other they are counted."""
    text = read_text(option, path)
    known = name in SCHEDULES and (name not in LOOPED or v is not None)
    v = chunks(name, v) if known else v
    stages = None if v is None or p is None else p * v
    return read_schedule(name, text, p, m, stages, option=option, file=Path(path).name)


def _costs(text: str) -> dict[str, float]:
    spent = {"f": 1.0, "b": 2.0, "w": 1.0, "c": 0.0}
    given = [part.partition("=")[0] for part in text.split(",")]
    for part in text.split(","):
        key, _, value = part.partition("=")
        if given.count(key) > 1 and key in spent:
            raise InputError("costs", text, f"gives {key} twice", [text.rpartition(f",{key}=")[0]])
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if key not in spent or not 0 <= number < math.inf:
            near = str(nearest(part, [f"{k}={n:g}" for k, n in spent.items()]))
            right = ",".join(near if other == part else other for other in text.split(","))
            rule = f"{part!r} must be f=, b=, w= or c= and a finite number that is not negative"
            raise InputError("costs", text, rule, [right])
        spent[key] = number
    return spent


def summary(content: dict[str, Any]) -> list[str]:
    """What a schedule costs, in two lines."""
    said = [f"{name} {content[key]:.1%}" for key, (name, _) in PAPERS.items() if content[key] is not None]
    return [
        ", ".join([f"makespan {content['makespan']:g}", *said]),
        f"chunks live at most {content['peak_live']}, messages {content['messages']}",
    ]
