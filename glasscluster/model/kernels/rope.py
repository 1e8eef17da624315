"""Rotary positions: queries and keys are rotated by an angle that grows with the position.

    Su et al., 2104.09864, section 3.2: pair i of d/2 is rotated by m·θ_i at position m, θ_i = base^(-2i/d)
    <R_m q, R_n k> depends on m - n alone (Eq 4)

    interleaved   pairs (x_0, x_1), (x_2, x_3), ...            the paper, GPT-J
    half          pairs (x_0, x_d/2), (x_1, x_d/2+1), ...      GPT-NeoX, Llama in Hugging Face's files

Longer than trained, by a factor s:

    interpolation   θ_i / s: positions are squeezed into the trained range (Chen et al., 2306.15595)
    ntk             base · s^(d/(d-2)): the slowest pair is stretched by s, the fastest not at all
                    ("NTK-aware", bloc97, 2023)
    yarn            θ_i / s where a pair turns less than once in the trained length L, θ_i where it turns
                    32 times or more, between them a ramp; and q and k times 0.1 ln s + 1, which cools the
                    softmax (Peng et al., 2309.00071, sections 3.2, 3.3)

One kernel each way, backward rotates back; nothing is saved for it. Tables are made in float64, rounded to
the accumulators' type. But: yarn's ramp is linear in i, as in the authors' code, and not in the number of
turns, as in their equation 18.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import log, pi

import torch
from torch import Tensor
from torch.library import Library

from glasscluster.base import operator_costs
from glasscluster.model.config import ModelConfig
from glasscluster.model.kernels.precision import accumulation_dtype

# yarn: turns within the trained length from which a pair is left alone, up to which it is interpolated
FAST, SLOW = 32, 1


def frequencies(
    d: int,
    base: float,
    scaling: str = "none",
    factor: float = 1.0,
    trained: int = 2048,
) -> tuple[float, ...]:
    """θ_i in radians a position, d/2 of them."""
    if scaling == "ntk" and d > 2:
        base = base * factor ** (d / (d - 2))
    plain = [base ** (-2 * i / d) for i in range(d // 2)]
    if scaling == "interpolation":
        return tuple(t / factor for t in plain)
    if scaling == "yarn":
        low, high = (d * log(trained / (turns * 2 * pi)) / (2 * log(base)) for turns in (FAST, SLOW))
        first, last = max(low // 1, 0), min(-(-high // 1), d - 1)
        width = last - first if last > first else 1e-3
        ramp = [min(max((i - first) / width, 0.0), 1.0) for i in range(d // 2)]
        return tuple(t / factor * r + t * (1 - r) for t, r in zip(plain, ramp, strict=True))
    return tuple(plain)


def temperature(scaling: str, factor: float) -> float:
    """What yarn multiplies q and k by: sqrt(1/t) of the paper."""
    return 0.1 * log(factor) + 1 if scaling == "yarn" and factor > 1 else 1.0


@lru_cache(maxsize=256)
def _tables(
    spans: tuple[int, ...], theta: tuple[float, ...], scale: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin [s, 1, d/2] at the positions of some runs (first, how many, ...), times the temperature."""
    runs = zip(spans[::2], spans[1::2], strict=True)
    at = torch.cat([torch.arange(a, a + n, dtype=torch.float64) for a, n in runs])
    angle = at[:, None] * torch.tensor(theta, dtype=torch.float64)
    cos, sin = ((f(angle)[:, None] * scale).to(dtype=dtype, device=device) for f in (torch.cos, torch.sin))
    return cos, sin


_library = Library("glasscluster", "FRAGMENT")
_inputs = "Tensor x, int[] spans, float[] theta, float scale, bool interleaved, bool back"
_library.define(f"rope({_inputs}) -> Tensor")
operator_costs.register("glasscluster::rope")


def _rope(
    x: Tensor,
    spans: Sequence[int],
    theta: Sequence[float],
    scale: float,
    interleaved: bool,
    back: bool,
) -> Tensor:
    cos, sin = _tables(tuple(spans), tuple(theta), scale, accumulation_dtype(x.dtype), x.device)
    sin = -sin if back else sin
    precise = x.to(cos.dtype)
    a, b = precise.unflatten(-1, (-1, 2)).unbind(-1) if interleaved else precise.chunk(2, -1)
    rotated = (a * cos - b * sin, b * cos + a * sin)
    out = torch.stack(rotated, -1).flatten(-2) if interleaved else torch.cat(rotated, -1)
    return out.to(x.dtype).contiguous()


for _device in ("CPU", "CUDA"):
    _library.impl("rope", _rope, _device)
_library.impl("rope", lambda x, spans, theta, scale, interleaved, back: x.new_empty(x.shape), "Meta")


class Rope(torch.autograd.Function):
    """Forward and backward side by side."""

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        spans: list[int],
        theta: list[float],
        scale: float,
        interleaved: bool,
    ) -> Tensor:
        ctx.how = spans, theta, scale, interleaved
        return torch.ops.glasscluster.rope(x, *ctx.how, False)

    @staticmethod
    def backward(ctx, d_out: Tensor):
        return torch.ops.glasscluster.rope(d_out, *ctx.how, True), None, None, None, None


def rope(x: Tensor, spans: Sequence[int], config: ModelConfig) -> Tensor:
    """x [b, s, a, d] rotated; spans: the positions of its s tokens as runs (first, how many, ...)."""
    trained = config.rope_trained or max(1, round(config.seq / config.rope_factor))
    theta = frequencies(x.shape[-1], config.rope_theta, config.rope_scaling, config.rope_factor, trained)
    scale = temperature(config.rope_scaling, config.rope_factor)
    return Rope.apply(x, list(spans), list(theta), scale, config.rope_layout == "interleaved")
