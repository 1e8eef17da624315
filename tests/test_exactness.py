"""Every plan gives the gradients, weights and losses of one device; break anything and it shows."""

from __future__ import annotations

import threading

import pytest
import torch
from helpers import differences, run_plan, worst
from hypothesis import HealthCheck, given, settings
from narrow import GROWING, OTHER_BATCHES, judged, ran, step_by_step
from plans import all_pairs, build, choices, every, name, pairs_of, stratified
from torch.nn import functional

from glasscluster.base.errors import CollectiveMismatch, GradientMissing, RankDied
from glasscluster.model import gpt
from glasscluster.model.parallel import IGNORE
from glasscluster.strategies import assembly, trainer
from glasscluster.strategies import job as jobs
from glasscluster.strategies.data import data_parallel, offload, stages, zero1
from glasscluster.strategies.data.gradients import ShardedGradients
from glasscluster.strategies.data.parameters import GatheredParameters
from glasscluster.strategies.data.setup import SumOverGroups
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge import check
from glasscluster.strategies.judge.single_device import train_one_device
from glasscluster.strategies.loader import Loader
from glasscluster.strategies.pipeline import pipeline_parallel, weight_gradients
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.tensor import tensor_parallel

TOLERANCE = 1e-10
WIDE = (torch.float64, torch.float32)


def test_the_plan_list_covers_every_pair_of_option_values():
    covered = set().union(*(pairs_of(c) for c in stratified()))
    assert covered == all_pairs(), "python tests/plans.py finds the list anew"


@pytest.mark.parametrize("choice", stratified(), ids=name)
def test_a_plan_equals_one_device_in_float64_over_three_steps(choice):
    compared = differences(*build(choice))
    assert compared["checked_steps"] == 3
    if (
        worst(compared) > TOLERANCE
    ):  # as in `make soak`: where Adam parts two right runs, each step from where the run began it
        off, where = step_by_step(Job(*build(choice, "fp64"), steps=3))
        assert off <= TOLERANCE / 100, where


@pytest.mark.parametrize("choice", every(2, lambda choice: choice["precision"] != "fp64"))
def test_a_plan_in_its_own_precision_is_within_three_times_one_process_s_own_error(choice):
    off, where = own_precision(*build(choice), steps=2)
    assert off <= 3, where


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(choices())
def test_any_plan_equals_one_device(choice):
    assert worst(differences(*build(choice), steps=2)) <= TOLERANCE
    if choice["precision"] != "fp64":
        off, where = own_precision(*build(choice), steps=1)
        assert off <= 3, where


@pytest.mark.soak
@pytest.mark.parametrize("part", range(20))  # 5,000 plans, for as many cores as there are
@settings(
    max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True, database=None
)
@given(choices())
def test_any_plan_equals_one_device_at_length(part, choice):
    if (
        worst(differences(*build(choice))) > TOLERANCE
    ):  # one layout of 5,000: two right runs that Adam parts; see there
        off, where = step_by_step(Job(*build(choice, "fp64"), steps=3))
        assert off <= TOLERANCE / 100, where
    if choice["precision"] != "fp64":
        off, where = own_precision(*build(choice), steps=2)
        assert off <= 3, where


RARE = {
    "dp": 1,
    "tp": 2,
    "cp": 4,
    "ep": 4,
    "ulysses": 2,
    "micro_batch": 1,
    "bucket": 900,
    "schedule": "gpipe",
    "prefetch": 0,
    "recompute": "selective",
}
RARE_MODEL = {
    "layers": 4,
    "tied": False,
    "vocab": 42,
    "dropout": 0.2,
    "kv_heads": 4,
    "experts": 4,
    "top_k": 2,
    "capacity_factor": 1.0,
    "shared_ffn": 16,
}


