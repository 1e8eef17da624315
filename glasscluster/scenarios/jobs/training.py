"""One training run from plan to verdict: run it, check it against one device, count it, time it, write it down."""

from __future__ import annotations

import csv
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from glasscluster.base.errors import DoesNotFit, GlassError, InputError, OutOfMemory
from glasscluster.base.rows import NOT_COUNTED, Row, judged, tally
from glasscluster.base.text import Said
from glasscluster.model.config import ModelConfig
from glasscluster.model.layers import moe
from glasscluster.model.weights import hugging_face
from glasscluster.model.weights.families import WeightsError
from glasscluster.scenarios.jobs.kept import kept_picture
from glasscluster.scenarios.jobs.sources import Data, check_data, read_so_far
from glasscluster.sim.ranks.collectives import load
from glasscluster.sim.run import Cluster, Run
from glasscluster.sim.time.timeline import Timeline
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.judge import accounts, advice, check
from glasscluster.strategies.layout import tokens as cut
from glasscluster.strategies.layout.judged import Judged
from glasscluster.strategies.layout.whole import assemble
from glasscluster.strategies.plan import Plan
from glasscluster.strategies.trainer import train_rank

Say = Callable[[str], None]
NO_REFERENCE = Said(
    "that gradients, weights and losses are those of the reference in float64 (--no-check)",
    "梯度、权重和损失与 float64 参考是否一致（--no-check）",
)


def silent(_text: str) -> None:
    """No progress."""


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
        job = self.job  # now: later its files may be gone
        self.read = read_so_far(job.data, job.model.seq, job.steps * job.plan.global_batch, job.seed)

    @property
    def timeline(self) -> Timeline:
        """On the cluster's hardware."""
        return self.run.timeline

    @property
    def ok(self) -> bool:
        """No check failed."""
        return not tally(self.checks).failed

    @property
    def not_checked(self) -> list[Said]:
        """What is checked by default and was not."""
        found = [] if self.comparison else [NO_REFERENCE]
        return [*found, NOT_COUNTED] if self.run.graph.has_native else found

    def memory(self) -> dict[str, Any]:
        """Peak, its split, and state bytes, one entry a rank."""
        peaks = self.run.peak_memory()
        return {
            "peak_memory_bytes": [total for total, _ in peaks],
            "memory_bytes": {c: [split[c] for _, split in peaks] for c in peaks[0][1]},
            "state_bytes": {k: [r.state_bytes[k] for r in self.run.results] for k in self.run.results[0].state_bytes},
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
            **self.timeline.summary(self.run.graph.info["model_flops"]),
            **judged(self.checks, self.not_checked),
            "report": str(self.report) if self.report else None,
        }


def train(cluster: Cluster, job: Job, *, checked: bool = True, say: Say = silent) -> Trained:
    """Run a job on a cluster: the float64 check first, then the recorded run in the plan's precision."""
    if job.plan.exchange != "all-reduce":
        from glasscluster.scenarios.jobs.exchange import train_with_servers

        return train_with_servers(cluster, job, checked=checked, say=say)
    wall: dict[str, float] = {}
    compared = None
    if checked:
        small = check.check_job(job)
        say(f"checking {small.steps} steps in float64 on {job.plan.gpus} {cluster.backend_name} ranks")
        begun = time.perf_counter()
        results = cluster.run(train_rank, small, record=False).results
        wall["check"] = time.perf_counter() - begun
    say(f"training {job.steps} steps in {job.plan.precision}, recording the last")
    begun = time.perf_counter()
    given = {} if cluster.capacity in (None, cluster.hardware.gpu.memory_bytes) else {"memory_bytes": cluster.capacity}
    try:
        run = cluster.run(train_rank, job, info=job_info(job, seed=job.seed, **given))
    except OutOfMemory as error:
        assert cluster.capacity is not None
        found = advice.advise(job.plan, job.model, cluster.hardware, cluster.capacity, steps=job.steps, say=say)
        error.advise(str(found), [fit.as_dict() for fit in found.best])
        raise
    wall["run"] = time.perf_counter() - begun
    if not cluster.leader:
        return Trained(job, run, None)
    if checked:
        begun = time.perf_counter()
        say("training one device in float64 to compare with")
        compared = check.compare(results, check.reference_for(small), job.plan)
        wall["reference"] = time.perf_counter() - begun
    trained = Trained(job, run, compared, wall_s=wall)
    trained.checks = equivalence_rows(compared) + counted_rows(trained)
    run.checks = trained.checks
    return trained


def equivalence_rows(compared: dict[str, Any] | None) -> list[Row]:
    """Gradients and weights within 1e-10 of one device."""
    if compared is None:
        return []
    steps = compared["checked_steps"]
    return [
        Row(
            f"{what}_difference",
            Said(
                f"largest {what} difference from one device, float64, {steps} steps",
                f"与单卡（float64，{steps} 步）的最大{check.WHAT[what].zh}差异",
            ),
            0.0,
            compared[f"max_rel_{short}_diff"],
            "one device, same seed",
            unit="relative",
            tolerance=check.TOLERANCE,
        )
        for what, short in check.SHORT.items()
    ]


