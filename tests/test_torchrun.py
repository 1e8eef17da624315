"""The same command under torchrun, over gloo: to the bit what threads give."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from programs import OUTSTANDING, expected

from glasscluster.base.errors import InputError, RankDied
from glasscluster.commands import failures
from glasscluster.sim.ranks.backends.siblings import Siblings, state_of
from glasscluster.sim.run import Cluster
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge import check
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.trainer import train_rank

pytestmark = pytest.mark.torchrun
ISSUE = (
    "--tp 2 --pp 2 --zero 1 --schedule gpipe --micro-batch 1 --global-batch 8 --layers 4 --hidden 64 "
    "--heads 4 --seq 32 "
    "--precision fp64 --steps 3 --json"
).split()


def torchrun(processes: int, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Start processes the way a user does; on a free port."""
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        *command,
    ]
    here = Path(__file__).parent  # and this checkout, wherever the package is installed from
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    return subprocess.run(
        words, capture_output=True, text=True, timeout=200, cwd=cwd, env=environment, check=False
    )


def on_threads(dp: int) -> dict[str, Any]:
    plan = make_plan(
        dp=dp, tp=2, pp=2, zero=1, schedule="gpipe", micro_batch=1, global_batch=8, precision="fp64"
    )
    results = (
        Cluster("classroom", plan.gpus, "threads")
        .run(train_rank, Job(plan, make_model("tiny", seq=32), capture=True))
        .results
    )
    return {"losses": [float(x) for x in results[-1].losses], "weights_sha256": check.digest(results)}


