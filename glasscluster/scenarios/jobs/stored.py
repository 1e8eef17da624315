"""Commands that run no program: a stored graph replayed on other hardware, a schedule as data."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasscluster.base.errors import Deadlock, InputError, alike, nearest
from glasscluster.base.files import finish, is_file, is_folder, read_text
from glasscluster.scenarios.jobs.folders import output_folder
from glasscluster.scenarios.requests.stored import ReplayRequest, ScheduleRequest
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.recording.packed import load_packed
from glasscluster.sim.run import Run
from glasscluster.sim.time.replay import replay
from glasscluster.strategies.pipeline.schedules import LOOPED, SCHEDULES, chunks, make_schedule
from glasscluster.strategies.pipeline.schedules.notation import read_schedule

if TYPE_CHECKING:
    from glasscluster.strategies.pipeline.schedules.base import Schedule


def find_graph(run: str) -> Path:
    """The path of a run folder's graph.npz, or of the file itself; InputError where there is none."""
    path = Path(run)
    if is_file(path):
        return path
    if is_folder(path):
        finish(path)
    else:
        raise InputError("run", run, "there is no such folder or file", _nearby(path))
    if (path / "graph.npz").is_file():
        return path / "graph.npz"
    inside = sorted(str(p.parent) for p in path.glob("*/graph.npz"))
    if inside:
        raise InputError("run", run, f"holds {len(inside)} runs, name one: {', '.join(inside)}", inside)
    raise InputError("run", run, "holds no graph.npz")


def _nearby(path: Path) -> list[object]:
    """Stored runs whose name is spelled like that of a path: beside it, or in runs/."""
    places = [path.parent, *([Path("runs")] if path.parent == Path() else [])]
    places = [place for place in places if is_folder(place)]
    stored = [graph.parent for place in places for graph in place.glob("*/graph.npz")]
    stored += [file for place in places for file in place.glob("*.npz")]
    close = alike(path.name, sorted({p.name for p in stored}))
    return [str(p) for p in sorted(stored) if p.name in close]


def slow_ranks(given: list[str]) -> dict[int, float]:
    """Parse `R:FACTOR` options into rank -> factor; InputError for any other form."""
    slow = {}
    for text in given:
        match = re.fullmatch(r"(\d{1,9}):(\d+\.?\d*|\.\d+)", text, re.ASCII)
        if match is None or not 0 < float(match[2]) < math.inf:
            raise InputError("slow_rank", text, "must be RANK:FACTOR, such as 3:1.5")
        slow[int(match[1])] = float(match[2])
    return slow


def replay_command(request: ReplayRequest) -> dict[str, Any]:
    """Run `glass replay`: replay a recorded run on some hardware."""
    slow, shared = slow_ranks(request.slow_rank), request.contention
    return replay_stored(request.run, request.hardware, slow, request.rendezvous, shared, request.out)


def schedule_command(request: ScheduleRequest) -> dict[str, Any]:
    """Run `glass schedule`: a schedule by name, or one in a file, which passes or ends with exit code 1."""
    try:
        return request.prepared(schedule_of)
    except (Deadlock, InputError) as problem:
        if request.validate_ is not None and (isinstance(problem, Deadlock) or problem.field == "schedule"):
            problem.exit_code = 1  # the file was read and judged, and did not pass
        raise


def schedule_of(request: ScheduleRequest) -> dict[str, Any]:
    """The `glass.schedule/1` object of a request."""
    file, stages = request.validate_, request.virtual_stages
    return schedule_content(request.name, request.pp, request.micro_batches, request.costs, file, stages)


def replay_stored(
    run: str, hardware: str, slow: dict[int, float], rendezvous: bool, contention: bool, out: str | None
) -> dict[str, Any]:
    """The `glass.replay/1` object, with the timeline keys of `glass train`; with `out` a report is written
    too.
    """
    path = find_graph(run)
    graph = load_packed(path) if path.suffix == ".json" else ExecutionGraph.load(path)
    for rank in slow:
        if rank >= graph.ranks:
            raise InputError(
                "slow_rank", rank, f"the run has ranks 0 to {graph.ranks - 1}", range(graph.ranks)
            )
    timeline = replay(graph, hardware, slow_ranks=slow, rendezvous=rendezvous, contention=contention)
    content = {
        "schema": "glass.replay/1",
        "hardware": timeline.hardware.name,
        "gpus": graph.ranks,
        "events": len(graph),
        **timeline.summary(graph.info.get("model_flops", 0.0), graph.info.get("causal_flops")),
        "report": None,
    }
    if out is not None:
        content["report"] = str(Run.stored(timeline).report(output_folder(out, "replay") / "report.html"))
    return content


def schedule_content(
    name: str,
    ranks: int,
    micro_batches: int,
    costs: str,
    validate: str | None,
    virtual_stages: int | None = None,
) -> dict[str, Any]:
    """The `glass.schedule/1` object of a schedule by name, or of one in a file."""
    spent = _costs(costs)
    if validate is None:
        plan = make_schedule(name, ranks, micro_batches, virtual_stages)
    else:
        plan = _read(name, validate, ranks, micro_batches, virtual_stages)
    metrics = plan.validate(spent["f"], spent["b"], spent["c"], spent["w"])
    return {
        "schema": "glass.schedule/1",
        "name": name,
        "pp": ranks,
        "micro_batches": micro_batches,
        "virtual_stages": plan.stages // ranks,
        "placement": list(plan.placement),
        "ranks": [plan.written(rank) for rank in range(ranks)],
        "makespan": metrics.makespan,
        "bubble_fraction": metrics.bubble_fraction,
        "bubble_over_ideal": metrics.bubble_over_ideal,
        "stage_span_bubble_fraction": metrics.stage_span_bubble_fraction,
        "peak_live": metrics.peak_live,
        "peak_postponed": metrics.peak_postponed,
        "weights_held": metrics.weights_held,
        "messages": plan.messages,
    }


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


def _read(name: str, path: str, ranks: int, micro_batches: int, virtual_stages: int | None) -> Schedule:
    """A schedule file; the stages of a name that we know are ours, of any other they are counted."""
    text = read_text("validate", path)
    known = name in SCHEDULES and (name not in LOOPED or virtual_stages is not None)
    v = chunks(name, virtual_stages) if known else virtual_stages
    return read_schedule(name, text, ranks, micro_batches, None if v is None else ranks * v)
