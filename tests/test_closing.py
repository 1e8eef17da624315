"""A command names its error before it closes what the run has left open; a program finds all closed."""

from __future__ import annotations

import threading
import time

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


@pytest.mark.ray
def test_an_error_of_ray_s_ranks_comes_before_ray_has_stopped(monkeypatch):
    from glasscluster.sim.ranks.backends import ray_actors

    slow, stopped = 2.0, []
    stop = ray_actors.Session.stop

    def slowly(self):
        time.sleep(slow)
        stop(self)
        stopped.append(time.monotonic())

    monkeypatch.setattr(ray_actors.Session, "stop", slowly)
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
