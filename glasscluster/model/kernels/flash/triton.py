"""FlashAttention on an NVIDIA GPU: algorithm.py's two functions, by the Triton kernels of triton_kernels.py.

But: values with fewer columns than keys are filled up with zeros; no float64 (algorithm.py has it) and no
bias; tile sizes are tuned at a shape's first use, so another process may round differently.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from glasscluster.model.kernels.flash.algorithm import check_shapes, forward_like
from glasscluster.model.kernels.flash.triton_kernels import (
    INTERPRETED,
    delta_kernel,
    dkdv_kernel,
    dq_kernel,
    forward_kernel,
)
from glasscluster.model.kernels.scores import PLAIN, Scores

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

# ---- tile sizes --------------------------------------------------------------------------------------------


def _configs(*sizes: tuple[int, int, int, int]) -> list[triton.Config]:
    def config(rows: int, cols: int, warps: int, stages: int) -> triton.Config:
        return triton.Config({"ROWS": rows, "COLS": cols}, num_warps=warps, num_stages=stages)

    return [config(*size) for size in sizes]


# Rows, columns, warps, stages that are tried for a head size, a mask and a type. Each list ends with one that
# fits any GPU and any head.
NARROW = {
    "forward": _configs((128, 128, 8, 2), (128, 64, 8, 3), (128, 64, 4, 3), (64, 64, 4, 3), (64, 32, 4, 2)),
    "dkdv": _configs((64, 128, 8, 2), (64, 64, 4, 3), (32, 128, 4, 3), (128, 128, 8, 2), (32, 64, 4, 2)),
    "dq": _configs((128, 64, 8, 3), (64, 64, 4, 3), (128, 64, 8, 2), (128, 32, 4, 3), (64, 32, 4, 2)),
}
IEEE = _configs((32, 32, 4, 2), (16, 32, 4, 1))  # float32: no tensor cores, and registers for every product
KERNELS = {"forward": forward_kernel, "dkdv": dkdv_kernel, "dq": dq_kernel}
SMALL = (32, 32)  # the interpreter's tiles
_tuned: dict[tuple[str, bool], Any] = {}


def _launch(
    way: str,
    tiles_of: str,
    lengths: int,
    heads: int,
    sequences: int,
    args: tuple,
    tiles: tuple[int, int] | None,
    **sizes: Any,
) -> None:
    """Start a kernel on a grid of (tiles of ROWS or COLS, heads, sequences); tiles: given or tuned."""
    if tiles is None and INTERPRETED.value:
        tiles = SMALL
    if tiles is not None:
        blocks = dict(zip(("ROWS", "COLS"), tiles, strict=True))
        KERNELS[way][(triton.cdiv(lengths, blocks[tiles_of]), heads, sequences)](*args, **sizes, **blocks)
        return
    ieee = sizes["PRECISION"] == "ieee"
    if (way, ieee) not in _tuned:
        tune = triton.autotune(
            IEEE if ieee else NARROW[way], key=["HEAD", "CAUSAL", "GROUP", "WINDOW", "CAP"]
        )
        _tuned[way, ieee] = tune(KERNELS[way])
    _tuned[way, ieee][lambda meta: (triton.cdiv(lengths, meta[tiles_of]), heads, sequences)](*args, **sizes)


def _sizes(q: Tensor, k: Tensor, causal: bool, how: Scores) -> dict[str, Any]:
    """What a kernel is compiled for. Products of matrices want sides of 16 at least."""
    head = q.shape[3]
    ieee = q.dtype == torch.float32
    return {
        "HEAD": head,
        "WIDTH": max(16, triton.next_power_of_2(head)),
        "GROUP": q.shape[1] // k.shape[1],
        "CAUSAL": causal,
        "WINDOW": how.window > 0,
        "CAP": how.cap > 0,
        "PRECISION": "ieee" if ieee else "tf32",  # of no effect on 16-bit inputs
    }


def _rows(x: Tensor) -> Tensor:
    """A kernel reads the elements of a head side by side."""
    return x if x.stride(3) == 1 else x.contiguous()


def _filled(x: Tensor, like: Tensor) -> Tensor:
    """With zeros behind, up to as many columns as `like` has: the kernels know one head size."""
    return torch.nn.functional.pad(x, (0, like.shape[3] - x.shape[3]))


def _strides(*tensors: Tensor) -> list[int]:
    return [x.stride(i) for x in tensors for i in range(3)]


def check(q: Tensor, k: Tensor, causal: bool, window: int = 0) -> None:
    """Shapes as in the torch version; one of DTYPES."""
    check_shapes(q, k, causal, window)
    if q.dtype not in DTYPES:
        known = ", ".join(map(str, DTYPES))
        instead = "the torch version has float64 too"
        raise ValueError(f"attention in {q.dtype}: the Triton kernel has {known}; {instead}")


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    tiles: tuple[int, int] | None = None,
    how: Scores = PLAIN,
) -> tuple[Tensor, Tensor]:
    """Output [b, a, N, d] in q's type and log-sum-exp L [b, a, N] in float32.

    tiles: rows and columns; tuned unless given.
    """
    check(q, k, causal, how.window)
    q, k, v = _rows(q), _rows(k), _rows(v)
    if v.shape[3] < q.shape[3]:
        out, lse = forward(q, k, _filled(v, q), causal, tiles, how)
        return out[..., : v.shape[3]].contiguous(), lse
    out, lse = forward_like(q, v)
    b, a, n, d = q.shape
    numbers = (how.scale_of(d), how.cap, how.window, n, k.shape[2])
    args = (q, k, v, out, lse, *numbers, *_strides(q, k, v, out))
    _launch("forward", "ROWS", n, a, b, args, tiles, **_sizes(q, k, causal, how))
    return out, lse


def backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    tiles: tuple[int, int] | None = None,
    how: Scores = PLAIN,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, in their types. Of a block of keys its share, as in the torch version."""
    check(q, k, causal, how.window)
    if (columns := v.shape[3]) < q.shape[3]:
        d_out, v, out = (_filled(x, q) for x in (d_out, v, out))
        dq, dk, dv = backward(d_out, q, k, v, out, lse, causal, tiles, how)
        return dq, dk, dv[..., :columns].contiguous()
    d_out, q, k, v, out = (_rows(x) for x in (d_out, q, k, v, out))
    (b, a, n, d), (heads, keys), sizes = q.shape, k.shape[1:3], _sizes(q, k, causal, how)
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    lse, delta = lse.contiguous(), lse.new_empty(lse.shape)
    delta_kernel[(triton.cdiv(n, 64), a, b)](
        d_out, out, delta, n, *_strides(d_out, out), HEAD=d, WIDTH=sizes["WIDTH"], ROWS=64
    )
    both, numbers = (q, k, v, d_out, lse, delta), (how.scale_of(d), how.cap, how.window, n, keys)
    of_keys = (*both, dk, dv, *numbers, *_strides(q, k, v, d_out, dk, dv))
    of_queries = (*both, dq, *numbers, *_strides(q, k, v, d_out, dq))
    _launch("dkdv", "COLS", keys, heads, b, of_keys, tiles, **sizes)
    _launch("dq", "ROWS", n, a, b, of_queries, tiles, **sizes)
    return dq, dk, dv
