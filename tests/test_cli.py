"""The command line, as a script and as a person meet it."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from glasscluster.cli import main

LAYOUT = "--dp 2 --zero 2 --layers 2 --hidden 32 --heads 2 --seq 16 --steps 2 --backend threads".split()


def glass(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as end:
        main(list(words))
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_train_prints_one_json_object_with_every_key_of_the_contract_and_writes_the_folder(capsys, tmp_path):
    code, out, err = glass(capsys, "train", *LAYOUT, "--json")
    said = json.loads(out)
    assert code == 0
    assert "checking" in err
    wanted = (
        "schema plan model backend hardware gpus losses checked_steps reference_losses max_rel_loss_diff "
        "max_rel_grad_diff "
        "max_rel_weight_diff bytes_sent peak_memory_bytes memory_bytes state_bytes makespan_s "
        "bubble_fraction bubble_over_ideal "
        "stage_span_bubble_fraction exposed_comm_s mfu checks report"
    ).split()
    assert set(wanted) <= set(said)
    assert said["schema"] == "glass.train/1"
    assert said["checked_steps"] == 2
    assert set(said["bytes_sent"]) == {"by_axis", "by_purpose"}
    assert {"parameters", "gradients", "optimizer", "activations", "buffers"} == set(said["memory_bytes"])
    total = [sum(values) for values in zip(*said["memory_bytes"].values(), strict=True)]
    assert total == said["peak_memory_bytes"]
    check_keys = {
        "name",
        "ok",
        "predicted",
        "counted",
        "simulated",
        "measured",
        "unit",
        "match",
        "tolerance",
        "source",
    }
    check_keys |= {"key", "names", "verdict", "why"}
    assert all(check_keys <= set(row) for row in said["checks"])
    for row in said["checks"]:
        assert row["names"]["en"] == row["name"] != row["names"]["zh"]
        assert row["ok"] is {"held": True, "failed": False, "not applicable": None}[row["verdict"]]
        assert (row["why"] is None) == (row["verdict"] != "not applicable")
    assert (said["status"], said["not_checked"]) == ("PASS", [])
    assert "failed" not in {row["verdict"] for row in said["checks"]}
    folder = Path(said["report"]).parent
    assert {p.name for p in folder.iterdir()} == {
        "report.html",
        "graph.npz",
        "ledger.csv",
        "trace.json",
        "run.json",
    }


def test_run_json_and_the_ledger_are_read_back_as_what_was_printed(capsys):
    _, out, _ = glass(capsys, "train", *LAYOUT, "--json", "--out", "kept")
    said = json.loads(out)
    kept = json.loads(Path("kept/run.json").read_text())
    assert {"wall_s", "title", "versions"} == kept.keys() - said.keys()
    assert {k: kept[k] for k in said if k != "report"} == {k: said[k] for k in said if k != "report"}
    with Path("kept/ledger.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(said["checks"]) > 5
    for row, check in zip(rows, said["checks"], strict=True):
        for column, text in row.items():
            value = check[column]
            assert text == ("" if value is None else str(value)), (check["key"], column)
            assert not isinstance(value, float) or float(text) == value


def test_the_same_seed_gives_the_same_report_bytes_and_wall_time_stays_in_run_json(capsys, tmp_path):
    for name in ("a", "b"):
        assert glass(capsys, "train", *LAYOUT, "--out", name)[0] == 0
    a, b = (tmp_path / n for n in ("a", "b"))
    assert (a / "report.html").read_bytes() == (b / "report.html").read_bytes()
    assert (a / "trace.json").read_bytes() == (b / "trace.json").read_bytes()
    assert json.loads((a / "run.json").read_text())["wall_s"]
    assert str(Path.home()) not in (a / "report.html").read_text()


def test_replay_gives_the_timeline_keys_on_other_hardware_and_slow_ranks_slow_it(capsys):
    glass(capsys, "train", *LAYOUT, "--out", "run", "--no-check")
    seconds = {}
    for name, more in (("classroom", []), ("dgx-h100", []), ("slow", ["--slow-rank", "1:3"])):
        hardware = "classroom" if name == "slow" else name
        code, out, _ = glass(capsys, "replay", "run", "--hardware", hardware, *more, "--json")
        assert code == 0
        seconds[name] = json.loads(out)["makespan_s"]
    assert seconds["slow"] > seconds["classroom"] != seconds["dgx-h100"]
    code, out, _ = glass(capsys, "replay", "run", "--out", "again", "--json")
    assert Path(json.loads(out)["report"]).is_file()


def test_replay_needs_no_torch():
    script = (
        "import sys; import glasscluster.sim.time.replay, glasscluster.scenarios.jobs.stored; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_importing_the_package_brings_no_torch_ray_or_plotly():
    script = (
        "import sys; import glasscluster; "
        "print(sorted({'torch', 'ray', 'plotly', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_predict_answers_with_the_contract_s_keys_and_its_breakdown_is_the_step(capsys):
    code, out, _ = glass(capsys, "predict", "--dp", "2", "--pp", "2", "--hardware", "dgx-a100-80gb", "--json")
    said = json.loads(out)
    assert code == 0
    assert sum(said["breakdown_s"].values()) == pytest.approx(said["iteration_time_s"], rel=1e-9)
    assert sum(said["memory_gib"].values()) == pytest.approx(said["peak_memory_gib"], rel=1e-12)
    assert said["fits"] is True
    assert said["simulated_gpus"] == 4
    _, last, _ = glass(capsys, "predict", "--dp", "2", "--pp", "2", "--rank", "last", "--json")
    assert json.loads(last)["peak_memory_gib"] <= said["peak_memory_gib"]


def test_predict_takes_a_csv_and_one_bad_row_stops_nothing(capsys, tmp_path):
    Path("rows.csv").write_text(
        "dp,tp,zero,overlap,hardware\n2,1,1,true,dgx-h100\n1,3,,,\n,,,,\n2,2,3,false,\n,,,,\n"
    )
    code, out, _ = glass(capsys, "predict", "--csv", "rows.csv", "--out", "done.csv", "--json")
    assert code == 0
    assert json.loads(out)["errors"] == 1
    rows = list(csv.DictReader(Path("done.csv").read_text().splitlines()))
    assert [bool(r["error"]) for r in rows] == [False, True, False]
    assert "tp" in rows[1]["error"]
    assert float(rows[0]["iteration_time_s"]) > 0


def test_schedule_prints_pytorch_s_notation_and_both_bubbles(capsys):
    code, out, _ = glass(capsys, *"schedule gpipe --pp 4 --micro-batches 8 --json".split())
    said = json.loads(out)
    assert code == 0
    assert said["ranks"][2][:2] == ["2F0", "2F1"]
    assert said["makespan"] == 33
    assert said["bubble_fraction"] == pytest.approx(3 / 11)
    assert said["bubble_over_ideal"] == pytest.approx(3 / 8)
    assert said["peak_live"] == [8, 8, 8, 8]


# makespan of pp 4, 8 micro-batches, costs f=1,b=2,w=1,c=0 of a chunk; two chunks a rank where there are any
SCHEDULES = {
    "gpipe": 33,
    "1f1b": 33,
    "eager-1f1b": 33,
    "interleaved": 57,
    "looped-bfs": 57,
    "zb-h1": 27,
    "zb-h2": 27,
    "interleaved-zb": 51,
    "zb-v": 51,
    "dualpipe-v": 54,
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_all_ten_schedules_are_printed_and_what_is_printed_is_a_schedule_file(name, capsys):
    chunks = 1 if SCHEDULES[name] < 40 else 2
    line = f"schedule {name} --pp 4 --micro-batches 8 --virtual-stages {chunks}"
    code, out, _ = glass(capsys, *line.split(), "--json")
    said = json.loads(out)
    assert (code, said["schema"], said["makespan"]) == (0, "glass.schedule/1", SCHEDULES[name])
    assert set(said) >= {
        "ranks",
        "bubble_fraction",
        "bubble_over_ideal",
        "stage_span_bubble_fraction",
        "peak_live",
    }
    assert said["virtual_stages"] == chunks
    Path("mine.txt").write_text("\n".join(" ".join(actions) for actions in said["ranks"]))
    code, out, _ = glass(
        capsys, *f"schedule {name} --pp 4 --micro-batches 8 --validate mine.txt --json".split()
    )
    assert (code, json.loads(out)) == (0, said)
    code, out, _ = glass(capsys, *line.split())
    assert (code, out.splitlines()[2]) == (0, "rank 2: " + " ".join(said["ranks"][2]))


def test_costs_of_a_schedule_are_of_a_chunk_b_whole_and_a_hop_in_flight(capsys):
    def makespan(name, costs):
        return json.loads(
            glass(capsys, *f"schedule {name} --pp 4 --micro-batches 8 --costs {costs} --json".split())[1]
        )["makespan"]

    assert [makespan(n, "c=0.25") for n in ("gpipe", "1f1b", "eager-1f1b")] == [34.5, 37.0, 34.5]
    assert makespan("zb-h1", "f=1,b=2,w=0.5") == 8 * 3 + 3 * (1 + 2 - 2 * 0.5)


def test_a_schedule_file_that_deadlocks_is_exit_1_with_ranks_actions_and_the_cycle(capsys):
    Path("bad.txt").write_text("0F0 0B0 0F1 0B1\n1F1 1B1 1F0 1B0\n")
    line = "schedule mine --pp 2 --micro-batches 2 --validate bad.txt"
    code, out, err = glass(capsys, *line.split(), "--json")
    assert (code, json.loads(out)["error"], json.loads(out)["exit_code"]) == (1, "Deadlock", 1)
    assert "deadlocks: rank 0 waits in 0B0 for 1B0; rank 1 waits in 1F1 for 0F1" in err
    assert "cycle rank 0 (0B0) → rank 1 (1F1) → rank 0 (0B0)" in err


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("0F0 - 0BW0 0REDUCE_GRAD\n- 1F0 1I0 1W0", 0, ""),
        ("0F0 0B0\n1F0", 1, "rank 1 misses 1B0"),
        ("0F0 0B0\n1F0 1B0 1B0", 1, "rank 1 has 1B0 twice"),
        ("0F0 0B0\n1B0 1F0", 1, "rank 1 runs 1B0 before 1F0"),
        ("0F0 0B0\n1F0 1BW0 1W0", 1, "rank 1 has 1B0 and 1W0"),
        ("0F0 0B0\n999999999F0 1F0 1B0", 1, "rank 1 has 999999999F0, which is out of range"),
        ("", 2, "must be one line a rank"),
        ("0F0 0B0 1F0 1B0", 2, "must be one line a rank, 2 in all"),
        ("0F0 0X0\n1F0 1B0", 2, "must be stage, F, B, I or W, micro-batch"),
    ],
)
def test_a_schedule_file_is_read_before_it_is_judged(text, code, said, capsys):
    Path("mine.txt").write_text(text)
    found, _, err = glass(capsys, *"schedule mine --pp 2 --micro-batches 1 --validate mine.txt".split())
    assert (found, said in err) == (code, True)
    assert "Traceback" not in err


BAD = [
    ("train --dp 3 --global-batch 8", "global_batch", "9"),
    ("train --tp 3", "tp", "2"),
    ("train --pp 5", "pp", "4"),
    ("train --heads 5", "heads", "4"),
    ("train --zero 4", "zero", "3"),
    ("train --schedule 1f1c", "schedule", "1f1b"),
    ("train --pp 2 --virtual-stages 4", "virtual_stages", "3"),
    ("train --pp 2 --schedule zb-v --virtual-stages 3", "virtual_stages", "2"),
    ("train --pp 2 --schedule 1f1b --virtual-stages 3", "virtual_stages", "1"),
    ("train --pp 2 --virtual-stages 2 --layers-per-stage 1,1,2", "layers_per_stage", "1,1,1,1"),
    ("train --model tinny", "model", "tiny"),
    ("train --hardware dgx-h10", "hardware", "dgx-h100"),
    ("train --backend rya", "backend", "ray"),
    ("train --device gpu", "device", "cpu"),
    ("train --attention flush", "attention", "flash"),
    ("train --bucket 3MiBB", "bucket", "3MiB"),
    ("train --first-bucket 1MiX", "first_bucket", "1MiB"),
    ("train --dp 3 --shard 2 --zero 1", "shard", "1"),
    ("train --dp 4 --shard 2", "shard", "0"),
    ("train --accumulate hole", "accumulate", "whole"),
    ("train --offload everything", "offload", None),
    ("train --layers-per-stage 1,2 --pp 2", "layers_per_stage", "2,2"),
    ("train --modle tiny", "modle", "--model"),
    ("trian", "command", "train"),
    ("train --dp two", "dp", None),
    ("train --data nowhere.txt", "data", None),
    ("train --data empty.txt", "data", None),
    ("train --data short.txt", "data", None),
    ("train --data .", "data", None),
    ("train --timeout soon", "timeout", None),
    ("run tuor", "scenario", "tour"),
    ("run nowhere.py", "scenario", None),
    ("run tour --stepps 3", "stepps", "steps"),
    ("run tour --steps many", "steps", None),
    ("replay runs/none", "run", None),
    ("replay empty.txt", "graph", None),
    ("predict --rank 7", "rank", None),
    ("predict --slow-rank x", "slow_rank", None),
    ("predict --csv nowhere.csv", "csv", None),
    ("predict --hardware dgx-v100 --precision bf16", "precision", None),
    ("schedule zigzag --pp 2 --micro-batches 2", "schedule", None),
    ("collective all-redcue --gpus 4 --size 1MB", "operation", "all-reduce"),
    ("collective all-to-all --algorithm tree --gpus 4 --size 1MB", "algorithm", "direct"),
    ("collective all-reduce --gpus 1 --size 1MB", "gpus", None),
    ("collective all-reduce --gpus 4 --size 1MX", "size", None),
    (
        "collective all-reduce --gpus 4 --size 1MB --topology torus4d --bandwidth 1GB/s --latency 1us",
        "topology",
        "torus3d",
    ),
    (
        "collective all-reduce --gpus 6 --size 1MB --topology hypercube --bandwidth 1GB/s --latency 1us",
        "gpus",
        "4",
    ),
    (
        "collective all-reduce --gpus 6 --size 1MB --topology torus2d --dims 4x2 --bandwidth 1GB/s "
        "--latency 1us",
        "dims",
        None,
    ),
    (
        "collective all-reduce --gpus 8 --size 1MB --topology fat-tree --leaf 3 --bandwidth 1GB/s "
        "--latency 1us",
        "leaf",
        "2",
    ),
    (
        "collective all-reduce --gpus 8 --size 1MB --topology ring --bandwidth 1GB/s --latency -1us",
        "latency",
        None,
    ),
    ("collective all-reduce --gpus 8 --size 1MB --topology nowhere.json", "topology", None),
    ("collective all-reduce --gpus 8 --size 1MB --oversubscription 2", "oversubscription", None),
    ("collective all-reduce --gpus 4 --size 1MB --placement 0,1,2,2", "placement", None),
    ("collective all-reduce --gpus 4 --size 1MB --placement upside", "placement", None),
    ("collective all-reduce --gpus 4 --size 1MB --algorithm nccl", "algorithm", None),
    ("collective scatter --gpus 4 --size 1MB --algorithm nccl --hardware dgx-h100", "algorithm", None),
    ("collective all-reduce --gpus 4", "size", None),
    ("collective all-reduce --gpus 4 --size 1MB --sweep gpus=a:8", "sweep", None),
    ("collective all-reduce --gpus 4 --size 1MB --against trees --sweep 1KiB:4KiB", "against", "tree"),
    ("collective all-reduce --gpus 4 --size 1MB --topology fully-connected --latency 1us", "bandwidth", None),
    (
        "collective all-reduce --gpus 4 --size 1MB --topology fully-connected --bandwidth -1GB/s "
        "--latency 1us",
        "bandwidth",
        None,
    ),
    ("collective all-reduce --gpus 4 --size 1MB --nodes 3", "nodes", None),
    ("collective all-reduce --gpus 4 --size 1MB --servers 2", "servers", None),
    ("collective all-reduce --gpus 4 --size 1MB --sweep 1MB", "sweep", None),
    ("schedule gpipe --pp 2 --micro-batches 2 --costs f=x", "f=x", None),
    ("schedule zb-h1 --pp 2 --micro-batches 2 --costs w=3", "costs", None),
    ("schedule gpipe --pp 2 --micro-batches 2 --costs f=1,b=2,f=2", "costs", "f=1,b=2"),
    ("schedule zb-v --pp 2 --micro-batches 2 --virtual-stages 3", "virtual_stages", "2"),
    ("schedule gpipe --pp 2 --micro-batches 2 --validate nowhere.txt", "validate", None),
]


@pytest.mark.parametrize(("line", "field", "nearest"), BAD)
def test_bad_input_is_exit_2_with_field_value_rule_and_nearest_and_no_traceback(line, field, nearest, capsys):
    Path("empty.txt").write_text("")
    Path("short.txt").write_text("too short")
    code, out, err = glass(capsys, *line.split(), "--json")
    said = json.loads(out)
    assert code == 2
    assert field in (said["field"], said["value"])
    assert said["rule"]
    if nearest is not None:
        assert str(said["nearest"]) == nearest or nearest in said["rule"]
    assert said["message"] in err
    assert "Traceback" not in err
    assert not list(Path("runs").glob("*"))  # neither a run nor a folder for one


def test_a_failed_run_is_exit_3_and_leaves_what_was_recorded(capsys, monkeypatch):
    from glasscluster.scenarios.jobs import training

    monkeypatch.setattr(
        training, "check_memory", lambda *_: None
    )  # it would refuse before anything runs: exit 2
    code, out, err = glass(
        capsys, "train", *LAYOUT, "--no-check", "--memory", "400KB", "--out", "full", "--json"
    )
    said = json.loads(out)
    assert code == 3
    assert said["error"] == "OutOfMemory"
    assert "Resident" in err
    kept = json.loads(Path("full/run.json").read_text())
    assert kept["schema"] == "glass.partial/1"
    assert kept["error"] == "OutOfMemory"
    assert any(rank["last_operations"] for rank in kept["ranks"])
    assert list(Path("full").glob("partial-rank*.npz"))


def test_a_failed_check_is_exit_1(capsys, monkeypatch):
    from glasscluster.strategies.judge import check

    monkeypatch.setattr(check, "TOLERANCE", -1.0)
    code, out, _ = glass(capsys, "train", *LAYOUT, "--json")
    assert code == 1
    assert any(row["ok"] is False for row in json.loads(out)["checks"])
    assert json.loads(out)["status"] == "FAIL"


def test_without_the_check_the_verdict_is_partial_says_so_and_is_exit_0(capsys):
    code, out, _ = glass(capsys, "train", *LAYOUT, "--no-check", "--json")
    said = json.loads(out)
    assert (code, said["status"]) == (0, "PARTIAL")
    assert "--no-check" in said["not_checked"][0]
    code, out, _ = glass(capsys, "train", *LAYOUT, "--no-check", "--out", "unchecked")
    assert code == 0
    assert re.search(r"^PARTIAL: \d+ held, 0 failed, \d+ not applicable$", out, re.M)
    assert "not checked: that gradients" in out
    page = Path("unchecked/report.html").read_text()
    assert 'class="status partial"' in page
    ledger = list(csv.DictReader(Path("unchecked/ledger.csv").read_text().splitlines()))
    assert {"key", "verdict", "why"} <= set(ledger[0])
    off = [row["verdict"] == "not applicable" for row in ledger]
    assert off == [row["why"] != "" for row in ledger] == [row["ok"] == "" for row in ledger]


def test_a_row_that_is_not_applicable_changes_no_verdict_and_is_shown_with_its_reason(capsys):
    words = "train --dp 2 --zero 2 --seq 8 --layers 1 --hidden 8 --heads 2 --steps 1".split()
    code, out, _ = glass(capsys, *words, "--json")
    said = json.loads(out)
    (row,) = (r for r in said["checks"] if r["verdict"] == "not applicable")
    assert (code, said["status"], said["not_checked"]) == (0, "PASS", [])
    assert (row["key"], row["ok"], row["predicted"]) == ("last_bucket_reduced", None, None)
    assert "ZeRO-2" in row["why"]
    code, out, _ = glass(capsys, *words)
    assert code == 0
    assert re.search(r"^PASS: \d+ held, 0 failed, 1 not applicable$", out, re.M)


def test_a_scenario_that_checks_nothing_is_partial_and_a_plain_string_names_a_row_in_both_languages(capsys):
    check = [line for line in LESSON.splitlines() if "lab.check" in line][0]
    Path("unchecked.py").write_text(LESSON.replace(check, "").replace("my-ring", "unchecked"))
    code, out, _ = glass(capsys, *"run unchecked.py --json".split())
    assert (code, json.loads(out)["status"], json.loads(out)["checks"]) == (0, "PARTIAL", [])
    assert "no check is stated" in json.loads(out)["not_checked"][0]
    Path("checked.py").write_text(LESSON)
    (row,) = json.loads(glass(capsys, *"run checked.py --json".split())[1])["checks"]
    assert row["key"] == row["name"] == row["names"]["zh"] == "bytes sent"


LESSON = '''
from glasscluster.scenarios.lab import scenario

@scenario("my-ring", title=("My ring", "我的环"))
def my_ring(lab, gpus: int = 3, size: int = 100):
    """A ring of my own."""
    run = lab.run("ring", ("A ring", "一个环"), program, size, gpus=gpus)
    lab.check("bytes sent", 2 * (gpus - 1) * size * 4, sum(run.graph.bytes_sent()), "Eq 9")

def program(gpu, size):
    import torch
    x = torch.ones(size)
    gpu.comm.all_reduce(x)
    return float(x[0])
'''


def test_a_file_with_ten_lines_of_scenario_runs_with_options_from_its_signature(capsys):
    Path("my_lesson.py").write_text(LESSON)
    code, out, _ = glass(capsys, *"run my_lesson.py --gpus 5 --size 7 --json".split())
    said = json.loads(out)
    assert code == 0
    assert said["schema"] == "glass.run/1"
    assert said["runs"][0]["gpus"] == 5
    assert said["checks"][0]["counted"] == 2 * 4 * 7 * 4
    assert Path(said["report"]).is_file()
    code, out, _ = glass(capsys, *"run my_lesson.py --help".split())
    assert code == 0
    assert "--size" in out
    assert "A ring of my own" in out


NOISY = """
from glasscluster.scenarios.lab import scenario

