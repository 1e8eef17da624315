"""16-bit training: fp32 masters, fp32 gradients, and a loss scale that every rank agrees on. The oracle is
torch's own.

The oracle is one process with torch.amp.GradScaler and torch.optim.AdamW on fp32 copies of our model's
parameters: it shares our model and our data, and neither our optimizer, nor our scale, nor anything
distributed. Scales and skipped steps must be equal. Numbers cannot be: sums of 16-bit roundings depend on
their order. So they are held against float64, where the run may be at most three times as far off as the
oracle itself is, the rule for fp32 too: docs/decisions/0041 and tests/narrow.py.
"""

from __future__ import annotations

import pytest
import torch
from helpers import run_plan
from narrow import GATE, GROWING, furthest, judged, oracle, ran
from torch import Tensor

from glasscluster.base.errors import InputError
from glasscluster.scenarios.jobs.training import train
from glasscluster.sim.run import Cluster
from glasscluster.strategies import assembly, trainer
from glasscluster.strategies.data import data_parallel, zero2
from glasscluster.strategies.data.optimizer import SliceOptimizer
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge import accounts
from glasscluster.strategies.judge.check import check_job, compare, reference_for
from glasscluster.strategies.judge.single_device import Reference, train_one_device
from glasscluster.strategies.layout.judged import Judged
from glasscluster.strategies.loader import Loader
from glasscluster.strategies.numerics.loss_scale import (
    SMALLEST,
    SMALLEST_NORMAL,
    LossScaler,
    ScaleRule,
    predict_rounded,
)
from glasscluster.strategies.plan import make_model, make_plan

MODEL = {"layers": 3, "hidden": 16, "heads": 4, "seq": 6, "vocab": 40, "dropout": 0.1, "attention": "unfused"}
STANDARD = ScaleRule()
FALLING = ScaleRule(
    initial=2.0**20, interval=2
)  # too high to begin with, and growing back into overflow every third step
LAYOUTS = {
    "one": {},
    "dp": {"dp": 2},
    "zero1": {"dp": 2, "zero": 1},
    "zero2": {"dp": 4, "zero": 2},
    "zero3": {"dp": 2, "zero": 3, "recompute": "full"},
    "tp": {"tp": 2, "recompute": "selective"},
    "pp": {"pp": 3, "schedule": "gpipe"},
    "3d": {"dp": 2, "tp": 2, "pp": 2, "zero": 1},
}


def job_of(precision: str, steps: int, rule: ScaleRule = STANDARD, **options) -> Job:
    plan = make_plan(**{"global_batch": 12, "precision": precision, "lr": 3e-3, "clip": 0.5, **options})
    return Job(plan, make_model("tiny", **MODEL), steps, loss_scale=rule)


def distance(
    found: dict[str, Tensor], reference: Reference, plan, rank: int, truth: dict[str, Tensor]
) -> float:
    """Squared Euclidean distance of one rank's tensors from the whole truth's slices."""
    total = 0.0
    for name, tensor in found.items():
        shard = reference.shards[name]
        expected = truth[name] if shard is None else shard.take(truth[name], rank % plan.tp, plan.tp)
        total += float((tensor.double() - expected.double()).square().sum())
    return total


# ---- the trace ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
def test_every_rank_of_every_layout_has_torch_s_scale_and_skips_torch_s_steps_as_it_overflows_by_itself(
    options,
):
    job = job_of("fp16", 10, FALLING, **options)
    told = oracle(job)
    assert 2 <= sum(told.skipped) <= 8
    for result in ran(job):
        assert result.loss_scales == told.scales
        assert result.skipped == told.skipped


def overflow_on(monkeypatch: pytest.MonkeyPatch, rank: int, steps: tuple[int, ...], where: str) -> None:
    """One rank's gradients overflow: before they are reduced (its backward starts from infinity), or only its
    own shard after.
    """
    seed, tied = trainer.Trainer.seed, trainer.Trainer.sum_tied

    def bad(self) -> bool:
        return self.gpu.rank == rank and len(self.result.skipped) in steps

    def infinite(self):
        return seed(self) * float("inf") if bad(self) and where == "loss" else seed(self)

    def spoiled(self, step):
        if bad(self) and where == "shard":
            self.manager.units[-1].owned_gradient[0] = float("nan")
        tied(self, step)

    monkeypatch.setattr(trainer.Trainer, "seed", infinite)
    monkeypatch.setattr(trainer.Trainer, "sum_tied", spoiled)


