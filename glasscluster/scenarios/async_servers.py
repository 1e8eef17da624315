"""Parameter servers that wait and that do not: the second chapter of lesson C2. `glass run async_servers`."""

from __future__ import annotations

from typing import Any

from glasscluster.base.text import Said
from glasscluster.model.gpt import GPTStage
from glasscluster.model.text.data import batch, corpus
from glasscluster.scenarios.lab import Lab, scenario
from glasscluster.sim.ranks.one_thread import one_thread
from glasscluster.strategies.exchange import parameter_server as ps
from glasscluster.strategies.exchange.arrivals import Layout
from glasscluster.strategies.exchange.virtual_clock import virtual
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.judge.single_device import train_one_device
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.visualize.figures.plots import lines


@scenario("async_servers")
def async_servers(
    lab: Lab, workers: int = 8, servers: int = 2, staleness: int = 2, clocks: int = 24, slow: float = 2.0
) -> None:
    """Eight workers push gradients to two servers, and worker 0 is slow. Waiting for it, being at most some
    clocks ahead of it, and not waiting at all are three runs of one program, on the same examples; each
    equals its own single-process reference.
    """
    model = make_model("tiny", layers=1, hidden=32, heads=2, seq=16, vocab=64)
    train = make_plan(
        dp=workers,
        global_batch=8 * workers,
        micro_batch=8,
        precision="fp64",
        optimizer="sgd",
        lr=0.15,
        clip=0.0,
    )
    job, slow_ranks = Job(train, model, clocks, seed=lab.seed, capture=True), {0: slow}
    names = {
        "waits": ("Waits for everybody (s = 0)", "等待所有人（s = 0）"),
        "bounded": (
            f"At most {staleness} clocks ahead (s = {staleness})",
            f"至多领先 {staleness} 个时钟（s = {staleness}）",
        ),
        "free": ("Never waits", "从不等待"),
    }
    runs: dict[str, Any] = {}
    for key, s in (("waits", 0), ("bounded", staleness), ("free", clocks)):
        layout = Layout(workers, servers, clocks, s, own_ranks=True)
        plan = virtual(job, layout, lab.hardware, slow_ranks=slow_ranks)
        run = lab.run(
            key, names[key], ps.exchange, job, plan, gpus=layout.ranks, **job_info(job), **plan.info
        )
        if not lab.leader:
            continue
        line = lab.entries[-1].timelines[lab.hardware] = run.replay(lab.hardware, slow_ranks=slow_ranks)
        leads = max(x for r in run.results for x in r.leads)
        _check_run(lab, key, job, plan, run, line.makespan)
        halves = zip(*(run.results[layout.home(k)].history for k in range(servers)), strict=True)
        runs[key] = {
            "plan": plan,
            "run": run,
            "line": line,
            "leads": leads,
            "missed": [m for r in run.results for m in r.missed],
            "loss": held_out(model, [_join(h) for h in halves]),
            "at": [t * 1e3 for t in plan.applied[0][workers - 1 :: workers]],
        }
    if not lab.leader:
        return
    _check_waiting(lab, job, servers, runs["waits"]["run"])
    _draw(lab, names, runs)
    _tell(lab, staleness, runs)


def _check_run(lab: Lab, key: str, job: Job, plan: Any, run: Any, seconds: float) -> None:
    """Check one run against its reference in one process, and against the bytes and the time of its plan."""
    layout, s = plan.layout, plan.layout.staleness
    against = ps.compare(run.results, ps.in_one_process(job, plan), layout)
    for what, chinese, field in (("gradient", "梯度", "grad"), ("weight", "权重", "weight")):
        name = Said(
            f"{key}: largest {what} difference from the same plan in one process",
            f"{key}：与单进程按同一到达计划执行的最大{chinese}差异",
        )
        worst, exact = against[f"max_rel_{field}_diff"], {"unit": "relative", "tolerance": 1e-12}
        lab.check(f"{key}_{what}_difference", 0.0, worst, "own reference", name=name, **exact)
    sent = run.graph.bytes_sent()
    theory = ps.predict(layout, job.model.parameters(), 8)["sent"]
    name = Said(
        f"{key}: ranks that sent something else than the formula", f"{key}：发送量与公式不同的 rank 数"
    )
    other = sum(a != b for a, b in zip(sent, theory, strict=True))
    source = "Eq 11: 2S a worker and clock, 2WS/K a server"
    lab.check(f"{key}_ranks_that_sent_otherwise", 0, other, source, name=name, unit="ranks")
    leads = max(x for r in run.results for x in r.leads)
    if key != "free":
        name = Said(
            f"{key}: most clocks that a worker was ahead of the slowest",
            f"{key}：worker 领先最慢者的最大时钟数",
        )
        source = "Ho et al. 2013, section 2"
        lab.check(f"{key}_most_clocks_ahead", s, leads, source, name=name, unit="clocks")
    name = Said(f"{key}: time of the whole run", f"{key}：整个运行的时间")
    clock: dict[str, Any] = {"unit": "s", "match": "virtual", "tolerance": 1e-9}
    clock |= {"name": name, "simulated": seconds}
    lab.check(f"{key}_time_of_the_run", plan.makespan, None, "arrival plan", **clock)


