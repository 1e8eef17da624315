"""Collectives by symmetry: ranks that are alike are timed as one, and every number stays what it was."""

from __future__ import annotations

import base64
import json
import random
from dataclasses import replace

import numpy as np
import pytest

from glasscluster.base.errors import InputError, MessageLost
from glasscluster.cli import main
from glasscluster.scenarios.jobs import timed_collective
from glasscluster.scenarios.jobs.collective import collective, measured
from glasscluster.scenarios.jobs.collective_job import CollectiveJob, options_of, program_of
from glasscluster.scenarios.jobs.symmetry import (
    NotAlike,
    check_shifted,
    pattern_of,
    recorded,
    shifts_alike,
    wire_classes,
)
from glasscluster.scenarios.jobs.timed_collective import record, timed
from glasscluster.scenarios.jobs.wires import wires
from glasscluster.sim.ranks.collectives import ALGORITHMS, ALIKE
from glasscluster.sim.recording.events import RECV, SEND
from glasscluster.sim.recording.fold import from_file
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.recording.order import Cycle
from glasscluster.sim.recording.packed import FORMAT as PAGE_FORMAT
from glasscluster.sim.recording.packed import load_packed, pack_graph
from glasscluster.sim.recording.shifts import Shifts
from glasscluster.sim.recording.sound import Unsound
from glasscluster.sim.time.cost import costs
from glasscluster.sim.time.loads import is_shared, routed_bytes
from glasscluster.sim.time.network import Cable, Topology, build
from glasscluster.sim.time.replay import replay
from glasscluster.visualize.page.pack import pack_timeline

CABLE = {"bandwidth": "50GB/s", "latency": "500ns", "overhead": "100ns"}
TOPOLOGIES = ("ring", "switch", "torus2d", "torus3d", "fat-tree", "hypercube", "rail", "line")
NETWORKS = [
    *((name, n, {}) for name in TOPOLOGIES for n in (8, 16)),
    *(("ring", n, {}) for n in (3, 7)),
    *(("fully-connected", 6, {}), ("mesh2d", 12, {}), ("pcie-tree", 8, {}), ("nvlink-mesh", 8, {})),
    *(
        ("fat-tree", 12, {"oversubscription": 2}),
        ("rail", 12, {"node": 4}),
        ("torus2d", 12, {"dims": [2, 6]}),
    ),
]


def hardware_of(network: str | None, n: int, **more):
    """The named network, or without a name a catalogue's cluster of nodes of eight."""
    return wires(n, "dgx-h100", **more) if network is None else wires(n, topology=network, **CABLE, **more)


def job_of(
    operation: str, algorithm: str, network: str | None, n: int, each: int = 1000, **more
) -> CollectiveJob:
    nbytes = 1 if operation == "barrier" else n * each
    return CollectiveJob(operation, algorithm, n, nbytes, hardware_of(network, n, **more))


# ---- shifts ------------------------------------------------------------------------------------------------
GRIDS = [((8,), (1,)), ((8,), (4,)), ((2, 2, 2), (1, 2, 1)), ((4, 6), (2, 3)), ((3, 4), (3, 1)), ((5,), (5,))]


@pytest.mark.parametrize(("dims", "steps"), GRIDS)
def test_shifts_are_a_group_whose_roles_are_equally_large(dims, steps):
    group = Shifts(dims, steps)
    ranks, all_shifts = np.arange(group.ranks), np.arange(group.each)
    assert np.bincount(group.role(ranks)).tolist() == [group.each] * group.roles
    assert group.role(group.representatives).tolist() == list(range(group.roles))
    assert all(
        group.representatives <= np.array([ranks[group.role(ranks) == r].min() for r in range(group.roles)])
    )
    back = group.moved(group.representatives[group.role(ranks)], group.shift_to(ranks))
    assert back.tolist() == ranks.tolist()
    for shift in all_shifts.tolist():
        there = group.moved(ranks, np.full(len(ranks), shift))
        assert sorted(there.tolist()) == ranks.tolist()
        assert group.role(there).tolist() == group.role(ranks).tolist()
        undo = group.inverse(np.full(len(ranks), shift))
        assert group.moved(there, undo).tolist() == ranks.tolist()


