"""What all commands share: options made from requests, requests from files, and a quick `--help`."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from test_cli import LESSON, glass

from glasscluster.base.errors import InputError
from glasscluster.base.requests import Request
from glasscluster.base.text import Said
from glasscluster.cli import main
from glasscluster.commands.app import app
from glasscluster.commands.bodies import BODIES, body
from glasscluster.model.config import ModelConfig
from glasscluster.scenarios.lab import Lab, perform
from glasscluster.scenarios.requests.predict import PredictRequest
from glasscluster.scenarios.requests.train import TrainRequest
from glasscluster.scenarios.scenario import Scenario
from glasscluster.strategies.plan import PARTS, Plan

COMMANDS = Path(import_module("glasscluster.commands").__path__[0])
HEAVY = ("torch", "ray", "numpy", "numba", "networkx", "plotly", "jinja2", "safetensors")
SHAPE = {"layers": 2, "hidden": 32, "heads": 2, "seq": 16}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def panels(name: str) -> dict[str, list[str]]:
    """Headings of a command's help -> the options below them."""
    found: dict[str, list[str]] = {}
    for option in typer.main.get_command(app).commands[name].params:  # type: ignore[attr-defined]
        found.setdefault(getattr(option, "rich_help_panel", None) or "Options", []).append(str(option.name))
    return found


def ask(**values: Any) -> str:
    """A file with a request."""
    Path("request.json").write_text(json.dumps(values))
    return "request.json"


