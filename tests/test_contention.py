"""Replay with contention: cases worked out by hand, laws of max-min fairness, and that no byte is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from glasscluster.scenarios.jobs.collective_job import CollectiveJob
from glasscluster.scenarios.jobs.timed_collective import record
from glasscluster.sim.recording.events import SEND
from glasscluster.sim.run import Cluster
from glasscluster.sim.time import contention
from glasscluster.sim.time.contention import compiled, event_loop
from glasscluster.sim.time.hardware import hardware
from glasscluster.sim.time.loads import (
    carried_bytes,
    flows_of,
    is_shared,
    network_of,
    routed_bytes,
    utilisation,
)
from glasscluster.sim.time.network import Cable, build, from_graph

GB = 1e9


def on(network):
    """The classroom's GPUs on a network."""
    return replace(hardware("classroom"), name=network.name, topology=network)


def exchange(gpu, messages):
    """Everybody posts all receives, then sends in order: (sender, receiver, bytes)."""
    posted = [
        gpu.comm.irecv(torch.empty(n, dtype=torch.uint8, device=gpu.comm.wire.device), s, tag=i)
        for i, (s, d, n) in enumerate(messages)
        if d == gpu.rank
    ]
    posted += [
        gpu.comm.isend(torch.empty(n, dtype=torch.uint8, device=gpu.comm.wire.device), d, tag=i)
        for i, (s, d, n) in enumerate(messages)
        if s == gpu.rank
    ]
    for work in posted:
        work.wait()


def arrivals(messages, network, **options):
    """When each message arrives, and the timeline."""
    run = Cluster(on(network), len(network.gpus), "dry").run(exchange, messages)
    line = run.replay(on(network), contention=True, **options)
    graph, order = line.graph, {}
    for number, row in enumerate(line.shared.rows.tolist()):
        order[int(graph.tag[row]) - 1] = line.shared.arrival[number]
    return [order[i] for i in range(len(messages))], line


# ---- by hand -----------------------------------------------------------------------------------------------
def test_two_messages_into_one_port_get_half_each_and_then_the_longer_one_all():
    network = build("switch", 3, Cable(1 * GB, 2e-6))
    (short, long), _ = arrivals([(0, 2, 10**6), (1, 2, 3 * 10**6)], network)
    assert short == pytest.approx(2e-3 + 2e-6, rel=1e-12)
    assert long == pytest.approx(4e-3 + 2e-6, rel=1e-12)


def test_two_messages_that_share_a_link_have_the_times_and_rates_worked_out_in_the_header():
    """The mini-case in the header of glasscluster/sim/contention/__init__.py, number by number."""

    def program(gpu):
        if gpu.rank == 1:
            gpu.recorder.compute("delay", 10**9, 0)  # 1 ms on the classroom's GPU
        exchange(gpu, [(0, 2, 3 * 10**6), (1, 2, 10**6)])

    network = on(build("switch", 3, Cable(1 * GB, 2e-6)))
    replayed = Cluster(network, 3, "dry").run(program).replay(network, contention=True).shared
    a, b = 0, 1
    assert replayed.arrival.tolist() == pytest.approx([4.002e-3, 3.002e-3], rel=1e-12)
    assert replayed.end[replayed.rows].tolist() == pytest.approx([4e-3, 3e-3], rel=1e-12)
    history = replayed.history
    entries = zip(history.time.round(12), history.message, history.rate / GB, strict=True)
    expected = [
        (0e-3, a, 1.0),
        (1e-3, a, 0.5),
        (1e-3, b, 0.5),
        (3e-3, b, 0.0),
        (3e-3, a, 1.0),
        (4e-3, a, 0.0),
    ]
    assert sorted(entries) == sorted(expected)
    assert history.time.tolist() == sorted(history.time)


