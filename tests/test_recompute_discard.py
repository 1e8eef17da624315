"""Outputs that are discarded and made again (norms, experts' activations), the shared expert, each nth layer."""

from __future__ import annotations

import gc
import re

import numpy as np
import pytest
import torch
from helpers import differences, run_plan, worst

from glasscluster.base.errors import InputError
from glasscluster.cli import main
from glasscluster.scenarios.jobs.prediction import predict
from glasscluster.sim.recording.events import CATEGORIES, RECOMPUTE
from glasscluster.sim.time.memory_history import MemoryHistory
from glasscluster.strategies.judge import accounts
from glasscluster.strategies.judge.advice import changes
from glasscluster.strategies.layout.judged import Judged
from glasscluster.strategies.memory import recompute, rows
from glasscluster.strategies.memory.discard import AGAIN, Discarded, predict_norms
from glasscluster.strategies.memory.recompute import predict_checkpoints, predict_flops
from glasscluster.strategies.plan import make_model, make_plan

MODEL = {"layers": 4, "hidden": 16, "heads": 4, "seq": 8, "vocab": 42}
CUT = {"tp": 2, "sequence_parallel": True}
OVERLAP = {**CUT, "tp_overlap": True}
LLAMA = {"bias": False, "activation": "swiglu", "norm": "rmsnorm", "position": "rope", "kv_heads": 2}
EXPERTS = {"experts": 4, "top_k": 2}
SHARED = {**EXPERTS, "shared_ffn": 16}
NORMS = {
    "one": ("layernorm", {}, {}),
    "with mlp and core": ("core_attn,mlp,layernorm", {"tp": 2, "pp": 2}, {"dropout": 0.1}),
    "sequence parallel": ("layernorm", CUT, {}),
    "separate": ("layernorm,mlp", {"tp": 2}, {"qkv": "separate"}),
    "separate, gathered": ("layernorm", CUT, {"qkv": "separate"}),
    "latents, gathered": ("layernorm,core_attn", CUT, {"kv_latent": 8}),
    "overlapped": ("layernorm,mlp", OVERLAP, {"norm_position": "sandwich"}),
    "zero 3": ("layernorm", {"dp": 2, "zero": 3}, LLAMA),
    "two parts": ("layernorm,mlp", {"pp": 2, "schedule": "zb-h1", **CUT}, {"norm": "scalenorm"}),
    "interleaved": ("layernorm", {"pp": 2, "schedule": "interleaved", "virtual_stages": 2}, {}),
    "context": ("layernorm,core_attn", {"cp": 2}, {"attention": "flash"}),
    "experts": ("layernorm", {"dp": 2, "ep": 2, **CUT}, SHARED),
    "experts again": ("layernorm,moe", {"dp": 2, "ep": 2, "tp": 2}, SHARED),
}
OF_EXPERTS = {
    "activation": ("moe_act", {"dp": 2, "ep": 2}, {**EXPERTS, "expert_ffn": 12}),
    "capacity": ("moe_act,layernorm", CUT, {**SHARED, "activation": "swiglu", "capacity_factor": 1.0}),
    "two parts": ("moe_act", {"pp": 2, "schedule": "zb-h1"}, {**EXPERTS, "dense_layers": 1}),
    "shared": ("shared_experts", {"dp": 2, "ep": 2}, SHARED),
    "shared and mlp": ("shared_experts,mlp", {"tp": 2}, {**SHARED, "dense_layers": 1}),
    "shared, gathered": ("shared_experts", CUT, SHARED),
    "shared, overlapped": ("shared_experts,moe_act,layernorm,core_attn", OVERLAP, SHARED),
    "shared, two parts": ("shared_experts", {"pp": 2, "schedule": "zb-h1"}, SHARED),
}
LATENT = {"kv_latent": 8, "position": "rope", "rope_dim": 2}
LATENTS = {
    "flash": ("mla_up_proj", {}, {**LATENT, "q_latent": 6}),
    "all queries": ("mla_up_proj,mlp", CUT, LATENT),
    "with core": (
        "mla_up_proj,core_attn,layernorm",
        {"tp": 2},
        {**LATENT, "q_latent": 6, "attention": "unfused"},
    ),
    "not rotated": ("mla_up_proj", {"dp": 2, "zero": 3}, {"kv_latent": 8, "norm": "rmsnorm"}),
    "context": ("core_attn,mla_up_proj", {"cp": 2}, {**LATENT, "q_latent": 6}),
    "two parts": ("mla_up_proj", {"pp": 2, "schedule": "zb-h1"}, LATENT),
}
NTH = {
    "one": (2, {}, {}),
    "third": (3, {"dp": 2, "zero": 3}, {"norm_position": "post"}),
    "pipeline": (2, {"pp": 2, "schedule": "zb-h1"}, {"dropout": 0.1}),
    "shared heads": (2, {"tp": 4, "pp": 2}, {"kv_heads": 2}),
    "overlapped": (2, OVERLAP, SHARED),
    "experts": (3, {"dp": 2, "ep": 2, **CUT}, {**SHARED, "dense_layers": 1}),
    "context": (2, {"cp": 2, "context": "zigzag"}, {}),
}


