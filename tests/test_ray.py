"""Ray actors run the same programs, to the bit, and leave nothing behind."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import OUTSTANDING, all_send_first, expected, one_is_killed, one_raises

from glasscluster.base.errors import BackendUnavailable, Deadlock, RankDied, RankStalled
from glasscluster.sim.ranks.backends import ray_actors, ray_session
from glasscluster.sim.ranks.backends.meeting_point import open_meeting_point
from glasscluster.sim.ranks.backends.ray_actors import RayBackend
from glasscluster.sim.ranks.deadlock import Wait
from glasscluster.sim.run import Cluster
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.judge import check
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.trainer import train_rank

pytestmark = pytest.mark.ray
RAY_NAMES = ("raylet", "gcs_server", "ray::")


def processes() -> set[int]:
    """Process ids that belong to some Ray."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state != "Z" and any(name in words.split("\0")[0] for name in RAY_NAMES):
                found.add(int(entry.name))
    return found


def gone(pids: set[int], grace_s: float = 90.0) -> set[int]:
    """Those of `pids` that are still there after the grace."""
    end = time.monotonic() + grace_s
    while (left := {p for p in pids if Path(f"/proc/{p}").exists()} & processes()) and time.monotonic() < end:
        time.sleep(0.2)
    return left


def same_bits(ours, theirs) -> bool:
    return all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        for x, y in zip(ours, theirs, strict=True)
        for kind in ("gradients", "weights")
        for a, b in zip(getattr(x, kind), getattr(y, kind), strict=True)
    )


def test_eight_actors_train_the_issue_s_plan_bit_equal_to_threads_and_exact(shared_ray):
    plan = make_plan(
        dp=2, tp=2, pp=2, zero=1, schedule="gpipe", micro_batch=1, global_batch=8, precision="fp64"
    )
    job = Job(plan, make_model("tiny", seq=32), steps=3, capture=True)
    runs = [
        Cluster("classroom", 8, backend).run(train_rank, job, info=job_info(job))
        for backend in ("threads", "ray")
    ]
    threads, ray = runs
    assert same_bits(threads.results, ray.results)
    assert [float(x) for x in threads.results[-1].losses] == [float(x) for x in ray.results[-1].losses]
    assert check.digest(threads.results) == check.digest(ray.results)
    assert threads.graph.difference(ray.graph) is None
    compared = check.compare(ray.results, check.reference_for(job), plan)
    assert compared["checked_steps"] == 3
    assert (
        max(compared["max_rel_grad_diff"], compared["max_rel_weight_diff"], compared["max_rel_loss_diff"])
        <= 1e-10
    )


def test_the_tour_s_other_plans_are_bit_equal_to_threads_and_outstanding_works_do_not_swap(actors):
    model = make_model("tiny", seq=32)
    for options in (
        {"dp": 4, "bucket": 40_000},
        {"dp": 4, "zero": 3},
        {"tp": 4},
        {"pp": 4, "schedule": "1f1b"},
    ):
        job = Job(make_plan(**options), model, steps=2, capture=True)
        ours, theirs = Cluster("classroom", 4, "threads").run(train_rank, job), actors(4).run(train_rank, job)
        assert same_bits(ours.results, theirs.results), options
        assert ours.graph.difference(theirs.graph) is None, options
    for program in OUTSTANDING:
        assert actors(4).run(program).results == [expected(program, r, 4) for r in range(4)], program.__name__


def test_all_ranks_sending_first_is_a_named_deadlock_within_the_operation_timeout(shared_ray):
    with pytest.raises(Deadlock) as caught:
        Cluster("classroom", 4, "ray", timeout_s=3).run(all_send_first)
    assert sorted(caught.value.cycle) == [0, 1, 2, 3]
    assert "programs.py" in caught.value.message
    assert "send" in caught.value.message


