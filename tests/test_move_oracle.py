"""What commands, lessons and the zoo give is what they gave; the oracle that says so sees a changed value."""

from __future__ import annotations

import base64
import copy
import json
import zlib
from typing import Any

import move_oracle as oracle
import numpy as np
import pytest
from move_oracle import MISSING, Comparison, Names, produce, stored

PARTS = 16  # of `make soak`; the first is in the ordinary suite, too
NO_NAMES = Names({}, [], [])


EACH = [pytest.param(1, id="suite"), *(pytest.param(n, marks=pytest.mark.soak) for n in range(1, PARTS + 1))]


@pytest.mark.parametrize("part", EACH)
def test_nothing_has_changed(part):
    judged = oracle.check(oracle.chosen([f"{part}/{PARTS}"], list(stored()["items"])))
    print(oracle.told(judged))
    assert not judged.differences, oracle.told(judged)


def test_the_parts_together_are_everything_once():
    keys = list(stored()["items"])
    found = [k for part in range(1, PARTS + 1) for k in oracle.chosen([f"{part}/{PARTS}"], keys)]
    assert sorted(found) == sorted(keys)
    assert {oracle.kind_of(k) for k in oracle.quick()} == {oracle.kind_of(k) for k in keys}


def test_every_plan_schedule_collective_lesson_and_bug_is_stored():
    assert set(stored()["items"]) == {key for key, _ in oracle.items()}
    _, said = oracle.glass(["list", "--json"])
    listed = json.loads(said)
    assert set(listed["lessons"]) == set(oracle.LESSONS)
    assert set(listed["schedules"]) == set(oracle.SCHEDULES)


# ---- it sees a change --------------------------------------------------------------------------------------
def content_of(key: str) -> Any:
    """A copy of what is stored of an item."""
    return copy.deepcopy(stored()["items"][key]["content"])


def compared(key: str, old: Any, new: Any, names: Names = NO_NAMES) -> Comparison:
    """The comparison of one item."""
    judged = Comparison(names)
    judged.item(key, old, new)
    return judged


def paths(judged: Comparison) -> list[str]:
    """Where it differs."""
    return [path for _, path, _, _ in judged.differences]


def rows_of(content: Any) -> list[dict[str, Any]]:
    """The ledger rows of an item's first command."""
    return content[0]["json"]["checks"]["~rows"]


def test_another_latency_is_seen_in_the_times_and_not_in_the_bytes():
    key = "collective/all-gather/ring"
    number = next(i for i, words in enumerate(stored()["items"][key]["argv"]) if "2us" in words)
    words = stored()["items"][key]["argv"][number]
    slower = ["3us" if w == "2us" else w for w in words]
    old = [stored()["items"][key]["content"][number]]
    assert compared(key, old, produce([words], "collective")).differences == []
    found = paths(compared(key, old, produce([slower], "collective")))
    assert "json.time_s" in found
    assert not any("bytes_sent" in path or "messages" in path or "steps" in path for path in found)


def test_one_changed_number_is_reported_with_its_path_old_and_new():
    old, new = content_of("lesson/C3"), content_of("lesson/C3")
    new[0]["json"]["runs"][0]["bytes_sent"]["by_axis"]["world"][3] -= 4
    found = compared("lesson/C3", old, new).differences
    assert found == [("lesson/C3", "json.runs[0].bytes_sent.by_axis.world[3]", 5600000, 5599996)]


@pytest.mark.parametrize(("factor", "seen"), [(1 + 1e-8, True), (1 + 1e-11, False)])
def test_floats_are_compared_to_a_relative_1e_9(factor, seen):
    old, new = content_of("lesson/C3"), content_of("lesson/C3")
    new[0]["json"]["runs"][0]["makespan_s"] *= factor
    assert paths(compared("lesson/C3", old, new)) == (["json.runs[0].makespan_s"] if seen else [])


def without_keys(key: str) -> Any:
    """The stored content of an item, as it was before its rows had keys, verdicts and names in two languages."""
    content = content_of(key)
    for row in rows_of(content):
        for new in ("key", "names", "verdict"):
            row.pop(new, None)
    return content


def test_a_renamed_row_is_reported_on_both_sides_until_the_table_has_it():
    old, new = without_keys("lesson/C3"), without_keys("lesson/C3")
    rows_of(new)[0]["name"] = "bytes sent by every rank"
    judged = compared("lesson/C3", old, new)
    assert paths(judged) == ["json.checks['sent by every rank']", "json.checks['bytes sent by every rank']"]
    assert judged.differences[0][3] == judged.differences[1][2] == MISSING
    for table in (
        ({"sent by every rank": "bytes sent by every rank"}, []),
        ({}, [["(sent by every .*)", r"bytes \1"]]),
    ):
        assert compared("lesson/C3", old, new, Names(*table, [])).differences == []