# ---- wires by class, and loads by counting -----------------------------------------------------------------
def networks():
    for name, n, options in NETWORKS:
        network = build(name, n, Cable(5e10, 5e-7, 1e-7), **options)
        yield from (network, network.scaled(bandwidth=2, latency=3))
        yield network.placed(random.Random(n).sample(range(n), n))


def test_the_wires_of_pairs_by_class_are_those_of_their_routes():
    with_classes = set()
    for network in networks():
        n = len(network.gpus)
        pairs = [(a, b) for a in range(n) for b in range(n) if a != b]
        src, dst = (np.array(ends) for ends in zip(*pairs, strict=True))
        routed = [network.link(a, b) for a, b in pairs]
        links, number = network.wires(src, dst)
        assert [links[i] for i in number.tolist()] == routed, network.name
        assert network.one_wire() == (routed[0] if len(set(routed)) == 1 else None), network.name
        if network.classes(src, dst) is not None:
            with_classes.add(network.name)
    assert with_classes == {*TOPOLOGIES, "fully-connected", "mesh2d"}


@pytest.mark.parametrize("name", ["ring", "switch", "fat-tree", "hypercube"])
def test_a_link_that_somebody_changed_is_seen(name):
    network = build(name, 8, Cable(1e9, 1e-6))
    narrow = next(iter(network.graph.edges))
    network.graph.edges[narrow]["bandwidth"] = 1e8
    pairs = np.array([(a, b) for a in range(8) for b in range(8) if a != b]).T
    links, number = network.wires(*pairs)
    assert [links[i] for i in number.tolist()] == [network.link(a, b) for a, b in pairs.T.tolist()]
    assert network.one_wire() is None


def carried_one_by_one(graph: ExecutionGraph, network: Topology) -> tuple[np.ndarray, bool]:
    """The bytes on every link, and whether two ranks share one: message by message."""
    total, users = np.zeros(len(network.links)), [set() for _ in network.links]
    for row in np.flatnonzero(graph.kind == SEND).tolist():
        for link in network.route(int(graph.rank[row]), int(graph.peer[row])):
            total[link] += graph.bytes[row]
            users[link].add(int(graph.rank[row]))
    return total, any(len(u) > 1 for u in users)


def chain_one_by_one(graph: ExecutionGraph) -> int:
    """The longest chain of messages of which each waits for the one before, with a walk over all edges."""
    depth = [0] * len(graph)
    for row in range(len(graph)):
        message = graph.kind[row] in (SEND, RECV)
        for before in graph.dependencies(row).tolist():
            port = message and graph.rank[before] == graph.rank[row] and graph.lane[before] == graph.lane[row]
            depth[row] = max(depth[row], 0 if port else depth[before])
        if graph.match[row] >= 0:
            depth[row] = max(depth[row], depth[graph.match[row]])
        depth[row] += int(graph.kind[row] == SEND)
    return max(depth)


@pytest.mark.parametrize("network", ["ring", "torus2d", "fat-tree", "rail", "line"])
@pytest.mark.parametrize("algorithm", ["ring", "tree", "halving-doubling", "direct", "parameter-server"])
def test_loads_sharing_and_chains_are_those_of_a_walk_over_all_messages(network, algorithm):
    job = job_of("all-reduce", algorithm, network, 8, each=1001)
    graph = record(job).graph
    total, shared = carried_one_by_one(graph, job.hardware.topology)
    assert np.array_equal(routed_bytes(graph, job.hardware.topology), total)
    assert is_shared(graph, job.hardware.topology) is shared
    assert graph.message_chain() == chain_one_by_one(graph)


# ---- folded = whole ----------------------------------------------------------------------------------------
def placed_rows(graph: ExecutionGraph, rank: int) -> np.ndarray:
    rows = graph.canonical
    return rows[graph.rank[rows] == rank]


def differences(job: CollectiveJob, folded, whole) -> list[str]:
    """What a folded replay says otherwise than the replay of every rank."""
    few, all_ = folded.timeline, whole.timeline
    wrong = [] if few.makespan == all_.makespan else ["makespan"]
    for rank, role in enumerate(few.graph.fold.shifts.role(np.arange(job.gpus)).tolist()):
        mine, theirs = placed_rows(all_.graph, rank), placed_rows(few.graph, role)
        for side in ("start", "end"):
            if not np.array_equal(getattr(all_, side)[mine], getattr(few, side)[theirs]):
                wrong.append(f"{side} of rank {rank}")
    return wrong + said_otherwise(measured(job, folded), measured(job, whole), whole)


