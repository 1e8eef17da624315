"""GPipe and 1F1B as data, and what they cost when the real GPT or equal stages run them. All ten as data:
test_schedule_lists.py.
"""

from __future__ import annotations

import pytest
from helpers import run_plan

from glasscluster.base.errors import Deadlock, InputError
from glasscluster.scenarios.jobs import equal_stages
from glasscluster.sim.recording.events import COMPUTE, PHASES
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import hardware as find_hardware
from glasscluster.strategies.judge import accounts
from glasscluster.strategies.layout.judged import Judged
from glasscluster.strategies.pipeline.options import split_layers
from glasscluster.strategies.pipeline.rows import gpipe_makespan
from glasscluster.strategies.pipeline.schedules import FOLDED, LOOPED, SCHEDULES, make_schedule
from glasscluster.strategies.pipeline.schedules.base import Action, Schedule
from glasscluster.strategies.plan import make_model, make_plan

SHAPES = [(1, 1), (1, 4), (2, 1), (2, 2), (3, 5), (4, 4), (4, 8), (4, 3), (8, 16)]


# ---- as data -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("p", "m"), SHAPES)
@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_equal_stages_have_both_bubbles_of_f20_and_the_live_micro_batches_of_f22(name, p, m):
    judged = make_schedule(name, p, m).validate(f=1, b=2)
    assert judged.makespan == (m + p - 1) * 3
    assert judged.bubble_fraction == pytest.approx((p - 1) / (m + p - 1), abs=1e-12)
    assert judged.bubble_over_ideal == pytest.approx((p - 1) / m, abs=1e-12)
    assert judged.peak_live == [m if name == "gpipe" else min(m, p - s) for s in range(p)]


def test_a_planted_deadlock_is_named_before_anything_runs():
    ranks = [
        [Action(0, "F", 0), Action(0, "B", 0), Action(0, "F", 1), Action(0, "B", 1)],
        [Action(1, "F", 1), Action(1, "B", 1), Action(1, "F", 0), Action(1, "B", 0)],
    ]
    with pytest.raises(Deadlock, match="rank 0 waits in 0B0 for 1B0; rank 1 waits in 1F1 for 0F1"):
        Schedule("planted", 2, 2, ranks).validate()


@pytest.mark.parametrize("spoil", ["drop", "twice", "backward first"])
def test_an_incomplete_or_doubled_schedule_is_refused(spoil):
    ranks = [list(r) for r in make_schedule("1f1b", 2, 2).ranks]
    if spoil == "drop":
        ranks[1].pop()
    elif spoil == "twice":
        ranks[0].append(ranks[0][0])
    else:
        ranks[1][0], ranks[1][1] = ranks[1][1], ranks[1][0]
    with pytest.raises(InputError, match="planted"):
        Schedule("planted", 2, 2, ranks).validate()


def test_layers_are_split_as_the_contract_says():
    assert split_layers(8, 4) == [2, 2, 2, 2]
    assert split_layers(126, 128) == [0, *[1] * 126, 0]
    assert split_layers(7, 4) == [1, 2, 2, 2]
    assert split_layers(6, 4) == [1, 2, 2, 1]


# ---- the real GPT ------------------------------------------------------------------------------------------
EVERY = [(n, 2 if n in FOLDED or n in LOOPED else 1) for n in SCHEDULES] + [(n, 3) for n in LOOPED]
MODEL = {"layers": 5, "hidden": 32, "heads": 4, "seq": 16}


@pytest.mark.parametrize("hardware", ["classroom", "dgx-a100-80gb"])
@pytest.mark.parametrize(("p", "m", "dp"), [(2, 1, 1), (2, 4, 1), (3, 5, 1), (4, 8, 1), (5, 3, 1), (2, 3, 2)])
def test_gpipe_on_the_real_gpt_takes_what_f20_says(p, m, dp, hardware):
    plan = make_plan(pp=p, dp=dp, schedule="gpipe", global_batch=m * dp)
    line = run_plan(plan, make_model("tiny", **MODEL)).replay(hardware)
    forward, backward = [], []
    for stage in range(p):
        spent = line.phase_seconds(stage * dp)
        for times, phase in ((forward, "forward"), (backward, "backward")):
            each = [spent[phase, i] for i in range(m)]
            assert each == pytest.approx([each[0]] * m, rel=1e-9)
            times.append(each[0])
    link = line.hardware.link(0, 1)
    hop = (
        link.overhead_s
        + plan.micro_batch * MODEL["seq"] * MODEL["hidden"] * 4 / link.bandwidth
        + link.latency_s
    )
    predicted = sum(forward) + sum(backward) + (m - 1) * (max(forward) + max(backward)) + 2 * (p - 1) * hop
    first, last = line.window
    assert last - first == pytest.approx(predicted, rel=1e-9)
    assert gpipe_makespan(plan, line) == pytest.approx(predicted, rel=1e-12)


