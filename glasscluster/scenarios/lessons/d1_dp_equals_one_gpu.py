"""D1: what to divide by when ranks hold different numbers of tokens."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


def program(gpu: Any, lengths: list[int]) -> dict[str, Any]:
    """Whole-number gradients, one a token; two ways to average them over ranks."""
    import torch

    mine = torch.arange(1, lengths[gpu.rank] + 1, dtype=torch.float64) * (gpu.rank + 1)
    totals = torch.tensor([float(mine.sum()), float(len(mine))], dtype=torch.float64)
    gpu.comm.all_reduce(totals, purpose="gradients")  # sum and count travel together; one division at the end
    means = torch.tensor([float(mine.mean())], dtype=torch.float64)
    gpu.comm.all_reduce(means, op="avg", purpose="gradients")
    return {"token_weighted": totals.tolist(), "mean_of_means": float(means)}


@lesson(
    "D1",
    title=("Data parallel equals one GPU", "数据并行等价于单卡"),
    topic=("data parallel", "数据并行"),
    question=(
        "Ranks hold sequences of different lengths. Is the mean of their means right?",
        "各 rank 的序列长度不同，平均值的平均值对吗？",
    ),
    formula=Formula("Eq 13", "Σ_r Σ_tokens g ÷ Σ_r tokens_r", "X", "derivation"),
    kills=(
        "“Averaging gradients is always right.” Only if every rank counts the same tokens; otherwise short ranks weigh too much.",
        "“对梯度取平均总是对的。”只有各 rank token 数相同时才对；否则短序列的 rank 权重过大。",
    ),
    card=Card(
        ("Your data-parallel loss differs from one GPU's. First suspect?", "数据并行的损失与单卡不同，先查什么？"),
        (
            "The normalisation: each rank divided by its own token count and then averaged. Sum losses and counts, divide once.",
            "归一化：每个 rank 先除以自己的 token 数再平均。应当对损失和计数求和，只除一次。",
        ),
        (
            "A mean of means weighs every rank equally, one device weighs every token equally. They agree only for equal counts, and padding, "
            "packing, masked targets or a short last batch break that. Gradient accumulation has the same trap over micro-batches. All-reduce the sums "
            "and the counts, divide in the optimizer's scale, and compare gradients, not losses: the loss can look fine.",
            "平均的平均对每个 rank 一视同仁，单卡则对每个 token 一视同仁。只有计数相等时两者一致；填充、拼接、掩码或最后的小批都会打破它。"
            "梯度累积在微批次上有同样的陷阱。应当 all-reduce 总和与计数，在优化器的缩放里除一次，并比较梯度而不是损失：损失可能看起来正常。",
        ),
        (
            ("Does clipping come before or after the division?", "裁剪在除法之前还是之后？"),
            ("And with gradient accumulation?", "梯度累积时呢？"),
        ),
    ),
)
def dp_equals_one_gpu(lab: Lab) -> None:
    """Four ranks with 2 to 16 tokens average whole-number gradients in two ways; then a GPT trains and is compared tensor by tensor."""
    from glasscluster.visualize.figures.plots import bars

    lengths = [2, 4, 8, 16]
    run = lab.run("averages", ("Two ways to average", "两种平均方式"), program, lengths, gpus=4)
    values = [i * (r + 1) for r, n in enumerate(lengths) for i in range(1, n + 1)]
    true = sum(values) / len(values)
    total, count = run.results[0]["token_weighted"]
    means = run.results[0]["mean_of_means"]
    lab.ask("By how many percent is the mean of means off?", "平均的平均偏差百分之几？", 100 * (means / true - 1), "%")
    lab.check("sum over all tokens", sum(values), total, "Eq 13", unit="gradient")
    lab.check("tokens over all ranks", sum(lengths), count, "Eq 13", unit="tokens")
    trained = lab.train("dp", ("A GPT, data parallel", "数据并行的 GPT"), dp=4, global_batch=8)
    lab.check("largest gradient difference of the GPT from one device", 0, trained.comparison["max_rel_grad_diff"], "Eq 13",
              unit="relative", tolerance=1e-10)  # fmt: skip
    names = {
        "en": ("token weighted", "mean of means", "one device", "mean gradient"),
        "zh": ("按 token 加权", "平均的平均", "单卡", "平均梯度"),
    }
    lab.figure(
        ("Three averages", "三种平均"),
        lambda lang: bars([names[lang][2], names[lang][0], names[lang][1]], {names[lang][3]: [true, total / count, means]}, names[lang][3]),
    )
    lab.tell(
        f"Summing and dividing once gives {total / count:.6g}, as one device does; the mean of means gives {means:.6g}.",
        f"求和后只除一次得到 {total / count:.6g}，与单卡相同；平均的平均得到 {means:.6g}。",
    )
    lab.tell(
        f"The GPT's gradients differ from one device's by at most {trained.comparison['max_rel_grad_diff']:.1e}.",
        f"GPT 的梯度与单卡最多相差 {trained.comparison['max_rel_grad_diff']:.1e}。",
        "tab=checks&run=dp",
    )
    lab.conclude(f"The mean of means is off by {100 * (means / true - 1):.1f} %; sums divided once are exact.",
                 f"平均的平均偏差 {100 * (means / true - 1):.1f}%；求和后只除一次则完全准确。")  # fmt: skip
    lab.explain(
        "The rank with two tokens counts as much as the one with sixteen. Whole numbers make it visible: the right sum is equal to the last bit.",
        "只有两个 token 的 rank 与有十六个的权重相同。用整数可以看得很清楚：正确的和一位不差。",
        (
            "Sum over all tokens of all ranks, divided once by the global token count.",
            "对所有 rank 的所有 token 求和，再除一次全局 token 数。",
        ),
        ("The mean of means is right only when every rank has equally many tokens.", "只有各 rank 的 token 数相同时，均值的均值才正确。"),
    )
    lab.own_number(f"{100 * (means / true - 1):.1f} % off.", f"偏差 {100 * (means / true - 1):.1f}%。")
