"""The model's parts against torch's own, and its kernels' costs against a counting run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import run_plan
from hypothesis import given, settings
from hypothesis import strategies as st

from glasscluster.model.adamw import Optimizer
from glasscluster.model.gpt import GPTStage
from glasscluster.model.kernels.flash import algorithm, costs
from glasscluster.model.kernels.flash.operators import flash_attention
from glasscluster.model.kernels.flash.tiles import STRIP, TILE
from glasscluster.model.layers.attention import unfused_attention
from glasscluster.model.text.data import batch, corpus
from glasscluster.sim.recording.events import COMPUTE
from glasscluster.sim.run import Cluster
from glasscluster.strategies.plan import make_model, make_plan


def tensors(
    b: int,
    a: int,
    n: int,
    d: int,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    group: int = 1,
    keys: int | None = None,
) -> list[torch.Tensor]:
    """q, k, v and the output's gradient; a·group query heads and a key heads, n queries and as many keys
    unless said.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = [(b, a * group, n, d), *[(b, a, keys or n, d)] * 2, (b, a * group, n, d)]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes
    ]


def repeated(q, k, v, causal=True):
    """torch's attention, of key heads that are really repeated."""
    group = q.shape[1] // k.shape[1]
    return F.scaled_dot_product_attention(
        q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), is_causal=causal
    )


def gradients(attend, q, k, v, d_out):
    out = attend(q, k, v)
    return out, *torch.autograd.grad(out, (q, k, v), d_out)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 70),
    st.integers(1, 9),
    st.booleans(),
    st.integers(1, 40),
)
def test_tiles_of_any_size_give_the_textbook_s_output_and_gradients(b, a, n, d, causal, tile):
    q, k, v, d_out = tensors(b, a, n, d)
    expected = gradients(lambda *x: unfused_attention(*x, causal=causal), q, k, v, d_out)
    out, lse = algorithm.forward(q.detach(), k.detach(), v.detach(), causal, tile)
    found = algorithm.backward(d_out.detach(), q.detach(), k.detach(), v.detach(), out, lse, causal, tile)
    for ours, theirs in zip((out, *found), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-11)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 50),
    st.integers(1, 50),
    st.integers(1, 20),
    st.data(),
)
def test_groups_of_heads_and_rectangles_give_torch_s_output_and_gradients(b, a, group, n, keys, tile, data):
    causal = n == keys and data.draw(st.booleans())
    q, k, v, d_out = tensors(b, a, n, 5, group=group, keys=keys)
    expected = gradients(lambda *x: repeated(*x, causal), q, k, v, d_out)
    out, lse = algorithm.forward(q.detach(), k.detach(), v.detach(), causal, tile)
    found = algorithm.backward(d_out.detach(), q.detach(), k.detach(), v.detach(), out, lse, causal, tile)
    textbook = gradients(lambda *x: unfused_attention(*x, causal=causal), q, k, v, d_out)
    for ours, plain, theirs in zip((out, *found), textbook, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-11)
        assert torch.allclose(plain, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("group", "keys", "causal"), [(1.5, 8, False), (1, 7, True)])
def test_heads_that_are_no_groups_and_a_mask_over_a_rectangle_are_refused(group, keys, causal):
    q, k, v = (torch.zeros(1, heads, n, 4) for heads, n in ((int(2 * group), 8), (2, keys), (2, keys)))
    for attend in (flash_attention, unfused_attention):
        with pytest.raises(ValueError, match="whole groups"):
            attend(q, k, v, causal)


@pytest.mark.parametrize("n", [1, 64, 128, 129, 300])
@pytest.mark.parametrize("causal", [True, False])
def test_flash_equals_torch_s_attention_in_float64(n, causal):
    q, k, v, d_out = tensors(2, 3, n, 16)
    expected = gradients(lambda *x: F.scaled_dot_product_attention(*x, is_causal=causal), q, k, v, d_out)
    found = gradients(lambda *x: flash_attention(*x, causal), q, k, v, d_out)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_narrow_types_our_error_is_at_most_twice_plain_torch_s(dtype):
    narrow = tensors(2, 4, 200, 32, dtype)
    exact = [t.detach().double().requires_grad_() for t in narrow]
    truth = gradients(unfused_attention, *exact)
    plain, ours = gradients(unfused_attention, *narrow), gradients(flash_attention, *narrow)
    for true, a, b in zip(truth, ours, plain, strict=True):
        assert (a.double() - true).abs().max().item() <= 2 * (b.double() - true).abs().max().item() + 1e-12


