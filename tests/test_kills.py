"""Sixty kills at random times: who was killed is named, soon; nothing is left; and the next run works.

Ranks are threads, Ray's actors, or torchrun's processes. A rank is killed (KILL), stopped (STOP) or asked to
end (TERM, INT), and so is the process that a person has started. What a signal to that process ends with is
judged in test_endings.py as well, from the first moment on; here a signal comes while ranks train.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from typing import Any, NamedTuple

import pytest
from kills import BACKENDS, LEFT_S, LONG, SHORT, TIMEOUT_S, WAIT_S, Process

KILL, STOP, TERM, INT = signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT
NAMED_S = 5.0  # until a killed rank is named
STOPPED_S = TIMEOUT_S + 2  # until a stopped one is
PAUSE_S = 2.0  # how long a whole run is stopped, and then goes on
WORDS = {TERM: "terminated: ", INT: "interrupted: "}
CODES = {TERM: 143, INT: 130}
OURS = ("RankDied: ", "RankStalled: ", "Deadlock: ", *WORDS.values(), "a fault of ours")


class Kill(NamedTuple):
    """One kill: of a rank, or of what a person has started."""

    backend: str
    target: str
    signal: signal.Signals
    number: int

    def __str__(self) -> str:
        return f"{self.backend}-{self.target}-{self.signal.name[3:]}-{self.number}"


def kills(backend: str, target: str, each: int, first: int = 0) -> list[Any]:
    """Each signal so many times, numbered from `first`."""
    alone = [] if backend == "threads" else [getattr(pytest.mark, backend)]
    return [
        pytest.param(Kill(backend, target, number, i), id=str(Kill(backend, target, number, i)), marks=alone)
        for i in range(first, first + each)
        for number in (KILL, STOP, TERM, INT)
    ]


KILLS = [*kills("threads", "driver", 3)]
for processes in ("ray", "torchrun"):
    KILLS += [*kills(processes, "rank", 2), *kills(processes, "driver", 2), *kills(processes, "rank", 2, 2)]


def test_there_are_sixty():
    assert len(KILLS) == 60


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One for each backend: every run but the first is a run after a kill, in the folder of the one before."""
    return {backend: tmp_path_factory.mktemp(backend) for backend in BACKENDS}


@pytest.mark.soak
@pytest.mark.parametrize("kill", KILLS)
def test_who_is_killed_is_named_soon_and_nothing_is_left(kill, folders):
    draw, folder = random.Random(str(kill)), folders[kill.backend]
    run = Process(LONG, kill.backend, folder)
    try:
        assert run.when("training"), run.said
        while kill.target == "rank" and len(run.ranks(kill.backend)) < 3:
            assert run.process.poll() is None, run.said
            time.sleep(0.1)
        time.sleep(draw.uniform(0.5, 5.0))
        rank = draw.randrange(3) if kill.target == "rank" else None
        pid = run.process.pid if rank is None else run.ranks(kill.backend)[rank]
        begun = time.monotonic()
        os.kill(pid, kill.signal)
        named_s = (of_a_rank if kill.target == "rank" else of_the_driver)(run, kill, pid, rank, begun)
        left, gone_s = run.left()
        named = "-" if named_s is None else f"named after {named_s:.2f} s"
        print(f"{kill}: {named}, gone after {gone_s:.1f} s; load {os.getloadavg()[0]:.0f}")
        assert left == {}
        assert "Traceback" not in run.said.split("ChildFailedError")[0].rpartition("Traceback")[0]
        assert "a fault of ours" not in run.said
        assert not (folder / "W" / "config.json").exists()
        assert not (folder / "run" / "report.html").exists()
        limit = STOPPED_S if kill.target == "rank" and kill.signal == STOP else NAMED_S
        assert named_s is None or named_s <= limit, run.said
    except AssertionError:  # the others take an hour
        print(f"{kill} FAILED: {run.said[-1500:]}")
        raise
    finally:
        run.end()


LAST = [
    "threads",
    pytest.param("ray", marks=pytest.mark.ray),
    pytest.param("torchrun", marks=pytest.mark.torchrun),
]


@pytest.mark.soak
@pytest.mark.parametrize("backend", LAST)
def test_after_the_last_kill_a_run_comes_to_its_end(backend, folders):
    again = Process(SHORT, backend, folders[backend])
    try:
        assert again.wait(WAIT_S) == 0, again.said
        assert (folders[backend] / "W" / "config.json").is_file()
        assert (folders[backend] / "run" / "report.html").is_file()
        assert again.left()[0] == {}
    finally:
        again.end()


def of_a_rank(run: Process, kill: Kill, pid: int, rank: int, begun: float) -> float | None:
    """One rank is gone or stopped: that one is named. Returns seconds until it was; None: the run went on."""
    if kill.signal == INT and kill.backend == "ray":  # Ray's workers do not hear of a ctrl-C
        time.sleep(PAUSE_S)
        assert run.process.poll() is None, run.said
        run.process.send_signal(TERM)
        assert run.wait(LEFT_S) == CODES[TERM]
        return None
    at = run.when(*OURS)
    assert at is not None, run.said
    code = run.wait(LEFT_S)
    assert code != 0
    named = set(
        re.findall(
            r"(RankDied|RankStalled): rank (\d) (?:died: |is stopped: )?[^\n]*?process (\d+)", run.said
        )
    )
    if kill.signal in (KILL, STOP) or (kill.backend == "ray" and kill.signal == TERM):
        assert {int(process) for _, _, process in named} == {pid}, run.said
        assert {kind for kind, _, _ in named} == {"RankStalled" if kill.signal == STOP else "RankDied"}
        if kill.backend == "torchrun":
            assert {int(number) for _, number, _ in named} == {rank}
    return at - begun


def of_the_driver(run: Process, kill: Kill, pid: int, _rank: None, begun: float) -> float | None:
    """What a person has started ends, or pauses and goes on. Returns seconds until the last line."""
    if kill.signal == STOP:
        time.sleep(PAUSE_S)
        os.kill(pid, signal.SIGCONT)
        time.sleep(PAUSE_S)
        assert run.process.poll() is None, run.said
        assert not any(word in run.said for word in OURS), run.said
        begun = time.monotonic()
        os.kill(pid, TERM)
    if kill.signal == KILL:
        assert run.wait(LEFT_S) == -KILL
        return None
    number = TERM if kill.signal == STOP else kill.signal
    at = run.when(*OURS)
    assert at is not None, run.said
    code = run.wait(LEFT_S)
    assert code == CODES[number] or (kill.backend == "torchrun" and code != 0), (code, run.said)
    assert run.said.count(WORDS[number]) == 1 or kill.backend == "torchrun", run.said
    assert "RankDied" not in run.said
    return at - begun