def test_where_adam_parts_two_right_runs_every_step_is_exact_from_where_it_began(monkeypatch):
    """The layout of `make soak` that is 3.4e-10 apart after three steps, and 8e-16 in each; and the judgement
    can fail.
    """
    plan = make_plan(global_batch=2, lr=1e-2, precision="fp64", **RARE)
    job = Job(plan, make_model("tiny", hidden=16, heads=4, seq=8, **RARE_MODEL), steps=3)
    assert step_by_step(job)[0] <= TOLERANCE / 100
    honest = data_parallel.DataParallel.finish

    def slightly(self):
        honest(self)
        self.units[0].grad[:1].mul_(1 + 1e-8)

    monkeypatch.setattr(data_parallel.DataParallel, "finish", slightly)
    assert step_by_step(job)[0] > TOLERANCE / 100


def own_precision(plan, model, steps: int) -> tuple[float, str]:
    """How many times as far from float64 as one process in the plan's precision, and where; in fp32 in the
    first step.

    One process's error is the largest on three batches, the plan's among them: on one of them it may be small
    by luck.
    """
    if plan.narrow:
        return judged(Job(plan, model, steps, loss_scale=GROWING))
    job = Job(plan, model, steps=1)
    ulp = torch.finfo(torch.float32).eps  # one device's loss may be right by luck
    own, own_loss, exact = 0.0, ulp, None
    for batch in range(1 + OTHER_BATCHES):
        right, alone = (
            train_one_device(model, [job.batch(batch)], job.optimizer, plan.clip, job.seed, dtype)
            for dtype in WIDE
        )
        exact = exact or right
        own = max(own, own_error(alone.gradients[0], right, plan))
        own_loss = max(own_loss, abs(alone.losses[0] - right.losses[0]) / right.losses[0])
    found = check.compare(ran(job), exact, plan)
    return max(
        (found["max_rel_grad_diff"] / own, found["worst_gradient"]),
        (found["max_rel_loss_diff"] / own_loss, "loss"),
    )


def own_error(gradients, exact, plan) -> float:
    """`check.compare`'s difference of what a rank would have of each tensor: a piece may be smaller than the
    whole, its error not.
    """
    floor = 1e-3 * max(float(g.abs().max()) for g in exact.gradients[0].values())
    return max(
        check.difference(
            *(
                x if shard is None else shard.take(x, rank, plan.tp)
                for x in (g.double(), exact.gradients[0][n])
            ),
            floor,
        )
        for n, g in gradients.items()
        for shard in (exact.shards[n],)
        for rank in range(plan.tp)
    )


def test_losses_are_summed_over_tokens_and_divided_once_when_ranks_count_different_tokens(monkeypatch):
    mask_some(monkeypatch)
    for options in ({"dp": 4}, {"dp": 2, "pp": 2, "schedule": "gpipe"}, {"dp": 2, "tp": 2, "zero": 3}):
        plan = make_plan(global_batch=8, **options)
        assert worst(differences(plan, make_model("tiny", layers=2, hidden=16, seq=6, vocab=64))) <= TOLERANCE


