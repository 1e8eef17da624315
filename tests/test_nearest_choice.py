"""What a refusal calls the nearest valid choice is valid: whoever follows the advice gets to something that runs.

Random plans and random single options of every command are refused and follow the advice, option by option.
Nothing runs here: the commands' own functions judge the requests.
"""

from __future__ import annotations

import math
from typing import Any, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasscluster.base.errors import InputError
from glasscluster.base.requests import Request
from glasscluster.base.valid_choice import TRIED
from glasscluster.model.gpt import GPTStage
from glasscluster.model.text.tokenizer import Tokenizer
from glasscluster.model.weights import hugging_face
from glasscluster.scenarios.jobs import (
    collective,
    evaluation,
    generation,
    prediction,
    schedules,
    serving_command,
    training,
)
from glasscluster.scenarios.requests.collective import CollectiveRequest
from glasscluster.scenarios.requests.evaluate import EvaluateRequest
from glasscluster.scenarios.requests.generate import GenerateRequest
from glasscluster.scenarios.requests.predict import PredictRequest
from glasscluster.scenarios.requests.serve import ServeRequest
from glasscluster.scenarios.requests.stored import ScheduleRequest
from glasscluster.scenarios.requests.train import TrainRequest
from glasscluster.sim.ranks.collectives import ALGORITHMS
from glasscluster.strategies.plan import make_model, make_plan

COMMANDS: dict[str, tuple[type[Request], Any, dict[str, Any]]] = {
    "train": (TrainRequest, training.prepare, {"backend": "threads"}),
    "predict": (PredictRequest, prediction.prepare, {}),
    "generate": (GenerateRequest, generation.prepare, {}),
    "serve": (ServeRequest, serving_command.prepare, {}),
    "evaluate": (EvaluateRequest, evaluation.prepare, {"seq": 512, "items": 2}),
    "collective": (
        CollectiveRequest,
        collective.prepare,
        {"operation": "all-reduce", "gpus": 4, "size": "1KiB"},
    ),
    "schedule": (ScheduleRequest, schedules.schedule_of, {"name": "1f1b", "pp": 2, "micro_batches": 4}),
}
STEADY = settings(derandomize=True, deadline=None, database=None)
FILES = {"csv", "out", "weights", "save", "data", "tokenizer", "requests", "against", "validate", "sweep"}
WORDS = st.sampled_from(["", "nope", "ring", "fp8", "1f1b", "-1", "0", "3", "64QB", "2x2", "nan", "max"])
NUMBERS = st.sampled_from([-3, -1, 0, 1, 2, 3, 5, 8, 65, 1.5, 0.0, 1.0, -0.5, math.inf, -math.inf, math.nan])


def follow(command: str, values: dict[str, Any]) -> list[InputError]:
    """Follow the advice until nothing is refused, or nothing is advised; the refusals on the way."""
    request = COMMANDS[command][0]
    refusals: list[InputError] = []
    while refused := refusal(command, values):
        refusals.append(refused)
        steps = [(r.field, r.value, r.nearest) for r in refusals]
        assert len(refusals) <= len(TRIED), f"{command} {values}: the advice does not end: {steps}"
        field = request.called.get(refused.field, refused.field)
        if refused.nearest is None:
            assert all(refusal(command, {**values, field: choice}) for choice in refused.choices)
            return refusals
        values = {**values, field: refused.nearest}
    return refusals


def refusal(command: str, values: dict[str, Any]) -> InputError | None:
    """What a command says of these options; None where they may run."""
    request, prepare, _ = COMMANDS[command]
    try:
        request.of(**values).prepared(prepare)
    except InputError as refused:
        return refused
    return None


def odd_values(request: type[Request]) -> st.SearchStrategy[dict[str, Any]]:
    """One option of a request with a value of its kind that is often wrong."""
    made = []
    for name, field, _ in request.options():
        kinds = {field.annotation, *get_args(field.annotation)}
        if name in FILES or list in {get_origin(kind) for kind in kinds}:
            continue
        values = st.booleans() if bool in kinds else NUMBERS if kinds & {int, float} else WORDS
        made.append(values.map(lambda value, name=name: {name: value}))
    return st.one_of(made)


@pytest.mark.parametrize("command", COMMANDS)
@settings(STEADY, max_examples=100)
@given(data=st.data())
def test_the_advice_for_any_single_option_is_accepted(command, data):
    request, _, base = COMMANDS[command]
    given_values = data.draw(odd_values(request))
    follow(command, {**base, **given_values})


