"""What is said of a rank's time: the same words and numbers everywhere, and no bubble without a pipeline."""

from __future__ import annotations

import html
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from glasscluster.base.breakdown import ENTRIES, PAPERS, PAPERS_DEFINITIONS, listed
from glasscluster.cli import main
from glasscluster.visualize.words import CATALOGUE

ROOT = Path(__file__).resolve().parent.parent
BUBBLE = re.compile("bubble|气泡", re.IGNORECASE)
SMALL = "--layers 4 --hidden 16 --heads 2 --seq 8 --steps 1 --backend threads"
ALONE = {  # plans without a pipeline
    "one GPU": "",
    "dp": "--dp 2",
    "zero-3": "--dp 2 --zero 3",
    "offload": "--dp 2 --zero 2 --offload optimizer",
    "tp, recompute": "--tp 2 --recompute full",
    "cp": "--cp 2",
    "ep": "--dp 2 --ep 2 --experts 2",
}
PIPELINES = {"gpipe": "--pp 2 --schedule gpipe --global-batch 4", "3d": "--pp 2 --dp 2 --tp 2 --zero 1"}
LESSONS = ("L0", "D1", "C3")


def glass(capsys: pytest.CaptureFixture[str], line: str) -> str:
    """What a command prints."""
    with pytest.raises(SystemExit) as end:
        main(line.split())
    assert not end.value.code, line
    return capsys.readouterr().out


def data_of(page: str) -> dict[str, Any]:
    """The data that a page carries."""
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
    )


def texts(content: Any) -> list[str]:
    """Every string in nested data; keys are not read by anybody."""
    if isinstance(content, dict):
        return [text for value in content.values() for text in texts(value)]
    if isinstance(content, list):
        return [text for value in content for text in texts(value)]
    return [content] if isinstance(content, str) else []


def said_by(path: Path) -> str:
    """All that a reader of a report can come to see: its text, its figures, what its script may say."""
    page = path.read_text(encoding="utf-8")
    data = data_of(page)
    visible = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    shown = [data[key] for key in ("figures", "words", "ledger")]
    return "\n".join([html.unescape(re.sub(r"<[^>]*>", " ", visible)), *texts(shown)])


@pytest.mark.parametrize("plan", ALONE.values(), ids=ALONE)
def test_no_text_of_a_run_without_a_pipeline_speaks_of_bubbles(plan, capsys, tmp_path):
    out = glass(capsys, f"train {SMALL} {plan} --out {tmp_path / 'one'}")
    out += glass(capsys, f"replay {tmp_path / 'one'} --hardware dgx-h100 --out {tmp_path / 'two'}")
    out += glass(capsys, f"predict {SMALL.partition(' --steps')[0]} {plan}")
    assert not BUBBLE.search(out)
    for folder in ("one", "two"):
        assert not BUBBLE.search(said_by(tmp_path / folder / "report.html"))
    for line in (
        f"train {SMALL} {plan} --out {tmp_path / 'three'}",
        f"replay {tmp_path / 'one'} --hardware classroom",
    ):
        said = json.loads(glass(capsys, f"{line} --json"))
        assert {said[key] for key in PAPERS} == {None}
        assert said["breakdown_s"]["bubble"] == 0


@pytest.mark.parametrize("lesson", LESSONS)
def test_no_text_of_a_lesson_without_a_pipeline_speaks_of_bubbles(lesson, capsys, tmp_path):
    out = glass(capsys, f"run {lesson} --backend threads --out {tmp_path}")
    assert not BUBBLE.search(out)
    assert not BUBBLE.search(said_by(tmp_path / "report.html"))


@pytest.mark.parametrize("plan", PIPELINES.values(), ids=PIPELINES)
def test_a_pipeline_s_numbers_are_the_same_in_json_on_the_terminal_and_on_the_page(plan, capsys, tmp_path):
    line = f"train {SMALL} {plan} --out {tmp_path / 'one'}"
    out, said = glass(capsys, line), json.loads(glass(capsys, f"{line} --json"))
    path = tmp_path / "one" / "report.html"
    shown = said_by(path)
    spent = listed(said["breakdown_s"])
    assert "bubble" in spent.en
    assert spent.en in out
    assert spent.en in shown
    assert spent.zh in shown
    assert sum(said["breakdown_s"].values()) == pytest.approx(said["makespan_s"], rel=1e-12)
    for key, (name, _) in PAPERS.items():
        assert f"{name.en} {said[key]:.1%}" in out
        assert re.search(rf"{re.escape(name.en)}\s+{re.escape(name.zh)}\s+{said[key]:.1%}", shown), key
        assert PAPERS_DEFINITIONS[key].zh in shown
    share = said["breakdown_s"]["bubble"] / said["makespan_s"]
    assert abs(share - said["bubble_fraction"]) > 0.01  # two numbers, or this test shows nothing
    # a bare "bubble" is the entry: whatever has the papers' number says whose it is
    percent = f"{said['bubble_fraction']:.1%}"
    for text in (out, shown):
        assert not re.search(rf"(?<!papers' )bubble(?: is)? {re.escape(percent)}", text)
    figure = data_of(path.read_text(encoding="utf-8"))["figures"]["split-0-0"]
    rank = int(re.search(r"rank (\d+), the last to finish", out)[1])
    drawn = {bars["name"]: bars["text"][rank] for bars in figure["data"]}
    assert drawn["Bubble"] == f"{share:.1%}"
    for key, seconds in said["breakdown_s"].items():
        if key != "compute" and seconds:
            assert (
                drawn[CATALOGUE["host_wait" if key == "host" else key].en]
                == f"{seconds / said['makespan_s']:.1%}"
            )


def test_predict_says_in_words_what_it_says_in_json(capsys):
    line = f"predict {SMALL.partition(' --steps')[0]} --dp 2 --pp 2 --zero 1"
    said = json.loads(glass(capsys, f"{line} --json"))
    assert list(said["breakdown_s"]) == list(ENTRIES)
    assert sum(said["breakdown_s"].values()) == pytest.approx(said["iteration_time_s"], rel=1e-12)
    assert listed(said["breakdown_s"]).en in glass(capsys, line)


@pytest.mark.parametrize("command", ["train", "predict", "replay"])
def test_help_says_what_each_entry_and_each_of_the_papers_bubbles_is(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    printed = glass(capsys, f"{command} --help")
    for key, entry in ENTRIES.items():
        assert key.startswith("exposed_") or f"{key}: {entry.meaning.en}" in printed, key
    assert "exposed_AXIS (tp, pp, dp, cp, ep): " in printed
    for key, (_, meaning) in PAPERS.items():
        assert f"{key}: {meaning.en}" in printed


def test_the_page_of_definitions_is_made_from_the_list():
    spec = importlib.util.spec_from_file_location("make_time", ROOT / "docs" / "make_time.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert (ROOT / "docs" / "time.md").read_text(encoding="utf-8") == maker.page(), "python docs/make_time.py"
    for entry in ENTRIES.values():
        assert entry.name.zh in maker.page()


def test_a_schedule_of_one_stage_has_no_bubble(capsys):
    assert not BUBBLE.search(glass(capsys, "schedule gpipe --pp 1 --micro-batches 2"))
    said = json.loads(glass(capsys, "schedule gpipe --pp 1 --micro-batches 2 --json"))
    assert {said[key] for key in PAPERS} == {None}
