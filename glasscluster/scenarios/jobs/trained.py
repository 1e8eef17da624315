"""The result of a training: its run, its checks, and the object that `--json` prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glasscluster.base.rows import NOT_COUNTED, Row, judged, tally
from glasscluster.base.text import Said
from glasscluster.scenarios.jobs.sources import read_so_far
from glasscluster.sim.run import Run
from glasscluster.sim.time.timeline import Timeline
from glasscluster.strategies.job import Job

NO_REFERENCE = Said(
    "that gradients, weights and losses are those of the reference in float64 (--no-check)",
    "梯度、权重和损失与 float64 参考是否一致（--no-check）",
)


@dataclass
class Trained:
    """A finished training run with everything that `glass train` prints."""

    job: Job
    run: Run
    comparison: dict[str, Any] | None
    checks: list[Row] = field(default_factory=list)
    wall_s: dict[str, float] = field(default_factory=dict)
    report: Path | None = None
    read: dict[str, Any] | None = None  # what the steps read of each source of a mixture

    def __post_init__(self) -> None:
        job = self.job  # read now: the files may be gone when the result is printed
        self.read = read_so_far(job.data, job.model.seq, job.steps * job.plan.global_batch, job.seed)

    @property
    def timeline(self) -> Timeline:
        """The run's timeline on the cluster's own hardware."""
        return self.run.timeline

    @property
    def ok(self) -> bool:
        """No check failed."""
        return not tally(self.checks).failed

    @property
    def not_checked(self) -> list[Said]:
        """What is checked by default and was not."""
        unchecked = [] if self.comparison else [NO_REFERENCE]
        return [*unchecked, NOT_COUNTED] if self.run.graph.has_native else unchecked

    def memory(self) -> dict[str, Any]:
        """The peak memory with its split by category, and the state bytes: lists with one entry a rank."""
        peaks = self.run.peak_memory()
        return {
            "peak_memory_bytes": [total for total, _ in peaks],
            "memory_bytes": {c: [split[c] for _, split in peaks] for c in peaks[0][1]},
            "state_bytes": {
                k: [r.state_bytes[k] for r in self.run.results] for k in self.run.results[0].state_bytes
            },
            "host_bytes": [r.host_bytes for r in self.run.results],
        }

    def as_json(self) -> dict[str, Any]:
        """The `glass.train/1` object."""
        job, compared, first = self.job, self.comparison or {}, self.run.results[0]
        return {
            "schema": "glass.train/1",
            "plan": job.plan.model_dump(mode="json"),
            "model": job.model.model_dump(mode="json"),
            "backend": self.run.backend,
            "hardware": self.run.hardware.name,
            "gpus": job.plan.gpus,
            "steps": job.steps,
            "seed": job.seed,
            "weights": job.weights,
            **({"data": self.read} if self.read else {}),
            "losses": [float(loss) for loss in self.run.results[-1].losses],
            "reference": compared.get("reference", "one device"),
            "checked_steps": compared.get("checked_steps", 0),
            "reference_losses": compared.get("reference_losses", []),
            "max_rel_loss_diff": compared.get("max_rel_loss_diff"),
            "max_rel_grad_diff": compared.get("max_rel_grad_diff"),
            "max_rel_weight_diff": compared.get("max_rel_weight_diff"),
            "weights_sha256": compared.get("weights_sha256"),
            "bytes_sent": self.run.graph.traffic() if not self.run.graph.has_native else None,
            **({"loss_scales": first.loss_scales} if first.loss_scales else {}),
            **({"skipped_steps": [i for i, s in enumerate(first.skipped) if s]} if first.skipped else {}),
            **({"returned_steps": first.returned} if job.plan.rollback else {}),
            **self.memory(),
            **self.timeline.summary(*(self.run.graph.info[f"{k}_flops"] for k in ("model", "causal"))),
            **judged(self.checks, self.not_checked),
            "report": str(self.report) if self.report else None,
        }
