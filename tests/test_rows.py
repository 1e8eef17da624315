"""A ledger row holds only when both its sides are there and agree; a ledger fails as soon as one row does."""

from __future__ import annotations

import math

import pytest

from glasscluster.base.rows import NO_CHECKS, ONE_SIDED, Row, Tally, judged, not_applicable, status, tally
from glasscluster.base.text import Said
from glasscluster.scenarios.jobs.training import equivalence_rows
from glasscluster.sim.run import Cluster
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge import check
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.trainer import train_rank

NAME = Said("bytes sent", "发送的字节")
WHY = Said("nobody counted", "无人计数")


def row(predicted=96, counted=96, **options) -> Row:
    return Row("sent", NAME, predicted, counted, "Patarasuk-Yuan 2009 (Eq 9)", **options)


@pytest.mark.parametrize("sides", [(None, 96), (96, None), (None, None)])
@pytest.mark.parametrize("match", ["exact", "statistical", "virtual"])
def test_a_row_whose_two_sides_are_not_both_there_is_not_held_but_not_applicable_and_says_so(sides, match):
    predicted, other = sides
    made = Row("x", NAME, predicted, None if match == "virtual" else other, "", simulated=other, match=match)
    assert (made.verdict, made.ok, made.because) == ("not applicable", None, ONE_SIDED)


def test_a_virtual_row_is_not_held_by_what_was_counted():
    assert row(96, 96, match="virtual").verdict == "not applicable"
    assert row(96, 1, simulated=96, match="virtual").verdict == "held"


@pytest.mark.parametrize("sides", [(math.nan, 96), (96, math.nan), (math.nan, math.nan)])
@pytest.mark.parametrize("tolerance", [0.0, 1e9, math.inf])
@pytest.mark.parametrize("match", ["exact", "statistical", "virtual"])
def test_not_a_number_never_holds(sides, tolerance, match):
    predicted, other = sides
    made = Row("x", NAME, predicted, other, "", simulated=other, match=match, tolerance=tolerance)
    assert (made.verdict, made.ok, made.because) == ("failed", False, None)


def test_the_tolerance_is_absolute_and_of_a_virtual_row_relative():
    relative = {"match": "virtual", "tolerance": 0.01}
    for sign in (1, -1):
        assert row(100, 100 + sign, tolerance=1).verdict == "held"
        assert row(100, 100 + 1.5 * sign, tolerance=1).verdict == "failed"
        assert row(200, None, simulated=200 + 2 * sign, **relative).verdict == "held"
        assert row(200, None, simulated=200 + 2.5 * sign, **relative).verdict == "failed"
    assert row(0, math.inf).verdict == "failed"


def test_a_row_that_is_said_to_be_off_its_domain_proves_nothing_even_when_its_sides_agree():
    made = not_applicable("sent", NAME, WHY, "Eq 9", predicted=96, counted=96, unit="bytes")
    assert (made.verdict, made.ok, made.because) == ("not applicable", None, WHY)
    assert (made.predicted, made.counted) == (96, 96)
    assert made.of_run("ddp").because == WHY


def test_as_json_a_row_has_its_key_both_names_its_verdict_and_its_reason():
    said = row(96, 95).as_dict()
    assert (said["key"], said["name"]) == ("sent", "bytes sent")
    assert said["names"] == {"en": "bytes sent", "zh": "发送的字节"}
    assert (said["ok"], said["verdict"], said["why"]) == (False, "failed", None)
    off = not_applicable("sent", NAME, WHY, "Eq 9").as_dict()
    assert (off["ok"], off["verdict"], off["why"]) == (None, "not applicable", "nobody counted")
    run = row().of_run("ddp")
    assert (run.key, run.name.en, run.name.zh) == ("sent", "ddp: bytes sent", "ddp: 发送的字节")


def test_a_ledger_counts_all_three_verdicts_and_its_status_is_that_of_its_worst():
    held, failed, off = row(), row(96, 97), not_applicable("x", NAME, WHY, "")
    counts = tally([held, failed, off, held])
    assert counts == Tally(2, 1, 1)
    assert str(counts) == counts.said.en == "2 held, 1 failed, 1 not applicable"
    assert counts.said.zh == "2 项成立，1 项不成立，1 项不适用"
    assert status([held, off]) == status([off]) == status([]) == "PASS"
    assert status([held, off], [WHY]) == "PARTIAL"
    assert status([held, failed], [WHY]) == status([held, failed]) == "FAIL"
    said = judged([held, off], [NO_CHECKS])
    assert (said["status"], said["not_checked"]) == ("PARTIAL", [NO_CHECKS.en])
    assert [r["verdict"] for r in said["checks"]] == ["held", "not applicable"]


@pytest.mark.parametrize("where", ["losses", "gradients", "weights"])
def test_a_run_with_one_number_that_is_none_is_not_the_training_of_one_device(where):
    plan = make_plan(dp=2, global_batch=2, precision="fp64")
    job = Job(plan, make_model("tiny", layers=1, hidden=8, heads=2, seq=4, vocab=16), steps=2, capture=True)
    results = Cluster("classroom", 2, "threads", memory_bytes=None).run(train_rank, job, record=False).results
    reference = check.reference_for(job)
    rows = equivalence_rows(check.compare(results, reference, plan))
    assert {row.verdict for row in rows} == {"held"}
    if where == "losses":
        results[0].losses[0] = results[0].losses[0] * math.nan
    else:
        next(iter(getattr(results[0], where)[1].values())).view(-1)[0] = math.nan
    rows = equivalence_rows(check.compare(results, reference, plan))
    failed = [row.key for row in rows if row.verdict == "failed"]
    assert failed == [{"losses": "loss", "gradients": "gradient", "weights": "weight"}[where] + "_difference"]
