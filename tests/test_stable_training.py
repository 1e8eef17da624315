"""What keeps training from blowing up: each switch against torch or written-out algebra, under layouts, and
broken on purpose.
"""

from __future__ import annotations

import math
from statistics import median

import pytest
import torch
import torch.nn.functional as F
from helpers import differences, worst
from narrow import ran

from glasscluster.base.errors import InputError
from glasscluster.model.adamw import Optimizer
from glasscluster.model.gpt import GPTStage
from glasscluster.model.parallel import IGNORE, Unsharded
from glasscluster.model.rate import RateSchedule
from glasscluster.sim.run import Cluster
from glasscluster.strategies.data import stages
from glasscluster.strategies.data.optimizer import SliceOptimizer
from glasscluster.strategies.exchange.local_sgd import Outer, train_locally
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge import check
from glasscluster.strategies.judge.single_device import train_one_device
from glasscluster.strategies.numerics.bad_batch import Guard, SkipRule
from glasscluster.strategies.numerics.loss_scale import ScaleRule
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.tensor import tensor_parallel
from glasscluster.strategies.tensor.tensor_parallel import TensorParallel

TOLERANCE = 1e-10
MODEL = make_model("tiny", layers=4, hidden=16, heads=4, seq=8, vocab=42)


# ---- the learning rate -------------------------------------------------------------------------------------
def torch_s(schedulers, milestones: list[int], updates: int) -> list[float]:
    """Rates of torch's own schedulers, one after the other, of a peak of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    course = torch.optim.lr_scheduler.SequentialLR(
        optimizer, [make(optimizer) for make in schedulers], milestones
    )
    rates = []
    for _ in range(updates):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        course.step()
    return rates


def test_warm_up_and_cosine_are_torch_s():
    torch_schedulers = torch.optim.lr_scheduler
    warm = lambda o: torch_schedulers.LinearLR(o, 1 / 5, 1.0, total_iters=4)  # noqa: E731
    cosine = lambda o: torch_schedulers.CosineAnnealingLR(o, T_max=15, eta_min=0.1)  # noqa: E731
    rate = RateSchedule(5, "cosine", 20, floor=0.1)
    assert [rate.factor(t) for t in range(1, 21)] == pytest.approx(
        torch_s([warm, cosine], [4], 20), rel=1e-12
    )
    assert rate.factor(25) == 0.1


def test_wsd_is_flat_until_its_fall_and_a_tenth_long_unless_told():
    rate = RateSchedule(2, "wsd", 40, floor=0.2)
    assert [rate.factor(t) for t in (1, 2, 3, 36)] == [0.5, 1.0, 1.0, 1.0]
    assert [rate.factor(t) for t in range(37, 42)] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.2])
    assert RateSchedule(0, "wsd", 10, 5).factor(6) == pytest.approx(0.8)
    assert [RateSchedule().factor(t) for t in (1, 10**6)] == [1.0, 1.0]


def test_the_optimizer_s_rate_is_the_peak_times_the_schedule_and_forgetting_it_shows(monkeypatch):
    options = {
        "dp": 2,
        "tp": 2,
        "global_batch": 4,
        "lr": 1e-2,
        "warmup": 3,
        "decay": "cosine",
        "decay_until": 6,
    }
    assert worst(differences(make_plan(**options), MODEL)) <= TOLERANCE
    parameters = [torch.ones(3, dtype=torch.float64) for _ in range(2)]
    rate = RateSchedule(4)
    Optimizer("sgd", 0.4, schedule=rate).update(parameters[0], torch.ones(3, dtype=torch.float64), [], 1)
    Optimizer("sgd", 0.1).update(parameters[1], torch.ones(3, dtype=torch.float64), [], 9)
    assert torch.equal(*parameters)
    monkeypatch.setattr(SliceOptimizer, "update", with_number(SliceOptimizer.update, 9))
    assert worst(differences(make_plan(**options, zero=1, optimizer="sgd"), MODEL)) > TOLERANCE


def with_number(honest, number):
    return lambda self, scale, _number: honest(self, scale, number)


def test_replicas_that_train_alone_warm_up_too():
    plan = make_plan(
        dp=2,
        global_batch=4,
        lr=1e-2,
        optimizer="sgd",
        warmup=4,
        precision="fp64",
        exchange="parameter-server",
    )
    job = Job(plan, MODEL, steps=3, capture=True)
    run = Cluster("classroom", 2, "threads", memory_bytes=None).run(
        train_locally, job, Outer(every=1), record=False
    )
    one = train_one_device(MODEL, [job.batch(s) for s in range(3)], job.optimizer, 0.0, job.seed)
    flat = torch.cat([t.reshape(-1) for t in one.weights[-1].values()])
    assert check.difference(run.results[0].weights[-1], flat, 1.0) <= TOLERANCE


# ---- z-loss and the initial weights ------------------------------------------------------------------------
def z_loss_by_rank(gpu, logits, targets, vocab, z):
    """One rank's loss and the gradient of its columns, padded as a table is."""
    parallel = TensorParallel(gpu.comm) if gpu.size > 1 else Unsharded()
    each = -(-vocab // gpu.size)
    mine = F.pad(logits, (0, each * gpu.size - vocab)).split(each, -1)[gpu.rank].clone().requires_grad_()
    loss = parallel.cross_entropy(mine, targets, vocab, z)
    (3 * loss).backward()  # as a loss scale would
    return loss.detach(), mine.grad


def z_difference(gpus: int, z: float = 0.1) -> float:
    """Largest difference of the gradient from plain autograd on PaLM's formula."""
    torch.manual_seed(0)
    vocab, targets = 10, torch.tensor([[1, 9, IGNORE, 4], [0, 3, 7, IGNORE]])
    logits = 4 * torch.randn(2, 4, vocab, dtype=torch.float64)
    x = logits.clone().requires_grad_()
    plain = F.cross_entropy(x.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORE)
    log_z = torch.log(x.exp().sum(-1))[targets != IGNORE]
    (3 * (plain + z * (log_z**2).sum())).backward()
    results = (
        Cluster("classroom", gpus, "threads")
        .run(z_loss_by_rank, logits, targets, vocab, z, record=False)
        .results
    )
    found = torch.cat([g for _, g in results], -1)[..., :vocab]
    assert all(
        float(loss) == pytest.approx(float(plain.detach()), rel=1e-12) for loss, _ in results
    )  # what is reported is without it
    return float((found - x.grad).abs().max())


@pytest.mark.parametrize("gpus", [1, 2, 4])
def test_z_loss_has_the_gradient_of_its_formula_also_over_a_cut_vocabulary(gpus, monkeypatch):
    assert z_difference(gpus) < 1e-12
    if gpus > 1:
        honest = tensor_parallel._CrossEntropy.forward
        monkeypatch.setattr(
            tensor_parallel._CrossEntropy, "forward", staticmethod(lambda *args: honest(*args[:-1], 0.0))
        )
        assert z_difference(gpus) > 1e-3


def test_the_residual_s_matrices_start_smaller_by_the_root_of_the_branches_or_not():
    scaled, plain = (
        GPTStage(
            make_model("tiny", layers=8, residual_init=kind, init_std=0.1), dtype=torch.float64
        ).full_names()
        for kind in ("scaled", "plain")
    )
    for name, (p, _) in plain.items():
        factor = 4.0 if name.endswith(("out_weight", "down_weight")) else 1.0
        assert torch.allclose(p, factor * scaled[name][0], rtol=1e-12), name


# ---- bad batches -------------------------------------------------------------------------------------------
def test_the_guard_compares_with_the_median_of_what_was_taken():
    norms, taken, guard = (
        [1.0, 3.0, 2.0, 50.0, 2.5, math.nan, 4.1, math.inf, 4.9],
        [],
        Guard(SkipRule(2.0, window=3)),
    )
    for norm in norms:
        bad = not math.isfinite(norm) or (len(taken) >= 3 and norm > 2 * median(taken[-3:]))
        assert guard.harmful(norm) == bad, norm
        taken += [] if bad else [norm]
    assert taken == [1.0, 3.0, 2.0, 2.5, 4.1, 4.9]
    back = Guard(SkipRule(2.0, window=1, rollback=2))
    assert [(back.harmful(n), back.must_return()) for n in (1.0, 9.0, 1.0, 9.0, 9.0, 9.0)] == [
        (False, False),
        (True, False),
        (False, False),
        (True, False),
        (True, True),
        (True, False),
    ]


SOAK = pytest.mark.soak
LAYOUTS = {  # three steps of every layout are in the covering list; a longer way to a return is here
    "tp, zero1 offload": {"dp": 2, "tp": 2, "zero": 1, "offload": "optimizer"},
    "pp, zero3": {"dp": 2, "pp": 2, "zero": 3},
    "hybrid zero3": pytest.param({"dp": 4, "zero": 3, "shard": 2}, marks=SOAK),
    "sequence parallel, pp": pytest.param({"tp": 2, "pp": 2, "sequence_parallel": True}, marks=SOAK),
    "pp, zero2": pytest.param({"dp": 2, "pp": 2, "zero": 2, "virtual_stages": 2}, marks=SOAK),
}
BAD = (5, 6)


def with_bad_batches(monkeypatch, kind: str = "constant") -> None:
    """Batches of one token over and over: after a few steps of text their gradient is several
    times as long.
    """
    honest = Job.batch

    def batch(self, step):
        tokens, targets = honest(self, step)
        return (
            (torch.full_like(tokens, 41), torch.full_like(targets, 40)) if step in BAD else (tokens, targets)
        )

    monkeypatch.setattr(Job, "batch", batch)


def guarded(**options) -> Job:
    plan = make_plan(
        **{
            "precision": "fp64",
            "global_batch": 8,
            "lr": 1e-2,
            "clip": 0.0,
            "skip_norm": 2.0,
            "skip_window": 3,
            "rollback": 2,
            "snapshot_every": 4,
        }
        | options
    )
    return Job(plan, MODEL, steps=9, capture=True)


def against_one_device(job: Job) -> float:
    batches = [job.batch(s) for s in range(job.steps)]
    one = train_one_device(
        job.model, batches, job.optimizer, job.plan.clip, job.seed, skip=job.plan.skip_rule
    )
    results = ran(job)
    for result in results:
        assert [i for i, s in enumerate(result.skipped) if s] == list(BAD)
        assert result.returned == [BAD[-1]]
    return worst(check.compare(results, one, job.plan))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_bad_batches_are_skipped_on_all_ranks_alike_and_what_came_before_is_taken_back(layout, monkeypatch):
    with_bad_batches(monkeypatch)
    assert against_one_device(guarded(**layout)) <= TOLERANCE


def test_after_a_return_the_weights_are_the_snapshot_s_and_the_run_goes_on_with_the_next_batch(monkeypatch):
    with_bad_batches(monkeypatch)
    first = ran(guarded())[0]
    assert all(
        torch.equal(w, first.weights[3][n]) for n, w in first.weights[6].items()
    )  # kept before step 4, taken up after step 6
    assert not all(torch.equal(w, first.weights[4][n]) for n, w in first.weights[6].items())
    honest = stages.put_back

    def parameters_alone(manager, kept):
        state = {name: [t.clone() for t in tensors[1:]] for name, tensors in stages.pieces(manager).items()}
        honest(manager, {name: [tensors[0], *state[name]] for name, tensors in kept.items()})

    monkeypatch.setattr(stages, "put_back", parameters_alone)
    assert against_one_device(guarded(dp=2)) > TOLERANCE


def test_a_gradient_that_is_not_finite_is_skipped_too_and_fp16_s_overflow_stays_the_scaler_s(monkeypatch):
    honest = stages.Stages.finish

    def spoilt(self):
        honest(self)
        steps = self.steps_seen = getattr(self, "steps_seen", -1) + 1
        if steps == 2 and self.gpu.rank == 1:
            self.units[0].owned_gradient[0] = math.nan

    monkeypatch.setattr(stages.Stages, "finish", spoilt)
    plan = make_plan(dp=2, zero=1, global_batch=4, skip_norm=100.0)
    for result in ran(Job(plan, MODEL, steps=4)):
        assert result.skipped == [False, False, True, False]
        assert all(torch.isfinite(w).all() for w in result.weights[-1].values())
    scaled = make_plan(dp=2, zero=1, global_batch=4, skip_norm=100.0, precision="fp16")
    for result in ran(Job(scaled, MODEL, steps=4, loss_scale=ScaleRule(initial=256.0))):
        assert result.skipped == [False, False, True, False]
        assert result.loss_scales == [256.0, 256.0, 256.0, 128.0]


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("decay_until", {"decay": "cosine", "warmup": 5}),
        ("decay_until", {"decay_until": 10}),
        ("decay_steps", {"decay": "wsd", "decay_until": 10, "warmup": 5, "decay_steps": 6}),
        ("lr_floor", {"lr_floor": 0.1}),
        ("rollback", {"rollback": 2}),
        ("skip_norm", {"skip_norm": 2.0, "exchange": "parameter-server"}),
    ],
)
def test_switches_that_cannot_be_are_refused_by_name(field, options):
    with pytest.raises(InputError) as refused:
        make_plan(**options).check(MODEL)
    assert str(refused.value).startswith(f"{field} = ")
