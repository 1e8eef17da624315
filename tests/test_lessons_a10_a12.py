"""Norms compared, and why several heads: every row can fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from glasscluster.scenarios.lab import Lab, perform
from glasscluster.scenarios.lesson import taught_lesson
from glasscluster.scenarios.lessons.a10_norms_compared import program as a10
from glasscluster.scenarios.lessons.a12_why_several_heads import program as a12

LEARNT = {"pre_below_post", "post_counts", "warm_up", "ended"}


@pytest.fixture
def untrained(monkeypatch):
    """Leaves training and models out: what is tested are the other rows."""
    monkeypatch.setattr(a10, "trained", lambda *_: torch.zeros(4, 3))
    monkeypatch.setattr(a10, "born", lambda *_: [1.0, 1.0])


def failed(
    id_: str, leave_out: frozenset[str] | set[str] = frozenset(), **options: Any
) -> set[tuple[str, str]]:
    """The key and the name of every row that failed."""
    taught = taught_lesson(id_)
    checks = perform(taught, Lab(taught, "threads", taught.hardware), options).checks
    return {
        (r.key, r.name.en.split(":")[0]) for r in checks if r.verdict == "failed" and r.key not in leave_out
    }


NOT_HERE = LEARNT | {"batch_is_steepest", "rms_and_layer"}


def test_a_statistic_over_other_elements_fails_the_rows_of_its_norm_alone(monkeypatch, untrained):
    assert not failed("A10", NOT_HERE)
    layers = a10.Norm(over=(0, 3))  # a token's features in all sequences
    with monkeypatch.context() as patch:
        patch.setitem(a10.NORMS, "layer", layers)
        found = failed("A10", NOT_HERE)
        assert found == {
            (key, "LayerNorm") for key in ("reach", "other_sequences", "alone", "away_from_torch")
        }
    with monkeypatch.context() as patch:
        patch.setitem(a10.NORMS, "group", a10.Norm(over=(1, 3), grouped=True))
        found = failed("A10", NOT_HERE)
        keys = ("reach", "earlier_tokens", "padding", "away_from_torch")
        assert found == {(key, "GroupNorm of a token") for key in keys}
    with monkeypatch.context() as patch:  # each place of a sequence has a mean of its own
        patch.setitem(a10.NORMS, "batch", a10.Norm(over=(0,)))
        keys = {"reach", "other_sequences", "earlier_tokens", "padding", "away_from_torch"}
        assert {key for key, name in failed("A10", NOT_HERE) if name == "BatchNorm"} == keys
    with (
        monkeypatch.context() as patch
    ):  # the mean stays in RMSNorm's place, and a bias of eps in ScaleNorm's
        patch.setitem(a10.NORMS, "rms", a10.Norm(over=(3,), weights="γ"))
        patch.setitem(a10.NORMS, "scale", a10.Norm(over=(3,), centred=False, weights="g"))
        assert failed("A10", NOT_HERE) == {("away_from_torch", "RMSNorm"), ("away_from_torch", "ScaleNorm")}


def test_a_backward_without_its_second_mean_fails_every_norm_that_is_centred(monkeypatch, untrained):
    honest = a10.backward

    def half(norm: a10.Norm, *rest: Any) -> Any:
        return honest(a10.Norm(norm.over, norm.grouped, False, norm.weights, norm.eps), *rest)

    monkeypatch.setattr(a10, "backward", half)
    centred = ("BatchNorm", "LayerNorm", "GroupNorm of a token", "GroupNorm of a sequence")
    assert failed("A10", NOT_HERE) == {("away_from_torch", name) for name in centred}


def test_averages_that_are_not_those_of_training_a_token_that_is_taken_and_a_weight_too_many_fail(
    monkeypatch, untrained
):
    honest_output, honest_torchs = a10.output, a10.torchs
    with monkeypatch.context() as patch:
        patch.setattr(
            a10, "output", lambda name, *rest: honest_output("batch" if "running" in name else name, *rest)
        )
        keys = {"reach", "other_sequences", "earlier_tokens", "padding", "alone"}
        assert failed("A10", NOT_HERE) == {(key, "BatchNorm at inference") for key in keys}
    with monkeypatch.context() as patch:
        patch.setitem(a10.NORMS, "batch", a10.Norm(over=(0, 1), centred=False))
        assert ("one_token", "BatchNorm of one token") in failed("A10", NOT_HERE)
    with monkeypatch.context() as patch:

        def other(name: str, h: int, groups: int) -> Any:
            return honest_torchs({"rms": "layer"}.get(name, name), h, groups)

        patch.setattr(a10, "torchs", other)
        patch.setattr(a10, "away_from_torch", lambda *_: 0.0)
        assert failed("A10", NOT_HERE) == {("weights", "RMSNorm")}
    with monkeypatch.context() as patch:
        forward = torch.nn.BatchNorm1d.forward
        patch.setattr(torch.nn.BatchNorm1d, "forward", lambda self, x: x if len(x) == 1 else forward(self, x))
        assert ("refused", "torch's BatchNorm refuses one token") in failed("A10", NOT_HERE)


def test_post_norm_in_pre_norm_s_place_and_other_gradients_fail_what_was_learnt(monkeypatch):
    pre, post = torch.full((4, 3), 3.0), torch.full((4, 3), 3.25)
    losses = {("pre", 2): pre, ("post", 2): pre, ("pre", 6): pre, ("post", 6): post}
    monkeypatch.setattr(a10, "counting_bytes", lambda *_: [3.2] * 3)
    monkeypatch.setattr(a10, "born", lambda name, *_: [6.0, 1.0] if name == "batch" else [2.0, 1.0])

    def rows(**instead: Any) -> set[str]:
        monkeypatch.setattr(
            a10, "trained", lambda place, depth, *_: instead.get(f"{place}{depth}", losses[place, depth])
        )
        return {key for key, _ in failed("A10")}

    assert rows() == set()
    assert rows(pre6=post, post6=pre) == {"pre_below_post", "post_counts"}
    assert rows(post2=pre - 0.2) == {"ended"}
    warm = post.clone()
    warm[-1] = 3.1
    assert rows(post6=warm) == {"warm_up"}
    monkeypatch.setattr(a10, "born", lambda name, *_: [6.0, 2.0] if name == "rms" else [2.0, 1.0])
    assert rows() == {"rms_and_layer", "batch_is_steepest"}


# ---- A12 ---------------------------------------------------------------------------------------------------
def looked_up(arm: str, *_: Any, **instead: Any) -> dict[str, Any]:
    """What the models that look two places up have learnt, at its best; one head without an MLP fails."""
    one = arm == "one"
    weight = torch.full((a12.SEEDS, 3, 2), 0.45 if arm.startswith("one") else 0.95)
    right = torch.full((a12.SEEDS,), 0.2 if one else 1.0)
    return {"right": right, "weight": weight, "sum": torch.tensor(0.9), **instead}


def pruned(*_: Any) -> dict[str, torch.Tensor]:
    """A model whose cheaper half of the heads costs nothing."""
    together = torch.tensor([0.0] * 5 + [0.05, 0.1, 0.15, 0.2])[:, None].expand(-1, a12.SEEDS)
    return {"alone": torch.zeros(a12.SEEDS, 2, a12.PRUNED), "together": together}


@pytest.fixture
def unlearnt(monkeypatch):
    """In the place of all that A12 trains: what it should have learnt."""
    monkeypatch.setattr(a12, "looking_up", looked_up)
    monkeypatch.setattr(
        a12, "on_text", lambda heads, *_: (None, torch.full((a12.SEEDS,), 2.6 - heads / 1000))
    )
    monkeypatch.setattr(a12, "pruning", pruned)


def keys(rows: set[tuple[str, str]]) -> set[str]:
    return {key for key, _ in rows}


def test_scores_of_other_ranks_and_a_mask_with_a_hole_fail_the_rows_of_ranks(monkeypatch, unlearnt):
    assert not failed("A12")
    with monkeypatch.context() as patch:  # a dependent column: one rank less than the shape allows
        honest = torch.randint

        def narrow(*size: Any, **how: Any) -> Any:
            made = honest(*size, **how)
            if made.ndim == 3:
                made[:, :, -1] = made[:, :, 0]
            return made

        patch.setattr(torch, "randint", narrow)
        assert keys(failed("A12")) == {"rank_of_scores", "rank_of_logarithm"}
    with monkeypatch.context() as patch:
        triu = torch.Tensor.triu
        patch.setattr(torch.Tensor, "triu", lambda x, k=0: triu(x, 2 if x.dtype == torch.bool else k))
        assert keys(failed("A12")) == {"rank_of_causal"}


def test_the_rank_is_torch_s_and_is_that_of_a_product():
    draw = torch.Generator().manual_seed(3)
    for rank in (0, 1, 3, 7):
        left, right = (torch.randint(-5, 6, (9, rank), generator=draw) for _ in range(2))
        product = left @ right.T
        assert a12.rank_of(product) == int(torch.linalg.matrix_rank(product.double())) == rank
    assert a12.rank_of(torch.tensor([[0, 2, 4], [0, 1, 2], [3, 0, 0]])) == 2


def test_a_head_with_matrices_of_its_own_size_and_a_product_too_many_fail_what_stays_the_same(
    monkeypatch, unlearnt
):
    make, attention = a12.make_model, a12.unfused_attention
    with monkeypatch.context() as patch:
        patch.setattr(a12, "make_model", lambda *args, **how: make(*args, **how, head_dim=32))
        assert keys(failed("A12")) == {"parameters"}
    with monkeypatch.context() as patch:
        patch.setattr(
            a12, "unfused_attention", lambda q, k, v, causal: attention(q, k, v, causal) + q @ (k.mT @ v)
        )
        assert keys(failed("A12")) == {"products"}


def test_what_was_learnt_can_fail_row_by_row(monkeypatch, unlearnt):
    low, high = torch.full((a12.SEEDS,), 0.2), torch.ones(a12.SEEDS)

    def rows(arm: str, **instead: Any) -> set[str]:
        monkeypatch.setattr(
            a12, "looking_up", lambda name, *_: looked_up(name, **(instead if name == arm else {}))
        )
        return keys(failed("A12"))

    assert rows("one", right=high) == {"one_right", "above_one"}
    assert rows("two", right=low) == {"two_right", "above_one"}
    assert rows("one_mlp", right=low) == {"mixed_right", "above_one"}
    stuck = torch.cat([torch.tensor([0.8]), high[1:]])
    assert rows("two", right=stuck) == set()
    assert rows("one", weight=torch.full((a12.SEEDS, 3, 2), 0.6)) == {"one_on_both"}
    assert rows("one", sum=torch.tensor(1.2)) == {"sum_of_weights"}
    monkeypatch.setattr(a12, "looking_up", looked_up)
    monkeypatch.setattr(
        a12, "on_text", lambda heads, *_: (None, torch.full((a12.SEEDS,), 2.6 + heads / 1000))
    )
    assert keys(failed("A12")) == {"more_heads"}
    monkeypatch.setattr(
        a12, "on_text", lambda heads, *_: (None, torch.full((a12.SEEDS,), 2.6 - heads / 1000))
    )
    even = {**pruned(), "together": torch.linspace(0, 0.16, 9)[:, None].expand(-1, a12.SEEDS)}
    monkeypatch.setattr(a12, "pruning", lambda *_: even)
    assert keys(failed("A12")) == {"half_pruned", "all_pruned"}
    late = {**pruned(), "alone": torch.tensor([0.0, 0.1])[None, :, None].expand(a12.SEEDS, -1, a12.PRUNED)}
    monkeypatch.setattr(a12, "pruning", lambda *_: late)
    assert keys(failed("A12")) == {"last_layer"}


def test_the_cheapest_heads_are_pruned_first(monkeypatch):
    costs = torch.tensor([0.3, 0.0, 0.1, 0.2, 0.04, 0.03, 0.02, 0.01])

    class Additive:
        """Every head that is missing adds its own cost."""

        config = a12.make_model("tiny", layers=2, heads=4, hidden=32)

        def losses(self, _tokens: Any, _targets: Any, left: Any) -> Any:
            return 2.5 + ((1 - left.flatten(1)) * costs).sum(1)

    cost = a12.pruning(Additive(), torch.full((a12.SEEDS,), 2.5))
    assert torch.allclose(cost["alone"][1].flatten(), costs, atol=1e-6)
    assert torch.allclose(
        cost["together"][:, 2], torch.cat([torch.zeros(1), costs.sort().values.cumsum(0)]), atol=1e-6
    )
