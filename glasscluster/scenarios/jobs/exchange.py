"""`glass train --exchange parameter-server | async-server`: the checks of any training run, against the
strategy's own reference.
"""

from __future__ import annotations

import time
from dataclasses import replace
from hashlib import sha256
from typing import Any

import torch

from glasscluster.base.rows import Row
from glasscluster.base.text import Said, counted
from glasscluster.scenarios.jobs.progress import Say, silent
from glasscluster.scenarios.jobs.trained import Trained
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import Hardware
from glasscluster.strategies.exchange import parameter_server as ps
from glasscluster.strategies.exchange.arrivals import Arrivals, Layout, synchronous
from glasscluster.strategies.exchange.virtual_clock import virtual
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.judge import check
from glasscluster.strategies.result import RankResult

OWN = "the arrival plan in one process"


def plan_of(job: Job, clock: Hardware) -> Arrivals:
    """The order in which workers are served: by rank, or as on the virtual clock. Servers share GPUs with the
    first workers.
    """
    plan = job.plan
    staleness = plan.staleness if plan.exchange == "async-server" else None
    layout = Layout(plan.dp, plan.servers or plan.dp, job.steps, staleness)
    return synchronous(layout) if staleness is None else virtual(job, layout, clock, jitter=plan.jitter)


def train_with_servers(cluster: Cluster, job: Job, *, checked: bool = True, say: Say = silent) -> Trained:
    """Fix the order of arrivals, check it in float64, then record the run: all clocks of it, since they
    overlap.
    """
    wall, results = {}, []
    small, plan = check.check_job(job), plan_of(job, cluster.hardware)
    first = plan_of(replace(job, steps=small.steps), cluster.hardware)
    if checked:
        say(f"checking {small.steps} clocks in float64 on {job.plan.dp} {cluster.backend_name} workers")
        begun = time.perf_counter()
        results = cluster.run(ps.exchange, small, first, record=False).results
        wall["check"] = time.perf_counter() - begun
    say(f"training {job.steps} clocks in {job.plan.precision}, order: {plan.source}")
    begun = time.perf_counter()
    run = cluster.run(ps.exchange, job, plan, info=job_info(job, seed=job.seed, **plan.info))
    wall["run"] = time.perf_counter() - begun
    exchanged: list[ps.Exchanged] = run.results
    losses = batch_losses(exchanged)
    run.results = [
        RankResult(losses=losses, state_bytes=r.state_bytes)  # type: ignore[arg-type]
        for r in exchanged
    ]
    if not cluster.leader:
        return Trained(job, run, None)
    compared = against_reference(small, first, results) if checked else None
    trained = Trained(job, run, compared, wall_s=wall)
    trained.checks = rows(job, plan, exchanged, trained)
    run.checks = trained.checks
    return trained


def batch_losses(results: list[ps.Exchanged]) -> list[float]:
    """The mean loss of each clock's batch. Each worker computes its part with the weights that it had
    then.
    """
    return [sum(parts) for parts in zip(*(r.losses for r in results if r.losses), strict=True)]


def against_reference(small: Job, plan: Arrivals, results: list[ps.Exchanged]) -> dict[str, Any]:
    """The largest differences from the plan run in one process; for a synchronous plan from one device
    too.
    """
    alone = ps.in_one_process(small, plan)
    compared: dict[str, Any] = {**ps.compare(results, alone, plan.layout), "reference": OWN}
    expected = [sum(parts) for parts in zip(*alone.losses, strict=True)]
    if plan.layout.staleness is None:
        single = check.reference_for(small)
        expected, compared["reference"] = single.losses, "one device"
        weights = flat(single.weights[-1])
        for result in results[: plan.layout.workers]:
            assert result.pulled is not None
            compared["max_rel_weight_diff"] = max(
                compared["max_rel_weight_diff"], check.difference(result.pulled, weights, 1.0)
            )
        for step, gradients in enumerate(flat(g) for g in single.gradients):
            summed = sum(r.pushes[step] for r in results[: plan.layout.workers])
            floor = 1e-3 * float(gradients.abs().max())
            worst = check.difference(summed, gradients, floor)  # type: ignore[arg-type]
            compared["max_rel_grad_diff"] = max(compared["max_rel_grad_diff"], worst)
        mine = batch_losses(results)
        pairs = zip(mine, expected, strict=True)
        compared["max_rel_loss_diff"] = check.largest(abs(a - b) / (abs(b) or 1.0) for a, b in pairs)
    digest = sha256(
        b"".join(r.pulled.contiguous().numpy().tobytes() for r in results if r.pulled is not None)
    ).hexdigest()
    return {**compared, "checked_steps": small.steps, "reference_losses": expected, "weights_sha256": digest}


def flat(named: dict[str, torch.Tensor]) -> torch.Tensor:
    """Concatenate named parameters into one vector."""
    return torch.cat([t.reshape(-1) for t in named.values()])


def rows(job: Job, plan: Arrivals, results: list[ps.Exchanged], trained: Trained) -> list[Row]:
    """The check rows of a run with servers: differences, bytes (Eq 11), bound on staleness, time of the
    plan.
    """
    graph, layout = trained.run.graph, plan.layout
    made = _difference_rows(trained.comparison) if trained.comparison else []
    width = 8 if job.plan.precision == "fp64" else 4
    sent, theory = graph.bytes_sent(), ps.predict(layout, job.model.parameters(), width)["sent"]
    source = "Li et al., OSDI 2014 (Eq 11)"
    made.append(Row("sent", Said("sent by all ranks", "所有 rank 的发送量"), sum(theory), sum(sent), source))
    different = sum(a != b for a, b in zip(sent, theory, strict=True))
    name = Said("ranks that sent something else than the formula", "发送量与公式不同的 rank 数")
    made.append(Row("ranks_that_sent_otherwise", name, 0, different, source, unit="ranks"))
    if layout.staleness is not None:
        beyond = sum(lead > layout.staleness for r in results for lead in r.leads)
        name = Said("answers to a worker more than s clocks ahead", "给领先超过 s 个时钟的 worker 的应答数")
        source = "Ho et al. 2013, section 2"
        made.append(Row("answers_too_far_ahead", name, 0, beyond, source, unit="answers"))
    if plan.makespan is not None:
        clock: dict[str, Any] = {"unit": "s", "match": "virtual", "tolerance": 1e-9}
        name, now = Said("time of the whole run", "整个运行的时间"), trained.timeline.makespan
        made.append(Row("time_of_the_run", name, plan.makespan, None, plan.source, simulated=now, **clock))
    return made


def _difference_rows(compared: dict[str, Any]) -> list[Row]:
    reference, steps = compared["reference"], compared["checked_steps"]
    if reference == "one device":
        other = Said("one device", "单卡")
    else:
        other = Said("the same plan in one process", "单进程按同一到达计划执行")
    return [
        Row(
            f"{what}_difference",
            Said(
                f"largest {what} difference from {other.en}, float64, {counted(steps, 'step')}",
                f"与{other.zh}（float64，{steps} 步）的最大{check.WHAT[what].zh}差异",
            ),
            0.0,
            compared[f"max_rel_{short}_diff"],
            f"{reference}, same seed",
            unit="relative",
            tolerance=check.TOLERANCE,
        )
        for what, short in check.SHORT.items()
    ]