def said_otherwise(said: dict, right: dict, whole) -> list[str]:
    """The keys in which the answers differ. Of links that carry equally much, the sums of rates of the whole
    graph choose by their rounding, and the folded one takes the first.
    """
    wrong = [
        key for key, value in right.items() if said[key] != value and key not in ("roles", "busiest_link")
    ]
    network, link = whole.network, said["busiest_link"]
    share = routed_bytes(whole.timeline.graph, network) / network.bandwidth / whole.timeline.makespan
    first = [str(node) for node in network.links[int(np.argmax(share))]]
    if [link["from"], link["to"]] != first or link["utilisation_fraction"] != share.max():
        wrong.append("busiest link")
    most = right["busiest_link"]["utilisation_fraction"]
    return wrong + ([] if most == pytest.approx(share.max(), rel=1e-9) else ["utilisation"])


CASES = [(operation, algorithm) for operation, algorithm in ALIKE if operation != "barrier" or algorithm in (
    "dissemination", "recursive-doubling")]  # fmt: skip


@pytest.mark.parametrize("network", [*TOPOLOGIES, None], ids=str)
@pytest.mark.parametrize(("operation", "algorithm"), CASES)
def test_folded_is_whole_to_the_bit(operation, algorithm, network):
    for n in (8, 16):
        job = job_of(operation, algorithm, network, n)
        job = replace(job, hardware=replace(job.hardware, node_size=min(n, 8) if network is None else 4))
        folded = timed(replace(job, contention=False), whole=0)
        if folded.run is None:
            assert differences(job, folded, timed(replace(job, contention=False))) == []
        else:
            assert network == "line"  # on a line every rank has wires of its own


@pytest.mark.parametrize(
    "network", ["ring", "switch", "torus2d", "fat-tree", "hypercube", "rail", None], ids=str
)
@pytest.mark.parametrize(("operation", "algorithm"), [("all_reduce", "ring"), ("all_to_all", "pairwise")])
def test_folded_is_whole_to_the_bit_on_64_ranks(operation, algorithm, network):
    job = replace(job_of(operation, algorithm, network, 64), contention=False)
    folded = timed(job, whole=0)
    assert differences(job, folded, timed(job)) == []


@pytest.mark.parametrize("placement", ["reversed", "random:1"])
def test_a_placement_that_moves_wires_is_seen(placement):
    for network in ("switch", "ring", "torus2d"):
        job = job_of("all_reduce", "ring", network, 16, placement=placement)
        folded = timed(replace(job, contention=False), whole=0)
        if folded.run is None:
            assert differences(job, folded, timed(replace(job, contention=False))) == []
        else:
            assert (network, placement) != ("switch", "random:1")


# ---- roles are equitable: the refinement is the oracle -----------------------------------------------------
def refined(graph: ExecutionGraph, job: CollectiveJob) -> list[int]:
    """The coarsest classes of ranks with the same rows but for peer and offset, wires alike, and the same
    (class of the peer, row) at every receive.
    """
    rows = {r: placed_rows(graph, r) for r in range(graph.ranks)}
    place = {row: i for r in rows.values() for i, row in enumerate(r.tolist())}
    columns = ("lane", "order", "kind", "op", "bytes", "tag", "purpose", "sequence")
    table = np.stack([getattr(graph, c) for c in columns], axis=1)

    def first(rank: int) -> tuple:
        links = [
            job.hardware.link(
                *((rank, int(graph.peer[i])) if graph.kind[i] == SEND else (int(graph.peer[i]), rank))
            )
            if graph.kind[i] in (SEND, RECV)
            else None
            for i in rows[rank].tolist()
        ]
        own = [tuple(sorted(place[d] for d in graph.dependencies(i).tolist())) for i in rows[rank].tolist()]
        return table[rows[rank]].tobytes(), tuple(links), tuple(own)

    known: dict = {}
    of_rank = [known.setdefault(first(r), len(known)) for r in range(graph.ranks)]
    while True:
        known = {}
        finer = []
        for r in range(graph.ranks):
            received = [int(graph.match[i]) for i in rows[r].tolist() if graph.match[i] >= 0]
            key = of_rank[r], tuple((of_rank[graph.rank[m]], place[m]) for m in received)
            finer.append(known.setdefault(key, len(known)))
        if len(set(finer)) == len(set(of_rank)):
            return finer
        of_rank = finer


