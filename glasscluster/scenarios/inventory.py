"""What there is: the lessons and how to teach them, and every name that an option takes.

Everything here is read from texts and tables: no lesson's program is imported, and no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.base.files import write_text
from glasscluster.model.presets import PRESETS
from glasscluster.scenarios.built_in import TITLES
from glasscluster.scenarios.lesson import LESSONS, find_lesson
from glasscluster.scenarios.new_lesson import new_lesson
from glasscluster.scenarios.requests.scenarios import LessonsRequest
from glasscluster.scenarios.teaching_plan import plan_as_json, printable
from glasscluster.sim.time.hardware import CATALOGUE, Hardware
from glasscluster.strategies.pipeline.schedules import SCHEDULES

BACKEND_NOTES = {  # every backend of sim.run, in words
    "ray": "Ray actors, real tensors, messages over gloo (NCCL with --device cuda)",
    "threads": "threads of this process, real tensors, deadlocks seen at once",
    "torchrun": "processes started by torchrun, gloo or NCCL",
    "dry": "shapes only; what `glass predict` uses",
}


def lessons_command(request: LessonsRequest) -> dict[str, Any]:
    """`glass lessons`: all of them, how to teach one, or the skeleton of a new one."""
    if request.new is not None:
        return lesson_skeleton(request.new, request.out)
    if request.plan is None:
        return lesson_list()
    content = lesson_plan(request.plan)
    if request.out.endswith(".html"):
        write_text(Path(request.out), printable(find_lesson(content["lesson"])))
    return content


def lesson_list() -> dict[str, Any]:
    """The `glass.lessons/1` object, from the lessons' text files alone."""
    rows = [find_lesson(id_) for id_ in LESSONS]
    content = [
        {
            "id": row.id,
            "title": row.title.en,
            "title_zh": row.title.zh,
            "topic": row.topic.en,
            "question": row.question.en,
        }
        for row in rows
    ]
    return {"schema": "glass.lessons/1", "lessons": content}


def lesson_plan(id_: str) -> dict[str, Any]:
    """A teaching plan for one lesson: fifty minutes with a class."""
    if id_.upper() not in LESSONS:
        raise InputError("plan", id_, "unknown lesson", list(LESSONS))
    return plan_as_json(find_lesson(id_.upper()))


def lesson_skeleton(name: str, out: str) -> dict[str, Any]:
    """The `glass.lesson-skeleton/1` object: where a new lesson was written."""
    return {"schema": "glass.lesson-skeleton/1", "folder": str(new_lesson(name, Path(out)))}


def inventory() -> dict[str, Any]:
    """The `glass.list/1` object."""
    return {
        "schema": "glass.list/1",
        "scenarios": {name: title.en for name, title in TITLES.items()},
        "lessons": {id_: find_lesson(id_).title.en for id_ in LESSONS},
        "models": {k: ", ".join(f"{a} {b}" for a, b in v.items()) for k, v in PRESETS.items()},
        "hardware": {h.name: described(h) for h in CATALOGUE.values()},
        "schedules": dict.fromkeys(SCHEDULES, ""),
        "backends": BACKEND_NOTES,
    }


def described(hardware: Hardware) -> str:
    """Describe a machine in one line."""
    within, between = hardware.intra.name, hardware.inter.name
    return f"{hardware.gpu.name}, {hardware.node_size} a node by {within}; between nodes {between}"
