"""The catalogue says where each figure is from, and says what the published sheets say."""

from __future__ import annotations

import json
from dataclasses import replace

import networkx as nx
import pytest
import torch
from helpers import published_rows, run_plan
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glasscluster.base.errors import InputError
from glasscluster.base.quantities import parse_rate, parse_size, parse_time
from glasscluster.sim.recording.events import OPTIMIZER
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import CATALOGUE, hardware
from glasscluster.sim.time.network import BUILDERS, Cable, build, from_graph, of_hardware, read
from glasscluster.sim.time.network.own import as_data
from glasscluster.strategies.plan import make_model, make_plan

NAMES = (
    "classroom",
    "laptop",
    "dgx-v100",
    "dgx-a100-40gb",
    "dgx-a100-80gb",
    "dgx-h100",
    "dgx-h200",
    "dgx-b200",
    "dgx-b300",
    "gb200-nvl72",
    "hgx-h20",
    "hgx-h800",
    "mi300x",
    "pcie-a100",
    "pcie-4090",
    "pcie-l40s",
)


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
    took = {
        line.graph.names[op]: end - start
        for op, start, end in zip(line.graph.op, line.start, line.end, strict=True)
    }
    assert took["down"] == pytest.approx(10e-6 + 1e6 / 10e9)
    assert took["update"] == pytest.approx(4e5 / 20e9)
    assert took["up"] == pytest.approx(10e-6 + 1e5 / 10e9)
    assert line.makespan == pytest.approx(2e-6 + sum(took[k] for k in ("down", "update", "up")))
    assert line.breakdown()["host"] == pytest.approx(line.makespan - 2e-6)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_waiting_for_the_host_and_then_for_a_gather_are_told_apart(stage):
    plan = make_plan(dp=2, zero=stage, offload="optimizer", bucket=20_000)
    line = run_plan(plan, make_model("tiny", layers=2, hidden=32, seq=8), "dry").timeline
    spent = line.breakdown()
    link, update = (
        sum(line.graph.host_bytes(k)[0] for k in kinds) for kinds in (("down", "up"), ("update",))
    )
    assert spent["host"] >= max(link / 2 / 10e9, update / 20e9)  # down and up share no lane
    assert spent["host"] < link / 10e9 + update / 20e9 + 2e-5 * len(line.graph)
    assert spent["exposed_dp"] > 0
    assert spent["bubble"] == 0
    assert spent["wait"] <= 10e-6  # the two ranks leave the all-reduce of one scalar a latency apart
    assert sum(spent.values()) == pytest.approx(line.makespan)


def test_what_lives_in_host_memory_is_no_byte_of_the_gpu_and_is_let_go_with_its_tensor():
    def program(gpu):
        kept = gpu.host.store(torch.zeros(1000), "moments")
        gpu.memory.allocated([kept.view(-1)], OPTIMIZER)
        moved = torch.zeros(10)
        gpu.memory.register(moved, "optimizer")
        before = gpu.memory.snapshot()["optimizer"], gpu.memory.host_bytes
        gpu.host.store(moved, "more")
        after = gpu.memory.snapshot()["optimizer"], gpu.memory.host_bytes
        del kept
        return before, after, gpu.memory.host_bytes, sum(gpu.memory.snapshot().values())

    assert Cluster("classroom", 1, "dry").run(program, record=False).results == [
        ((40, 4000), (0, 4040), 40, 0)
    ]


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("classroom", "laptop")])
def test_peaks_bandwidths_and_memory_are_those_of_the_published_sheet(name):
    sheet = {r["gpu"].replace("SXM2/SXM3", "SXM2"): r for r in published_rows("gpu_datasheet.csv")}
    item = CATALOGUE[name]
    row = sheet[item.gpu.name]
    assert item.gpu.memory_bytes == float(row["memory_gb"]) * 1e9
    assert item.gpu.memory_bandwidth == float(row["mem_bw_GBps"]) * 1e9
    columns = {
        "fp32": "fp32_tflops",
        "fp16": "fp16_dense_tflops",
        "bf16": "bf16_dense_tflops",
        "fp8": "fp8_dense_tflops",
    }
    for precision, column in columns.items():
        if row[column] not in ("", "n/a"):
            assert item.gpu.peak(precision) == float(row[column]) * 1e12, precision
        else:
            assert precision not in item.gpu.peak_flops
    wire = row["nvlink_unidir_GBps"] or row["pcie_unidir_GBps"]
    assert item.intra.bandwidth == float(wire) * 1e9
    host = row["c2c_unidir_GBps"] or row["pcie_unidir_GBps"] or 31
    assert item.host.link.bandwidth == float(host) * 1e9
    assert item.host.memory_bandwidth < item.gpu.memory_bandwidth / 10


