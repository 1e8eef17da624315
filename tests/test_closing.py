"""A command names its error before it closes what the run has left open; a program finds all closed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from glasscluster import Cluster
from glasscluster.base import closing
from glasscluster.base.errors import RankDied


def test_a_program_finds_everything_closed():
    closed = []
    closing.close(lambda: closed.append(threading.current_thread()))
    assert closed == [threading.current_thread()]


def test_a_command_goes_on_meanwhile_and_ends_when_all_is_closed():
    may_end, closed = threading.Event(), []
    with closing.last_word_first():
        closing.close(lambda: closed.append(may_end.wait(20)))
        assert closed == []
        closing.close(lambda: 1 / 0)  # says nothing: the run's own error is the one that counts
        threading.Timer(0.2, may_end.set).start()
    assert closed == [True]
    assert not [thread for thread in threading.enumerate() if thread.name == "closing"]


def dies(gpu):
    if gpu.rank == 1:
        raise ValueError("on purpose")
    gpu.comm.barrier()


def with_a_slow_end(slow: float = 2.0) -> None:
    """Two runs that fail, on a Ray of this process's own whose end takes long."""
    from glasscluster.sim.ranks.backends import ray_actors

    stopped: list[float] = []
    stop = ray_actors.Session.stop

    def slowly(self):
        time.sleep(slow)
        stop(self)
        stopped.append(time.monotonic())

    ray_actors.Session.stop = slowly
    with closing.last_word_first():
        with pytest.raises(RankDied, match="on purpose"):
            Cluster("classroom", 2, "ray").run(dies)
        named = time.monotonic()
        assert not stopped
    assert stopped[0] - named > slow / 2
    # the next Ray waits for the one that stops
    with closing.last_word_first():
        with pytest.raises(RankDied):
            Cluster("classroom", 2, "ray").run(dies)
        assert Cluster("classroom", 2, "ray").run(lambda gpu: gpu.rank).results == [0, 1]
    assert len(stopped) == 3


@pytest.mark.ray
@pytest.mark.soak  # starts and stops Ray three times
def test_an_error_of_ray_s_ranks_comes_before_ray_has_stopped():
    """In a process of its own: this one may hold the shared Ray."""
    script = "import test_closing; test_closing.with_a_slow_end()"
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent)])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