@pytest.mark.parametrize(("group", "keys", "causal"), [(1, 7, True), (3, 7, True), (2, 4, False)])
def test_gradcheck_of_the_operator(group, keys, causal):
    q, k, v, _ = tensors(1, 2, 7, 3, group=group, keys=keys)
    assert torch.autograd.gradcheck(lambda *x: flash_attention(*x, causal), (q, k, v))


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The largest tensor any operation made."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor):
                self.numel = max(self.numel, t.numel())
        return out


def test_no_tensor_of_n_by_n_is_ever_made():
    n, d = 2048, 16
    q, k, v, d_out = (t.detach() for t in tensors(1, 1, n, d))
    with Largest() as seen:
        out, lse = algorithm.forward(q, k, v, True)
        forward = seen.numel
        algorithm.backward(d_out, q, k, v, out, lse, True)
    square = STRIP * TILE**2
    assert forward <= max(n * d, square)
    assert seen.numel <= max(n * d, 2 * square)  # backward has P and dS
    with Largest() as textbook:
        unfused_attention(q, k, v)
    assert textbook.numel == n * n


def flash_program(gpu, n: int, d: int, causal: bool, dtype: torch.dtype, group: int, keys: int | None):
    q, k, v, d_out = tensors(2, 3, n, d, dtype, group=group, keys=keys)
    out = flash_attention(q, k, v, causal)
    out.backward(d_out)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("group", "keys"),
    [(1, None), (2, None), (4, 100), (1, 500)],
    ids=["heads", "groups", "few keys", "many keys"],
)
@pytest.mark.parametrize(
    ("n", "d", "causal"), [(64, 8, True), (300, 16, True), (300, 16, False), (257, 4, True)]
)
def test_the_recorder_sees_one_kernel_each_way_whose_costs_a_counting_run_confirms(
    n, d, causal, dtype, group, keys
):
    causal = causal and keys is None
    graph = Cluster("classroom", 1, "threads").run(flash_program, n, d, causal, dtype, group, keys).graph
    q, k, v, d_out = (t.detach() for t in tensors(2, 3, n, d, dtype, group=group, keys=keys))
    for name, way in (("forward", algorithm.forward), ("backward", algorithm.backward)):
        rows = [
            r
            for r in range(len(graph))
            if graph.kind[r] == COMPUTE and graph.names[graph.op[r]] == f"glasscluster.flash_{name}"
        ]
        assert len(rows) == 1
        moved = [0]

        def meter(_what, nbytes, moved=moved):
            moved[0] += nbytes

        matmuls = Matmuls()
        with matmuls:
            if name == "forward":
                out, lse = way(q, k, v, causal, meter=meter)
            else:
                way(d_out, q, k, v, out, lse, causal, meter=meter)
        assert int(graph.bytes[rows[0]]) == moved[0]
        assert int(graph.flops[rows[0]]) == matmuls.flops


class Matmuls(torch.utils._python_dispatch.TorchDispatchMode):
    """FLOPs of the matrix products that ran."""

    def __init__(self):
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        if "mm" in name:
            a, b = args[1:3] if name.startswith(("aten.baddbmm", "aten.addmm")) else args[:2]
            self.flops += 2 * a.numel() * b.shape[-1]
        return function(*args, **(kwargs or {}))


def test_f7_a_non_causal_forward_moves_2nd_plus_2_ceil_n_over_b_nd_plus_n_elements():
    n, d, b = 4096, 64, 128
    assert costs.forward_traffic(n, d, False, tile=b) == 2 * n * d + 2 * math.ceil(n / b) * n * d + n


def test_a_group_of_heads_reads_its_keys_once_and_in_tiles_of_one_only_visible_pairs_are_computed():
    n, d, g = 384, 16, 4
    alone, together = costs.forward_traffic(n, d, False), costs.forward_traffic(n, d, False, group=g)
    assert (
        g * alone - together == (g - 1) * 2 * 3 * n * d
    )  # each of three tiles of queries read all K and V for every head
    assert costs.tile_pairs(n, True, 1) == n * (n + 1) // 2
    assert costs.tile_pairs(n, False, keys=100) == n * 100
    for tile in (1, 7, 128):
        grid = [(a, b) for a in range(0, n, tile) for b in range(0, n, tile)]
        ends = [(min(a + tile, n), min(b + tile, n)) for a, b in grid]
        visible = [(up - a) * (right - b) for (a, b), (up, right) in zip(grid, ends, strict=True) if b < up]
        assert costs.tile_pairs(n, True, tile) == sum(visible)


