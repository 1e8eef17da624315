"""What a dry run remembers of an operator is what the operator says, each time it is asked."""

from __future__ import annotations

import pytest
import torch
from helpers import run_plan
from plans import build, stratified

from glasscluster.sim.ranks.backends import dry, shapes

aten = torch.ops.aten


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool)
CALLS = {
    "sums of all types": [
        (aten.add.Tensor, (meta(3, 4, dtype=a), meta(4, dtype=b))) for a in TYPES for b in TYPES
    ],
    "numbers that are equal": [(aten.add.Tensor, (meta(3, dtype=torch.int64), x)) for x in (1, 1.0, True)],
    "strides": [(aten.clone.default, (x,)) for x in (meta(3, 4), meta(4, 3).t(), meta(3, 8)[:, ::2])],
    "a part of a larger storage": [(aten.clone.default, (meta(9)[2:5],)), (aten.clone.default, (meta(3),))],
    "one dimension or none": [
        (aten.sum.dim_IntList, (meta(3, 4), *rest)) for rest in (([0],), ([1],), ([1], True), ([],))
    ],
    "keywords": [
        (aten.sum.dim_IntList, (meta(3, 4, dtype=torch.bool), [0]), {"dtype": t})
        for t in (torch.float32, torch.float64)
    ],
    "products": [
        (aten.addmm.default, (meta(5), meta(2, 3), meta(3, 5))),
        (aten.addmm.default, (meta(5), meta(4, 3), meta(3, 5))),
    ],
    "several outputs": [(aten.topk.default, (meta(6, 5), k)) for k in (1, 2)],
    "lists": [(aten.cat.default, ([meta(2, 3)] * n, d)) for n, d in ((1, 0), (2, 0), (2, 1))],
}


def described(x):
    """All that can be told of outputs without data."""
    if isinstance(x, (tuple, list)):
        return type(x), [described(y) for y in x]
    return tuple(x.shape), x.stride(), x.dtype, x.device, x.storage_offset(), x.untyped_storage().nbytes()


@pytest.fixture(autouse=True)
def forgotten():
    shapes._known.clear()


def wrong() -> list[str]:
    """Calls whose remembered outputs are not those of the operator."""
    found = []
    for name, calls in CALLS.items():
        for _ in range(2):  # the second time all are remembered
            for func, args, *kwargs in calls:
                ours, theirs = (
                    shapes.operate(func, args, *kwargs or [{}]),
                    func(*args, **(kwargs[0] if kwargs else {})),
                )
                if described(ours) != described(theirs):
                    found.append(name)
    return found


def test_every_call_gives_what_the_operator_gives():
    assert wrong() == []
    assert len(shapes._known) > 35


def test_what_is_remembered_is_made_anew_each_time():
    x = meta(3, 4)
    first, second, third = (shapes.operate(aten.mul.Tensor, (x, 2), {}) for _ in range(3))
    assert len({t.untyped_storage()._cdata for t in (x, first, second, third)}) == 4


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (aten.addcmul_.default, (meta(2, 3), meta(3))),
        (aten.view.default, ([6],)),
        (aten._unsafe_view.default, ([6],)),
        (aten.add_.Tensor, (1,)),
        (aten.detach.default, ()),
    ],
    ids=str,
)
def test_what_shares_its_input_s_storage_still_does(func, args):
    for _ in range(3):
        x = meta(2, 3)
        assert shapes.operate(func, (x, *args), {}).untyped_storage()._cdata == x.untyped_storage()._cdata


def test_a_storage_that_is_handed_over_is_so_each_time_and_no_key_keeps_one_alive():
    for _ in range(3):
        x, other = meta(2, 3), meta(2, 3)
        shapes.operate(aten.set_.source_Tensor, (x, other), {})
        assert x.untyped_storage()._cdata == other.untyped_storage()._cdata
    with pytest.raises(TypeError):
        shapes._key(x.untyped_storage())
    assert not shapes._known


def test_tensors_with_data_are_not_answered_from_memory():
    x = torch.arange(3.0)
    for _ in range(2):
        assert shapes.operate(aten.add.Tensor, (x, 1), {}).tolist() == [1, 2, 3]
        with pytest.raises(RuntimeError):
            shapes.operate(aten.mm.default, (meta(2, 3), meta(2, 3)), {})  # an error stays an error
    assert not shapes._known


def test_an_operator_that_changes_its_tensor_s_shape_does_so_each_time():
    for _ in range(3):
        x = meta(2, 3)
        assert shapes.operate(aten.t_.default, (x,), {}) is x
        assert x.shape == (3, 2)
        y = meta(2, 3)
        assert shapes.operate(aten.mul_.Tensor, (y, 2), {}) is y
    with pytest.raises(RuntimeError):
        shapes.operate(aten.mul_.Tensor, (y, meta(7)), {})


@pytest.mark.parametrize("without", ["shape", "stride", "dtype", "type of a number"])
def test_a_key_that_leaves_something_out_is_caught(without, monkeypatch):
    whole = shapes._key

    def key(x):
        if isinstance(x, torch.Tensor):
            parts = dict(zip(("shape", "stride", "dtype"), whole(x), strict=True))
            parts.pop(without, None)
            return (*parts.values(), x.dim())
        if isinstance(x, (tuple, list)):
            return tuple(key(y) for y in x)
        return x if without == "type of a number" else whole(x)

    monkeypatch.setattr(shapes, "_key", key)
    assert wrong()


def test_a_dry_run_is_the_same_with_and_without(monkeypatch):
    plan, model = build(stratified()[1])
    remembered = run_plan(plan, model, "dry")
    monkeypatch.setattr(dry.DryWire, "operate", None)
    plain = run_plan(plan, model, "dry")
    assert plain.graph.sha256() == remembered.graph.sha256()
    assert plain.peak_memory() == remembered.peak_memory()
