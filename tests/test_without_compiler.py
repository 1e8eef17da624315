"""torch's compiler stays unimported, and what it would have wrapped computes the same."""

from __future__ import annotations

import subprocess
import sys

DRY = """
import sys
from glasscluster.sim.run import Cluster
from glasscluster.strategies.job import Job
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.trainer import train_rank
{before}
plan, model = make_plan(tp=2, zero=1, dp=2, global_batch=4), make_model("tiny")
for backend in ("dry", "threads"):
    with Cluster("classroom", 4, backend) as cluster:
        cluster.run(train_rank, Job(plan, model, 1, None, 0))
print("torch._dynamo" in sys.modules)
"""
OFF = "import glasscluster.sim.ranks.gpu as gpu; gpu.leave_compiler_alone = lambda: 0"


def imported(before: str) -> str:
    done = subprocess.run([sys.executable, "-c", DRY.format(before=before)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_neither_a_dry_run_nor_training_imports_the_compiler():
    assert imported("") == "False"


def test_without_the_marks_it_is_imported():
    assert imported(OFF) == "True"  # else torch has changed, and without_compiler.py has nothing to do


def test_a_marked_function_gives_what_it_gave():
    import torch

    from glasscluster.sim.recording.without_compiler import leave_compiler_alone

    leave_compiler_alone()
    x = torch.empty(3, 5, dtype=torch.int64, device="meta")
    out = (x < 0) | (x >= 2)
    assert (out.shape, out.dtype) == ((3, 5), torch.bool)
    y = torch.addmm(
        torch.empty(4, device="meta"), torch.empty(3, 5, device="meta"), torch.empty(5, 4, device="meta")
    )
    assert (tuple(y.shape), y.dtype, y.stride()) == ((3, 4), torch.float32, (4, 1))
