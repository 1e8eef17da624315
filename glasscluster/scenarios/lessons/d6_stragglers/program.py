"""D6: a step lasts as long as its slowest rank, and what backup workers buy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.recording.events import BACKWARD, COMPUTE
from glasscluster.strategies.exchange import backup_workers as bw
from glasscluster.strategies.judge.check import difference
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.trainer import Job, job_info
from glasscluster.visualize.figures.plots import lines

DRAWS = 4000


@lesson
def stragglers(
    lab: Lab, gpus: int = 8, slow_rank: int = 3, slow: float = 1.2, needed: int = 4, backups: int = 2
) -> None:
    """Data parallelism is recorded once and replayed with one slow rank; then backup workers train on the first gradients that come."""

    model = make_model("tiny", layers=2, hidden=128, seq=128)
    run = lab.train(
        "even",
        lab.text("all_ranks_alike"),
        model=model,
        steps=1,
        dp=gpus,
        micro_batch=4,
        global_batch=4 * gpus,
    ).run
    ready = np.flatnonzero((run.graph.kind == COMPUTE) & (run.graph.phase == BACKWARD))
    late = run.replay(lab.hardware, slow_ranks={slow_rank: slow})
    lab.entries.append(
        replace(
            lab.entries[-1],
            key="slow",
            title=lab.text("rank_computes_slower", slow_rank=slow_rank, slower=100 * (slow - 1)),
            timelines={lab.hardware: late},
            checks=[],
            trained=None,
        )
    )
    alone = [
        float((run.timeline.end[ready] * (run.graph.rank[ready] == r)).max())
        * (slow if r == slow_rank else 1)
        for r in range(gpus)
    ]
    lab.row(
        "last_gradient_ready_slow_rank",
        max(alone),
        None,
        "F36: the maximum over ranks",
        simulated=float(late.end[ready].max()),
        unit="s",
        match="virtual",
        tolerance=1e-9,
    )
    longer = 100 * (late.makespan / run.timeline.makespan - 1)

    workers, draw = needed + backups, np.random.default_rng(lab.seed)
    small = make_model("tiny", layers=2, hidden=16, heads=4, seq=16, vocab=64)
    job = Job(
        make_plan(dp=workers, global_batch=2 * workers, micro_batch=2, precision="fp64", clip=0.0),
        small,
        3,
        seed=lab.seed,
        capture=True,
    )
    chosen = bw.fastest(draw.exponential(size=(3, workers)), needed)
    ran = lab.cluster(workers + 1).run(bw.train_with_backups, job, chosen, record=False)
    without = bw.fastest(
        np.array([[float(w == slow_rank) for w in range(workers)]] * 3), needed + backups - 1
    )
    spared = lab.run(
        "backup",
        lab.text("workers_gradients_step", workers=workers, needed=workers - 1),
        bw.train_with_backups,
        job,
        without,
        gpus=workers + 1,
        order_fixed=True,
        **job_info(job),
    )
    if not lab.leader:
        return
    dropped = spared.replay(lab.hardware, slow_ranks={slow_rank: 3.0})
    note = lab.text("worker_takes_times_long", slow_rank=slow_rank)
    lab.entries[-1] = replace(
        lab.entries[-1], timelines={lab.hardware: dropped}, compared=False, note=note
    )  # another, smaller model
    for name, results, plan in (("drawn", ran.results, chosen), ("recorded", spared.results, without)):
        found, one = results[-1], bw.one_device_on_what_counted(job, plan, workers)
        worst = max(
            difference(a[n], b[n], 1e-3 * max(float(x.abs().max()) for x in b.values()))
            for a, b in zip(found.gradients, one.gradients, strict=True)
            for n in b
        )
        lab.row(
            "largest_gradient_difference_device_counted",
            0.0,
            worst,
            "one device, the sequences that counted",
            unit="relative",
            tolerance=1e-10,
            name=name,
        )
    server = spared.graph.rank == workers
    pair = [float(line.end[server].max()) for line in (spared.timeline, dropped)]
    lab.row(
        "last_update_when_slow_worker_dropped",
        pair[0],
        None,
        "F36: it is not among those waited for",
        simulated=pair[1],
        unit="s",
        match="virtual",
        tolerance=1e-9,
    )
    lab.ask("number", longer, "%", gpus=gpus, slower=100 * (slow - 1))

    many, spread = (1, 8, 64, 512), 1.2825  # π/√6: standard deviation of the maximum of many exponentials
    times = {n: draw.exponential(size=(DRAWS, n)).max(axis=1) for n in many}
    for n in many[1:]:
        lab.row(
            "mean_step_ranks_draws",
            bw.predict(n, 0),
            float(times[n].mean()),
            "F36: H_N/λ; four standard errors",
            unit="1/λ",
            match="statistical",
            tolerance=4 * spread / DRAWS**0.5,
            n=n,
            DRAWS=DRAWS,
        )
    spare = (0, 1, 2, 4, 8, 16, 32)
    kept = {b: float(np.sort(draw.exponential(size=(DRAWS, 64 + b)), axis=1)[:, 63].mean()) for b in spare}
    for b in (4, 16):
        lab.row(
            "mean_step_ranks_draws_2",
            bw.predict(64, b),
            kept[b],
            "F36: (H_(N+b) − H_b)/λ",
            unit="1/λ",
            match="statistical",
            tolerance=4 * spread / DRAWS**0.5,
            ranks=64 + b,
            DRAWS=DRAWS,
        )
    edges = np.linspace(0, 14, 29)
    middle: list[float] = ((edges[1:] + edges[:-1]) / 2).tolist()
    shares = {n: (np.histogram(t, edges)[0] / DRAWS).tolist() for n, t in times.items()}
    lab.figure(
        "long_slowest_takes",
        lambda lang: lines(
            {lab.word("text", lang).format(n): (middle, s) for n, s in shares.items()},
            lab.word("step_time_mean_times", lang),
            lab.word("share_steps", lang),
        ),
    )
    lab.figure(
        "backup_workers_buy",
        lambda lang: lines(
            {
                lab.word("drawn", lang): (spare, list(kept.values())),
                lab.word("text_2", lang): (spare, [bw.predict(64, b) for b in spare]),
            },
            lab.word("backup_workers_beside", lang),
            lab.word("mean_step", lang),
        ),
    )
    lab.tell(
        "rank_slower_step_grows",
        view="tab=timeline&run=slow",
        slow_rank=slow_rank,
        slower=100 * (slow - 1),
        longer=longer,
        slower_mean=100 * (slow - 1) / gpus,
    )
    idle = [sum(g.length for g in late.gaps(r)) * 1e3 for r in range(gpus)]
    lab.tell("slow_rank_waits_least", view="tab=timeline&run=slow", idle_least=min(idle), idle_most=max(idle))
    lab.tell("if_times_vary_chance", view="tab=story", mean_8=times[8].mean(), mean_512=times[512].mean())
    lab.tell(
        "backups_beside_workers_mean", view="tab=timeline&run=backup", kept_none=kept[0], kept_four=kept[4]
    )
    lab.conclude(slower=100 * (slow - 1), gpus=gpus, longer=longer)
    lab.explain()
    lab.own_number(longer=longer, gpus=gpus, hardware=lab.hardware)
