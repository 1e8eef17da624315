"""The examples in docstrings of the public API run, and every public docstring has what a reader looks up."""

from __future__ import annotations

import doctest
import importlib
import inspect

import pytest

from glasscluster.sim.ranks.collectives.registry import ALGORITHMS
from glasscluster.strategies.pipeline.schedules import registry

# What a reader of docs/api meets first: its methods, properties and functions are all described in full.
PUBLIC = {
    "glasscluster.sim.run": ["Cluster", "Run"],
    "glasscluster.sim.ranks.communicator": ["Communicator"],
    "glasscluster.sim.ranks.gpu": ["GPU"],
    "glasscluster.sim.ranks.mesh": ["Mesh"],
    "glasscluster.sim.ranks.collectives.registry": ["collective", "theory_of"],
    "glasscluster.sim.recording.graph": ["ExecutionGraph"],
    "glasscluster.sim.time.hardware": ["Hardware", "hardware"],
    "glasscluster.sim.time.replay": ["replay"],
    "glasscluster.sim.time.timeline": ["Timeline"],
    "glasscluster.model.config": ["ModelConfig"],
    "glasscluster.strategies.plan": ["Plan", "make_plan", "make_model"],
    "glasscluster.strategies.pipeline.schedules": ["make_schedule"],
    "glasscluster.strategies.pipeline.schedules.base": ["Schedule"],
    "glasscluster.strategies.pipeline.schedules.registry": ["scheduled"],
    "glasscluster.scenarios.lab": ["Lab"],
}
# Classes each of whose methods has an example of its own.
EXAMPLES = {"Cluster", "Run", "Communicator", "Timeline", "Plan"}
NAMES = [f"{module}:{name}" for module, names in PUBLIC.items() for name in names]


def described(name: str) -> dict[str, object]:
    """A public object, and what is public in it if it is a class: by name as a reader writes it."""
    module, _, inside = name.partition(":")
    thing = getattr(importlib.import_module(module), inside)
    parts = vars(thing).items() if inspect.isclass(thing) else []
    own = {f"{inside}.{n}": v for n, v in parts if not n.startswith("_") and described_here(v)}
    return {inside: thing, **own}


def described_here(part: object) -> bool:
    own = inspect.isfunction(part) or isinstance(part, classmethod | staticmethod)
    return own and getattr(part, "__name__", "") != "<lambda>"  # a field's default


@pytest.mark.parametrize("module", PUBLIC)
def test_the_examples_run(module, monkeypatch):
    for operation, known in ALGORITHMS.items():  # what an example registers is gone afterwards
        monkeypatch.setitem(ALGORITHMS, operation, dict(known))
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    tests = [
        t
        for t in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module))
        if t.examples
    ]
    assert tests, f"{module} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        test.globs = {}  # what a reader copies must run by itself
        said: list[str] = []
        assert runner.run(test, out=said.append).failed == 0, "".join(said)


@pytest.mark.parametrize("name", NAMES)
def test_a_public_docstring_has_arguments_results_and_an_example(name):
    every = described(name)
    first, *_ = every
    assert ">>> " in (inspect.getdoc(every[first]) or ""), f"{first} has no example"
    for title, thing in every.items():
        function = getattr(thing, "__func__", thing)
        text = inspect.getdoc(function)
        assert text, f"{title} has no docstring"
        if not inspect.isfunction(function):
            continue
        if first in EXAMPLES:
            assert ">>> " in text, f"{title} has no example"
            raises = "raise " in inspect.getsource(function).replace(function.__doc__ or "", "")
            assert not raises or "Raises:" in text, f"{title} does not say which errors it raises"
        signature = inspect.signature(function)
        wanted = [n for n in signature.parameters if n not in ("self", "cls")]
        if wanted:
            assert "Args:" in text, f"{title} does not say what its arguments are"
            missing = [n for n in wanted if f"{n}:" not in text and f"{n}," not in text]
            assert not missing, f"{title} does not say what {missing} are"
        returns = signature.return_annotation not in ("None", None)
        if returns and (wanted or first in EXAMPLES):
            assert "Returns:" in text, f"{title} does not say what it returns"
