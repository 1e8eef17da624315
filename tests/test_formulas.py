"""docs/formulas.md is what the file of formulas says, and that file is what the code does."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
from pathlib import Path
from typing import Any

import pytest

from glasscluster.base.link import Link
from glasscluster.model.config import ModelConfig
from glasscluster.sim.time.hardware import hardware
from glasscluster.strategies.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
CITED = re.compile(r"\bEq (\d+)")
OLD = re.compile(
    r"(?<![0-9A-Za-z_#])F([26-9]|[1-3]\d|4[01])(?![0-9A-Za-z_])"
)  # F1, F3, F4 and F5 are lessons


def _maker() -> Any:
    spec = importlib.util.spec_from_file_location("make_formulas", ROOT / "docs" / "make_formulas.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


maker = _maker()
FORMULAS: list[dict[str, Any]] = maker.read()
EXAMPLES = [(f["number"], e) for f in FORMULAS for e in f.get("example", [])]
FUNCTIONS = {name for f in FORMULAS for name in f["computed"]} | {e["function"] for _, e in EXAMPLES}
KINDS = (".py", ".md", ".toml", ".js", ".html")


def _files() -> list[Path]:
    places = [ROOT / name for name in ("glasscluster", "tests", "benchmarks", "docs")]
    found = [p for place in places for p in place.rglob("*") if p.suffix in KINDS]
    return [p for p in [*found, *ROOT.glob("*.md")] if "vendor" not in p.parts]


def find(name: str) -> Any:
    """The function behind `package.module:function` or `package.module:Class.method`."""
    module, _, path = name.partition(":")
    thing: Any = importlib.import_module(module)
    for part in path.split("."):
        thing = getattr(thing, part)
    return thing


def test_there_are_forty_two_formulas_in_order():
    assert [f["number"] for f in FORMULAS] == list(range(1, 43))


def test_each_formula_says_what_a_reader_looks_up():
    for f in FORMULAS:
        assert f["match"] in ("exact", "virtual", "statistical"), f["number"]
        assert all(f[key].strip() for key in ("name", "domain", "source")), f["number"]
        assert f["text"], f["number"]
        assert all(": " in s for s in f["symbols"]), f["number"]
        assert bool(f["computed"]) != bool(f.get("not_yet")), f["number"]


def test_the_page_is_what_the_file_of_formulas_says():
    written = (ROOT / "docs" / "formulas.md").read_text(encoding="utf-8")
    assert written == maker.page(), "docs/formulas.md is old: python docs/make_formulas.py"


def test_every_citation_is_of_a_formula_that_is_there():
    known = {str(f["number"]) for f in FORMULAS}
    wrong = [
        f"{path.relative_to(ROOT)}: Eq {number}"
        for path in _files()
        for number in CITED.findall(path.read_text(encoding="utf-8"))
        if number not in known
    ]
    assert not wrong


def test_no_formula_is_cited_by_its_old_name():
    mine = {Path(__file__).resolve(), ROOT / "docs" / "make_formulas.py"}
    assert not [
        f"{path.relative_to(ROOT)}: {found[0]}"
        for path in _files()
        if path.resolve() not in mine and (found := OLD.search(path.read_text(encoding="utf-8")))
    ]


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_a_formula_names_a_function_that_exists(name):
    found = find(name)
    assert callable(found) or isinstance(found, property)


@pytest.mark.parametrize("example", [pytest.param(e, id=f"Eq {n}: {e['call']}") for n, e in EXAMPLES])
def test_a_formula_and_its_function_give_the_same_number(example):
    module, _, path = example["function"].partition(":")
    first, last = path.split(".")[0], path.split(".")[-1]
    assert first in example["call"], "the call must use the function that the example names"
    assert last in example["call"], "the call must use the function that the example names"
    tools = {name: getattr(math, name) for name in ("ceil", "log", "log2", "sqrt")}
    shared = {"ModelConfig": ModelConfig, "Link": Link, "Plan": Plan, "hardware": hardware}
    for values in example["values"]:
        names = {**tools, **shared, **values, first: getattr(importlib.import_module(module), first)}
        said, got = eval(example["formula"], names), eval(example["call"], names)
        assert got == pytest.approx(said, rel=1e-12), values
