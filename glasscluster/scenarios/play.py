"""`glass run` and `glass list`: find a scenario, read its options, perform it, write its folder."""

from __future__ import annotations

import time
from inspect import Parameter
from pathlib import Path
from typing import Any, get_args

from glasscluster.base.errors import GlassError, InputError
from glasscluster.scenarios.built_in import TITLES
from glasscluster.scenarios.find import find
from glasscluster.scenarios.lab import Lab, Say, Scenario, perform
from glasscluster.scenarios.lesson import LESSONS, find_lesson, teaching_plan
from glasscluster.scenarios.new_lesson import new_lesson

TRUTH = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


BACKEND_NOTES = {  # every backend of sim.run, in words
    "ray": "Ray actors, real tensors, messages over gloo (NCCL with --device cuda)",
    "threads": "threads of this process, real tensors, deadlocks seen at once",
    "torchrun": "processes started by torchrun, gloo or NCCL",
    "dry": "shapes only; what `glass predict` uses",
}


def read_options(play: Scenario, words: list[str]) -> dict[str, Any]:
    """`--gpus 8 --fast --no-check` as keyword arguments of the scenario's function, by its signature."""
    given: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, _, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        negated = name.startswith("no_") and name not in play.options
        name = name.removeprefix("no_") if negated else name
        if not word.startswith("--") or name not in play.options:
            raise InputError(word, value, f"{play.name} has no such option", ["--" + n.replace("_", "-") for n in play.options])
        kind = _kind(play.options[name])
        if kind is bool and not value and (not rest or rest[0].startswith("--")):
            given[name] = not negated
            continue
        if not value:
            if not rest:
                raise InputError(word, "", "needs a value")
            value = rest.pop(0)
        given[name] = _convert(name, value, kind)
    missing = [n for n, p in play.options.items() if p.default is Parameter.empty and n not in given]
    if missing:
        raise InputError(missing[0], "", f"{play.name} needs --{missing[0].replace('_', '-')}")
    return given


def _kind(option: Parameter) -> type:
    kinds = [k for k in get_args(option.annotation) if k is not type(None)] or [option.annotation]
    if kinds[0] in (int, float, bool, str):
        return kinds[0]
    return type(option.default) if isinstance(option.default, (int, float, bool)) else str


def _convert(name: str, value: str, kind: type) -> Any:
    if kind is bool:
        if value.lower() not in TRUTH:
            raise InputError(name, value, "must be true or false", ["true", "false"])
        return TRUTH[value.lower()]
    try:
        return kind(value)
    except ValueError:
        raise InputError(name, value, f"must be a number ({kind.__name__})") from None


def help_text(name: str) -> str:
    """The story and the options of a scenario."""
    play = find(name)
    lines = [f"glass run {name}: {play.title.en} · {play.title.zh}", "", play.story, "", "Options:"]
    for option, parameter in play.options.items():
        default = "needed" if parameter.default is Parameter.empty else f"default {parameter.default}"
        lines.append(f"  --{option.replace('_', '-'):20} {_kind(parameter).__name__:6} {default}")
    lines.append("and --backend --device --seed --hardware --timeout --out --json, as in `glass run --help`")
    return "\n".join(lines)


def play(
    name: str,
    words: list[str],
    *,
    backend: str | None,
    device: str,
    seed: int,
    hardware: str | None,
    timeout_s: float | None,
    out: str | None,
    say: Say,
) -> tuple[Lab, Path | None, float]:
    """Perform a scenario and write its folder; returns the lab, the report's path and the wall seconds."""
    from glasscluster.scenarios.jobs.training import keep_partial, leads, output_folder
    from glasscluster.sim.time.hardware import hardware as look_up

    begun = time.perf_counter()
    chosen = find(name)
    options = read_options(chosen, words)
    lab = Lab(
        chosen,
        backend or chosen.backend,
        hardware or chosen.hardware,
        device,
        seed,
        timeout_s,
        say,
    )
    look_up(lab.hardware)
    folder = output_folder(out, chosen.name) if leads() else None
    try:
        perform(chosen, lab, options)
    except GlassError as error:
        if folder is not None:
            keep_partial(folder, error, {"scenario": chosen.name, "backend": lab.backend, "seed": seed}, say)
        raise
    if folder is None:
        return lab, None, time.perf_counter() - begun
    say(f"writing {folder}/report.html")
    return lab, lab.write(folder), time.perf_counter() - begun


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
    """Fifty minutes with a class."""
    if id_.upper() not in LESSONS:
        raise InputError("plan", id_, "unknown lesson", list(LESSONS))
    beats = teaching_plan(find_lesson(id_.upper()))
    plan = [{"minutes": minutes, "en": text.en, "zh": text.zh} for minutes, text in beats]
    return {"schema": "glass.lesson-plan/1", "lesson": id_.upper(), "plan": plan}


def lesson_skeleton(name: str, out: str) -> dict[str, Any]:
    """The `glass.lesson-skeleton/1` object: where a new lesson was written."""
    folder = new_lesson(name, Path(out))
    return {"schema": "glass.lesson-skeleton/1", "folder": str(folder)}


def inventory() -> dict[str, Any]:
    """The `glass.list/1` object."""
    from glasscluster.model.config import PRESETS
    from glasscluster.sim.time.hardware import CATALOGUE
    from glasscluster.strategies.pipeline.schedules import SCHEDULES

    return {
        "schema": "glass.list/1",
        "scenarios": {name: title.en for name, title in TITLES.items()},
        "lessons": {id_: find_lesson(id_).title.en for id_ in LESSONS},
        "models": {k: ", ".join(f"{a} {b}" for a, b in v.items()) for k, v in PRESETS.items()},
        "hardware": {
            h.name: f"{h.gpu.name}, {h.node_size} a node by {h.intra.name}; between nodes {h.inter.name}" for h in CATALOGUE.values()
        },
        "schedules": dict.fromkeys(SCHEDULES, ""),
        "backends": BACKEND_NOTES,
    }