CASES = [
    ("dp", 1, "loss"),
    ("zero1", 0, "shard"),
    ("zero2", 3, "shard"),
    ("zero3", 1, "shard"),
    ("zero3", 0, "loss"),
    ("tp", 1, "shard"),
    ("pp", 0, "shard"),
    ("pp", 2, "loss"),
    ("3d", 1, "shard"),
    ("3d", 6, "loss"),
    ("3d", 7, "shard"),
]


@pytest.mark.parametrize(("layout", "rank", "where"), CASES, ids=lambda c: str(c))
def test_one_rank_s_overflow_at_chosen_steps_stops_all_ranks_as_it_stops_torch(
    layout, rank, where, monkeypatch
):
    job = job_of("fp16", 7, ScaleRule(initial=256.0, interval=2), **LAYOUTS[layout])
    told = oracle(job, bad=(1, 4, 5))
    assert [i for i, s in enumerate(told.skipped) if s] == [1, 4, 5]
    overflow_on(monkeypatch, rank, (1, 4, 5), where)
    results = ran(job)
    for result in results:
        assert result.loss_scales == told.scales
        assert result.skipped == told.skipped
        for step in (1, 4, 5):  # a skipped step changes no weight
            assert all(torch.equal(result.weights[step][n], w) for n, w in result.weights[step - 1].items())
        assert not all(torch.equal(result.weights[3][n], w) for n, w in result.weights[2].items())
    assert job.plan.gpus == len(results)


def test_a_rank_that_decides_alone_is_caught(monkeypatch):
    job = job_of("fp16", 6, ScaleRule(initial=256.0, interval=2), **LAYOUTS["tp"])
    told = oracle(job, bad=(1, 4))
    overflow_on(monkeypatch, 1, (1, 4), "shard")
    honest = trainer.Trainer.add_up

    def alone(self, x, comms, label):
        before = x.clone()
        honest(self, x, comms, label)
        if label == "gradient norm":
            x[1] = before[1]

    monkeypatch.setattr(trainer.Trainer, "add_up", alone)
    assert [r.skipped == told.skipped for r in ran(job)] == [False, True]


def test_two_thousand_clean_steps_double_the_scale_and_one_overflow_halves_it_as_in_torch():
    ours, theirs = LossScaler(), torch.amp.GradScaler("cpu")
    weight = torch.zeros(1, requires_grad=True)
    sgd = torch.optim.SGD([weight], lr=0.1)
    draw = torch.Generator().manual_seed(5)
    for _ in range(9000):
        overflow = float(torch.rand((), generator=draw)) < 2e-4
        weight.grad = torch.full((1,), float("inf") if overflow else 1.0)
        theirs.scale(torch.ones(()))
        theirs.step(sgd)
        theirs.update()
        ours.update(overflow)
        assert ours.scale == theirs.get_scale()
    assert ours.scale != 65536.0


@pytest.mark.parametrize("exponent", range(-27, -11))
def test_what_fp16_makes_of_a_small_gradient(exponent):
    for factor in (1.0, 1.25, 1.5, 1.75, 1.999):
        x = factor * 2.0**exponent
        rounded = float(torch.tensor(x, dtype=torch.float64).half())
        if x <= SMALLEST / 2:
            assert rounded == 0.0
        elif x <= SMALLEST:
            assert rounded == SMALLEST
        if x < SMALLEST_NORMAL:
            assert rounded == predict_rounded(x)


# ---- the numbers -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("options", [LAYOUTS["zero2"], LAYOUTS["3d"] | {"grad_dtype": "fp32"}], ids=str)
def test_four_steps_on_its_own_leave_a_run_within_three_times_the_error_of_torch_s_four_steps(
    options, precision
):
    """Every plan of the suite, tensor by tensor and step by step: test_exactness.py."""
    job = job_of(precision, 4, ScaleRule(initial=256.0), **options)
    exact = train_one_device(
        job.model, [job.batch(i) for i in range(4)], job.optimizer, job.plan.clip, job.seed
    )
    told, results, plan = oracle(job), ran(job), job.plan
    assert not any(told.skipped)
    whole = dict.fromkeys(exact.shards)
    for what, found in (("gradients", told.gradients), ("weights", told.weights)):
        for step in (0, 3) if what == "weights" else (0,):
            truth = getattr(exact, what)[step]
            own = sum(float((found[step][n].double() - truth[n]).square().sum()) for n in whole)
            per_rank = [
                distance(getattr(r, what)[step], exact, plan, rank, truth) for rank, r in enumerate(results)
            ]
            assert max(per_rank) <= 9 * own, (what, step)
            assert max(per_rank) > 0
    for result in results:
        for step, loss in enumerate(result.losses):
            own = max(abs(told.losses[i] - exact.losses[i]) for i in range(step + 1))
            assert abs(float(loss) - exact.losses[step]) <= 3 * own + 2**-11 * exact.losses[step]


