"""One table judges what a model can be used for: every command refuses the same things, by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from glasscluster.base.errors import InputError
from glasscluster.commands.app import app
from glasscluster.model.config import ModelConfig
from glasscluster.model.decoding.generate import generate
from glasscluster.model.gpt import GPTStage
from glasscluster.model.uses import RULES, check_use
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.preference.job import Tuning
from glasscluster.strategies.serving.evaluation import loglikelihoods

SHAPE: dict[str, Any] = {"layers": 1, "hidden": 16, "heads": 4, "vocab": 256, "seq": 64, "init_std": 0.5}
PLACES = {"experts": 4, "capacity_factor": 0.5}
SHORT, LONG = ([5, 3, 9, 2], 2), ([7, 1, 8, 2, 8, 1, 8, 2, 8, 4], 3)


def refused(*arguments: str) -> InputError:
    """What a command says that it will not do."""
    failed = CliRunner().invoke(app, arguments).exception
    assert isinstance(failed, InputError), repr(failed)
    return failed


@pytest.mark.parametrize("command", ["generate", "serve", "evaluate"])
@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        (["--experts", "4", "--capacity-factor", "1.0"], "capacity_factor", 1.0),
        (["--dropout", "0.1"], "dropout", 0.1),
        (["--objective", "masked"], "objective", "masked"),
        (["--prefix", "40"], "prefix", 40),
        (["--tp", "3"], "tp", 3),
        (["--ffn", "6", "--tp", "4"], "tp", 4),
        (["--experts", "2", "--shared-ffn", "6", "--tp", "4"], "tp", 4),
        (["--heads", "6", "--hidden", "24", "--kv-heads", "2", "--tp", "6", "--ffn", "24"], "tp", 6),
    ],
)
def test_the_commands_that_go_on_with_a_text_refuse_the_same_models_by_name(command, options, field, value):
    sizes = ["--prompt-length", "6"] if command == "generate" else []
    said = refused(command, "--layers", "1", *sizes, *options)
    assert (said.field, said.value) == (field, value)
    assert said.nearest is not None


def test_the_nearest_tp_of_a_rule_keeps_all_the_other_rules():
    for model, tp in (
        (make_model("tiny", heads=6, hidden=24, kv_heads=2, ffn=24), 6),
        (make_model("tiny", heads=8, ffn=12, seq=9), 8),
        (make_model("tiny", heads=8, kv_heads=2, hidden=24, ffn=24), 8),
    ):
        with pytest.raises(InputError) as said:
            make_plan(tp=tp, sequence_parallel=True).check(model)
        assert isinstance(said.value.nearest, int)
        make_plan(tp=said.value.nearest, sequence_parallel=said.value.nearest > 1).check(model)


def test_a_score_does_not_depend_on_what_else_is_in_the_batch():
    stage = GPTStage(ModelConfig(**SHAPE, experts=4), dtype=torch.float64)
    alone, beside = loglikelihoods(stage, [SHORT]), loglikelihoods(stage, [SHORT, LONG])
    assert float((alone[0] - beside[0]).abs()) <= 1e-12
    assert not torch.equal(alone[0], beside[1])


@pytest.mark.parametrize("options", [PLACES, {"prefix": 3}], ids=str)
def test_a_model_whose_scores_would_depend_on_it_is_refused_where_scores_are_made(options):
    stage = GPTStage(ModelConfig(**SHAPE, **options), dtype=torch.float64)
    with pytest.raises(InputError) as said:
        loglikelihoods(stage, [SHORT])
    assert said.value.field in options


def test_generation_and_tuning_refuse_places_of_experts_too():
    with pytest.raises(InputError, match="capacity_factor"):
        generate(GPTStage(ModelConfig(**SHAPE, **PLACES)), [[1, 2]], 2)
    with pytest.raises(InputError, match="capacity_factor"):
        Tuning("sft", ModelConfig(**SHAPE, **PLACES))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.field} {sorted(rule.uses)}")
def test_every_rule_of_the_table_refuses_in_its_uses_alone(rule):
    unfit = {"dropout": 0.1, "patches": 4, "objective": "masked", "prefix": 2, "capacity_factor": 1.0}
    unfit["router_bias"] = True
    experts = {"experts": 4} if rule.field in ("capacity_factor", "router_bias") else {}
    model = ModelConfig(**{**SHAPE, **experts, rule.field: unfit[rule.field]})
    for use in rule.uses:
        with pytest.raises(InputError) as said:
            check_use(model, use)
        assert (said.value.field, said.value.nearest) == (rule.field, rule.fits)
        check_use(model.model_copy(update={rule.field: rule.fits}), use)


def test_a_prefix_longer_than_the_prompt_is_refused_with_the_longest_that_fits():
    said = refused("generate", "--layers", "1", "--prompt-length", "4", "--tokens", "3", "--prefix", "8")
    assert (said.field, said.value, said.nearest) == ("prefix", 8, 4)