@pytest.mark.parametrize(("dp", "processes"), [(1, 4), pytest.param(2, 8, marks=pytest.mark.soak)])
def test_the_issue_s_command_under_torchrun_is_bit_equal_to_threads(dp, processes, tmp_path):
    done = torchrun(
        processes,
        "-m",
        "glasscluster",
        "train",
        "--dp",
        str(dp),
        *ISSUE,
        "--out",
        str(tmp_path / "run"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert said["backend"] == "torchrun"
    assert said["gpus"] == processes
    assert {k: said[k] for k in ("losses", "weights_sha256")} == on_threads(dp)
    assert max(said["max_rel_grad_diff"], said["max_rel_weight_diff"]) <= 1e-10
    assert said["status"] == "PASS"
    assert (tmp_path / "run" / "report.html").is_file()


def test_outstanding_works_do_not_deadlock_or_swap_under_torchrun(tmp_path, pool):
    script = tmp_path / "works.py"
    script.write_text(
        "import json\n"
        "from glasscluster import Cluster\n"
        "from programs import OUTSTANDING\n"
        "with Cluster('classroom', 4, 'torchrun') as cluster:\n"
        "    said = [cluster.run(p).results for p in OUTSTANDING]\n"
        "    if cluster.leader:\n"
        "        print(json.dumps(said))\n"
    )
    done = pool(4, str(script), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == [[expected(p, r, 4) for r in range(4)] for p in OUTSTANDING]


TWO = """
import os, time
import torch
from glasscluster import Cluster
def program(gpu, op):
    x = torch.ones(4) * (gpu.rank + 1)
    gpu.comm.all_reduce(x, op=op)
    return float(x[0])
for op in ("sum", "max", "min"):
    with Cluster("classroom", 2, "torchrun") as cluster:
        said = cluster.run(program, op).results
        if cluster.leader:
            print(op, said)
    # one rank is late for the next cluster, and meanwhile the other must not find its address in the last one
    time.sleep(0.5 * (os.environ["RANK"] == late))
"""


@pytest.mark.parametrize("late", ["0", "1"])
def test_clusters_one_after_the_other_in_one_job_do_not_meet_each_other(tmp_path, late, pool):
    script = tmp_path / "two.py"
    script.write_text(f"late = {late!r}\n{TWO}")
    done = pool(2, str(script), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n")[:3] == ["sum [3.0, 3.0]", "max [2.0, 2.0]", "min [1.0, 1.0]"]


OWN_GROUP = """
import torch.distributed as dist
from glasscluster import Cluster
dist.init_process_group("gloo")
for _ in range(2):
    with Cluster("classroom", 2, "torchrun") as cluster:
        said = cluster.run(lambda gpu: gpu.rank).results
        if cluster.leader:
            print(said)
dist.barrier()
dist.destroy_process_group()
"""


def test_a_process_group_of_the_caller_s_own_is_used_and_left(tmp_path, pool):
    script = tmp_path / "own.py"
    script.write_text(OWN_GROUP)
    done = pool(2, str(script), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n")[:2] == ["[0, 1]", "[0, 1]"]


def test_native_collectives_train_the_same_model_and_count_nothing(tmp_path, pool):
    done = pool(
        2,
        "-m",
        "glasscluster",
        *"train --dp 2 --algorithm native --seq 32 --steps 2 --json --out run".split(),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert said["max_rel_grad_diff"] <= 1e-10
    assert said["bytes_sent"] is None
    assert said["status"] == "PARTIAL"
    assert "native" in said["not_checked"][0]
    sent = [row for row in said["checks"] if row["key"].endswith("_sent")]
    assert {(row["verdict"], row["counted"]) for row in sent} == {("not applicable", None)}


def test_a_world_size_that_is_not_the_plan_s_is_exit_2(tmp_path):
    done = torchrun(2, "-m", "glasscluster", "train", "--dp", "4", cwd=tmp_path)
    assert done.returncode != 0
    assert "world size = 2" in done.stderr
    assert "exitcode  : 2" in done.stderr
    assert "Traceback" not in done.stderr.split("ChildFailedError")[0].split("world size")[0]
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_a_rank_that_fails_alone_lets_rank_0_speak_first_and_then_names_itself(monkeypatch, capsys):
    waited = []
    monkeypatch.setattr(failures.time, "sleep", waited.append)
    for rank, said in (("0", "InputError: out = 'x'"), ("1", "rank 1: InputError: out = 'x'")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert failures.fail(InputError("out", "x", "is not there"), []) == 2
        assert capsys.readouterr().err.startswith(said)
    assert waited == [failures.RANK_0_SPEAKS_S]


@pytest.mark.cuda
def test_one_gpu_over_nccl_trains_and_checks_itself(tmp_path):
    done = torchrun(
        1,
        "-m",
        "glasscluster",
        *"train --device cuda --seq 32 --steps 3 --json --out run".split(),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert max(said["max_rel_grad_diff"], said["max_rel_weight_diff"]) <= 1e-10


# ---- ranks and agents that somebody stops or kills ---------------------------------------------------------
LONG = "train --dp 4 --steps 100000 --seq 32 --no-check --timeout 5s"


def started(tmp_path: Path, processes: int = 4) -> tuple[subprocess.Popen[str], dict[int, int]]:
    """A long training run under torchrun, once it trains; with the process of each rank."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    words += [str(processes), "-m", "glasscluster", *LONG.split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    agent = subprocess.Popen(
        words,
        cwd=tmp_path,
        env=environment,
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while "training" not in (line := agent.stderr.readline()):
        assert line, "it ended before it trained"
    ranks = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and f"\nPPid:\t{agent.pid}\n" in (folder / "status").read_text():
                variables = (folder / "environ").read_text().split("\0")
                ranks[int(next(v for v in variables if v.startswith("RANK="))[5:])] = int(folder.name)
    assert sorted(ranks) == list(range(processes))
    time.sleep(3)  # every rank has met the others, and trains
    return agent, ranks


def finished(agent: subprocess.Popen[str], ranks: dict[int, int], within_s: float) -> str:
    """What was said until the agent and all ranks had ended, which must be soon."""
    begun = time.monotonic()
    said = agent.communicate(timeout=60)[1]
    while any(state_of(pid) != "gone" for pid in ranks.values()) and time.monotonic() - begun < 60:
        time.sleep(0.1)
    took = time.monotonic() - begun
    assert took < within_s, f"{took:.1f} s: {said}"
    assert "Traceback" not in said.split("ChildFailedError")[0].rpartition("Traceback")[0]
    return said


MACHINE_S = 4.0  # what torchrun itself takes to end, on a busy machine


def test_a_stopped_rank_is_named_and_ends_after_the_timeout(tmp_path):
    agent, ranks = started(tmp_path)
    os.kill(ranks[2], signal.SIGSTOP)
    said = finished(agent, ranks, 5 + 2 + MACHINE_S)
    assert "RankStalled: rank 2 is stopped" in said
    assert "RankDied" not in said


@pytest.mark.parametrize("rank", [3, pytest.param(0, marks=pytest.mark.soak)])
def test_a_killed_rank_is_named_by_another_one(rank, tmp_path):
    agent, ranks = started(tmp_path)
    os.kill(ranks[rank], signal.SIGKILL)
    said = finished(agent, ranks, 5 + MACHINE_S)
    named = re.findall(r"RankDied: rank (\d) ", said)
    assert named
    assert set(named) == {str(rank)}


def test_ranks_end_when_their_agent_is_killed(tmp_path):
    agent, ranks = started(tmp_path)
    agent.kill()
    finished(agent, ranks, 8 + MACHINE_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.soak)])
def test_a_signal_to_torchrun_ends_the_run_with_one_line(number, tmp_path):
    agent, ranks = started(tmp_path)
    agent.send_signal(number)
    said = finished(agent, ranks, 8 + MACHINE_S)
    assert said.count("nothing was written") == 1
    assert "RankDied" not in said
    assert not list(tmp_path.iterdir())


def test_what_the_first_failing_rank_says_is_what_all_report():
    import torch

    store = torch.distributed.HashStore()
    first, second = (Siblings(store, rank, 2) for rank in range(2))
    cause = RankDied("rank 0 raised ValueError: planted", rank=0, operation="step")
    assert first.find_cause(cause) is cause
    seen = RankDied("rank 0 is gone", rank=0, operation="recv", peer=0)
    seen.__dict__["wait"] = None
    assert second.find_cause(seen).message == cause.message
    own = RankDied("rank 1 raised as well", rank=1)
    assert second.find_cause(own) is own


def test_a_process_is_gone_stopped_or_running():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert state_of(child.pid) == "running"
    child.send_signal(signal.SIGSTOP)
    end = time.monotonic() + 5
    while state_of(child.pid) != "stopped" and time.monotonic() < end:
        time.sleep(0.01)
    assert state_of(child.pid) == "stopped"
    child.kill()
    while state_of(child.pid) != "gone" and time.monotonic() < end:  # not waited for: a zombie
        time.sleep(0.01)
    assert state_of(child.pid) == "gone"
    child.wait()
    assert state_of(child.pid) == "gone"


@pytest.mark.soak
@pytest.mark.parametrize("case", range(20))
def test_a_signal_to_torchrun_at_a_random_time_leaves_no_rank_and_no_folder(case, tmp_path):
    draw = random.Random(case)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += ["-m", "glasscluster", *LONG.replace("--dp 4", "--dp 2").split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    agent = subprocess.Popen(words, cwd=tmp_path, env=environment, text=True, stderr=subprocess.PIPE)
    time.sleep(draw.uniform(1.0, 20.0))
    agent.send_signal(signal.SIGTERM)
    said = agent.communicate(timeout=60)[1]
    assert said.count("nothing was written") <= 1
    assert "RankDied" not in said
    assert "terminate called" not in said
    assert not [p for p in tmp_path.rglob("*") if p.is_dir() and not any(p.iterdir())]