def test_fp32_gradients_of_16_bit_parameters_are_closer_to_the_truth_and_twice_as_long_on_the_wire():
    sent, error, held = {}, {}, {}
    for kind in ("same", "fp32"):
        job = job_of("bf16", 1, dp=4, grad_dtype=kind)
        exact = train_one_device(job.model, [job.batch(0)], job.optimizer, job.plan.clip, job.seed)
        run = run_plan(job.plan, job.model, capture=True)
        sent[kind] = sum(run.graph.bytes_sent(axis="dp", purpose="gradients"))
        held[kind] = run.results[0].state_bytes["gradients"]
        error[kind] = distance(run.results[0].gradients[0], exact, job.plan, 0, exact.gradients[0])
    assert sent["fp32"] == 2 * sent["same"]
    assert held["fp32"] == 2 * held["same"]
    assert error["fp32"] < error["same"]


def test_sixteen_bytes_a_parameter_become_eighteen_with_fp32_gradients_and_four_without_masters():
    def bytes_each(**options) -> float:
        job = job_of("bf16", 1, **options)
        result = run_plan(job.plan, job.model).results[0]
        return sum(result.state_bytes.values()) / sum(n for _, n, _ in result.units)

    assert bytes_each() == 2 + 2 + 12
    assert bytes_each(grad_dtype="fp32") == 2 + 4 + 12
    assert bytes_each(master_weights="none") == 2 + 2 + 4


def test_clipping_before_unscaling_is_caught(monkeypatch):
    job = job_of(
        "fp16", 3, ScaleRule(initial=256.0), optimizer="sgd", lr=0.5, dp=2
    )  # Adam would hide a wrong length of the gradient
    exact = train_one_device(
        job.model, [job.batch(i) for i in range(3)], job.optimizer, job.plan.clip, job.seed
    )
    right = distance(ran(job)[0].weights[2], exact, job.plan, 0, exact.weights[2])
    honest = trainer.Trainer.norm_and_overflow

    def still_scaled(self):
        norm, overflow = honest(self)
        return norm * 256.0**2, overflow

    monkeypatch.setattr(trainer.Trainer, "norm_and_overflow", still_scaled)
    assert distance(ran(job)[0].weights[2], exact, job.plan, 0, exact.weights[2]) > 9 * right


# ---- the gate can fail -------------------------------------------------------------------------------------
NARROW = [("bf16", {}), ("bf16", {"master_weights": "none"}), ("fp16", {}), ("fp16", {"grad_dtype": "fp32"})]
narrow = pytest.mark.parametrize(("precision", "more"), NARROW, ids=lambda x: str(x))


def judge(precision: str, by=furthest, **options) -> float:
    return by(job_of(precision, 2, GROWING, **options))[0]


@narrow
def test_one_micro_batch_of_twenty_left_out_is_caught(precision, more, monkeypatch):
    options = {"dp": 4, "global_batch": 20, **more}
    assert judge(precision, **options) <= 3
    honest = data_parallel.DataParallel.backward_begins

    def forgetful(self, last):
        """On rank 0 gradients are after the second micro-batch what they were before it."""
        honest(self, last)
        self.begun = getattr(self, "begun", -1) + 1
        rank = self.units[0].comm.rank
        if rank == 0 and self.begun % 5 == 1:
            self.before = [unit.grad.clone() for unit in self.units]
        elif rank == 0 and self.begun % 5 == 2:
            for unit, grad in zip(self.units, self.before, strict=True):
                unit.grad.copy_(grad)

    monkeypatch.setattr(data_parallel.DataParallel, "backward_begins", forgetful)
    assert judge(precision, **options) > 3
    if precision == "bf16" and not more:  # nor does the second judgement let it pass
        assert judge(precision, judged, **options) > GATE


@narrow
@pytest.mark.parametrize("stage", [0, 2])
def test_one_rank_s_contribution_counted_twice_is_caught(precision, more, stage, monkeypatch):
    manager = data_parallel.DataParallel if stage == 0 else zero2.Zero2
    honest = manager.reduce

    def twice(self, unit):
        if unit.comm.rank == 1:
            unit.grad.mul_(2)
        honest(self, unit)

    monkeypatch.setattr(manager, "reduce", twice)
    assert judge(precision, dp=4, zero=stage, **more) > 3


