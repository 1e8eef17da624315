"""The Triton kernel under Triton's interpreter on the CPU, and compiled for GPUs that are not here."""

import importlib
import inspect
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glasscluster.model.kernels.flash import algorithm
from glasscluster.model.kernels.scores import PLAIN, Scores
from glasscluster.model.layers.attention import unfused_attention

pytest.importorskip("triton", reason="Triton is a wheel for Linux; the torch version needs none")
GPU = torch.cuda.is_available()
if not GPU:  # tests/conftest.py asked for the interpreter before anything could import triton
    assert os.environ["TRITON_INTERPRET"] == "1"
from glasscluster.model.kernels.flash import triton, triton_kernels  # noqa: E402

DEVICE = "cuda" if GPU else "cpu"
TYPES = (torch.float32, torch.float16, torch.bfloat16)
WAYS = ("out", "dq", "dk", "dv")


def drawn(shape, dtype, seed):
    """q, k, v and the output's gradient. Rows lie apart by more than a head, as in a product's result."""
    b, heads, group, n, keys, d = shape
    generator = torch.Generator().manual_seed(seed)

    def one(a, rows):
        wide = torch.randn(b, rows, a, d + 3, generator=generator, dtype=torch.float64)
        return wide.to(dtype).to(DEVICE)[..., :d].transpose(1, 2)

    return one(heads * group, n), one(heads, keys), one(heads, keys), one(heads * group, n)


def gradients(q, k, v, d_out, causal, how=PLAIN):
    """Textbook attention's output and gradients, in the tensors' own type."""
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    out = unfused_attention(q, k, v, causal, how=how)
    return out.detach(), *torch.autograd.grad(out, (q, k, v), d_out)


def ours(kernels, q, k, v, d_out, causal, tiles, how=PLAIN):
    out, lse = kernels.forward(q, k, v, causal, tiles, how)
    return out, *kernels.backward(d_out, q, k, v, out, lse, causal, tiles, how)


def excess(found, tensors, causal, how=PLAIN):
    """By how much each error is over twice plain torch's: positive breaks flash-attention's rule.

    Of one key torch's dQ is exactly zero and ours a rounding of float32, so four ulps of the largest input
    are allowed besides.
    """
    exact = (x.double() for x in tensors)
    truth, plain = gradients(*exact, causal, how), gradients(*tensors, causal, how)
    ulps = 4 * torch.finfo(torch.float32).eps * max(x.abs().max().item() for x in tensors)
    return {
        way: ((x.double() - true).abs().max() - 2 * (y.double() - true).abs().max()).item() - ulps
        for way, x, y, true in zip(WAYS, found, plain, truth, strict=True)
    }


heads = st.sampled_from([(1, 1, 1), (2, 1, 1), (1, 1, 3), (1, 2, 2)])


@settings(max_examples=7, deadline=None, derandomize=True)
@given(
    heads,
    st.integers(1, 36),
    st.integers(1, 36),
    st.integers(1, 33),
    st.sampled_from(TYPES),
    st.booleans(),
    st.data(),
)
def test_errors_are_at_most_twice_plain_torch_s(heads, n, keys, d, dtype, causal, data):
    tiles = data.draw(st.sampled_from([(16, 16), (16, 32), (32, 16)]) if heads[2] == 1 else st.just((32, 16)))
    tensors = drawn((*heads, n, n if causal else keys, d), dtype, seed=n)
    assert max(excess(ours(triton, *tensors, causal, tiles), tensors, causal).values()) <= 0


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("d", "causal"), [(64, True), (128, False)])
def test_so_they_are_with_heads_of_64_and_128(d, causal, dtype):
    tensors = drawn((1, 1, 1, 50, 50 if causal else 45, d), dtype, seed=d)
    assert max(excess(ours(triton, *tensors, causal, (32, 32)), tensors, causal).values()) <= 0


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    heads,
    st.tuples(st.integers(1, 60), st.integers(1, 60), st.sampled_from([3, 16])),
    st.sampled_from(TYPES),
    st.booleans(),
    st.builds(Scores, st.sampled_from([None, 0.7]), st.integers(0, 40), st.sampled_from([0.0, 1.5])),
    st.sampled_from([(16, 16), (16, 32), (32, 16)]),
)
def test_with_a_scale_a_window_and_a_cap_errors_are_as_small(heads, shape, dtype, causal, how, tiles):
    n, keys, d = shape
    if how.window and not causal:
        n = min(n, keys + how.window - 1)  # every query sees a key
    tensors = drawn((*heads, n, n if causal else keys, d), dtype, seed=n)
    over = excess(ours(triton, *tensors, causal, tiles, how), tensors, causal, how)
    assert max(over.values()) <= 0


def test_the_log_sum_exp_is_the_torch_version_s_so_a_ring_can_merge_blocks():
    q, k, v, _ = drawn((1, 1, 2, 17, 21, 16), torch.float32, 0)
    (out, lse), (_, expected) = (
        triton.forward(q, k, v, False, (16, 16)),
        algorithm.forward(*(x.double() for x in (q, k, v)), False),
    )
    assert torch.allclose(lse.double(), expected, rtol=1e-6, atol=1e-6)
    likes = algorithm.forward_like(q, v)
    assert [(x.dtype, x.shape) for x in (out, lse)] == [(x.dtype, x.shape) for x in likes]


