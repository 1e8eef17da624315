"""B2: softmax in one pass, block by block, in any order."""

from __future__ import annotations

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


def program(gpu: Any, n: int, blocks: int, scale: float) -> dict[str, Any]:
    """Combine the blocks of one row; each rank takes them in an order of its own."""

    row = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * scale
    pieces = list(row.tensor_split(blocks))
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(gpu.rank)).tolist()
    state = (torch.tensor(float("-inf"), dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64))
    history = []
    for index in order:
        state = combine(state, pieces[index])
        history.append((float(state[0]), float(state[1])))
    softmax = torch.exp(row - state[0]) / state[1]
    return {"history": history, "difference": float((softmax - row.softmax(0)).abs().max()), "order": order}


@lesson
def online_softmax(lab: Lab, n: int = 4096, blocks: int = 16, scale: float = 1e4) -> None:
    """Four ranks run over the blocks of one row of huge scores, each in another order."""

    run = lab.run("softmax", lab.text("four_orders"), program, n, blocks, scale, gpus=4)
    lab.ask("number", 2, "numbers")
    worst = max(r["difference"] for r in run.results)
    lab.row("and_torch", 0, worst, "Eq 6", unit="absolute", tolerance=1e-12)
    maxima = [r["history"][-1][0] for r in run.results]
    lab.row("between_orders", 0, max(maxima) - min(maxima), "Eq 6", unit="absolute")
    steps = list(range(1, blocks + 1))

    def by_block(lang: str) -> Any:
        maxima = [[maximum for maximum, _ in r["history"]] for r in run.results]
        series = {lab.word("order", lang, rank=i): (steps, values) for i, values in enumerate(maxima)}
        return lines(series, lab.word("blocks_seen", lang), lab.word("running_maximum", lang))

    lab.figure("maximum_by_block", by_block)
    lab.tell("four_orders", view="tab=ledger", scale=scale, blocks=blocks, worst=worst)
    lab.conclude()
    lab.explain()
    lab.own_number(worst=worst, blocks=blocks)