def chosen(words: str | int, options: dict, shape: dict):
    """A plan and model: `words` are modules, or n of each nth layer."""
    how = {"recompute": "full", "recompute_nth": words}
    if isinstance(words, str):
        how = {"recompute": "selective", "recompute_modules": words}
    plan = make_plan(**{"global_batch": 4, **how, **options})
    return plan, make_model("tiny", **{**MODEL, **shape})


def ledger(plan, model, run) -> dict:
    return {row.key: row for row in accounts.rows(Judged(plan, model, run.graph, run.results))}


def failed(plan, model) -> set[str]:
    run = run_plan(plan, model)
    return {key for key, row in ledger(plan, model, run).items() if row.verdict == "failed"}


def activations(run) -> tuple[int, int]:
    """Bytes of activations: the most at once, and what is left at the end of the step, over all ranks."""
    logs = [memory["log"] for memory in run.graph.memory.values()]
    alive = [np.cumsum(log[log[:, 1] == CATEGORIES.index("activations"), 2]) for log in logs]
    return sum(int(x.max()) for x in alive), sum(int(x[-1]) for x in alive)


ALL = {
    f"{kind}: {name}": case
    for kind, cases in (("norms", NORMS), ("experts", OF_EXPERTS), ("latents", LATENTS), ("nth", NTH))
    for name, case in cases.items()
}


@pytest.mark.parametrize(("words", "options", "shape"), ALL.values(), ids=ALL)
def test_a_plan_equals_one_device_all_rows_hold_and_it_takes_less_memory(words, options, shape):
    plan, model = chosen(words, options, shape)
    plan.check(model)
    assert worst(differences(plan, model, steps=1)) <= 1e-10
    run, plain = run_plan(plan, model), run_plan(make_plan(global_batch=4, **options), model)
    held = ledger(plan, model, run)
    for row in held.values():
        assert row.why is not None or row.predicted == row.counted, row.key
    off = {key for key, row in held.items() if row.verdict == "not applicable"}
    waits = plan.pipeline.splits and words in ("shared_experts", "mla_up_proj")
    assert off == ({"checkpoints_held"} if waits else set())
    assert ("outputs_made_again" in held) == (
        isinstance(words, str) and words not in ("shared_experts", "shared_experts,mlp")
    )
    (most, left), (most_before, left_before) = activations(run), activations(plain)
    assert most < most_before
    assert left == left_before


