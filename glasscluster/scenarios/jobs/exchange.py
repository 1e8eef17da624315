"""`glass train --exchange parameter-server | async-server`: the same verdict as any training, against the strategy's own reference."""

from __future__ import annotations

import time
from dataclasses import replace
from hashlib import sha256
from typing import Any

import torch

from glasscluster.scenarios.jobs.training import Say, Trained, silent
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import Hardware
from glasscluster.strategies.exchange import parameter_server as ps
from glasscluster.strategies.exchange.arrivals import Arrivals, Layout, synchronous
from glasscluster.strategies.exchange.virtual_clock import virtual
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.judge import check
from glasscluster.strategies.judge.accounts import row
from glasscluster.strategies.result import RankResult

OWN = "the arrival plan in one process"


def plan_of(job: Job, clock: Hardware) -> Arrivals:
    """Who is served when: in rank order, or as on the virtual clock. Servers stand on the first workers."""
    plan = job.plan
    staleness = plan.staleness if plan.exchange == "async-server" else None
    layout = Layout(plan.dp, plan.servers or plan.dp, job.steps, staleness)
    return synchronous(layout) if staleness is None else virtual(job, layout, clock, jitter=plan.jitter)


def train_with_servers(cluster: Cluster, job: Job, *, checked: bool = True, say: Say = silent) -> Trained:
    """Fix the order, check it in float64, then the recorded run: all clocks, since they overlap."""
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
    run.results = [RankResult(losses=losses, state_bytes=r.state_bytes) for r in exchanged]  # type: ignore[arg-type]
    if not cluster.leader:
        return Trained(job, run, None)
    compared = against_reference(small, first, results) if checked else None
    trained = Trained(job, run, compared, wall_s=wall)
    trained.checks = rows(job, plan, exchanged, trained)
    run.checks = trained.checks
    return trained


def batch_losses(results: list[ps.Exchanged]) -> list[float]:
    """Of every clock the batch's mean loss, each worker's part on the weights it had."""
    return [sum(parts) for parts in zip(*(r.losses for r in results if r.losses), strict=True)]


def against_reference(small: Job, plan: Arrivals, results: list[ps.Exchanged]) -> dict[str, Any]:
    """Largest differences: asynchronous from the plan in one process, synchronous also from one device."""
    alone = ps.in_one_process(small, plan)
    compared: dict[str, Any] = {**ps.compare(results, alone, plan.layout), "reference": OWN}
    expected = [sum(parts) for parts in zip(*alone.losses, strict=True)]
    if plan.layout.staleness is None:
        one = check.reference_for(small)
        expected, compared["reference"] = one.losses, "one device"
        whole = flat(one.weights[-1])
        for result in results[: plan.layout.workers]:
            assert result.pulled is not None
            compared["max_rel_weight_diff"] = max(compared["max_rel_weight_diff"], check.difference(result.pulled, whole, 1.0))
        for step, gradients in enumerate(flat(g) for g in one.gradients):
            summed = sum(r.pushes[step] for r in results[: plan.layout.workers])
            apart = check.difference(summed, gradients, 1e-3 * float(gradients.abs().max()))  # type: ignore[arg-type]
            compared["max_rel_grad_diff"] = max(compared["max_rel_grad_diff"], apart)
        mine = batch_losses(results)
        compared["max_rel_loss_diff"] = max(abs(a - b) / abs(b) for a, b in zip(mine, expected, strict=True))
    digest = sha256(b"".join(r.pulled.contiguous().numpy().tobytes() for r in results if r.pulled is not None)).hexdigest()
    return {**compared, "checked_steps": small.steps, "reference_losses": expected, "weights_sha256": digest}


def flat(named: dict[str, torch.Tensor]) -> torch.Tensor:
    """Parameters by name, laid end to end."""
    return torch.cat([t.reshape(-1) for t in named.values()])


def rows(job: Job, plan: Arrivals, results: list[ps.Exchanged], trained: Trained) -> list[dict[str, Any]]:
    """Differences, bytes (F11), the bound on staleness, and the time of the plan."""
    graph, layout, compared, found = trained.run.graph, plan.layout, trained.comparison, []
    for what, key in (("gradient", "grad"), ("weight", "weight"), ("loss", "loss")) if compared else ():
        assert compared is not None
        name = f"largest {what} difference from {'one device' if compared['reference'] == 'one device' else 'the same plan in one process'}"
        source = f"{compared['reference']}, same seed"
        name += f", float64, {compared['checked_steps']} steps"
        found.append(row(name, 0.0, compared[f"max_rel_{key}_diff"], source, unit="relative", tolerance=check.TOLERANCE))
    sent, theory = graph.bytes_sent(), ps.predict(layout, job.model.parameters(), 8 if job.plan.precision == "fp64" else 4)["sent"]
    source = "Li et al., OSDI 2014 (F11)"
    found.append(row("sent by all ranks", sum(theory), sum(sent), source))
    different = sum(a != b for a, b in zip(sent, theory, strict=True))
    found.append(row("ranks that sent something else than the formula", 0, different, source, unit="ranks"))
    if layout.staleness is not None:
        beyond = sum(lead > layout.staleness for r in results for lead in r.leads)
        found.append(row("answers to a worker more than s clocks ahead", 0, beyond, "Ho et al. 2013, section 2", unit="answers"))
    if plan.makespan is not None:
        now = trained.timeline.makespan
        found.append(
            row("time of the whole run", plan.makespan, None, plan.source, simulated=now, unit="s", match="virtual", tolerance=1e-9)
        )
    return found