def test_a_peer_whose_connection_a_stalled_rank_closed_is_part_of_the_deadlock_not_its_cause():
    """gloo closes a rank's connections when its own time runs out; whoever waits there sees that before its
    own time is up.
    """

    def says(kind: type, rank: int, peer: int) -> Any:
        error = kind(f"rank {rank}", rank=rank, operation="send", peer=peer)
        error.__dict__["wait"] = Wait(rank, "send", peer, "send", 16, "programs.py:71")
        return error

    backend = RayBackend(3)
    lost, stalled, third = says(RankDied, 0, 1), says(RankStalled, 1, 2), says(RankStalled, 2, 0)
    for order in itertools.permutations([lost, stalled, third]):
        verdict = backend._verdict(list(order), {})
        assert isinstance(verdict, Deadlock)
        assert sorted(verdict.cycle) == [0, 1, 2]
    raised = RankDied("rank 2 raised", rank=2, operation="run")
    assert backend._verdict([lost, stalled, raised], {}) is raised
    assert backend._verdict([lost], {}) is lost


def test_an_actor_whose_process_is_stopped_is_named_though_nobody_can_say_so():
    """Ranks compare their calls in a store of rank 0's process: when it is stopped, the others wait there."""
    import signal
    import socket
    import subprocess
    import sys

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    here, there = (socket.gethostname(), child.pid), ("another machine", child.pid)
    waited = RankStalled("rank 1 waits", rank=1, operation="recv")
    waited.__dict__["wait"] = None
    try:
        ranks = ray_actors.StoppedRanks([here, here, there], timeout_s=0.3)
        ranks.look([0, 1, 2], [waited])
        assert ranks.error is None
        child.send_signal(signal.SIGSTOP)
        while ray_actors.state_of(child.pid) != ray_actors.STOPPED:
            time.sleep(0.01)
        ranks.look([2], [waited])  # of another machine nothing is known
        ranks.look([0, 2], [])
        assert ranks.error is None
        time.sleep(0.3)
        ranks.look([0, 2], [])
        assert isinstance(ranks.error, RankStalled)
        assert ranks.error.rank == 0
        assert f"process {child.pid}" in ranks.error.message
        assert child.wait(5) == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()


def test_a_rank_that_raises_is_named_with_its_line(shared_ray):
    with pytest.raises(RankDied) as caught:
        Cluster("classroom", 4, "ray", timeout_s=60).run(one_raises)
    assert caught.value.rank == 1
    assert "planted" in caught.value.message
    assert "programs.py" in caught.value.message


@pytest.mark.timeout(290)  # shorter than the operation timeout: only the death itself can have ended the run
def test_a_killed_actor_is_named_though_its_peers_fail_too(shared_ray):
    with pytest.raises(RankDied) as caught:
        Cluster("classroom", 4, "ray", timeout_s=600).run(one_is_killed)
    assert caught.value.rank == 2