def roles_of(job: CollectiveJob) -> Shifts | None:
    dims = ALIKE[job.inner, job.algorithm](job.gpus, job.nbytes, **options_of(job))
    return shifts_alike(pattern_of(recorded(program_of(job), 0, job.gpus), dims), wire_classes(job.hardware))


TABLE = {  # classes that the refinement finds at n = 16, in the order of COLUMNS
    ("all_reduce", "ring"): (1, 1, 4, 4, 8, 8),
    ("all_reduce", "halving-doubling"): (1, 1, 1, 1, 1, 1),
    ("all_reduce", "recursive-doubling"): (1, 1, 1, 1, 1, 1),
    ("all_to_all", "pairwise"): (4, 1, 1, 1, 1, 1),
    ("all_to_all", "direct"): (1, 1, 4, 4, 8, 8),
    ("all_gather", "direct"): (1, 1, 4, 4, 8, 8),
}
COLUMNS = ("ring", "switch", "torus2d", "fat-tree", "hypercube", "rail")


@pytest.mark.parametrize(("operation", "algorithm"), TABLE)
def test_ranks_of_a_role_are_equitable(operation, algorithm):
    for network, classes in zip(COLUMNS, TABLE[operation, algorithm], strict=True):
        job = job_of(operation, algorithm, network, 16)
        coarsest, shifts = refined(record(job).graph, job), roles_of(job)
        role = shifts.role(np.arange(16)).tolist()
        pairs = set(zip(role, coarsest, strict=True))
        assert len(pairs) == shifts.roles, network  # ranks of one role are never of two classes
        assert len(set(coarsest)) == classes, network
        # pairwise on a ring has also mirrored ranks alike, which no shift brings onto each other
        assert shifts.roles == (8 if (algorithm, network) == ("pairwise", "ring") else classes), network


def test_trees_roots_servers_and_remainders_are_not_alike():
    assert {a for o, a in ALIKE if o in ("broadcast", "reduce", "scatter", "gather")} == set()
    for algorithm in ("tree", "binary-tree", "double-tree", "parameter-server", "direct"):
        assert ("all_reduce", algorithm) not in ALIKE
        assert algorithm in ALGORITHMS["all_reduce"]
        job = job_of("all_reduce", algorithm, "switch", 8)
        assert len(set(refined(record(job).graph, job))) > 1
    for operation, algorithm in (
        ("all_reduce", "ring"),
        ("all_to_all", "direct"),
        ("all_reduce", "hierarchical"),
    ):
        assert ALIKE[operation, algorithm](8, 8001) is None


# ---- mutations ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("network", ["torus2d", "fat-tree", "hypercube", "rail"])
def test_a_role_with_ranks_that_are_not_alike_is_noticed(network, monkeypatch):
    job = replace(job_of("all_reduce", "ring", network, 16), contention=False)
    whole = timed(job)
    assert differences(job, timed(job, whole=0), whole) == []
    one = Shifts((16,), (1,))
    monkeypatch.setattr(timed_collective, "shifts_alike", lambda *_: one)
    with pytest.raises(InputError, match="takes them for alike"):
        timed(job, whole=0)
    monkeypatch.setattr("glasscluster.sim.time.replay.check_folded", lambda *_: None)
    assert "makespan" in differences(job, timed(job, whole=0), whole)


def test_an_algorithm_whose_ranks_do_not_do_what_its_grid_promises_is_noticed(monkeypatch):
    job = replace(job_of("all_reduce", "tree", "switch", 16), contention=False)
    monkeypatch.setitem(ALIKE, ("all_reduce", "tree"), lambda size, *_, **__: (size,))
    with pytest.raises(NotAlike, match="rank 15"):
        timed(job, whole=0)
    first = recorded(program_of(job_of("all_reduce", "ring", "ring", 8)), 0, 8)
    other = recorded(program_of(job_of("all_reduce", "ring", "ring", 8)), 3, 8)
    check_shifted(first, other, (8,))
    with pytest.raises(NotAlike):
        check_shifted(first, other, (2, 2, 2))


