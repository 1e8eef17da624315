"""What a user's own operators cost: by our formulas, else by torch's, else they are named as unknown."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from glasscluster.sim.ranks.backends.fused_attention import fused_on_cpu
from glasscluster.sim.recording.events import COMPUTE
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.run import Cluster


def recorded(program, *args, backend: str = "threads") -> ExecutionGraph:
    return Cluster("classroom", 1, backend, memory_bytes=None).run(program, *args).graph


def flops(graph: ExecutionGraph) -> dict[str, int]:
    """Of each operator, all its calls together."""
    counted: dict[str, int] = {}
    for row in range(len(graph)):
        if graph.kind[row] == COMPUTE:
            name = graph.names[graph.op[row]]
            counted[name] = counted.get(name, 0) + int(graph.flops[row])
    return counted


# ---- convolutions ------------------------------------------------------------------------------------------


def convolve(gpu, b: int, channels: int, filters: int, size: int, kernel: int, stride: int) -> None:
    x = torch.ones(b, channels, size, size, device=gpu.device, requires_grad=True)
    weight = torch.ones(filters, channels, kernel, kernel, device=gpu.device, requires_grad=True)
    F.conv2d(x, weight, stride=stride).sum().backward()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("backend", ["threads", "dry"])
def test_a_convolution_costs_what_its_formula_says(backend, stride):
    b, channels, filters, size, kernel = 2, 6, 4, 9, 3
    graph = recorded(convolve, b, channels, filters, size, kernel, stride, backend=backend)
    side = (size - kernel) // stride + 1
    each = 2 * b * filters * side**2 * channels * kernel**2  # to multiply and to add
    counted = flops(graph)
    assert counted["convolution"] == each
    assert counted["convolution_backward"] == 2 * each  # of the inputs, and of the weights
    assert "unknown_flops" not in graph.info


# ---- torch's fused attention -------------------------------------------------------------------------------


def attend(gpu, how: dict, shapes: tuple, mask: str, transposed: bool, backward: bool) -> None:
    """torch's scaled_dot_product_attention; `transposed`: heads and tokens lie the other way
    round in memory.
    """
    tensors = []
    for shape in shapes:
        x = torch.ones(
            *((shape[0], shape[2], shape[1], shape[3]) if transposed else shape), device=gpu.device
        )
        tensors.append((x.transpose(1, 2) if transposed else x).requires_grad_(backward))
    if mask:
        dtype = torch.bool if mask == "bool" else torch.float32
        how = how | {"attn_mask": torch.ones(shapes[0][2], shapes[1][2], dtype=dtype, device=gpu.device)}
    out = F.scaled_dot_product_attention(*tensors, **how)
    if backward:
        out.sum().backward()


SHAPE = (2, 4, 8, 16)  # sequences, heads, tokens, head size
CASES = {
    "plain": ({}, (SHAPE,) * 3, ""),
    "causal": ({"is_causal": True}, (SHAPE,) * 3, ""),
    "scaled": ({"scale": 0.5}, (SHAPE,) * 3, ""),
    "other keys": ({}, (SHAPE, (2, 4, 11, 16), (2, 4, 11, 16)), ""),
    "a mask": ({}, (SHAPE,) * 3, "float"),
    "a mask of booleans": ({}, (SHAPE,) * 3, "bool"),
    "grouped heads": ({"enable_gqa": True}, (SHAPE, (2, 2, 8, 16), (2, 2, 8, 16)), ""),
    "values of another size": ({}, (SHAPE, SHAPE, (2, 4, 8, 12)), ""),  # torch has no fused kernel for these
}


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_same_attention_costs_the_same_on_threads_and_dry(case, transposed, backward):
    real, dry = (recorded(attend, *case, transposed, backward, backend=b) for b in ("threads", "dry"))
    assert real.difference(dry) is None
    assert "unknown_flops" not in real.info
    (b, a, n, d), (m, e) = case[1][0], case[1][2][2:]
    products = (1 + 3 * backward) * d + (1 + 2 * backward) * e  # of the scores computed again: one more of d
    if e != d:
        products = (1 + 2 * backward) * (d + e)  # the textbook keeps them
    assert sum(flops(real).values()) == 2 * b * a * n * m * products


def inferring(gpu, *args) -> None:
    with torch.inference_mode():
        attend(gpu, *args)
        F.linear(torch.ones(3, 4, device=gpu.device), torch.ones(5, 4, device=gpu.device))


@pytest.mark.parametrize("backend", ["threads", "dry"])
def test_inference_mode_hides_no_product(backend):
    graph = recorded(inferring, {}, (SHAPE,) * 3, "", False, False, backend=backend)
    counted = flops(graph)
    assert counted["_scaled_dot_product_flash_attention_for_cpu"] == 4 * 2 * 4 * 8 * 8 * 16
    assert counted["mm"] == 2 * 3 * 4 * 5
    assert "unknown_flops" not in graph.info


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_a_dry_run_takes_the_fused_kernel_exactly_where_torch_does(data):
    draw = data.draw
    b, a, n, m, d = (draw(st.integers(low, 3)) for low in (1, 1, 0, 0, 1))
    heads, e = draw(st.sampled_from([a, 1, 2])), draw(st.sampled_from([d, d, 2]))
    dims = draw(st.sampled_from([4, 4, 4, 3]))
    dtypes = st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16])
    dtype = draw(dtypes)
    shapes = (b, a, n, d), (b, heads, m, d), (b, heads, m, e)
    q, k, v = (torch.zeros(shape, dtype=dtype)[(0,) * (4 - dims)] for shape in shapes)
    if draw(st.booleans()):
        k = k.transpose(-1, -2).contiguous().transpose(-1, -2)
    mask = draw(st.sampled_from([None, None, (n, m), (1, m), (b, a, n, m), (1, 1, n, m), (b, 1, 1, m)]))
    causal, gqa = draw(st.booleans()) and mask is None, draw(st.booleans())
    dropout = draw(st.sampled_from([0.0, 0.0, 0.1]))
    mask = None if mask is None else torch.zeros(mask, dtype=dtype)
    try:
        chosen = torch._fused_sdp_choice(q, k, v, mask, dropout, causal, enable_gqa=gqa)
        F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, enable_gqa=gqa)
    except RuntimeError:
        reject()  # torch refuses these
    fused = torch.nn.attention.SDPBackend.FLASH_ATTENTION.value
    assert fused_on_cpu(q, k, v, mask, dropout, causal, gqa) == (chosen == fused)


# ---- products that torch's table does not have, and what nobody knows --------------------------------------


def vectors(gpu) -> None:
    a, x, y = (torch.ones(shape, device=gpu.device) for shape in ((5, 3), (3,), (5,)))
    torch.mv(a, x)
    torch.addmv(y, a, x)
    torch.dot(x, x)
    torch.addr(a, y, x)
    a.clone().addmm_(a, torch.ones(3, 3, device=gpu.device))
    torch.ones(5, 3, device=gpu.device).addbmm_(a.expand(2, 5, 3), torch.ones(2, 3, 3, device=gpu.device))


@pytest.mark.parametrize("backend", ["threads", "dry"])
def test_products_of_vectors_and_products_in_place_are_counted(backend):
    graph = recorded(vectors, backend=backend)
    counted = {name: n for name, n in flops(graph).items() if n}
    assert counted == {"mv": 30, "addmv": 30, "dot": 6, "addr": 30, "addmm_": 90, "addbmm_": 180}
    assert "unknown_flops" not in graph.info


def unknown(gpu) -> None:
    a = torch.eye(4, device=gpu.device)
    torch.linalg.svd(a)
    torch.fft.fft(a)
    (a.softmax(-1).sort().values.cumsum(0) + a.norm()).relu()


def test_what_nobody_knows_is_named_and_what_has_no_products_is_not(tmp_path):
    graph = recorded(unknown)
    assert graph.info["unknown_flops"] == ["_fft_r2c", "_linalg_svd"]
    assert "_linalg_svd" in repr(graph)
    graph.save(tmp_path / "graph.npz")
    assert ExecutionGraph.load(tmp_path / "graph.npz").info["unknown_flops"] == ["_fft_r2c", "_linalg_svd"]


@torch.library.custom_op("glasscluster_test::thrice", mutates_args=())
def thrice(x: torch.Tensor) -> torch.Tensor:
    return x * 3


def own(gpu) -> None:
    thrice(torch.ones(4))


def test_a_user_s_own_operator_is_unknown_until_torch_has_its_formula():
    assert recorded(own).info["unknown_flops"] == ["glasscluster_test.thrice"]


def forgotten(gpu) -> None:
    torch.linalg.svd(torch.eye(4))
    gpu.start_step()
    torch.mm(torch.eye(4), torch.eye(4))


def test_only_what_is_on_the_graph_is_named():
    assert "unknown_flops" not in recorded(forgotten).info


def test_a_program_of_known_operators_does_not_import_torch_s_table_nor_the_model():
    code = """
import sys, torch
from glasscluster import Cluster
def program(gpu):
    a = torch.ones(4, 4, requires_grad=True)
    (a @ a).softmax(-1).sum().backward()
graph = Cluster("classroom", 1, "threads").run(program).graph
assert graph.flops.sum() == 3 * 2 * 4**3, graph
loaded = [m for m in sys.modules if m == "torch.utils.flop_counter" or m.startswith("glasscluster.model")]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_model_registers_the_cost_of_every_kernel_of_ours():
    """As on a fresh Ray actor, which imports the model and nothing that judges it."""
    script = """
import torch
import glasscluster.model.gpt, glasscluster.model.kernels.cached_attention
from glasscluster.base.operator_costs import cost_of
ours = [s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith("glasscluster::")]
assert len(ours) > 10, ours
assert not [name for name in ours if cost_of(name) is None], [n for n in ours if cost_of(n) is None]
"""
    subprocess.run([sys.executable, "-c", script], check=True)
