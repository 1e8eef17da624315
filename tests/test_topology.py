"""Topologies: who is joined to whom, which way a message goes, and what a network that cannot be says."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import networkx as nx
import pytest
import torch

from glasscluster.base.errors import InputError
from glasscluster.sim.run import Cluster
from glasscluster.sim.time import network as topology
from glasscluster.sim.time.hardware import CATALOGUE, hardware
from glasscluster.sim.time.network import Cable, build, from_graph, of_hardware

CABLE = Cable(10e9, 8e-6, 2e-6)
SIZES = {
    "ring": 7,
    "switch": 5,
    "fully-connected": 6,
    "line": 5,
    "mesh2d": 12,
    "torus2d": 20,
    "torus3d": 27,
    "hypercube": 16,
}
SIZES |= {"fat-tree": 16, "rail": 16, "nvlink-mesh": 8, "pcie-tree": 8}


def way(network, src, dst):
    """The nodes that a message passes."""
    links = [network.links[i] for i in network.route(src, dst)]
    assert all(a[1] == b[0] for a, b in pairwise(links))
    return [links[0][0], *(v for _, v in links)] if links else []


@pytest.mark.parametrize("name", list(SIZES))
def test_every_route_of_every_topology_leads_over_links_that_exist_from_its_sender_to_its_receiver(name):
    network = build(name, SIZES[name], CABLE)
    for src in range(SIZES[name]):
        for dst in range(SIZES[name]):
            if src != dst:
                nodes = way(network, src, dst)
                assert nodes[0] == network.gpus[src]
                assert nodes[-1] == network.gpus[dst]
                assert len(set(nodes)) == len(nodes), "a message passes no node twice"


@pytest.mark.parametrize("name", [n for n in SIZES if n not in ("rail", "nvlink-mesh")])
def test_routes_are_shortest_where_the_rule_promises_it(name):
    network = build(name, SIZES[name], CABLE)
    hops = dict(nx.all_pairs_shortest_path_length(network.graph))
    for src in range(SIZES[name]):
        for dst in range(SIZES[name]):
            if src != dst:
                assert len(network.route(src, dst)) == hops[network.gpus[src]][network.gpus[dst]]


def test_the_degree_and_number_of_links_are_the_textbook_s():
    links = {name: len(build(name, SIZES[name], CABLE).links) // 2 for name in SIZES}
    assert links["ring"] == 7
    assert links["line"] == 4
    assert links["switch"] == 5
    assert links["fully-connected"] == 15
    assert links["mesh2d"] == 3 * 3 + 4 * 2  # 4 x 3
    assert links["torus2d"] == 2 * 20
    assert links["torus3d"] == 3 * 27
    assert links["hypercube"] == 16 * 4 // 2
    assert links["fat-tree"] == 16 + 4 * 4
    assert links["rail"] == 16 + 16
    degree = dict(build("nvlink-mesh", 8, Cable(25e9)).graph.degree(weight="bandwidth"))
    assert set(degree.values()) == {2 * 6 * 25e9}, "six NVLink cables a V100, each way"


def test_one_switch_costs_what_one_cable_costs_and_a_second_tier_two_more():
    for name in ("switch", "fully-connected", "ring"):
        link = build(name, 4, CABLE).link(0, 1)
        assert (link.bandwidth, link.latency_s, link.overhead_s) == (10e9, 8e-6, 2e-6)
    tree = build("fat-tree", 8, CABLE, leaf=4)
    assert tree.link(0, 3).latency_s == pytest.approx(8e-6)
    assert tree.link(0, 4).latency_s == pytest.approx(24e-6)


def test_an_oversubscribed_fat_tree_has_that_much_less_bandwidth_up():
    for factor, spines in ((1.0, 8), (2.0, 4), (8.0, 1), (3.0, 2)):
        tree = build("fat-tree", 32, CABLE, leaf=8, oversubscription=factor)
        up = [
            d["bandwidth"]
            for u, v, d in tree.graph.edges(data=True)
            if u == "leaf 0" and v.startswith("spine")
        ]
        assert len(up) == spines
        assert sum(up) == pytest.approx(8 * 10e9 / factor)


def test_a_shift_of_all_ranks_meets_nobody_in_a_full_fat_tree():
    tree = build("fat-tree", 16, CABLE, leaf=4)
    for shift in range(1, 16):
        used = [i for src in range(16) for i in tree.route(src, (src + shift) % 16)]
        if shift % 4 == 0:
            assert len(used) == len(set(used))


def test_rails_are_crossed_inside_the_node():
    rail = build("rail", 16, CABLE)
    assert way(rail, 0, 8) == ["gpu 0", "rail 0", "gpu 8"]
    assert way(rail, 0, 11) == ["gpu 0", "node 0", "gpu 3", "rail 3", "gpu 11"]


def test_a_placement_moves_ranks_to_other_gpus():
    network = build("line", 4, CABLE).placed([3, 1, 0, 2])
    assert way(network, 0, 2) == ["gpu 3", "gpu 2", "gpu 1", "gpu 0"]
    with pytest.raises(InputError, match=r"must name each of the GPUs 0\.\.3 once"):
        network.placed([0, 0, 1, 2])


@pytest.mark.parametrize("name", list(CATALOGUE))
def test_the_catalogue_s_nodes_and_ports_keep_the_latency_of_their_links(name):
    hw = hardware(name)
    network = of_hardware(hw, 2 * hw.node_size)
    for dst in (1, 2 * hw.node_size - 1):
        assert network.link(0, dst).alpha == pytest.approx(hw.link(0, dst).alpha, rel=1e-12)
    ports = [d for n, d in network.graph.nodes(data=True) if d["kind"] == "nic"]
    assert len(ports) == 2 * (hw.nics or hw.node_size)
    if hw.node_size > 1:
        assert network.link(0, 1).bandwidth == hw.intra.bandwidth
    out = sum(
        d["bandwidth"]
        for u, v, d in network.graph.edges(data=True)
        if v == "network" and u.startswith("nic 0")
    )
    assert out == pytest.approx(hw.inter.bandwidth * hw.node_size), (
        "a node's ports carry together what its GPUs were promised"
    )


def test_a_graph_of_your_own_is_a_cluster():
    graph = nx.Graph()
    graph.add_edge("a", "hub", bandwidth=1e9, latency=1e-6)
    graph.add_edge("b", "hub", bandwidth="2GB/s", latency="3us")
    graph.add_node("hub", kind="switch")
    for n in "ab":
        graph.nodes[n]["kind"] = "gpu"
    network = from_graph(graph)
    assert network.gpus == ["a", "b"]
    link = network.link(0, 1)
    assert (link.bandwidth, link.latency_s) == (1e9, pytest.approx(4e-6))

    def program(gpu):
        with gpu.unrecorded():
            x = torch.ones(1000)
        gpu.comm.all_reduce(x)

    hw = replace(hardware("classroom"), topology=network)
    assert Cluster(hw, 2).run(program).timeline.makespan == pytest.approx(2 * (4e-6 + 2000 / 1e9))


def _path(**changes):
    edges = [
        {"source": 0, "target": 1, "bandwidth": 1e9, "latency": 1e-6},
        {"source": 1, "target": 2, "bandwidth": 1e9, "latency": 1e-6},
    ]
    return {"nodes": [{"id": i} for i in range(3)], "edges": edges, **changes}


BAD = {
    "a disconnected network": (
        _path(edges=_path()["edges"][:1]),
        r"disconnected: there is no route from 0 to 2",
    ),
    "a one-way street": (_path(directed=True), r"disconnected: there is no route from 1 to 0"),
    "negative bandwidth": (
        _path(edges=[{**e, "bandwidth": -1} for e in _path()["edges"]]),
        r"bandwidth of link 0 → 1.*more than 0",
    ),
    "no bandwidth": (
        _path(edges=[{"source": 0, "target": 1}, {"source": 1, "target": 2}]),
        r"bandwidth of link 0 → 1.*more than 0",
    ),
    "negative latency": (
        _path(edges=[{**e, "latency": -1e-6} for e in _path()["edges"]]),
        r"latency of link 0 → 1.*negative",
    ),
    "not a number": (
        _path(edges=[{**e, "bandwidth": "fast"} for e in _path()["edges"]]),
        r"bandwidth of link 0 → 1",
    ),
    "no GPUs": ({"nodes": [{"id": 0, "kind": "switch"}], "edges": []}, r"at least 2"),
    "an edge to a node that is not listed": (
        _path(nodes=[{"id": 0}, {"id": 1}]),
        r"topology = 2: is named by an edge",
    ),
    "no edges": ({"nodes": 3}, r"not a network"),
    "a list": ([1, 2], r"not a network"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_a_network_that_cannot_be_is_named(case, tmp_path):
    content, rule = BAD[case]
    path = tmp_path / "net.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rule):
        topology.read(path)


def test_a_file_is_read_as_networkx_writes_it(tmp_path):
    graph = nx.path_graph(4)
    nx.set_edge_attributes(graph, 5e9, "bandwidth")
    nx.set_edge_attributes(graph, 1e-6, "latency")
    path = tmp_path / "four.json"
    path.write_text(json.dumps(nx.node_link_data(graph, edges="edges")))
    network = topology.read(path)
    assert network.name == "four"
    assert len(network.route(0, 3)) == 3
    (tmp_path / "no.json").write_text("{")
    for bad in ("no.json", "missing.json"):
        with pytest.raises(InputError):
            topology.read(tmp_path / bad)


def test_what_a_builder_does_not_know_is_refused():
    for name, n, options, rule in (
        ("hypercube", 6, {}, "power of two"),
        ("fat-tree", 8, {"leaf": 3}, "divide evenly"),
        ("fat-tree", 8, {"oversubscription": 0.5}, "at least 1"),
        ("ring", 8, {"leaf": 2}, "has no such option"),
        ("nvlink-mesh", 4, {}, "has 8 GPUs"),
        ("dragonfly", 8, {}, "neither a known topology"),
        ("ring", 1, {}, "at least 2"),
    ):
        with pytest.raises(InputError, match=rule):
            build(name, n, CABLE, **options)
    with pytest.raises(InputError, match=r"bandwidth of link gpu 0 → gpu 1.*more than 0"):
        build("ring", 4, Cable(-1.0))