def _check_waiting(lab: Lab, job: Job, servers: int, run: Any) -> None:
    """Check the run in which everybody waits: the bytes of each server, and the weights against one
    device.
    """
    model, clocks, workers = job.model, job.steps, job.plan.dp
    name = Said("sent and received by a server, a clock", "一个服务器每个时钟收发的量")
    counted = sum(run.graph.bytes_sent()[workers:]) * 2 / servers / clocks
    predicted = 2 * workers * model.parameters() * 8 / servers
    lab.check("server_bytes", predicted, counted, "Eq 11: 2WS/K", name=name)
    with one_thread():
        single = train_one_device(model, [job.batch(c) for c in range(clocks)], job.optimizer, 0.0, job.seed)
    alone, on_servers = (
        _join([t.reshape(-1) for t in single.weights[-1].values()]),
        _join([run.results[workers + k].shard for k in range(servers)]),
    )
    name = Said("weights of s = 0: largest difference from one device", "s = 0 的权重：与单卡的最大差异")
    worst = float((alone - on_servers).abs().max())
    source = "plain data parallelism"
    lab.check("waits_is_one_device", 0.0, worst, source, name=name, unit="relative", tolerance=1e-10)


def _draw(lab: Lab, names: dict[str, tuple[str, str]], runs: dict[str, Any]) -> None:
    """Draw the loss of the three runs against virtual time and against examples."""
    clocks = len(runs["waits"]["loss"])
    axes = {
        "en": ("virtual time (ms)", "batches' worth of pushes", "loss, held out"),
        "zh": ("虚拟时间（ms）", "相当于多少批的推送", "留出集损失"),
    }
    said = {lang: {key: names[key][lang == "zh"] for key in names} for lang in axes}
    lab.figure(
        ("Loss against time", "损失与时间"),
        lambda lang: _zoom(
            lines(
                {said[lang][k]: (r["at"], r["loss"]) for k, r in runs.items()}, axes[lang][0], axes[lang][2]
            )
        ),
    )
    lab.figure(
        ("Loss against examples", "损失与样本数"),
        lambda lang: _zoom(
            lines(
                {said[lang][k]: (range(1, clocks + 1), r["loss"]) for k, r in runs.items()}, *axes[lang][1:]
            )
        ),
    )


def _tell(lab: Lab, staleness: int, runs: dict[str, Any]) -> None:
    """Tell the story: each sentence links to the view that shows it."""
    clocks = len(runs["waits"]["loss"])
    half = clocks // 2
    late = {k: sum(r["loss"][half:]) / (clocks - half) for k, r in runs.items()}
    wait, free, bound = runs["waits"], runs["free"], runs["bounded"]
    lab.tell(
        (
            f"Half of all gradients are in after {wait['at'][half - 1]:.3f} ms when everybody waits, "
            f"and after {free['at'][half - 1]:.3f} ms when nobody does.",
            f"所有人都等待时，{wait['at'][half - 1]:.3f} ms 后一半的梯度已到；无人等待时只需 {free['at'][half - 1]:.3f} ms。",
        ),
        view="tab=timeline&run=free",
    )
    lab.tell(
        (
            f"But a gradient then missed {sum(free['missed']) / len(free['missed']):.1f} other updates "
            f"on average, and {max(free['missed'])} at most: it belongs to weights that are gone.",
            f"但此时一个梯度平均错过了 {sum(free['missed']) / len(free['missed']):.1f} 次别人的更新，最多 "
            f"{max(free['missed'])} 次：它属于早已不在的权重。",
        ),
        view="tab=ledger&run=free",
    )
    lab.tell(
        (
            f"On the same examples the held-out loss of the second half averages {late['free']:.3f} "
            f"without waiting and {late['waits']:.3f} with it"
            + (": asynchronous is not free." if late["free"] > late["waits"] else "."),
            f"样本相同，后一半的留出集损失平均：不等待 {late['free']:.3f}，等待 {late['waits']:.3f}"
            + ("：异步并非没有代价。" if late["free"] > late["waits"] else "。"),
        ),
        view="tab=story",
    )
    lab.tell(
        (
            f"At most {staleness} clocks ahead it is {late['bounded']:.3f}; after its head start "
            f"everybody goes at the pace of the slowest: half are in after {bound['at'][half - 1]:.3f} ms.",
            f"至多领先 {staleness} 个时钟时为 {late['bounded']:.3f}；先跑完领先的部分后，人人都按最慢者的步调走："
            f"{bound['at'][half - 1]:.3f} ms 后到了一半。",
        ),
        view="tab=timeline&run=bounded",
    )
    lab.tell(
        (
            "The order in these recordings is fixed: replayed on other hardware, servers still serve "
            "in the order as recorded.",
            "这些记录中的顺序是固定的：换一种硬件回放时，服务器仍按记录的顺序处理。",
        ),
        view="tab=timeline&run=waits",
    )
    lab.conclude(
        (
            f"Never waiting, half the gradients arrive "
            f"{wait['at'][half - 1] / free['at'][half - 1]:.2f} times as fast, and the loss on the "
            f"same examples is {late['free'] - late['waits']:+.3f}.",
            f"从不等待时，一半梯度的到达快 {wait['at'][half - 1] / free['at'][half - 1]:.2f} 倍，而同样样本上的损失变化 "
            f"{late['free'] - late['waits']:+.3f}。",
        )
    )


def held_out(model: Any, weights: list[Any]) -> list[float]:
    """Return the mean loss of flat weights on sequences that no run trains on."""
    import torch

    shape = GPTStage(model, dtype=torch.float64)
    parameters = [p for p, _ in shape.full_names().values()]
    tokens, targets = batch(corpus(), 10**6, 128, model.seq, model.vocab, 10**6)
    losses = []
    with torch.no_grad(), one_thread():
        for flat in weights:
            torch.nn.utils.vector_to_parameters(flat.double(), parameters)
            losses.append(float(shape(tokens, targets)) / targets.numel())
    return losses


def _join(parts: Any) -> Any:
    import torch

    return torch.cat(list(parts))


def _zoom(figure: Any) -> Any:
    """A loss has no use for zero on its axis."""
    return figure.update_yaxes(rangemode="normal")
