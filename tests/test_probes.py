"""Probes look on: a probed run is the same in every bit, and what they read is what one device has."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import run_plan
from narrow import ran

from glasscluster.model.gpt import GPTStage
from glasscluster.model.parallel import IGNORE
from glasscluster.sim.run import Cluster
from glasscluster.strategies.assembly import Place
from glasscluster.strategies.data import data_parallel
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge import check
from glasscluster.strategies.judge.probes import Probes
from glasscluster.strategies.judge.vitals import vitals
from glasscluster.strategies.observer import Observer
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.trainer import Trainer

MODEL = make_model("tiny", layers=4, hidden=16, heads=4, seq=8, vocab=42, qk_norm=True)
LAYOUTS = {
    "one": {},
    "dp, tp": {"dp": 2, "tp": 2, "micro_batch": 2, "precision": "fp16"},
    "zero1, pp, tied ends": {"dp": 2, "pp": 2, "zero": 1},
    "zero2, sequence parallel": {"dp": 2, "tp": 2, "zero": 2, "sequence_parallel": True, "recompute": "full"},
    "hybrid zero3": {"dp": 4, "zero": 3, "shard": 2},
    "ring, folded": {"cp": 2, "tp": 2, "pp": 2, "schedule": "zb-v"},
}


def probed(**options):
    plan = make_plan(**{"global_batch": 4, "precision": "fp64", "lr": 1e-2, "warmup": 4} | options)
    job = Job(plan, MODEL, steps=3, observers=(Probes,))
    return job, vitals(job, ran(job))


@pytest.mark.parametrize("layout", ["dp, tp", "zero2, sequence parallel", "ring, folded"])
def test_a_probed_run_has_the_same_bits_and_the_same_graph(layout):
    plan = make_plan(**{"global_batch": 4} | LAYOUTS[layout])
    plain, watched = (run_plan(plan, MODEL, steps=2, capture=True, observers=o) for o in ((), (Probes,)))
    assert check.digest(plain.results) == check.digest(watched.results)
    assert plain.graph.difference(watched.graph) is None
    assert plain.peak_memory() == watched.peak_memory()
    assert [len(r.readings) for r in plain.results] == [0] * plan.gpus


@pytest.fixture(scope="module")
def alone():
    return probed()


@pytest.mark.parametrize(
    "layout", [v for k, v in LAYOUTS.items() if k != "one"], ids=[k for k in LAYOUTS if k != "one"]
)
def test_any_layout_reads_what_one_device_reads(layout, alone):
    job, found = probed(**{**layout, "precision": "fp64"})
    for mine, one in zip(found, alone[1], strict=True):
        for name in ("loss", "gradient_norm", "norm_ratio", "log_z", "logit", "rate"):
            assert getattr(mine, name) == pytest.approx(getattr(one, name), rel=1e-9), name
        for name in ("layer_norms", "update_ratio", "activation_rms"):
            assert getattr(mine, name) == pytest.approx(getattr(one, name), rel=1e-9), name
        assert mine.replicas_equal
        assert mine.zero_fraction == pytest.approx(
            one.zero_fraction, abs=1e-3
        )  # a key bias has a gradient of zero, or of rounding
        assert len(mine.rank_losses) == job.plan.data_ranks
    if (
        job.plan.micro_batch == 1 and job.plan.cp == 1
    ):  # else the first sequence of fewer micro-batches, or fewer keys
        assert [v.attention_logit for v in found] == pytest.approx(
            [v.attention_logit for v in alone[1]], rel=1e-9
        )


def test_one_device_s_readings_are_those_of_plain_torch(alone):
    job, found = alone
    model = GPTStage(job.model, seed=0, dtype=torch.float64)
    outputs = []
    model.layers["2"].register_forward_hook(lambda _m, _a, out: outputs.append(out.detach()))
    tokens, targets = job.batch(0)
    loss = model(tokens, targets) / int((targets != IGNORE).sum())
    loss.backward()
    named = {n: p for n, (p, _) in model.full_names().items()}
    first = found[0]
    assert first.loss == pytest.approx(float(loss.detach()))
    assert first.loss == pytest.approx(math.log(42), abs=0.1)  # Eq 37
    assert first.gradient_norm == pytest.approx(
        math.sqrt(sum(float(p.grad.square().sum()) for p in named.values()))
    )
    assert first.layer_norms[2] == pytest.approx(
        math.sqrt(sum(float(p.grad.square().sum()) for n, p in named.items() if n.startswith("layers.2.")))
    )
    assert first.activation_rms[2] == pytest.approx(float(torch.cat(outputs).square().mean().sqrt()))
    x = model.embedding(tokens)
    for block in model.layers.values():
        x = block(x)
    logits = model.head.scores(x)
    assert first.log_z == pytest.approx(float(logits.detach().logsumexp(-1).mean()))
    assert first.logit == pytest.approx(float(logits.abs().max()))
    assert [v.rate for v in found] == pytest.approx([0.0025, 0.005, 0.0075])
    assert max(v.repeated_fraction for v in found) < 0.3  # eight spaces do come again


def test_what_is_wrong_shows_on_its_own_probe(monkeypatch):
    counts, finish = Place.counts, data_parallel.DataParallel.finish
    with monkeypatch.context() as patch:
        patch.setattr(Place, "counts", lambda self, number, name, shard: True)
        _, found = probed(dp=2, tp=2)
        assert all(v.norm_ratio > 1.01 and v.replicas_equal for v in found)

    def slips(self):
        finish(self)
        if self.gpu.rank == 1:
            self.units[0].grad.mul_(1 + 1e-12)

    with monkeypatch.context() as patch:
        patch.setattr(data_parallel.DataParallel, "finish", slips)
        assert not probed(dp=2)[1][-1].replicas_equal
    with monkeypatch.context() as patch:
        batch = Job.batch
        patch.setattr(Job, "batch", lambda self, step: batch(self, step % 2))
        assert [v.repeated_fraction for v in probed(dp=2)[1]] == [0.0, 0.0, 1.0]
    assert counts is Place.counts


class Told(Observer):
    """Writes down when it is told what."""

    told = (
        *("parallel_made", "assembled", "step_begins", "batch_chosen", "batch_loaded", "gradient_complete"),
        *("after_backward", "gradient_reduced", "gradient_summed", "norm_summed", "norm_agreed", "agreed"),
        *("before_update", "after_update", "step_ends"),
    )

    def __init__(self):
        self.names = []

    def __getattribute__(self, name):
        if name in Told.told:
            self.names.append(name)
        return super().__getattribute__(name)


def told(gpu, job):
    trainer = Trainer(gpu, job)
    trainer.run()
    return trainer.observers[0].names


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_observers_are_told_in_the_order_of_a_step_and_not_at_all_in_a_dry_run(zero):
    job = Job(make_plan(dp=2, zero=zero), MODEL, steps=1, observers=(Told,))
    names = Cluster("classroom", 2, "threads").run(told, job).results[0]
    assert tuple(dict.fromkeys(names)) == Told.told
    units = run_plan(job.plan, MODEL).results[0].units
    micro_batches = job.plan.micro_batches if zero > 1 else 1
    assert names.count("gradient_complete") == len(units) * micro_batches
    watched, plain = (run_plan(job.plan, MODEL, "dry", observers=o).graph for o in ((Told,), ()))
    assert watched.difference(plain) is None