def up_to_five(options: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """At most five of these options: each may be a mistake, and each mistake is a step of advice."""
    names = st.lists(st.sampled_from(sorted(options)), max_size=5, unique=True)
    return names.flatmap(lambda chosen: st.fixed_dictionaries({name: options[name] for name in chosen}))


AXES = st.integers(1, 9)
PLANS = up_to_five(
    {
        **dict.fromkeys(("dp", "tp", "pp", "cp", "ep", "micro_batch", "layers", "heads", "kv_heads"), AXES),
        **dict.fromkeys(("hidden", "ffn", "seq", "global_batch"), st.integers(1, 40)),
        **dict.fromkeys(("zero", "shard", "experts"), st.integers(0, 4)),
        "sequence_parallel": st.booleans(),
        "virtual_stages": st.integers(0, 3),
        "schedule": st.sampled_from(["1f1b", "interleaved", "zb-v", "gpipe", "dualpipe-v", "zb-h2"]),
        "context": st.sampled_from(["ring", "zigzag", "ulysses", "striped"]),
        "exchange": st.sampled_from(["all-reduce", "async-server"]),
    }
)


@settings(STEADY, max_examples=200)
@given(plan=PLANS)
def test_the_advice_for_a_random_plan_leads_to_one_that_is_accepted(plan):
    refusals = follow("predict", plan)
    assert all(r.nearest is not None for r in refusals)


DECODING = up_to_five(
    {
        **dict.fromkeys(("tp", "layers", "heads", "kv_heads"), AXES),
        **dict.fromkeys(("hidden", "ffn"), st.integers(1, 40)),
        "seq": st.integers(20, 90),
        "tokens": st.integers(0, 90),
        "prompt_length": st.integers(1, 90),
        "dropout": st.sampled_from([0.0, 0.1, 1.0]),
        "objective": st.sampled_from(["causal", "masked"]),
        "precision": st.sampled_from(["fp32", "fp8", "fp64", "bf61"]),
        "experts": st.integers(0, 4),
    }
)


@pytest.mark.parametrize("command", ["generate", "serve"])
@settings(STEADY, max_examples=100)
@given(given_values=DECODING)
def test_the_advice_for_a_random_model_that_decodes_leads_to_one_that_is_accepted(command, given_values):
    refusals = follow(command, given_values)
    assert all(r.nearest is not None for r in refusals)


# ---- a folder of weights, which has a shape ----------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights of a small model, and a tokenizer of more tokens than it has."""
    path = tmp_path_factory.mktemp("weights")
    shape = make_model("tiny", layers=2, hidden=16, heads=2, seq=512, vocab=256)
    hugging_face.save(GPTStage(shape), path / "w")
    (path / "text").write_bytes(b"abcabcabd" * 2000)
    Tokenizer.train([b"abcabcabd" * 20], 260, ["<|endoftext|>"]).save(path / "t.json")
    return path


SHAPES = up_to_five(
    {
        **dict.fromkeys(("layers", "heads", "tp"), st.integers(1, 4)),
        "hidden": st.sampled_from([8, 16, 24]),
        "vocab": st.sampled_from([128, 256, 300]),
        "seq": st.sampled_from([8, 300, 512, 600]),
        "tokenizer": st.just("t.json"),
    }
)


@pytest.mark.parametrize("command", ["train", "generate", "serve", "evaluate"])
@settings(STEADY, max_examples=8)
@given(values=SHAPES)
def test_what_is_advised_beside_a_folder_of_weights_is_accepted(command, folder, values):
    request, _, base = COMMANDS[command]
    values = {**base, **values, "weights": str(folder / "w")}
    if command == "train":
        values["data"] = [str(folder / "text")]
    if "tokenizer" not in request.names():
        values.pop("tokenizer", None)
    if "tokenizer" in values:
        values["tokenizer"] = str(folder / "t.json")
    refusals = follow(command, values)
    assert [r for r in refusals if r.nearest is None] == refusals[-1:] * ("tokenizer" in values)


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_tokenizer_larger_than_the_weights_vocabulary_is_refused_without_a_vocabulary_to_give(
    command, folder
):
    refused = refused_by(command, weights=str(folder / "w"), tokenizer=str(folder / "t.json"))
    assert (refused.field, refused.value, refused.nearest) == ("vocab", 256, None)
    assert refused.rule.endswith(
        f"{folder / 'w'} was trained with 256: give the tokenizer that belongs to it"
    )
    alone = refused_by(command, vocab=256, tokenizer=str(folder / "t.json"))
    assert (alone.nearest, "belongs" in alone.rule) == (260, False)


def test_an_option_that_the_weights_contradict_is_refused_by_its_own_name(folder):
    refused = refused_by("generate", weights=str(folder / "w"), vocab=300)
    assert (refused.field, refused.nearest) == ("vocab", 256)
    assert refused.rule == f"the tensors of {folder / 'w'} are of a model with vocab = 256"


# ---- single cases, as people met them ----------------------------------------------------------------------
def refused_by(command: str, **values: Any) -> InputError:
    request, prepare, base = COMMANDS[command]
    with pytest.raises(InputError) as refused:
        request.of(**{**base, **values}).prepared(prepare)
    return refused.value


@pytest.mark.parametrize(
    ("values", "rule", "nearest"),
    [
        ({"lr": 0.0}, "must be more than 0", 1e-3),
        ({"lr": math.inf}, "must be a finite number", 1e-3),
        ({"lr": math.nan}, "must be a finite number", 1e-3),
        ({"norm_eps": 0.0}, "must be more than 0", 1e-5),
        ({"rope_theta": 1.0}, "must be more than 1", 1e4),
        ({"dropout": 1.0}, "must be less than 1", 0.0),
        ({"tp": 2.5}, "must be a whole number", 2),
        ({"layers": "x"}, "must be a whole number", None),
        ({"optimizer": "adamx"}, "must be adamw or sgd", "adamw"),
        ({"tp": 8, "sequence_parallel": True, "seq": 9, "heads": 8}, "must divide seq = 9", 1),
        ({"pp": 8, "virtual_stages": 2}, "needs at least one of the 4 layers", 3),
    ],
)
def test_a_limit_that_is_not_allowed_itself_is_never_advised(values, rule, nearest):
    refused = refused_by("train", **values)
    assert rule in refused.rule
    assert refused.nearest == nearest


@pytest.mark.parametrize("command", ["train", "predict", "generate", "serve", "evaluate"])
def test_every_command_names_the_true_rule_of_key_heads_and_tensor_ranks(command):
    refused = refused_by(command, heads=6, hidden=24, kv_heads=2, ffn=24, tp=6)
    assert refused.field == "tp"
    assert "divides the 8 columns of K" in refused.rule
    assert refused.nearest == 2
    request, prepare, base = COMMANDS[command]
    request.of(**{**base, "heads": 6, "hidden": 24, "kv_heads": 2, "ffn": 24, "tp": 2}).prepared(prepare)


def test_a_plan_and_a_model_of_python_are_advised_as_those_of_a_command():
    with pytest.raises(InputError) as refused:
        make_plan(tp=8, sequence_parallel=True).check(make_model(seq=9, heads=8))
    assert refused.value.nearest == 1
    with pytest.raises(InputError) as refused:
        make_model(heads=8, kv_heads=3)
    assert refused.value.nearest in (2, 4)


@pytest.mark.parametrize(
    ("written", "nearest"), [("64QB", "64GB"), ("64gb", "64GB"), ("64Kib", "64KiB"), ("1e400GB", None)]
)
def test_the_unit_that_is_advised_is_near_to_what_was_written(written, nearest):
    assert refused_by("collective", size=written).nearest == nearest


def test_an_algorithm_that_a_file_does_not_register_is_told_those_that_it_does(tmp_path):
    file = tmp_path / "star.py"
    file.write_text(
        "from glasscluster.sim.ranks.collectives import collective\n"
        '@collective("all_reduce", "star-of-this-test")\ndef star(work, x, op="sum"):\n    yield from ()\n'
    )
    try:
        # the advice is tried before it is given, which reads the file again
        assert refused_by("train", algorithm=f"{file}:nope").nearest == f"{file}:star-of-this-test"
    finally:  # nobody after this one has it
        ALGORITHMS["all_reduce"].pop("star-of-this-test", None)


def test_a_cost_that_cannot_be_is_put_right_within_all_of_them():
    assert refused_by("schedule", costs="f=1,b=x,w=1").nearest == "f=1,b=2,w=1"
    assert refused_by("schedule", costs="f=nan").nearest is not None
