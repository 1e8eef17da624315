"""B2: softmax in one pass, block by block, in any order."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


def combine(state: tuple[Any, Any], block: Any) -> tuple[Any, Any]:
    """Eq 6: the running maximum m and sum l after one more block of scores."""
    import torch

    m, total = state
    m_new = torch.maximum(m, block.max())
    return m_new, total * torch.exp(m - m_new) + torch.exp(block - m_new).sum()


def program(gpu: Any, n: int, blocks: int, scale: float) -> dict[str, Any]:
    """Each rank combines the same row's blocks in an order of its own."""
    import torch

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


@lesson(
    "B2",
    title=("Online softmax", "在线 Softmax"),
    topic=("one GPU", "单卡"),
    question=("Can softmax be computed in one pass, without knowing the row's maximum first?", "不先求最大值，softmax 能一遍算完吗？"),
    formula=Formula("Eq 6", "m' = max(m, m_j);  l' = e^(m−m')·l + e^(m_j−m')·l_j", "X", "Milakov 1805.02867 Alg. 3; FlashAttention Alg. 1"),
    kills=(
        "“FlashAttention is an approximation.” The rescaling is exact: any block order gives the same softmax.",
        "“FlashAttention 是近似算法。”重新缩放是精确的：任何块顺序得到的 softmax 都相同。",
    ),
    card=Card(
        ("Derive online softmax.", "推导在线 softmax。"),
        (
            "Carry the running maximum m and the sum l of exp(x−m). A new block raises m to m'; multiply l by e^(m−m') and add the block's sum.",
            "维护当前最大值 m 和 exp(x−m) 的和 l。新块把 m 提高到 m'：l 乘以 e^(m−m') 再加上该块的和。",
        ),
        (
            "Softmax needs max and sum over the whole row. Because e^(x−m') = e^(x−m)·e^(m−m'), everything accumulated under the old maximum is "
            "corrected by one factor. The same factor corrects the output accumulator, so attention needs no second pass and no N×N "
            "matrix. The combination is associative, so blocks, and even GPUs, may come in any order (ring attention uses that).",
            "softmax 需要整行的最大值与和。由于 e^(x−m') = e^(x−m)·e^(m−m')，旧最大值下累积的一切只需乘一个因子。输出累加器也乘同一因子，"
            "因此注意力不需要第二遍，也不需要 N×N 矩阵。合并满足结合律，块乃至 GPU 都可以任意顺序（环形注意力正是利用这一点）。",
        ),
        (
            ("What happens with scores of ±1e4?", "分数为 ±1e4 时会怎样？"),
            ("What else must be rescaled in attention?", "注意力里还有什么要重新缩放？"),
        ),
    ),
)
def online_softmax(lab: Lab, n: int = 4096, blocks: int = 16, scale: float = 1e4) -> None:
    """Four ranks run over the blocks of one row of huge scores, each in another order."""
    from glasscluster.visualize.figures.plots import lines

    run = lab.run("softmax", ("Blocks in four orders", "四种块顺序"), program, n, blocks, scale, gpus=4)
    lab.ask("How many numbers a row must be carried from block to block?", "每一行需要从一块带到下一块多少个数？", 2, "numbers")
    worst = max(r["difference"] for r in run.results)
    lab.check("largest difference from torch's softmax, any order", 0, worst, "Eq 6", unit="absolute", tolerance=1e-12)
    spread = max(r["history"][-1][0] for r in run.results) - min(r["history"][-1][0] for r in run.results)
    lab.check("final maximum, difference between orders", 0, spread, "Eq 6", unit="absolute")
    steps = list(range(1, blocks + 1))
    names = {"en": ("order of rank {}", "blocks seen", "running maximum m"), "zh": ("rank {} 的顺序", "已看过的块", "当前最大值 m")}
    lab.figure(
        ("The running maximum, block by block", "逐块更新的最大值"),
        lambda lang: lines(
            {names[lang][0].format(i): (steps, [h[0] for h in r["history"]]) for i, r in enumerate(run.results)}, *names[lang][1:]
        ),
    )
    lab.tell(
        f"Scores up to ±{scale:g}, {blocks} blocks, four orders: the largest difference from torch's softmax is {worst:.1e}.",
        f"分数达 ±{scale:g}，{blocks} 块，四种顺序：与 torch softmax 的最大差异 {worst:.1e}。",
        "tab=ledger",
    )
    lab.conclude("Two numbers a row are enough, in any order of blocks.", "每行只需带两个数，块的顺序任意。")
    lab.explain(
        "Whenever a block raises the maximum, the old sum is worth e^(m−m') of its value: one multiplication repairs it. No exponential is ever "
        "taken of a positive number, so nothing overflows.",
        "每当某块提高了最大值，旧的和就只值原来的 e^(m−m')：乘一次即可修正。指数的自变量从不为正，因此不会溢出。",
        (
            "A new maximum rescales the old sum by e^(m−m'); nothing is read twice.",
            "出现新的最大值时，旧的和乘以 e^(m−m')；数据不必读第二遍。",
        ),
        ("The result is exact, whatever the order of the blocks: it is no approximation.", "无论块的顺序如何结果都精确：不是近似。"),
    )
    lab.own_number(f"{worst:.1e} after {blocks} blocks.", f"{blocks} 块之后差异 {worst:.1e}。")