@pytest.mark.parametrize("wrong", ["role of a peer", "shift of a peer", "inverse"])
def test_a_fold_with_a_mistake_in_it_is_noticed(wrong, monkeypatch):
    job = replace(job_of("all_to_all", "direct", "torus2d", 16), contention=False)
    whole, right = timed(job), Shifts.shift_to
    assert differences(job, timed(job, whole=0), whole) == []
    if wrong == "inverse":
        monkeypatch.setattr(Shifts, "inverse", lambda self, shifts: shifts)
    elif wrong == "shift of a peer":
        monkeypatch.setattr(Shifts, "shift_to", lambda self, ranks: right(self, ranks) * 0)
    else:
        monkeypatch.setattr(Shifts, "role", lambda self, ranks: ranks % self.roles * 0)
    try:
        noticed = differences(job, timed(job, whole=0), whole)
    except (MessageLost, Cycle, InputError) as problem:
        noticed = [str(problem)]
    assert noticed


# ---- contention, and what is too large ---------------------------------------------------------------------
def test_where_messages_share_links_every_rank_is_replayed():
    job = job_of("all_to_all", "direct", "torus2d", 16)
    for contention in (None, True):
        line = timed(replace(job, contention=contention), whole=0).timeline
        assert line.shared is not None
        assert line.graph.fold is None
    ring = job_of("all_reduce", "ring", "ring", 16)
    assert timed(ring, whole=0).timeline.graph.fold is not None
    assert timed(replace(ring, contention=True), whole=0).timeline.graph.fold is None


@pytest.mark.parametrize(
    ("operation", "algorithm", "network", "nbytes", "field", "why"),
    [
        ("broadcast", "ring", "ring", 1 << 20, "gpus", "no rank does what another one does"),
        ("all_reduce", "direct", "switch", 1 << 20, "gpus", "no rank does what another one does"),
        ("all_to_all", "direct", "ring", 1 << 20, "gpus", "messages that share links are not folded"),
        ("all_reduce", "ring", "line", 1 << 20, "gpus", "it has 512 roles"),
        ("all_reduce", "ring", "ring", 1_000_001, "size", "leave a remainder"),
    ],
)
def test_what_does_not_fold_is_refused_above_a_size(
    operation, algorithm, network, nbytes, field, why, monkeypatch
):
    monkeypatch.setattr(timed_collective, "MOST_EVENTS", 50_000)
    job = CollectiveJob(operation, algorithm, 512, nbytes, hardware_of(network, 512))
    with pytest.raises(InputError, match=why) as refused:
        timed(job)
    assert refused.value.field == field
    assert "messages in" in refused.value.rule
    assert "of memory at least" in refused.value.rule
    assert refused.value.choices
    for near in refused.value.choices:  # what is suggested is accepted
        if field == "gpus":
            other = replace(job, gpus=near, hardware=hardware_of(network, near))
        else:
            other = replace(job, nbytes=int(near.removesuffix("B")))
        assert timed(other).timeline.makespan > 0


def test_more_pairs_than_routes_can_be_followed_for_are_refused(monkeypatch):
    monkeypatch.setattr(timed_collective, "MOST_PAIRS", 10_000)
    job = replace(job_of("all_to_all", "direct", "switch", 128), contention=False)
    with pytest.raises(InputError, match="16,256 pairs") as refused:
        timed(job)
    assert refused.value.choices == [64]
    ring = job_of("all_reduce", "ring", "switch", 128)
    assert timed(replace(ring, contention=False)).timeline.graph.fold is not None


