"""D4: what ZeRO's stages cost in traffic, and what prefetch hides."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


@lesson(
    "D4",
    title=("ZeRO traffic", "ZeRO 通信"),
    topic=("data parallel", "数据并行"),
    question=(
        "What does ZeRO-3 cost in communication, compared with plain data parallelism?",
        "与普通数据并行相比，ZeRO-3 的通信代价是多少？",
    ),
    formula=Formula("Eq 16", "DP, stage 1: 2Ψ; stage 2: (m+1)Ψ; stage 3: 3mΨ, each × (N−1)/N elements", "X", "ZeRO 1910.02054 §7"),
    kills=(
        "“Stage 2 communicates more than DP.” With one micro-batch an all-reduce is a reduce-scatter and an all-gather: the same bytes.",
        "“阶段 2 的通信比 DP 多。”只有一个微批次时，all-reduce 就是 reduce-scatter 加 all-gather：字节数相同。",
    ),
    card=Card(
        ("What is the extra traffic of ZeRO-3?", "ZeRO-3 多出多少通信？"),
        (
            "Half as much again: parameters are gathered for forward and again for backward, gradients reduce-scattered: 3Ψ instead of 2Ψ.",
            "多一半：前向聚集一次参数，反向再聚集一次，梯度 reduce-scatter：3Ψ 而不是 2Ψ。",
        ),
        (
            "DP's all-reduce sends 2Ψ(N−1)/N elements. Stages 1 and 2 split it into a reduce-scatter of gradients and an all-gather of updated "
            "parameters: 2Ψ again, with m micro-batches (m+1)Ψ at stage 2. Stage 3 frees parameters after use, so each micro-batch gathers twice and "
            "scatters once: 3mΨ. Prefetching the next unit while this one computes hides it where compute is long enough.",
            "DP 的 all-reduce 发送 2Ψ(N−1)/N 个元素。阶段 1、2 把它拆成梯度的 reduce-scatter 与更新后参数的 all-gather：仍为 2Ψ，m 个微批次时阶段 2 为 (m+1)Ψ。"
            "阶段 3 用完即释放参数，每个微批次聚集两次、散发一次：3mΨ。当前单元计算时预取下一单元，计算足够长就能隐藏。",
        ),
        (
            ("How do you avoid the second gather?", "怎样省掉第二次聚集？"),
            ("Why is accumulation expensive at stage 3?", "为什么阶段 3 做梯度累积很贵？"),
        ),
    ),
)
def zero_traffic(lab: Lab, gpus: int = 4) -> None:
    """Stages 0 to 3 train the same GPT with every byte counted; stage 3 runs with and without prefetch."""
    from glasscluster.strategies.plan import make_model
    from glasscluster.visualize.figures.plots import bars

    model = make_model("tiny", hidden=128, seq=128)
    common: dict[str, Any] = {"model": model, "steps": 1, "dp": gpus, "micro_batch": 2, "global_batch": 2 * gpus}
    sent, exposed = [], {}
    for stage in range(4):
        title = (f"ZeRO-{stage}" if stage else "Data parallel", f"ZeRO-{stage}" if stage else "数据并行")
        run = lab.train(f"zero{stage}", title, checked=stage == 3, zero=stage, **common)
        graph = run.run.graph
        counted = sum(graph.bytes_sent(axis="dp", purpose="gradients")) + sum(graph.bytes_sent(axis="dp", purpose="parameters"))
        padded = sum(size for _, _, size in run.run.results[0].units)
        lab.check(f"stage {stage}: bytes sent by all ranks", (3 if stage == 3 else 2) * (gpus - 1) * padded * 4, counted, "Eq 16, m = 1")
        sent.append(counted / gpus / (padded * 4 * (gpus - 1) / gpus))
        exposed[stage] = run.timeline.summary()["exposed_comm_s"]
    for name, options, times in (
        ("stage 3, parameters kept until backward", {"zero": 3, "reshard": False}, 2),
        ("stage 2, 3 micro-batches", {"zero": 2, "global_batch": 6 * gpus}, 4),
        ("stage 2, 3 micro-batches added up whole", {"zero": 2, "global_batch": 6 * gpus, "accumulate": "whole"}, 2),
    ):
        other = lab.dry(**{k: v for k, v in common.items() if k != "steps"} | options)
        counted = sum(sum(other.graph.bytes_sent(axis="dp", purpose=p)) for p in ("gradients", "parameters"))
        padded = sum(size for _, _, size in other.results[0].units)
        lab.check(f"{name}: bytes sent by all ranks", times * (gpus - 1) * padded * 4, counted, "Eq 16")
    bare = lab.train("no-prefetch", ("ZeRO-3 without prefetch", "ZeRO-3（关闭预取）"), checked=False, zero=3, prefetch=0, **common)
    without = bare.timeline.summary()["exposed_comm_s"]
    lab.ask("How many times DP's traffic does ZeRO-3 send?", "ZeRO-3 的通信量是 DP 的多少倍？", sent[3] / sent[0], "×")
    axis = {"en": "sent, in Ψ(N−1)/N elements", "zh": "发送量（Ψ(N−1)/N 个元素）"}
    lab.figure(
        ("Traffic of a step by stage", "各阶段一步的通信量"),
        lambda lang: bars([f"ZeRO-{s}" for s in range(4)], {axis[lang]: sent}, axis[lang]),
    )
    lab.tell(
        f"Stages 0 to 3 send {', '.join(f'{s:.3g}' for s in sent)} Ψ(N−1)/N elements a rank.",
        f"阶段 0 到 3 每个 rank 发送 {'、'.join(f'{s:.3g}' for s in sent)} Ψ(N−1)/N 个元素。",
        "tab=network&run=zero3",
    )
    lab.tell(
        f"With prefetch {exposed[3] * 1e3:.3g} ms of stage 3's communication is waited for, without {without * 1e3:.3g} ms.",
        f"预取时阶段 3 暴露的通信为 {exposed[3] * 1e3:.3g} ms，不预取为 {without * 1e3:.3g} ms。",
        "tab=timeline&run=no-prefetch",
    )
    lab.conclude(f"ZeRO-3 sends {sent[3] / sent[0]:.3g} times DP's bytes; prefetch hides {1 - exposed[3] / without:.0%} of the waiting.",
                 f"ZeRO-3 的字节数是 DP 的 {sent[3] / sent[0]:.3g} 倍；预取隐藏了 {1 - exposed[3] / without:.0%} 的等待。")  # fmt: skip
    lab.explain(
        "Freed parameters must come back for backward: one more all-gather of Ψ. A gather that was launched one unit ahead is done when it is needed.",
        "释放掉的参数在反向时必须取回：多一次 Ψ 的 all-gather。提前一个单元发起的聚集，用到时已经完成。",
        ("Stages 1 and 2 send what data parallelism sends: 2Ψ.", "第 1、2 级与数据并行发送同样多：2Ψ。"),
        (
            "Stage 3 gathers parameters once more: 3Ψ, hidden when they are asked for early.",
            "第 3 级多聚集一次参数：3Ψ，提前发起就能隐藏。",
        ),
    )
    lab.own_number(f"{sent[3] / sent[0]:.3g}×, {without / exposed[3]:.2g} times more waiting without prefetch.",
                   f"{sent[3] / sent[0]:.3g} 倍；不预取时等待多 {without / exposed[3]:.2g} 倍。")  # fmt: skip