@scenario("noisy")
def noisy(lab):
    print("a program that prints")
    lab.run("x", ("x", "x"), program, gpus=2)

def program(gpu):
    print("and a rank that prints")
"""


def test_with_json_nothing_but_the_object_is_on_standard_output(capsys):
    Path("noisy.py").write_text(NOISY)
    code, out, err = glass(capsys, "run", "noisy.py", "--json")
    assert code == 0
    assert json.loads(out)["name"] == "noisy"
    assert "a program that prints" in err


def test_list_and_doctor_answer(capsys):
    code, out, _ = glass(capsys, "list", "--json")
    assert code == 0
    assert {"scenarios", "models", "hardware", "schedules", "backends"} <= set(json.loads(out))
    code, out, _ = glass(capsys, "doctor", "--json")
    items = {r["name"]: r for r in json.loads(out)["items"]}
    assert code == 0
    assert items["torch"]["ok"]


def test_the_tour_holds_every_check_and_its_report_has_four_compared_runs(capsys):
    code, out, _ = glass(capsys, *"run tour --backend threads --steps 2 --hidden 64 --seq 32 --json".split())
    said = json.loads(out)
    assert code == 0
    assert [r["name"] for r in said["runs"]] == ["ddp", "zero3", "tp", "gpipe", "zero3-no-prefetch"]
    assert (said["status"], said["not_checked"]) == ("PASS", [])
    assert "failed" not in {row["verdict"] for row in said["checks"]}
    for run in said["runs"][:4]:
        assert max(run["max_rel_grad_diff"], run["max_rel_weight_diff"]) <= 1e-10
    exposed = {r["name"]: r["exposed_comm_s"] for r in said["runs"]}
    assert exposed["zero3"] < exposed["zero3-no-prefetch"]


def test_a_collective_is_timed_counted_and_held_against_its_closed_form(capsys, tmp_path):
    words = "collective all-reduce --algorithm ring --gpus 8 --size 8MB --json --sweep 1KiB:64KiB --out"
    code, out, _ = glass(capsys, *words.split(), str(tmp_path / "c"))
    found = json.loads(out)
    assert code == 0
    assert found["schema"] == "glass.collective/1"
    assert found["bytes_sent_per_gpu"] == [14_000_000] * 8
    assert found["steps"] == 14
    assert found["messages"] == 14 * 8
    assert (
        found["time_s"]
        == pytest.approx(14 * (10e-6 + 1e6 / 10e9), rel=1e-9)
        == pytest.approx(found["predicted_time_s"], rel=1e-9)
    )
    assert found["bus_bandwidth_bytes_per_s"] == pytest.approx(
        found["algorithm_bandwidth_bytes_per_s"] * 14 / 8
    )
    assert found["contention"] is False  # in a ring no link carries two messages
    assert found["busiest_link"]["utilisation_fraction"] == pytest.approx(14 * 1e-4 / found["time_s"])
    assert [s["size_bytes"] for s in found["sweep"]] == [1024, 4096, 16384, 65536]
    assert (tmp_path / "c" / "report.html").is_file()


def test_servers_topology_and_nodes_of_a_collective(capsys):
    base = "collective all-reduce --gpus 4 --size 4MB --json"
    one = json.loads(glass(capsys, *f"{base} --algorithm parameter-server --servers 1".split())[1])
    assert one["bytes_sent_per_gpu"] == [12_000_000, 4_000_000, 4_000_000, 4_000_000]
    wire = "--topology fully-connected --bandwidth 1GB/s --latency 3us --overhead 1us"
    direct = json.loads(glass(capsys, *f"{base} --algorithm direct {wire}".split())[1])
    assert direct["time_s"] == pytest.approx(2 * (3 * (1e-6 + 1e-3) + 3e-6), rel=1e-9)
    two = json.loads(glass(capsys, *f"{base} --algorithm hierarchical --nodes 2".split())[1])
    assert two["time_s"] == pytest.approx(two["predicted_time_s"], rel=1e-9)
    assert two["steps"] == 4


def test_a_badly_placed_ring_on_an_oversubscribed_tree_shares_its_links(capsys):
    base = "collective all-reduce --gpus 16 --size 16MB --json --bandwidth 1GB/s --latency 0s"
    base += " --topology fat-tree --leaf 4 --oversubscription 4"
    well = json.loads(glass(capsys, *base.split())[1])
    across = ",".join(str(4 * (i % 4) + i // 4) for i in range(16))
    badly = json.loads(glass(capsys, *f"{base} --placement {across}".split())[1])
    assert well["time_s"] == pytest.approx(30 * 1e-3, rel=1e-9)
    assert badly["contention"] is True
    assert badly["time_s"] == pytest.approx(4 * well["time_s"], rel=1e-9)
    assert badly["busiest_link"]["utilisation_fraction"] == pytest.approx(1.0)
    assert {badly["busiest_link"][end].split()[0] for end in ("from", "to")} == {"leaf", "spine"}
    free = json.loads(glass(capsys, *f"{base} --placement {across} --no-contention".split())[1])
    assert free["time_s"] < badly["time_s"]
    assert free["busiest_link"]["utilisation_fraction"] > 1  # what the links do not have


def test_nccl_says_what_it_would_choose_and_counts_nothing(capsys, tmp_path):
    words = "collective all-reduce --algorithm nccl --gpus 8 --size 1GiB --hardware dgx-a100-80gb --json"
    words += " --sweep 1KiB:1GiB --against ring"
    found = json.loads(glass(capsys, *words.split(), "--out", str(tmp_path / "n"))[1])
    assert found["nccl"]["algorithm"] == "Ring"
    assert found["nccl"]["protocol"] == "Simple"
    assert found["bytes_sent_per_gpu"] is None
    assert 200e9 < found["bus_bandwidth_bytes_per_s"] < 300e9
    assert {r["algorithm"] for r in found["sweep"]} == {"nccl", "ring"}
    assert (tmp_path / "n" / "report.html").is_file()


def test_a_sweep_over_gpus_and_a_network_from_a_file(capsys, tmp_path):
    words = (
        "collective all-reduce --gpus 4 --size 4MB --json --sweep gpus=2:16 --sweep 1KB:16KB --against tree"
    )
    rows = json.loads(glass(capsys, *words.split())[1])["sweep"]
    assert [(r["algorithm"], r["gpus"]) for r in rows if r["size_bytes"] == 4_000_000] == [
        (a, n) for a in ("ring", "tree") for n in (2, 4, 8, 16)
    ]
    edges = [{"source": i, "target": i + 1, "bandwidth": "1GB/s", "latency": "1us"} for i in range(3)]
    net = tmp_path / "net.json"
    net.write_text(json.dumps({"nodes": [{"id": i} for i in range(4)], "edges": edges}))
    found = json.loads(
        glass(capsys, *f"collective broadcast --gpus 4 --size 4MB --topology {net} --json".split())[1]
    )
    assert found["hardware"] == "net"
    assert found["time_s"] == pytest.approx(3 * 1e-6 + (4 + 2) * 1e-3)
    (tmp_path / "net.json").write_text(
        json.dumps({"nodes": [{"id": i} for i in range(4)], "edges": edges[:2]})
    )
    code, _, err = glass(capsys, *f"collective broadcast --gpus 4 --size 4MB --topology {net}".split())
    assert code == 2
    assert "no route from 0 to 3" in err


@pytest.mark.parametrize(
    "plan", ["--tp 2", "--dp 4 --zero 3", "--tp 2 --pp 2 --dp 2 --zero 1", "--dp 16 --shard 8 --zero 2"]
)
def test_a_prediction_on_nvidia_gpus_uses_nccl_s_collectives_on_every_axis(capsys, plan):
    words = f"predict --hardware dgx-h100 --precision bf16 --hidden 128 {plan} --json"
    found = json.loads(glass(capsys, *words.split())[1])
    assert found["collectives"] == "nccl"
    rings = json.loads(glass(capsys, *words.split(), "--algorithm", "ring")[1])
    assert rings["collectives"] == "ring"
    assert rings["iteration_time_s"] != found["iteration_time_s"]
    assert rings["peak_memory_gib"] >= found["peak_memory_gib"]  # a library's staging is its own


def test_fp8_has_a_cost_in_which_only_the_matrices_are_quicker_but_does_not_run(capsys):
    words = "predict --hardware dgx-h100 --dp 2 --hidden 4096 --heads 32 --layers 2 --seq 1024"
    words += " --micro-batch 4 --global-batch 8 --json --precision"
    narrow, half = (json.loads(glass(capsys, *words.split(), p)[1]) for p in ("fp8", "bf16"))
    assert narrow["peak_memory_gib"] == half["peak_memory_gib"]
    assert (
        0.5 * half["breakdown_s"]["compute"]
        < narrow["breakdown_s"]["compute"]
        < half["breakdown_s"]["compute"]
    )
    assert (
        glass(capsys, *"predict --hardware dgx-a100-80gb --precision fp8".split())[0] == 2
    )  # no listed peak
    code, _, err = glass(capsys, *"train --precision fp8 --hardware dgx-h100 --backend threads".split())
    assert code == 2
    assert "has a cost (glass predict) but does not run" in err


def refusal(capsys, *line):
    """The JSON of a refused command."""
    code, out, _ = glass(capsys, *line, "--json")
    assert code == 2
    return json.loads(out)


def test_an_option_that_a_scenario_does_not_have_is_named_with_its_value_and_its_own_options(capsys):
    said = refusal(capsys, "run", "E4", "--gpus", "3")
    assert (said["field"], said["value"], said["nearest"]) == ("gpus", "3", None)
    assert "--hidden" in said["rule"]
    assert refusal(capsys, "run", "E4", "--hiden=3")["nearest"] == "hidden"
    assert refusal(capsys, "run", "E4", "--hiden=3")["value"] == "3"


def test_a_run_that_is_not_there_is_told_a_stored_run_of_a_like_name_or_none(capsys):
    Path("runs/train-1").mkdir(parents=True)
    Path("runs/train-1/graph.npz").touch()
    assert refusal(capsys, "replay", "nodir")["nearest"] is None
    assert refusal(capsys, "replay", "runs/train-11")["nearest"] == "runs/train-1"


def test_a_number_that_is_none_is_refused_in_our_words(capsys):
    for line in ("train --layers x", "run E4 --hidden x"):
        assert refusal(capsys, *line.split())["rule"] == "must be a whole number"


def test_memory_is_said_in_a_unit_in_which_it_can_be_read(capsys):
    code, _, err = glass(capsys, *"train --memory 1KB --backend threads".split())
    assert code == 2
    assert "1 KB" in err
    assert "e-06" not in err


def test_predict_csv_is_exit_1_where_no_row_succeeded(capsys):
    Path("rows.csv").write_text("tp\n3\n5\n")
    code, out, _ = glass(capsys, "predict", "--csv", "rows.csv", "--json")
    assert (code, json.loads(out)["errors"]) == (1, 2)


def test_blanks_and_columns_without_a_name_are_no_options_of_a_row(capsys):
    Path("rows.csv").write_text(",dp, tp ,micro-batch\n0, 2 ,1, 1\n1,1,2,1,\n \n2,1,1,1,7\n")
    code, out, _ = glass(capsys, "predict", "--csv", "rows.csv", "--out", "done.csv", "--json")
    assert (code, json.loads(out)["rows"], json.loads(out)["errors"]) == (0, 3, 1)
    rows = list(csv.DictReader(Path("done.csv").read_text().splitlines()))
    assert [r["gpus"] for r in rows] == ["2", "2", ""]
    assert "more cells" in rows[2]["error"]
    Path("twice.csv").write_text("dp,dp\n1,2\n")
    assert refusal(capsys, "predict", "--csv", "twice.csv")["field"] == "csv"


def test_rows_over_two_processes_are_answered_as_by_one(capsys):
    Path("rows.csv").write_text("dp,layers,hidden\n1,2,32\n3,x,32\n2,2,32\n1,1,64\n")
    done = {}
    for processes in ("1", "2"):
        line = (
            "predict",
            "--csv",
            "rows.csv",
            "--out",
            f"{processes}.csv",
            "--processes",
            processes,
            "--json",
        )
        code, out, _ = glass(capsys, *line)
        assert (code, json.loads(out)["rows"], json.loads(out)["errors"]) == (0, 4, 1)
        rows = csv.DictReader(Path(f"{processes}.csv").read_text().splitlines())
        done[processes] = [{k: v for k, v in row.items() if k != "wall_s"} for row in rows]
    assert done["1"] == done["2"]
    assert [row["dp"] for row in done["2"]] == ["1", "3", "2", "1"]
    assert [bool(row["error"]) for row in done["2"]] == [False, True, False, False]


def test_predict_says_first_what_matters_in_both_languages(capsys):
    line = "predict --tp 2 --layers 2 --hidden 128 --seq 64 --hardware dgx-h100".split()
    code, out, _ = glass(capsys, *line)
    english, chinese = out.splitlines()[:2]
    assert code == 0
    assert re.match(r"[\d.]+ \w+ a step; fits: 0\.0 of 74\.5 GiB on stage 0; \d+% of the time is ", english)
    assert "exposed TP communication" in english
    assert "暴露的 TP 通信" in chinese
    said = json.loads(glass(capsys, *line, "--json")[1])
    assert said["sentence"] == {"en": english, "zh": chinese}
    share = said["breakdown_s"]["exposed_tp"] / said["iteration_time_s"]
    assert f"{share:.0%} of the time" in english


COLUMNS = {  # header -> what its rows' error says
    "dp,slow_rank": "option of a single prediction",
    "dp,slow-rank": "option of a single prediction",
    "dp,out": "option of a single prediction",
    "dp,golbal_batch": "the nearest valid choice is global_batch",
    "dp,iteration_time_s": "is no column of rows.csv",
}


@pytest.mark.parametrize("header", COLUMNS)
def test_a_column_that_is_none_is_named_once_and_fails_only_the_rows_that_fill_it(capsys, header):
    Path("rows.csv").write_text(f"{header}\n1,1\n2,\n1,3\n")
    code, out, err = glass(capsys, "predict", "--csv", "rows.csv", "--out", "done.csv", "--json")
    assert (code, json.loads(out)["errors"]) == (0, 2)
    rows = list(csv.DictReader(Path("done.csv").read_text().splitlines()))
    assert [bool(row["error"]) for row in rows] == [True, False, True]
    assert COLUMNS[header] in rows[0]["error"]
    assert "model, hardware, rank" in rows[0]["error"]
    assert err.count(COLUMNS[header]) == 1


def test_help_says_that_rows_may_fail_and_the_exit_code_is_0(capsys):
    code, out, _ = glass(capsys, "predict", "--help")
    assert code == 0
    said = " ".join(out.replace("│", " ").split())
    assert "a row that fails has `error` filled, and the exit code is 0 unless all fail" in said


def test_predict_refuses_options_that_would_do_nothing(capsys):
    assert refusal(capsys, "predict", "--out", "done.csv")["field"] == "out"
    Path("rows.csv").write_text("dp\n1\n")
    assert refusal(capsys, "predict", "--csv", "rows.csv", "--slow-rank", "0:2")["field"] == "slow_rank"


@pytest.mark.parametrize("weight", ["nan", "inf", "0", "-1"])
def test_the_weight_of_a_source_is_a_positive_finite_number(weight, capsys):
    Path("a.txt").write_text("a text " * 50)
    line = ("train", "--data", f"a.txt:{weight}", "--data", "python:1", "--backend", "threads")
    assert refusal(capsys, *line)["field"] == "data"


@pytest.mark.parametrize("more", [(), ("--pack",), ("--data", "python:1")])
def test_bytes_that_are_folded_into_a_smaller_vocabulary_are_said(more, capsys):
    Path("a.txt").write_text("a text " * 50)
    line = "train --data a.txt --steps 1 --layers 1 --no-check --backend threads --out small --vocab".split()
    code, _, err = glass(capsys, *line, "64", *more)
    assert code == 0
    assert "a.txt" in err
    assert "are taken modulo the vocabulary of 64 tokens" in err
    code, _, err = glass(capsys, *line, "256", *more)
    assert code == 0
    assert "modulo" not in err


def test_one_thing_is_not_said_in_the_plural(capsys):
    _, _, err = glass(capsys, *"train --steps 1 --layers 1 --backend threads --out one".split())
    assert "1 GPU," in err
    assert "checking 1 step in" in err
    assert "1 GPUs" not in err
    assert "1 steps" not in err
    assert "1 threads ranks" not in err


@pytest.mark.parametrize("two", ["2", " 2 ", 2.0])
def test_a_whole_number_of_a_request_may_be_written_as_text_or_with_a_point(two, capsys):
    Path("r.json").write_text(json.dumps({"dp": two, "layers": 1}))
    said = [
        json.loads(glass(capsys, *line, "--json")[1])
        for line in (["predict", "--request", "r.json"], ["predict", "--dp", "2", "--layers", "1"])
    ]
    assert said[0]["iteration_time_s"] == said[1]["iteration_time_s"]
    assert said[0]["simulated_gpus"] == 2


@pytest.mark.parametrize("name", ["dp", "layers", "global_batch"])
def test_a_truth_value_is_no_whole_number(name, capsys):
    Path("r.json").write_text(json.dumps({name: True}))
    said = refusal(capsys, "predict", "--request", "r.json")
    assert (said["field"], said["rule"]) == (name, "must be a whole number")
