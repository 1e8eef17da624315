"""E4: the pipeline bubble, predicted, run and timed."""

from __future__ import annotations

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


@lesson(
    "E4",
    title=("GPipe's bubble", "GPipe 的流水线气泡"),
    topic=("pipeline", "流水线并行"),
    question=("How much of the time do four pipeline stages stand idle?", "四级流水线有多少时间在空转？"),
    formula=Formula(
        "Eq 20", "Σ(f_s+b_s) + (m−1)(max f_s + max b_s) + 2(p−1)c;  (p−1)/(m+p−1)", "V", "GPipe 1811.06965; Megatron SC21 §2.2"
    ),
    kills=(
        "“The bubble is (p−1)/m of the time.” That is idle over useful time; of the whole it is (p−1)/(m+p−1).",
        "“气泡占总时间的 (p−1)/m。”那是空闲除以有效时间；占总时间应为 (p−1)/(m+p−1)。",
    ),
    card=Card(
        ("What is the pipeline bubble and how do you shrink it?", "什么是流水线气泡？怎样减小？"),
        (
            "While the pipeline fills and drains, stages wait: (p−1) slots of m+p−1. More micro-batches shrink it, at the price of memory.",
            "流水线填充和排空时各级在等待：m+p−1 个时隙里有 p−1 个。增加微批次可减小气泡，代价是显存。",
        ),
        (
            "With equal stages a step takes (m+p−1)(f+b), useful is m(f+b): idle share (p−1)/(m+p−1), or (p−1)/m over useful. Real stages "
            "are unequal: the slowest one sets the pace, and each hop adds its latency twice. GPipe keeps m micro-batches of activations; "
            "1F1B has the same bubble with min(m, p−s). Interleaving divides the bubble by v; zero-bubble schedules fill it with weight "
            "gradients.",
            "各级相等时一步为 (m+p−1)(f+b)，有效 m(f+b)：空闲占比 (p−1)/(m+p−1)，相对有效时间 (p−1)/m。实际各级不等：最慢的一级决定节奏，"
            "每一跳再加两倍延迟。GPipe 要保存 m 个微批次的激活；1F1B 气泡相同但只需 min(m, p−s)。"
            "交错流水把气泡除以 v，零气泡调度用权重梯度填补。",
        ),
        (
            ("Does 1F1B shrink the bubble?", "1F1B 会减小气泡吗？"),
            ("Where does the last stage's extra time come from?", "最后一级多出来的时间来自哪里？"),
        ),
    ),
)
def gpipe_bubble(lab: Lab, p: int = 4, m: int = 8, hidden: int = 128) -> None:
    """Real stages of a GPT run GPipe's schedule; the bubble is what their recorded idle time adds up to."""
    from glasscluster.strategies.plan import make_model
    from glasscluster.visualize.figures.plots import lines

    model = make_model("tiny", layers=p, hidden=hidden, seq=64)
    trained = lab.train("gpipe", ("GPipe", "GPipe"), model=model, steps=1, pp=p, schedule="gpipe", global_batch=m)
    other = lab.train("1f1b", ("1F1B", "1F1B"), model=model, steps=1, pp=p, schedule="1f1b", global_batch=m)
    bubble, peaks = trained.timeline.bubble(), [max(b for b, _ in t.run.peak_memory()) / 1e6 for t in (trained, other)]
    ideal = (p - 1) / (m + p - 1)
    lab.ask(
        f"{p} stages, {m} micro-batches, a real GPT: what percentage of all GPU time is idle between first forward and last backward?",
        f"{p} 级、{m} 个微批次、真实 GPT：从首个前向到最后一个反向，GPU 总时间的百分之几在空转？",
        100 * bubble["bubble_fraction"],
        "%",
    )
    sweep = [1, 2, 4, 8, 16, 32]
    found = []
    for n in sweep:
        run = lab.dry(model=model, pp=p, schedule="gpipe", global_batch=n)
        found.append(100 * run.timeline.bubble()["bubble_fraction"])
    theory = [100 * (p - 1) / (n + p - 1) for n in sweep]
    names = {"en": ("this GPT, as recorded", "equal stages: (p−1)/(m+p−1)", "micro-batches m", "bubble (%)"),
             "zh": ("这个 GPT（按记录）", "各级相等：(p−1)/(m+p−1)", "微批次 m", "气泡 (%)")}  # fmt: skip
    lab.figure(
        ("The bubble against the number of micro-batches", "气泡与微批次数"),
        lambda lang: lines({names[lang][0]: (sweep, found), names[lang][1]: (sweep, theory)}, *names[lang][2:], log_x=True),
    )
    formula = next(r for r in trained.checks if r["match"] == "virtual")
    lab.check("GPipe makespan, first F to last B", formula["predicted"], None, "Eq 20", simulated=formula["simulated"], unit="s",
              match="virtual", tolerance=1e-9)  # fmt: skip
    lab.tell(
        f"{p} ranks ran {m} micro-batches. The bubble is {bubble['bubble_fraction']:.1%} of the time and {bubble['bubble_over_ideal']:.1%} "
        f"over the useful time; equal stages and free messages would give {ideal:.1%}.",
        f"{p} 个 rank 跑了 {m} 个微批次。气泡占总时间 {bubble['bubble_fraction']:.1%}，相对有效时间 {bubble['bubble_over_ideal']:.1%}；"
        f"若各级相等且通信免费，应为 {ideal:.1%}。",
        "tab=timeline&run=gpipe",
    )
    lab.tell(
        f"1F1B on the same stages: bubble {other.timeline.bubble()['bubble_fraction']:.1%}; what it saves is memory, {peaks[1]:.2f} MB at the "
        f"fullest rank instead of {peaks[0]:.2f} MB.",
        f"同样的各级换成 1F1B：气泡 {other.timeline.bubble()['bubble_fraction']:.1%}；省下的是显存，最满的 rank 从 {peaks[0]:.2f} MB 降到 {peaks[1]:.2f} MB。",
        "tab=memory&run=1f1b",
    )
    lab.conclude(
        f"{bubble['bubble_fraction']:.1%} of the GPUs' time is bubble; the ideal pipeline has {ideal:.1%}.",
        f"GPU 时间的 {bubble['bubble_fraction']:.1%} 是气泡；理想流水线为 {ideal:.1%}。",
    )
    lab.explain(
        "The last stage also computes the head and the loss, so it is slowest and sets the pace: everybody else waits for it once per "
        "micro-batch. The rest of the bubble is filling and draining.",
        "最后一级还要计算输出头和损失，因此最慢并决定节奏：其他级在每个微批次都要等它。其余的气泡来自填充与排空。",
        ("Filling and draining cost p−1 slots, however many micro-batches there are.", "填充与排空总要 p−1 个时隙，与微批次数无关。"),
        ("The slowest stage sets the pace; unequal stages add to the bubble.", "最慢的一级决定节奏；各级不等会增加气泡。"),
    )
    lab.own_number(
        f"p = {p}, m = {m}: {bubble['bubble_fraction']:.1%} of the total.", f"p = {p}，m = {m}：占总时间 {bubble['bubble_fraction']:.1%}。"
    )
