"""Bugs planted into copies of the package, one at a time: a test that we have sees each of them.

planted/bugs.toml lists them: what stands in a file, what takes its place, and the test that must fail then.
The suite sees that the list is in order; `make soak` plants every bug. For one of them:

    python -m pytest -m soak tests/test_planted_bugs.py -k wrong_chunk
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

HOME = Path(__file__).parents[1]
PACKAGE = "glasscluster"
BUGS = tomllib.loads((HOME / "tests" / "planted" / "bugs.toml").read_text(encoding="utf-8"))["bug"]
NAMES = [bug["name"].replace(" ", "_") for bug in BUGS]
LEAST = 30
KINDS = {  # what the list must hold: a word of the name, and the file
    "op dropped from the comparison": "sim/ranks/agreement.py",
    "NaN": "strategies/judge/check.py",
    "renamed before": "base/files.py",
    "result is skipped": "sim/ranks/backends/threads.py",
    "wrong chunk": "sim/ranks/collectives/ring.py",
    "wrong partner": "sim/ranks/collectives/halving_doubling.py",
    "avg is not divided": "sim/ranks/communicator.py",
    "wrong root": "sim/ranks/collectives/tree.py",
    "all-to-all swapped": "sim/ranks/collectives/pairwise.py",
    "wrong slice": "strategies/data/setup.py",
    "not gathered": "strategies/data/zero1.py",
    "tied table": "strategies/trainer.py",
    "divided twice": "strategies/trainer.py",
    "f without": "strategies/tensor/tensor_parallel.py",
    "largest logit": "strategies/tensor/tensor_parallel.py",
    "wrong dim": "strategies/tensor/sequence_parallel.py",
    "without the mask": "strategies/layout/tokens.py",
    "log-sum-exp": "model/kernels/flash/parts.py",
    "another tag": "strategies/pipeline/pipeline_parallel.py",
    "no weight gradient": "strategies/pipeline/weight_gradients.py",
    "loss scale": "strategies/trainer.py",
    "gradient norm without": "strategies/assembly.py",
    "another dropout mask": "strategies/memory/recompute.py",
    "bias correction": "model/adamw.py",
    "skipped is counted": "strategies/trainer.py",
    "rope": "model/gpt.py",
    "experts combined": "model/kernels/expert_sum.py",
    "without latency": "sim/time/replay.py",
    "overlooks a dependency": "sim/time/replay.py",
    "frees what is still alive": "sim/recording/memory.py",
    "leave a message out": "sim/recording/graph.py",
    "factor": "strategies/data/data_parallel.py",
    "status of a report": "visualize/page/report.py",
    "in place of their sum": "visualize/templates/idle.js",
}
# A failure is what a test says, or an error with a name of ours; not that the copy cannot run
SAID = re.compile(r"(AssertionError|assert |Failed: |glasscluster\.base\.errors\.\w+: )")
BROKEN = re.compile(r"\b(Import|ModuleNotFound|Syntax|Indentation|Name|Attribute|UnboundLocal)Error\b")
CONTENTS = ["tests", "docs", "benchmarks", "pyproject.toml", "README.md", "README.zh.md", "CHANGELOG.md"]


def text_of(bug: dict[str, str]) -> str:
    return (HOME / PACKAGE / bug["file"]).read_text(encoding="utf-8")


def planted(bug: dict[str, str]) -> str:
    """The file with the bug in it, which is still Python if it was."""
    text = text_of(bug).replace(bug["old"], bug["new"])
    if bug["file"].endswith(".py"):
        compile(text, bug["file"], "exec")
    return text


def environment(folder: Path) -> dict[str, str]:
    """The variables of a process that imports the package of `folder`, and is no worker of this pytest."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    return own | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


# ---- the list is in order ----------------------------------------------------------------------------------
def test_there_are_at_least_thirty_bugs_of_the_kinds_that_must_be_seen():
    assert len(BUGS) >= LEAST
    for kind, file in KINDS.items():
        assert any(kind in bug["name"] and bug["file"] == file for bug in BUGS), kind
    assert max(Counter(bug["name"] for bug in BUGS).values()) == 1


@pytest.mark.parametrize("bug", BUGS, ids=NAMES)
def test_what_a_bug_replaces_stands_exactly_once_in_its_file(bug):
    assert set(bug) == {"name", "file", "old", "new", "test"}
    assert text_of(bug).count(bug["old"]) == 1
    assert planted(bug) != text_of(bug)


def test_every_test_that_must_see_a_bug_exists():
    """The tests are collected, in a process of their own, and not run."""
    names = sorted({bug["test"] for bug in BUGS})
    words = ["--collect-only", "-q", "-p", "no:cacheprovider", "-m", "soak or not soak"]
    files = sorted({name.partition("::")[0] for name in names})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, *files],
        cwd=HOME,
        capture_output=True,
        text=True,
        check=False,
        env=environment(HOME),
    )
    missing = set(names) - set(done.stdout.splitlines())
    assert not missing, done.stdout[-2000:] if done.returncode else missing


# ---- each is seen ------------------------------------------------------------------------------------------
def copy_with(folder: Path, file: str | None = None, text: str = "") -> None:
    """Make a repository in `folder` of links to this one, in which one file of the package has another text.

    Folders above that file are real, and hold links. Nothing compiled is taken along.
    """
    for name in CONTENTS:
        (folder / name).symlink_to(HOME / name)
    changed = Path(PACKAGE) / (file or "__init__.py")
    for above in reversed(changed.parents[:-1]):
        (folder / above).mkdir()
        for here in (HOME / above).iterdir():
            there = folder / above / here.name
            if here.name != "__pycache__" and here.relative_to(HOME) not in (changed, *changed.parents):
                there.symlink_to(here)
    (folder / changed).write_text(text if file else (HOME / changed).read_text(encoding="utf-8"), "utf-8")


def run(folder: Path, tests: list[str], seconds: float) -> tuple[int, list[ElementTree.Element], str]:
    """Run tests in a copy: pytest's exit code, the cases of its report, and what it printed."""
    report = folder / "report.xml"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "soak or not soak"),
            *("--timeout", str(seconds), "--junitxml", str(report), *tests),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 60,
        # machine code that was kept may hold a function that is changed now
        env=environment(folder) | {"NUMBA_CACHE_DIR": str(folder / "machine code")},
    )
    cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    return done.returncode, cases, done.stdout[-4000:] + done.stderr[-1000:]


@pytest.mark.soak
@pytest.mark.parametrize("bug", BUGS, ids=NAMES)
def test_a_planted_bug_is_seen(bug, tmp_path):
    copy_with(tmp_path, bug["file"], planted(bug))
    code, cases, printed = run(tmp_path, [bug["test"]], 300)
    if any(case.find("skipped") is not None for case in cases):
        pytest.skip("the test that sees it is skipped on this machine")
    assert code == 1, f"{bug['test']} does not fail\n{printed}"
    failures = [failure.get("message", "") for case in cases for failure in case.iter("failure")]
    assert len(failures) == len(cases) == 1, printed
    assert SAID.match(failures[0]), f"no assertion and no error of ours: {failures[0]}"
    assert not BROKEN.search(failures[0]), f"the copy cannot run: {failures[0]}"


@pytest.mark.soak
def test_without_a_bug_the_same_tests_pass_in_a_copy(tmp_path):
    copy_with(tmp_path)
    names = sorted({bug["test"] for bug in BUGS})
    code, cases, printed = run(tmp_path, names, 1200)
    assert code == 0, printed
    assert len(cases) == len(names)
