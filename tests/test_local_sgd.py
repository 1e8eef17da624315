"""Local SGD and DiLoCo equal N replicas trained one after the other; the noise scale is found from ranks'
gradients alone.
"""

from __future__ import annotations

import importlib

import pytest
import torch

from glasscluster.sim.run import Cluster
from glasscluster.strategies.exchange import local_sgd
from glasscluster.strategies.exchange.local_sgd import Outer
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge import check, noise_scale
from glasscluster.strategies.judge.single_device import train_one_device
from glasscluster.strategies.plan import make_model, make_plan

MODEL = make_model("tiny", layers=1, hidden=16, heads=4, seq=6, vocab=30)


def job_of(replicas: int, optimizer: str, steps: int = 7) -> Job:
    plan = make_plan(
        dp=replicas,
        global_batch=2 * replicas,
        micro_batch=1,
        precision="fp64",
        optimizer=optimizer,
        lr=1e-2,
        clip=0.0,
    )
    return Job(plan, MODEL, steps, capture=True)


def run_of(job: Job, outer: Outer, backend: str = "threads", **options):
    return Cluster("classroom", job.plan.dp, backend, memory_bytes=None, **options).run(
        local_sgd.train_locally, job, outer
    )


def worst(job: Job, outer: Outer, results=None) -> float:
    rounds, losses = local_sgd.one_after_the_other(job, outer, job.plan.dp)
    gaps = []
    for result, own in zip(results or run_of(job, outer).results, losses, strict=True):
        gaps += [check.difference(a, b, 1.0) for a, b in zip(result.weights, rounds, strict=True)]
        gaps += [abs(a - b) / abs(b) for a, b in zip(result.losses, own, strict=True)]
    return max(gaps)


WAYS = [Outer(1), Outer(3), Outer(7), Outer(2, 0.7, 0.9), Outer(4, 0.5, 0.3)]


@pytest.mark.parametrize("outer", WAYS, ids=lambda o: f"H{o.every}-{o.rate}-{o.momentum}")
@pytest.mark.parametrize(("replicas", "optimizer"), [(1, "adamw"), (2, "sgd"), (3, "adamw"), (4, "sgd")])
def test_replicas_that_meet_every_h_steps_equal_replicas_one_after_the_other(replicas, optimizer, outer):
    assert worst(job_of(replicas, optimizer), outer) <= 1e-10


def test_meeting_at_every_step_is_data_parallel_sgd():
    job = job_of(3, "sgd", 4)
    one = train_one_device(MODEL, [job.batch(s) for s in range(4)], job.optimizer, 0.0, job.seed)
    whole = torch.cat([t.reshape(-1) for t in one.weights[-1].values()])
    assert check.difference(run_of(job, Outer(1)).results[0].weights[-1], whole, 1.0) <= 1e-10


@pytest.mark.parametrize(("replicas", "every", "steps"), [(2, 1, 3), (3, 2, 7), (4, 5, 5), (4, 8, 6)])
def test_what_is_sent_is_a_ring_of_the_parameters_at_every_meeting(replicas, every, steps):
    graph = run_of(job_of(replicas, "adamw", steps), Outer(every)).graph
    theory = local_sgd.predict(MODEL.parameters(), replicas, steps, every, 8)
    assert (
        sum(graph.bytes_sent())
        == theory["parameters_bytes_total"]
        == sum(graph.bytes_sent(axis="dp", purpose="parameters"))
    )
    assert theory["meetings"] == -(-steps // every)


def test_the_same_bits_in_any_order_of_threads_and_the_same_events_without_data():
    job, outer = job_of(3, "adamw", 4), Outer(2, 0.7, 0.9)
    runs = [run_of(job, outer, seed=s) for s in (1, 2)]
    assert runs[0].graph.sha256() == runs[1].graph.sha256()
    assert all(
        torch.equal(a, b) for a, b in zip(runs[0].results[0].weights, runs[1].results[0].weights, strict=True)
    )
    assert run_of(job, outer, "dry").graph.sha256() == runs[0].graph.sha256()


@pytest.mark.ray
def test_on_ray_actors_the_same_bits(actors):
    job, outer = job_of(2, "adamw", 4), Outer(2, 0.7, 0.9)
    there, here = actors(2).run(local_sgd.train_locally, job, outer), run_of(job, outer)
    assert all(
        torch.equal(a, b) for a, b in zip(there.results[0].weights, here.results[0].weights, strict=True)
    )


# ---- mutations: the check can fail -------------------------------------------------------------------------
def test_a_sum_for_an_average_is_caught(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "div_", lambda self, n: self)
    broken = run_of(job_of(2, "sgd"), Outer(3)).results
    monkeypatch.undo()
    assert worst(job_of(2, "sgd"), Outer(3), broken) > 1e-6


def test_a_forgotten_outer_momentum_is_caught(monkeypatch):
    job, outer = job_of(2, "adamw"), Outer(2, 0.7, 0.9)
    broken = run_of(job, Outer(2, 0.7, 0.0)).results
    assert worst(job, outer, broken) > 1e-6
    monkeypatch.setattr(
        Outer,
        "step",
        lambda self, shared, moved, velocity: shared.sub_(
            moved.add_(velocity.add_(moved), alpha=0.9), alpha=0.7
        ),
    )
    assert worst(job, outer) > 1e-6  # velocity that never decays


def test_inner_steps_that_start_anew_are_caught(monkeypatch):
    job, outer = job_of(2, "adamw"), Outer(2)
    honest = type(job.optimizer).update
    with monkeypatch.context() as patch:
        patch.setattr(
            type(job.optimizer), "update", lambda self, p, g, s, n: honest(self, p, g, s, (n - 1) % 2 + 1)
        )
        broken = run_of(job, outer).results
    assert worst(job, outer, broken) > 1e-6


# ---- the gradient noise scale ------------------------------------------------------------------------------
@pytest.mark.parametrize(("ranks", "own", "deviation"), [(2, 4, 3.0), (4, 8, 9.5), (6, 2, 5.0)])
def test_the_noise_scale_is_found_within_15_percent(ranks, own, deviation):
    quadratic = importlib.import_module("glasscluster.scenarios.lessons.d5_critical_batch.program").quadratic
    for seed in range(2):
        norms = (
            Cluster("classroom", ranks, "threads", memory_bytes=None)
            .run(quadratic, 200, own, 300, deviation, seed, record=False)
            .results
        )
        assert norms[0] == norms[-1]
        found = noise_scale.NoiseScale(own, own * ranks)
        for pair in norms[0]:
            found.add(*pair)
        assert found.noise == pytest.approx(200 * deviation**2, rel=0.15)
        assert found.simple == pytest.approx(deviation**2, rel=0.15)


def test_the_estimator_solves_its_two_equations_exactly():
    found = noise_scale.NoiseScale(4, 32)
    found.add(7.0 + 90.0 / 4, 7.0 + 90.0 / 32)
    assert found.signal == pytest.approx(7.0)
    assert found.noise == pytest.approx(90.0)


def test_a_hyperbola_is_fitted_exactly():
    batches = [1, 2, 8, 64]
    fewest, examples = noise_scale.fit(batches, [noise_scale.predict(b, 50.0, 700.0) for b in batches])
    assert (fewest, examples) == (pytest.approx(50.0), pytest.approx(700.0))
    for b in batches:
        steps = noise_scale.predict(b, fewest, examples)
        assert (steps / fewest - 1) * (b * steps / examples - 1) == pytest.approx(1.0)