def makespan_row(plan, line, results):
    """The one row that Eq 20 predicts; it is there whatever becomes of it."""
    judged = Judged(plan, make_model("tiny", **MODEL), line.graph, results, line)
    (row,) = (r for r in accounts.rows(judged) if r.key == "gpipe_makespan")
    return row


def test_an_operation_that_ends_a_millionth_later_fails_the_makespan_row():
    plan = make_plan(pp=3, schedule="gpipe", global_batch=4)
    run = run_plan(plan, make_model("tiny", **MODEL))
    assert makespan_row(plan, run.timeline, run.results).verdict == "held"
    late, long = run.replay("classroom"), run.replay("classroom")
    backward, later = PHASES.index("backward"), 1e-6 * run.timeline.makespan
    computed = (late.graph.kind == COMPUTE).nonzero()[0]
    last = max(computed, key=lambda row: (late.graph.phase[row] == backward, late.end[row]))
    late.start[last] += later  # it takes as long as before, so Eq 20 holds for it; it only begins too late
    late.end[last] += later
    assert makespan_row(plan, late, run.results).verdict == "failed"
    long.end[last] += later  # it takes longer than for other micro-batches, of which Eq 20 does not speak
    row = makespan_row(plan, long, run.results)
    assert (row.verdict, row.ok, row.predicted) == ("not applicable", None, None)
    assert "same time for every micro-batch" in row.because.en


def test_a_stage_that_is_slower_for_every_micro_batch_is_what_f20_speaks_of():
    plan = make_plan(pp=3, schedule="gpipe", global_batch=4)
    run = run_plan(plan, make_model("tiny", **MODEL))
    slow = run.replay("classroom", slow_ranks={1: 1.5})
    assert slow.makespan > run.timeline.makespan
    row = makespan_row(plan, slow, run.results)
    assert row.verdict == "held"
    assert row.predicted != makespan_row(plan, run.timeline, run.results).predicted


@pytest.mark.parametrize(
    ("options", "hardware", "why"),
    [({"tp": 2}, "classroom", "partners"), ({"micro_batch": 1}, "narrow", "the port is the bottleneck")],
)
def test_off_f20_s_domain_the_makespan_row_says_why(options, hardware, why):
    plan = make_plan(pp=2, schedule="gpipe", global_batch=4, **options)
    run = run_plan(plan, make_model("tiny", **MODEL))
    clock = find_hardware("classroom")
    line = run.replay(clock.scaled(bandwidth=1e-3) if hardware == "narrow" else clock)
    assert why in makespan_row(plan, line, run.results).because.en


@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 2), (4, 8), (5, 3)])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_micro_batches_in_flight_are_counted_from_what_ran(schedule, p, m):
    graph = run_plan(make_plan(pp=p, schedule=schedule, global_batch=m), make_model("tiny", **MODEL)).graph
    assert [graph.in_flight(s) for s in range(p)] == [
        m if schedule == "gpipe" else min(m, p - s) for s in range(p)
    ]


def test_1f1b_holds_less_memory_than_gpipe_and_takes_no_longer_on_free_links():
    model = make_model("tiny", **MODEL)
    peaks = {
        s: run_plan(make_plan(pp=4, schedule=s, global_batch=12), model, "dry").peak_memory()[-1][0]
        for s in ("gpipe", "1f1b")
    }
    assert peaks["1f1b"] < peaks["gpipe"]


# ---- equal stages ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("p", "m"), [(2, 1), (2, 4), (4, 4), (4, 8), (3, 7)])
@pytest.mark.parametrize(("name", "v"), EVERY)
def test_equal_stages_that_really_run_take_what_the_schedule_says(name, v, p, m):
    """Every schedule, with F = I = W: what the validator says of the list is what the clock says
    of the run.
    """
    run = Cluster("classroom", p, "threads").run(equal_stages.stages, name, m, v)
    f, schedule = 1e-3, make_schedule(name, p, m, v)
    for hop in (0.0, 0.4 * f):
        line = run.replay(equal_stages.machine(f, hop))
        judged = equal_stages.as_it_runs(schedule).validate(f, 2 * f, hop, f)
        assert line.makespan == pytest.approx(judged.makespan, rel=1e-9)
        bubble = line.bubble()
        assert bubble["bubble_fraction"] == pytest.approx(judged.bubble_fraction, rel=1e-9, abs=1e-12)
        assert bubble["bubble_over_ideal"] == pytest.approx(judged.bubble_over_ideal, rel=1e-9, abs=1e-12)
        assert bubble["stage_span_bubble_fraction"] == pytest.approx(
            judged.stage_span_bubble_fraction, rel=1e-9, abs=1e-12
        )
    if name in ("gpipe", "1f1b"):
        assert run.replay(equal_stages.machine()).makespan == pytest.approx((m + p - 1) * 3 * f, rel=1e-9)
    for r, result in enumerate(run.results):
        assert result["live"] == schedule.validate().peak_live[r]
        assert sorted(result["gradients"]) == schedule.stages_of(r)
        for gradient in result["gradients"].values():
            assert (gradient == float(m) * float(equal_stages.N) ** schedule.stages).all()
