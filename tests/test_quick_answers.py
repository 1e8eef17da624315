"""What needs no tensor is answered without importing what takes seconds: lists, help, wrong options."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glasscluster.scenarios.declared import declared
from glasscluster.scenarios.find_scenario import MODULES, find
from glasscluster.scenarios.lesson import LESSONS

HEAVY = {"torch", "ray", "plotly", "numba", "transformers", "triton", "pandas", "scipy"}
TABLES = {"numpy", "networkx"}  # of a graph or a machine
# One process answers them one after the other: what is imported stays, so the last answer speaks for all.
LINES: dict[str, tuple[str, set[str]]] = {
    "nothing but options": (
        """
        --help · train --help · predict --help · run --help · run E4 --help · run tour --help
        collective --help · train --nosuch 3 · train --zero 7 · train --dp two · predict --nosuch 3 · replay
        generate --nosuch 3 · run E4 --nosuch 3 · run E4 --gpus two · run a1 --nosuch 3 · nosuch
        run tour --nosuch 3 · run zoo --nosuch 3 · run emergency_room --nosuch 3 · run E44
        serve --nosuch 3 · evaluate --nosuch 3 · collective all-reduce --gpus 4 --siz 3
        run mine.py --nosuch 3 · run mine.py --help · lessons --nosuch 3
        """,
        HEAVY | TABLES,
    ),
    "lists": ("list · lessons · list --json · lessons --plan E4", HEAVY),
}
RUNNER = """
import contextlib, io, json, sys
from glasscluster.cli import main
for line in json.load(sys.stdin):
    out = io.StringIO()
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            main(line.split())
    except SystemExit as stopped:
        code = stopped.code or 0
    loaded = [m for m in sys.modules if m.count(".") == 0]
    print(json.dumps([line, code, out.getvalue()[-300:], loaded]), flush=True)
"""
MINE = '''
import torch
from glasscluster.scenarios.lab import scenario

@scenario("mine", title=("Mine", "我的"))
def mine(lab, gpus: int = 3, name: str | None = None):
    """A story."""
'''


@pytest.mark.parametrize("kind", LINES)
def test_a_list_help_or_a_wrong_option_imports_nothing_heavy(kind, tmp_path):
    lines, unwanted = LINES[kind]
    listed = [line.strip() for row in lines.strip().splitlines() for line in row.split("·")]
    (tmp_path / "mine.py").write_text(MINE)
    root = str(Path(__file__).resolve().parent.parent)
    environment = {"PYTHONPATH": root, "PATH": "/usr/bin", "OMP_NUM_THREADS": "1"}
    options: dict[str, Any] = {
        "input": json.dumps(listed),
        "capture_output": True,
        "text": True,
        "cwd": tmp_path,
    }
    done = subprocess.run([sys.executable, "-c", RUNNER], env=environment, check=True, **options)
    answers = [json.loads(answer) for answer in done.stdout.splitlines()]
    assert [line for line, *_ in answers] == listed, done.stderr
    for line, code, said, loaded in answers:
        assert unwanted & set(loaded) == set(), line
        fine = line.endswith("--help") or kind == "lists"
        assert code == (0 if fine else 2), (line, said)


@pytest.mark.parametrize("name", [*MODULES, *LESSONS])
def test_what_a_file_says_is_what_its_program_has(name):
    """So that an option which is refused without running the file is one that the program does not have."""
    says, has = declared(name), find(name)
    assert says is not None, "its options are written out"
    assert (says.name, says.title, says.story) == (has.name, has.title, has.story)
    assert list(says.options) == list(has.options)
    for mine, theirs in zip(says.options.values(), has.options.values(), strict=True):
        assert (mine.default, mine.annotation) == (theirs.default, theirs.annotation)


@pytest.mark.parametrize(
    ("signature", "read"),
    [
        ("lab, gpus: int = 3", True),
        ("lab, gpus: int = 2 * 3", False),
        ("lab, gpus: 'int' = 3", False),
        ("lab, **options", False),
        ("lab, gpus: int = THREE, *, deep: bool = True, x: float | None = None", True),
    ],
)
def test_a_file_that_must_be_run_to_be_understood_is_run(tmp_path, signature, read):
    source = MINE.replace("lab, gpus: int = 3, name: str | None = None", signature)
    (tmp_path / "mine.py").write_text(f"THREE = 3\n{source}")
    says = declared(f"{tmp_path}/mine.py")
    assert (says is not None) == read
    if says is not None:
        own = {name: p.default for name, p in find(f"{tmp_path}/mine.py").options.items()}
        assert {name: p.default for name, p in says.options.items()} == own
        assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in says.options.values())