def test_equal_inputs_give_equal_bits_and_a_block_of_keys_its_summand():
    q, k, v, d_out = drawn((1, 1, 1, 16, 30, 16), torch.float32, 1)
    out, lse = triton.forward(q, k, v, False, (16, 16))
    whole, again = (triton.backward(d_out, q, k, v, out, lse, False, (16, 16)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(whole, again, strict=True))
    blocks = [(k[:, :, c], v[:, :, c]) for c in (slice(0, 13), slice(13, 30))]
    parts = [triton.backward(d_out, q, *block, out, lse, False, (16, 16)) for block in blocks]
    assert torch.allclose(parts[0][0] + parts[1][0], whole[0], atol=1e-5)
    for i in (1, 2):
        assert torch.allclose(torch.cat([p[i] for p in parts], 2), whole[i], atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_values_narrower_than_keys_give_what_the_torch_version_gives(causal):
    q, k, v, d_out = drawn((1, 2, 2, 17, 17, 16), torch.float32, 2)
    v, d_out = v[..., :10].contiguous(), d_out[..., :10].contiguous()
    wide = [x.double() for x in (q, k, v)]
    found, expected = triton.forward(q, k, v, causal, (16, 16)), algorithm.forward(*wide, causal)
    grads = triton.backward(d_out, q, k, v, *found, causal, (16, 16))
    theirs = algorithm.backward(d_out.double(), *wide, *expected, causal)
    assert grads[2].shape == v.shape
    assert found[0].shape == d_out.shape
    for x, y in zip((*found, *grads), (*expected, *theirs), strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "keys", "causal"), [(torch.float64, 8, True), (torch.float32, 7, True)])
def test_float64_and_a_mask_over_a_rectangle_are_refused(dtype, keys, causal):
    q, k, v, _ = drawn((1, 1, 1, 8, keys, 4), dtype, 0)
    with pytest.raises(ValueError, match=r"float64|square"):
        triton.forward(q, k, v, causal)


# ---- broken kernels are found ------------------------------------------------------------------------------


def mutated(old, new, tmp_path, monkeypatch):
    """triton.py, on kernels of which one line is changed."""
    source = inspect.getsource(triton_kernels)
    assert old in source
    name = f"mutant_{abs(hash((old, new)))}"
    (tmp_path / f"{name}.py").write_text(source.replace(old, new))
    starter = inspect.getsource(triton).replace(triton_kernels.__name__, name)
    (tmp_path / f"{name}_starter.py").write_text(starter)
    monkeypatch.syspath_prepend(str(tmp_path))
    return importlib.import_module(f"{name}_starter")


@pytest.mark.skipif(GPU, reason="one run of each is enough, and the interpreter needs no compilation")
@pytest.mark.parametrize(
    ("old", "new", "broken"),
    [
        ("j[None, :] <= i[:, None]", "j[None, :] < i[:, None] + 2", {"out", "dq"}),
        ("total = total * shrink + ", "total = total + ", {"out"}),
        ("[:, None] <= i[None, :], p, 0.0)", "[:, None] < i[None, :], p, 0.0)", {"dk", "dv"}),
        ("(dp - tl.load(delta", "(dp - 0.9 * tl.load(delta", {"dk"}),
        ("for member in range(GROUP):", "for member in range(GROUP - 1):", {"dk", "dv"}),
        ("head // GROUP * k_a", "head % GROUP * k_a", {"out", "dq"}),
        ("(m + tl.log2(total)) * LOG_2", "m * LOG_2", {"dq", "dk", "dv"}),
    ],
)
def test_a_broken_kernel_breaks_the_rule(old, new, broken, tmp_path, monkeypatch):
    tensors = drawn((1, *((2, 2) if "GROUP" in old else (1, 1)), 20, 20, 16), torch.float32, 3)
    # later keys are larger, so the maximum moves
    tensors[1].mul_(torch.linspace(0.5, 4, 20, device=DEVICE)[:, None])
    over = excess(ours(mutated(old, new, tmp_path, monkeypatch), *tensors, True, (16, 16)), tensors, True)
    assert {way for way, by in over.items() if not by <= 0} >= broken


@pytest.mark.skipif(GPU, reason="one run of each is enough, and the interpreter needs no compilation")
@pytest.mark.parametrize(
    ("old", "new", "broken"),
    [
        ("> i[:, None] - window", ">= i[:, None] - window", {"out", "dq"}),
        ("> i[None, :] - window, p", ">= i[None, :] - window, p", {"dk", "dv"}),
        ("stop = tl.minimum(n, col + COLS - 1 + window)", "stop = tl.minimum(n, col + COLS)", {"dk", "dv"}),
        ("// COLS * COLS\n        clear", "// COLS * COLS + COLS\n        clear", {"out", "dq"}),
        ("turn = scale / cap", "turn = scale", {"out", "dq", "dk", "dv"}),
        ("ds = ds * (1.0 - t * t)", "ds = ds * (1.0 - t)", {"dq", "dk"}),
    ],
)
def test_a_broken_window_or_cap_breaks_the_rule(old, new, broken, tmp_path, monkeypatch):
    tensors, how = drawn((1, 1, 1, 60, 60, 16), torch.float32, 3), Scores(0.6, 21, 3.0)
    over = excess(
        ours(mutated(old, new, tmp_path, monkeypatch), *tensors, True, (16, 16), how), tensors, True, how
    )
    assert {way for way, by in over.items() if not by <= 0} >= broken


# ---- compiled for GPUs that are not here -------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--window-and-cap"]], ids=str)
def test_every_kernel_compiles_for_a_hopper_gpu_without_spilling_and_uses_its_tensor_cores(more):
    call = [sys.executable, "-m", "benchmarks.flash_gpu", "--compile", "90", "--head", "64", "--first", *more]
    lines = subprocess.run(call, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["forward", "dkdv", "dq"]
    assert all(", 0 B stack" in line and line.endswith("wgmma") for line in lines)
