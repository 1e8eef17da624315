"""Every switch of experts and gates, with everything that can be done with a model: exact, or refused by its field.

SWITCHES has one entry a switch. Each is trained in every layout beside one device and beside the formulas,
recorded dry, generated with, served, saved, and refused where it makes no sense.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from glasscluster.base.errors import InputError
from glasscluster.model import uses
from glasscluster.model.config import ModelConfig
from glasscluster.model.gpt import GPTStage
from glasscluster.model.weights import hugging_face
from glasscluster.model.weights.families.forms import PLAIN_FORM, Form
from glasscluster.scenarios.jobs import generation, serving, training
from glasscluster.sim.recording.events import COMPUTE
from glasscluster.sim.run import Cluster, Run
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge import activations, advice
from glasscluster.strategies.judge.check import TOLERANCE
from glasscluster.strategies.layout.whole import assemble
from glasscluster.strategies.plan import Plan, make_model, make_plan
from glasscluster.strategies.serving.batching import Request
from glasscluster.strategies.serving.generation import GenerationJob
from glasscluster.strategies.serving.serving import ServingJob
from glasscluster.strategies.trainer import train_rank

SHAPE: dict[str, Any] = {"layers": 3, "hidden": 16, "heads": 4, "seq": 8, "vocab": 42, "init_std": 0.1}
V3: dict[str, Any] = {
    "experts": 8,
    "top_k": 3,
    "expert_ffn": 12,
    "shared_ffn": 8,
    "dense_layers": 1,
    "activation": "swiglu",
    "router": "sigmoid",
    "router_bias": True,
    "router_groups": 4,
    "router_top_groups": 2,
    "router_scale": 2.5,
    "router_normalised": True,
    "norm": "rmsnorm",
    "bias": False,
}
SWITCHES: dict[str, dict[str, Any]] = {
    "geglu": {"activation": "geglu"},
    "clamped": {"activation": "swiglu-clamped", "bias": False},
    "width, sigmoid": {"experts": 4, "expert_ffn": 12, "ffn": 30, "router": "sigmoid", "top_k": 1},
    "dense first": {"experts": 4, "dense_layers": 2, "activation": "geglu"},
    "dense first, shared": {"experts": 4, "dense_layers": 1, "shared_ffn": 8},
    "groups": {
        "experts": 8,
        "top_k": 2,
        "router_groups": 4,
        "router_top_groups": 1,
        "router_normalised": False,
        "router_scale": 4.0,
    },
    "correction, places": {"experts": 4, "router_bias": True, "capacity_factor": 1.0},
    "biases": {"experts": 4, "expert_bias": True, "activation": "swiglu-clamped"},
    "deepseek-v3": V3,
}
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of the plan, of the model
    "flash": ({"dp": 2, "ep": 2, "zero": 3}, {}),
    "unfused": ({}, {"attention": "unfused", "dropout": 0.1}),
    **{f"cp 2 {c}": ({"cp": 2, "ep": 2, "context": c}, {}) for c in ("ring", "striped", "zigzag", "ulysses")},
    "tp 2": ({"tp": 2, "dp": 2, "ep": 2, "zero": 1}, {}),
    "tp 4": ({"tp": 4}, {"hidden": 24, "ffn": 20}),
    "sequence-parallel": ({"tp": 2, "sequence_parallel": True, "tp_overlap": True, "recompute": "full"}, {}),
    "pp 2": ({"pp": 2, "dp": 2, "ep": 2, "schedule": "zb-h1"}, {}),
    "pp 3": ({"pp": 3, "tp": 2, "recompute": "full"}, {}),
    "recompute full": ({"tp": 2, "recompute": "full", "recompute_every": 2}, {}),
    "recompute selective": ({"tp": 2, "recompute": "selective", "sequence_parallel": True}, {}),
}


def model_with(switch: str, **more: Any) -> ModelConfig:
    return make_model("tiny", **{**SHAPE, **SWITCHES[switch], **more})


def plan_with(layout: str, model: ModelConfig) -> Plan:
    options = LAYOUTS[layout][0]
    return make_plan(
        global_batch=4, **options if model.experts else {k: v for k, v in options.items() if k != "ep"}
    )


def operations(run: Run, rank: int) -> list[str]:
    """What a rank computes, in its order."""
    graph = run.graph
    return [graph.names[o] for o in graph.op[(graph.rank == rank) & (graph.kind == COMPUTE)]]


# what differs in attention alone is tried with the model that has most switches
IN_ATTENTION = ("cp 2 striped", "cp 2 zigzag", "cp 2 ulysses", "recompute selective")
TRIED = [(s, y) for s in SWITCHES for y in LAYOUTS if s == "deepseek-v3" or y not in IN_ATTENTION]


@pytest.mark.parametrize(("switch", "layout"), TRIED)
def test_a_switch_in_a_layout_equals_one_device_keeps_every_formula_and_is_recorded_dry(switch, layout):
    model = model_with(switch, **LAYOUTS[layout][1])
    plan = plan_with(layout, model)
    plan.check(model)
    job = Job(plan, model, steps=1)
    with Cluster("classroom", plan.gpus, "threads", memory_bytes=None) as cluster:
        trained = training.train(cluster, job)
    assert not [row for row in trained.checks if row.verdict == "failed"]
    assert trained.comparison is not None
    with Cluster("classroom", plan.gpus, "dry", memory_bytes=None) as cluster:
        dry = training.train(cluster, job, checked=False)
    if (
        model.experts
    ):  # where a token goes is data: the same operations in the same order, only of other sizes
        assert all(operations(trained.run, r) == operations(dry.run, r) for r in range(plan.gpus))
    else:
        assert trained.run.graph.difference(dry.run.graph) is None
        assert trained.run.peak_memory() == dry.run.peak_memory()


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_counts_its_parameters_and_its_products(switch):
    for more in ({}, {"bias": False, "qkv": "separate"}):
        model = model_with(switch, **more)
        assert sum(p.numel() for p in GPTStage(model).parameters()) == model.parameters()
    model = model_with(switch, attention="unfused", position="none", capacity_factor=0.0)
    run = Cluster("classroom", 1, "dry", memory_bytes=None).run(
        train_rank, Job(make_plan(global_batch=1, recompute="none"), model, steps=1)
    )
    assert int(run.graph.flops.sum()) == model.model_flops(model.seq)  # three times forward, all of them


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_generates_and_serves_what_one_device_says(switch, tp):
    model = model_with(switch, init_std=0.5, capacity_factor=0.0)
    cluster = Cluster("classroom", tp, "threads", memory_bytes=None)
    made = generation.generate(cluster, GenerationJob(model, ((1, 2, 3), (4,)), 4, "paged", tp, block=2))
    assert not [row for row in made.checks if row.verdict != "held"]
    requests = (Request((1, 2, 3), 3), Request((5,), 4))
    served = serving.serve(cluster, ServingJob(model, requests, slots=2, block=2, tp=tp))
    assert not [row for row in served.checks if row.verdict != "held"]


@pytest.mark.parametrize("activation", ["geglu", "swiglu-clamped"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("tp", "sequence_parallel"), [(1, False), (2, False), (2, True)])
def test_a_gate_keeps_the_list_of_activations_and_its_closed_form(activation, bias, tp, sequence_parallel):
    model = make_model("tiny", **{**SHAPE, "activation": activation, "bias": bias, "ffn": 20, "dropout": 0.1})
    cluster = Cluster("classroom", tp, "dry", memory_bytes=None)
    saved = cluster.run(activations.kept_by_a_layer, model, 3, "bf16", "none", sequence_parallel).results[0]
    terms = activations.predict_layer(model, 3, tp, 2, sequence_parallel=sequence_parallel)
    lines = activations.account(terms, saved)
    assert all(line.ok for line in lines), [line for line in lines if not line.ok]
    closed = activations.predict(
        *(model.seq, 3, model.hidden, model.heads, tp, 2),
        flash=True,
        sequence_parallel=sequence_parallel,
        mlp=activations.KEPT_OF_MLP[activation] * model.width,
    )
    assert closed == sum(line.counted for line in lines if not line.separate)


# ---- what is saved beside the parameters -------------------------------------------------------------------
def test_a_correction_is_brought_back_whole_from_any_layout_and_stays_as_it_was():
    model = model_with("deepseek-v3")
    plan = make_plan(pp=3, dp=2, ep=2, zero=1, global_batch=6, precision="fp64")
    job = Job(plan, model, steps=2, seed=7, keep=True)
    results = Cluster("classroom", plan.gpus, "threads", memory_bytes=None).run(train_rank, job).results
    stage = assemble(plan, model, [r.weights[-1] | r.constants for r in results], torch.float64)
    born = GPTStage(model, seed=7, dtype=torch.float64)
    assert stage.full_constants().keys() == {"layers.1.router_correction", "layers.2.router_correction"}
    for name, tensor in born.full_constants().items():
        assert torch.equal(stage.full_constants()[name], tensor)
    moved = [n for n, (p, _) in stage.full_names().items() if not torch.equal(p, born.full_names()[n][0])]
    assert moved
    with pytest.raises(ValueError, match="router_correction"):
        assemble(plan, model, [r.weights[-1] for r in results])


def test_a_correction_is_saved_and_loaded_with_the_weights():
    model = model_with("deepseek-v3")
    tensors = hugging_face.tensors_of(GPTStage(model, seed=7))
    assert tensors.keys() >= {"layers.1.router_correction", "layers.2.router_correction"}
    layout = hugging_face.Layout(SameNames(), model)  # type: ignore[arg-type]
    theirs = {name: layout.to_theirs(name, tensors) for name in layout.theirs}
    assert theirs.keys() >= {"layers.1.router_correction", "layers.2.router_correction"}
    loaded = GPTStage(model, [1, 2], first=False, seed=8)
    found = {name: layout.to_ours(name, theirs) for name in tensors}
    hugging_face.Weights.fill(found, loaded)  # type: ignore[arg-type]
    for name, tensor in hugging_face.tensors_of(loaded).items():
        assert torch.equal(tensor, tensors[name])


class SameNames:
    """A family that calls every part as we do, and keeps it so."""

    splits_experts = False

    def name(self, part: str) -> str:
        return part

    def form(self, part: str) -> Form:
        return PLAIN_FORM


def test_a_correction_is_in_the_accumulators_type_and_not_among_the_parameters_units():
    stage = GPTStage(model_with("deepseek-v3"), dtype=torch.bfloat16)
    assert {t.dtype for t in stage.full_constants().values()} == {torch.float32}
    assert not stage.full_constants().keys() & stage.full_names().keys()


def test_a_router_without_its_correction_would_be_noticed():
    plan, model = make_plan(dp=2, ep=2, global_batch=4, precision="fp64"), model_with("deepseek-v3")
    right = GPTStage(model, dtype=torch.float64)
    tokens = torch.arange(4 * model.seq).view(4, -1) % model.vocab
    loss = float(right(tokens, tokens).detach())
    for tensor in right.full_constants().values():
        tensor.zero_()
    assert abs(float(right(tokens, tokens).detach()) / loss - 1) > TOLERANCE
    plan.check(model)


# ---- refused by name ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "field", "nearest"),
    [
        ({"expert_ffn": 8}, "expert_ffn", None),
        ({"dense_layers": 1}, "dense_layers", 0),
        ({"router": "sigmoid"}, "router", "softmax"),
        ({"router_bias": True}, "router_bias", False),
        ({"expert_bias": True}, "expert_bias", False),
        ({"router_scale": 2.0}, "router_scale", 1.0),
        ({"router_normalised": True}, "router_normalised", None),
        ({"router_groups": 2}, "router_groups", 1),
        ({"experts": 4, "dense_layers": 3}, "dense_layers", 2),
        ({"experts": 4, "router_groups": 3}, "router_groups", 2),
        ({"experts": 4, "router_groups": 4, "router": "sigmoid"}, "router_groups", 2),
        ({"experts": 4, "router_groups": 2, "router_top_groups": 3}, "router_top_groups", 2),
        ({"experts": 4, "router_groups": 4, "router_top_groups": 1, "top_k": 2}, "top_k", 1),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_what_can(options, field, nearest):
    with pytest.raises(InputError) as said:
        make_model("tiny", **{**SHAPE, **options})
    assert said.value.field == field
    if nearest is not None:
        assert said.value.nearest == type(said.value.nearest)(nearest)
        make_model("tiny", **{**SHAPE, **options, field: nearest})


@pytest.mark.parametrize(
    ("options", "tp", "rule"),
    [
        ({"experts": 4, "expert_ffn": 6}, 4, "expert-ffn = 6"),
        ({"experts": 4, "expert_ffn": 8, "ffn": 6, "dense_layers": 1}, 4, "ffn = 6"),
        ({"experts": 4, "shared_ffn": 6}, 4, "shared-ffn = 6"),
    ],
    ids=str,
)
def test_tensor_ranks_divide_every_width_that_there_is(options, tp, rule):
    with pytest.raises(InputError, match=f"must divide {rule}"):
        make_plan(tp=tp).check(make_model("tiny", **{**SHAPE, **options}))


def test_a_width_that_no_layer_has_is_not_asked_to_divide():
    make_plan(tp=4).check(make_model("tiny", **{**SHAPE, "experts": 4, "expert_ffn": 8, "ffn": 6}))


def test_roles_of_a_tuning_do_not_hand_corrections_on():
    with pytest.raises(InputError) as said:
        uses.check_use(model_with("deepseek-v3", capacity_factor=0.0), "tune")
    assert said.value.field == "router_bias"


def test_a_model_of_many_experts_is_not_said_to_fit_unseen():
    few = make_model("tiny", experts=64, top_k=1, expert_ffn=256, ffn=4, seq=512)
    many, plan = few.model_copy(update={"top_k": 64}), make_plan()
    sizes = [128 * m.parameters() for m in (few, many)]
    assert sizes[0] == sizes[1]
    between = next(c for c in range(0, 10**11, 10**8) if advice.surely_fits(plan, few, c))
    assert not advice.surely_fits(plan, many, between)
