"""What F3 checks can fail."""

from __future__ import annotations

import pytest

from glasscluster.scenarios.lab import Lab, perform
from glasscluster.scenarios.lesson import taught_lesson
from glasscluster.scenarios.lessons.f3_eval_harness import program as f3
from glasscluster.strategies.serving import evaluation, scores


def test_a_row_scored_a_token_short_an_error_of_n_and_a_blind_search_fail_their_rows(
    monkeypatch: pytest.MonkeyPatch,
):
    honest = evaluation.loglikelihoods
    calls = iter(range(10**6))

    def short(stage, rows):
        return honest(stage, [(row, n - (next(calls) % 7 == 0)) for row, n in rows])

    monkeypatch.setattr(evaluation, "loglikelihoods", short)
    monkeypatch.setattr(
        scores,
        "spread",
        lambda values: (scores.mean(values) * (1 - scores.mean(values)) / len(values)) ** 0.5,
    )
    monkeypatch.setattr(f3, "contaminated", lambda item, training: False)
    monkeypatch.setattr(scores, "paired", lambda a, b: scores.Paired(0.0, 1.0, 3, 1, 1.0))
    taught = taught_lesson("F3")
    failed = {
        r.name.en
        for r in perform(
            taught, Lab(taught, taught.backend, taught.hardware), {"items": 40, "late": 20, "early": 10}
        ).checks
        if r.verdict == "failed"
    }
    assert failed >= {
        "largest difference of a score from one device, float64",
        "standard error of the accuracy, brackets",
        "late minus early, brackets, items won minus items lost",
        "items copied from the training text that are flagged",
    }
