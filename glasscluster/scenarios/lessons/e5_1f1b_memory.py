"""E5: 1F1B takes as long as GPipe and holds less."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


# fmt: off
@lesson(
    "E5",
    title=("1F1B saves memory", "1F1B 省的是显存"),
    topic=("pipeline", "流水线并行"),
    question=("Is 1F1B faster than GPipe?", "1F1B 比 GPipe 快吗？"),
    formula=Formula("Eq 22", "in flight on stage s: GPipe m, 1F1B min(m, p−s); Eq 20: both take (m+p−1)(f+b)", "X", "Megatron SC21 2104.04473 §2.2"),
    kills=("“1F1B shrinks the bubble.” With equal stages and free hops it is the same bubble to the last digit; what shrinks is what a stage holds.",
           "“1F1B 能减小气泡。”各级相等、通信免费时，气泡分毫不差；变小的是每一级持有的激活。"),
    card=Card(
        ("GPipe or 1F1B: what changes, and what does not?", "GPipe 与 1F1B：什么变了，什么没变？"),
        ("The time does not: (m+p−1)(f+b) for both. Stage s holds min(m, p−s) micro-batches instead of m, so m can grow, and that shrinks the bubble.",
         "时间不变：都是 (m+p−1)(f+b)。第 s 级持有 min(m, p−s) 份而不是 m 份激活，于是 m 可以加大，气泡由此变小。"),
        ("GPipe runs all forwards first, so every stage keeps m micro-batches for backward. 1F1B lets stage s warm up with p−s forwards and then alternates: a micro-batch is let go before the next comes in. "
         "The first stage holds most, p; the last 1. Both fill and drain in p−1 slots, so the bubble is (p−1)/(m+p−1) of the time. The gain is indirect: memory no longer limits m. "
         "Recomputation and 1F1B add up: what is held shrinks to the inputs of the layers.",
         "GPipe 先做完所有前向，所以每一级都要为反向保存 m 份激活。1F1B 让第 s 级先做 p−s 次前向，然后一前一后交替：下一个微批次进来之前先放掉一个。第一级最多，为 p 份；最后一级 1 份。"
         "两者的填充与排空都是 p−1 个时隙，气泡占总时间 (p−1)/(m+p−1)。收益是间接的：显存不再限制 m。重计算可与 1F1B 叠加：持有的只剩各层的输入。"),
        (("Which stage of 1F1B holds most, and what evens it out?", "1F1B 的哪一级持有最多？怎样拉平？"),
         ("What does 1F1B cost when a hop takes time?", "一跳需要时间时，1F1B 的代价是什么？")),
    ),
)
def memory_of_1f1b(lab: Lab, p: int = 4, m: int = 8, hidden: int = 64) -> None:
    """Equal stages run both schedules, then a GPT trains with both while every tensor that backward waits for is counted."""
    from glasscluster.scenarios.jobs import equal_stages
    from glasscluster.strategies.pipeline.schedules import gpipe, one_f_one_b
    from glasscluster.strategies.plan import make_model
    from glasscluster.visualize.figures.pipelines import Played, comparison_figure, held, staircase_figure
    from glasscluster.visualize.figures.plots import bars, lines

    theory = {"gpipe": gpipe, "1f1b": one_f_one_b}
    names = {"gpipe": "GPipe", "1f1b": "1F1B"}
    runs = {n: equal_stages.played(lab, n, (f"{names[n]}, equal stages", f"{names[n]}，各级相等"), n, p, m) for n in theory}
    shown = []
    for name, (run, _, _, drawn) in runs.items():
        for s in range(p):
            lab.check(f"{names[name]}: most micro-batches held by stage {s}", theory[name].predict_in_flight(p, m, s), max(held(drawn, s)[1]), "Eq 22", unit="micro-batches")
        lab.check(f"{names[name]}: time of a step, f = 1 ms, b = 2 ms", (m + p - 1) * 3e-3, None, "Eq 20", simulated=run.timeline.makespan, unit="s", match="virtual", tolerance=1e-9)
        shown.append(Played(f"<b>{names[name]}</b>: {run.timeline.makespan * 1e3:g} ms", drawn))
    lab.check("elements of gradients that are not m·n^S", 0, equal_stages.wrong_gradients((r, s) for r, s, *_ in runs.values()), "all ones: every element is known", unit="elements")

    model = make_model("tiny", layers=p, hidden=hidden, seq=64)
    trained = {n: lab.train(f"{n}-gpt", (f"{names[n]}, a GPT", f"{names[n]}，GPT"), model=model, steps=1, schedule=n, pp=p, global_batch=m) for n in theory}

    def activations(run: Any) -> list[int]:
        return [split["activations"] for _, split in run.peak_memory()]

    kept = {n: activations(t.run) for n, t in trained.items()}
    counts = [p, m, 2 * m, 4 * m]
    grown = {n: [activations(lab.dry(model=model, pp=p, schedule=n, global_batch=k)) for k in counts] for n in theory}
    one = [(b - a) / (counts[1] - counts[0]) for a, b in zip(*grown["gpipe"][:2], strict=True)]  # bytes of a micro-batch, by stage
    for s in range(p):
        lab.check(f"GPipe: bytes more on stage {s} for {3 * m} micro-batches more", one[s] * 3 * m, grown["gpipe"][3][s] - grown["gpipe"][1][s], "Eq 22: each micro-batch is held")
    lab.check(f"1F1B: bytes more on all stages for {3 * m} micro-batches more", 0, sum(grown["1f1b"][3]) - sum(grown["1f1b"][1]), "Eq 22: min(m, p−s) for m ≥ p")
    saved = [a - b for a, b in zip(kept["gpipe"], kept["1f1b"], strict=True)]
    for s in range(p):
        sent = model.seq * hidden * 4 if s else 0  # 1F1B is fullest in the middle, where the gradient it sent last may still be on its way
        lab.check(f"bytes that 1F1B holds less than GPipe, stage {s}", one[s] * (m - min(m, p - s)) - sent, saved[s], "Eq 22: m − min(m, p−s) micro-batches; a gradient on its way")
    ratio = sum(kept["gpipe"]) / sum(kept["1f1b"])
    lab.ask(f"{p} stages, {m} micro-batches: GPipe takes 33 ms. How many ms does 1F1B take?" if (p, m) == (4, 8) else f"{p} stages, {m} micro-batches, f = 1 ms, b = 2 ms: how many ms does 1F1B take?",
            f"{p} 级、{m} 个微批次：GPipe 用时 33 ms。1F1B 用多少 ms？" if (p, m) == (4, 8) else f"{p} 级、{m} 个微批次，f = 1 ms，b = 2 ms：1F1B 用多少 ms？",
            runs["1f1b"][0].timeline.makespan * 1e3, "ms")
    lab.figure(("The same bubble: both schedules as they ran, begun together", "相同的气泡：两种调度的实际运行，同时开始"), lambda lang: comparison_figure(shown, lang, "f = 1 ms, b = 2 ms"))
    lab.figure(("Micro-batches held by each rank, over time", "各 rank 持有的微批次数随时间的变化"), lambda lang: staircase_figure(shown, lang))
    axes = {"en": ("stage {}", "activations at the peak (MB), counted", "micro-batches m", "activations of the fullest stage (MB), counted"),
            "zh": ("第 {} 级", "峰值时的激活（MB，计数）", "微批次数 m", "最满一级的激活（MB，计数）")}
    lab.figure(("The GPT: activations of each stage at its peak", "GPT：各级峰值时的激活"),
               lambda lang: bars([axes[lang][0].format(s) for s in range(p)], {names[n]: [k / 1e6 for k in kept[n]] for n in theory}, axes[lang][1]))
    lab.figure(("The GPT: the fullest stage against the number of micro-batches", "GPT：最满的一级与微批次数"),
               lambda lang: lines({names[n]: (counts, [max(g) / 1e6 for g in grown[n]]) for n in theory}, *axes[lang][2:], log_x=True))
    lab.tell(f"Both take {runs['1f1b'][0].timeline.makespan * 1e3:g} ms: fill and drain are {p - 1} slots of {m + p - 1} either way.",
             f"两者都用 {runs['1f1b'][0].timeline.makespan * 1e3:g} ms：填充与排空都是 {m + p - 1} 个时隙中的 {p - 1} 个。", "tab=timeline&run=1f1b")
    lab.tell(f"In GPipe every stage comes to hold {m} micro-batches; in 1F1B stage s holds {p} − s, and lets one go before it takes another.",
             f"GPipe 中每一级都会持有 {m} 份激活；1F1B 中第 s 级持有 {p} − s 份，放掉一份才接下一份。", "tab=timeline&run=gpipe")
    lab.tell(f"The GPT: {sum(kept['gpipe']) / 1e6:.4g} MB of activations in GPipe, {sum(kept['1f1b']) / 1e6:.4g} MB in 1F1B, all stages together.",
             f"GPT：所有级合计，GPipe 的激活为 {sum(kept['gpipe']) / 1e6:.4g} MB，1F1B 为 {sum(kept['1f1b']) / 1e6:.4g} MB。", "tab=memory&run=1f1b-gpt")
    lab.tell(f"With {4 * m} micro-batches GPipe's fullest stage holds {max(grown['gpipe'][3]) / 1e6:.4g} MB; 1F1B's still {max(grown['1f1b'][3]) / 1e6:.4g} MB.",
             f"微批次增至 {4 * m} 个时，GPipe 最满的一级持有 {max(grown['gpipe'][3]) / 1e6:.4g} MB；1F1B 仍为 {max(grown['1f1b'][3]) / 1e6:.4g} MB。", "tab=memory&run=gpipe-gpt")
    lab.conclude(f"1F1B takes as long as GPipe and holds {ratio:.3g} times less.", f"1F1B 与 GPipe 用时相同，持有的激活少 {ratio:.3g} 倍。")
    lab.explain("Only the order changed: a backward comes as soon as it can, so its forward's tensors are let go sooner. No stage does less work or waits less.",
                "变的只是顺序：反向一能做就做，前向留下的张量就能早些释放。没有一级做得更少或等得更少。",
                ("Warm-up is p−s forwards; then every forward waits for a backward.", "预热为 p−s 次前向；此后每次前向之前先有一次反向。"),
                ("The bubble shrinks only by more micro-batches, which 1F1B's memory allows.", "只有增加微批次才能减小气泡，而 1F1B 的显存允许这样做。"))
    lab.own_number(f"{ratio:.3g}× less for p = {p}, m = {m}; the time is the same.", f"p = {p}，m = {m}：少 {ratio:.3g} 倍；时间相同。")
