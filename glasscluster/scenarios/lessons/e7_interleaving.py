"""E7: more chunks a rank: the bubble shrinks v-fold, messages and memory grow."""

from __future__ import annotations

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


# fmt: off
@lesson(
    "E7",
    title=("Interleaving", "交错流水"),
    topic=("pipeline", "流水线并行"),
    question=("Four chunks a rank instead of one: what becomes of the bubble, and of memory?", "每个 rank 从一块变成四块：气泡如何？显存如何？"),
    formula=Formula("Eq 21", "bubble over ideal (p−1)/(vm); messages 2m(pv−1); Eq 22: chunks held min(mv, 2(p−r−1)+(v−1)p+1)", "V", "Megatron SC21 2104.04473 §2.2.2"),
    kills=("“A free lunch.” Messages grow (pv−1)/(p−1)-fold and the first rank holds 1+(p−1)/(pv) times what 1F1B holds.",
           "“免费的午餐。”消息数变为 (pv−1)/(p−1) 倍，第一个 rank 持有的激活是 1F1B 的 1+(p−1)/(pv) 倍。"),
    card=Card(
        ("What does interleaving buy, and what does it cost?", "交错流水得到什么，付出什么？"),
        ("With v chunks a rank the pipeline fills in the time of a chunk: the bubble is a v-th, (p−1)/(vm) over ideal. It sends v times as much and holds a little more.",
         "每个 rank 有 v 块时，流水线在一块的时间内就能填充：气泡为 1/v，相对理想时间 (p−1)/(vm)。通信约为 v 倍，持有的激活略多。"),
        ("Layers are dealt out in a loop: rank r has stages r, r+p, r+2p, … Micro-batches go in rounds of p through the first chunk, then the second, and so on, so p must divide m. Fill and drain take (p−1) chunk times instead of stage times. "
         "Every chunk boundary is a message: 2m(pv−1) against 2m(p−1), which is why it wants fast links, and why Megatron-LM keeps it for p2p over the network only with enough micro-batches. Live: min(mv, 2(p−r−1)+(v−1)p+1) chunks "
         "of a v-th each; on the first rank 1+(p−1)/(pv) of 1F1B's p micro-batches. Breadth-first (looped BFS) has the same bubble for any m ≥ p and holds all m.",
         "层按环分配：rank r 拥有第 r、r+p、r+2p…… 级。微批次以 p 个为一轮，先过第一块，再过第二块，所以 p 要整除 m。填充与排空是 p−1 个块的时间，而不是级的时间。"
         "每个块边界都是一条消息：2m(pv−1) 对 2m(p−1)，因此需要快的链路和足够多的微批次。在途：min(mv, 2(p−r−1)+(v−1)p+1) 块，每块为 1/v；第一个 rank 是 1F1B 的 p 份的 1+(p−1)/(pv) 倍。"
         "广度优先（looped BFS）对任何 m ≥ p 有相同的气泡，但持有全部 m 份。"),
        (("Why must p divide m?", "为什么 p 要整除 m？"), ("At which hop does v = 4 lose to v = 1?", "一跳多长时，v = 4 会输给 v = 1？")),
    ),
)
def interleaving(lab: Lab, p: int = 4, m: int = 8) -> None:
    """The same work in one, two and four chunks a rank really runs; a GPT in two chunks is checked against one device."""
    from glasscluster.scenarios.jobs import equal_stages
    from glasscluster.strategies.pipeline.schedules import interleaved, one_f_one_b
    from glasscluster.strategies.plan import make_model
    from glasscluster.visualize.figures.pipelines import Played, comparison_figure, held
    from glasscluster.visualize.figures.plots import bars, lines
    from glasscluster.visualize.page.words import word

    chunks, shown, over, most, sent = (1, 2, 4), [], [], [], []
    runs = {}
    for v in chunks:
        name = "1f1b" if v == 1 else "interleaved"
        run, _schedule, judged, drawn = runs[v] = equal_stages.played(lab, f"v{v}", (f"v = {v}", f"v = {v}（每个 rank {v} 块）"), name, p, m, v)
        ideal = (one_f_one_b.predict_bubble(p, m) if v == 1 else interleaved.predict_bubble(p, m, v) or (0.0, 0.0))[1]
        bubble = run.timeline.bubble()["bubble_over_ideal"]
        lab.check(f"v = {v}: bubble over ideal", ideal, None, "Eq 21", simulated=bubble, unit="of the work", match="virtual", tolerance=1e-9)
        lab.check(f"v = {v}: time of a step by its list", judged.makespan, None, "the list, played", simulated=run.timeline.makespan, unit="s", match="virtual", tolerance=1e-9)
        lab.check(f"v = {v}: messages", interleaved.predict_messages(p, m, v), run.graph.count("send"), "Eq 21", unit="messages")
        for r in range(p):
            live = one_f_one_b.predict_in_flight(p, m, r) if v == 1 else interleaved.predict_in_flight(p, m, v, r)
            lab.check(f"v = {v}: chunks held at most by rank {r}", live, max(held(drawn, r)[1]), "Eq 22", unit="chunks")
        over.append(bubble)
        most.append(max(held(drawn, 0)[1]) / v)
        sent.append(run.graph.count("send"))
        shown.append((f"<b>v = {v}</b>: {run.timeline.makespan * 1e3:g} ms", f"{bubble:.3%}", drawn))
    for v, factor in zip(chunks[1:], most[1:], strict=True):
        lab.check(f"v = {v}: held by rank 0 over 1F1B's", 1 + (p - 1) / (p * v), factor / most[0], "Eq 22: 1 + (p−1)/(pv)", unit="×", tolerance=1e-12)
    lab.check("elements of gradients that are not m·n^S", 0, equal_stages.wrong_gradients((r, s) for r, s, *_ in runs.values()), "all ones: every element is known", unit="elements")
    model = make_model("tiny", layers=2 * p, hidden=32, seq=32)
    lab.train("gpt", ("A GPT in two chunks a rank", "每个 rank 两块的 GPT"), model=model, steps=2, pp=p, virtual_stages=2, schedule="interleaved", global_batch=m, compared=False)
    lab.ask(f"{p} ranks, {m} micro-batches: 1F1B idles {over[0]:.1%} over its work. How many percent with {chunks[-1]} chunks a rank?",
            f"{p} 个 rank、{m} 个微批次：1F1B 的空闲相对有效时间为 {over[0]:.1%}。每个 rank {chunks[-1]} 块时为百分之几？", 100 * over[-1], "%")

    counts = [p * k for k in (1, 2, 4, 8)]
    swept = {v: [100 * (interleaved.predict_bubble(p, k, v) or (0, 0))[1] for k in counts] for v in chunks}
    hops = [k * 0.05e-3 for k in range(11)]
    slow = {v: [runs[v][0].replay(equal_stages.machine(1e-3 / v, c)).makespan * 1e3 for c in hops] for v in chunks}
    cross = next((c for c, a, b in zip(hops, slow[1], slow[chunks[-1]], strict=True) if b > a), None)
    axes = {"en": ("micro-batches m", "bubble over ideal (%), Eq 21", "hop c (ms)", "time of a step (ms)", "times 1F1B's", ("messages", "held by rank 0")),
            "zh": ("微批次数 m", "气泡相对有效时间 (%)，Eq 21", "每跳 c (ms)", "一步的时间 (ms)", "1F1B 的倍数", ("消息数", "rank 0 持有"))}
    lab.figure(("The same work in 1, 2 and 4 chunks a rank, as it ran: later chunks are paler", "同样的工作，每个 rank 1、2、4 块，实际运行：靠后的块颜色较浅"), 
               lambda lang: comparison_figure([Played(f"{title}, {word('idle_over_work', lang, x=x)}", drawn) for title, x, drawn in shown], lang, "f = 1 ms, b = 2 ms"))
    lab.figure(("The bubble against micro-batches and chunks", "气泡与微批次数、块数"), lambda lang: lines({f"v = {v}": (counts, s) for v, s in swept.items()}, *axes[lang][:2], log_x=True))
    lab.figure(("The price: messages, and what rank 0 holds", "代价：消息数与 rank 0 持有的激活"),
               lambda lang: bars([f"v = {v}" for v in chunks], {axes[lang][5][0]: [s / sent[0] for s in sent], axes[lang][5][1]: [x / most[0] for x in most]}, axes[lang][4]))
    lab.figure(("The recordings replayed on longer hops", "把记录放到更长的跳上重放"), lambda lang: lines({f"v = {v}": ([c * 1e3 for c in hops], t) for v, t in slow.items()}, *axes[lang][2:4]))
    lab.tell(f"Idle over work: {', '.join(f'{o:.3%}' for o in over)} for v = 1, 2, 4: each doubling of chunks halves it.",
             f"空闲相对有效时间：v = 1、2、4 时为 {'、'.join(f'{o:.3%}' for o in over)}：块数每加倍，减半一次。", "tab=timeline&run=v4")
    lab.tell(f"Messages: {sent[0]}, {sent[1]}, {sent[2]}. Rank 0 holds {most[0]:g}, {most[1]:g} and {most[2]:g} micro-batches' worth of its layers.",
             f"消息数：{sent[0]}、{sent[1]}、{sent[2]}。rank 0 持有相当于 {most[0]:g}、{most[1]:g} 和 {most[2]:g} 个微批次的激活。", "tab=network&run=v4")
    if cross is not None:
        lab.tell(f"From hops of {cross * 1e3:.3g} ms on, 4 chunks are slower than one: every chunk boundary is a hop.",
                 f"每跳达到 {cross * 1e3:.3g} ms 起，4 块比一块更慢：每个块边界都是一跳。", "tab=timeline&run=v4")
    lab.tell("A GPT cut into 8 stages on 4 ranks trains exactly as one device does.", "切成 8 级、放在 4 个 rank 上的 GPT，训练结果与单卡一致。", "tab=checks&run=gpt")
    lab.conclude(f"Four chunks a rank cut the bubble from {over[0]:.1%} to {over[2]:.1%} of the work, for {sent[2] / sent[0]:.3g} times the messages.",
                 f"每个 rank 四块，气泡从有效时间的 {over[0]:.1%} 降到 {over[2]:.1%}，消息数为 {sent[2] / sent[0]:.3g} 倍。")
    lab.explain("The first micro-batch reaches the last rank after p−1 chunks instead of p−1 stages, so filling and draining take a v-th of the time.",
                "第一个微批次到达最后一个 rank 只需经过 p−1 块而不是 p−1 级，所以填充与排空只要 1/v 的时间。",
                ("A micro-batch passes every rank v times, so there are v times as many hops.", "一个微批次经过每个 rank v 次，所以跳数约为 v 倍。"),
                ("More chunks are warm before the first backward: 2(p−r−1)+(v−1)p+1.", "第一次反向之前在途的块更多：2(p−r−1)+(v−1)p+1。"))
    lab.own_number(f"{over[0]:.1%} → {over[2]:.1%} with v = 4; {sent[2] / sent[0]:.3g}× the messages.", f"v = 4 时 {over[0]:.1%} → {over[2]:.1%}；消息数 {sent[2] / sent[0]:.3g} 倍。")
