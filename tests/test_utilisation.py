"""MFU, causal MFU and HFU: what each counts, and that whoever prints them says so."""

from __future__ import annotations

import itertools
import re

import pytest

from glasscluster.base.utilisation import DEFINITIONS
from glasscluster.cli import main
from glasscluster.model.config import ModelConfig
from glasscluster.scenarios.jobs.prediction import predict
from glasscluster.strategies.plan import make_model, make_plan

SHAPE = {"layers": 3, "hidden": 16, "heads": 4, "seq": 12, "vocab": 40}


SHAPES = (
    {},
    {"prefix": 5},
    {"prefix": 1},
    {"objective": "masked"},
    {"kv_latent": 6},
    {"window": 5},
    {"window": 5, "window_layers": "alternate"},
    {"window": 99},
)


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_causal_flops_are_the_dense_ones_without_the_pairs_that_the_mask_hides(options):
    model = ModelConfig(**SHAPE, **options)
    hidden = 0
    for layer, query, key in itertools.product(range(model.layers), range(model.seq), range(model.seq)):
        window = model.window_of(layer)
        future = key > query and key >= model.prefix
        hidden += model.causal and (future or bool(window and query - key >= window))
    each = 2 * (model.score_dim + model.head_dim) * model.heads
    assert model.model_flops(7 * 12) - model.causal_flops(7 * 12) == 3 * 7 * hidden * each


def test_mfu_stands_above_hfu_where_a_causal_kernel_skips_half_and_causal_mfu_does_not():
    plan, model = make_plan(precision="bf16"), make_model("llama3-8b", layers=2, seq=32768)
    found = predict(plan, model, "dgx-h100")
    assert found["mfu"] > found["hfu"] > found["mfu_causal"]
    assert found["mfu_causal"] / found["mfu"] == pytest.approx(
        model.causal_flops(32768) / model.model_flops(32768)
    )


def glass(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(list(words))
    assert end.value.code == 0
    return capsys.readouterr().out


def test_the_terminal_prints_all_three_and_what_they_count(capsys):
    said = glass(capsys, "predict", "--layers", "1", "--hidden", "8", "--heads", "2", "--seq", "8")
    assert re.search(r"MFU [\d.]+% \(causal [\d.]+%\), HFU [\d.]+%", said)
    for definition in DEFINITIONS.values():
        assert definition.en in said


def test_the_page_shows_all_three_and_what_they_count_in_both_languages(capsys, tmp_path):
    small = ("--layers", "1", "--hidden", "8", "--heads", "2", "--seq", "8", "--steps", "1")
    glass(capsys, "train", *small, "--backend", "threads", "--out", str(tmp_path))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    shown = re.sub(r"<[^>]*>", "", page)
    for definition in DEFINITIONS.values():
        assert definition.en in shown
        assert definition.zh in shown