@narrow
def test_one_small_tensor_that_is_a_tenth_too_long_is_caught(precision, more, monkeypatch):
    honest = trainer.Trainer.sum_tied

    def longer(self, step):
        honest(self, step)
        for unit, member in (
            (u, m) for u in self.manager.units for m in u.members if m.name == "layers.1.norm1_bias"
        ):
            unit.owned_gradient[member.start : member.stop].mul_(1.1)

    monkeypatch.setattr(trainer.Trainer, "sum_tied", longer)
    assert judge(precision, dp=2, **more) > 3


@pytest.mark.parametrize("options", [{"offload": "optimizer"}, {"zero": 2}, {}], ids=str)
def test_a_loss_scale_that_is_not_divided_out_is_caught(options, monkeypatch):
    assert judge("fp16", dp=2, optimizer="sgd", clip=0.0, **options) <= 3  # a clipped length is the same
    honest = SliceOptimizer.update
    scaled = lambda self, scale, number: honest(self, scale * 256, number)  # noqa: E731
    monkeypatch.setattr(SliceOptimizer, "update", scaled)
    assert judge("fp16", dp=2, optimizer="sgd", **options) > 3  # Adam does not care how long a gradient is


def test_a_scale_shared_out_over_tokens_that_carry_no_loss_lets_gradients_underflow_and_is_caught(
    monkeypatch,
):
    shape = {
        "layers": 2,
        "hidden": 16,
        "heads": 4,
        "seq": 16,
        "vocab": 42,
        "objective": "masked",
        "attention": "unfused",
    }
    model = make_model("tiny", **shape, kv_latent=12, q_latent=10)
    job = Job(make_plan(dp=2, global_batch=4, precision="fp16", lr=1e-2), model, 1, loss_scale=GROWING)
    assert judged(job)[0] <= GATE
    monkeypatch.setattr(trainer, "tokens_with_loss", lambda model: model.seq)  # 15 % of them are predicted
    assert judged(job)[0] > GATE


def test_a_step_whose_gradient_is_the_one_before_is_caught(monkeypatch):
    honest = Loader.load
    monkeypatch.setattr(Loader, "load", lambda self, step: honest(self, 0))
    assert judge("bf16", dp=2) > 3


def test_ranks_whose_copies_part_are_caught(monkeypatch):
    monkeypatch.setattr(assembly, "sum_over_tokens", lambda parallel, units: None)
    with pytest.raises(AssertionError, match="other bits"):
        judge("bf16", tp=2, sequence_parallel=True)


def test_another_order_of_the_sums_is_other_bits_and_passes():
    runs = []
    for bucket in (900, 10**6):
        job = job_of("bf16", 2, ScaleRule(initial=256.0), dp=4, bucket=bucket, first_bucket=bucket)
        runs.append(ran(job))
        assert furthest(job, runs[-1])[0] <= 3
    one, other = (r[0].gradients[0] for r in runs)
    assert not all(torch.equal(one[n], other[n]) for n in one)


# ---- around it ---------------------------------------------------------------------------------------------
def test_a_skipped_step_sends_no_new_parameters_and_its_ledger_says_so():
    for stage in (0, 1, 2, 3):
        job = job_of("fp16", 1, FALLING, dp=2, zero=stage)
        run = run_plan(job.plan, job.model, loss_scale=FALLING)
        assert run.results[0].skipped == [True]
        rows = accounts.rows(Judged(job.plan, job.model, run.graph, run.results))
        assert {r.verdict for r in rows} == {"held"}
        if stage in (1, 2):
            run.results[0].skipped[-1] = False
            rows = accounts.rows(Judged(job.plan, job.model, run.graph, run.results))
            assert [r.key for r in rows if r.verdict == "failed"] == ["dp_parameters_sent"]


def test_the_standard_check_of_an_fp16_run_is_in_float64_and_holds():
    job = job_of("fp16", 3, ScaleRule(initial=2.0**30), dp=2, tp=2, grad_dtype="fp32", recompute="full")
    trained = train(Cluster("classroom", 4, "threads", memory_bytes=None), job)
    assert trained.ok, [c.key for c in trained.checks if c.verdict == "failed"]
    assert trained.comparison["max_rel_weight_diff"] <= 1e-10
    assert trained.run.results[0].skipped == [True, True, True]
    small = check_job(job)
    assert small.plan.precision == "fp64"
    results = run_plan(small.plan, small.model, steps=3, capture=True).results
    assert results[0].loss_scales == []
    assert compare(results, reference_for(small), small.plan)["max_rel_grad_diff"] <= 1e-10


def test_fp16_without_masters_and_fp8_are_refused_with_a_reason():
    model = make_model("tiny")
    with pytest.raises(InputError, match="master weights"):
        make_plan(precision="fp16", master_weights="none").check(model)
    with pytest.raises(InputError, match="precision"):
        make_plan(precision="fp8").check(model)