def mask_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets without loss, unequally many in each sequence."""
    honest = jobs.batch

    def masked(*args):
        tokens, targets = honest(*args)
        for row in range(len(targets)):
            targets[row, : row % 5] = IGNORE
        return tokens, targets

    monkeypatch.setattr(jobs, "batch", masked)
    check._reference.cache_clear()


# ---- mutations: the check can fail -------------------------------------------------------------------------
MODEL = {"layers": 2, "hidden": 16, "heads": 4, "seq": 6, "vocab": 64}


def judge(**options) -> float:
    return worst(
        differences(
            make_plan(**{"global_batch": 8, "bucket": 4000, "clip": 0.01, **options}),
            make_model("tiny", **MODEL),
        )
    )


@pytest.fixture(autouse=True)
def fresh_reference():
    check._reference.cache_clear()
    yield
    check._reference.cache_clear()


def test_one_bucket_left_out_of_the_reduction_is_caught(monkeypatch):
    honest = data_parallel.DataParallel.reduce
    all_but_one = lambda self, unit: None if unit is self.units[1] else honest(self, unit)  # noqa: E731
    monkeypatch.setattr(data_parallel.DataParallel, "reduce", all_but_one)
    assert judge(dp=2) > TOLERANCE


def test_average_for_sum_is_caught(monkeypatch):
    honest = data_parallel.DataParallel.finish

    def halved(self):
        honest(self)
        for unit in self.units:
            unit.grad.div_(unit.comm.size)

    monkeypatch.setattr(data_parallel.DataParallel, "finish", halved)
    assert judge(dp=2) > TOLERANCE


def test_a_mean_of_means_is_caught_when_token_counts_differ(monkeypatch):
    mask_some(monkeypatch)
    honest = Loader.load

    def normalised(self, step):
        inputs, targets, count = honest(self, step)
        return inputs, targets, torch.full_like(count, 20)  # every rank believes the average count

    monkeypatch.setattr(Loader, "load", normalised)
    assert judge(dp=4) > TOLERANCE


@pytest.mark.parametrize("direction", ["f", "g"])
def test_a_missing_tensor_parallel_all_reduce_is_caught(monkeypatch, direction):
    monkeypatch.setattr(tensor_parallel.TensorParallel, direction, lambda self, x: x)
    assert judge(tp=2) > TOLERANCE


def test_a_vocabulary_slice_that_is_off_by_one_is_caught(monkeypatch):
    honest = tensor_parallel.TensorParallel.embed
    monkeypatch.setattr(
        tensor_parallel.TensorParallel, "embed", lambda self, t, table: honest(self, t, table.roll(1, 0))
    )
    assert judge(tp=2) > TOLERANCE


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_norms_that_are_not_summed_over_tokens_under_sequence_parallelism_are_caught(monkeypatch, zero):
    """The field's commonest mistake with sequence parallelism: every rank's norms see only its own tokens."""
    monkeypatch.setattr(assembly, "sum_over_tokens", lambda parallel, units: None)
    assert judge(tp=2, dp=2, zero=zero, sequence_parallel=True) > TOLERANCE


def test_a_piece_of_the_positions_off_by_one_rank_is_caught(monkeypatch):
    from glasscluster.strategies.tensor.sequence_parallel import SequenceParallel

    monkeypatch.setattr(SequenceParallel, "cut", lambda self, x: x.tensor_split(self.size)[self.rank - 1])
    assert judge(tp=2, sequence_parallel=True) > TOLERANCE


def test_a_tied_embedding_that_is_not_summed_over_stages_is_caught(monkeypatch):
    monkeypatch.setattr(trainer.Trainer, "sum_tied", lambda self, step: None)
    assert judge(pp=2) > TOLERANCE


SPLIT = {"dp": 2, "pp": 2, "schedule": "zb-v", "global_batch": 8}
DEEP = {**MODEL, "layers": 4}


def judge_split(**options) -> float:
    return worst(differences(make_plan(clip=0.01, lr=1e-2, **SPLIT, **options), make_model("tiny", **DEEP)))


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("broken", ["a matrix's part", "what I found", "twice", "early"])
def test_a_backward_in_two_parts_that_loses_or_doubles_something_is_caught(monkeypatch, broken, zero):
    honest_w, run = weight_gradients.WeightGradients.weight_gradients, pipeline_parallel.PipelineExecutor.run
    options = {
        "zero": zero,
        "accumulate": "whole",
    }  # sharded, ZeRO-2 and 3 reduce every micro-batch: none is early

    def spoiled(self, kept, parameters, ready):
        matrix = parameters.get("layers.1.up_weight")
        if matrix is not None and broken == "a matrix's part":
            kept.deferred[matrix][0].compute = lambda honest=kept.deferred[matrix][0].compute: honest().mul_(
                1 + 1e-6
            )
        if matrix is not None and broken == "twice":
            kept.deferred[matrix] *= 2
        if broken == "what I found":
            next(iter(kept.gradients.values())).zero_()
        honest_w(self, kept, parameters, ready)

    def first_is_last(self, *args):
        first = next(a for a in self.actions if a.kind in "BW")
        self.last_gradients[first.stage] = first
        run(self, *args)

    assert judge_split(**options) <= TOLERANCE
    if broken == "early":
        monkeypatch.setattr(pipeline_parallel.PipelineExecutor, "run", first_is_last)
    else:
        monkeypatch.setattr(weight_gradients.WeightGradients, "weight_gradients", spoiled)
    assert judge_split(**options) > TOLERANCE


def test_two_copies_of_a_tied_table_on_one_rank_that_go_apart_are_caught(monkeypatch):
    monkeypatch.setattr(trainer.Trainer, "sum_tied", lambda self, step: None)
    with pytest.raises(RankDied, match=r"this rank's copies of embedding\.token differ"):
        judge_split()


def test_copies_that_overflowed_alike_are_the_same():
    table = torch.tensor([1.0, float("nan"), float("inf")])
    other = torch.tensor([1.0, float("nan"), float("-inf")])
    assert stages._union([{"embedding.token": table}, {"embedding.token": table.clone()}])
    with pytest.raises(AssertionError, match=r"copies of embedding\.token differ"):
        stages._union([{"embedding.token": table}, {"embedding.token": other}])


def test_a_norm_that_counts_replicated_parameters_twice_is_caught(monkeypatch):
    monkeypatch.setattr(assembly.Place, "counts", lambda self, number, name, cut: True)
    assert judge(tp=2) > TOLERANCE


def test_a_zero_1_shard_that_is_not_gathered_back_is_caught(monkeypatch):
    monkeypatch.setattr(zero1.Zero1, "share", data_parallel.DataParallel.share)
    assert judge(dp=2, zero=1) > TOLERANCE


def test_a_zero_2_shard_that_forgets_the_micro_batches_before_is_caught(monkeypatch):
    honest = ShardedGradients.settle

    def forgetful(self, last):
        for unit, work in self.in_flight:
            work.wait()
            if unit.grad is not None:
                unit.owned_gradient.zero_()
        honest(self, last)

    monkeypatch.setattr(ShardedGradients, "settle", forgetful)
    assert judge(dp=2, zero=2) > TOLERANCE


HYBRIDS = [{"dp": 4, "zero": z, "shard": k} for z in (1, 2, 3) for k in (1, 2)]
HYBRIDS += [
    {"dp": 4, "zero": 3, "shard": 2, "tp": 2},
    {"dp": 4, "zero": 2, "shard": 2, "pp": 2, "accumulate": "whole"},
]


@pytest.mark.parametrize("options", HYBRIDS, ids=str)
def test_hybrid_sharding_is_exact_at_every_stage_and_needs_its_second_hop(monkeypatch, options):
    assert judge(**options) <= TOLERANCE
    monkeypatch.setattr(SumOverGroups, "launch", lambda self, unit: None)
    assert judge(**options) > TOLERANCE


@pytest.mark.parametrize("stage", [2, 3])
def test_gradients_added_up_whole_that_forget_a_micro_batch_are_caught(monkeypatch, stage):
    options = {"dp": 2, "zero": stage, "accumulate": "whole"}
    assert judge(**options) <= TOLERANCE
    manager = stages.LADDER[stage]
    honest = manager.backward_begins

    def forgetful(self, last):
        for unit in self.units if last else ():
            if unit.grad is not None:
                unit.grad.zero_()
        honest(self, last)

    monkeypatch.setattr(manager, "backward_begins", forgetful)
    assert judge(**options) > TOLERANCE


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_kept_parameters_that_are_not_let_go_after_backward_are_old_in_the_next_step(monkeypatch, schedule):
    options = {"dp": 2, "pp": 2, "zero": 3, "reshard": False, "schedule": schedule}
    assert judge(**options) <= TOLERANCE
    monkeypatch.setattr(GatheredParameters, "free", lambda self, unit: None)
    assert judge(**options) > TOLERANCE


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_an_offloaded_update_that_does_not_come_up_again_is_caught(monkeypatch, stage):
    options = {"dp": 2, "zero": stage, "offload": "optimizer"}
    assert judge(**options) <= TOLERANCE
    honest = offload.HostOptimizer.update

    def lost(self, parameters, *rest):
        return honest(self, parameters.clone(), *rest)

    monkeypatch.setattr(offload.HostOptimizer, "update", lost)
    assert judge(**options) > TOLERANCE


def test_buckets_rebuilt_in_another_order_on_one_rank_are_caught(monkeypatch):
    honest = data_parallel.DataParallel.rebuild
    rebuilt = []

    def reversed_on_one_rank(self, order):
        rebuilt.append(order)
        honest(self, order[::-1] if self.gpu.rank == 1 else order)

    assert judge(dp=2, first_bucket=500) <= TOLERANCE
    monkeypatch.setattr(data_parallel.DataParallel, "rebuild", reversed_on_one_rank)
    with pytest.raises(CollectiveMismatch, match="all_reduce"):
        judge(dp=2, first_bucket=500)
    assert len(rebuilt) >= 1
    assert (
        judge(dp=2, bucket=10**9, first_bucket=10**9) > TOLERANCE
    )  # one bucket: sizes agree, and only the sums are wrong


def test_every_rank_takes_the_order_of_rank_0_whatever_its_own_was(monkeypatch):
    honest = data_parallel.DataParallel.step_begins

    def surprised(self):
        if self.gpu.rank == 1 and self.arrived:
            self.arrived.reverse()
        honest(self)

    monkeypatch.setattr(data_parallel.DataParallel, "step_begins", surprised)
    assert judge(dp=2, first_bucket=500) <= TOLERANCE


def skip_a_bias(monkeypatch: pytest.MonkeyPatch, times: float | None) -> None:
    """On rank 1, layer 1 leaves its `up_bias` out (None), or adds so many times of it."""
    honest = functional.linear

    def without(x, weight, bias=None):
        mine = (
            bias is not None
            and threading.current_thread().name == "rank-1"
            and getattr(weight, "planted", False)
        )
        return honest(x, weight, (None if times is None else bias * times) if mine else bias)

    made = gpt.Block.__init__

    def planted(self, index, *args):
        made(self, index, *args)
        self.up_weight.planted = index == 1

    monkeypatch.setattr(gpt.Block, "__init__", planted)
    monkeypatch.setattr(functional, "linear", without)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_parameter_without_a_gradient_is_named_with_its_rank_or_counts_as_zero(monkeypatch, stage):
    plan, model = (
        make_plan(dp=2, zero=stage, bucket=900, global_batch=4, precision="fp64"),
        make_model("tiny", **MODEL),
    )
    skip_a_bias(monkeypatch, None)
    with pytest.raises(GradientMissing, match=r"rank 1: no gradient for layers\.1\.up_bias\.") as caught:
        run_plan(plan, model)
    assert caught.value.rank == 1
    without = run_plan(plan.model_copy(update={"unused": "zero"}), model, capture=True, steps=2).results
    monkeypatch.undo()
    skip_a_bias(monkeypatch, 0.0)
    zeros = run_plan(plan, model, capture=True, steps=2).results
    for one, other in zip(without, zeros, strict=True):
        for tensor, weight in other.weights[-1].items():
            assert torch.equal(one.weights[-1][tensor], weight), tensor


def test_one_bias_off_by_a_millionth_is_caught(monkeypatch):
    honest = gpt.Block.__init__

    def shifted(self, index, *args):
        honest(self, index, *args)
        if args[1].size > 1:
            self.up_bias.data.add_(1e-6)

    monkeypatch.setattr(gpt.Block, "__init__", shifted)
    assert judge(tp=2) > TOLERANCE


def test_a_tensor_that_no_rank_brings_back_is_caught():
    plan, model = make_plan(dp=2, precision="fp64"), make_model("tiny", **MODEL)
    job = Job(plan, model, steps=1, capture=True)
    results = run_plan(plan, model, capture=True).results
    for result in results:
        result.gradients[0].pop("layers.0.up_bias")
        result.weights[0].pop("layers.0.up_bias")
    with pytest.raises(AssertionError, match="up_bias"):
        check.compare(results, check.reference_for(job), plan)
