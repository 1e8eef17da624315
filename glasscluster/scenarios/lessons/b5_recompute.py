"""B5: memory bought with time, and how much of each."""

from __future__ import annotations

import math
from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson

GIB = 1024**3


@lesson(
    "B5",
    title=("Recompute", "重计算"),
    topic=("one GPU", "单卡"),
    question=("What is the cheapest way to halve the memory of activations?", "把激活显存减半，最便宜的办法是什么？"),
    formula=Formula("Eq 29, Eq 17", "peak ⌈n/k⌉C + kA;  best k ≈ √(nC/A);  full: 8 instead of 6 FLOPs a parameter and token", "X", "Chen 1604.06174; Korthikanti 2205.05198 §5"),
    kills=(
        "“Full recomputation doubles a step, and √n segments are always best.” It adds one forward of three passes' worth, and √n holds only where a layer keeps no more than its input.",
        "“全部重算使一步加倍，而且分 √n 段总是最好。”它只在相当于三次前向的计算上再加一次前向；√n 只在一层保留的不多于其输入时成立。",
    ),
    card=Card(
        ("What does activation recomputation cost, and which kind would you choose?", "激活重计算的代价是什么？你会选哪一种？"),
        (
            "Full keeps a layer's input, 2sbh instead of 34sbh + 5as²b, for a third more FLOPs at most. Selective drops only the attention core, the s² part, for a few percent of the FLOPs. With FlashAttention that part is gone already.",
            "全部重算只保留层的输入，2sbh 代替 34sbh + 5as²b，FLOPs 最多多三分之一。选择性重算只丢掉注意力核心（s² 部分），FLOPs 只多几个百分点。用 FlashAttention 时这部分本来就没有。",
        ),
        (
            "A segment of k layers keeps its input C; when its backward comes, its forward runs again and keeps kA for a moment: ⌈n/k⌉C + kA. The best k is √(nC/A): with C = 2sbh and A = 34sbh, n = 96, it is 2, "
            "and √96 would hold twice as much. The price is one more forward, 8 instead of 6 FLOPs a parameter and token. Model FLOPs and so MFU do not count it, HFU does. "
            "Tensor-parallel all-reduces run again as well, ZeRO-3 needs the parameters anyway, and dropout must draw the same mask.",
            "k 层一段，只保留输入 C；轮到它反向时重跑前向，暂时保留 kA：⌈n/k⌉C + kA。最佳 k 为 √(nC/A)：C = 2sbh、A = 34sbh、n = 96 时是 2，而 √96 要多占一倍。"
            "代价是多一次前向：每参数每 token 8 而不是 6 FLOPs。模型 FLOPs 与 MFU 不计它，HFU 计。张量并行的 all-reduce 也要重做，ZeRO-3 本来就要聚集参数，dropout 必须得到同样的掩码。",
        ),
        (
            ("Why does MFU fall while HFU does not?", "为什么 MFU 下降而 HFU 不降？"),
            ("What happens to dropout when a layer runs again?", "层重新运行时 dropout 怎么办？"),
        ),
    ),
)  # fmt: skip
def recompute(lab: Lab, layers: int = 8, hidden: int = 64, seq: int = 192) -> None:
    """The same training five times, keeping less and less; then every segment length on shapes, to find the best by trying all."""
    import numpy as np

    from glasscluster.sim.recording.events import CATEGORIES
    from glasscluster.strategies.judge.activations import predict
    from glasscluster.strategies.memory.recompute import best_every, predict_peak
    from glasscluster.strategies.plan import make_model
    from glasscluster.visualize.figures.plots import lines

    model = make_model("tiny", layers=layers, hidden=hidden, seq=seq, attention="unfused", dropout=0.1, vocab=64)
    options: dict[str, dict[str, Any]] = {"none": {}, "selective": {"recompute": "selective"}}
    options |= {f"full{k}": {"recompute": "full", "recompute_every": k} for k in range(1, layers + 1) if layers % k == 0}
    titles = {"none": ("Keep everything", "全部保留"), "selective": ("Selective", "选择性重算")}
    common: dict[str, Any] = {"global_batch": 2, "precision": "fp32"}

    def most(run: Any) -> int:
        log = np.asarray(run.graph.memory[0]["log"])
        return int(np.cumsum(log[log[:, 1] == CATEGORIES.index("activations"), 2]).max())

    runs = {}
    for key, chosen in options.items():
        k = chosen.get("recompute_every")
        title = titles.get(key, (f"Full, {k} a segment", f"全部重算，每段 {k} 层"))
        runs[key] = lab.train(key, title, model=model, steps=1, checked=key in ("none", "selective", "full2"), **common, **chosen).run
    peak, time = {k: most(r) for k, r in runs.items()}, {k: r.timeline.makespan for k, r in runs.items()}
    c, kept = 4 * seq * hidden, predict(seq, 1, hidden, model.heads, w=4) + 16 * seq
    lengths = [int(k.removeprefix("full")) for k in options if k.startswith("full")]
    for k in lengths[:-1]:
        lab.check(f"peak with {k} a segment above {layers} a segment", predict_peak(layers, k, c, kept) - predict_peak(layers, layers, c, kept),
                  peak[f"full{k}"] - peak[f"full{layers}"], "Eq 29; A from Eq 17 and the norms' statistics")  # fmt: skip
    rule = min(lengths, key=lambda k: abs(k - best_every(layers, c, kept)))
    tried = min(lengths, key=lambda k: peak[f"full{k}"])
    lab.check("best segment length: by √(nC/A) and by trying all", rule, tried, "Chen 1604.06174 §4", unit="layers")
    half = [k for k in options if peak[k] <= peak["none"] / 2]
    cheapest = min(half, key=lambda k: time[k])
    extra = 100 * (time[cheapest] / time["none"] - 1)
    lab.ask(f"{layers} layers, unfused attention: the cheapest kind that at least halves activations takes how many percent more time?",
            f"{layers} 层，未融合的注意力：至少减半激活的最便宜方式，要多花百分之几的时间？", extra, "%")  # fmt: skip
    n, gc = 96, 2.0 * 2048 * 12288 / GIB
    span = [k for k in (1, 2, 3, 4, 6, 8, 12, 24, 48, 96) if n % k == 0]
    big = {k: predict_peak(n, k, gc, 17 * gc) for k in span}
    best = min(range(1, n + 1), key=lambda k: predict_peak(n, k, gc, 17 * gc))
    lab.check(
        "GPT-3's best segment length: by the rule and by trying all",
        round(best_every(n, 1, 17)),
        best,
        "Eq 29: n = 96, C = 2sbh, A = 34sbh",
        unit="layers",
    )
    names = {"en": ("keep everything", "selective", "full, k layers a segment", "most activations at once (MB)", f"time of a step (ms, {lab.hardware})"),
             "zh": ("全部保留", "选择性重算", "全部重算，每段 k 层", "激活最多时（MB）", f"一步的时间（ms，{lab.hardware}）")}  # fmt: skip

    def pareto(lang: str) -> Any:
        at = {k: (peak[k] / 1e6, time[k] * 1e3) for k in options}
        full = [f"full{k}" for k in lengths]
        shown = {names[lang][0]: ([at["none"][0]], [at["none"][1]]), names[lang][1]: ([at["selective"][0]], [at["selective"][1]])}
        shown[names[lang][2]] = ([at[k][0] for k in full], [at[k][1] for k in full])
        figure = lines(shown, *names[lang][3:]).update_xaxes(rangemode="tozero")
        for k in lengths:
            figure.add_annotation(x=at[f"full{k}"][0], y=at[f"full{k}"][1], text=f"k={k}", showarrow=False, yshift=18)
        return figure

    lab.figure(("Memory against time", "显存与时间"), pareto)
    axes = {"en": ("⌈n/k⌉C + kA", "checkpoints ⌈n/k⌉C", "one segment kA", "k, layers a segment", "GiB a GPU"),
            "zh": ("⌈n/k⌉C + kA", "检查点 ⌈n/k⌉C", "一段 kA", "每段层数 k", "每卡 GiB")}  # fmt: skip
    terms = (list(big.values()), [n / k * gc for k in span], [17 * k * gc for k in span])

    def two_terms(lang: str) -> Any:
        figure = lines(
            dict(zip(axes[lang], [(span, t) for t in terms], strict=False)), *axes[lang][3:], log_x=True, log_y=True
        ).update_yaxes(dtick=1)
        for k in (best, 12):
            figure.add_annotation(x=math.log10(k), y=math.log10(big[k]), text=f"k = {k}: {big[k]:.1f} GiB", showarrow=True, ay=-36, ax=-10)
        return figure

    lab.figure(
        (
            "96 layers of GPT-3 with flash attention, one sequence: the two terms of Eq 29",
            "96 层 GPT-3，flash 注意力，一条序列：Eq 29 的两项",
        ),
        two_terms,
    )
    slow = {k: 100 * (time[k] / time["none"] - 1) for k in ("selective", "full1")}
    work = {k: 100 * (int(runs[k].graph.flops.sum()) / int(runs["none"].graph.flops.sum()) - 1) for k in slow}
    lab.tell(f"Keeping everything needs {peak['none'] / 1e6:.2f} MB of activations; selective {peak['selective'] / 1e6:.2f}, full with {tried} a segment {peak[f'full{tried}'] / 1e6:.2f}.",
             f"全部保留需要 {peak['none'] / 1e6:.2f} MB 激活；选择性 {peak['selective'] / 1e6:.2f}，全部重算（每段 {tried} 层）{peak[f'full{tried}'] / 1e6:.2f}。", "tab=memory&run=full2")  # fmt: skip
    lab.tell(f"Full recomputation runs {work['full1']:.1f} % more FLOPs and makes a step {slow['full1']:.1f} % longer, not 100 %; selective {work['selective']:.1f} % and {slow['selective']:.1f} %, because softmax moves bytes, not FLOPs.",
             f"全部重算多 {work['full1']:.1f} % FLOPs，一步延长 {slow['full1']:.1f} %，而不是 100 %；选择性重算为 {work['selective']:.1f} % 与 {slow['selective']:.1f} %，因为 softmax 搬的是字节而不是 FLOPs。",
             "tab=timeline&run=full1")  # fmt: skip
    lab.tell(
        f"One segment of all {layers} layers saves nothing: when its backward comes, everything is there again.",
        f"把 {layers} 层作为一段不省显存：轮到反向时，一切又都在了。",
        f"tab=memory&run=full{layers}",
    )
    lab.conclude(f"At least half of the activations go for {extra:.1f} % more time.", f"多花 {extra:.1f} % 的时间，激活至少减半。")
    lab.explain("Between forward and backward only the segments' inputs are alive, and during backward one segment in full. What runs again is a forward, a third of forward and backward.",
                "前向与反向之间只有各段的输入存活，反向时再加上完整的一段。重跑的是一次前向，为前向加反向的三分之一。",
                ("Short segments keep many inputs, long ones a large segment: the best k balances n/k·C and kA.", "段短则输入多，段长则一段大：最佳 k 使 n/k·C 与 kA 平衡。"),
                ("A layer keeps far more than its input, so the best k is small.", "一层保留的远多于其输入，所以最佳 k 很小。"))  # fmt: skip
    lab.own_number(
        f"{extra:.1f} % more time for {peak['none'] / peak[cheapest]:.1f} times less activations.",
        f"多 {extra:.1f} % 的时间，激活减到 1/{peak['none'] / peak[cheapest]:.1f}。",
    )