def test_new_keys_and_rows_that_do_not_apply_are_information_a_new_row_that_held_is_a_difference():
    old, new = without_keys("lesson/C3"), without_keys("lesson/C3")
    rows = rows_of(new)
    rows[0] |= {"key": "sent", "verdict": "held"}
    rows.append({**rows[1], "name": "elsewhere", "ok": None, "verdict": "not applicable"})
    judged = compared("lesson/C3", old, new)
    assert judged.differences == []
    assert {what.rpartition(": ")[2] for what in judged.added} == {
        "key",
        "verdict",
        "row elsewhere, not applicable",
    }
    rows.append({**rows[1], "name": "invented"})
    assert paths(compared("lesson/C3", old, new)) == ["json.checks['invented']"]


def test_a_residual_may_be_any_noise_within_its_tolerance_and_nothing_beyond_it():
    key = next(k for k in stored()["items"] if k.startswith("train/00"))
    old, new = content_of(key), content_of(key)
    place, made = next((i, r) for i, r in enumerate(rows_of(new)) if r.get("residual"))
    made["counted"] = made["tolerance"] / 3
    assert compared(key, old, new).differences == []
    made["counted"] = made["tolerance"] * 3
    assert paths(compared(key, old, new)) == [f"json.checks[{rows_of(old)[place]['name']!r}].counted"]


def test_a_changed_graph_is_reported_by_its_column():
    columns = {"rank": np.zeros(3, int), "op": np.array([2, 0, 2]), "bytes": np.array([4, 8, 4])}
    old = fingerprint(columns, ["add", "gather", "mul"])
    changed = fingerprint(columns | {"bytes": np.array([4, 8, 8])}, ["add", "gather", "mul"])
    assert paths(compared("g", [old], [changed])) == ["columns.bytes"]
    renamed = fingerprint(columns | {"op": np.array([1, 0, 1])}, ["add", "multiply"])  # sorted: other numbers
    assert paths(compared("g", [old], [renamed])) == ["spelled.op[0]"]
    assert compared("g", [old], [renamed], Names({"mul": "multiply"}, [], [])).differences == []


def fingerprint(columns: dict[str, Any], names: list[str]) -> Any:
    """What is stored of a graph of such columns, packed as reports pack them."""
    listed = [[k, 8, len(v)] for k, v in columns.items()]
    steps = [np.diff(v, prepend=0).astype("<i8").view("u1") for v in columns.values()]
    data = base64.b64encode(zlib.compress(b"".join(s.reshape(-1, 8).T.tobytes() for s in steps))).decode()
    return oracle.graph({"columns": listed, "data": data, "names": names, "memory": {"names": []}})


def test_one_changed_number_in_a_figure_is_seen_also_within_a_string():
    drawn = {
        "type": "bar",
        "name": "words",
        "x": [i / 7 for i in range(300)],
        "text": ["rank 1: 3 ms", "rank 2: 4 ms"],
    }
    old = oracle.unsized(oracle.trace(drawn))
    others = oracle.trace({**drawn, "name": "others", "text": ["GPU 1: 3 ms", "GPU 2: 4 ms"]})
    assert compared("f", [old], [others]).differences == []
    moved = [*drawn["x"][:200], drawn["x"][200] * (1 + 1e-6), *drawn["x"][201:]]
    assert paths(compared("f", [old], [oracle.trace({**drawn, "x": moved})])) == ["x[192:256].sum"]
    said = ["rank 1: 3 ms", "rank 2: 5 ms"]
    assert paths(compared("f", [old], [oracle.trace({**drawn, "text": said})])) == ["text[3]"]


def test_a_difference_that_is_meant_is_told_with_its_reason_and_fails_nothing():
    old, new = content_of("lesson/C3"), content_of("lesson/C3")
    new[0]["json"]["runs"][0]["gpus"] = 9
    why = [
        {
            "item": "lesson/C3",
            "path": r"json\.runs\[0\]\.gpus",
            "old": 8,
            "new": 9,
            "why": "one was forgotten",
        }
    ]
    judged = compared("lesson/C3", old, new, Names({}, [], why))
    assert judged.differences == []
    assert "one was forgotten" in oracle.told(judged)
