"""A1: multi-head attention by hand, why it divides by the root of d, and what it costs with the length."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from glasscluster.model.layers.attention import unfused_attention
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.scenarios.texts import listed
from glasscluster.sim.recording.events import COMPUTE
from glasscluster.strategies.plan import make_model
from glasscluster.visualize.figures.plots import lines

PAIRS, KEYS = 20_000, 256


def by_hand(x: Any, w_in: Any, b_in: Any, w_out: Any, b_out: Any, heads: int) -> Any:
    """Multi-head attention of x [b, n, h], written out; every token sees every other (1706.03762, section
    3.2).
    """
    q, k, v = (x @ w_in.T + b_in).chunk(3, -1)  # [b, n, h] each
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # [b, a, n, d]
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # [b, a, n, n]
    mixed = scores.softmax(-1) @ v  # [b, a, n, d]
    return mixed.transpose(1, 2).flatten(2) @ w_out.T + b_out  # [b, n, h]


def program(gpu: Any, dims: list[int], lengths: list[int], d: int) -> dict[str, Any]:
    """Measure random scores at each head size, compare attention by hand with torch's, and run one head at
    each length.
    """

    with gpu.unrecorded():
        draw = torch.Generator().manual_seed(0)
        measured = {**random_scores(dims, draw), "difference": by_hand_and_torch(draw)}
    for number, n in enumerate(lengths):
        with gpu.unrecorded():
            q, k, v = torch.randn(3, 1, 1, n, d, generator=draw)
        with gpu.region("forward", layer=0, micro_batch=number):
            unfused_attention(q, k, v, causal=False)
    return measured


def random_scores(dims: list[int], draw: torch.Generator) -> dict[str, Any]:
    """For each head size: the variance of q·k, and the entropy and slope of softmax with and without the
    division by √d.
    """
    variance: list[float] = []
    entropy: dict[str, list[float]] = {"divided": [], "raw": []}
    slope: dict[str, list[float]] = {"divided": [], "raw": []}
    for size in dims:
        q, k = torch.randn(2, PAIRS, size, generator=draw, dtype=torch.float64)
        variance.append(float((q * k).sum(-1).var()))
        q, k = torch.randn(2, KEYS, size, generator=draw, dtype=torch.float64)
        for name, scale in (("divided", size**-0.5), ("raw", 1.0)):
            p = (q @ k.T * scale).softmax(-1)
            entropy[name].append(float(-torch.xlogy(p, p).sum(-1).mean()))
            slope[name].append(float((p * (1 - p)).sum(-1).mean()))  # trace of softmax's Jacobian
    return {"variance": variance, "entropy": entropy, "slope": slope}


def by_hand_and_torch(draw: torch.Generator) -> float:
    """The largest difference between `by_hand` and torch's own multi-head attention."""
    with torch.random.fork_rng():  # a module draws its weights from the global generator
        torch.manual_seed(0)
        mha = torch.nn.MultiheadAttention(32, 4, batch_first=True, dtype=torch.float64)
    x = torch.randn(2, 10, 32, generator=draw, dtype=torch.float64)
    mine = by_hand(x, mha.in_proj_weight, mha.in_proj_bias, mha.out_proj.weight, mha.out_proj.bias, 4)
    return float((mine - mha(x, x, x, need_weights=False)[0]).abs().max().detach())


