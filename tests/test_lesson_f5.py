"""F5: a fault that is not planted fails the row that names its probe; the curves are those of real runs."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.emergency_room import curves, plants
from glasscluster.scenarios.emergency_room.curve_plants import CURVE_PLANTS
from glasscluster.scenarios.emergency_room.plant import Healthy
from glasscluster.scenarios.lab import Lab, perform
from glasscluster.scenarios.lesson import taught_lesson
from glasscluster.scenarios.lessons.f5_reading_a_loss_curve import program as f5


def test_faults_that_are_not_planted_and_an_evaluation_without_chance_fail_the_rows_of_their_probes(
    monkeypatch,
):
    for plant in ("labels_not_shifted", "not_divided", "no_all_reduce_on_one_rank"):
        monkeypatch.setitem(plants.PLANTS, plant, Healthy)
    honest = curves.Watch.held_out
    monkeypatch.setattr(curves.Watch, "held_out", lambda self, _draw: honest(self, 1))
    taught = taught_lesson("F5")
    lab = perform(taught, Lab(taught, "threads", taught.hardware), {"steps": 12})
    assert {r.key for r in lab.checks if r.verdict == "failed" and r.match == "exact"} == {
        "replicas",
        "norm",
        "twice_dropped",
        "own_target",
    }


def test_every_cause_that_is_asked_or_compared_has_a_curve_and_every_plant_is_one():
    names = {case.name for case in curves.CURVE_CASES}
    assert len(names) == len(curves.CURVE_CASES) == 12
    assert {*f5.SAID_BY_CURVE, *f5.FAR, *f5.NEAR} <= names
    assert set(CURVE_PLANTS) <= {case.plant for case in curves.CURVE_CASES}


def test_a_distance_is_that_of_another_seed_at_one_and_a_curve_that_strays_fails_its_row():
    class Kept:
        def __init__(self) -> None:
            self.rows: dict[str, bool] = {}

        def row(self, key: str, predicted: float, counted: float, *_: Any, cause: Any, **how: Any) -> None:
            self.rows[cause.en] = abs(predicted - counted) <= how.get("tolerance", 0)

    def curve(name: str, loss: float) -> Any:
        case = f5.CASES[name]
        return curves.Curve(case, [loss] * 4, ([], []), None, [], 0.0, 0.0)  # type: ignore[arg-type]

    drawn = {name: curve(name, 3.5) for name in (*f5.FAR, *f5.NEAR)} | {"sound": curve("sound", 3.0)}
    drawn["missing-all-reduce"] = curve("missing-all-reduce", 3.1)
    kept = Kept()
    distances = f5.check_distances(kept, drawn, [[3.2] * 4, [2.0] * 4])  # type: ignore[arg-type]
    assert round(distances["missing-all-reduce"], 6) == 0.5
    title = {name: f5.CASES[name].title[0] for name in drawn}
    assert kept.rows[title["missing-all-reduce"]]
    assert not kept.rows[title["gradients-not-divided"]]
    assert kept.rows[title["rate-too-high"]]