@pytest.mark.parametrize(
    ("words", "options", "shape"), [case for name, case in ALL.items() if not name.startswith("experts")]
)
def test_a_dry_run_records_the_same(words, options, shape):
    plan, model = chosen(words, options, shape)
    real, dry = (run_plan(plan, model, backend) for backend in ("threads", "dry"))
    if not model.experts:  # whose rows are as many as the data says
        assert real.graph.difference(dry.graph) is None
        assert real.peak_memory() == dry.peak_memory()
    assert ledger(plan, model, dry).keys() == ledger(plan, model, real).keys()
    assert failed(plan, model) == set()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("words", "options", "shape"),
    [
        NORMS["with mlp and core"],
        NORMS["separate"],
        NORMS["zero 3"],
        OF_EXPERTS["shared, overlapped"],
        LATENTS["with core"],
        NTH["one"],
    ],
)
def test_every_bit_is_that_of_a_run_that_keeps_everything(words, options, shape, precision):
    plan, model = chosen(words, {**options, "precision": precision}, shape)
    plain = make_plan(global_batch=4, precision=precision, **options)
    a, b = (run_plan(p, model, steps=2, capture=True).results for p in (plan, plain))
    for ours, theirs in zip(a, b, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(ours.losses, theirs.losses, strict=True))
        for kind in ("gradients", "weights"):
            for step, before in zip(getattr(ours, kind), getattr(theirs, kind), strict=True):
                assert step.keys() == before.keys()
                assert all(torch.equal(step[name], before[name]) for name in step), kind


# ---- what runs again ---------------------------------------------------------------------------------------
def again(run) -> dict[str, int]:
    """What ran in the phase "recompute", and how often."""
    names = np.array(run.graph.names)[run.graph.op[run.graph.phase == RECOMPUTE]]
    return {str(name): int(n) for name, n in zip(*np.unique(names, return_counts=True), strict=True)}


def test_both_norms_of_a_layer_run_again_once_with_their_layer_and_nothing_else_does():
    plan, model = chosen("layernorm", {}, {"qkv": "separate"})  # three products keep what a norm gave
    run = run_plan(plan, model)
    assert again(run) == {"glasscluster.layer_norm_forward": 2 * 4 * plan.micro_batches}
    layers = run.graph.layer[run.graph.phase == RECOMPUTE]
    assert {int(n): int((layers == n).sum()) for n in set(layers)} == dict.fromkeys(range(4), 2 * 4)
    assert run.graph.flops[run.graph.phase == RECOMPUTE].sum() == 0


def test_where_every_rank_keeps_gathered_tokens_the_norm_before_attention_does_not_run_again():
    gathered, cut = (run_plan(*chosen("layernorm", CUT, {"qkv": q})) for q in ("separate", "fused"))
    assert (
        2 * again(gathered)["glasscluster.layer_norm_forward"]
        == again(cut)["glasscluster.layer_norm_forward"]
    )


def test_experts_activations_run_again_and_no_product_does():
    graph = run_plan(*chosen("moe_act", {}, EXPERTS))
    assert again(graph) == {"gelu": 4 * 4 * 4}  # micro-batches, layers, experts


def test_each_nth_layer_runs_again_counted_from_the_first_and_whatever_the_stages_are():
    for options in ({}, {"pp": 2, "layers_per_stage": (1, 3)}):
        graph = run_plan(*chosen(2, options, {})).graph
        assert set(graph.layer[graph.phase == RECOMPUTE].tolist()) == {1, 3}
    plan, model = chosen(2, {}, {})
    whole = run_plan(make_plan(global_batch=4, recompute="full"), model).graph
    some = run_plan(plan, model).graph
    assert 2 * some.flops[some.phase == RECOMPUTE].sum() == whole.flops[whole.phase == RECOMPUTE].sum()


def test_what_is_made_again_lives_until_the_last_product_has_used_it_and_is_gone_without_the_collector():
    plan, model = chosen("layernorm,mlp", {}, {"qkv": "separate"})
    gc.disable()
    try:
        run = run_plan(plan, model)
        assert activations(run)[1] == 0
    finally:
        gc.enable()
    history = MemoryHistory(run.graph, 0)
    numbers = [n for n, called in history.named.items() if called == AGAIN]
    alive = history.log[np.isin(history.log[:, 3], numbers), 2].cumsum()
    assert alive.max() == 4 * model.seq * model.hidden  # one at a time, in fp32
    assert alive[-1] == 0


