"""A schedule that somebody wrote is read, judged by line and token, trained exactly, predicted, drawn."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from helpers import differences, run_plan, worst
from test_cli import glass

from glasscluster.base.errors import InputError
from glasscluster.strategies.judge import accounts
from glasscluster.strategies.layout.judged import Judged
from glasscluster.strategies.pipeline.schedules import SCHEDULES, make_schedule
from glasscluster.strategies.pipeline.schedules.base import Action, Schedule
from glasscluster.strategies.plan import make_model, make_plan

SHAPE = {"layers": 4, "hidden": 16, "heads": 2, "seq": 8, "vocab": 32}
TRAIN = ["train", *(w for k, v in SHAPE.items() for w in (f"--{k}", str(v))), "--backend", "threads"]
ODD = "0F2 0F0 0F1 0B1 0B2 0B0\n1F0 1F2 1F1 1B1 1B2 1B0\n"  # no name has this order


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def random_schedule(seed: int) -> Schedule:
    """A legal schedule that nobody would write: stages anywhere, actions in any order in which they can be
    done, some backwards whole and some in two parts.
    """
    draw = Random(seed)
    p, v, m = draw.choice([(2, 1, 4), (2, 2, 3), (4, 1, 3), (2, 1, 1)])
    holders = [r for r in range(p) for _ in range(v)]
    draw.shuffle(holders)
    ranks: list[list[Action]] = [[] for _ in range(p)]
    parts = {(s, i): draw.choice(["B", "IW"]) for s in range(p * v) for i in range(m)}
    wait = {Action(s, k, i) for (s, i), both in parts.items() for k in "F" + both}
    done: set[Action] = set()

    def ready(action: Action) -> bool:
        s, kind, i = action
        before = {"F": [(s - 1, "F")], "W": [(s, "I")]}.get(
            kind, [(s, "F"), (s + 1, parts.get((s + 1, i), "")[:1])]
        )
        return all(Action(t, k, i) in done for t, k in before if 0 <= t < p * v)

    while wait:
        action = draw.choice(sorted(a for a in wait if ready(a)))
        wait.remove(action)
        done.add(action)
        ranks[holders[action.stage]].append(action)
    return Schedule("random", p * v, m, ranks, tuple(holders))


@pytest.mark.parametrize("seed", range(8))
def test_any_legal_order_trains_as_one_device_does_and_holds_what_its_list_says(seed):
    schedule = random_schedule(seed)
    Path("mine.txt").write_text(str(schedule))
    zero = {"dp": 2, "zero": seed % 4} if len(schedule.ranks) == 2 else {}
    plan, model = make_plan(schedule="mine.txt", **zero), make_model("tiny", **SHAPE)
    plan.check(model)
    assert plan.pipeline == Schedule("mine.txt", *list(vars(schedule).values())[1:5])
    assert worst(differences(plan, model, steps=2)) <= 1e-10
    run = run_plan(plan, model)
    rows = {r.key: r for r in accounts.rows(Judged(plan, model, run.graph, run.results, run.timeline))}
    assert {r.verdict for r in rows.values()} <= {"held", "not applicable"}
    held = [rows[f"in_flight_{r}"] for r in range(plan.pp)]
    assert [r.verdict for r in held] == ["held"] * plan.pp
    assert [r.predicted for r in held] == schedule.validate().peak_live


def test_two_orders_of_one_pipeline_end_in_different_bytes_held_and_the_same_weights(capsys):
    """So that the file is what ran, and not a schedule by name."""
    Path("odd.txt").write_text(ODD)
    answers = []
    for name in ("odd.txt", "1f1b"):
        words = ["--pp", "2", "--global-batch", "3", "--schedule", name, "--json"]
        code, out, _ = glass(capsys, *TRAIN, *words)
        assert code == 0
        answers.append(json.loads(out))
    odd, plain = answers
    assert odd["plan"]["schedule"] == str(Path("odd.txt").absolute())
    held = [[r["counted"] for r in a["checks"] if r["key"].startswith("in_flight")] for a in answers]
    assert held == [[3, 3], [2, 1]]
    assert odd["status"] == plain["status"] == "PASS"
    assert odd["losses"] == pytest.approx(plain["losses"], rel=1e-6)


def test_what_a_plan_leaves_out_is_what_the_file_says(capsys):
    Path("odd.csv").write_text(ODD.replace(" ", ","))
    plan = make_plan(schedule="odd.csv", dp=2, micro_batch=2)
    assert (plan.pp, plan.virtual_stages, plan.micro_batches, plan.global_batch) == (2, 1, 3, 12)
    code, out, _ = glass(capsys, "predict", "--schedule", "odd.csv", "--json")
    answer = json.loads(out)
    assert (code, answer["gpus"]) == (0, 2)
    by_name = json.loads(glass(capsys, *"predict --pp 2 --global-batch 3 --schedule gpipe --json".split())[1])
    assert answer["iteration_time_s"] != by_name["iteration_time_s"]
    assert answer["peak_memory_gib"] >= by_name["peak_memory_gib"]


@pytest.mark.parametrize(
    ("options", "field", "nearest"),
    [
        ({"pp": 4}, "pp", 2),
        ({"virtual_stages": 2}, "virtual_stages", 1),
        ({"global_batch": 8}, "global_batch", 3),
        ({"dp": 2, "global_batch": 8}, "global_batch", 6),
    ],
)
def test_a_plan_that_its_file_contradicts_is_refused_by_field(options, field, nearest):
    Path("odd.txt").write_text(ODD)
    with pytest.raises(InputError) as refused:
        make_plan(schedule="odd.txt", **options).check(make_model("tiny"))
    assert (refused.value.field, refused.value.nearest) == (field, nearest)
    assert "odd.txt" in refused.value.rule


BAD = [
    ("0F0 0B0\n1F0 1X0\n", "line 2, token 2"),
    ("# mine\n\n0F0 0B0\n\n1F0 1B0 1B0\n", "rank 1 has 1B0 twice (bad.txt, line 5, token 3)"),
    ("0F0 0B0\n1B0 1F0\n", "rank 1 runs 1B0 before 1F0 (bad.txt, line 2, token 1)"),
    ("0F0 0B0\n1F0\n", "rank 1 misses 1B0 (bad.txt, line 2)"),
    ("0F0 0B0 9F9\n1F0 1B0\n", "rank 0 has 9F9, which is out of range (bad.txt, line 1, token 3)"),
    ("rank 1: 1F0 1B0\nrank 1: 0F0 0B0\n", "each rank from 0 to 1 has one line (line 1)"),
    ("rank 0: 0F0 0B0\n1F0 1B0\n", "line 2"),
    ("0F0 0B0 0F1 0B1\n1F1 1B1 1F0 1B0\n", "(bad.txt, line 1, token 2) (bad.txt, line 2, token 1)"),
    ('{"ranks": [["0F0", "0B0"], ["1F0", "1Z0"]]}', "(ranks[1][1])"),
    ('[["0F0", "0B0"], ["1F0", "1B0", "1F0"]]', "rank 1 has 1F0 twice (bad.txt, [1][2])"),
    ('{"lists": []}', "must have `ranks`"),
    ("0F0 1F0 1B0 0B0\n2F0 2B0\n", "has 3 stages on 2 ranks: every rank must have as many"),
    ("0F0 1F0 2F0 2B0 1B0 0B0\n3F0 3B0\n", "rank 1 has 1 of 4 stages on 2 ranks"),
    ("", "must be one line a rank"),
]


@pytest.mark.parametrize(("text", "said"), BAD, ids=[said for _, said in BAD])
def test_a_mistake_in_the_file_is_named_by_line_and_token_before_anything_runs(text, said, capsys):
    Path("bad.txt").write_text(text)
    code, out, err = glass(capsys, *TRAIN, "--schedule", "bad.txt", "--json")
    answer = json.loads(out)
    assert (code, answer["error"], answer["field"]) == (2, "InputError", "schedule")
    assert said in answer["message"], answer["message"]
    assert len(err.splitlines()) <= 2
    assert not Path("runs").exists()


def test_a_file_that_is_not_there_and_a_name_that_is_none_are_told_apart(capsys):
    code, _, err = glass(capsys, *TRAIN, "--schedule", "nowhere.csv")
    assert (code, "there is no such file" in err) == (2, True)
    code, _, err = glass(capsys, *TRAIN, "--schedule", "1f1c")
    assert (code, "nearest valid choice is 1f1b" in err) == (2, True)


def test_a_file_that_was_written_anew_is_read_anew():
    Path("mine.txt").write_text("0F0 0B0\n1F0 1B0\n")
    assert make_plan(schedule="mine.txt").micro_batches == 1
    Path("mine.txt").write_text(ODD)
    assert make_plan(schedule="mine.txt").micro_batches == 3


# ---- glass schedule ------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SCHEDULES)
def test_what_the_command_prints_or_writes_is_read_back_the_same(name, capsys):
    sizes = ["--pp", "2", "--micro-batches", "4", "--virtual-stages", "2"]
    words = ["schedule", name, *sizes[: 6 if make_pieces(name) == 2 else 4]]
    code, printed, _ = glass(capsys, *words)
    assert code == 0
    code, out, _ = glass(capsys, *words, "--json")
    said = json.loads(out)
    Path("printed.txt").write_text(printed)
    Path("printed.json").write_text(out)
    for ending in ("txt", "csv", "json"):
        assert glass(capsys, *words, "--out", f"written.{ending}")[0] == 0
    files = ["printed.txt", "printed.json", "written.txt", "written.csv", "written.json"]
    for file in files:
        _, judged, _ = glass(capsys, "schedule", name, "--validate", file, "--json")
        assert json.loads(judged) == said, file
        code, alone, _ = glass(capsys, "schedule", file, "--json")
        assert (code, {**json.loads(alone), "name": name}) == (0, said), file
        own = make_plan(schedule=file)
        assert own.pipeline.ranks == make_schedule(name, 2, 4, said["virtual_stages"]).ranks
        own.check(make_model("tiny"))


def make_pieces(name: str) -> int:
    """2 for a schedule that has two stages on a rank here."""
    return 2 if name in ("interleaved", "looped-bfs", "interleaved-zb", "zb-v", "dualpipe-v") else 1


def test_a_schedule_without_numbers_asks_for_them_and_one_in_a_file_does_not(capsys):
    for words, field in (("1f1b", "pp"), ("1f1b --pp 2", "micro_batches"), ("", "name")):
        code, out, _ = glass(capsys, "schedule", *words.split(), "--json")
        assert (code, json.loads(out)["field"]) == (2, field)
    Path("bad.txt").write_text("0F0 0B0\n1F0\n")
    code, _, err = glass(capsys, "schedule", "bad.txt")
    assert (code, "rank 1 misses 1B0 (bad.txt, line 2)" in err) == (1, True)
    code, out, _ = glass(capsys, *"schedule 1f1b --pp 2 --micro-batches 2 --out page.pdf --json".split())
    assert (code, json.loads(out)["field"], json.loads(out)["nearest"][:5]) == (2, "out", "page.")


@pytest.mark.browser
def test_a_schedule_from_a_file_is_drawn_on_a_page_that_shows_every_action(capsys, visit):
    Path("odd.csv").write_text(ODD.replace(" ", ","))
    assert glass(capsys, "schedule", "odd.csv", "--out", "page.html")[0] == 0
    page = visit(Path("page.html").absolute())
    page.wait_for_selector(".plot-container .bars .point")
    labels = page.eval_on_selector_all(".bars .bartext", "texts => texts.map((t) => t.textContent)")
    assert sorted(labels) == sorted(["0", "1", "2"] * 4)
    assert page.eval_on_selector_all("[role=tab]", "tabs => tabs.length") == 1, "nothing ran: no empty tabs"
    assert page.problems == []


@pytest.mark.browser
def test_a_report_without_a_run_has_no_dead_script(capsys, visit):
    words = "collective all-reduce --algorithm nccl --gpus 4 --size 1MiB --hardware dgx-h100 --out nccl"
    assert glass(capsys, *words.split())[0] == 0
    page = visit(Path("nccl/report.html").absolute())
    page.click("#language")
    assert page.evaluate("document.documentElement.lang") == "zh"
    assert page.problems == []