# ---- quick -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("words", ["--help", "train --help", "collective --help", "lessons"])
def test_help_and_lists_bring_no_torch(words):
    script = (
        "import sys\nfrom glasscluster.cli import main\n"
        f"try:\n    main({words.split()})\n"
        f"except SystemExit:\n    print(sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    brought = done.stderr.strip().splitlines()[-1]
    if "--help" in words:
        assert brought == "[]"
    assert "torch" not in brought
    assert "plotly" not in brought


def test_only_the_registry_imports_by_name_and_no_command_imports_our_modules_late():
    for path in COMMANDS.glob("*.py"):
        tree = ast.parse(path.read_text())
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
        late = [n for f in functions for n in ast.walk(f) if isinstance(n, (ast.Import, ast.ImportFrom))]
        assert not [n for n in late if "glasscluster" in ast.unparse(n)], path
        assert path.name == "bodies.py" or "import_module" not in path.read_text(), path


@pytest.mark.parametrize("name", BODIES)
def test_every_body_is_there(name):
    assert callable(body(name))


# ---- help --------------------------------------------------------------------------------------------
def test_train_shows_twenty_options_first_and_the_others_under_the_part_that_owns_them():
    shown = panels("train")
    assert next(iter(shown)) == "Options"
    first = [*(TrainRequest.first or ()), "json"]
    assert len(first) == 20
    assert shown["Options"] == [*first[:-1], "request", "json"]
    for part in PARTS:
        rest = set(part.model_fields) - set(first)
        assert rest <= set(shown.get(str(part.model_config["title"]), [])), part


def test_every_field_of_a_model_stands_in_one_group_of_its_options():
    listed = [name for names in ModelConfig.groups.values() for name in names]
    assert sorted(listed) == sorted(ModelConfig.model_fields)


def test_every_field_of_a_plan_and_of_a_model_is_an_option_of_train_and_predict():
    for request in (TrainRequest, PredictRequest):
        assert {*Plan.model_fields, *ModelConfig.model_fields} <= set(request.names())


def test_help_shows_the_names_that_can_be_chosen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    text = glass(capsys, "train", "--help")[1]
    for word in ("[none | optimizer]", "[default: runs/NAME-N]"):
        assert word in text


# ---- JSON in -----------------------------------------------------------------------------------------
def test_a_request_from_a_file_says_the_same_as_options_and_the_command_line_wins(capsys):
    line = "predict --dp 2 --zero 2 --layers 2 --hidden 32 --heads 2 --seq 16 --bucket 1KiB"
    typed = json.loads(glass(capsys, *line.split(), "--layers-per-stage", "2", "--json")[1])
    file = ask(**SHAPE, dp=2, zero=1, bucket="1KiB", layers_per_stage=[2], **{"global-batch": None})
    code, out, _ = glass(capsys, "predict", "--request", file, "--zero", "2", "--json")
    read = json.loads(out)
    assert code == 0
    assert {**typed, "wall_s": 0} == {**read, "wall_s": 0}
    other = json.loads(glass(capsys, "predict", "--request", file, "--json")[1])
    assert other["memory_gib"] != typed["memory_gib"]


def test_what_a_file_holds_is_not_needed_on_the_command_line(capsys, monkeypatch):
    typed = json.loads(glass(capsys, *"schedule zb-v --pp 2 --micro-batches 4 --json".split())[1])
    file = ask(name="zb-v", pp=2, micro_batches=4)
    assert json.loads(glass(capsys, "schedule", "--request", file, "--json")[1]) == typed
    monkeypatch.setattr(sys, "stdin", io.StringIO(Path(file).read_text()))
    assert json.loads(glass(capsys, "schedule", "--json", "--request", "-")[1]) == typed
    Path("text.txt").write_text("the cat the cat")
    glass(capsys, "tokenize", "train", "--request", ask(files=["text.txt"], vocab=258))
    typed = json.loads(glass(capsys, *"tokenize decode 65 66 --json".split())[1])
    numbers = ask(tokens=[65, 66])
    assert json.loads(glass(capsys, "tokenize", "decode", "--request", numbers, "--json")[1]) == typed


def test_a_file_holds_the_options_of_a_scenario_too(capsys):
    Path("mine.py").write_text(LESSON)
    file = ask(gpus=4, size=7, out="here")
    code, out, _ = glass(capsys, "run", "mine.py", "--request", file, "--size", "9", "--json")
    said = json.loads(out)
    assert code == 0
    assert said["runs"][0]["gpus"] == 4
    assert said["checks"][0]["counted"] == 2 * 3 * 9 * 4
    assert Path("here/report.html").is_file()
    code, out, _ = glass(capsys, "run", "mine.py", "--request", ask(sizes=3), "--json")
    assert (code, json.loads(out)["nearest"]) == (2, "size")


@pytest.mark.parametrize(
    ("text", "field", "nearest"),
    [
        ('{"hiden": 32}', "hiden", "hidden"),
        ('{"zero": 4}', "zero", 3),
        ('{"dp": "two"}', "dp", None),
        ('{"bucket": "3MX"}', "bucket", "3MB"),
        ('{"plan": {"dp": 2}}', "plan", None),
        ("[1]", "request", None),
        ("{", "request", None),
    ],
)
def test_a_bad_request_is_exit_2_and_names_the_field_and_the_nearest(text, field, nearest, capsys):
    Path("request.json").write_text(text)
    code, out, err = glass(capsys, "predict", "--request", "request.json", "--json")
    said = json.loads(out)
    assert (code, said["field"]) == (2, field)
    assert nearest in (None, said["nearest"])
    assert "Traceback" not in err


# ---- requests in Python ------------------------------------------------------------------------------
def test_a_request_is_flat_outside_and_made_of_parts_inside():
    asked = TrainRequest.of(dp=2, layers=2, steps=1, memory="1KiB", timeout="2ms")
    assert (asked.plan.dp, asked.shape.layers, asked.steps) == (2, 2, 1)  # type: ignore[union-attr]
    assert (asked.memory, asked.timeout) == (1024, 2e-3)
    assert asked.given == {"dp": 2, "layers": 2, "steps": 1, "memory": "1KiB", "timeout": "2ms"}
    with pytest.raises(InputError) as wrong:
        TrainRequest.of(pp=5)
    assert (wrong.value.field, wrong.value.nearest) == ("pp", 4)


def test_nothing_is_asked_twice():
    def below(cls: type[Request]) -> list[type[Request]]:
        return [cls, *(c for sub in cls.__subclasses__() for c in below(sub))]

    for request in below(Request):
        assert len(request.names()) == len(set(request.names())), request


def test_a_scenario_computes_with_one_thread_and_the_caller_keeps_its_own(tmp_path):
    """Two threads on a busy machine spin for each other: a lesson took ten times as long."""
    seen = []

    def count(lab):
        seen.append(torch.get_num_threads())

    counts = Scenario("counts", count, Said("Threads", "线程"))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        perform(counts, Lab(counts, "threads", "classroom"), {})
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import sys\nsys.exit(0)\n", "fails on import: SystemExit"),
        ("@scenario('../../x')\ndef f(lab):\n    pass\n", "is also the name of a folder"),
        ("@scenario('a' * 5000)\ndef f(lab):\n    pass\n", "is also the name of a folder"),
        (
            "@scenario('mine')\ndef f(lab):\n    g()\ndef g():\n    return 1 / 0\n",
            "ZeroDivisionError: division by zero",
        ),
        ("@scenario('mine')\ndef f(lab):\n    import sys\n    sys.exit(0)\n", "raised SystemExit"),
    ],
)
def test_a_scenario_of_somebody_s_own_that_fails_is_named_with_its_line(tmp_path, capsys, body, words):
    path = tmp_path / "mine.py"
    path.write_text("from glasscluster.scenarios.lab import scenario\n" + body)
    with pytest.raises(SystemExit) as end:
        main(["run", str(path), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert end.value.code == (3 if "raised" in said else 2)
    assert words in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) <= 2, "the command's name, and one line"
    assert not (tmp_path / "out").exists(), "nothing was recorded"
    if "division" in words:
        assert "mine.py:6, in g" in said
