"""D6: a step lasts as long as its slowest rank, and what backup workers gain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.recording.events import BACKWARD, COMPUTE
from glasscluster.strategies.exchange import backup_workers as bw
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.judge.check import difference
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.visualize.figures.plots import lines

DRAWS = 4000


SPREAD = 1.2825  # π/√6: standard deviation of the maximum of many exponentials
FOUR_ERRORS: dict[str, Any] = {"unit": "1/λ", "match": "statistical", "tolerance": 4 * SPREAD / DRAWS**0.5}
VIRTUAL: dict[str, Any] = {"unit": "s", "match": "virtual", "tolerance": 1e-9}


@lesson
def stragglers(
    lab: Lab, gpus: int = 8, slow_rank: int = 3, slow: float = 1.2, needed: int = 4, backups: int = 2
) -> None:
    """Data parallelism is recorded once and replayed with one slow rank; then backup workers train on the
    first gradients that come.
    """
    slower = 100 * (slow - 1)
    model = make_model("tiny", layers=2, hidden=128, seq=128)
    plan: dict[str, Any] = {"dp": gpus, "micro_batch": 4, "global_batch": 4 * gpus}
    run = lab.train("even", lab.text("even"), model=model, steps=1, **plan).run
    late = run.replay(lab.hardware, slow_ranks={slow_rank: slow})
    title = lab.text("slow", slow_rank=slow_rank, slower=slower)
    shown: dict[str, Any] = {
        "key": "slow",
        "title": title,
        "timelines": {lab.hardware: late},
        "checks": [],
        "trained": None,
    }
    lab.entries.append(replace(lab.entries[-1], **shown))
    check_last_gradient(lab, run, late, slow_rank, slow)

    draw = np.random.default_rng(lab.seed)
    train_with_backups(lab, draw, slow_rank, needed, backups)
    if not lab.leader:
        return
    longer = 100 * (late.makespan / run.timeline.makespan - 1)
    line, graph = run.timeline, run.graph
    busy = (graph.kind == COMPUTE) & (graph.rank == slow_rank)
    computing = 100 * float((line.end - line.start)[busy].sum()) / line.makespan
    lab.ask("longer", longer, gpus=gpus, slower=slower, computing=computing)
    times = {n: draw.exponential(size=(DRAWS, n)).max(axis=1) for n in (1, 8, 64, 512)}
    for n in (8, 64, 512):
        mean, source = float(times[n].mean()), "Eq 36: H_N/λ; four standard errors"
        lab.row("mean_step", bw.predict(n, 0), mean, source, **FOUR_ERRORS, n=n, draws=DRAWS)
    mean_steps = {b: mean_of_first(draw, 64, 64 + b) for b in (0, 1, 2, 4, 8, 16, 32)}
    for b in (4, 16):
        source = "Eq 36: (H_(N+b) − H_b)/λ"
        names: dict[str, Any] = {"ranks": 64 + b, "draws": DRAWS}
        lab.row("mean_step_with_backups", bw.predict(64, b), mean_steps[b], source, **FOUR_ERRORS, **names)

    lab.figure("slowest", lambda lang: slowest_of_n(lab, times, lang))
    lab.figure("backup_workers_buy", lambda lang: backup_workers(lab, mean_steps, lang))
    grown: dict[str, Any] = {"slower": slower, "longer": longer, "slower_mean": slower / gpus}
    grown |= {"waits": waited_ms(run.timeline, slow_rank), "waits_now": waited_ms(late, slow_rank)}
    lab.tell("step_grows", view="tab=timeline&run=slow", slow_rank=slow_rank, **grown)
    idle = [waited_ms(late, rank) for rank in range(gpus)]
    lab.tell("slow_rank", view="tab=timeline&run=slow", idle_least=min(idle), idle_most=max(idle))
    lab.tell("by_chance", view="tab=story", mean_8=times[8].mean(), mean_512=times[512].mean())
    lab.tell("backups", view="tab=timeline&run=backup", kept_none=mean_steps[0], kept_four=mean_steps[4])
    lab.conclude(slower=slower, gpus=gpus, longer=longer)
    lab.explain()
    lab.card(slower=slower, slower_mean=slower / gpus, euler=float(np.euler_gamma))
    lab.own_number(longer=longer, gpus=gpus, hardware=lab.hardware)


def waited_ms(timeline: Any, rank: int) -> float:
    """How long a rank waited in all, in milliseconds."""
    return 1e3 * sum(gap.length for gap in timeline.gaps(rank))


def check_last_gradient(lab: Lab, run: Any, late: Any, slow_rank: int, slow: float) -> None:
    """Check that the last gradient is ready when the slowest rank's is.

    Each rank's own time is taken from the even run; the slow rank's is multiplied by its factor.
    """
    graph = run.graph
    ready = np.flatnonzero((graph.kind == COMPUTE) & (graph.phase == BACKWARD))
    alone = []
    for rank in range(graph.ranks):
        last = float((run.timeline.end[ready] * (graph.rank[ready] == rank)).max())
        alone.append(last * (slow if rank == slow_rank else 1))
    replayed, source = float(late.end[ready].max()), "Eq 36: the maximum over ranks"
    lab.row("last_gradient", max(alone), None, source, simulated=replayed, **VIRTUAL)


def train_with_backups(lab: Lab, draw: Any, slow_rank: int, needed: int, backups: int) -> None:
    """Train on the first gradients to arrive: in an order drawn at random, then with the slow worker never
    among them.
    """
    workers = needed + backups
    small = make_model("tiny", layers=2, hidden=16, heads=4, seq=16, vocab=64)
    plan = make_plan(dp=workers, global_batch=2 * workers, micro_batch=2, precision="fp64", clip=0.0)
    job = Job(plan, small, 3, seed=lab.seed, capture=True)
    chosen = bw.fastest(draw.exponential(size=(3, workers)), needed)
    ran = lab.cluster(workers + 1).run(bw.train_with_backups, job, chosen, record=False)
    last = [float(worker == slow_rank) for worker in range(workers)]
    without = bw.fastest(np.array([last] * 3), workers - 1)
    title = lab.text("backup", workers=workers, needed=workers - 1)
    recorded: dict[str, Any] = {"gpus": workers + 1, "order_fixed": True, **job_info(job)}
    spared = lab.run("backup", title, bw.train_with_backups, job, without, **recorded)
    if not lab.leader:
        return
    dropped = spared.replay(lab.hardware, slow_ranks={slow_rank: 3.0})
    note = lab.text("dropped", slow_rank=slow_rank)
    # another, smaller model: not compared with the others
    lab.entries[-1] = replace(lab.entries[-1], timelines={lab.hardware: dropped}, compared=False, note=note)
    for name, results, counted in (("drawn", ran.results, chosen), ("recorded", spared.results, without)):
        reference = bw.one_device_on_what_counted(job, counted, workers)
        worst, source = largest_difference(results[-1], reference), "one device, the sequences that counted"
        lab.row("gradients_that_counted", 0.0, worst, source, unit="relative", tolerance=1e-10, name=name)
    server = spared.graph.rank == workers
    even, late = (float(line.end[server].max()) for line in (spared.timeline, dropped))
    source = "Eq 36: it is not among those waited for"
    lab.row("last_update", even, None, source, simulated=late, **VIRTUAL)


def largest_difference(result: Any, reference: Any) -> float:
    """The largest difference of a gradient from one device's, over steps and tensors.

    It is relative to the tensor, or to a thousandth of the step's largest element where that is more.
    """
    worst = 0.0
    for ours, theirs in zip(result.gradients, reference.gradients, strict=True):
        floor = 1e-3 * max(float(tensor.abs().max()) for tensor in theirs.values())
        worst = max(worst, *(difference(ours[name], theirs[name], floor) for name in theirs))
    return worst


def mean_of_first(draw: Any, first: int, ranks: int) -> float:
    """The mean time, over random draws, at which the first `first` of `ranks` ranks are done."""
    times = np.sort(draw.exponential(size=(DRAWS, ranks)), axis=1)
    return float(times[:, first - 1].mean())


def slowest_of_n(lab: Lab, times: dict[int, Any], lang: str) -> Any:
    """Draw the distribution of the slowest rank's time, a line for each number of ranks."""
    edges = np.linspace(0, 14, 29)
    middle: list[float] = ((edges[1:] + edges[:-1]) / 2).tolist()
    shares = {n: (np.histogram(drawn, edges)[0] / DRAWS).tolist() for n, drawn in times.items()}
    series = {lab.word("of_n", lang, n=n): (middle, share) for n, share in shares.items()}
    return lines(series, lab.word("step_time", lang), lab.word("share_steps", lang))


def backup_workers(lab: Lab, mean_steps: dict[int, float], lang: str) -> Any:
    """Draw the mean step against the number of backup workers, drawn at random and by the formula."""
    spare = tuple(mean_steps)
    series = {
        lab.word("drawn", lang): (spare, list(mean_steps.values())),
        lab.word("formula", lang): (spare, [bw.predict(64, b) for b in spare]),
    }
    return lines(series, lab.word("backup_workers", lang), lab.word("mean_step", lang))
