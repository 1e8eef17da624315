"""A stage may be the embedding alone, or the head alone: Llama 3 405B has 126 layers on 16 x 8 chunks."""

from __future__ import annotations

import pytest
from helpers import differences, run_plan

from glasscluster.base.errors import InputError
from glasscluster.base.rows import HELD
from glasscluster.strategies.judge.accounts import rows as rows_of
from glasscluster.strategies.layout.judged import Judged
from glasscluster.strategies.pipeline.options import split_layers
from glasscluster.strategies.plan import make_model, make_plan

SHAPE = {"hidden": 16, "seq": 8, "vocab": 40}
PLANS = {
    "interleaved": ({"pp": 4, "virtual_stages": 2}, 6),
    "four chunks a rank, tp, recomputed": (
        {"pp": 2, "virtual_stages": 4, "tp": 2, "sequence_parallel": True, "zero": 1, "recompute": "full"},
        6,
    ),
    "zero 3": ({"pp": 2, "virtual_stages": 2, "dp": 2, "zero": 3, "schedule": "looped-bfs"}, 2),
    "weights apart": ({"pp": 2, "virtual_stages": 3, "schedule": "interleaved-zb"}, 4),
    "folded": ({"pp": 2, "schedule": "zb-v"}, 3),
    "dualpipe": ({"pp": 2, "schedule": "dualpipe-v", "dp": 2, "zero": 2}, 3),
}


@pytest.mark.parametrize(("options", "layers"), PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_plan_with_an_empty_chunk_equals_one_device(options, layers, tied):
    model = make_model("tiny", layers=layers, tied=tied, **SHAPE)
    plan = make_plan(**options, global_batch=4 * options.get("dp", 1))
    plan.check(model)
    assert [] in plan.stage_layers(model)
    differ = differences(plan, model)
    assert max(differ["max_rel_grad_diff"], differ["max_rel_weight_diff"]) <= 1e-10


@pytest.mark.parametrize(("options", "layers"), PLANS.values(), ids=PLANS)
def test_every_formula_holds_where_a_chunk_is_empty(options, layers):
    model = make_model("tiny", layers=layers, **SHAPE)
    plan = make_plan(**options, global_batch=4 * options.get("dp", 1))
    run = run_plan(plan, model)
    rows = rows_of(Judged(plan, model, run.graph, run.results, run.timeline))
    judged = [row for row in rows if not row.because]
    assert len(judged) > 3
    assert [row.key for row in judged if row.verdict != HELD] == []


def test_llama_405b_lies_on_128_chunks_as_its_paper_has_it():
    plan = make_plan(tp=8, pp=16, dp=128, virtual_stages=8, global_batch=2048, sequence_parallel=True)
    model = make_model("llama3-405b")
    plan.check(model, runs=False)
    assert (
        [len(layers) for layers in plan.stage_layers(model)] == [0, *[1] * 126, 0] == split_layers(126, 128)
    )


REFUSED = [
    ({"pp": 4}, 3, "pp", "every rank"),  # a rank without another stage
    ({"pp": 2, "schedule": "zb-v"}, 2, "pp", "at least one of the 2 layers"),  # rank 0 has both ends
    ({"pp": 2, "virtual_stages": 4}, 5, "virtual_stages", "between the first and the last"),
    ({"pp": 2, "virtual_stages": 2, "layers_per_stage": (1, 0, 2, 1)}, 4, "layers_per_stage", "may be 0"),
    ({"pp": 2, "virtual_stages": 2, "layers_per_stage": (-1, 2, 2, 1)}, 4, "layers_per_stage", "add up to 4"),
    ({"pp": 2, "schedule": "zb-v", "layers_per_stage": (0, 2, 2, 0)}, 4, "layers_per_stage", "may be 0"),
]


@pytest.mark.parametrize(("options", "layers", "field", "rule"), REFUSED)
def test_a_rank_or_a_chunk_in_the_middle_without_a_layer_is_refused(options, layers, field, rule):
    with pytest.raises(InputError, match=rule) as refused:
        make_plan(**options).check(make_model("tiny", layers=layers, **SHAPE))
    assert refused.value.field == field


def test_the_ends_may_be_empty_by_name():
    plan = make_plan(pp=2, virtual_stages=2, layers_per_stage=(0, 2, 2, 0))
    plan.check(make_model("tiny", layers=4, **SHAPE))
