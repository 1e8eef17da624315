"""`glass doctor --model`: how each key of a config.json is read, and whether the weights beside it fit."""

from __future__ import annotations

from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.model.config import ModelConfig
from glasscluster.model.weights import hugging_face
from glasscluster.model.weights.families import (
    FAMILIES,
    Family,
    KeyRefused,
    WeightsError,
    config_file,
    json_object,
)


def examine_model(path: str) -> dict[str, Any]:
    """The `glass.doctor-model/1` object of a config.json, or of the one in a folder.

    Raises:
        InputError: for a file that cannot be read.
    """
    file = config_file(path)
    try:
        content = json_object("model", file)
    except WeightsError as problem:
        raise InputError("model", path, str(problem)) from None
    report: dict[str, Any] = {
        "schema": "glass.doctor-model/1",
        "config": str(file),
        "model_type": content.get("model_type"),
        "architecture": None,
        "ok": False,
        "parameters": None,
        "model": None,
        "recognised": [],
        "refused": [],
        "refused_weights": [],
        "unknown": [],
        "harmless": [],
        "weights": None,
    }
    family = FAMILIES.get(str(content.get("model_type")))
    if family is None:
        known = f"known are {', '.join(FAMILIES)}"
        return {**report, "refused": [as_row(KeyRefused("model_type", content.get("model_type"), known))]}
    config = look(family, content, report)
    files = (file.parent / hugging_face.FILE, file.parent / hugging_face.INDEX)
    if config is not None and any(f.exists() for f in files):
        report["weights"] = weigh(str(file.parent))
        report["ok"] = report["weights"]["ok"]
    return report


def as_row(problem: KeyRefused) -> dict[str, Any]:
    """A refused key, its value and the reason."""
    return {"key": problem.key, "value": problem.value, "why": problem.why}


def look(family: Family, content: dict[str, Any], report: dict[str, Any]) -> ModelConfig | None:
    """Fill in what the keys say; the model, if all of it can be read."""
    reading = family.read(content)
    own = family.by_own_names(content)
    report["architecture"] = family.architecture
    report["recognised"] = [
        {"key": key, "value": own.get(key), "means": means} for key, means in reading.recognised.items()
    ]
    report["refused"] = [as_row(problem) for problem in reading.refused]
    report["refused_weights"] = [as_row(problem) for problem in reading.refused_weights]
    report["unknown"] = [{"key": key, "value": own[key]} for key in reading.unknown]
    report["harmless"] = reading.harmless
    if reading.refused:
        return None
    try:
        config = family.to_config(content)
    except KeyRefused as problem:
        report["refused"] = [as_row(problem)]
        return None
    except InputError as problem:
        report["refused"] = [{"key": problem.field, "value": problem.value, "why": problem.rule}]
        return None
    report |= {"ok": True, "parameters": config.parameters(), "model": config.model_dump(mode="json")}
    return config


def weigh(folder: str) -> dict[str, Any]:
    """Whether the tensors beside a config.json are those of its model; names and shapes alone are read."""
    try:
        with hugging_face.Weights(folder) as weights:
            layout = weights.layout
            return {
                "ok": True,
                "tensors": len(layout.theirs),
                "passed_over": weights.passed_over,
                "why": None,
            }
    except WeightsError as problem:
        return {"ok": False, "tensors": None, "passed_over": [], "why": str(problem)}
