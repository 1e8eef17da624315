"""E8: if the weights' gradients can wait, they fill the holes."""

from __future__ import annotations

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


# fmt: off
@lesson(
    "E8",
    title=("Zero bubble and DualPipe", "零气泡"),
    topic=("pipeline", "流水线并行"),
    question=("What if the weights' gradients can wait?", "如果权重梯度可以等一等呢？"),
    formula=Formula("Eq 24", "largest span less work, T_B the input's part: 1F1B (p−1)(T_F+T_B+T_W), ZB-H1 (p−1)(T_F+T_B−T_W), ZB-H2 (p−1)(T_F+T_B−2T_W)", "V", "Zero bubble 2401.10241 §2; Eq 25 DualPipe"),
    kills=("“Bubbles are unavoidable in synchronous training.” Only the input's gradient is on the way back; the weights' part of the backward has no one waiting for it.",
           "“同步训练里气泡不可避免。”只有输入的梯度在返回的路上；反向里权重的那一部分没有人在等。"),
    card=Card(
        ("How does zero-bubble pipelining get rid of the bubble?", "零气泡流水线如何消除气泡？"),
        ("Backward is two products: the input's gradient I, which the stage before waits for, and the weights' W, which nobody does. W moves into the holes.",
         "反向是两次矩阵乘：输入梯度 I（前一级在等）和权重梯度 W（没有人等）。把 W 移到空隙里。"),
        ("With F = I = W, 1F1B's bubble is 3(p−1) of them. ZB-H1 sends I back before doing W: p−1, at 1F1B's memory. ZB-H2 warms up with 2p−1 forwards and its stages' spans are full: 0, at twice the memory; the makespan keeps the p−1 forwards by which the last "
         "stage starts late, unless steps run into each other, which needs the gradient norm to be checked afterwards. ZB-V folds the model into a V of two chunks a rank: 0 at 1F1B's memory, with twice the hops. DualPipe lets a forward and a backward "
         "share a slot, so that one's communication hides behind the other's compute; folded (DualPipe-V) it needs no second copy of the weights. What W needs (its inputs and dY) stays in memory until it runs.",
         "当 F = I = W 时，1F1B 的气泡是 3(p−1) 个单位。ZB-H1 先送回 I 再做 W：p−1，显存与 1F1B 相同。ZB-H2 预热 2p−1 次前向，各级自己的跨度是满的：0，显存加倍；总时长里仍有最后一级晚开始的 p−1 次前向，"
         "除非各步首尾相接，这就要事后检查梯度范数。ZB-V 把模型折成 V 形、每个 rank 两块：0，显存与 1F1B 相同，跳数加倍。DualPipe 让一次前向和一次反向共用一个时隙，使一方的通信藏在另一方的计算后面；"
         "折叠的 DualPipe-V 不需要第二份权重。W 所需的输入和 dY 要留在显存里直到执行。"),
        (("What must stay in memory between I and W?", "I 与 W 之间显存里要留什么？"), ("Why is ZB-H2's makespan bubble not zero?", "为什么 ZB-H2 的总时长气泡不是零？")),
    ),
)
def zero_bubble(lab: Lab, p: int = 4, m: int = 8) -> None:
    """Five schedules really run on equal stages with F = I = W; a GPT trained with two of them is checked against one device."""
    from glasscluster.scenarios.jobs import equal_stages
    from glasscluster.strategies.pipeline.schedules import dualpipe_v, predict_live, zb_h1, zb_h2, zb_v
    from glasscluster.strategies.plan import make_model
    from glasscluster.visualize.figures.pipelines import Played, comparison_figure, held
    from glasscluster.visualize.figures.plots import bars
    from glasscluster.visualize.page.words import word

    f = 1e-3  # F, I and W of a rank's whole share
    names = {"1f1b": "1F1B", "zb-h1": "ZB-H1", "zb-h2": "ZB-H2", "zb-v": "ZB-V", "dualpipe-v": "DualPipe-V"}
    chunks = {n: 2 if n in ("zb-v", "dualpipe-v") else 1 for n in names}
    g = f / 2
    spans = {"1f1b": (p - 1) * 3 * f, "zb-h1": zb_h1.predict_span_bubble(p, m, f, 2 * f, f), "zb-h2": zb_h2.predict_span_bubble(p, m, f, 2 * f, f),
             "zb-v": zb_v.predict_span_bubble(p, m, g, 2 * g, g), "dualpipe-v": dualpipe_v.predict_bubble(p, m, g, 2 * g, g)}
    runs, shown, found, most = {}, [], {}, {}
    for name, said in names.items():
        v = chunks[name]
        run, _schedule, judged, drawn = runs[name] = equal_stages.played(lab, name, (said, said if v == 1 and name != "1f1b" else f"{said} 调度"), name, p, m, v, f)
        line = run.timeline
        spent = [max(b.end for b in drawn if b.rank == r) - min(b.begin for b in drawn if b.rank == r) for r in range(p)]
        largest = spent.index(max(spent))
        found[name] = spent[largest] - sum(b.end - b.begin for b in drawn if b.rank == largest)
        if name != "dualpipe-v":  # its slots of two really run one after the other: its formula is checked on the list, below
            lab.check(f"{said}: largest span less its work", spans[name], found[name], "Eq 24, Eq 25", unit="s", tolerance=1e-12)
        lab.check(f"{said}: time of a step by its list", judged.makespan, None, "the list, played", simulated=line.makespan, unit="s", match="virtual", tolerance=1e-9)
        live = predict_live(name, p, m, v)
        for r in range(p):
            lab.check(f"{said}: chunks held at most by rank {r}", live[r], run.results[r]["live"], "Eq 22", unit="chunks")
        most[name] = max(max(held(drawn, r)[1]) for r in range(p)) / v
        shown.append((f"<b>{said}</b>: {line.makespan * 1e3:g} ms", f"{found[name] / f:.3g} F", drawn))
    pairs = runs["dualpipe-v"][1].validate(g, 2 * g, 0.0, g)
    lab.check("1F1B over ZB-H1: largest span less its work", 3.0, None, "Eq 24", simulated=found["1f1b"] / found["zb-h1"], unit="×", match="virtual", tolerance=1e-9)
    lab.check("DualPipe-V, slots of two as written: largest span less its work", spans["dualpipe-v"], None, "Eq 25: (p−1)(F&B + B − 3W)", simulated=pairs.stage_span_bubble, unit="s", match="virtual", tolerance=1e-9)
    lab.check("elements of gradients that are not m·n^S", 0, equal_stages.wrong_gradients((r, s) for r, s, *_ in runs.values()), "all ones: every element is known", unit="elements")
    model = make_model("tiny", layers=2 * p, hidden=32, seq=32)
    for name in ("zb-h1", "dualpipe-v"):
        lab.train(f"{name}-gpt", (f"A GPT, {names[name]}", f"GPT，{names[name]}"), model=model, steps=2, pp=p, schedule=name, global_batch=m, compared=False)
    lab.ask(f"{p} stages, F = I = W: 1F1B's bubble is {found['1f1b'] / f:.0f} F. How many F are left if W waits, at the same memory (ZB-H1)?",
            f"{p} 级，F = I = W：1F1B 的气泡是 {found['1f1b'] / f:.0f} 个 F。让 W 等待、显存不变（ZB-H1），还剩几个 F？", found["zb-h1"] / f, "F")
    axes = {"en": ("span bubble (F)", "makespan less work (F)", "in units of F"), "zh": ("级跨度气泡 (F)", "总时长减有效时间 (F)", "以 F 为单位")}
    less = {n: (r[0].timeline.makespan - 3 * m * f) / f for n, r in runs.items()}
    lab.figure(("Five schedules as they ran, F = I = W: green is the weights' part", "五种调度的实际运行，F = I = W：绿色为权重部分"), 
               lambda lang: comparison_figure([Played(f"{title}, {word('span_bubble', lang, x=x)}", drawn) for title, x, drawn in shown], lang, "F = I = W = 1 ms"))
    lab.figure(("Two bubbles: in the largest stage's own span, and in the makespan", "两种气泡：最大一级自己的跨度内，与总时长内"),
               lambda lang: bars(list(names.values()), {axes[lang][0]: [found[n] / f for n in names], axes[lang][1]: [less[n] for n in names]}, axes[lang][2]))
    held_axis = {"en": "micro-batches held at most by a rank", "zh": "一个 rank 最多持有的微批次"}
    lab.figure(("What it costs: activations held by the fullest rank", "代价：最满的 rank 持有的激活"), lambda lang: bars(list(names.values()), {held_axis[lang]: [most[n] for n in names]}, held_axis[lang]))
    lab.tell(f"Span bubble in F: {', '.join(f'{names[n]} {found[n] / f:.2g}' for n in names)}.", f"级跨度气泡（以 F 计）：{'，'.join(f'{names[n]} {found[n] / f:.2g}' for n in names)}。", "tab=timeline&run=zb-h1")
    lab.tell(f"ZB-H1 takes {runs['zb-h1'][0].timeline.makespan * 1e3:g} ms instead of {runs['1f1b'][0].timeline.makespan * 1e3:g} and holds {most['zb-h1']:g} micro-batches at most, as 1F1B does.",
             f"ZB-H1 用 {runs['zb-h1'][0].timeline.makespan * 1e3:g} ms，1F1B 为 {runs['1f1b'][0].timeline.makespan * 1e3:g} ms；最多持有 {most['zb-h1']:g} 份激活，与 1F1B 相同。", "tab=timeline&run=zb-h1")
    lab.tell(f"ZB-H2's stages are never idle in their own span, but hold {most['zb-h2']:g}; its makespan still has {less['zb-h2']:.3g} F of waiting.",
             f"ZB-H2 的各级在自己的跨度内从不空闲，但持有 {most['zb-h2']:g} 份；总时长里仍有 {less['zb-h2']:.3g} 个 F 的等待。", "tab=timeline&run=zb-h2")
    lab.tell(f"ZB-V folds the model: no span bubble with {most['zb-v']:g} held. DualPipe-V's slots run F, then B, here: {found['dualpipe-v'] / f:.3g} F.",
             f"ZB-V 把模型折叠：没有级跨度气泡，持有 {most['zb-v']:g} 份。这里 DualPipe-V 的时隙先 F 后 B 地执行：{found['dualpipe-v'] / f:.3g} 个 F。", "tab=timeline&run=zb-v")
    lab.conclude(f"Letting W wait cuts the bubble from {found['1f1b'] / f:.0f} F to {found['zb-h1'] / f:.0f} F at the same memory, and to 0 with ZB-H2 or ZB-V.",
                 f"让 W 等待，显存不变时气泡从 {found['1f1b'] / f:.0f} 个 F 降到 {found['zb-h1'] / f:.0f} 个 F；用 ZB-H2 或 ZB-V 可到 0。")
    lab.explain("Only I is on the chain from the last stage to the first. W depends on its own I and nobody depends on W before the optimizer, so it goes where a rank would wait.",
                "从最后一级到第一级的链上只有 I。W 只依赖自己的 I，优化器之前没有人依赖 W，所以它放在 rank 本来要等待的地方。",
                ("Backward is two matrix products of the same size; one of them can wait.", "反向是两次同样大小的矩阵乘，其中一次可以等。"),
                ("What W needs stays in memory until it has run.", "W 所需的张量要留到它执行完。"))
    lab.own_number(f"{found['1f1b'] / f:.0f} F → {found['zb-h1'] / f:.0f} F → 0 for p = {p}.", f"p = {p}：{found['1f1b'] / f:.0f} 个 F → {found['zb-h1'] / f:.0f} 个 F → 0。")
