"""Run a plan and judge it: what most tests do."""

from __future__ import annotations

from typing import Any

from glasscluster.model.config import ModelConfig
from glasscluster.sim.cluster import Cluster, Run
from glasscluster.strategies import check
from glasscluster.strategies.plan import Plan
from glasscluster.strategies.trainer import Job, job_info, train_rank


def run_plan(plan: Plan, model: ModelConfig, backend: str = "threads", **options: Any) -> Run:
    """Train on a backend; options are Job's."""
    job = Job(plan, model, **{"steps": 1, **options})
    return Cluster("classroom", plan.gpus, backend, memory_bytes=None).run(train_rank, job, info=job_info(job))


def differences(plan: Plan, model: ModelConfig, steps: int = 3) -> dict[str, Any]:
    """Largest differences from one device over `steps` steps in float64, on threads."""
    job = Job(plan.model_copy(update={"precision": "fp64"}), model, steps=steps, capture=True)
    results = Cluster("classroom", plan.gpus, "threads", memory_bytes=None).run(train_rank, job, record=False).results
    return check.compare(results, check.reference_for(job), job.plan)


def worst(compared: dict[str, Any]) -> float:
    """The largest of gradient, weight and loss difference."""
    return max(compared[f"max_rel_{k}_diff"] for k in ("grad", "weight", "loss"))
