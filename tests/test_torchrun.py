"""The same command under torchrun, over gloo: to the bit what threads give."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from programs import OUTSTANDING, expected

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


def test_outstanding_works_do_not_deadlock_or_swap_under_torchrun(tmp_path):
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
    done = torchrun(4, str(script), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == [[expected(p, r, 4) for r in range(4)] for p in OUTSTANDING]


def test_native_collectives_train_the_same_model_and_count_nothing(tmp_path):
    done = torchrun(
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
