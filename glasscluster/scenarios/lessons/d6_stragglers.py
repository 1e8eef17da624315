"""D6: a step lasts as long as its slowest rank, and what backup workers buy."""

from __future__ import annotations

from dataclasses import replace

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson

DRAWS = 4000


# fmt: off
@lesson(
    "D6",
    title=("Stragglers", "慢节点"),
    topic=("data parallel", "数据并行"),
    question=("One GPU of 512 is 20 % slow: what is lost?", "512 块 GPU 中有一块慢 20%：损失多少？"),
    formula=Formula("F36", "step = max over ranks; i.i.d. exponential times of rate λ: E = H_N/λ, with b backups (H_{N+b} − H_b)/λ", "T", "order statistics; Chen et al. 1604.00981"),
    kills=("“Average speed matters.” A synchronous step waits for the slowest: one slow GPU costs all the others as much as itself.",
           "“平均速度才重要。”同步的一步要等最慢者：一块慢 GPU 让其他所有 GPU 同样变慢。"),
    card=Card(
        ("What does one slow GPU cost a synchronous job?", "一块慢 GPU 会让同步任务损失多少？"),
        ("The whole job runs at its pace: 20 % slow on one of 512 makes every step's compute 20 % longer, not 20/512 %.",
         "整个任务按它的步调走：512 块中一块慢 20%，每步的计算都长 20%，而不是 20/512 %。"),
        ("The step is the maximum of all ranks. If times vary by chance the maximum grows with N: exponential tails give H_N/λ, about ln N + 0.577 mean times. So first find and "
         "replace what is always slow (in a trace it is the rank that the others wait for and that never waits), then make times alike. Backup workers take the first N of N + b "
         "gradients and drop the rest: the step becomes the N-th of N + b, (H_{N+b} − H_b)/λ, and b/(N+b) of the work is thrown away. Asynchronous servers do not wait, and pay in stale gradients.",
         "一步的时间是所有 rank 的最大值。若时间随机波动，最大值随 N 增长：指数尾给出 H_N/λ，约 ln N + 0.577 倍的平均时间。所以先找出并换掉总是慢的那块（在 trace 里，就是别人都在等、"
         "自己从不等待的 rank），再让各卡用时接近。备份 worker 取 N + b 个梯度中先到的 N 个，其余丢弃：一步变成 N + b 个中的第 N 个，(H_{N+b} − H_b)/λ，但要丢掉 b/(N+b) 的工作。"
         "异步服务器不等待，代价是梯度过期。"),
        (("How do you find the slow rank in a trace?", "如何从 trace 里找出慢的 rank？"), ("Why not simply drop slow gradients without backups?", "为什么不直接丢弃慢的梯度而不设备份？")),
    ),
)
def stragglers(lab: Lab, gpus: int = 8, slow_rank: int = 3, slow: float = 1.2, needed: int = 4, backups: int = 2) -> None:
    """Data parallelism is recorded once and replayed with one slow rank; then backup workers train on the first gradients that come."""
    import numpy as np

    from glasscluster.sim.recording.events import BACKWARD, COMPUTE
    from glasscluster.strategies.exchange import backup_workers as bw
    from glasscluster.strategies.job import Job, job_info
    from glasscluster.strategies.judge.check import difference
    from glasscluster.strategies.plan import make_model, make_plan
    from glasscluster.visualize.figures.plots import lines

    model = make_model("tiny", layers=2, hidden=128, seq=128)
    run = lab.train("even", ("All ranks alike", "各 rank 一样快"), model=model, steps=1, dp=gpus, micro_batch=4, global_batch=4 * gpus).run
    ready = np.flatnonzero((run.graph.kind == COMPUTE) & (run.graph.phase == BACKWARD))
    late = run.replay(lab.hardware, slow_ranks={slow_rank: slow})
    lab.entries.append(replace(lab.entries[-1], key="slow", title=(f"Rank {slow_rank} computes {100 * (slow - 1):.0f} % slower", f"rank {slow_rank} 的计算慢 {100 * (slow - 1):.0f}%"), timelines={lab.hardware: late}, checks=[], trained=None))
    alone = [float((run.timeline.end[ready] * (run.graph.rank[ready] == r)).max()) * (slow if r == slow_rank else 1) for r in range(gpus)]
    lab.check("last gradient ready with one slow rank", max(alone), None, "F36: the maximum over ranks", simulated=float(late.end[ready].max()), unit="s", match="virtual", tolerance=1e-9)
    longer = 100 * (late.makespan / run.timeline.makespan - 1)

    workers, draw = needed + backups, np.random.default_rng(lab.seed)
    small = make_model("tiny", layers=2, hidden=16, heads=4, seq=16, vocab=64)
    job = Job(make_plan(dp=workers, global_batch=2 * workers, micro_batch=2, precision="fp64", clip=0.0), small, 3, seed=lab.seed, capture=True)
    chosen = bw.fastest(draw.exponential(size=(3, workers)), needed)
    ran = lab.cluster(workers + 1).run(bw.train_with_backups, job, chosen, record=False)
    without = bw.fastest(np.array([[float(w == slow_rank) for w in range(workers)]] * 3), needed + backups - 1)
    spared = lab.run("backup", (f"{workers} workers, {workers - 1} gradients a step", f"{workers} 个 worker，{workers - 1} 个梯度算一步"), bw.train_with_backups, job, without, gpus=workers + 1, order_fixed=True, **job_info(job))
    if not lab.leader:
        return
    dropped = spared.replay(lab.hardware, slow_ranks={slow_rank: 3.0})
    note = (f"Worker {slow_rank} takes 3 times as long and is dropped in every step: nobody waits for it.", f"worker {slow_rank} 慢 3 倍，每步都被丢弃：没有人等它。")
    lab.entries[-1] = replace(lab.entries[-1], timelines={lab.hardware: dropped}, compared=False, note=note)  # another, smaller model
    for name, results, plan in (("drawn", ran.results, chosen), ("recorded", spared.results, without)):
        found, one = results[-1], bw.one_device_on_what_counted(job, plan, workers)
        worst = max(difference(a[n], b[n], 1e-3 * max(float(x.abs().max()) for x in b.values())) for a, b in zip(found.gradients, one.gradients, strict=True) for n in b)
        lab.check(f"{name}: largest gradient difference from one device on what counted", 0.0, worst, "one device, the sequences that counted", unit="relative", tolerance=1e-10)
    server = spared.graph.rank == workers
    pair = [float(line.end[server].max()) for line in (spared.timeline, dropped)]
    lab.check("last update when the slow worker is dropped, as if it were not slow", pair[0], None, "F36: it is not among those waited for", simulated=pair[1], unit="s", match="virtual", tolerance=1e-9)
    lab.ask(f"One of {gpus} GPUs computes {100 * (slow - 1):.0f} % slower. By how many % does the step get longer?", f"{gpus} 块 GPU 中一块的计算慢 {100 * (slow - 1):.0f}%。一步会长百分之几？", longer, "%")

    many, spread = (1, 8, 64, 512), 1.2825  # π/√6: standard deviation of the maximum of many exponentials
    times = {n: draw.exponential(size=(DRAWS, n)).max(axis=1) for n in many}
    for n in many[1:]:
        lab.check(f"mean step of {n} ranks, {DRAWS} draws", bw.predict(n, 0), float(times[n].mean()), "F36: H_N/λ; four standard errors", unit="1/λ", match="statistical", tolerance=4 * spread / DRAWS**0.5)
    spare = (0, 1, 2, 4, 8, 16, 32)
    kept = {b: float(np.sort(draw.exponential(size=(DRAWS, 64 + b)), axis=1)[:, 63].mean()) for b in spare}
    for b in (4, 16):
        lab.check(f"mean step of 64 of {64 + b} ranks, {DRAWS} draws", bw.predict(64, b), kept[b], "F36: (H_(N+b) − H_b)/λ", unit="1/λ", match="statistical", tolerance=4 * spread / DRAWS**0.5)
    edges = np.linspace(0, 14, 29)
    middle: list[float] = ((edges[1:] + edges[:-1]) / 2).tolist()
    axes = {"en": ("N = {}", "step time, in mean times of one rank (1/λ)", "share of steps"), "zh": ("N = {}", "一步的时间，以单个 rank 的平均时间 1/λ 为单位", "步的占比")}
    shares = {n: (np.histogram(t, edges)[0] / DRAWS).tolist() for n, t in times.items()}
    lab.figure(("How long the slowest of N takes", "N 个中最慢者用时的分布"), lambda lang: lines({axes[lang][0].format(n): (middle, s) for n, s in shares.items()}, *axes[lang][1:]))
    words = {"en": ("drawn", "(H_{N+b} − H_b)/λ", "backup workers b beside N = 64", "mean step (1/λ)"), "zh": ("抽样", "(H_{N+b} − H_b)/λ", "N = 64 之外的备份 worker 数 b", "一步的平均时间（1/λ）")}
    lab.figure(("What backup workers buy", "备份 worker 带来的好处"),
               lambda lang: lines({words[lang][0]: (spare, list(kept.values())), words[lang][1]: (spare, [bw.predict(64, b) for b in spare])}, *words[lang][2:]))
    lab.tell(f"With rank {slow_rank} {100 * (slow - 1):.0f} % slower the step grows by {longer:.1f} %, not by {100 * (slow - 1) / gpus:.1f} %; the rest is communication, which is not slower.",
             f"rank {slow_rank} 慢 {100 * (slow - 1):.0f}% 时，一步变长 {longer:.1f}%，而不是 {100 * (slow - 1) / gpus:.1f}%；其余是通信，它没有变慢。", "tab=timeline&run=slow")
    idle = [sum(g.length for g in late.gaps(r)) * 1e3 for r in range(gpus)]
    lab.tell(f"The slow rank is the one that waits least: {min(idle):.3f} ms, the others {max(idle):.3f} ms. That is how a trace gives it away.",
             f"慢的 rank 等得最少：{min(idle):.3f} ms，其他 rank 为 {max(idle):.3f} ms。在 trace 里就是这样把它找出来的。", "tab=timeline&run=slow")
    lab.tell(f"If times vary by chance the step grows with N: {times[8].mean():.2f} mean times at 8 ranks, {times[512].mean():.2f} at 512.",
             f"若用时随机波动，一步随 N 变长：8 个 rank 时为平均时间的 {times[8].mean():.2f} 倍，512 个时为 {times[512].mean():.2f} 倍。", "tab=story")
    lab.tell(f"With 4 backups beside 64 workers the mean step falls from {kept[0]:.2f} to {kept[4]:.2f}; a dropped worker may be 3 times as slow and no update comes later.",
             f"64 个 worker 加 4 个备份，一步的平均时间从 {kept[0]:.2f} 降到 {kept[4]:.2f}；被丢弃的 worker 慢 3 倍，更新也不会更晚。", "tab=timeline&run=backup")
    lab.conclude(f"One GPU {100 * (slow - 1):.0f} % slow among {gpus} makes the step {longer:.1f} % longer.", f"{gpus} 块 GPU 中一块慢 {100 * (slow - 1):.0f}%，一步就长 {longer:.1f}%。")
    lab.explain("The all-reduce needs every gradient, so it ends after the last one; the average over ranks appears nowhere. With more ranks the largest of their times is larger.",
                "all-reduce 需要每个梯度，所以要等最后一个；各 rank 的平均值在哪里都不出现。rank 越多，其中最大的用时就越大。",
                ("The step is the maximum over ranks, not the mean.", "一步是各 rank 的最大值，不是平均值。"),
                ("Backups turn the maximum into the N-th of N + b, and throw b gradients away.", "备份把最大值变成 N + b 个中的第 N 个，并丢掉 b 个梯度。"))
    lab.own_number(f"{longer:.1f} % on {gpus} GPUs of {lab.hardware}.", f"{lab.hardware} 的 {gpus} 块 GPU：{longer:.1f}%。")
