"""B3: how many bytes attention moves, counted by the kernel itself."""

from __future__ import annotations

import math
from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


def program(gpu: Any, sizes: list[int], d: int) -> dict[int, dict[str, int]]:
    """Elements through slow memory for each N: tiled and textbook, by a meter inside the loops."""
    import torch

    from glasscluster.model.kernels.flash.algorithm import forward

    counted = {}
    for n in sizes:
        q, k, v = torch.randn(3, 1, 1, n, d, generator=torch.Generator().manual_seed(n))
        moved = [0, 0]
        with gpu.unrecorded():

            def hear(_what: str, nbytes: int, moved: list[int] = moved) -> None:
                moved[0] += nbytes

            out, _ = forward(q, k, v, False, meter=hear)

            def touch(*tensors: Any, moved: list[int] = moved) -> None:
                moved[1] += sum(t.numel() * t.element_size() for t in tensors)

            scores = q @ k.mT * d**-0.5
            touch(q, k, scores)
            weights = scores.softmax(-1)
            touch(scores, weights)
            plain = weights @ v
            touch(weights, v, plain)
        counted[n] = {"flash": moved[0] // 4, "textbook": moved[1] // 4, "close": int(torch.allclose(out, plain, atol=1e-5))}
    return counted


@lesson(
    "B3",
    title=("FlashAttention's reads and writes", "FlashAttention 的读写账"),
    topic=("one GPU", "单卡"),
    question=("How much less does FlashAttention move through slow memory?", "FlashAttention 少搬了多少数据？"),
    formula=Formula("Eq 7", "textbook 4N²+4Nd;  tiled 2Nd + 2⌈N/B⌉Nd + N", "X", "FlashAttention 2205.14135 Thm 2; FA-2 2307.08691"),
    kills=(
        "“Flash saves FLOPs.” It saves traffic; its backward even computes more, because it recomputes the scores.",
        "“Flash 省的是计算量。”它省的是访存；反向甚至算得更多，因为要重算分数。",
    ),
    card=Card(
        ("Why is FlashAttention faster, and when is it not?", "FlashAttention 为什么快？什么时候不快？"),
        (
            "It never writes the N×N scores to slow memory: tiles of Q, K, V meet in fast memory with online softmax. Same FLOPs, less traffic.",
            "它从不把 N×N 分数写到慢速显存：Q、K、V 的块在片上相遇并做在线 softmax。计算量相同，访存更少。",
        ),
        (
            "The textbook writes S, reads it for softmax, writes P and reads it again: 4N² elements. Tiled, each tile of queries reads all "
            "keys and values once: 2⌈N/B⌉Nd. The gain grows with N towards 2B/d, which is 4 for B = 128 and d = 64. Backward keeps only the "
            "log-sum-exp and recomputes scores. There is no gain when N is below a tile or compute is the bottleneck.",
            "教科书写法要写 S、读 S 做 softmax、写 P、再读 P：4N² 个元素。分块时每块查询把全部键值读一遍：2⌈N/B⌉Nd。收益随 N 增长并趋于 2B/d，"
            "B=128、d=64 时为 4。反向只保留 log-sum-exp 并重算分数。N 小于一块或计算受限时没有收益。",
        ),
        (("What does backward need to keep?", "反向需要保留什么？"), ("What limits the tile size?", "块的大小受什么限制？")),
    ),
)
def flash_attention_io(lab: Lab, n: int = 2048, d: int = 64) -> None:
    """The kernel that trains the GPT runs with a meter on its loads and stores, beside the textbook version."""
    from glasscluster.model.kernels.flash.tiles import TILE
    from glasscluster.visualize.figures.plots import lines

    sizes = [n // 8, n // 4, n // 2, n]
    run = lab.run("attention", ("Attention, metered", "带计量的注意力"), program, sizes, d, gpus=1)
    counted = run.results[0]
    ratio = counted[n]["textbook"] / counted[n]["flash"]
    lab.ask(f"N = {n}, d = {d}, tiles of {TILE}: how many times less does the tiled version move?",
            f"N = {n}，d = {d}，块大小 {TILE}：分块版本少搬多少倍？", ratio, "×")  # fmt: skip
    for size in sizes:
        lab.check(
            f"tiled, N = {size}",
            2 * size * d + 2 * math.ceil(size / TILE) * size * d + size,
            counted[size]["flash"],
            "Eq 7",
            unit="elements",
        )
        lab.check(f"textbook, N = {size}", 4 * size**2 + 4 * size * d, counted[size]["textbook"], "Eq 7", unit="elements")
    lab.check("sizes at which both give the same output", len(sizes), sum(c["close"] for c in counted.values()), "to 1e-5", unit="sizes")
    names = {
        "en": ("textbook", "tiled (flash)", "sequence length N", "elements moved"),
        "zh": ("教科书", "分块（flash）", "序列长度 N", "搬运的元素"),
    }
    lab.figure(
        ("Elements through slow memory", "经过慢速显存的元素数"),
        lambda lang: lines(
            {names[lang][i]: (sizes, [counted[s][k] for s in sizes]) for i, k in enumerate(("textbook", "flash"))},
            *names[lang][2:],
            log_x=True,
            log_y=True,
        ),
    )
    lab.tell(
        f"At N = {n} the textbook moves {counted[n]['textbook']:,} elements, the tiled kernel {counted[n]['flash']:,}: {ratio:.2f} times less.",
        f"N = {n} 时教科书写法搬运 {counted[n]['textbook']:,} 个元素，分块内核 {counted[n]['flash']:,} 个：少 {ratio:.2f} 倍。",
    )
    lab.conclude(f"{ratio:.2f} times less traffic, the same output.", f"访存少 {ratio:.2f} 倍，输出相同。")
    lab.explain(
        "The N² terms are gone: keys and values are read once for every tile of queries, and the scores live and die in fast memory.",
        "N² 项消失了：每块查询只把键和值读一遍，分数在片上产生并消失。",
        ("The N × N scores never reach slow memory.", "N × N 的分数从不写入慢速显存。"),
        ("FLOPs do not shrink (backward even recomputes); bytes do.", "FLOPs 没有减少（反向还要重算）；减少的是字节。"),
    )
    lab.own_number(f"{ratio:.2f}× at N = {n}, d = {d}.", f"N = {n}，d = {d} 时 {ratio:.2f} 倍。")
