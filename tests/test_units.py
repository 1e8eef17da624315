"""Numbers that people read: a unit that fits; why a step is slow, and how much memory is left."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import glass

from glasscluster.base.breakdown import PAPERS
from glasscluster.base.quantities import (
    written_bytes,
    written_count,
    written_number,
    written_rate,
    written_time,
)
from glasscluster.commands import predict
from glasscluster.commands.console import ledger_number
from glasscluster.visualize.figures.ledger import number

ROOT = Path(__file__).resolve().parent.parent / "glasscluster"
STEADY = settings(derandomize=True, deadline=None, database=None, max_examples=300)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (written_time(11.77), "11.77 s"),
        (written_time(11770.0), "11,770 s"),
        (written_time(0.99996), "1 s"),
        (written_time(0.0123456), "12.35 ms"),
        (written_time(3.2e-9), "3.2 ns"),
        (written_time(0.0), "0 s"),
        (written_bytes(70.2e9), "70.2 GB"),
        (written_bytes(1), "1 byte"),
        (written_bytes(3.1e16), "31 PB"),
        (written_rate(9.882e9), "9.882 GB/s"),
        (written_count(1.62e13, "FLOPs"), "16.2 TFLOPs"),
        (written_number(123456.7), "123,457"),
        (ledger_number(1.5e13 + 0.5), "15,000,000,000,000"),
        (ledger_number(0.25), "0.25"),
        (number(1.25e17), "125,000,000,000,000,000"),
    ],
)
def test_a_figure_has_a_unit_that_fits(said, wanted):
    assert said == wanted


@STEADY
@given(st.floats(1e-6, 1e15))
def test_no_power_of_ten_and_at_least_four_digits(value):
    for said in (written_time(value), written_bytes(value * 1e3), written_rate(value * 1e3)):
        figure, unit = said.split(" ")
        assert "e" not in figure, said
        assert unit
    figure, unit = written_time(value).split(" ")
    size = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}[unit]
    assert float(figure.replace(",", "")) * size == pytest.approx(value, rel=5.1e-4)


@pytest.mark.parametrize("folder", ["commands", "scenarios/jobs", "visualize/page", "strategies/judge"])
def test_no_command_or_page_writes_a_time_or_a_size_by_hand(folder):
    """A figure such as `{x * 1e3:.4g} ms` is 1.177e+04 ms as soon as it is large."""
    by_hand = re.compile(r"\* ?1e[369]\b|:\.?\d*[ge]\} ?(?:[mµn]s|[kKMGT]B|FLOP|bytes)\b")
    found = {p.name: by_hand.findall(p.read_text(encoding="utf-8")) for p in (ROOT / folder).glob("*.py")}
    allowed = {"equal_stages.py", "trace.py"}  # names of machines by milliseconds; Chrome's format, in µs
    assert {name: hits for name, hits in found.items() if hits and name not in allowed} == {}


def test_a_large_prediction_is_told_in_seconds_with_what_memory_is_left(capsys):
    share = dict.fromkeys(("mfu", "mfu_causal", "hfu"), 0.5)
    content = {"iteration_time_s": 11.77, "hardware": "dgx-h100", **share, "kernels": 10, "launch_s": 5e-5}
    content |= {"breakdown_s": {"compute": 11.77}, **dict.fromkeys(PAPERS)}
    content |= {"peak_memory_gib": 70.2, "memory_capacity_gib": 74.5, "memory_margin_gib": 4.3, "fits": True}
    content["sentence"] = {"en": "First this.", "zh": "先说这句。"}
    predict.show(content)
    said = capsys.readouterr().out
    assert said.startswith("First this.\n先说这句。\n")
    assert "11.77 s a step on dgx-h100 (virtual)" in said
    assert "70.200 GiB of 74.5 GiB: a tight fit, 4.3 GiB (6%) are left" in said
    assert "launching" not in said
    predict.show({**content, "memory_margin_gib": 30.0})
    assert "fits, 30.0 GiB (40%) are left" in capsys.readouterr().out


def test_replay_says_that_launches_are_the_reason_and_only_where_they_are(capsys):
    words = "--layers 1 --hidden 16 --heads 2 --seq 8 --steps 1 --no-check --backend threads --out run"
    assert glass(capsys, "train", *words.split())[0] == 0
    _, said, _ = glass(capsys, "replay", "run", "--hardware", "dgx-h100")
    share, kernels = re.search(r"(\d+)% of it is launching kernels: (\d+) of 5 µs on the rank", said).groups()
    assert int(share) > 90, "a model this small does nothing else"
    assert int(kernels) > 20
    _, said, _ = glass(capsys, "replay", "run", "--hardware", "classroom")
    assert "launching" not in said, "launches cost nothing in the classroom"
