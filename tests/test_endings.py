"""A person ends a command: one line that says what was written, exit 130 or 143, and nothing half done."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TRAIN = "train --dp 4 --steps 400 --seq 64 --backend"
PREDICT = "predict --dp 4 --pp 16 --layers 32 --seq 64 --micro-batch 1 --global-batch 128"
EXITS = {signal.SIGINT: (130, "interrupted: "), signal.SIGTERM: (143, "terminated: ")}
LATEST_S = 12.0  # from the signal to the end: the grace, and what a busy machine adds


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    """A command in a folder of its own; a test runner in the background hands on that ctrl-C is ignored."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words,
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def end(process: subprocess.Popen[str], number: int, wait_for: str = "", pause_s: float = 0.0) -> str:
    """Send the signal, after a line that says `wait_for` and a pause; returns what was on standard error."""
    seen = ""
    while wait_for and wait_for not in seen:
        line = process.stderr.readline()
        assert line, f"it ended before it said {wait_for!r}: {seen}"
        seen += line
    time.sleep(pause_s)
    process.send_signal(number)
    begun = time.monotonic()
    _, rest = process.communicate(timeout=60)
    assert time.monotonic() - begun < LATEST_S
    return seen + rest


def judge(said: str, code: int, number: int, folder: Path) -> None:
    """One last line, the exit code, no traceback, no abort, no empty folder, and what it names is there."""
    exit_code, word = EXITS[signal.Signals(number)]
    assert code == exit_code, (code, said)
    last = said.strip().splitlines()[-1]
    assert last.startswith(word), said
    assert said.count(word) == 1
    assert "Traceback" not in said
    assert "Error" not in said
    assert "terminate called" not in said
    empty = [p for p in folder.rglob("*") if p.is_dir() and not any(p.iterdir())]
    assert not empty
    if last.endswith("nothing was written"):
        assert not list(folder.rglob("*"))
    else:
        named = re.sub(r" (was|were) written$", "", last.removeprefix(word)).split(", ")
        assert all((folder / name).exists() for name in named), last
        assert not list(folder.rglob(".glass-*"))


def glass(arguments: str) -> list[str]:
    return [sys.executable, "-m", "glasscluster", *arguments.split()]


@pytest.mark.parametrize("number", EXITS, ids=lambda n: n.name)
@pytest.mark.parametrize(
    ("arguments", "line", "pause_s"),
    [
        (f"{TRAIN} threads", "training 400 steps", 0.5),
        (f"{TRAIN} threads", "", 0.25),
        (PREDICT, "glass predict", 1.0),
    ],
    ids=["training", "imports", "dry"],
)
def test_a_signal_ends_a_command_with_one_line(arguments, line, pause_s, number, tmp_path):
    process = start(glass(arguments), tmp_path)
    said = end(process, number, line, pause_s)
    judge(said, process.returncode, number, tmp_path)
    assert "nothing was written" in said


@pytest.mark.parametrize("number", EXITS, ids=lambda n: n.name)
def test_a_signal_while_the_report_is_written_leaves_all_of_it_or_none(number, tmp_path):
    arguments = "train --dp 2 --steps 2 --seq 32 --no-check --backend threads --save W --out run"
    process = start(glass(arguments), tmp_path)
    said = end(process, number, "writing run/report.html", 0.02)
    judge(said, process.returncode, number, tmp_path)
    assert "W" in said.splitlines()[-1]
    assert {p.name for p in (tmp_path / "W").iterdir()} >= {"config.json", "model.safetensors"}


STUBBORN = """
import sys, time
from glasscluster.cli import main
from glasscluster.commands import answer as commands
def answer(arguments, ending):
    print("waiting", file=sys.stderr, flush=True)
    import torch.distributed as dist
    from datetime import timedelta
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.wait(["never"], timedelta(seconds=100))  # inside a library: hears of no signal
commands.answer = answer
main([])
"""


@pytest.mark.parametrize("number", EXITS, ids=lambda n: n.name)
def test_a_wait_inside_a_library_ends_after_the_grace(number, tmp_path):
    process = start([sys.executable, "-c", STUBBORN], tmp_path)
    judge(end(process, number, "waiting", 3.0), process.returncode, number, tmp_path)


def is_caught(pid: int, number: int) -> bool:
    """Whether a process handles a signal by now; before that, the system ends it without a word."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(re.search(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)[1], 16) >> (number - 1) & 1)


def test_who_asks_twice_waits_for_nothing(tmp_path):
    process = start(glass(f"{TRAIN} threads"), tmp_path)
    while not is_caught(process.pid, signal.SIGTERM):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.01)
    judge(end(process, signal.SIGTERM), process.returncode, signal.SIGTERM, tmp_path)


BACKENDS = {
    "threads": ([*glass(f"{TRAIN} threads")], 3, 8.0),
    "dry": (glass(PREDICT), 1, 8.0),
    "ray": (glass(f"{TRAIN} ray"), 0, 40.0),
}


def kills() -> list:
    """Some at random times in the suite, on threads and dry, and 20 a backend in `make soak`."""
    return [
        pytest.param(backend, number, marks=[pytest.mark.soak] if number >= few else [])
        for backend, (_, few, _) in BACKENDS.items()
        for number in range(20)
    ]


@pytest.mark.parametrize(("backend", "case"), kills())
def test_a_signal_at_a_random_time_ends_a_command_with_one_line(backend, case, tmp_path):
    words, _, longest = BACKENDS[backend]
    draw = random.Random(f"{backend} {case}")
    number, pause = draw.choice(list(EXITS)), draw.uniform(0.15, longest)
    process = start(words, tmp_path)
    judge(end(process, number, "", pause), process.returncode, number, tmp_path)


IN_AN_OPERATOR = """
import time
from glasscluster import Cluster
def program(gpu):
    try:
        print("computing", flush=True)
        for _ in range(30):
            time.sleep(LONG)  # as an operator: hears of nothing before its end
    finally:
        print("unwound", flush=True)
Cluster("classroom", 1).run(program)
"""


@pytest.mark.parametrize("seconds", [1.0, 4.0])
def test_a_program_of_a_person_s_own_waits_for_a_rank_inside_an_operator(seconds, tmp_path):
    """torch aborts a process whose interpreter ends while a thread is inside an operator. Python takes a thread
    for ended whose join was interrupted, and an operator may take longer than the grace.
    """
    process = start([sys.executable, "-c", IN_AN_OPERATOR.replace("LONG", str(seconds))], tmp_path)
    assert process.stdout.readline() == "computing\n"
    process.send_signal(signal.SIGINT)
    said, problem = process.communicate(timeout=60)
    assert said == "unwound\n"
    assert problem.strip().endswith("KeyboardInterrupt")
    assert process.returncode == -signal.SIGINT


def test_who_calls_a_command_from_a_program_goes_on_though_a_rank_is_left_standing(tmp_path):
    lines = "\n".join(
        [
            "import threading",
            "from glasscluster.cli import main",
            "threading.Thread(target=threading.Event().wait, daemon=True, name='rank-0').start()",
            "try:",
            "    main(['list', 'nothing'])",
            "except SystemExit as done:",
            "    print('goes on', done.code)",
        ]
    )
    process = start([sys.executable, "-c", lines], tmp_path)
    assert process.communicate(timeout=60)[0] == "goes on 2\n"
