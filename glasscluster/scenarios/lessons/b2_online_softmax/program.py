"""B2: softmax in one pass, block by block, in any order."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.visualize.figures.plots import lines


def combine(state: tuple[Any, Any], block: Any) -> tuple[Any, Any]:
    """Eq 6: the running maximum m and sum l after one more block of scores."""

    m, total = state
    m_new = torch.maximum(m, block.max())
    return m_new, total * torch.exp(m - m_new) + torch.exp(block - m_new).sum()


def pass_over(pieces: list[Any], values: list[Any], order: list[int]) -> tuple[Any, Any, list[float]]:
    """One pass over a row's blocks of scores: its final state (m, l), the sum of values weighted by softmax,
    and the running maximum after each block.
    """

    m = torch.tensor(float("-inf"), dtype=torch.float64)
    state, weighted, history = (m, torch.zeros_like(m)), torch.zeros_like(m), []
    for index in order:
        m = state[0]
        state = combine(state, pieces[index])
        weighted = weighted * torch.exp(m - state[0])
        weighted = weighted + torch.exp(pieces[index] - state[0]) @ values[index]
        history.append(float(state[0]))
    return state, weighted / state[1], history


def program(gpu: Any, n: int, blocks: int, scales: list[float]) -> dict[float, dict[str, Any]]:
    """Combine the blocks of one row, at each scale of its scores; each rank takes them in an order of its
    own.
    """

    draw = torch.Generator().manual_seed(0)
    row, values = torch.randn(2, n, generator=draw, dtype=torch.float64)
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(gpu.rank)).tolist()
    by_scale: dict[float, dict[str, Any]] = {}
    for scale in scales:
        scores = row * scale
        pieces = list(scores.tensor_split(blocks))
        state, output, history = pass_over(pieces, list(values.tensor_split(blocks)), order)
        softmax, theirs = torch.exp(scores - state[0]) / state[1], scores.softmax(0)
        by_scale[scale] = {
            "history": history,
            "difference": float((softmax - theirs).abs().max()),
            "output": float((output - theirs @ values).abs()),
            "infinite": int(torch.exp(scores).isinf().sum()),
            "too_large": int((scores > math.log(torch.finfo(torch.float64).max)).sum()),
            "top": float(theirs.max()),
        }
    return by_scale


@lesson
def online_softmax(lab: Lab, n: int = 4096, blocks: int = 16, scale: float = 1e4) -> None:
    """Four ranks run over the blocks of one row of scores, each in another order: of ordinary scores, and of
    huge ones.
    """

    scales = list(dict.fromkeys((1.0, scale)))
    run = lab.run("softmax", lab.text("four_orders"), program, n, blocks, scales, gpus=4)
    lab.ask("number", 2, n=n, blocks=blocks)
    for each in scales:
        of_scale = [r[each] for r in run.results]
        close: dict[str, Any] = {"unit": "absolute", "tolerance": 1e-12, "scale": each}
        lab.row("and_torch", 0, max(r["difference"] for r in of_scale), "Eq 6", **close)
        lab.row("output", 0, max(r["output"] for r in of_scale), "Eq 6, the same factor", **close)
    huge = [r[scale] for r in run.results]
    maxima = [r["history"][-1] for r in huge]
    lab.row("between_orders", 0, max(maxima) - min(maxima), "Eq 6", unit="absolute")
    counts = (huge[0]["too_large"], huge[0]["infinite"])
    lab.row("infinite", *counts, "x > ln of the largest float64", unit="numbers")
    steps = list(range(1, blocks + 1))

    def by_block(lang: str) -> Any:
        series = {lab.word("order", lang, rank=i): (steps, r["history"]) for i, r in enumerate(huge)}
        return lines(series, lab.word("blocks_seen", lang), lab.word("running_maximum", lang))

    lab.figure("maximum_by_block", by_block)
    worst = max(r[1.0]["difference"] for r in run.results)
    lab.tell("four_orders", view="tab=ledger", blocks=blocks, worst=worst)
    seen = huge[0]["history"]
    rises = sum(after > before for before, after in pairwise(seen))
    lab.tell("rises", view="tab=story", rises=rises, blocks=blocks)
    extremes: dict[str, Any] = {
        "infinite": huge[0]["infinite"],
        "n": n,
        "scale": scale,
        "top": huge[0]["top"],
    }
    lab.tell("huge_scores", view="tab=ledger", **extremes)
    lab.conclude()
    lab.explain()
    lab.card(**extremes)
    lab.own_number(worst=worst, blocks=blocks)
