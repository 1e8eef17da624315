"""Refusals, judges and lengths: what an evaluation of safety counts, against counting by hand; and F3's rows
on them can fail.
"""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from glasscluster.model.text import tasks
from glasscluster.model.text.tasks import contaminated, facts, plain, requests
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import taught_lesson
from glasscluster.scenarios.lessons.f3_eval_harness import program as f3
from glasscluster.strategies.serving import safety


def test_rates_and_their_sweep_are_what_counting_gives():
    harmful, harmless = [2.0, 1.0, 1.0, -1.0], [1.0, 0.0, -2.0, -2.0]
    assert safety.rates(harmful, harmless, 0.0) == (0.75, 0.25)
    curve = safety.sweep(harmful, harmless)
    assert (curve[0], curve[-1]) == ((0.0, 0.0), (1.0, 1.0))
    assert curve == sorted(curve)
    won = 4 + 2 * 3.5 + 2  # of pairs: each harmful score against the four harmless ones
    assert safety.pairs_in_order(harmful, harmless) == won / 16 == safety.area(curve)


def test_a_word_that_only_refused_requests_have_speaks_for_a_refusal_and_an_unknown_one_for_nothing():
    classifier = safety.WordClassifier(["break a", "burn a"], ["open a", "read a"])
    assert classifier.score("break") == pytest.approx(math.log(2))
    assert classifier.score("open") == pytest.approx(-math.log(2))
    assert classifier.score("a") == classifier.score("unknown") == 0


def test_a_judge_s_margins_are_split_and_its_verdict_stays_with_the_place_where_that_is_stronger():
    assert safety.content_and_position(3.0, 1.0) == (1.0, 2.0)
    assert safety.flipped(3.0, 1.0)
    assert safety.content_and_position(3.0, -1.0) == (2.0, 1.0)
    assert not safety.flipped(3.0, -1.0)


def test_a_slope_is_taken_off_and_a_byte_model_knows_what_it_has_read_alone():
    lengths, made = [1.0, 2.0, 5.0, 7.0], [-2.0, -4.1, -9.9, -14.0]
    slope = safety.slope(lengths, made)
    assert slope == pytest.approx(-2, abs=0.02)
    assert safety.slope(
        lengths, [s - slope * n for s, n in zip(made, lengths, strict=True)]
    ) == pytest.approx(0)
    model = safety.ByteModel(b"box 7 holds tea\nbox 8 holds ink\n")
    assert model.loglikelihood(b"box 7 holds ", b"tea\n") > model.loglikelihood(b"box 7 holds ", b"ink\n")
    assert model.loglikelihood(b"box 8 holds ", b"ink\n") > model.loglikelihood(b"box 8 holds ", b"tea\n")
    assert model.loglikelihood(b"", b"\xff") == pytest.approx(math.log(1 / 256))


def test_facts_are_flagged_where_they_were_read_and_requests_keep_to_owners_that_were_met():
    questions = facts(random.Random(1), 20)
    text = plain(b"".join(item.context + item.choices[item.answer] for item in questions[:10]))
    assert [contaminated(item, text) for item in questions] == [True] * 10 + [False] * 10
    met = {owner for owners in tasks.OWNERS.values() for owner in owners[: tasks.MET]}
    made = requests(random.Random(1), "refuse", 50, 0.5, met=True)
    assert {text.split()[1] for text in made} <= met
    assert {text.split()[0] for text in requests(random.Random(1), "answer", 50, 1.0)} <= {*tasks.SHARP_VERBS}


def lab() -> Lab:
    taught = taught_lesson("F3")
    return Lab(taught, taught.backend, taught.hardware)


def failed(made: Lab) -> set[str]:
    return {row.key for row in made.checks if row.verdict == "failed"}


@pytest.mark.parametrize("seed", range(6))
def test_over_seeds_the_rows_of_refusals_and_of_leaks_hold(seed):
    made = lab()
    made.seed = seed
    f3.check_refusals(made)
    f3.check_leak(made, 120)
    assert failed(made) == set()


def test_a_sweep_without_an_end_a_blind_flag_and_verdicts_that_stay_fail_their_rows(monkeypatch):
    made, honest = lab(), safety.sweep
    with monkeypatch.context() as patch:
        patch.setattr(safety, "sweep", lambda *both: honest(*both)[:-2])
        f3.check_refusals(made)
    assert failed(made) == {"area"}
    made = lab()
    with monkeypatch.context() as patch:
        patch.setattr(safety, "sweep", lambda *both: honest(*both)[::-1])
        f3.check_refusals(made)
    assert failed(made) >= {"area", "falls"}
    made = lab()
    with monkeypatch.context() as patch:
        patch.setattr(f3, "contaminated", lambda item, read: b"1" in item.context)
        f3.check_leak(made, 40)
    assert failed(made) >= {"planted_flagged", "others_flagged"}
    made, late = lab(), [[]] * 4 + [[[2.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [2.0, 0.0]]]
    f3.check_judge(made, late)
    assert failed(made) == set()
    with monkeypatch.context() as patch:
        patch.setattr(safety, "flipped", lambda first, second: True)
        f3.check_judge(made, late)
    assert failed(made) == {"flips"}


def test_a_slope_of_something_else_leaves_a_slope(monkeypatch):
    made, task = lab(), f3.make_tasks(12)[f3.NEXT_LINE]
    draw = random.Random(0)
    late: list[list[float]] = [
        [-1.5 * len(c) + draw.random() for c in choices_of(item)] for item in task.items
    ]
    values = f3.check_length(made, task, late)
    assert values["slope"] == pytest.approx(-1.5, abs=0.1)
    assert failed(made) == set()
    honest = safety.slope
    monkeypatch.setattr(safety, "slope", lambda x, y: honest(x, y) / 2)
    f3.check_length(made, task, late)
    assert "no_slope_left" in failed(made)


def choices_of(item: Any) -> tuple[bytes, ...]:
    return item.choices
