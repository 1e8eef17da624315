"""docs/extending.md does what it says: its files go into a copy of the package, and its commands are run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
MOST = {"strategy": 2, "schedule": 1, "collective": 1, "GPU": 1, "lesson": 1, "figure": 1}
OWN = {"who_sends.py"}  # draws the figure: not what is added

# One process runs many commands: most of a command's seconds are imports.
RUNNER = """
import contextlib, io, json, sys
from glasscluster.cli import main
for words in json.load(sys.stdin):
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            main(words)
        code = 0
    except SystemExit as stopped:
        code = stopped.code or 0
    print(json.dumps({"code": code, "out": out.getvalue()}), flush=True)
"""


def sections() -> dict[str, str]:
    """Heading -> text, of the things that are added."""
    parts = re.split(r"^## An? (.*)$", PAGE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@dataclass(frozen=True)
class Example:
    """What a section adds: files by name, whole or as a patch, and its commands."""

    files: dict[str, tuple[str, str]]
    commands: list[str]


def example(text: str) -> Example:
    """The blocks of a section."""
    blocks = FENCE.findall(text)
    files = {name: (kind, body) for kind, name, body in blocks if name}
    shell = "".join(body for kind, _, body in blocks if kind == "sh")
    return Example(files, shell.replace("\\\n", "").splitlines())


EXAMPLES = {kind: example(text) for kind, text in sections().items()}


def patched(source: str, patch: str) -> str:
    """A file with the hunks of a patch, each of which finds its lines in one place."""
    for hunk in re.split(r"^@@\n", patch, flags=re.MULTILINE):
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        after = "".join(line[1:] for line in lines if line[0] in " +")
        assert source.count(before) == 1, before
        source = source.replace(before, after)
    return source


def listing(home: Path) -> dict[str, bytes]:
    """Every file of the copied package and its content."""
    files = (f for f in home.rglob("*") if f.is_file() and "__pycache__" not in f.parts)
    return {f.relative_to(home).as_posix(): f.read_bytes() for f in files}


def touched(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    """Files that are new or changed; a new folder counts once, with all that is in it."""
    changed = {Path(name) for name in after if after[name] != before.get(name)}
    folders = {Path(), *(Path(name).parent for name in before)}
    return {str(file if file.parent in folders else file.parent) for file in changed}


def environment(home: Path) -> dict[str, str]:
    """The package that is imported is the copy."""
    return {**os.environ, "PYTHONPATH": str(home), "OMP_NUM_THREADS": "1"}


def run(home: Path, commands: list[str]) -> dict[str, tuple[int, Any]]:
    """Exit code and JSON of commands, run in the copy one after the other."""
    words = [shlex.split(command)[1:] for command in commands]
    given, env = json.dumps(words), environment(home)
    options: dict[str, Any] = {"input": given, "capture_output": True, "text": True, "cwd": home, "env": env}
    done = subprocess.run([sys.executable, "-c", RUNNER], **options, timeout=240)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(commands), done.stderr
    return {c: (a["code"], json.loads(a["out"])) for c, a in zip(commands, answers, strict=True)}


@dataclass(frozen=True)
class Extended:
    """The copy with every example in it: what each touched, and what each command said."""

    home: Path
    touched: dict[str, set[str]]
    said: dict[str, tuple[int, Any]]

    def of(self, start: str) -> Any:
        """The answer of the one command that starts so."""
        (answer,) = [answer for command, (_, answer) in self.said.items() if command.startswith(start)]
        return answer


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Extended:
    home = tmp_path_factory.mktemp("extended")
    unneeded = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "glasscluster", home / "glasscluster", ignore=unneeded)
    counts = {}
    for kind, added in EXAMPLES.items():
        before = listing(home)
        for name, (language, body) in added.files.items():
            file = home / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(patched(file.read_text(), body) if language == "diff" else body, encoding="utf-8")
        for command in added.commands:
            if command.startswith("glass lessons --new"):  # before the others: found at import
                assert run(home, [command])[command][0] == 0
        counts[kind] = touched(before, listing(home)) - OWN
    commands = list(dict.fromkeys(command for added in EXAMPLES.values() for command in added.commands))
    apart = [c for c in commands if c.startswith("glass lessons --new") or re.search(r"--backend\s+ray", c)]
    return Extended(home, counts, run(home, [c for c in commands if c not in apart]))


def test_every_kind_of_thing_has_an_example_and_a_command():
    assert list(EXAMPLES) == list(MOST)
    assert all(added.commands for added in EXAMPLES.values())


@pytest.mark.parametrize("kind", MOST)
def test_to_add_one_touches_few_files(extended, kind):
    assert 1 <= len(extended.touched[kind]) <= MOST[kind], extended.touched[kind]


def verdicts(answer: dict[str, Any]) -> dict[str, str]:
    return {row["key"]: row["verdict"] for row in answer["checks"]}


def equal_to_one_device(answer: dict[str, Any]) -> bool:
    largest = max(answer[f"max_rel_{what}_diff"] for what in ("loss", "grad", "weight"))
    return answer["status"] == "PASS" and answer["checked_steps"] == 2 and largest <= 1e-10


def test_the_compression_is_an_option_equals_one_device_and_sends_what_its_rows_say(extended):
    answer = extended.of("glass train --dp 2 --untied")
    assert answer["plan"]["embedding_gradients"] == "sparse"
    assert equal_to_one_device(answer)
    assert verdicts(answer)["sparse_rows_sent"] == verdicts(answer)["dense_gradients_sent"] == "held"
    assert verdicts(answer)["dp_gradients_sent"] == "not applicable"
    assert verdicts(answer)["last_bucket_reduced"] == "not applicable"
    rows = {row["key"]: row for row in answer["checks"]}
    assert rows["sparse_rows_sent"]["counted"] == 2 * 32 * (16 * 4 + 8)  # 2 x 16 tokens a rank
    sent = sum(answer["bytes_sent"]["by_purpose"]["gradients"])
    assert sent == rows["sparse_rows_sent"]["counted"] + rows["dense_gradients_sent"]["counted"]
    assert sent < rows["dp_gradients_sent"]["predicted"]


def test_its_option_predicts_without_data(extended):
    answer = extended.of("glass predict --dp 8")
    assert answer["iteration_time_s"] > 0
    assert answer["events"] > 0


def test_its_rules_refuse_what_cannot_work_by_field(extended):
    (command,) = [c for c in extended.said if c.startswith("glass train --dp 2 --embedding-gradients")]
    code, answer = extended.said[command]
    assert code == 2
    assert (answer["field"], answer["nearest"]) == ("embedding_gradients", "dense")


def test_the_schedule_is_listed_judged_and_trains_as_one_device_does(extended):
    names = list(extended.of("glass list")["schedules"])
    assert names[:3] == ["gpipe", "rounds", "1f1b"]
    judged = extended.of("glass schedule rounds")
    assert judged["peak_live"] == [2, 2]
    assert judged["ranks"][1] == ["1F0", "1F1", "1B0", "1B1", "1F2", "1F3", "1B2", "1B3"]
    answer = extended.of("glass train --schedule rounds")
    assert equal_to_one_device(answer)
    assert verdicts(answer)["in_flight_0"] == verdicts(answer)["in_flight_1"] == "held"


def test_the_star_is_timed_and_trains_as_one_device_does(extended):
    timed = extended.of("glass collective all-reduce")
    assert timed["bytes_sent_per_gpu"] == [3 * 2**20, 2**20, 2**20, 2**20]
    answer = extended.of("glass train --dp 3")
    assert equal_to_one_device(answer)
    assert verdicts(answer)["dp_gradients_sent"] == "not applicable"
    by_rank = answer["bytes_sent"]["by_purpose"]["gradients"]
    assert by_rank == [2 * by_rank[1], by_rank[1], by_rank[1]]


@pytest.mark.ray
@pytest.mark.soak  # test_own_algorithm.py trains with another file on actors
def test_the_star_trains_on_ray_actors_to_the_same_bits_as_on_threads(extended):
    (command,) = [c for c in EXAMPLES["collective"].commands if re.search(r"--backend\s+ray", c)]
    code, answer = run(extended.home, [command])[command]
    threads = extended.of("glass train --dp 3")
    assert code == 0
    assert answer["backend"] == "ray"
    assert equal_to_one_device(answer)
    assert answer["weights_sha256"] == threads["weights_sha256"]
    assert answer["bytes_sent"] == threads["bytes_sent"]


def test_the_gpu_is_listed_and_predicts(extended):
    assert "Toy 96GB, 8 a node by toy link" in extended.of("glass list")["hardware"]["toy-8x"]
    answer = extended.of("glass predict --hardware toy-8x")
    assert answer["fits"]
    assert answer["iteration_time_s"] > 0


def test_the_lesson_is_listed_and_its_rows_hold(extended):
    assert "H9" in [row["id"] for row in extended.of("glass lessons --json")["lessons"]]
    answer = extended.of("glass run H9")
    assert answer["status"] == "PASS"
    assert verdicts(answer)["sent_by_rank_0"] == "held"


def test_the_figure_is_in_the_report(extended):
    answer = extended.of("glass run who_sends.py")
    assert answer["status"] == "PASS"
    report = (extended.home / answer["report"]).read_text(encoding="utf-8")
    assert "发送的字节" in report
    assert "14,400" in report  # what the server sends: three times 4800 bytes