# ---- files, other hardware, the page -----------------------------------------------------------------------
def test_a_folded_graph_is_read_back_and_replayed_only_where_its_ranks_are_alike(tmp_path):
    job = replace(job_of("all_to_all", "direct", "ring", 16), contention=False)
    folded = timed(job, whole=0).timeline
    folded.graph.save(tmp_path / "graph.npz")
    graph = ExecutionGraph.load(tmp_path / "graph.npz")
    assert np.array_equal(graph.fold.peer, folded.graph.fold.peer)
    assert np.array_equal(graph.fold.rank, folded.graph.fold.rank)
    assert graph.fold.shifts == folded.graph.fold.shifts
    assert np.array_equal(replay(graph, job.hardware).end, folded.end)
    other = job_of("all_to_all", "direct", "switch", 16)
    whole = timed(replace(other, contention=False)).timeline
    assert replay(graph, other.hardware).makespan == whole.makespan
    whole = replay(record(job).graph, job.hardware, rendezvous=True)
    assert replay(graph, job.hardware, rendezvous=True).makespan == whole.makespan
    refused = [
        ("hardware", {"hw": hardware_of("torus2d", 16)}),
        ("topology", {"hw": hardware_of("ring", 8)}),
        ("contention", {"hw": job.hardware, "contention": True}),
        ("slow-rank", {"hw": job.hardware, "slow_ranks": {0: 2.0}}),
    ]
    for field, options in refused:
        with pytest.raises(InputError) as said:
            replay(graph, **options)
        assert said.value.field == field


@pytest.mark.parametrize("damage", ["peer of another role", "peer that is not there", "steps", "dims"])
def test_a_fold_that_does_not_belong_to_its_graph_is_refused(damage):
    job = replace(job_of("all_reduce", "ring", "torus2d", 16), contention=False)
    graph = timed(job, whole=0).timeline.graph
    shifts, peer = {"dims": [16], "steps": [4]}, graph.fold.peer.copy()
    assert from_file(shifts, peer, graph.rank, graph.peer).shifts == graph.fold.shifts
    message = np.flatnonzero(peer >= 0)[0]
    if damage == "peer of another role":
        peer[message] += 1
    elif damage == "peer that is not there":
        peer[message] += 16
    else:
        shifts[damage] = [5] if damage == "steps" else [16, 1]
    with pytest.raises(Unsound):
        from_file(shifts, peer, graph.rank, graph.peer)


def test_the_page_of_a_folded_collective_says_its_roles_and_keeps_its_seconds(tmp_path):
    job = replace(job_of("all_reduce", "ring", "torus2d", 96), contention=False)
    collective(job, lambda gpus: hardware_of("torus2d", gpus), out=str(tmp_path / "c"))
    page = (tmp_path / "c" / "report.html").read_text(encoding="utf-8")
    assert page.count("96 ranks have 8 roles, each with 12 ranks") >= 2  # the story's first step, and a note
    assert "one of each of 8 roles" in page
    assert "8 种角色，每种显示一个" in page
    assert ExecutionGraph.load(tmp_path / "c" / "graph.npz").fold.shifts.roles == 8
    line = timed(job).timeline
    packed = pack_timeline(line)
    seconds = np.frombuffer(base64.b64decode(packed["shared"]), "<f8")
    order, cost = line.graph.canonical, costs(line.graph, job.hardware, line.precision)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    assert packed["folded"] is True
    assert np.array_equal(seconds[place], np.where(line.graph.match >= 0, cost.latency, cost.duration))
    (tmp_path / "graph.json").write_text(json.dumps({"format": PAGE_FORMAT, **pack_graph(line.graph)}))
    with pytest.raises(InputError, match="keeps only its roles"):
        load_packed(tmp_path / "graph.json")


def test_the_command_folds_beyond_64_ranks_and_says_the_same(capsys):
    words = "collective all-reduce --gpus 96 --size 96MB --json --topology torus2d"
    words += " --bandwidth 50GB/s --latency 1us"
    with pytest.raises(SystemExit):
        main(words.split())
    said = json.loads(capsys.readouterr().out)
    job = CollectiveJob(
        "all-reduce", "ring", 96, 96_000_000, wires(96, topology="torus2d", bandwidth="50GB/s", latency="1us")
    )
    every = timed(job, whole=96)
    whole = measured(job, every)
    assert said["roles"] == 8
    assert whole["roles"] is None
    assert said_otherwise(said, whole, every) == []
    assert len(said["bytes_sent_per_gpu"]) == 96