@lesson
def attention_by_hand(lab: Lab, d: int = 64, n: int = 512) -> None:
    """Scores of random queries and keys are measured with and without the division; a head's work is counted
    at growing lengths; a GPT's first loss is read.
    """
    dims, lengths = [8, 32, 128, 512], [n // 8, n // 4, n // 2, n]
    run = lab.run("attention", lab.text("four_lengths"), program, dims, lengths, d, gpus=1)
    measured, graph = run.results[0], run.graph
    chance: dict[str, Any] = {"match": "statistical", "unit": ""}
    for size, variance in zip(dims, measured["variance"], strict=True):
        # the sample variance of n terms is off by √(2/n) of itself, one deviation; six of them are allowed
        six_deviations = 6 * size * (2 / PAIRS) ** 0.5
        lab.row("variance_of_scores", size, variance, "Eq 2", **chance, tolerance=six_deviations, size=size)
    source = "1706.03762 §3.2, float64"
    lab.row("by_hand_and_torch", 0, measured["difference"], source, unit="absolute", tolerance=1e-12)

    at = [(graph.kind == COMPUTE) & (graph.micro_batch == i) for i in range(len(lengths))]
    flops = [int(graph.flops[rows].sum()) for rows in at]
    moved = [int(graph.bytes[rows].sum()) for rows in at]
    for i, length in enumerate(lengths):
        products, elements = 4 * length**2 * d, 4 * length**2 + 4 * length * d
        work, traffic = "2n²d for QKᵀ, 2n²d for the weights times V", "Eq 7: 4n² + 4nd numbers"
        lab.row("flops_of_a_head", products, flops[i], work, unit="FLOPs", d=d, length=length)
        lab.row("bytes_of_a_head", 4 * elements, moved[i], traffic, d=d, length=length)
    power = float(np.polyfit(np.log(lengths), np.log(flops), 1)[0])
    lab.row(
        "power_of_the_length", 2, power, "O(n²d)", unit="", tolerance=1e-9
    )  # what fitting logarithms rounds

    model = make_model("tiny", layers=2, hidden=64, seq=64)
    trained = lab.train("gpt", lab.text("first_step"), model=model, steps=1, compared=False)
    first, uniform = float(trained.run.results[0].losses[0]), math.log(model.vocab)
    chance["unit"] = "nats"
    lab.row("first_loss", uniform, first, "Eq 37: ln V", **chance, tolerance=0.1, vocab=model.vocab)

    place, even = dims.index(128), math.log(KEYS)
    (divided, raw), slope = measured["entropy"].values(), measured["slope"]
    lost = sum(after < before for before, after in pairwise(raw))
    source = "a larger deviation picks fewer keys"
    lab.row("entropy_lost", len(dims) - 1, lost, source, unit="steps", dims=listed(dims))
    lab.ask("entropy_undivided", raw[place], "nats", KEYS=KEYS, d=dims[place], even=even)

    figures(lab, measured, dims, lengths, flops, moved)
    falls: dict[str, Any] = {"divided": divided[place], "raw": raw[place], "even": even}
    lab.tell("entropy_falls", size=dims[place], variance=measured["variance"][place], **falls)
    lab.tell("gradient_falls", slope_divided=slope["divided"][place], slope_raw=slope["raw"][place])
    grown: dict[str, Any] = {
        "shortest": lengths[0],
        "longest": lengths[-1],
        "times": lengths[-1] / lengths[0],
        "times_flops": flops[-1] / flops[0],
        "times_bytes": moved[-1] / moved[0],
    }
    lab.tell("flops_grow", view="tab=timeline&run=attention", **grown)
    lab.tell("first_loss", view="tab=checks&run=gpt", vocab=model.vocab, uniform=uniform, first=first)
    lab.conclude(raw=raw[place], even=even, size=dims[place])
    lab.explain()
    lab.own_number(raw=raw[place], divided=divided[place], size=dims[place])


def figures(
    lab: Lab, measured: Any, dims: list[int], lengths: list[int], flops: list[int], moved: list[int]
) -> None:
    """Draw entropy and slope of softmax against the head size, and the cost of a head against the length."""

    def by_head_size(what: str, lang: str) -> Any:
        series = {lab.word(way, lang): (dims, measured[what][way]) for way in ("divided", "raw")}
        return lines(series, lab.word("head_size", lang), lab.word(what, lang), log_x=True)

    def cost(lang: str) -> Any:
        series = {lab.word("flops", lang): (lengths, flops), lab.word("bytes", lang): (lengths, moved)}
        return lines(series, lab.word("length", lang), lab.word("one_head", lang), log_x=True, log_y=True)

    lab.figure("entropy_of_softmax", lambda lang: by_head_size("entropy", lang), KEYS=KEYS)
    lab.figure("gradient_through_softmax", lambda lang: by_head_size("slope", lang))
    lab.figure("cost_of_a_head", cost)