def counted_rows(trained: Trained) -> list[Row]:
    """What every strategy's papers promise, beside what was counted."""
    job, run = trained.job, trained.run
    return accounts.rows(Judged(job.plan, job.model, run.graph, run.results, trained.timeline))


def check_memory(cluster: Cluster, job: Job, say: Say = silent) -> None:
    """Refuse a plan that does not fit the virtual GPU before anything starts, and say what would fit.

    One rank of each stage is recorded dry, unless the model is so small that it fits however it is cut.
    """
    plan, model, capacity = job.plan, job.model, cluster.capacity
    if capacity is None or advice.surely_fits(plan, model, capacity):
        return
    say(f"recording one rank of each stage without data, to see whether {capacity / 1e9:.4g} GB are enough")
    recorded = advice.stages(plan, model, capacity, job.steps, cluster.hardware.host.memory_bytes)
    if isinstance(recorded, OutOfMemory):
        found = advice.advise(plan, model, cluster.hardware, capacity, steps=job.steps, say=say)
        raise DoesNotFit(capacity, recorded, str(found), [fit.as_dict() for fit in found.best])


def train_command(
    plan: Plan,
    model: ModelConfig,
    *,
    steps: int,
    data: Data,
    checked: bool,
    backend: str,
    device: str,
    seed: int,
    hardware: str,
    timeout_s: float | None,
    memory_bytes: float | str,
    out: str | None,
    weights: str | None = None,
    save: str | None = None,
    say: Say = silent,
) -> Trained:
    """`glass train`: a cluster, a job, its folder. On failure what was recorded is written before the error goes on."""
    check_data(data, model.seq, model.vocab)
    if weights is not None and plan.exchange != "all-reduce":
        raise InputError("weights", weights, f"--exchange {plan.exchange} starts from the seed's", ["--exchange all-reduce"])
    options: dict[str, Any] = {"timeout_s": timeout_s} if timeout_s else {}
    cluster = Cluster(hardware, plan.gpus, backend, memory_bytes=memory_bytes, seed=seed, device=device, **options)
    cluster.hardware.gpu.peak(plan.precision)
    if save is not None:
        check_saving(save, model, plan)
    job = Job(plan, model, steps, data, seed, weights=weights, keep=save is not None)
    job.check_packed()
    load(plan.algorithm)  # before any rank does: a mistake in a file is one of usage
    check_memory(cluster, job, say)
    if not leads():
        with cluster:
            return train(cluster, job, checked=checked, say=say)
    folder = output_folder(out, "train")
    try:
        with cluster:
            trained = train(cluster, job, checked=checked, say=say)
    except GlassError as error:
        keep_partial(folder, error, job_info(job, seed=seed, backend=backend), say)
        raise
    say(f"writing {folder}/report.html")
    write_files(folder, trained, f"train on {plan.gpus} GPUs")
    if save is not None:
        say(f"writing the weights to {save}")
        hugging_face.save(assemble(plan, model, [r.weights[-1] for r in trained.run.results]), save)
    return trained


def check_saving(folder: str, model: ModelConfig, plan: Plan) -> None:
    """The weights will have a place in Hugging Face's layout; InputError otherwise, before anything runs."""
    if plan.exchange != "all-reduce":
        raise InputError("save", folder, f"--exchange {plan.exchange} keeps no weights", ["--exchange all-reduce"])
    try:
        hugging_face.family_of(model)
        Path(folder).mkdir(parents=True, exist_ok=True)
    except WeightsError as problem:
        raise InputError("save", folder, str(problem)) from None
    except OSError as problem:
        raise InputError("save", folder, f"cannot be made: {problem.strerror}") from None


def leads() -> bool:
    """False in the processes of a torchrun job that are not rank 0."""
    return os.environ.get("RANK", "0") == "0" or "WORLD_SIZE" not in os.environ


def output_folder(out: str | None, name: str) -> Path:
    """The folder to write to; the default is the first free runs/NAME-N."""
    if out is None:
        number = 1
        while Path(f"runs/{name}-{number}").exists():
            number += 1
        out = f"runs/{name}-{number}"
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise InputError("out", out, f"cannot be made: {problem.strerror}") from None
    return folder


def write_files(folder: Path, trained: Trained, title: str) -> None:
    """report.html, graph.npz, ledger.csv, trace.json and run.json."""
    from glasscluster.visualize.page.report import write_run_report
    from glasscluster.visualize.page.trace import write_chrome_trace

    trained.run.graph.save(folder / "graph.npz")
    write_chrome_trace(trained.timeline, folder / "trace.json")
    write_ledger(folder / "ledger.csv", trained.checks)
    pictures, missing = network_pictures(trained), trained.not_checked
    trained.report = write_run_report(trained.run, folder / "report.html", pictures, missing)
    write_run_json(folder, {**trained.as_json(), "wall_s": trained.wall_s, "title": title})


