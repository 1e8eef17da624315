"""What a layer keeps for backward, it keeps once: gates, experts' sums, the router's input, narrow values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glasscluster.model.kernels.expert_sum import ExpertSum
from glasscluster.model.kernels.flash import algorithm, costs
from glasscluster.model.kernels.flash.operators import flash_attention
from glasscluster.model.kernels.gated import ALPHA, LIMIT, Gated
from glasscluster.model.layers.attention import unfused_attention
from glasscluster.model.layers.moe import WideLinear
from glasscluster.sim.run import Cluster
from glasscluster.strategies.judge.activations import kept_by_a_layer
from glasscluster.strategies.plan import make_model

TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def drawn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype).requires_grad_()


def results(function, inputs: list[Tensor], d_out: Tensor) -> list[Tensor]:
    """The output, and the gradient of every input."""
    out = function(*inputs)
    return [out, *torch.autograd.grad(out, inputs, d_out)]


def kept_by(function, *inputs: Tensor) -> int:
    """Bytes that autograd keeps, each storage once."""
    storages = {}

    def pack(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = function(*inputs)
    assert out.requires_grad
    return sum(storages.values())


# ---- gates -------------------------------------------------------------------------------------------------
def plain_gate(x: Tensor, activation: str) -> Tensor:
    gate, value = x.chunk(2, -1)
    if activation == "swiglu":
        return F.silu(gate) * value
    if activation == "geglu":
        return F.gelu(gate, approximate="tanh") * value
    gate, value = gate.clamp(max=LIMIT), value.clamp(-LIMIT, LIMIT)
    return (value + 1) * (gate * torch.sigmoid(ALPHA * gate))


@pytest.mark.parametrize("activation", ["swiglu", "geglu", "swiglu-clamped"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(3, 7, 37), (0, 4)])
def test_a_gate_is_torch_s_bit_for_bit_and_keeps_its_input_alone(activation, dtype, shape):
    x = (drawn(*shape[:-1], 2 * shape[-1]).detach() * 5).to(dtype).requires_grad_()
    d_out = drawn(*shape, dtype=dtype, seed=1).detach()
    expected, found = (
        results(lambda x, f=f: f(x, activation), [x], d_out) for f in (plain_gate, Gated.apply)
    )
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert kept_by(lambda x: Gated.apply(x, activation), x) == x.untyped_storage().nbytes()


# ---- experts' sums -----------------------------------------------------------------------------------------
def plain_sum(rows: Tensor, order: Tensor, weights: Tensor) -> Tensor:
    slots = rows.new_zeros(weights.numel(), rows.shape[-1]).index_copy(0, order, rows)
    return (slots.view(*weights.shape, -1) * weights.unsqueeze(-1)).sum(2).to(rows.dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("b", "s", "k", "h", "dropped"), [(2, 5, 2, 33, 3), (1, 4, 1, 7, 4), (3, 8, 8, 64, 0)]
)
def test_a_sum_over_experts_is_torch_s_bit_for_bit_and_keeps_the_rows_once(dtype, b, s, k, h, dropped):
    order = torch.randperm(b * s * k, generator=torch.Generator().manual_seed(3))[: b * s * k - dropped]
    rows = drawn(len(order), h, dtype=dtype)
    weights = drawn(b, s, k, dtype=torch.promote_types(dtype, torch.float32), seed=1)
    d_out = drawn(b, s, h, dtype=dtype, seed=2).detach()
    expected, found = (
        results(lambda r, w, f=f: f(r, order, w), [rows, weights], d_out)
        for f in (plain_sum, ExpertSum.apply)
    )
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    every = (rows, order, weights)
    assert kept_by(ExpertSum.apply, *every) == sum(x.untyped_storage().nbytes() for x in every)


@pytest.mark.parametrize("dtype", TYPES[2:])
@pytest.mark.parametrize("biased", [False, True])
def test_a_router_in_fp32_keeps_its_16_bit_input_and_no_wide_copy(dtype, biased):
    inputs = [drawn(3, 7, 10, dtype=dtype), drawn(4, 10, dtype=dtype, seed=1)]
    inputs += [drawn(4, dtype=dtype, seed=2)] if biased else []
    d_out = drawn(3, 7, 4, dtype=torch.float32, seed=3).detach()
    expected = results(lambda *given: F.linear(*(x.float() for x in given)), inputs, d_out)
    ours = lambda x, w, bias=None: WideLinear.apply(x, w, bias)  # noqa: E731
    assert all(torch.equal(a, b) for a, b in zip(expected, results(ours, inputs, d_out), strict=True))
    assert kept_by(ours, *inputs) == sum(x.untyped_storage().nbytes() for x in inputs[:2])


def test_a_layer_of_experts_keeps_each_row_going_in_and_coming_back_and_no_third_time():
    model = make_model("tiny", hidden=24, heads=2, seq=8, experts=4, top_k=2, ffn=20, activation="swiglu")
    saved = (
        Cluster("classroom", 1, "dry", memory_bytes=None).run(kept_by_a_layer, model, 3, "bf16").results[0]
    )
    rows = 3 * 8 * 2  # of tokens for their experts
    big = [x for x in saved if x.shape[-1] == 24 and x.nbytes >= rows * 24 * 2]
    assert sum(x.nbytes for x in big) == 2 * rows * 24 * 2, [(x.maker, x.shape) for x in big]


# ---- values that are narrower than keys --------------------------------------------------------------------
def narrow(group: int = 2, n: int = 12, d: int = 6, d_v: int = 4, dtype=torch.float64) -> list[Tensor]:
    shapes = ((2, 2 * group, n, d), (2, 2, n, d), (2, 2, n, d_v))
    return [drawn(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("attention", [flash_attention, unfused_attention])
@pytest.mark.parametrize(("causal", "prefix"), [(True, 0), (False, 0), (True, 5)])
def test_narrow_values_give_what_values_filled_up_with_zeros_give(attention, causal, prefix):
    inputs = narrow()
    d_out = drawn(2, 4, 12, 4, seed=5).detach()

    def filled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, F.pad(v, (0, 2)), causal, prefix=prefix)[..., :4]

    expected = results(filled, inputs, d_out)
    found = results(lambda *given: attention(*given, causal, prefix=prefix), inputs, d_out)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("tile", [4, 5])
def test_narrow_values_cost_what_their_tiles_do(group, causal, tile):
    moved: list[int] = []
    q, k, v = (x.detach() for x in narrow(group))
    out, lse = algorithm.forward(q, k, v, causal, tile, lambda _what, n: moved.append(n))
    like = {"group": group, "d_v": 4}
    assert sum(moved) == 2 * 2 * costs.forward_traffic(12, 6, causal, 8, 8, tile, **like)
    moved.clear()
    algorithm.backward(out, q, k, v, out, lse, causal, tile, lambda _what, n: moved.append(n))
    assert sum(moved) == 2 * 2 * costs.backward_traffic(12, 6, causal, 8, 8, tile, **like)


def test_latent_attention_keeps_values_and_output_without_filling():
    shape = {"hidden": 32, "heads": 4, "seq": 16, "kv_latent": 10, "rope_dim": 2, "position": "rope"}
    saved = (
        Cluster("classroom", 1, "dry", memory_bytes=None)
        .run(kept_by_a_layer, make_model("tiny", **shape), 3, "bf16")
        .results[0]
    )
    each = 2 * 3 * 16 * 4  # bytes, sequences, tokens, heads
    makers = ("flash_forward 1", "clone 2", "cat 1", "cat 2")  # the first clone is the latent
    sizes = sorted(x.nbytes for x in saved if x.maker in makers)
    assert sizes == [each * 8, each * 8, each * 10, each * 10]
    assert not [x for x in saved if x.maker.startswith("constant_pad")]
