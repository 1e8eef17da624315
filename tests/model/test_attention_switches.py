"""A layer's attention with every switch, against formulas written down in torch, and what of it is kept."""

from __future__ import annotations

from typing import Any

import pytest
from test_activations import ANYWHERE, in_the_sum, judged_anywhere

from glasscluster.base.errors import InputError
from glasscluster.model.config import ModelConfig
from glasscluster.strategies.judge.activations import KEPT_OF_MLP, predict
from glasscluster.strategies.plan import make_model

SHAPE: dict[str, Any] = {"hidden": 16, "heads": 4, "seq": 16, "vocab": 32}


# ---- the size of a head ------------------------------------------------------------------------------------
def test_a_head_size_need_not_share_out_the_hidden_width():
    model = ModelConfig(layers=26, hidden=2304, heads=8, kv_heads=4, head_size=256)  # Gemma 2, 2B
    assert (model.head_dim, model.query_width, model.key_width) == (256, 2048, 1024)
    assert ModelConfig(hidden=20, heads=3, head_size=5).query_width == 15
    for refused, field in (({"heads": 3}, "heads"), ({"head_size": 5, "position": "rope"}, "position")):
        with pytest.raises(InputError) as said:
            make_model("tiny", **{**SHAPE, **refused})
        assert said.value.field == field
        assert said.value.nearest


def test_the_products_of_attention_grow_with_the_head_size_and_nothing_else_does():
    flops = [make_model("tiny", **SHAPE, layers=1, head_size=d).model_flops(1) for d in (4, 5)]
    matrices, scores = 4 * 16 * 4 * 1, 2 * 16 * 4 * 1  # weights of Q, K, V, output; q·k and p·v of all keys
    assert flops[1] - flops[0] == 3 * 2 * (matrices + scores)


@pytest.mark.parametrize("more", [{}, {"recompute": "selective"}, {"cut": True}], ids=str)
@pytest.mark.parametrize("attention", ["flash", "unfused"])
@pytest.mark.parametrize("position", ["learned", "rope"])
@pytest.mark.parametrize("context", ANYWHERE)
def test_a_layer_with_a_head_size_of_its_own_keeps_the_list_and_the_closed_form(
    context, position, attention, more
):
    if attention == "unfused":
        context = "ulysses"
    model = make_model("tiny", **SHAPE, kv_heads=4, head_size=6, attention=attention, position=position)
    lines = judged_anywhere(model, 2, 2, 2, context, **more)
    assert [x for x in lines if not x.ok] == []
    said = predict(
        *(16, 2, 16, 4, 2, 2),
        dropout=False,
        flash=attention == "flash",
        recompute=more.get("recompute", "none"),
        sequence_parallel=more.get("cut", False),
        query_width=24,
        key_width=24,
        mlp=KEPT_OF_MLP["gelu"] * 64,
        cp=2,
        exchange=context == "ulysses",
    )
    assert in_the_sum(lines) == said
