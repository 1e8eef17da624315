"""Parameter servers and backup workers equal their own references; the order of arrival repeats, and breaking
anything shows.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from glasscluster.base.errors import InputError
from glasscluster.commands.app import app
from glasscluster.scenarios.find_scenario import find
from glasscluster.scenarios.lab import Lab, perform
from glasscluster.sim.recording.events import RECV, SEND
from glasscluster.sim.run import Cluster
from glasscluster.strategies.exchange import arrivals, backup_workers
from glasscluster.strategies.exchange import parameter_server as ps
from glasscluster.strategies.exchange.arrivals import WORK, Layout, seeded, synchronous
from glasscluster.strategies.exchange.virtual_clock import virtual
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.judge import check
from glasscluster.strategies.judge.single_device import train_one_device
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.trainer import train_rank

MODEL = make_model("tiny", layers=1, hidden=16, heads=4, seq=6, vocab=30)


def job_of(workers: int, optimizer: str = "sgd", steps: int = 4, **options) -> Job:
    plan = make_plan(
        dp=workers,
        global_batch=2 * workers,
        micro_batch=2,
        precision="fp64",
        optimizer=optimizer,
        lr=1e-2,
        clip=0.0,
    )
    return Job(plan, MODEL, steps, capture=True, **options)


def run_of(job: Job, plan, backend: str = "threads", **options):
    return Cluster("classroom", plan.layout.ranks, backend, memory_bytes=None, **options).run(
        ps.exchange, job, plan, info=plan.info
    )


def worst(job: Job, plan, run=None, alone=None) -> float:
    compared = ps.compare(
        (run or run_of(job, plan)).results, alone or ps.in_one_process(job, plan), plan.layout
    )
    return max(compared.values())


LAYOUTS = [
    (1, 1, 0, True),
    (2, 1, 1, True),
    (3, 2, 2, True),
    (4, 3, 1, True),
    (2, 2, 0, False),
    (4, 4, 3, False),
    (5, 2, 4, False),
    (3, 3, 9, True),
]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("workers", "servers", "staleness", "own_ranks"), LAYOUTS)
def test_an_asynchronous_run_equals_its_arrival_plan_in_one_process(
    workers, servers, staleness, own_ranks, optimizer
):
    job, layout = job_of(workers, optimizer), Layout(workers, servers, 4, staleness, own_ranks)
    for seed in range(3):
        assert worst(job, seeded(layout, seed)) <= (1e-12 if optimizer == "sgd" else 1e-10)


@pytest.mark.parametrize("own_ranks", [True, False])
def test_an_order_drawn_from_the_virtual_clock_is_followed_and_takes_as_long_as_the_replay_says(own_ranks):
    job, layout, slow = job_of(4), Layout(4, 2, 6, 2, own_ranks), {1: 2.5, 3: 1.3}
    plan = virtual(job, layout, slow_ranks=slow)
    run = run_of(job, plan)
    assert worst(job, plan, run) <= 1e-12
    line = run.replay("classroom", slow_ranks=slow, precision="fp64")
    assert line.makespan == pytest.approx(plan.makespan, rel=1e-9)
    assert run.graph.info["order_fixed"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("workers", "servers", "own_ranks"), [(1, 1, True), (3, 2, True), (4, 4, False), (4, 1, False)]
)
def test_the_synchronous_mode_equals_one_device(workers, servers, own_ranks, optimizer):
    job, plan = job_of(workers, optimizer), synchronous(Layout(workers, servers, 4, None, own_ranks))
    run = run_of(job, plan)
    one = train_one_device(MODEL, [job.batch(c) for c in range(4)], job.optimizer, 0.0, job.seed)
    expected = torch.cat([t.reshape(-1) for t in one.weights[-1].values()])
    for result in run.results[:workers]:
        assert check.difference(result.pulled, expected, 1.0) <= 1e-10
    gradients = torch.cat([t.reshape(-1) for t in one.gradients[0].values()])
    assert (
        check.difference(
            sum(r.pushes[0] for r in run.results[:workers]), gradients, 1e-3 * float(gradients.abs().max())
        )
        <= 1e-10
    )
    assert worst(job, plan, run) <= 1e-10


def test_with_staleness_0_and_sgd_the_asynchronous_mode_is_the_synchronous_one():
    job, ends = job_of(4), []
    for plan in (synchronous(Layout(4, 2, 4, None, True)), seeded(Layout(4, 2, 4, 0, True), 5)):
        ends.append(torch.cat([r.shard for r in run_of(job, plan).results[4:]]))
    assert check.difference(ends[0], ends[1], 1.0) <= 1e-12


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_nobody_is_more_than_s_clocks_ahead_and_somebody_is_exactly_s(staleness):
    job, layout = job_of(3), Layout(3, 2, 8, staleness, True)
    plan = virtual(job, layout, slow_ranks={2: 9.0})
    graph = run_of(job, plan).graph
    ahead = []
    for k in range(layout.servers):  # from the recording: what had come to a server when it answered
        for row in np.flatnonzero((graph.kind == SEND) & (graph.rank == layout.home(k))):
            seen, stack = set(), [int(row)]
            while stack:
                at = stack.pop()
                before = [d for d in graph.dependencies(at).tolist() if d not in seen]
                seen.update(before)
                stack += before
            came = [
                int(graph.peer[r]) for r in seen if graph.kind[r] == RECV and graph.rank[r] == layout.home(k)
            ]
            clocks = [came.count(w) for w in range(layout.workers)]
            ahead.append(clocks[int(graph.peer[row])] - min(clocks))
    assert max(ahead) == staleness


@pytest.mark.parametrize(
    ("workers", "servers", "own_ranks"),
    [(1, 1, True), (3, 2, True), (4, 4, False), (4, 3, False), (2, 5, True)],
)
def test_bytes_of_servers_and_workers_are_the_formula_s(workers, servers, own_ranks):
    layout, psi = Layout(workers, servers, 3, 1, own_ranks), MODEL.parameters()
    graph = run_of(job_of(workers), seeded(layout, 0)).graph
    theory, received = ps.predict(layout, psi, 8), np.zeros(layout.ranks, int)
    np.add.at(received, graph.rank[graph.kind == RECV], graph.bytes[graph.kind == RECV])
    assert graph.bytes_sent() == theory["sent"]
    assert received.tolist() == theory["received"]
    if own_ranks and psi % servers == 0:
        assert theory["sent"][workers] + theory["received"][workers] == 3 * 2 * workers * psi * 8 // servers
        assert theory["sent"][0] + theory["received"][0] == 3 * 2 * psi * 8
    if not own_ranks and servers == workers and psi % workers == 0:
        assert theory["sent"] == [3 * 2 * psi * 8 * (workers - 1) // workers] * workers


def test_the_same_seed_gives_the_same_graph_and_the_same_bits_in_any_order_of_threads():
    job, layout = job_of(4, "adamw"), Layout(4, 2, 4, 2, True)
    runs = [run_of(job, virtual(job, layout, slow_ranks={0: 1.7}, jitter=0.5), seed=s) for s in (1, 2)]
    assert runs[0].graph.sha256() == runs[1].graph.sha256()
    assert all(any(getattr(r, kind) is not None for r in runs[0].results) for kind in ("pulled", "shard"))
    for a, b in zip(*(r.results for r in runs), strict=True):
        assert a.losses == b.losses
        assert all(torch.equal(x, y) for x, y in ((a.pulled, b.pulled), (a.shard, b.shard)) if x is not None)
    assert seeded(layout, 1) == seeded(layout, 1)
    assert seeded(layout, 1) != seeded(layout, 2)


def test_a_dry_recording_is_the_real_one():
    job, plan = job_of(3), seeded(Layout(3, 2, 3, 1, True), 4)
    assert run_of(job, plan, "dry").graph.sha256() == run_of(job, plan).graph.sha256()


@pytest.mark.ray
def test_on_ray_actors_the_same_plan_gives_the_same_bits(actors):
    job, plan = job_of(2, "adamw"), virtual(job_of(2, "adamw"), Layout(2, 2, 4, 1, True), slow_ranks={1: 3.0})
    there = actors(plan.layout.ranks).run(ps.exchange, job, plan, info=plan.info)
    here = run_of(job, plan)
    assert all(any(getattr(r, kind) is not None for r in here.results) for kind in ("pulled", "shard"))
    for a, b in zip(there.results, here.results, strict=True):
        assert all(torch.equal(x, y) for x, y in ((a.pulled, b.pulled), (a.shard, b.shard)) if x is not None)
    assert there.graph.sha256() == here.graph.sha256()


@pytest.mark.parametrize(
    ("wrong", "field"),
    [((2, 3, 1, 0, False), "servers"), ((2, 0, 1, 0, True), "servers"), ((2, 1, 1, -1, True), "staleness")],
)
def test_a_layout_that_cannot_be_is_named(wrong, field):
    with pytest.raises(InputError, match=field):
        Layout(*wrong)


def test_a_plan_that_cannot_happen_is_told_apart_from_one_that_can():
    plan = seeded(Layout(2, 1, 2, 0, True), 0)
    with pytest.raises(ValueError, match="cannot happen"):
        ps.in_one_process(job_of(2), replace(plan, scripts=((WORK, WORK), (WORK, WORK), (0, 0, 1, 1))))


# ---- mutations: the check can fail -------------------------------------------------------------------------
def planned(staleness: int | None = 1):
    job, layout = job_of(3), Layout(3, 2, 4, staleness, True)
    plan = virtual(job, layout, slow_ranks={2: 9.0}) if staleness is not None else synchronous(layout)
    return job, plan, ps.in_one_process(job, plan)


def test_two_pushes_applied_in_the_wrong_order_are_caught():
    job, plan, alone = planned()
    script, caught = list(plan.scripts[3]), 0
    for i in range(len(script) - 1):  # next to each other, of two workers whose pushes are both under way
        a, b = script[i : i + 2]
        other = (*script[:i], b, a, *script[i + 2 :])
        mutated = replace(plan, scripts=(*plan.scripts[:3], other, *plan.scripts[4:]))
        if a == b:
            continue
        try:
            honest = ps.in_one_process(job, mutated)
        except ValueError:
            continue  # this order cannot happen
        if max(float((x - y).abs().max()) for x, y in zip(honest.pulled, alone.pulled, strict=True)) > 1e-9:
            assert worst(job, plan, run_of(job, mutated), alone) > 1e-9
            caught += 1
    assert caught


def test_a_skipped_staleness_wait_is_caught(monkeypatch):
    job, plan, alone = planned()
    monkeypatch.setattr(ps.Server, "may_go_on", lambda self, u: True)
    run = run_of(job, plan)
    assert worst(job, plan, run, alone) > 1e-9
    assert max(x for r in run.results for x in r.leads) > 1


def test_average_for_sum_is_caught(monkeypatch):
    job, plan, alone = planned(None)
    honest = ps.Server.apply
    monkeypatch.setattr(ps.Server, "apply", lambda self, g: honest(self, g / self.layout.workers))
    assert worst(job, plan, run_of(job, plan), alone) > 1e-9


def test_a_gradient_on_fresh_instead_of_pulled_weights_is_caught(monkeypatch):
    job, plan, alone = planned()
    honest = ps.Worker.pull

    def stays(self):
        kept = self.replica.flat.clone()
        honest(self)
        if self.clock == 2:
            self.replica.flat.copy_(kept)

    monkeypatch.setattr(ps.Worker, "pull", stays)
    assert worst(job, plan, run_of(job, plan), alone) > 1e-9


# ---- backup workers ----------------------------------------------------------------------------------------
def backed_up(job: Job, chosen, workers: int, backend: str = "threads"):
    return Cluster("classroom", workers + 1, backend, memory_bytes=None).run(
        backup_workers.train_with_backups, job, chosen, info=job_info(job)
    )


def distance(results, job: Job, chosen, workers: int) -> float:
    one, server = backup_workers.one_device_on_what_counted(job, chosen, workers), results[-1]
    gaps = []
    for mine, theirs, floor in ((server.gradients, one.gradients, 1e-3), (server.weights, one.weights, None)):
        for a, b in zip(mine, theirs, strict=True):
            largest = max(float(t.abs().max()) for t in b.values())
            gaps += [check.difference(a[n], b[n], floor * largest if floor else 1.0) for n in b]
    return max(gaps)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("needed", "backups"), [(1, 0), (1, 2), (3, 1), (2, 3)])
def test_backup_workers_equal_one_device_on_what_counted(needed, backups, optimizer):
    workers = needed + backups
    job = job_of(workers, optimizer)
    for seed in range(2):
        chosen = backup_workers.fastest(np.random.default_rng(seed).exponential(size=(4, workers)), needed)
        assert distance(backed_up(job, chosen, workers).results, job, chosen, workers) <= 1e-10


def test_a_gradient_that_came_too_late_and_still_counts_is_caught():
    job, times = job_of(3), np.random.default_rng(0).exponential(size=(4, 3))
    results = backed_up(job, backup_workers.fastest(times, 3), 3).results
    assert distance(results, job, backup_workers.fastest(times, 2), 3) > 1e-6


def test_a_dropped_worker_may_be_slow_and_a_needed_one_may_not():
    job = job_of(3)
    graph = backed_up(job, ((0, 2),) * 4, 3)
    server = graph.graph.rank == 3

    def last(slow):
        return float(graph.replay("classroom", slow_ranks=slow, precision="fp64").end[server].max())

    assert last({1: 5.0}) == last({})
    assert last({2: 5.0}) > last({})


def test_the_expected_step_is_the_harmonic_sum():
    assert backup_workers.predict(3, 0) == pytest.approx(1 + 1 / 2 + 1 / 3)
    assert backup_workers.predict(2, 2, rate=2.0) == pytest.approx((1 / 3 + 1 / 4) / 2)


def test_the_clock_serves_what_is_ready_first():
    layout = Layout(2, 1, 1, 1, True)
    times = arrivals.Times(
        lambda w, c: (5.0, 1.0)[w], lambda k: 1.0, lambda k: 0.5, lambda *_: 2.0, lambda *_: 0.25
    )
    plan = arrivals.arrive(layout, times, "by hand")
    assert plan.scripts == ((WORK,), (WORK,), (1, 0))
    assert plan.applied == (
        (4.25, 8.25),
    )  # 1 + 2 + 0.25 + 1; then 5 + 2 + 0.25 + 1: the server had long been free
    assert plan.makespan == pytest.approx(8.25 + 0.5 + 2 + 0.25)  # the answer to worker 0


# ---- as a person runs it -----------------------------------------------------------------------------------
def glass(*words: str):
    return CliRunner().invoke(app, [*words, "--backend", "threads"])


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        (["--exchange", "parameter-server", "--servers", "2"], "one device"),
        (
            ["--exchange", "async-server", "--staleness", "1", "--jitter", "1", "--optimizer", "sgd"],
            "the arrival plan in one process",
        ),
    ],
)
def test_glass_train_checks_an_exchange_against_its_own_reference_and_its_order_stays_as_recorded(
    options, reference, tmp_path
):
    shape = ["--layers", "1", "--hidden", "16", "--seq", "8", "--vocab", "30", "--steps", "4"]
    done = glass("train", "--dp", "3", *options, *shape, "--json", "--out", str(tmp_path / "run"))
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["reference"] == reference
    assert said["checked_steps"] == 3
    assert len(said["losses"]) == 4
    assert max(said[f"max_rel_{k}_diff"] for k in ("grad", "weight", "loss")) <= 1e-10
    again = json.loads(
        CliRunner().invoke(app, ["replay", str(tmp_path / "run"), "--hardware", "dgx-h100", "--json"]).stdout
    )
    fixed = "async-server" in options
    assert again.get("order") == said.get("order") == ("as recorded" if fixed else None)
    assert ("order as recorded" in (tmp_path / "run" / "report.html").read_text()) == fixed


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("tp", ["--tp", "2"]),
        ("zero", ["--zero", "1"]),
        ("clip", ["--clip", "1"]),
        ("precision", ["--precision", "bf16"]),
        ("dropout", ["--dropout", "0.1"]),
        ("servers", ["--servers", "9"]),
    ],
)
def test_what_an_exchange_cannot_do_is_named(field, options):
    wrong = glass("train", "--dp", "2", "--exchange", "async-server", *options)
    assert isinstance(wrong.exception, InputError)
    assert str(wrong.exception).startswith(f"{field} = ")


def test_staleness_without_an_asynchronous_server_is_named():
    for exchange in ([], ["--exchange", "parameter-server"]):
        wrong = glass("train", "--dp", "2", "--staleness", "2", *exchange)
        assert isinstance(wrong.exception, InputError)
        assert "async-server" in str(wrong.exception)
    with pytest.raises(InputError, match="another program"):
        Cluster("classroom", 2, "dry").run(
            train_rank, Job(make_plan(dp=2, exchange="async-server"), MODEL, 1)
        )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("async_servers", {"workers": 3, "clocks": 6, "staleness": 1, "slow": 8.0}),
        ("diloco", {"replicas": 2, "steps": 10, "every": 4}),
    ],
)
def test_the_scenarios_hold_in_both_languages_and_their_figures_are_drawn(name, options):
    scenario = find(name)
    lab = perform(scenario, Lab(scenario, "threads", scenario.hardware), options)
    assert lab.ok, [r.key for r in lab.all_checks if r.verdict == "failed"]
    assert [r.key for r in lab.all_checks if r.name.zh == r.name.en] == []
    for _, make in lab.figures:
        assert all(len(make(lang).data) == 3 for lang in ("en", "zh"))
