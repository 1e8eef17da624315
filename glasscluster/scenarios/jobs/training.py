"""One training run: train, check against one device, count, time, and write the folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from glasscluster.base.errors import DoesNotFit, GlassError, InputError, OutOfMemory
from glasscluster.base.files import make_folder
from glasscluster.base.quantities import written_bytes
from glasscluster.base.rows import Row
from glasscluster.base.text import Said, counted
from glasscluster.model.config import ModelConfig
from glasscluster.model.weights import hugging_face
from glasscluster.model.weights.families import WeightsError
from glasscluster.scenarios.jobs.exchange import train_with_servers
from glasscluster.scenarios.jobs.folders import (
    keep_partial,
    output_folder,
    rewriting,
    write_ledger,
    write_run_json,
)
from glasscluster.scenarios.jobs.layer_pictures import network_pictures
from glasscluster.scenarios.jobs.processes import default_backend, is_leader
from glasscluster.scenarios.jobs.progress import Say, silent
from glasscluster.scenarios.jobs.room import of_training
from glasscluster.scenarios.jobs.shapes import model_of, passed_over
from glasscluster.scenarios.jobs.sources import check_data, folded, parse_data
from glasscluster.scenarios.jobs.trained import Trained
from glasscluster.scenarios.requests.names import check_moves_data
from glasscluster.scenarios.requests.train import TrainRequest
from glasscluster.sim.ranks.collectives import load
from glasscluster.sim.run import Cluster
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.judge import accounts, advice, check
from glasscluster.strategies.layout.judged import Judged
from glasscluster.strategies.layout.whole import assemble
from glasscluster.strategies.plan import Plan
from glasscluster.strategies.trainer import train_rank
from glasscluster.visualize.page.one_run import write_run_report
from glasscluster.visualize.page.trace import write_chrome_trace


def train(cluster: Cluster, job: Job, *, checked: bool = True, say: Say = silent) -> Trained:
    """Run a job on a cluster: first the float64 check, then the recorded run in the plan's precision.

    Without `checked` nothing is compared. Raises OutOfMemory, with advice, where a rank's memory is full.
    """
    if job.plan.exchange != "all-reduce":
        return train_with_servers(cluster, job, checked=checked, say=say)
    wall: dict[str, float] = {}
    compared = None
    if checked:
        small = check.check_job(job)
        say(
            f"checking {counted(small.steps, 'step')} in float64 on {counted(job.plan.gpus, cluster.backend_name + ' rank')}"
        )
        begun = time.perf_counter()
        results = cluster.run(train_rank, small, record=False).results
        wall["check"] = time.perf_counter() - begun
    say(f"training {counted(job.steps, 'step')} in {job.plan.precision}, recording the last")
    begun = time.perf_counter()
    given = (
        {}
        if cluster.capacity in (None, cluster.hardware.gpu.memory_bytes)
        else {"memory_bytes": cluster.capacity}
    )
    try:
        run = cluster.run(train_rank, job, info=job_info(job, seed=job.seed, **given))
    except OutOfMemory as error:
        assert cluster.capacity is not None
        suggestions = advice.advise(
            job.plan, job.model, cluster.hardware, cluster.capacity, steps=job.steps, say=say
        )
        error.advise(str(suggestions), [fit.as_dict() for fit in suggestions.best])
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
    """The check rows that gradients and weights are within 1e-10 of one device's; none where nothing was
    compared.
    """
    if compared is None:
        return []
    steps = compared["checked_steps"]
    return [
        Row(
            f"{what}_difference",
            Said(
                f"largest {what} difference from one device, float64, {counted(steps, 'step')}",
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
    """The check rows of the plan's strategies: what each formula promises beside what was counted."""
    job, run = trained.job, trained.run
    return accounts.rows(Judged(job.plan, job.model, run.graph, run.results, trained.timeline))


def check_memory(cluster: Cluster, job: Job, say: Say = silent) -> None:
    """Raise DoesNotFit before anything starts if the plan does not fit the virtual GPU, with changes that
    would fit.

    One rank of each stage is recorded dry, unless the model is so small that it fits in any layout.
    """
    plan, model, capacity = job.plan, job.model, cluster.capacity
    if capacity is None or advice.surely_fits(plan, model, capacity):
        return
    say(f"recording one rank of each stage without data, to see whether {written_bytes(capacity)} suffice")
    recorded = advice.stages(plan, model, capacity, job.steps, cluster.hardware.host.memory_bytes)
    if isinstance(recorded, OutOfMemory):
        suggestions = advice.advise(plan, model, cluster.hardware, capacity, steps=job.steps, say=say)
        raise DoesNotFit(capacity, recorded, str(suggestions), [fit.as_dict() for fit in suggestions.best])


