"""`glass replay`: a stored graph on other hardware. No program runs."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from glasscluster.base.errors import GlassError, InputError, alike
from glasscluster.base.files import finish, is_file, is_folder
from glasscluster.base.requests import rule_of
from glasscluster.base.text import shown
from glasscluster.model.config import ModelConfig
from glasscluster.scenarios.jobs.folders import output_folder
from glasscluster.scenarios.requests.stored import ReplayRequest
from glasscluster.sim.recording.graph import ExecutionGraph, compute_rows
from glasscluster.sim.recording.packed import load_packed
from glasscluster.sim.run import Run
from glasscluster.sim.time.replay import replay
from glasscluster.sim.time.timeline import Timeline


def launches(timeline: Timeline) -> dict[str, Any]:
    """How many kernels the rank that finishes last starts, and the seconds that starting them takes."""
    kernels = len(compute_rows(timeline.graph, timeline.last_rank()))
    return {"kernels": kernels, "launch_s": kernels * timeline.hardware.gpu.launch_s}


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


def check_flops(graph: ExecutionGraph, said: dict[str, Any], path: Path) -> None:
    """Refuse a file that says of its model what cannot be.

    Args:
        graph: what the file holds; `info` may have the model's shape, the tokens of a step and the FLOPs that
            follow from both.
        said: the timeline's summary.
        path: the file.

    Raises:
        InputError: the FLOPs are not those of the model, or more than all GPUs can do in the makespan.
    """
    model, tokens = graph.info.get("model"), graph.info.get("tokens")
    if isinstance(model, dict) and isinstance(tokens, int):
        try:
            shape = ModelConfig(**model)
        except ValidationError as problem:
            first = problem.errors()[0]
            key = shown(".".join(map(str, first["loc"])) or "model")
            rule = f"info holds no model: {key}: {shown(rule_of(first))}"
            raise InputError("graph", str(path), rule) from None
        except (GlassError, TypeError) as problem:  # TypeError: a key that is no text
            raise InputError("graph", str(path), f"info holds no model: {shown(problem)}") from None
        for name in ("model_flops", "causal_flops"):
            right = getattr(shape, name)(tokens)
            if graph.info.get(name, right) != right:
                rule = f"info says {name} = {graph.info[name]:g}; a step of its model needs {right:g}"
                raise InputError("graph", str(path), rule)
    elif said["mfu"] > 1:  # nothing says whose FLOPs these are
        rule = f"needs, by what info says, {said['mfu']:.3g} times the FLOPs that its GPUs can do in its time"
        raise InputError("graph", str(path), rule)


def replay_command(request: ReplayRequest) -> dict[str, Any]:
    """Run `glass replay`: replay a recorded run on some hardware."""
    slow, shared = slow_ranks(request.slow_rank), request.contention
    return replay_stored(request.run, request.hardware, slow, request.rendezvous, shared, request.out)


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
    said = timeline.summary(graph.info.get("model_flops", 0.0), graph.info.get("causal_flops"))
    check_flops(graph, said, path)
    content = {
        "schema": "glass.replay/1",
        "hardware": timeline.hardware.name,
        "gpus": graph.ranks,
        "events": len(graph),
        **said,
        **launches(timeline),
        "report": None,
    }
    if out is not None:
        content["report"] = str(Run.stored(timeline).report(output_folder(out, "replay") / "report.html"))
    return content
