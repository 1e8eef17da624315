"""Recomputation in Megatron's words: the same numbers, and FLOPs, bytes and memory as predicted."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import differences, run_plan, worst

from glasscluster.base.errors import GlassError, InputError
from glasscluster.model.text.mixture import Mixture
from glasscluster.scenarios.jobs.prediction import predict
from glasscluster.sim.recording.events import RECOMPUTE
from glasscluster.strategies.judge import accounts
from glasscluster.strategies.layout.judged import Judged
from glasscluster.strategies.memory import per_operation
from glasscluster.strategies.memory.dialects import MEGATRON, NOT_HERE, parts_of
from glasscluster.strategies.plan import make_model, make_plan

MODEL = {"layers": 4, "hidden": 16, "heads": 4, "seq": 8, "vocab": 42}
EXPERTS = {"experts": 4, "top_k": 2}
SHARED = {**EXPERTS, "shared_ffn": 16}
OVERLAP = {"tp": 2, "sequence_parallel": True, "tp_overlap": True}
CASES = (
    ("mlp", {}, {}),
    ("core_attn", {"tp": 2}, {"attention": "unfused"}),
    ("core_attn,mlp", {"tp": 2, "pp": 2, "dp": 2}, {"dropout": 0.1}),
    ("mlp", {"tp": 2, "sequence_parallel": True, "dp": 2, "zero": 3}, {"activation": "swiglu"}),
    ("mlp", OVERLAP, {"norm_position": "sandwich"}),
    ("mlp,core_attn", {"pp": 2, "schedule": "zb-h1", "tp": 2}, {"norm_position": "post"}),
    ("mlp", {"cp": 2}, {}),
    ("moe", {"dp": 2, "ep": 2}, EXPERTS),
    ("core_attn,moe", {"dp": 2, "ep": 2, "tp": 2, "sequence_parallel": True}, SHARED),
    ("moe", OVERLAP, EXPERTS),
    ("moe", OVERLAP, SHARED),
    ("moe", {"pp": 2, "schedule": "zb-h1"}, EXPERTS),
    ("mlp", {**OVERLAP, "pp": 2}, {**SHARED, "dense_layers": 1}),
    (
        "moe,mlp",
        {"tp": 2, "pp": 2, "sequence_parallel": True},
        {**EXPERTS, "dense_layers": 1, "expert_ffn": 12},
    ),
)


def built(words, options, shape):
    options = {"global_batch": 8, "recompute": "selective", "recompute_modules": words, **options}
    return make_plan(**options), make_model("tiny", **MODEL, **shape)


@pytest.mark.parametrize(("words", "options", "shape"), CASES)
def test_a_plan_with_modules_equals_one_device_and_all_rows_hold(words, options, shape):
    plan, model = built(words, options, shape)
    plan.check(model)
    assert worst(differences(plan, model)) <= 1e-10
    run = run_plan(plan, model)
    rows = {r.key: r for r in accounts.rows(Judged(plan, model, run.graph, run.results))}
    assert {"flops_recomputed", "checkpoints_held"} <= set(rows)
    for row in rows.values():
        assert row.why is not None or row.predicted == row.counted, row.key


@pytest.mark.parametrize(("words", "options", "shape"), CASES[:4])
def test_a_dry_run_with_modules_records_the_same(words, options, shape):
    plan, model = built(words, options, shape)
    real, dry = (run_plan(plan, model, backend) for backend in ("threads", "dry"))
    assert real.graph.difference(dry.graph) is None
    assert real.peak_memory() == dry.peak_memory()


def test_what_runs_again_belongs_to_the_layer_that_ran_it_first():
    for words in ("core_attn", "mlp"):
        graph = run_plan(*built(words, {}, {})).graph
        again = graph.layer[graph.phase == RECOMPUTE]
        assert sorted(set(again.tolist())) == [0, 1, 2, 3], words


def test_the_mlp_s_products_run_again_but_for_the_last_and_the_core_s_do_not():
    graph = run_plan(*built("mlp", {}, {})).graph
    names = np.array(graph.names)[graph.op[graph.phase == RECOMPUTE]]
    assert "glasscluster.flash_forward" not in names
    assert (names == "addmm").sum() == 8 * 4  # one of two, micro-batches x layers
    assert "gelu" in names


def test_each_module_that_is_added_takes_less_memory_and_more_work():
    model = make_model("llama3-8b", layers=8)
    found = []
    for words in (None, "core_attn", "core_attn,mlp"):
        more = {"recompute": "selective", "recompute_modules": words} if words else {}
        found.append(
            predict(make_plan(dp=8, zero=1, global_batch=8, precision="bf16", **more), model, "dgx-h200")
        )
    activations = [content["memory_gib"]["activations"] for content in found]
    assert activations == sorted(activations, reverse=True)
    # what the MLPs keep no more: gate, value and their product, of each token of a micro-batch, in bf16
    freed = 3 * model.width * 2 * model.seq * model.layers
    assert (activations[1] - activations[2]) * 2**30 == pytest.approx(freed, rel=1e-9)
    assert [content["hfu"] / content["mfu"] for content in found] == sorted(
        c["hfu"] / c["mfu"] for c in found
    )


# ---- torchtitan's list of operators ------------------------------------------------------------------------
LLAMA = {"bias": False, "activation": "swiglu", "norm": "rmsnorm", "position": "rope", "kv_heads": 2}
OPERATORS = (
    ({}, {}),
    ({"dp": 2, "zero": 3}, LLAMA),
    ({"pp": 2}, {"head_dim": 6, "window": 3, "attention_cap": 2.0}),
    ({"pp": 2}, {"dropout": 0.1, "attention": "unfused"}),
    ({"pp": 2}, {"qkv": "separate", "norm_position": "sandwich"}),
    ({"pp": 2, "schedule": "zb-h1"}, {}),
    ({"pp": 2, "schedule": "gpipe", "precision": "bf16"}, {"norm_position": "post"}),
    ({"dp": 2}, {"objective": "masked", "activation": "relu"}),
)


def listed(options, shape):
    plan = make_plan(**{"global_batch": 8, "recompute": "op", **options})
    return plan, make_model("tiny", **{**MODEL, **shape})


@pytest.mark.parametrize(("options", "shape"), OPERATORS)
def test_operator_by_operator_a_plan_equals_one_device_all_rows_hold_and_a_dry_run_is_the_same(
    options, shape
):
    plan, model = listed(options, shape)
    plan.check(model)
    assert worst(differences(plan, model)) <= 1e-10
    run, dry = (run_plan(plan, model, backend) for backend in ("threads", "dry"))
    assert run.graph.difference(dry.graph) is None
    assert run.peak_memory() == dry.peak_memory()
    for row in accounts.rows(Judged(plan, model, run.graph, run.results)):
        assert row.why is not None or row.predicted == row.counted, row.key


def test_every_second_product_runs_again_and_flash_attention_does_not():
    graph = run_plan(*listed({"pp": 2}, {"dropout": 0.1})).graph
    again = np.array(graph.names)[graph.op[graph.phase == RECOMPUTE]]
    assert (again == "addmm").sum() + (
        again == "mm"
    ).sum() == 8 * 4 * 2  # two of four, micro-batches x layers
    assert "glasscluster.flash_forward" not in again
    assert "gelu" in again


def test_a_result_that_is_taken_for_another_is_found(monkeypatch):
    plan, model = listed({}, {"qkv": "separate"})  # q and v have one shape
    honest = per_operation._Saving.is_saved
    monkeypatch.setattr(
        per_operation._Saving, "is_saved", lambda self, f: honest(self, f) and bool(swap(self))
    )

    def swap(mode):
        if len(mode.saved) == 2:  # once a layer
            mode.saved.reverse()
        return True

    assert worst(differences(plan, model)) > 1e-3


@pytest.mark.parametrize(
    ("options", "shape", "rule"),
    [
        ({"tp": 2}, {}, "is no operator of torch"),
        ({"cp": 2}, {}, "is no operator of torch"),
        ({}, EXPERTS, "depends on the data"),
        ({}, {"kv_latent": 8}, "knows no latents"),
    ],
)
def test_what_the_list_does_not_cover_is_refused_by_name(options, shape, rule):
    plan, model = listed(options, shape)
    with pytest.raises(InputError, match=f"{rule}; the nearest valid choice is full"):
        plan.check(model)


@pytest.mark.parametrize("shape", [{"sinks": True}, {"prefix": 3}, {"position": "alibi"}], ids=str)
def test_attention_in_parts_is_refused_with_flash_and_exact_without(shape, monkeypatch):
    plan, model = listed({}, shape)
    with pytest.raises(InputError, match="needs --attention unfused"):
        plan.check(model)
    textbook = model.model_copy(update={"attention": "unfused"})
    plan.check(textbook)
    assert worst(differences(plan, textbook)) <= 1e-10


def test_a_saved_result_that_was_changed_in_place_is_found():
    plan, model = listed({}, {"sinks": True})  # the rule that refuses it is not asked
    with pytest.raises(GlassError, match="changed in place after it was saved"):
        run_plan(plan, model)


def test_packed_documents_run_operator_by_operator(tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat.\n\non the mat.\n\n" * 9)
    plan, model = listed({}, {"seq": 24, "vocab": 256})
    assert (
        worst(differences(plan, model, data=Mixture(((str(tmp_path / "a.txt"), 1.0),), None, packed=True)))
        <= 1e-10
    )


def test_words_are_data_and_what_is_no_word_or_has_no_part_is_refused_by_name():
    assert parts_of("mlp, core_attn") == ("core", "mlp")
    assert set(MEGATRON).isdisjoint(NOT_HERE)
    with pytest.raises(InputError, match="no module of Megatron's; the nearest valid choice is core_attn"):
        parts_of("core_atn")
    for word, why in NOT_HERE.items():
        with pytest.raises(InputError, match=why.split(",")[0]):
            parts_of(f"mlp,{word}")
    with pytest.raises(InputError, match="names nothing"):
        parts_of(" ")
    for words, options, shape, rule in (
        ("moe", {}, {}, "the model has no experts"),
        ("mlp", {}, EXPERTS, "every layer of the model has experts"),
        ("mlp", {"recompute": "full"}, {}, "needs --recompute selective"),
    ):
        plan, model = built(words, options, shape)
        with pytest.raises(InputError, match=rule):
            plan.check(model)