def train_command(request: TrainRequest, say: Say = silent) -> Trained:
    """Run `glass train`: a cluster, a job, its folder. On failure the events so far are written before the
    error goes on.
    """
    job, cluster = request.prepared(prepare)
    plan, model = job.plan, job.model
    if request.save is not None:
        check_saving(request.save, model, plan)
    size = of_training(job, request.check).said(cluster)
    for sentence in (folded(job.data, model.seq, model.vocab), passed_over(job.weights, job.model), size):
        if sentence:
            say(sentence)
    check_memory(cluster, job, say)
    if not is_leader():
        with cluster:
            return train(cluster, job, checked=request.check, say=say)
    folder = output_folder(request.out, "train")
    try:
        with cluster:
            trained = train(cluster, job, checked=request.check, say=say)
    except GlassError as error:
        keep_partial(folder, error, job_info(job, seed=job.seed, backend=cluster.backend_name), say)
        raise
    if request.save is not None:  # before the report: what took longest to make is safe first
        say(f"writing the weights to {request.save}")
        pieces = [r.weights[-1] | r.constants for r in trained.run.results]
        hugging_face.save(assemble(plan, model, pieces), request.save)
    say(f"writing {folder}/report.html")
    with rewriting(folder) as beside:
        write_files(beside, trained, f"train on {counted(plan.gpus, 'GPU')}", folder)
    return trained


def prepare(request: TrainRequest) -> tuple[Job, Cluster]:
    """The job and its cluster, judged by every rule that needs no run; InputError naming what cannot be."""
    plan, model, weights = request.plan, model_of(request), request.weights
    if weights is not None:  # the shape was not known before
        plan.check(model)
    data = parse_data(request.data, request.tokenizer, request.pack)
    check_data(data, model.seq, model.vocab, weights)
    if weights is not None and plan.exchange != "all-reduce":
        rule = f"--exchange {plan.exchange} starts from the seed's: leave them out, or take all-reduce"
        raise InputError("weights", weights, rule)
    cluster = make_cluster(request, plan.gpus)
    cluster.hardware.gpu.peak(plan.precision)
    keep = request.save is not None
    job = Job(plan, model, request.steps, data, request.seed, weights=weights, keep=keep)
    job.check_packed()
    of_training(job, request.check).check(cluster)
    load(plan.algorithm)  # before any rank does: a mistake in a file is one of usage
    return job, cluster


def make_cluster(request: TrainRequest, gpus: int) -> Cluster:
    """The cluster of the request, with `gpus` ranks."""
    options: dict[str, Any] = {"timeout_s": request.timeout} if request.timeout else {}
    memory: float | str = "hardware" if request.memory is None else request.memory
    backend = request.backend or default_backend()
    check_moves_data(backend, "a training has losses; glass predict is what records a plan")
    ranks = {"seed": request.seed, "device": request.device}
    return Cluster(request.hardware, gpus, backend, memory_bytes=memory, **ranks, **options)


def check_saving(folder: str, model: ModelConfig, plan: Plan) -> None:
    """Raise InputError, before anything runs, if Hugging Face's layout has no place for the weights."""
    if plan.exchange != "all-reduce":
        raise InputError("save", folder, f"--exchange {plan.exchange} keeps no weights; all-reduce does")
    try:
        hugging_face.family_of(model)
        make_folder(folder)
    except WeightsError as problem:
        raise InputError("save", folder, str(problem)) from None
    except OSError as problem:
        raise InputError("save", folder, f"cannot be made: {problem.strerror}") from None


def write_files(folder: Path, trained: Trained, title: str, shown: Path | None = None) -> None:
    """Write report.html, graph.npz, ledger.csv, trace.json and run.json.

    shown: the folder that they will lie in, where `folder` is only on the way there.
    """
    trained.run.graph.save(folder / "graph.npz")
    write_chrome_trace(trained.timeline, folder / "trace.json")
    write_ledger(folder / "ledger.csv", trained.checks)
    pictures, missing = network_pictures(trained), trained.not_checked
    report = write_run_report(trained.run, folder / "report.html", pictures, missing)
    trained.report = (shown or folder) / report.name
    write_run_json(folder, {**trained.as_json(), "wall_s": trained.wall_s, "title": title})
