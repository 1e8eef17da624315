"""L0: one training step on four GPUs, looked at."""

from __future__ import annotations

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


@lesson(
    "L0",
    title=("First run in five minutes", "五分钟跑通"),
    topic=("first steps", "入门"),
    question=("What does one training step on four GPUs look like?", "四块 GPU 上的一步训练是什么样子？"),
    formula=Formula("Eq 13", "Σ gradients ÷ global token count = one device's gradient", "X", "derivation; 1e-10 in float64"),
    kills=(
        "“GPUs are busy most of the time.” Look at the hatched parts: somebody waits for somebody in every step.",
        "“GPU 大部分时间都在忙。”看看阴影部分：每一步都有人在等人。",
    ),
    card=Card(
        ("Walk me through one data-parallel step.", "请讲一遍数据并行的一步。"),
        (
            "Every GPU has the whole model and its part of the batch: forward, backward, sum the gradients over GPUs, same optimizer step.",
            "每块 GPU 有完整模型和一部分数据：前向、反向、跨 GPU 求和梯度、执行相同的优化器更新。",
        ),
        (
            "Weights start equal. Forward and backward need no messages. As gradients become ready, buckets of them are all-reduced while earlier "
            "layers still compute; what does not fit behind backward is exposed. One division by the global token count, then every rank takes "
            "the same step, so weights stay equal without ever being sent.",
            "各卡权重相同。前向和反向不需要通信。梯度一就绪就按桶做 all-reduce，同时前面的层还在反向；没能被反向遮住的部分就是暴露的通信。"
            "除以全局 token 数一次，然后每卡做同样的更新，权重无需发送也保持一致。",
        ),
        (
            ("Which part of the step grows with more GPUs?", "增加 GPU 后哪一部分变长？"),
            ("Why divide once, at the end?", "为什么只在最后除一次？"),
        ),
    ),
)
def first_run(lab: Lab, gpus: int = 4, steps: int = 3) -> None:
    """Four ranks train a tiny GPT on real text with data parallelism; the last step is drawn."""
    trained = lab.train("dp", ("Data parallel", "数据并行"), steps=steps, dp=gpus, bucket=64 * 1024, global_batch=2 * gpus)
    line = trained.timeline
    busy = float(((line.end - line.start)[line.graph.lane == 0]).sum()) / (line.makespan * gpus)
    gap = max(line.all_gaps, key=lambda g: g.length)
    lab.ask("What percentage of the step does an average GPU compute?", "平均每块 GPU 在这一步里有百分之几的时间在计算？", 100 * busy, "%")
    compared = trained.comparison
    lab.check("largest gradient difference from one device", 0, compared["max_rel_grad_diff"], "Eq 13", unit="relative", tolerance=1e-10)
    lab.tell(
        f"{gpus} ranks, {steps} steps. An average GPU computes {busy:.1%} of the step's {line.makespan * 1e3:.3g} ms.",
        f"{gpus} 个 rank，{steps} 步。一步 {line.makespan * 1e3:.3g} ms 中平均每卡有 {busy:.1%} 在计算。",
        "tab=timeline",
    )
    lab.tell(
        f"The longest idle gap is rank {gap.rank}'s: {gap.length * 1e6:.3g} µs, {gap.cause}" + (f" on {gap.axis}." if gap.axis else "."),
        f"最长的空闲在 rank {gap.rank}：{gap.length * 1e6:.3g} µs，原因 {gap.cause}" + (f"（{gap.axis}）。" if gap.axis else "。"),
        "tab=timeline",
    )
    lab.conclude(
        f"An average GPU computes {busy:.1%} of the step; the rest is waiting, and every wait has a cause.",
        f"平均每卡有 {busy:.1%} 的时间在计算；其余都在等待，而每次等待都有原因。",
    )
    lab.explain(
        "This model is tiny, so a message's latency weighs as much as a layer. Hover over a hatched gap to see what it waited for; press j to "
        "walk through the events.",
        "这个模型很小，一条消息的延迟与一层的计算相当。把鼠标放在阴影上看它在等什么；按 j 逐个查看事件。",
        (
            "Messages are waited for: their latency is as long as a layer of so small a model.",
            "消息要等：模型这么小，一条消息的延迟与一层计算一样长。",
        ),
        ("Idle time has a cause that can be named: another rank, or the wire.", "每段空闲都有可指明的原因：另一个 rank，或者线路。"),
    )
    lab.own_number(f"{busy:.1%} busy on {gpus} GPUs.", f"{gpus} 块 GPU，忙碌 {busy:.1%}。")