# ---- optimizers --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_is_torch_s(decay):
    generator = torch.Generator().manual_seed(1)
    ours = torch.randn(50, generator=generator, dtype=torch.float64)
    theirs = torch.nn.Parameter(ours.clone())
    mine = Optimizer("adamw", lr=3e-3, weight_decay=decay)
    reference = torch.optim.AdamW(
        [theirs], lr=3e-3, betas=(mine.beta1, mine.beta2), eps=mine.eps, weight_decay=decay
    )
    state = [torch.zeros_like(ours) for _ in range(mine.moments)]
    for step in range(1, 12):
        gradient = torch.randn(50, generator=generator, dtype=torch.float64)
        mine.update(ours, gradient, state, step)
        theirs.grad = gradient.clone()
        reference.step()
        assert torch.allclose(ours, theirs.detach(), rtol=1e-12, atol=1e-14)


def test_sgd_is_torch_s():
    ours = torch.arange(5.0, dtype=torch.float64)
    theirs = torch.nn.Parameter(ours.clone())
    theirs.grad = torch.full((5,), 0.3, dtype=torch.float64)
    Optimizer("sgd", lr=0.1).update(ours, theirs.grad, [], 1)
    torch.optim.SGD([theirs], lr=0.1).step()
    assert torch.equal(ours, theirs.detach())


# ---- the GPT -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("ffn", [None, 40])
def test_the_parameter_count_is_that_of_the_tensors_and_f1(tied, ffn):
    model = make_model("tiny", layers=3, hidden=24, heads=3, vocab=50, seq=10, tied=tied, ffn=ffn)
    stage = GPTStage(model)
    assert sum(p.numel() for p in stage.parameters()) == model.parameters()
    if tied and ffn is None:
        h, layers = 24, 3
        assert model.parameters() == 12 * layers * h * h + 13 * layers * h + (50 + 10) * h + 2 * h


def test_model_flops_are_three_times_the_matrix_products_of_an_unfused_forward():
    model = make_model("tiny", layers=2, hidden=16, heads=2, vocab=32, seq=8, attention="unfused")
    stage, tokens = GPTStage(model), torch.zeros(3, 8, dtype=torch.long)
    with Matmuls() as seen, torch.no_grad():
        stage(tokens, tokens)
    linear = run_plan(make_plan(micro_batch=3, global_batch=3), model).graph
    forward = int(linear.flops[linear.phase == 1].sum())
    assert model.model_flops(24) == 3 * forward
    assert seen.flops <= forward


def test_stages_in_a_row_are_the_whole_model_and_layouts_start_from_the_same_weights():
    model = make_model("tiny", layers=4, hidden=16, heads=2, seq=8)
    whole = GPTStage(model, dtype=torch.float64)
    parts = [
        GPTStage(model, [0, 1], True, False, dtype=torch.float64),
        GPTStage(model, [2, 3], False, True, dtype=torch.float64),
    ]
    tokens = torch.arange(16).view(2, 8)
    assert torch.equal(parts[1](parts[0](tokens), tokens), whole(tokens, tokens))


def test_data_are_bytes_of_real_text_and_depend_on_seed_and_step_alone(tmp_path):
    text = corpus()
    assert text.dtype == np.uint8
    assert len(text) > 500_000
    assert b"def " in text[:100_000].tobytes()
    one, again, other = (
        batch(text, 3, 4, 16, 256, 7),
        batch(text, 3, 4, 16, 256, 7),
        batch(text, 4, 4, 16, 256, 7),
    )
    assert torch.equal(one[0], again[0])
    assert not torch.equal(one[0], other[0])
    assert torch.equal(one[0][:, 1:], one[1][:, :-1])
    mine = tmp_path / "text.txt"
    mine.write_bytes("混合 text".encode() * 20)
    tokens, _ = batch(corpus(str(mine)), 0, 2, 8, 256, 0)
    assert set(tokens.flatten().tolist()) <= set("混合 text".encode())