def test_a_ray_of_our_own_leaves_no_process_and_no_variable_behind(tmp_path):
    """In a process of its own: this one may hold the shared Ray."""
    import subprocess
    import sys

    script = tmp_path / "alone.py"
    script.write_text(
        "import os, sys, json\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from programs import one_is_killed\n"
        "from test_ray import processes\n"
        "from glasscluster import Cluster\n"
        "from glasscluster.base.errors import RankDied\n"
        "before, there = dict(os.environ), processes()\n"
        "cluster = Cluster('classroom', 3, 'ray')\n"
        "try:\n"
        "    cluster.run(one_is_killed)\n"
        "except RankDied as error:\n"
        "    named = error.rank\n"
        "print(json.dumps({'rank': named, 'environment': before == dict(os.environ), 'left': "
        "sorted(processes() - there)}))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    import json

    said = json.loads(done.stdout.strip().splitlines()[-1])
    assert said["rank"] == 2
    assert said["environment"]
    assert gone(set(said["left"])) == set()


# ---- a Ray that is not there, that is too small, that is killed --------------------------------------------
def words(*lines: str) -> list[str]:
    """A program of its own, which may import what stands beside this file."""
    import sys

    here = str(Path(__file__).parent)
    return [sys.executable, "-c", "\n".join([f"import sys; sys.path.insert(0, {here!r})", *lines])]


@pytest.mark.parametrize("what", ["nobody", "a mute one", "another"])
def test_an_address_without_a_ray_is_named_within_15_seconds(what, monkeypatch):
    import socket
    import threading

    def answer() -> None:
        peer, _ = listening.accept()
        peer.sendall(b"SSH-2.0-other\r\n")
        peer.recv(100)
        peer.close()

    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    if what == "nobody":
        listening.close()
    elif what == "another":
        threading.Thread(target=answer, daemon=True).start()
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    monkeypatch.setattr(ray_session, "ANSWER_S", 1.0)
    begun = time.monotonic()
    with pytest.raises(BackendUnavailable, match=f"RAY_ADDRESS is 127.0.0.1:{port}"):
        ray_session.check_address(os.environ["RAY_ADDRESS"])
    assert time.monotonic() - begun < 5


def test_a_command_with_a_dead_address_ends_with_one_line_and_no_folder(tmp_path):
    import subprocess
    import sys

    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "glasscluster", *"train --dp 2 --backend ray --out run".split()],
        env={**os.environ, "RAY_ADDRESS": "127.0.0.1:9", "PYTHONPATH": str(Path(__file__).parents[1])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert time.monotonic() - begun < 15
    assert done.returncode == 3
    assert "BackendUnavailable: RAY_ADDRESS is 127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_ray_with_too_few_cpus_says_how_many_it_has(shared_ray):
    there = int(shared_ray.cluster_resources()["CPU"])
    says = f"{there + 1} actors need a CPU each, and this Ray has {there}"
    with pytest.raises(BackendUnavailable, match=says):
        Cluster("classroom", there + 1, "ray").run(one_raises)


def test_an_actor_that_cannot_start_is_named(shared_ray, monkeypatch):
    def no_meeting(self: Any) -> None:
        raise OSError("no port is free")

    monkeypatch.setattr(ray_actors._Rank, "host", no_meeting)
    with pytest.raises(BackendUnavailable, match=r"2 actors on cpu.*no port is free"):
        Cluster("classroom", 2, "ray").run(one_raises)


def test_the_meeting_point_of_ranks_on_one_machine_listens_on_one_address():
    import socket

    place, store = open_meeting_point("127.0.0.1")
    socket.create_connection(("127.0.0.1", place.port), timeout=5).close()
    others = {"127.0.0.2", *(i[4][0] for i in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET))}
    for other in others - {"127.0.0.1"}:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((other, place.port), timeout=5)
    place.store(store).set("key", "value")
    assert place.store().get("key") == b"value"
    assert not place._replace(name="another").store().check(["key"])
    assert open_meeting_point("127.0.0.1")[0].name != place.name


KILLED = (
    "import torch, time",
    "from glasscluster import Cluster",
    "from glasscluster.sim.ranks.backends import ray_session",
    "def program(gpu):",
    "    gpu.comm.all_reduce(torch.ones(4))",
    "    return gpu.rank",
    "cluster = Cluster('classroom', 2, 'ray')",
    "cluster.__enter__()",
    "cluster.run(program)",
    "session = cluster._backend.session",
    "print(session.folder, flush=True)",
)


@pytest.mark.soak  # Ray takes a minute
def test_a_killed_driver_leaves_no_process_and_its_folder_goes_with_the_next_ray():
    import subprocess

    there = processes()
    driver = subprocess.Popen(words(*KILLED, "time.sleep(600)"), stdout=subprocess.PIPE, text=True)
    folder = Path(driver.stdout.readline().strip())
    started = processes() - there
    token = Path.home() / ".ray" / "auth_token"
    modes = {path: path.stat().st_mode & 0o777 for path in (folder, token.parent, token)}
    driver.kill()
    driver.wait()
    begun = time.monotonic()
    assert gone(started) == set()
    print(f"{len(started)} processes were gone {time.monotonic() - begun:.1f} s after the driver was killed")
    assert len(started) >= 4
    assert modes == {folder: 0o700, token.parent: 0o700, token: 0o600}
    assert folder.is_dir()
    ray_session.remove_left_folders()
    assert not folder.exists()


def test_a_session_s_folder_goes_with_its_ray_and_one_in_use_is_left_alone():
    import subprocess

    lines = (
        *KILLED,
        "ray_session.remove_left_folders()",
        "assert session.folder.exists()",
        "cluster.close()",
    )
    done = subprocess.run(words(*lines), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not Path(done.stdout.strip()).exists()
