"""What there is: the lessons and how to teach them, and every name that an option takes."""

from __future__ import annotations

from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.model.config import PRESETS
from glasscluster.scenarios.lab import BUILT_IN, find
from glasscluster.scenarios.lesson import LESSONS, find_lesson, teaching_plan
from glasscluster.scenarios.requests.scenarios import LessonsRequest
from glasscluster.sim.time.hardware import CATALOGUE, Hardware
from glasscluster.strategies.pipeline.schedules import SCHEDULES


def lessons_command(request: LessonsRequest) -> dict[str, Any]:
    """`glass lessons`: all of them, or how to teach one."""
    return lesson_list() if request.plan is None else lesson_plan(request.plan)


def lesson_list() -> dict[str, Any]:
    """The `glass.lessons/1` object."""
    rows = [find_lesson(i) for i in LESSONS]
    found = [
        {
            "id": x.id,
            "title": x.title[0],
            "title_zh": x.title[1],
            "topic": x.topic[0],
            "question": x.question[0],
        }
        for x in rows
    ]
    return {"schema": "glass.lessons/1", "lessons": found}


def lesson_plan(id_: str) -> dict[str, Any]:
    """Fifty minutes with a class."""
    if id_.upper() not in LESSONS:
        raise InputError("plan", id_, "unknown lesson", list(LESSONS))
    plan = [{"minutes": m, "en": en, "zh": zh} for m, (en, zh) in teaching_plan(find_lesson(id_.upper()))]
    return {"schema": "glass.lesson-plan/1", "lesson": id_.upper(), "plan": plan}


def inventory() -> dict[str, Any]:
    """The `glass.list/1` object."""
    backends = {
        "ray": "Ray actors, real tensors, messages over gloo (NCCL with --device cuda)",
        "threads": "threads of this process, real tensors, deadlocks seen at once",
        "torchrun": "processes started by torchrun, gloo or NCCL",
        "dry": "shapes only; what `glass predict` uses",
    }
    return {
        "schema": "glass.list/1",
        "scenarios": {name: find(name).title[0] for name in BUILT_IN},
        "lessons": {i: find_lesson(i).title[0] for i in LESSONS},
        "models": {k: ", ".join(f"{a} {b}" for a, b in v.items()) for k, v in PRESETS.items()},
        "hardware": {h.name: described(h) for h in CATALOGUE.values()},
        "schedules": dict.fromkeys(SCHEDULES, ""),
        "backends": backends,
    }


def described(hardware: Hardware) -> str:
    """A machine in a line."""
    within, between = hardware.intra.name, hardware.inter.name
    return f"{hardware.gpu.name}, {hardware.node_size} a node by {within}; between nodes {between}"