def test_a_change_in_any_file_of_the_folder_makes_the_kept_machine_code_invalid(tmp_path, monkeypatch):
    source = Path(compiled.__file__)
    for file in source.parent.glob("*.py"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(compiled, "__file__", str(tmp_path / source.name))
    stamps = {compiled.source_stamp()}
    assert stamps == {cell.cell_contents for cell in event_loop.run.py_func.__closure__}
    files = sorted(tmp_path.glob("*.py"))
    for file in files:
        file.write_text(file.read_text() + "\n")
        stamps.add(compiled.source_stamp())
    assert len(stamps) == len(files) + 1


def test_the_parking_lot_gives_the_long_way_its_share_of_the_narrowest_link_and_the_rest_to_the_others():
    graph = nx.path_graph(4)
    for (u, v), bandwidth in zip(graph.edges, (1e9, 2e9, 4e9), strict=True):
        graph.edges[u, v].update(bandwidth=bandwidth, latency=0.0)
    n = 8 * 10**6
    messages = [(0, 3, n), (0, 1, n), (1, 2, n), (2, 3, n)]
    (through, first, second, third), line = arrivals(messages, from_graph(graph))
    del through, first  # one sender: its second message waits for the first
    assert len(line.shared.history.rate) > 0, "history of rates was kept"
    assert second == pytest.approx(8e-3, rel=1e-12)  # 2 GB/s - 1 GB/s
    assert third == pytest.approx(8e6 / 3e9, rel=1e-12)  # 4 GB/s - 1 GB/s


def test_a_switch_is_cut_through_and_costs_its_bytes_once():
    (time,), _ = arrivals([(0, 1, 10**6)], build("switch", 2, Cable(1 * GB, 4e-6)))
    assert time == pytest.approx(1e-3 + 4e-6, rel=1e-12)


def test_a_link_that_stores_and_forwards_is_paid_again_and_frees_the_sender_after_the_first_segment():
    graph = nx.path_graph(3)
    for edge in graph.edges.values():
        edge.update(bandwidth=1e9, latency=1e-6, store_and_forward=True)
    network = from_graph(graph)
    (first, second), line = arrivals([(0, 2, 10**6), (0, 1, 10**6)], network)
    assert first == pytest.approx(2 * (1e-3 + 1e-6), rel=1e-12)
    assert second == pytest.approx(2e-3 + 1e-6, rel=1e-12)
    assert network.link(0, 2).bandwidth == pytest.approx(0.5e9)
    assert carried_bytes(line) == pytest.approx(routed_bytes(line.graph, network))


def test_incast_takes_as_many_times_longer_as_there_are_senders():
    for n in (2, 5, 17):
        network = build("switch", n + 1, Cable(1 * GB, 0.0))
        times, _ = arrivals([(i + 1, 0, 10**6) for i in range(n)], network)
        assert times == pytest.approx([n * 1e-3] * n, rel=1e-12)


def test_the_overhead_keeps_the_port_busy_before_the_bytes_move():
    times, _ = arrivals([(0, 1, 10**6), (0, 2, 10**6)], build("switch", 3, Cable(1 * GB, 3e-6, 5e-6)))
    assert times == pytest.approx([1e-3 + 8e-6, 2e-3 + 13e-6], rel=1e-12)


def ring_time(network, nbytes):
    job = CollectiveJob("all-reduce", "ring", len(network.gpus), nbytes, on(network))
    return record(job).replay(on(network), contention=True)


def test_a_ring_over_an_oversubscribed_fat_tree_is_slower_by_the_load_of_its_uplinks():
    n, leaf, size = 16, 4, 16 * 10**6
    well = ring_time(build("fat-tree", n, Cable(1 * GB), leaf=leaf, oversubscription=4.0), size)
    # one message at a time leaves each leaf: no loss
    assert well.makespan == pytest.approx(2 * (n - 1) * size / n / GB, rel=1e-9)
    # neighbours in the ring under different leaves
    across = [leaf * (i % leaf) + i // leaf for i in range(n)]
    network = build("fat-tree", n, Cable(1 * GB), leaf=leaf, oversubscription=4.0).placed(across)
    badly = ring_time(network, size)
    loads = routed_bytes(badly.graph, network_of(badly)) / network_of(badly).bandwidth
    # four messages over an uplink of 1 GB/s in every step
    assert badly.makespan == pytest.approx(4 * well.makespan, rel=1e-9)
    assert loads.max() == pytest.approx(badly.makespan, rel=1e-9)


def test_a_ring_laid_badly_on_a_torus_is_slower_by_its_most_crossed_link():
    """Ring of 16 on a 16 x 1 torus, every third GPU: each step crosses 3 links, each link has 3 messages."""
    n, size = 16, 16 * 10**6
    network = build("torus2d", n, Cable(1 * GB), dims=[1, n])
    good, bad = ring_time(network, size), ring_time(network.placed([3 * i % n for i in range(n)]), size)
    assert good.makespan == pytest.approx(2 * (n - 1) * size / n / GB, rel=1e-9)
    assert bad.makespan == pytest.approx(3 * good.makespan, rel=1e-9)
    busy = utilisation(bad, np.array([0.0, bad.makespan]))[0]
    forward = [network.number[f"gpu {i}", f"gpu {(i + 1) % n}"] for i in range(n)]
    assert busy[forward] == pytest.approx([1.0] * n)


def test_a_node_s_one_network_port_is_shared_by_its_gpus():
    hw = hardware("pcie-a100")
    n = 2 * hw.node_size

    def across(gpu):
        half = gpu.size // 2
        exchange(gpu, [(i, i + half, 10**7) for i in range(half)])

    run = Cluster(hw, n, "dry").run(across)
    alone = Cluster(hw, n, "dry").run(exchange, [(0, n // 2, 10**7)]).replay(hw, contention=True)
    shared = run.replay(hw, contention=True)
    assert shared.makespan == pytest.approx(10**7 / hw.inter.bandwidth + 14e-6, rel=1e-9)
    assert alone.makespan == pytest.approx(10**7 / (8 * hw.inter.bandwidth) + 14e-6, rel=1e-9)


# ---- laws --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["fully-connected", "ring", "switch"])
@pytest.mark.parametrize("algorithm", ["ring", "tree", "halving-doubling", "hierarchical"])
def test_where_nothing_is_shared_contention_changes_nothing(name, algorithm):
    network = build(name, 8, Cable(10 * GB, 8e-6, 2e-6))
    run = record(CollectiveJob("all-reduce", algorithm, 8, 8 * 12345, on(network)))
    free, shared = run.replay(on(network)), run.replay(on(network), contention=True)
    if not is_shared(run.graph, network):
        assert np.abs(free.end - shared.end).max() <= 1e-12 * free.makespan
    assert shared.makespan >= free.makespan * (1 - 1e-12)


CASES = st.tuples(
    st.sampled_from(["line", "ring", "switch", "mesh2d", "fat-tree", "hypercube", "pcie-tree", "rail"]),
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(0, 10**6)), min_size=1, max_size=24),
    st.sampled_from([0.0, 3e-6]),
)


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_rates_are_max_min_fair_at_every_moment_and_every_byte_passes_every_link_of_its_route(case):
    name, messages, latency = case
    messages = [(s, d, n) for s, d, n in messages if s != d]
    assume(messages)
    network = build(name, 8, Cable(1 * GB, latency))
    _, line = arrivals(messages, network)
    assert carried_bytes(line) == pytest.approx(routed_bytes(line.graph, network), rel=1e-9, abs=1e-6)
    flows, routes = flows_of(line), flows_of(line).routes
    links = [routes.links[routes.link_ptr[s] : routes.link_ptr[s + 1]] for s in flows.segment]
    for moment in (flows.start + flows.end) / 2:
        here = np.flatnonzero((flows.start <= moment) & (moment < flows.end))
        load = np.zeros(len(network.links))
        for f in here:
            load[links[f]] += flows.rate[f]
        assert (load <= network.bandwidth * (1 + 1e-9)).all()
        for f in here:  # a flow has a bottleneck: a full link on which nobody has more
            full = [i for i in links[f] if load[i] >= network.bandwidth[i] * (1 - 1e-9)]
            most = flows.rate[f] * (1 + 1e-9)
            assert any(all(flows.rate[g] <= most for g in here if i in links[g]) for i in full)


def test_a_dropped_or_resized_message_breaks_the_conservation_of_bytes():
    network = build("line", 4, Cable(1 * GB))
    _, line = arrivals([(0, 3, 1000), (1, 2, 500)], network)
    before = routed_bytes(line.graph, network)
    assert carried_bytes(line) == pytest.approx(before)
    sends = np.flatnonzero(line.graph.kind == SEND)
    line.graph.bytes[sends[0]] += 8
    assert carried_bytes(line) != pytest.approx(routed_bytes(line.graph, network))
    line.graph.bytes[sends[0]] -= 8
    line.shared.history.rate[0] *= 1.001
    assert carried_bytes(line) != pytest.approx(before)


def test_half_a_link_s_bandwidth_is_seen(monkeypatch):
    network = build("switch", 3, Cable(1 * GB))
    (_, before), _ = arrivals([(0, 2, 10**6), (1, 2, 10**6)], network)
    half = network.bandwidth.copy()
    half[network.number["switch", "gpu 2"]] /= 2
    network.__dict__["bandwidth"] = half
    (_, after), _ = arrivals([(0, 2, 10**6), (1, 2, 10**6)], network)
    assert after == pytest.approx(2 * before)


def test_what_if_and_rendezvous_work_with_contention_too():
    network = build("switch", 4, Cable(1 * GB, 1e-6))
    run = Cluster(on(network), 4, "dry").run(exchange, [(i, 3, 10**6) for i in range(3)])
    line = run.replay(on(network), contention=True)
    assert line.makespan == pytest.approx(3e-3 + 1e-6)
    axis = str(line.graph.axis[line.shared.rows[0]])
    faster = run.replay(on(network), contention=True, faster={axis: 2.0})
    assert faster.makespan == pytest.approx(1.5e-3 + 0.5e-6)
    # rank 3 posts its next receive when one is filled
    met = run.replay(on(network), contention=True, rendezvous=True)
    assert met.makespan == pytest.approx(3 * (1e-3 + 1e-6))
    wide = run.replay(on(network).scaled(bandwidth=4.0, latency=0.5), contention=True)
    assert wide.makespan == pytest.approx(0.75e-3 + 0.5e-6)


def test_the_same_graph_gives_the_same_times_bit_for_bit():
    network = build("torus2d", 9, Cable(3 * GB, 1e-6)).placed([4, 2, 7, 0, 8, 5, 1, 3, 6])
    run = record(CollectiveJob("all-to-all", "direct", 9, 9 * 1001, on(network)))
    one, two = (run.replay(on(network), contention=True) for _ in range(2))
    assert np.array_equal(one.start, two.start)
    assert np.array_equal(one.shared.history.rate, two.shared.history.rate)


def test_a_history_that_grows_many_times_is_the_same(monkeypatch):
    network = build("torus2d", 9, Cable(3 * GB, 1e-6)).placed([4, 2, 7, 0, 8, 5, 1, 3, 6])
    run = record(CollectiveJob("all-to-all", "direct", 9, 9 * 1001, on(network)))
    expected = run.replay(on(network), contention=True).shared
    lengths, grow = [], contention.replay.grow
    monkeypatch.setattr(contention.replay, "make_history", lambda length: contention.history.make_history(0))

    def counted(old, more):
        lengths.append(len(old.time))
        return grow(old, more)

    monkeypatch.setattr(contention.replay, "grow", counted)
    grown = run.replay(on(network), contention=True).shared
    assert len(lengths) > 2
    assert all(np.array_equal(a, b) for a, b in zip(grown.history, expected.history, strict=True))
    assert np.array_equal(grown.end, expected.end)


def test_a_recording_that_is_relabelled_round_the_ring_is_what_every_rank_would_have_recorded():
    from glasscluster.scenarios.jobs.collective_job import one_collective

    operations = ("all_reduce", "reduce_scatter", "all_gather")
    cases = [
        (n, size, op) for n in (2, 3, 5, 7) for size in (n, n + 1, 3 * n - 1, 12 * n) for op in operations
    ]
    for n, size, operation in cases:
        hw, graphs = hardware("classroom"), []
        for ring_bytes in (None, size):
            cluster = Cluster(hw, n, "dry", memory_bytes=None, ring_bytes=ring_bytes)
            graphs.append(cluster.run(one_collective, operation, "ring", size, {}).graph)
        assert graphs[0].difference(graphs[1]) is None


def test_more_ranks_than_gpus_is_an_input_error():
    network = build("ring", 4, Cable(1 * GB))
    run = Cluster("classroom", 6, "dry").run(exchange, [(0, 5, 8)])
    with pytest.raises(Exception, match="has 4 GPUs, the run 6 ranks"):
        contention.routes_of(run.graph, network)
