"""Images on the same blocks: what the patches are, that every strategy has them, and that the model learns to
say what it sees.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import differences, run_plan, worst

from glasscluster.base.errors import InputError
from glasscluster.model import gpt
from glasscluster.model.gpt import GPTStage
from glasscluster.model.parallel import IGNORE
from glasscluster.model.text.captions import PATTERNS, caption, captioned, drawn, patch
from glasscluster.model.text.data import tokens_with_loss
from glasscluster.scenarios.find_scenario import find
from glasscluster.scenarios.lab import Lab, perform
from glasscluster.strategies.layout.whole import assemble
from glasscluster.strategies.plan import make_model, make_plan

MODEL = make_model("tiny", layers=4, hidden=16, heads=4, seq=18, patches=4, patch_size=16, prefix=4)
LAYOUTS = (
    {"tp": 2, "sequence_parallel": True, "dp": 2, "zero": 2},
    {"pp": 2, "schedule": "zb-v", "virtual_stages": 2, "tp": 2},
)


@pytest.mark.parametrize("options", LAYOUTS, ids=str)
def test_a_model_with_patches_equals_one_device_and_is_recorded_dry_as_it_runs(options):
    plan = make_plan(global_batch=4, **options)
    assert worst(differences(plan, MODEL)) <= 1e-10
    real, dry = (run_plan(plan, MODEL, backend) for backend in ("threads", "dry"))
    assert real.graph.difference(dry.graph) is None
    assert real.peak_memory() == dry.peak_memory()


def test_a_patch_put_one_place_off_or_seen_by_one_rank_alone_is_caught(monkeypatch):
    honest = gpt.Embedding.seen
    monkeypatch.setattr(
        gpt.Embedding,
        "seen",
        lambda self, x, pixels, tokens: honest(
            self, x, pixels.roll(1, 1) if self.parallel.size > 1 else pixels, tokens
        ),
    )
    assert worst(differences(make_plan(global_batch=4, tp=2), MODEL, steps=1)) > 1e-10


def test_pixels_come_first_and_the_last_patch_predicts_the_first_letter():
    inputs, targets = captioned(3, 5, MODEL, 0)
    assert inputs.shape == (5, MODEL.columns) == (5, 4 * 16 + 14)
    assert (tokens_with_loss(MODEL), targets.shape) == (15, (5, 18))
    for row, target, (pixels, pattern, place) in zip(inputs, targets, drawn(3, 5, MODEL, 0), strict=True):
        text = caption(pattern, place)
        assert row[:64].tolist() == pixels.tolist()
        assert bytes(row[64:].tolist()).startswith(text[:14])
        assert (target != IGNORE).nonzero().flatten().tolist() == list(range(3, 3 + len(text)))
        assert bytes(target[3 : 3 + len(text)].tolist()) == text
        means = pixels.reshape(4, 16)[:, patch(pattern, 16)].mean(1)
        assert means.argmax() == place
    assert torch.equal(captioned(3, 5, MODEL, 0)[0], inputs)
    assert not torch.equal(captioned(4, 5, MODEL, 0)[0], inputs)
    assert len({patch(p, 16).tobytes() for p in PATTERNS}) == 3


def test_each_patch_is_its_matrix_times_its_pixels_and_nothing_else_is():
    stage = GPTStage(MODEL, dtype=torch.float64)
    inputs, _ = captioned(0, 2, MODEL, 0)
    x, e = stage.embedding(inputs), stage.embedding
    by_hand = inputs[:, 32:48].double() / 255 @ e.patch_weight.T + e.patch_bias + e.position[2]
    assert torch.allclose(x[:, 2], by_hand, rtol=1e-13)
    assert torch.allclose(x[:, 5], e.token[inputs[:, 65]] + e.position[5], rtol=1e-13)
    assert sum(p.numel() for p in stage.parameters()) == MODEL.parameters()


@pytest.mark.parametrize(
    ("wrong", "field"),
    [({"cp": 2}, "cp"), ({"patches": 18}, "patches"), ({"objective": "masked", "prefix": 0}, "patches")],
)
def test_what_does_not_go_with_patches_is_named(wrong, field):
    shape = {"patches": 4, "seq": 18, "prefix": 4} | {k: v for k, v in wrong.items() if k != "cp"}
    plan = make_plan(cp=wrong.get("cp", 1))
    with pytest.raises(InputError) as caught:
        plan.check(make_model("tiny", **shape))
    assert caught.value.field == field


def test_the_scenario_teaches_a_model_to_say_what_it_sees():
    scenario = find("captions")
    lab = perform(scenario, Lab(scenario, "threads", "classroom"), {"asked": 24, "tp": 1})
    assert lab.ok, [r.key for r in lab.all_checks if r.verdict == "failed"]
    lazy = perform(scenario, Lab(scenario, "threads", "classroom"), {"steps": 2, "asked": 24, "tp": 1})
    assert [r.key for r in lazy.all_checks if r.verdict == "failed"] == ["right_after"]


def test_a_whole_model_needs_every_rank_s_piece():
    plan = make_plan(tp=2, global_batch=4)
    pieces = [{n: np.split(p.detach().numpy(), 1)[0] for n, (p, _) in GPTStage(MODEL).full_names().items()}]
    with pytest.raises(ValueError, match=r"no rank has \d+ of the"):
        assemble(
            plan, MODEL, [{n: torch.tensor(t) for n, t in pieces[0].items() if n == "embedding.position"}]
        )