def network_pictures(trained: Trained) -> dict[str, Callable[[str], Any]]:
    """What only the plan and the results know how to draw of who computes what: a cut causal mask, and the load of experts."""
    plan, model, results = trained.job.plan, trained.job.model, trained.run.results
    made: dict[str, Callable[[str], Any]] = {}
    if plan.tp > 1 and not model.experts and not model.kv_latent:
        made["matrices"] = partial(_matrices, plan, model)
    kept = None if trained.job.packed else kept_picture(plan, model)  # documents keep one more copy of attention's output than the list
    if kept:
        made["kept"] = kept  # in the memory tab
    if plan.cp > plan.heads_cut and model.causal and not model.prefix:
        made["causal"] = partial(_causal, plan, model)
    if model.experts:
        made["experts"] = partial(_load, plan, model, results)
    if plan.ep > 1 and not trained.run.graph.has_native:
        made["dispatch"] = partial(_dispatch, trained.run.graph)
    return made


def _matrices(plan: Plan, model: ModelConfig, lang: str) -> Any:
    """One layer's matrices by rank."""
    from glasscluster.visualize.figures.matrices import matrices_figure
    from glasscluster.visualize.words import word

    return matrices_figure({"": model}, plan.tp, lang, plan.sequence_parallel, word("matrices_title", lang))


def _causal(plan: Plan, model: ModelConfig, lang: str) -> Any:
    """The mask of few tokens, by who has which; the work is the model's own."""
    from glasscluster.visualize.figures.causal import Shared, causal_figure
    from glasscluster.visualize.words import word

    groups = plan.cp // plan.heads_cut
    tokens = 2 * groups * max(1, 8 // groups)
    queries = [0] * tokens
    for group in range(groups):
        for token in cut.tokens_of(plan.context, group, groups, tokens):
            queries[token] = group
    pairs = cut.work(plan.context, plan.cp, model.seq, model.heads // plan.tp, plan.heads_cut)
    return causal_figure([Shared(plan.context, queries, pairs)], lang, word("causal_work", lang, tokens=tokens))


def _load(plan: Plan, model: ModelConfig, results: list[Any], lang: str) -> Any:
    """All ranks' rows for each expert; tp ranks route the same tokens."""
    from glasscluster.visualize.figures.experts import Load, expert_load_figure
    from glasscluster.visualize.words import word

    first = results[:: plan.tp]
    wanted, kept = ([sum(c) for c in zip(*(c for r in first for c in r.routing_counts(what)), strict=True)] for what in ("wanted", "kept"))
    sequences = plan.global_batch * model.layers
    places = moe.capacity(model, model.seq) * sequences if model.capacity_factor else None
    return expert_load_figure([Load("", wanted, kept, places)], lang, word("expert_load", lang))


def _dispatch(graph: Any, lang: str) -> Any:
    from glasscluster.visualize.figures.network import matrices_figure, matrix
    from glasscluster.visualize.words import word

    return matrices_figure({word("dispatch_matrix", lang): matrix(graph, "ep", "dispatch")}, lang, across=1)


def write_ledger(path: Path, rows: list[Row]) -> None:
    """The checks as CSV."""
    columns = ["name", "predicted", "counted", "simulated", "measured", "unit", "match", "tolerance", "ok", "source"]
    columns += ["key", "verdict", "why"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row.as_dict() for row in rows)


def write_run_json(folder: Path, content: dict[str, Any]) -> None:
    """Everything that differs from machine to machine lives here, not in the report."""
    import torch

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    (folder / "run.json").write_text(json.dumps({**content, "versions": versions}, indent=1, default=str))


def keep_partial(folder: Path, error: GlassError, info: dict[str, Any], say: Say) -> None:
    """After a failed run its folder holds what was recorded; after a usage error there is no folder."""
    if error.exit_code == 3:
        say(f"what was recorded is in {write_partial(folder, error, info)}")
    elif not any(folder.iterdir()):
        folder.rmdir()


def write_partial(folder: Path, error: GlassError, info: dict[str, Any]) -> Path:
    """What a failed run leaves: each rank's events so far (npz, no pickle) and its last operations with the error."""
    import numpy as np

    from glasscluster.sim.recording.events import FIELDS, KINDS

    run, ranks = error.__dict__.get("run"), []
    for outcome in run.outcomes if run is not None else []:
        recording = outcome.recording
        if recording is None:
            continue
        table, names = recording["table"], recording["names"]
        np.savez_compressed(
            folder / f"partial-rank{outcome.rank}.npz", table=table, fields=np.array(FIELDS), names=np.array(names, dtype=str)
        )
        kind, op = FIELDS.index("kind"), FIELDS.index("op")
        last = [f"{KINDS[int(e[kind])]} {names[int(e[op])]}" for e in table[-64:]]
        said = outcome.error.as_dict() if outcome.error is not None else None
        ranks.append({"rank": outcome.rank, "events": len(table), "error": said, "last_operations": last})
    write_run_json(folder, {"schema": "glass.partial/1", **error.as_dict(), "info": info, "ranks": ranks})
    return folder