# ---- theory ------------------------------------------------------------------------------------------------
def test_the_bytes_of_norms_are_two_inputs_a_layer_and_those_of_an_mlp_behind_one_are_not_counted_twice():
    model = make_model("llama3-8b", layers=2, qkv="fused")
    one = 2 * model.seq * model.hidden  # an input, in bf16

    def kept(parts, pieces=1):
        return predict_checkpoints("selective", model, 2, 1, 1, 4, 2, pieces, 1, parts, pieces > 1)

    assert kept(("norm",)) == kept(("norm", "mlp")) == 2 * 2 * one
    assert kept(("mlp",)) == 2 * one
    assert kept(("norm",), 4) == 2 * 2 * one // 4
    assert predict_norms(model, 2, 1, 2, 4, True) == kept(("norm",), 4)
    separate = model.model_copy(update={"qkv": "separate"})
    assert predict_norms(separate, 2, 1, 2, 4, True) == 2 * one // 4
    assert predict_norms(separate, 2, 1, 2, 1, False) == 2 * 2 * one


@pytest.mark.parametrize("layout", [{"dp": 2}, CUT], ids=str)
def test_the_peak_of_llama_3_8b_falls_by_what_its_norms_gave_and_by_nothing_else(layout):
    model, found = make_model("llama3-8b", layers=4), []
    for words in ("core_attn", "core_attn,layernorm"):
        more = {"recompute": "selective", "recompute_modules": words}
        plan = make_plan(global_batch=2, precision="bf16", **layout, **more)
        found.append(predict(plan, model, "dgx-h200")["memory_gib"]["activations"] * 2**30)
    cut = layout.get("tp", 1)
    assert found[0] - found[1] == pytest.approx(predict_norms(model, 4, 1, 2, cut, cut > 1), rel=1e-12)


def test_the_shared_expert_s_first_product_runs_again_and_no_other_one():
    model = make_model("tiny", **MODEL, **SHARED)
    found = predict_flops("selective", model, 4, 1, 1, parts=("shared",))
    assert found == 4 * 2 * model.seq * model.hidden * 16
    assert predict_flops("selective", model, 4, 1, 1, parts=("norm", "moe_act")) == 0


# ---- mutations ---------------------------------------------------------------------------------------------
def test_a_norm_that_is_made_again_from_another_input_is_caught(monkeypatch):
    plan, model = chosen("layernorm", {}, {})
    honest = Discarded.__init__

    def other(self, make, given, again, call):
        honest(self, make, given, again, call)
        self.given = self.given * (1 + 1e-6)

    monkeypatch.setattr(Discarded, "__init__", other)
    assert worst(differences(plan, model, steps=1)) > 1e-10


def test_a_norm_that_is_made_again_for_each_product_is_caught(monkeypatch):
    def forgetful(self, saved):
        self.remade = ()
        return honest(self, saved)

    plan, model = chosen("layernorm", {}, {"qkv": "separate"})
    assert failed(plan, model) == set()
    honest = Discarded.unpack
    monkeypatch.setattr(Discarded, "unpack", forgetful)
    assert failed(plan, model) == {"outputs_made_again"}


def test_a_norm_that_keeps_what_it_gave_is_caught(monkeypatch):
    plan, model = chosen("layernorm", CUT, {})
    monkeypatch.setattr(Discarded, "pack", lambda self, x: x)
    assert failed(plan, model) == {"outputs_made_again", "checkpoints_held"}


def test_inputs_that_are_not_counted_and_those_that_are_counted_twice_are_caught(monkeypatch):
    plan, model = chosen("layernorm,mlp", {}, {})
    monkeypatch.setattr(recompute, "STARTS", ())
    assert failed(plan, model) == {"checkpoints_held"}
    monkeypatch.undo()
    monkeypatch.setattr(recompute, "norms_discarded", lambda model, cut: 3)
    assert failed(plan, model) == {"checkpoints_held"}


