"""Every bug of the zoo is caught by exactly the gates named for it; a bug that does nothing is not caught,
and the scenario says so.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from test_cli import glass

from glasscluster.model.parallel import Unsharded
from glasscluster.scenarios.find_scenario import find
from glasscluster.scenarios.lab import Lab, perform
from glasscluster.scenarios.zoo import plants, zoo
from glasscluster.scenarios.zoo.zoo import GRADIENT, LOSS, WEIGHT, ZOO
from glasscluster.strategies.assembly import Place
from glasscluster.strategies.context.context_parallel import RingContext
from glasscluster.strategies.data.stages import LADDER, Stages
from glasscluster.strategies.observer import Observer
from glasscluster.strategies.tensor.sequence_parallel import SequenceParallel
from glasscluster.strategies.tensor.tensor_parallel import TensorParallel
from glasscluster.strategies.trainer import Trainer, train_rank

SILENT = {  # the loss of the first step is one device's
    "norms-not-summed",
    "loss-scaled-by-tp",
    "experts-doubled",
    "cp-averaged",
    "ring-stale-keys",
    "lost-bucket",
    "tied-not-summed",
    "norm-counted-twice",
    "zero-all-reduces",
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def lab() -> Lab:
    scenario = find("zoo")
    return Lab(scenario, scenario.backend, scenario.hardware)


@pytest.mark.parametrize("bug", ZOO, ids=lambda b: b.id)
def test_a_bug_is_caught_by_its_gates_and_by_no_other_and_its_honest_twin_by_none(bug):
    here = lab()
    with here._open:
        outcome = zoo.examine(here, bug)
    assert [(r.name.en, r.counted) for r in here.checks if r.verdict != "held"] == []
    assert len(here.checks) == 3
    assert outcome.gates == bug.gates
    assert (outcome.first[LOSS] <= 1e-12) == (bug.id in SILENT) == (LOSS not in bug.gates)
    clear = (
        [d for gate, d in outcome.first.items() if gate in bug.gates],
        [d for gate, d in outcome.first.items() if gate not in bug.gates],
    )
    assert all(d > 1e-7 for d in clear[0])  # no gate is close
    assert all(d < 3e-11 for d in clear[1])


def test_what_is_planted_is_in_its_own_run_alone():
    parallel = (Unsharded, TensorParallel, SequenceParallel, RingContext)
    touched = (Trainer, Place, Stages, *LADDER.values(), *parallel)
    before = [dict(vars(owner)) for owner in touched]
    assert list(plants.PLANTS) == [bug.id for bug in ZOO]
    for bug in ZOO:
        job = zoo.make_job(bug)
        wrong = zoo.planted(bug, job)
        assert (job.observers, wrong.observers) == ((), (plants.PLANTS[bug.id],))
        here = lab()
        with here._open:
            here.cluster(job.plan.gpus).run(train_rank, replace(wrong, steps=1), record=False)
        assert [dict(vars(owner)) for owner in touched] == before


def test_every_bug_says_what_goes_wrong_in_two_languages_and_who_reported_the_like():
    assert len({b.id for b in ZOO}) == len(ZOO) >= 7
    for bug in ZOO:
        assert bug.gates
        assert bug.reports
        for english, chinese in (bug.title, bug.wrong):
            assert not re.search("[一-鿿]", english)
            assert re.search("[一-鿿]", chinese)
        for report in bug.reports:
            assert re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+/(issues|pull)/\d+", report.url)
            assert report.title


def test_some_bugs_only_the_gradients_tell_some_only_the_weights_and_some_only_the_bytes():
    gates = {b.gates for b in ZOO}
    assert {frozenset({GRADIENT}), frozenset({WEIGHT})} <= gates
    assert any(not g & {GRADIENT, WEIGHT, LOSS} for g in gates)


def with_a_bug_that_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "ZOO", (replace(zoo.find("norms-not-summed"), id="harmless"),))
    monkeypatch.setitem(plants.PLANTS, "harmless", Observer)


def test_a_bug_that_does_nothing_is_reported_as_not_caught_with_exit_code_1(monkeypatch, capsys):
    with_a_bug_that_does_nothing(monkeypatch)
    code, out, _ = glass(capsys, *"run zoo --out run".split())
    assert code == 1
    assert "0 of 1 bugs are caught" in out
    assert (
        "FAILED: harmless: gates that must catch it and do not (gradient; tp gradients of norms, biases "
        "and positions sent; weight)" in out
    )


def test_a_gate_that_is_not_named_is_reported_too(monkeypatch):
    bug = zoo.find("lost-bucket")
    monkeypatch.setattr(zoo, "ZOO", (replace(bug, gates=bug.gates - {WEIGHT}),))
    made = perform(find("zoo"), lab(), {})
    (row,) = (r for r in made.checks if r.verdict == "failed")
    assert row.key == "lost_bucket_surprising"
    assert row.name.en == "lost-bucket: gates that fail beside those named (weight)"
    assert row.name.zh.endswith("（权重）")


def test_one_bug_runs_with_exit_code_0_and_unannounced_with_exit_code_1(capsys):
    code, out, _ = glass(capsys, *"run zoo --bug ring-stale-keys --out told".split())
    assert code == 0
    assert "1 of 1 bugs are caught" in out
    code, out, _ = glass(capsys, *"run zoo --bug ring-stale-keys --as-student --out untold".split())
    assert code == 1
    assert "FAILED: largest gradient difference from one device" in out
    assert "ring-stale" not in out  # that would give it away


@pytest.mark.parametrize(
    ("words", "said"),
    [("--bug nrms-not-summed", "norms-not-summed"), ("--backend ray", "threads"), ("--as-student", "--bug")],
)
def test_bad_options_are_named(capsys, words, said):
    code, _, err = glass(capsys, "run", "zoo", *words.split())
    assert code == 2
    assert said in err


def test_the_same_training_of_the_program_itself_stays_honest_beside_the_zoo():
    job = zoo.make_job(zoo.find("mean-of-means"))
    here = lab()
    with here._open:
        run = here.cluster(job.plan.gpus).run(train_rank, job)
    assert zoo.judge(job, run, zoo.alone(job)).gates == frozenset()