@pytest.mark.parametrize("row", published_rows("gpu_datasheet.csv"), ids=lambda row: row["gpu"])
def test_a_peak_is_the_dense_one_of_a_sheet_that_prints_both(row):
    if row["bf16_sparse_tflops"]:
        gpu = next(h.gpu for h in CATALOGUE.values() if h.gpu.name == row["gpu"])
        assert gpu.peak("bf16") == pytest.approx(float(row["bf16_sparse_tflops"]) * 1e12 / 2, rel=0.02)


def test_a_rack_of_72_is_one_node_and_a_gpu_that_is_no_nvidia_one_gets_rings():
    rack, amd = CATALOGUE["gb200-nvl72"], CATALOGUE["mi300x"]
    assert rack.link(0, 71) == rack.intra
    assert rack.link(71, 72) == rack.inter
    seconds = _native_all_reduce(amd, 8, 8 * 2**20)
    assert seconds == pytest.approx(14 * (3.4e-6 + 2**20 / 448e9))
    assert _native_all_reduce(rack, 72, 2**30) > 71 / 72 * 2**30 / 900e9  # under the port's rate


def _native_all_reduce(machine, ranks, nbytes):
    def program(gpu):
        gpu.comm.all_reduce(torch.empty(nbytes // 4, device="meta"), algorithm="native")

    return Cluster(machine, ranks, "dry").run(program).timeline.makespan


# ---- profile files -----------------------------------------------------------------------------------------
def everything(machine):
    """What a machine is, its network's links, order and routes included."""
    network, gpus = machine.topology, range(len(machine.topology.gpus) if machine.topology else 0)
    return (
        machine,  # compares all fields but the next two
        machine.note,
        network
        and (
            network.name,
            list(network.graph.nodes(data=True)),
            [(u, v, network.graph.edges[u, v]) for u, v in network.links],
            network.gpus,
            network.place,
            [[[network.links[i] for i in network.route(a, b)] for b in gpus] for a in gpus],
        ),
    )


@st.composite
def networks(draw):
    """A named network, or one of a user's with equally short ways; placed anyhow."""
    cable = Cable(draw(st.floats(1e6, 1e12)), draw(st.floats(0, 1e-3)), draw(st.floats(0, 1e-4)))
    name = draw(st.sampled_from([*BUILDERS, "catalogue", "own"]))
    n = 8 if name in ("hypercube", "nvlink-mesh") else draw(st.integers(2, 9))
    if name == "catalogue":
        made = of_hardware(CATALOGUE[draw(st.sampled_from(NAMES))], n)
    elif name == "own":
        graph = nx.gnm_random_graph(n, 2 * n, seed=draw(st.integers(0, 1000)))
        nx.add_path(graph, range(n))  # so that there is a way
        if draw(st.booleans()):
            graph = nx.relabel_nodes(graph, {i: ("gpu", i) for i in range(n)})
        for _, _, wire in graph.edges(data=True):
            wire["bandwidth"], wire["store_and_forward"] = draw(st.floats(1e6, 1e12)), draw(st.booleans())
        made = from_graph(graph)
    else:
        made = build(name, n, cable)
    return made.placed(draw(st.permutations(range(n)))) if draw(st.booleans()) else made


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(NAMES),
    st.none() | networks(),
    st.none() | st.tuples(st.floats(0.01, 100), st.floats(0.01, 100), st.floats(0.01, 100)),
    st.text() | st.just('"Infinity", 1e999'),
)
def test_every_machine_is_read_back_as_it_was_saved(tmp_path, name, network, by, note):
    machine = replace(CATALOGUE[name], topology=network, note=note, name=note or name)
    if by is not None:
        machine = machine.scaled(bandwidth=by[0], latency=by[1], flops=by[2])
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    machine.save(first)
    back = hardware(str(first))
    assert everything(back) == everything(machine)
    back.save(second)
    assert second.read_bytes() == first.read_bytes()
    if by is not None:
        assert (back.bandwidth_scale, back.latency_scale) == (by[0], by[1])


@settings(max_examples=40, deadline=None)
@given(networks())
def test_a_network_with_wider_links_has_the_same_routes(network):
    ranks = range(len(network.gpus))
    before, after = (
        [[n.route(a, b) for b in ranks] for a in ranks] for n in (network, network.scaled(bandwidth=2.0))
    )
    assert after == before


def test_a_saved_network_is_a_topology_file_too(tmp_path):
    network = build("fat-tree", 8, Cable(1e10, 1e-6)).placed([3, 1, 0, 2, 7, 6, 5, 4])
    path = tmp_path / "net.json"
    path.write_text(json.dumps(as_data(network)))
    back = replace(CATALOGUE["classroom"], topology=read(path))
    assert everything(back) == everything(replace(CATALOGUE["classroom"], topology=network))


def test_a_profile_of_before_is_read_with_what_it_leaves_out_as_it_is_by_default(tmp_path):
    path = tmp_path / "old.json"
    CATALOGUE["classroom"].save(path)
    fields = json.loads(path.read_text())
    for later in ("bandwidth_scale", "latency_scale", "topology", "nics", "cpu", "host", "note"):
        del fields[later]
    path.write_text(json.dumps(fields))
    assert hardware(str(path)) == CATALOGUE["classroom"]


@pytest.mark.parametrize(
    ("change", "field", "said", "nearest"),
    [
        (lambda f: f.clear(), "name", "is missing", None),
        (lambda f: f["gpu"].pop("memory_bytes"), "gpu.memory_bytes", "is missing", None),
        (lambda f: f["intra"].update(bandwith=1), "intra.bandwith", "is no field", "bandwidth"),
        (lambda f: f["host"]["link"].update(latency=1), "host.link.latency", "is no field", "latency_s"),
        (lambda f: f["gpu"].update(memory_bandwidth=-1), "gpu.memory_bandwidth", "more than 0", None),
        (
            lambda f: f["gpu"]["peak_flops"].update(fp32="fast"),
            "gpu.peak_flops.fp32",
            "must be a number",
            None,
        ),
        (lambda f: f["inter"].update(latency_s=float("inf")), "inter.latency_s", "finite", None),
        (lambda f: f.update(node_size=0), "node_size", "at least 1", 1),
        (lambda f: f.update(topology={"nodes": [], "edges": []}), "topology", "at least 2 are needed", None),
        (
            lambda f: f.update(topology={"gpus": 1, "place": 1, "routes": 1}),
            "topology",
            "is not a network",
            None,
        ),
    ],
)
def test_a_mistake_in_a_profile_is_named_by_its_field(tmp_path, change, field, said, nearest):
    path = tmp_path / "mine.json"
    CATALOGUE["dgx-a100-80gb"].save(path)
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(InputError, match=said) as caught:
        hardware(str(path))
    assert (caught.value.field, caught.value.nearest) == (field, nearest)


def test_a_file_that_is_no_profile_is_said_to_be_none(tmp_path):
    path = tmp_path / "mine.json"
    for text, rule in (("[]", "not a hardware"), ("nothing", "is no JSON"), ("{}", "not a hardware")):
        path.write_text(text)
        with pytest.raises(InputError, match=rule):
            hardware(str(path))
    with pytest.raises(InputError, match="cannot be read"):
        hardware(str(tmp_path / "none.json"))
    odd, wire = frozenset([1]), {"bandwidth": 1}
    network = from_graph(nx.DiGraph([(odd, 2, wire), (2, odd, wire)]))
    with pytest.raises(InputError, match="a node is saved if"):
        replace(CATALOGUE["classroom"], topology=network).save(path)


def test_a_precision_without_a_listed_peak_is_an_input_error():
    with pytest.raises(InputError, match="lists no peak"):
        CATALOGUE["dgx-v100"].gpu.peak("bf16")


@pytest.mark.parametrize(
    ("text", "value"), [("25MiB", 25 * 2**20), ("1.5KB", 1500), ("7", 7), ("2 GiB", 2**31)]
)
def test_sizes_are_read_as_people_write_them(text, value):
    assert parse_size("bucket", text) == value


def test_rates_and_times_are_read_as_people_write_them():
    assert parse_rate("bandwidth", "200Gb/s") == 25e9
    assert parse_rate("bandwidth", "10GB/s") == 10e9
    assert parse_time("latency", "10us") == pytest.approx(1e-5)
    for bad in ("ten", "3 parsecs", "", "-4s"):
        with pytest.raises(InputError):
            parse_time("latency", bad)
