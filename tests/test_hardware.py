"""The catalogue says where each figure is from, and says what the published sheets say."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from helpers import run_plan

from glasscluster.base.errors import InputError
from glasscluster.base.quantities import parse_rate, parse_size, parse_time
from glasscluster.sim.recording.events import OPTIMIZER
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import CATALOGUE, hardware
from glasscluster.strategies.plan import make_model, make_plan

SHEET = Path(__file__).parents[2] / "shared" / "published" / "gpu_datasheet.csv"
NAMES = ("classroom", "laptop", "dgx-v100", "dgx-a100-40gb", "dgx-a100-80gb", "dgx-h100", "dgx-h200", "dgx-b200", "pcie-a100", "pcie-4090")


def test_every_name_of_the_contract_is_there_with_a_source_for_every_part():
    assert set(NAMES) == set(CATALOGUE)
    for item in CATALOGUE.values():
        for part in (item.gpu, item.intra, item.inter, item.host, item.host.link):
            assert part.source, (item.name, part)


def test_classroom_can_be_checked_by_hand():
    room = CATALOGUE["classroom"]
    assert room.gpu.peak("fp32") == room.gpu.peak("fp64") == 1e12
    assert room.intra == room.inter
    assert room.intra.bandwidth == 10e9
    assert room.intra.alpha == pytest.approx(10e-6)
    assert (room.host.link.bandwidth, room.host.memory_bandwidth) == (10e9, 20e9)
    assert room.host.link.alpha == pytest.approx(10e-6)


def test_an_errand_of_the_host_takes_its_bytes_over_the_link_or_through_memory():
    def program(gpu):
        gpu.recorder.compute("work", 10**6, 0)
        down = gpu.host.event("down", 10**6)
        gpu.host.event("up", 10**5, gpu.host.event("update", 4 * 10**5, down)).wait()
        gpu.recorder.compute("work", 10**6, 0)

    line = Cluster("classroom", 1, "dry").run(program).timeline
    took = {line.graph.names[op]: end - start for op, start, end in zip(line.graph.op, line.start, line.end, strict=True)}
    assert took["down"] == pytest.approx(10e-6 + 1e6 / 10e9)
    assert took["update"] == pytest.approx(4e5 / 20e9)
    assert took["up"] == pytest.approx(10e-6 + 1e5 / 10e9)
    assert line.makespan == pytest.approx(2e-6 + sum(took[k] for k in ("down", "update", "up")))
    assert line.breakdown()["exposed_host"] == pytest.approx(line.makespan - 2e-6)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_waiting_for_the_host_and_then_for_a_gather_are_told_apart(stage):
    plan = make_plan(dp=2, zero=stage, offload="optimizer", bucket=20_000)
    line = run_plan(plan, make_model("tiny", layers=2, hidden=32, seq=8), "dry").timeline
    spent = line.breakdown()
    link, update = (sum(line.graph.host_bytes(k)[0] for k in kinds) for kinds in (("down", "up"), ("update",)))
    assert spent["exposed_host"] >= max(link / 2 / 10e9, update / 20e9)  # down and up share no lane
    assert spent["exposed_host"] < link / 10e9 + update / 20e9 + 2e-5 * len(line.graph)
    assert spent["exposed_dp"] > 0
    assert spent["bubble"] <= 10e-6  # the two ranks leave the all-reduce of one scalar a latency apart
    assert sum(spent.values()) == pytest.approx(line.makespan)


def test_what_lives_in_host_memory_is_no_byte_of_the_gpu_and_is_let_go_with_its_tensor():
    def program(gpu):
        kept = gpu.host.keep(torch.zeros(1000), "moments")
        gpu.memory.allocated([kept.view(-1)], OPTIMIZER)
        moved = torch.zeros(10)
        gpu.memory.register(moved, "optimizer")
        before = gpu.memory.snapshot()["optimizer"], gpu.memory.host_bytes
        gpu.host.keep(moved, "more")
        after = gpu.memory.snapshot()["optimizer"], gpu.memory.host_bytes
        del kept
        return before, after, gpu.memory.host_bytes, sum(gpu.memory.snapshot().values())

    assert Cluster("classroom", 1, "dry").run(program, record=False).results == [((40, 4000), (0, 4040), 40, 0)]


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
    assert item.host.link.bandwidth == float(row["pcie_unidir_GBps"] or 31) * 1e9
    assert item.host.memory_bandwidth < item.gpu.memory_bandwidth / 10


def test_a_profile_file_is_read_back_as_it_was_saved_and_a_broken_one_is_named(tmp_path):
    path = tmp_path / "mine.json"
    CATALOGUE["dgx-a100-80gb"].save(path)
    assert hardware(str(path)) == CATALOGUE["dgx-a100-80gb"]
    path.write_text("{}")
    with pytest.raises(InputError, match="not a hardware profile"):
        hardware(str(path))
    with pytest.raises(InputError, match="cannot be read"):
        hardware(str(tmp_path / "none.json"))


def test_a_precision_without_a_listed_peak_is_an_input_error():
    with pytest.raises(InputError, match="lists no peak"):
        CATALOGUE["dgx-v100"].gpu.peak("bf16")


@pytest.mark.parametrize(("text", "value"), [("25MiB", 25 * 2**20), ("1.5KB", 1500), ("7", 7), ("2 GiB", 2**31)])
def test_sizes_are_read_as_people_write_them(text, value):
    assert parse_size("bucket", text) == value


def test_rates_and_times_are_read_as_people_write_them():
    assert parse_rate("bandwidth", "200Gb/s") == 25e9
    assert parse_rate("bandwidth", "10GB/s") == 10e9
    assert parse_time("latency", "10us") == pytest.approx(1e-5)
    for bad in ("ten", "3 parsecs", "", "-4s"):
        with pytest.raises(InputError):
            parse_time("latency", bad)
