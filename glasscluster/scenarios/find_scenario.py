"""Find a scenario: a built-in one or a lesson by name, one in a file, a lesson in a folder.

This is the registry of scenarios: it imports the one that is requested, and no other.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib import import_module
from pathlib import Path

from glasscluster.base.errors import InputError
from glasscluster.base.files import is_file
from glasscluster.scenarios.lesson import LESSONS, taught_lesson
from glasscluster.scenarios.scenario import REGISTRY, Scenario

MODULES = {
    "tour": "glasscluster.scenarios.tour",
    "async_servers": "glasscluster.scenarios.async_servers",
    "diloco": "glasscluster.scenarios.diloco",
    "zoo": "glasscluster.scenarios.zoo.zoo",
    "preference": "glasscluster.scenarios.preference",
    "emergency_room": "glasscluster.scenarios.emergency_room.emergency_room",
    "captions": "glasscluster.scenarios.captions",
}


def find(name: str) -> Scenario:
    """A built-in scenario or lesson by name, or the one in a file, or in a lesson's folder."""
    if name.endswith(".py"):
        return _from_file(Path(name))
    if is_file(Path(name) / "program.py"):
        return _from_file(Path(name) / "program.py")
    if name.upper() in LESSONS:
        return taught_lesson(name.upper())
    if name in MODULES:
        import_module(MODULES[name])
        return REGISTRY[name]
    raise InputError("scenario", name, "unknown scenario, and not a .py file", [*MODULES, *LESSONS])


def _from_file(path: Path) -> Scenario:
    if not is_file(path):
        raise InputError("scenario", str(path), "there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # so that pickling a program of this file finds it
    try:
        spec.loader.exec_module(module)
    except InputError:
        raise
    except (Exception, SystemExit) as problem:  # a file that exits did not say what its scenario is
        reason = f"the file fails on import: {type(problem).__name__}: {problem}"
        raise InputError("scenario", str(path), reason) from None
    new = [name for name, scenario in REGISTRY.items() if scenario.function.__globals__ is module.__dict__]
    if len(new) != 1:
        rule = f"the file must hold one function decorated with @scenario(...) or @lesson, it has {len(new)}"
        raise InputError("scenario", str(path), rule)
    return REGISTRY[new[0]]
