"""The catalogue says where each figure is from, and says what the published sheets say."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from glasscluster.sim.errors import ScenarioError
from glasscluster.sim.hardware import CATALOGUE, hardware
from glasscluster.sim.quantities import parse_rate, parse_size, parse_time

SHEET = Path(__file__).parents[2] / "shared" / "published" / "gpu_datasheet.csv"
NAMES = ("classroom", "laptop", "dgx-v100", "dgx-a100-40gb", "dgx-a100-80gb", "dgx-h100", "dgx-h200", "dgx-b200", "pcie-a100", "pcie-4090")


def test_every_name_of_the_contract_is_there_with_a_source_for_every_part():
    assert set(NAMES) == set(CATALOGUE)
    for item in CATALOGUE.values():
        for part in (item.gpu, item.intra, item.inter):
            assert part.source, (item.name, part.name)


def test_classroom_can_be_checked_by_hand():
    room = CATALOGUE["classroom"]
    assert room.gpu.peak("fp32") == room.gpu.peak("fp64") == 1e12
    assert room.intra == room.inter
    assert room.intra.bandwidth == 10e9
    assert room.intra.alpha == pytest.approx(10e-6)


@pytest.mark.skipif(not SHEET.exists(), reason="the published data sheets are not part of this clone")
@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("classroom", "laptop")])
def test_peaks_bandwidths_and_memory_are_those_of_the_published_sheet(name):
    with SHEET.open() as file:
        sheet = {r["gpu"].replace("SXM2/SXM3", "SXM2"): r for r in csv.DictReader(file)}
    item = CATALOGUE[name]
    row = sheet[item.gpu.name]
    assert item.gpu.memory_bytes == float(row["memory_gb"]) * 1e9
    assert item.gpu.memory_bandwidth == float(row["mem_bw_GBps"]) * 1e9
    columns = {"fp32": "fp32_tflops", "fp16": "fp16_dense_tflops", "bf16": "bf16_dense_tflops", "fp8": "fp8_dense_tflops"}
    for precision, column in columns.items():
        if row[column] not in ("", "n/a"):
            assert item.gpu.peak(precision) == float(row[column]) * 1e12, precision
        else:
            assert precision not in item.gpu.peak_flops
    wire = row["nvlink_unidir_GBps"] or row["pcie_unidir_GBps"]
    assert item.intra.bandwidth == float(wire) * 1e9


def test_a_profile_file_is_read_back_as_it_was_saved_and_a_broken_one_is_named(tmp_path):
    path = tmp_path / "mine.json"
    CATALOGUE["dgx-a100-80gb"].save(path)
    assert hardware(str(path)) == CATALOGUE["dgx-a100-80gb"]
    path.write_text("{}")
    with pytest.raises(ScenarioError, match="not a hardware profile"):
        hardware(str(path))
    with pytest.raises(ScenarioError, match="cannot be read"):
        hardware(str(tmp_path / "none.json"))


def test_a_precision_without_a_listed_peak_is_an_input_error():
    with pytest.raises(ScenarioError, match="lists no peak"):
        CATALOGUE["dgx-v100"].gpu.peak("bf16")


@pytest.mark.parametrize(("text", "value"), [("25MiB", 25 * 2**20), ("1.5KB", 1500), ("7", 7), ("2 GiB", 2**31)])
def test_sizes_are_read_as_people_write_them(text, value):
    assert parse_size("bucket", text) == value


def test_rates_and_times_are_read_as_people_write_them():
    assert parse_rate("bandwidth", "200Gb/s") == 25e9
    assert parse_rate("bandwidth", "10GB/s") == 10e9
    assert parse_time("latency", "10us") == pytest.approx(1e-5)
    for bad in ("ten", "3 parsecs", "", "-4s"):
        with pytest.raises(ScenarioError):
            parse_time("latency", bad)
