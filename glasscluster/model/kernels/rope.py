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
    llama3          the same with bounds 1 and 4, a ramp in the number of turns, and no cooling (Llama 3.1; in
                    Meta's code, not in the paper)

One kernel each way, backward rotates back; nothing is saved for it. Tables are made in float64, rounded to
the accumulators' type. But: yarn's ramp is linear in i, as in the authors' code, and not in the number of
turns, as in their equation 18; where the ramp would end before it begins (L below 2π) their code slows no
pair down, and so does this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, floor, log, pi

import torch
from torch import Tensor
from torch.library import Library

from glasscluster.base import operator_costs
from glasscluster.model.config import ModelConfig
from glasscluster.model.kernels.precision import accumulation_dtype


def frequencies(
    d: int,
    base: float,
    scaling: str = "none",
    factor: float = 1.0,
    trained: int = 2048,
    *,
    turns: tuple[float, float] | None = None,
    truncate: bool = True,
) -> tuple[float, ...]:
    """θ_i in radians a position, d/2 of them.

    Args:
        d: elements that are rotated.
        base: of the plain frequencies, base^(-2i/d).
        scaling: how they are changed (the header), by `factor`.
        factor: how many times as long as trained.
        trained: length L, of yarn and llama3.
        turns: within L: up to the first a pair is slowed down, from the second it is left alone. None: 1 and
            32 of yarn, 1 and 4 of llama3.
        truncate: yarn's ramp begins and ends at whole pairs.
    """
    if scaling == "ntk" and d > 2:
        base = base * factor ** (d / (d - 2))
    plain = [base ** (-2 * i / d) for i in range(d // 2)]
    if scaling == "interpolation":
        return tuple(t / factor for t in plain)
    if scaling == "yarn":
        kept = _yarn_kept(d, base, trained, turns or (1, 32), truncate)
    elif scaling == "llama3":
        low, high = turns or (1, 4)
        kept = [_within((trained * t / (2 * pi) - low) / (high - low)) for t in plain]
    else:
        return tuple(plain)
    return tuple(t / factor * (1 - k) + t * k for t, k in zip(plain, kept, strict=True))


def _within(share: float) -> float:
    return min(max(share, 0.0), 1.0)


def _yarn_kept(d: int, base: float, trained: int, turns: tuple[float, float], truncate: bool) -> list[float]:
    """How much of each pair's own frequency is kept: 1 up to one pair, 0 from another, a ramp between."""
    slow, fast = (d * log(trained / (n * 2 * pi)) / (2 * log(base)) for n in turns)
    if truncate:
        fast, slow = floor(fast), ceil(slow)
    first, last = max(fast, 0), min(slow, d - 1)
    width = last - first or 1e-3
    return [1 - _within((i - first) / width) for i in range(d // 2)]


def temperature(scaling: str, factor: float, weight: float = 1.0) -> float:
    """What yarn multiplies q and k by: sqrt(1/t) of the paper.

    weight: of the logarithm. DeepSeek's files have two, `mscale` and `mscale_all_dim`: q and k get the
    quotient of both temperatures, the scores the square of the second.
    """
    return 0.1 * weight * log(factor) + 1 if scaling == "yarn" and factor > 1 else 1.0


def angles(config: ModelConfig, d: int) -> tuple[tuple[float, ...], float]:
    """A model's θ_i for d rotated elements, and what rotated elements are multiplied by."""
    trained = config.rope_trained or max(1, round(config.seq / config.rope_factor))
    bounds = {
        "yarn": (config.rope_beta_slow, config.rope_beta_fast),
        "llama3": (config.rope_low_factor, config.rope_high_factor),
    }
    theta = frequencies(
        *(d, config.rope_theta, config.rope_scaling, config.rope_factor, trained),
        turns=bounds.get(config.rope_scaling),
        truncate=config.rope_truncate,
    )
    return theta, config.rope_attention_factor or temperature(config.rope_scaling, config.rope_factor)


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
    theta, scale = angles(config, x.shape[-1])
    return Rope.apply(x, list(spans), list(theta), scale, config.rope_layout == "interleaved")