def test_rows_of_experts_that_are_taken_for_those_of_another_width_are_caught(monkeypatch):
    plan, model = chosen("moe_act", {"dp": 2, "ep": 2}, {**EXPERTS, "expert_ffn": 12})
    monkeypatch.setattr(rows, "predict_activations", lambda model, n, width: width * model.width * n)
    assert failed(plan, model) == {"outputs_made_again"}


def test_another_layer_than_each_nth_is_caught(monkeypatch):
    plan, model = chosen(3, CUT, {**EXPERTS, "dense_layers": 2, "expert_ffn": 12})
    assert failed(plan, model) == set()

    def first(self, blocks, x, draw):
        for block in blocks:
            x = block(x, draw) if block.index % self.nth else self.run(lambda x, b=block: b(x, draw), x)
        return x

    monkeypatch.setattr(recompute.EachNth, "layers", first)
    assert {"flops_recomputed", "checkpoints_held"} <= failed(plan, model)


# ---- refusals ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "options", "shape", "message"),
    [
        ("layernorm,mlp", {}, {"norm_position": "post"}, "layernorm: it is of norms before .* choice is mlp"),
        ("moe_act", {}, {}, "moe_act: the model has no experts; .* choice is core_attn"),
        ("moe_act", {}, {**EXPERTS, "activation": "relu"}, "moe_act: it would free nothing"),
        ("moe,moe_act", {}, EXPERTS, "moe_act: a part of moe, .* choice is moe$"),
        ("shared_experts,core_attn", {}, EXPERTS, "no shared expert; .* choice is core_attn"),
        ("mla_up_proj", {}, {}, "the model has no latents; .* choice is core_attn"),
        ("mla_up_proj", {"cp": 2}, LATENT, "copies of Q, K and V here: it needs core_attn beside it"),
        ("mla_up_proj", {}, {**LATENT, "attention": "unfused"}, "it needs core_attn beside it"),
        ("mla_up_proj,layernorm", {}, LATENT, "made from what the norm gave, .* choice is layernorm"),
        ("shared_experts,moe", {}, SHARED, "shared_experts: a part of moe, .* choice is moe$"),
        (2, {"recompute": "none"}, {}, "recompute_nth = 2: needs --recompute full; .* choice is 1"),
        (2, {"recompute_every": 2}, {}, "recompute_nth = 2: needs --recompute-every 1"),
        (5, {}, {}, "recompute_nth = 5: no layer would run again: the model has 4; .* choice is 4"),
    ],
)
def test_what_cannot_be_is_refused_with_one_choice_that_runs(words, options, shape, message):
    plan, model = chosen(words, options, shape)
    with pytest.raises(InputError, match=message) as refused:
        plan.check(model)
    fixed = plan.model_copy(update={refused.value.field: refused.value.nearest})
    fixed.check(model)


@pytest.mark.parametrize("given", ["", "--recompute none", "--recompute full", "--recompute op"])
def test_modules_without_selective_recomputation_name_one_cure_and_it_runs(given, capsys):
    def glass(*more: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            main(["predict", "--recompute-modules", "mlp", "--hardware", "classroom", *more])
        return end.value.code, capsys.readouterr().err.strip()

    code, said = glass(*given.split())
    assert code == 2
    assert re.search(r"recompute = '\w+': --recompute-modules mlp needs --recompute selective; ", said)
    assert said.endswith("the nearest valid choice is selective")
    assert glass("--recompute", "selective")[0] == 0


def test_advice_for_memory_lets_every_layer_run_again_and_all_of_a_layer_of_which_parts_do():
    def advised(words):
        plan, model = chosen(words, {}, {})
        return [change for change, *_ in changes(plan, model)]

    assert {"recompute_nth": 1} in advised(2)
    assert {"recompute": "full", "recompute_modules": "core_attn"} in advised("mlp")
