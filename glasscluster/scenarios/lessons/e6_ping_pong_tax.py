"""E6: hops that take time: strict 1F1B pays for a trip there and back every round, GPipe and eager 1F1B do not."""

from __future__ import annotations

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


# fmt: off
@lesson(
    "E6",
    title=("The ping-pong tax", "1F1B 的往返税"),
    topic=("pipeline", "流水线并行"),
    question=("Add 0.25 ms a hop to 4 stages and 8 micro-batches: who is faster now?", "4 级、8 个微批次，每跳加 0.25 ms：现在谁更快？"),
    formula=Formula("Eq 23", "GPipe (m+p−1)(f+b)+2(p−1)c;  strict 1F1B (m+p−1)(f+b)+2c[(p−1)m/p+p−2], p | m", "V", "derivation; eager 1F1B: Zhuang 2211.05322"),
    kills=("“The same bubble, so the same time.” Only where hops are free: in 1F1B the next forward waits for a gradient that has to come back.",
           "“气泡相同，所以时间相同。”只有通信免费时如此：1F1B 的下一次前向要等一个必须返回的梯度。"),
    card=Card(
        ("Why can 1F1B be slower than GPipe on a slow network?", "网络慢时，1F1B 为什么会比 GPipe 慢？"),
        ("Between neighbours 1F1B has one micro-batch under way: out and back is two hops, paid once in p micro-batches. Warm up with twice as many forwards and it is hidden.",
         "相邻两级之间，1F1B 只有一个微批次在途：一去一回是两跳，每 p 个微批次付一次。预热的前向加倍即可隐藏。"),
        ("GPipe streams: a hop's latency c is paid once on the way in and once on the way out, 2(p−1)c. Strict 1F1B with its warm-up of p−s alternates: stage s sends a forward on and can go on only when a gradient is back, "
         "so every round of p micro-batches stretches by 2(p−1)c: (m+p−1)(f+b) + 2c[(p−1)m/p + p−2] in all. Eager 1F1B warms up with 2(p−1−s) forwards more or less, keeps two under way, and is back at GPipe's time "
         "as long as c ≤ (f+b)/2; it holds 2(p−s)−1 micro-batches instead of p−s. In practice sends overlap with compute, and slow hops between nodes are where pipeline stages are cut.",
         "GPipe 是流式的：一跳的延迟 c 进来付一次、出去付一次，共 2(p−1)c。严格的 1F1B 预热 p−s 次后一前一后交替：第 s 级送出一次前向，要等一个梯度回来才能继续，"
         "所以每 p 个微批次的一轮拉长 2(p−1)c：总共 (m+p−1)(f+b) + 2c[(p−1)m/p + p−2]。eager 1F1B 预热约 2(p−1−s) 次前向，保持两个在途，"
         "只要 c ≤ (f+b)/2 就回到 GPipe 的时间；代价是持有 2(p−s)−1 份而不是 p−s 份激活。实践中发送与计算重叠，而流水线正是在节点之间的慢链路处切开。"),
        (("Up to which hop does eager 1F1B hide everything, and why?", "eager 1F1B 最多能隐藏多长的一跳？为什么？"),
         ("What would you change under a memory cap between the two?", "显存上限介于两者之间时，你会怎么改？")),
    ),
)
def ping_pong_tax(lab: Lab, p: int = 4, m: int = 8, hop_ms: float = 0.25) -> None:
    """Three schedules on equal stages really run, with f = 1 ms and b = 2 ms; their recordings are replayed on ever longer hops."""
    from glasscluster.scenarios.jobs import equal_stages
    from glasscluster.strategies.pipeline.schedules import eager_1f1b, gpipe, one_f_one_b
    from glasscluster.strategies.pipeline.schedules.base import Schedule
    from glasscluster.visualize.figures.pipelines import Played, comparison_figure, held
    from glasscluster.visualize.figures.plots import bars, lines

    f, b, hop = 1e-3, 2e-3, hop_ms * 1e-3
    names = {"gpipe": "GPipe", "1f1b": "1F1B", "eager-1f1b": "eager 1F1B"}
    runs = {n: equal_stages.played(lab, n, (said, said if n != "eager-1f1b" else "eager 1F1B（提前）"), n, p, m, hop=hop) for n, said in names.items()}

    def theory(name: str, c: float) -> float | None:
        if name == "gpipe":
            return gpipe.predict_makespan([f] * p, [b] * p, m, c)
        return (one_f_one_b if name == "1f1b" else eager_1f1b).predict_makespan(p, m, f, b, c)

    took = {n: run.timeline.makespan for n, (run, *_) in runs.items()}
    shown = []
    for name, (run, _schedule, judged, drawn) in runs.items():
        lab.check(f"{names[name]}: time of a step, {hop_ms:g} ms a hop", theory(name, hop), None, "Eq 23", simulated=run.timeline.makespan, unit="s", match="virtual", tolerance=1e-9)
        lab.check(f"{names[name]}: the same by its list alone", judged.makespan, None, "the list, played", simulated=run.timeline.makespan, unit="s", match="virtual", tolerance=1e-9)
        live = [min(m, 2 * (p - s) - 1) if name == "eager-1f1b" else m if name == "gpipe" else min(m, p - s) for s in range(p)]
        for s in range(p):
            lab.check(f"{names[name]}: most micro-batches held by stage {s}", live[s], max(held(drawn, s)[1]), "Eq 22, Eq 23", unit="micro-batches")
        lab.check(f"{names[name]}: messages", 2 * m * (p - 1), run.graph.count("send"), "2m over each of p−1 hops", unit="messages")
        shown.append(Played(f"<b>{names[name]}</b>: {run.timeline.makespan * 1e3:g} ms", drawn))
    hops = [k * 0.25e-3 for k in range(11)]
    swept = {n: [run.replay(equal_stages.machine(f, c)).makespan for c in hops] for n, (run, *_) in runs.items()}
    for name, times in swept.items():
        known = [(theory(name, c), t) for c, t in zip(hops, times, strict=True)]
        apart = max(abs(t - k) / k for k, t in known if k is not None)
        lab.check(f"{names[name]}: largest error of the formula over {sum(k is not None for k, _ in known)} hops on its domain", 0, apart, "Eq 23", unit="relative", tolerance=1e-9)
    lab.check("eager 1F1B: the longest hop that it hides", eager_1f1b.predict_hop_limit(p, m, f, b), None, "Eq 23: (f+b)/2, by search",
              simulated=eager_1f1b.search_hop_limit(p, m, f, b), unit="s", match="virtual", tolerance=1e-6)
    lab.check("elements of gradients that are not m·n^S", 0, equal_stages.wrong_gradients((r, s) for r, s, *_ in runs.values()), "all ones: every element is known", unit="elements")
    lab.ask(f"{p} stages, {m} micro-batches, f = 1 ms, b = 2 ms, {hop_ms:g} ms a hop. GPipe takes {took['gpipe'] * 1e3:g} ms. How many ms does 1F1B take?",
            f"{p} 级、{m} 个微批次，f = 1 ms，b = 2 ms，每跳 {hop_ms:g} ms。GPipe 用 {took['gpipe'] * 1e3:g} ms。1F1B 用多少 ms？", took["1f1b"] * 1e3, "ms")

    # under a memory cap: one warm-up forward more at a time, the same on every stage
    depths = []
    for extra in range(p):
        ranks = [one_f_one_b.one_rank(s, m, min(m, p - s + min(extra, p - 1 - s))) for s in range(p)]
        judged = Schedule("a deeper warm-up", p, m, ranks).validate(f, b, hop, 0.0)
        depths.append((max(judged.peak_live), judged.makespan))
    axes = {"en": ("hop c (ms)", "time of a step (ms)", "at most {} held", "time of a step (ms)"), "zh": ("每跳 c (ms)", "一步的时间 (ms)", "最多持有 {} 份", "一步的时间 (ms)")}
    lab.figure((f"Three schedules as they ran, {hop_ms:g} ms a hop: grey is waiting", f"三种调度的实际运行，每跳 {hop_ms:g} ms：灰色为等待"), lambda lang: comparison_figure(shown, lang, f"c = {hop_ms:g} ms"))
    lab.figure(("The recordings replayed on longer hops", "把记录放到更长的跳上重放"),
               lambda lang: lines({names[n]: ([c * 1e3 for c in hops], [t * 1e3 for t in times]) for n, times in swept.items()}, *axes[lang][:2]))
    lab.figure(("Deeper warm-up under a memory cap, every list judged", "显存上限下加深预热（逐个评判调度表）"),
               lambda lang: bars([axes[lang][2].format(k) for k, _ in depths], {"1F1B": [t * 1e3 for _, t in depths]}, axes[lang][3]))
    lab.tell(f"{hop_ms:g} ms a hop: GPipe {took['gpipe'] * 1e3:g} ms, 1F1B {took['1f1b'] * 1e3:g} ms, eager 1F1B {took['eager-1f1b'] * 1e3:g} ms.",
             f"每跳 {hop_ms:g} ms：GPipe {took['gpipe'] * 1e3:g} ms，1F1B {took['1f1b'] * 1e3:g} ms，eager 1F1B {took['eager-1f1b'] * 1e3:g} ms。", "tab=timeline&run=1f1b")
    lab.tell("In 1F1B's steady state every stage but the last stands still after each pair: its next gradient is on the wire.",
             "1F1B 的稳态中，除最后一级外，每级做完一对就要停下：下一个梯度还在途中。", "tab=timeline&run=1f1b")
    lab.tell(f"Eager 1F1B holds {min(m, 2 * p - 1)} micro-batches on stage 0 instead of {min(m, p)}, and hides hops of up to {eager_1f1b.predict_hop_limit(p, m, f, b) * 1e3:g} ms.",
             f"eager 1F1B 在第 0 级持有 {min(m, 2 * p - 1)} 份而不是 {min(m, p)} 份，可隐藏最长 {eager_1f1b.predict_hop_limit(p, m, f, b) * 1e3:g} ms 的一跳。", "tab=timeline&run=eager-1f1b")
    lab.tell("Move the latency slider in the timeline: the page replays what was recorded.", "在时间线里移动延迟滑块：页面会重放所记录的图。", "tab=timeline&run=1f1b")
    lab.conclude(f"With {hop_ms:g} ms a hop 1F1B takes {took['1f1b'] * 1e3:g} ms, GPipe and eager 1F1B {took['gpipe'] * 1e3:g} ms.",
                 f"每跳 {hop_ms:g} ms 时，1F1B 用 {took['1f1b'] * 1e3:g} ms，GPipe 与 eager 1F1B 用 {took['gpipe'] * 1e3:g} ms。")
    lab.explain("A forward of 1F1B waits for a gradient, the gradient waited for that stage's forward before: two hops a round that nothing covers.",
                "1F1B 的一次前向等一个梯度，而那个梯度等的是这一级更早送出的前向：每轮有两跳无人遮盖。",
                ("GPipe pays 2(p−1)c once; strict 1F1B again in every round of p micro-batches.", "GPipe 只付一次 2(p−1)c；严格的 1F1B 每 p 个微批次又付一次。"),
                ("More forwards under way hide the hop; they cost memory.", "更多在途的前向可以隐藏这一跳；代价是显存。"))
    lab.own_number(f"{took['1f1b'] * 1e3:g} ms against {took['gpipe'] * 1e3:g} ms.", f"{took['1f1b'] * 1e3:g} ms 对 {took['gpipe'] * 1e3:g} ms。")
