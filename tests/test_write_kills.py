"""A hundred writers killed at random times: they leave the old or the new, and no half page has a verdict.

test_files.py kills a writer in each of its calls to the disk in turn.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import run_plan

from glasscluster.base import files
from glasscluster.model.config import ModelConfig
from glasscluster.model.gpt import GPTStage
from glasscluster.model.weights import hugging_face
from glasscluster.scenarios.jobs.folders import rewriting, write_run_json
from glasscluster.strategies.plan import Plan

pytestmark = pytest.mark.soak
HERE = Path(__file__).parents[1]
EACH = 20  # kills a kind, of five kinds
MODELS = [ModelConfig(layers=2, hidden=64, heads=2, seq=16, vocab=4000 * (i + 1)) for i in range(2)]
Contents = dict[str, bytes]
Write = Callable[[Path, int], None]  # into a folder: version 0 or version 1


def contents(folder: Path) -> Contents:
    """Every file that a reader finds in a folder, once what a killed writer completed is in its place."""
    files.finish(folder)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".glass-") for part in path.relative_to(folder).parts)
    }


def check_half_pages(folder: Path) -> None:
    """A page that is not whole lacks its last element, without which its style sheet shows no verdict."""
    for page in folder.rglob("*.html"):
        text = page.read_text(encoding="utf-8", errors="replace")
        assert text.count('<span id="whole"></span>') == text.rstrip().endswith("</html>"), page


# ---- writers in a process of their own, that write one version after the other -----------------------------
def _weights() -> Write:
    stages = [GPTStage(model, seed=1) for model in MODELS]
    return lambda folder, version: hugging_face.save(stages[version], folder) and None


def _report() -> Write:
    runs = [run_plan(Plan(dp=dp), MODELS[0]) for dp in (1, 2)]
    return lambda folder, version: runs[version].report(folder / "page.html") and None


def _graph() -> Write:
    runs = [run_plan(Plan(dp=dp), MODELS[0]) for dp in (1, 2)]
    return lambda folder, version: runs[version].graph.save(folder / "graph.npz") and None


def _run() -> Write:
    runs = [run_plan(Plan(dp=dp), MODELS[0]) for dp in (1, 2)]

    def write(folder: Path, version: int) -> None:
        with rewriting(folder) as beside:
            runs[version].graph.save(beside / "graph.npz")
            runs[version].report(beside / "report.html")
            write_run_json(beside, {"version": version})

    return write


WRITERS = {"weights": _weights, "report": _report, "graph": _graph, "run": _run}


def tell(begins: Callable[[], object]) -> None:
    """Call `begins` whenever this process begins to write beside a file, or a folder of files."""
    for name in ("mkstemp", "mkdtemp"):
        real = getattr(tempfile, name)
        setattr(tempfile, name, lambda *args, _real=real, **options: (begins(), _real(*args, **options))[1])


def kill_after(write: Write, folder: Path, writes: int, pause_s: float) -> None:
    """Write one version after the other in a child, which is killed a pause after the beginning of a write."""
    read, began = os.pipe()
    child = os.fork()
    if not child:
        try:
            tell(lambda: os.write(began, b"!"))
            for number in range(10**6):
                write(folder, 1 - number % 2)
        finally:
            os._exit(1)
    for _ in range(writes):
        os.read(read, 1)
    time.sleep(pause_s)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    os.close(read)
    os.close(began)


def length_of(write: Write, folder: Path) -> float:
    """Seconds from the first call to the disk to the last."""
    begun: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkstemp", "mkdtemp"):
            patch.setattr(tempfile, name, getattr(tempfile, name))  # puts back what `tell` sets
        tell(lambda: begun.append(time.monotonic()))
        write(folder, 0)
    return time.monotonic() - begun[0]


@pytest.mark.parametrize("kind", WRITERS)
def test_what_a_killed_writer_leaves_is_the_old_or_the_new(kind, tmp_path):
    write, draw = WRITERS[kind](), random.Random(kind)
    versions = []
    (tmp_path / "whole").mkdir()
    for version in range(2):
        write(tmp_path / "whole", version)
        versions.append(contents(tmp_path / "whole"))
    assert versions[0] != versions[1]
    longest, seen, middle = length_of(write, tmp_path / "whole"), [], 0
    for number in range(EACH):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder, 0)
        kill_after(write, folder, draw.choice([1, 2, 3]), draw.uniform(0.0, longest))
        middle += any(path.name.startswith(".glass-") for path in folder.iterdir())
        check_half_pages(folder)
        there = contents(folder)
        assert there in versions, (number, sorted(there))
        seen.append(versions.index(there))
        write(folder, 1)  # the next writer works, whatever the killed one has left
        assert contents(folder) == versions[1]
    print(f"{kind}: {EACH} kills, {middle} inside a write; old {seen.count(0)}, new {seen.count(1)}")
    assert middle >= EACH / 4, "too few kills came while it wrote"
    assert set(seen) == {0, 1}


# ---- the command -------------------------------------------------------------------------------------------
TRAIN = "train --layers 2 --heads 2 --seq 16 --vocab 20000 --steps 1 --no-check --backend threads"
TRAIN += " --save W --out run"
HIDDEN = ("32", "64")


def train(folder: Path, version: int) -> subprocess.Popen[str]:
    """Train and save: a model of one of two sizes."""
    return subprocess.Popen(
        [sys.executable, "-m", "glasscluster", *TRAIN.split(), "--hidden", HIDDEN[version]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def results(folder: Path) -> tuple[Contents, Contents]:
    """The weights and the run of a folder; run.json holds the seconds that it took, and is left out."""
    run = contents(folder / "run")
    run.pop("run.json", None)
    return contents(folder / "W"), run


def test_a_training_that_is_killed_while_it_writes_leaves_the_old_or_the_new(tmp_path):
    draw = random.Random("train")
    versions = []
    for version in range(2):
        (tmp_path / f"whole {version}").mkdir()
        assert train(tmp_path / f"whole {version}", version).wait() == 0
        versions.append(results(tmp_path / f"whole {version}"))
    folder = tmp_path / "killed"
    folder.mkdir()
    assert train(folder, 0).wait() == 0
    weights, runs, middle = [], [], 0
    for number in range(EACH):
        before = results(folder)
        new = 1 - weights[-1] if weights else 1
        process = train(folder, new)
        assert process.stderr is not None
        begins = draw.choice(["writing the weights", "writing run/"])
        while begins not in (line := process.stderr.readline()):
            assert line, "it ended before it wrote"
        time.sleep(draw.uniform(0.0, 1.5))
        process.kill()
        middle += process.wait() == -signal.SIGKILL
        check_half_pages(folder)
        there = results(folder)
        assert there[0] in (before[0], versions[new][0]), number
        assert there[1] in (before[1], versions[new][1]), number
        assert there[0] == versions[new][0] or there[1] == before[1], "the run is written after the weights"
        weights.append([v[0] for v in versions].index(there[0]))
        runs.append([v[1] for v in versions].index(there[1]))
    print(f"train: {EACH} kills, {middle} before its end; weights {weights}, runs {runs}")
    assert middle >= EACH / 4
