"""The cases of `python -m benchmarks.simgrid` and tests/test_contention_simgrid.py: programs on shared links.

A case is a network and a program, recorded dry: flows that wait for each other, or whole collectives.
`events` writes the recording as a list that can be understood without this package: messages over numbered
links and delays, each after some others.

SimGrid (model CM02) pays a route's latency before the transfer, GlassCluster after it. Where all messages
that share links have the same latency, every transfer is later by that latency and every arrival the same. A
lane is free after the transfer, which SimGrid does not tell; so cases with latency are those in which nothing
waits for a lane alone. The other cases have none.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import networkx as nx
import numpy as np

from glasscluster.scenarios.jobs.collective_job import one_collective
from glasscluster.sim.recording.events import SEND
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.cost import costs
from glasscluster.sim.time.hardware import Hardware, hardware
from glasscluster.sim.time.network import Cable, Topology, build, from_graph
from glasscluster.sim.time.replay import replay
from glasscluster.sim.time.timeline import Timeline

MB = 1_000_000
GBPS = 1e9  # bytes/s
FLOPS = 1e12  # the classroom GPU's: a delay is so much compute


@dataclass(frozen=True)
class Flow:
    """A message of `nbytes`, launched after `delay` seconds of its sender's work.

    It also waits until the flows `after` have reached its sender.
    Flows of one sender and lane follow each other; those of different lanes go at once.
    """

    src: int
    dst: int
    nbytes: int
    delay: float = 0.0
    after: tuple[int, ...] = ()
    lane: int = 0


@dataclass(frozen=True, eq=False)
class Case:
    """A program on a network. `args` are what the program gets after its GPU."""

    name: str
    family: str
    topology: Topology
    program: Callable[..., None]
    args: tuple[Any, ...]

    @property
    def hardware(self) -> Hardware:
        """The classroom's GPUs on this network: no cost of launching or adding."""
        return replace(hardware("classroom"), topology=self.topology)


# ---- programs ----------------------------------------------------------------------------------------------
def traffic(gpu: Any, flows: Sequence[Flow]) -> None:
    """Every rank launches its flows in their order.

    Receives are posted when a later flow waits for them, or at the end.
    """
    import torch

    n_lanes = 1 + max(f.lane for f in flows)
    lanes = [gpu.comm.subgroup(range(gpu.size), f"lane {k}", 1 + k) for k in range(n_lanes)]
    heard: set[int] = set()

    def hear(number: int) -> None:
        if number not in heard:
            heard.add(number)
            f = flows[number]
            content = torch.empty(f.nbytes, dtype=torch.uint8, device=gpu.device)
            lanes[f.lane].recv(content, f.src, tag=number)

    for number, f in enumerate(flows):
        if f.src == gpu.rank:
            for earlier in f.after:
                hear(earlier)
            if f.delay:
                gpu.recorder.compute("delay", round(f.delay * FLOPS), 0)
            content = torch.empty(f.nbytes, dtype=torch.uint8, device=gpu.device)
            lanes[f.lane].isend(content, f.dst, tag=number)
    for number, f in enumerate(flows):
        if f.dst == gpu.rank:
            hear(number)


# ---- networks ----------------------------------------------------------------------------------------------
def tree(
    cables: Iterable[tuple[Any, Any, float]],
    gpus: Sequence[Any],
    latency_s: float = 0.0,
    forwards_whole: bool = False,
    overhead_s: float = 0.0,
) -> Topology:
    """Cables (end, end, bytes/s) without a cycle, so that there is one way from anywhere to anywhere."""
    graph = nx.Graph()
    for u, v, bandwidth in cables:
        graph.add_edge(u, v, bandwidth=bandwidth, latency_s=latency_s, overhead_s=overhead_s)
        graph.edges[u, v]["store_and_forward"] = forwards_whole
    return from_graph(graph, gpus)


def dumbbell(
    left: Sequence[float],
    shared: float,
    right: Sequence[float],
    latency_s: float = 0.0,
    overhead_s: float = 0.0,
) -> Topology:
    """GPUs with ports of the given widths on both sides of one cable. Ranks begin on the left."""
    n = len(left)
    ports = [(k, "west", w) for k, w in enumerate(left)] + [(n + k, "east", w) for k, w in enumerate(right)]
    return tree([("west", "east", shared), *ports], range(n + len(right)), latency_s, overhead_s=overhead_s)


def parking_lot(
    widths: Sequence[float],
    gpus_each: int = 2,
    latency_s: float = 0.0,
    forwards_whole: bool = False,
) -> Topology:
    """A line of switches joined by cables of the given widths; `gpus_each` GPUs with wide ports on each."""
    cables = [(f"switch {k}", f"switch {k + 1}", w) for k, w in enumerate(widths)]
    switches = len(widths) + 1
    cables += [(i, f"switch {i // gpus_each}", 100 * GBPS) for i in range(switches * gpus_each)]
    return tree(cables, range(switches * gpus_each), latency_s, forwards_whole)


def snake(rows: int, columns: int) -> list[int]:
    """A ring's good way through a torus: along one row, back along the next."""
    return [r * columns + (c if r % 2 == 0 else columns - 1 - c) for r in range(rows) for c in range(columns)]


def shuffled(n: int, seed: int) -> list[int]:
    """A random placement."""
    order = list(range(n))
    random.Random(seed).shuffle(order)
    return order


# ---- cases -------------------------------------------------------------------------------------------------
def _flows(name: str, family: str, topology: Topology, flows: Iterable[Flow]) -> Case:
    return Case(name, family, topology, traffic, (tuple(flows),))


def _collective(
    name: str,
    family: str,
    topology: Topology,
    operation: str,
    algorithm: str,
    nbytes: int,
) -> Case:
    return Case(name, family, topology, one_collective, (operation, algorithm, nbytes, {}))


def shared_link() -> Iterator[Case]:
    """Pairs of GPUs on both sides of one cable."""
    for n in (2, 3, 5, 8, 16):
        flows = [Flow(i, n + i, 100 * MB) for i in range(n)]
        yield _flows(
            f"{n} equal flows",
            "shared link",
            dumbbell([40 * GBPS] * n, 10 * GBPS, [40 * GBPS] * n),
            flows,
        )
    for n, seed in ((3, 1), (6, 2), (12, 3)):
        rng = random.Random(seed)
        flows = [Flow(i, n + i, rng.randint(1, 200) * MB) for i in range(n)]
        network = dumbbell([40 * GBPS] * n, 10 * GBPS, [40 * GBPS] * n)
        yield _flows(f"{n} flows of random sizes, seed {seed}", "shared link", network, flows)
    for n, seed in ((4, 4), (8, 5)):
        rng = random.Random(seed)
        left, right = ([rng.choice([0.5, 1, 2, 4, 8]) * GBPS for _ in range(n)] for _ in range(2))
        flows = [Flow(i, n + i, rng.randint(20, 200) * MB) for i in range(n)]
        network = dumbbell(left, 10 * GBPS, right)
        yield _flows(f"{n} flows, ports of different widths, seed {seed}", "shared link", network, flows)
    for n, seed in ((4, 6), (10, 7)):
        rng = random.Random(seed)
        flows = [Flow(i, n + i, rng.randint(50, 150) * MB, delay=rng.randint(0, 40) * 1e-3) for i in range(n)]
        network = dumbbell([20 * GBPS] * n, 10 * GBPS, [20 * GBPS] * n)
        yield _flows(f"{n} staggered flows, seed {seed}", "shared link", network, flows)
    there_and_back = [Flow(i, 4 + i, (50 + 30 * i) * MB) for i in range(4)]
    there_and_back += [Flow(4 + i, i, (90 - 20 * i) * MB, after=(i,)) for i in range(4)]
    network = dumbbell([8 * GBPS] * 4, 10 * GBPS, [8 * GBPS] * 4)
    yield _flows("4 flows and their answers", "shared link", network, there_and_back)
    both = [Flow(i, 3 + i, 100 * MB) for i in range(3)] + [Flow(3 + i, i, 70 * MB) for i in range(3)]
    yield _flows("3 flows each way", "shared link", dumbbell([8 * GBPS] * 3, 10 * GBPS, [8 * GBPS] * 3), both)
    late = [Flow(i, 5 + i, (40 + 25 * i) * MB, delay=2e-3 * i) for i in range(5)]
    network = dumbbell([8 * GBPS] * 5, 10 * GBPS, [8 * GBPS] * 5, 1e-3 / 3)
    yield _flows("5 staggered flows, latency 1 ms", "shared link", network, late)
    two = [Flow(i, 4 + i, (60 + 20 * i) * MB, lane=k) for i in range(2) for k in range(3)]
    network = dumbbell([10 * GBPS] * 4, 12 * GBPS, [10 * GBPS] * 4)
    yield _flows("two senders with three lanes each", "shared link", network, two)
    costly = [Flow(i % 3, 3 + i % 3, (30 + 10 * i) * MB) for i in range(9)]
    network = dumbbell([8 * GBPS] * 3, 10 * GBPS, [8 * GBPS] * 3, overhead_s=2e-3)
    yield _flows("9 messages of three senders, overhead 2 ms", "shared link", network, costly)


def incast() -> Iterator[Case]:
    """Many to one, and one to many, on a switch."""
    for n in (2, 3, 4, 8, 16, 32):
        flows = [Flow(i, n, 64 * MB) for i in range(n)]
        yield _flows(f"{n} to 1", "incast", build("switch", n + 1, Cable(10 * GBPS)), flows)
    for n, seed in ((7, 11), (15, 12), (31, 13)):
        rng = random.Random(seed)
        flows = [Flow(i, n, rng.randint(1, 100) * MB, delay=rng.randint(0, 20) * 1e-3) for i in range(n)]
        network = build("switch", n + 1, Cable(25 * GBPS))
        yield _flows(f"{n} to 1, random sizes, staggered, seed {seed}", "incast", network, flows)
    wide = [Flow(8, i, (10 + 5 * i) * MB, lane=i) for i in range(8)]
    yield _flows("1 to 8 at once", "incast", build("switch", 9, Cable(10 * GBPS)), wide)
    two = [Flow(i, 8 + i % 2, (16 + i) * MB) for i in range(8)] + [Flow(8, 9, 40 * MB), Flow(9, 8, 50 * MB)]
    yield _flows("8 to 2, who answer each other", "incast", build("switch", 10, Cable(10 * GBPS)), two)
    distant = [Flow(i, 9, (20 + 3 * i) * MB, delay=1e-3 * i) for i in range(9)]
    yield _flows("9 to 1, latency 5 ms", "incast", build("switch", 10, Cable(10 * GBPS, 5e-3)), distant)


def parking_lots() -> Iterator[Case]:
    """Lines of switches: several bottlenecks, long and short flows."""
    for hops in (2, 3, 5, 8):
        flows = [Flow(0, 2 * hops, 100 * MB)] + [Flow(2 * k + 1, 2 * k + 3, 100 * MB) for k in range(hops)]
        yield _flows(f"{hops} hops, one long flow", "parking lot", parking_lot([10 * GBPS] * hops), flows)
    for hops, seed in ((3, 21), (4, 22), (6, 23), (8, 24)):
        rng = random.Random(seed)
        flows = []
        for src in range(4 * hops):
            dst = rng.randrange(4 * (src // 4 + 1), 4 * (hops + 1))
            flows.append(Flow(src, dst, rng.randint(10, 200) * MB, delay=rng.randint(0, 30) * 1e-3))
        widths = [rng.choice([4, 6, 10, 15]) * GBPS for _ in range(hops)]
        name = f"{hops} hops of different widths, {4 * hops} random flows, seed {seed}"
        yield _flows(name, "parking lot", parking_lot(widths, 4), flows)
    chain = [Flow(0, 2, 80 * MB), Flow(2, 4, 80 * MB, after=(0,)), Flow(4, 6, 80 * MB, after=(1,))]
    chain.append(Flow(1, 7, 300 * MB))
    network = parking_lot([10 * GBPS] * 3)
    yield _flows("handed from switch to switch beside a long flow", "parking lot", network, chain)


def switches() -> Iterator[Case]:
    """One message through several switches takes its time once; once a link with store and forward."""
    for hops in (1, 2, 4, 8):
        topology = parking_lot([10 * GBPS] * hops)
        yield _flows(f"cut through {hops + 1} switches", "switches", topology, [Flow(0, 2 * hops, 100 * MB)])
    for hops in (1, 3):
        topology = parking_lot([10 * GBPS] * hops, forwards_whole=True)
        flows = [Flow(0, 2 * hops, 100 * MB)]
        yield _flows(f"stored and forwarded by {hops + 1} switches", "switches", topology, flows)
    flows = [Flow(0, 6, 60 * MB), Flow(0, 6, 30 * MB), Flow(2, 5, 80 * MB), Flow(3, 7, 50 * MB, delay=4e-3)]
    topology = parking_lot([10 * GBPS] * 3, forwards_whole=True)
    yield _flows("stored and forwarded, four messages", "switches", topology, flows)


def fat_trees() -> Iterator[Case]:
    """Two tiers, 16 GPUs in leaves of 4: permutations and random traffic, at three oversubscriptions."""
    for ratio in (1, 2, 4):
        topology = build("fat-tree", 16, Cable(10 * GBPS), leaf=4, oversubscription=ratio)
        family = f"fat tree, oversubscribed {ratio}:1" if ratio > 1 else "fat tree"
        flows = [Flow(i, (i + 4) % 16, 100 * MB) for i in range(16)]
        yield _flows(f"shift by 4, {ratio}:1", family, topology, flows)
        reversed_bits = [int(f"{i:04b}"[::-1], 2) for i in range(16)]
        flows = [Flow(i, j, 100 * MB) for i, j in enumerate(reversed_bits) if i != j]
        yield _flows(f"bits reversed, {ratio}:1", family, topology, flows)
        seed = 30 + ratio
        order = shuffled(16, seed)
        flows = [Flow(i, j, 100 * MB) for i, j in enumerate(order) if i != j]
        yield _flows(f"permutation, seed {seed}, {ratio}:1", family, topology, flows)
        rng = random.Random(40 + ratio)
        flows = []
        for _ in range(48):
            src, dst = rng.sample(range(16), 2)
            nbytes, delay = rng.randint(1, 100) * MB, rng.choice([0, 0, 1e-3, 5e-3])
            flows.append(Flow(src, dst, nbytes, delay=delay, lane=rng.randrange(2)))
        yield _flows(f"48 random messages, seed {40 + ratio}, {ratio}:1", family, topology, flows)
        yield _collective(f"direct all-to-all, {ratio}:1", family, topology, "all_to_all", "direct", 160 * MB)
    wide = build("fat-tree", 32, Cable(25 * GBPS), leaf=8, oversubscription=2)
    flows = [Flow(i, (i + 9) % 32, (50 + i) * MB) for i in range(32)]
    yield _flows("shift by 9 of 32 GPUs", "fat tree, oversubscribed 2:1", wide, flows)
    distant = build("fat-tree", 16, Cable(10 * GBPS, 2e-3), leaf=4, oversubscription=4)
    across = [Flow(i, (5 * i + 4 + i // 8) % 16, (20 + 5 * i) * MB, delay=1e-3 * (i % 3)) for i in range(16)]
    across = [f for f in across if f.src // 4 != f.dst // 4]
    yield _flows("between leaves, latency 6 ms", "fat tree, oversubscribed 4:1", distant, across)


def rings() -> Iterator[Case]:
    """The ring all-reduce, placed well and badly."""
    cable = Cable(10 * GBPS)
    well, badly = "ring, well placed", "ring, badly placed"
    for n in (4, 8, 16):
        network, nbytes = build("ring", n, cable), n * 10 * MB
        yield _collective(f"{n} GPUs in order on a ring", well, network, "all_reduce", "ring", nbytes)
    torus = build("torus2d", 16, cable, dims=[4, 4])
    yield _collective("along a 4x4 torus", well, torus.placed(snake(4, 4)), "all_reduce", "ring", 160 * MB)
    leaves = build("fat-tree", 16, cable, leaf=4, oversubscription=4)
    yield _collective("leaf by leaf, 4:1", well, leaves, "all_reduce", "ring", 160 * MB)
    distant = build("ring", 8, Cable(10 * GBPS, 3e-3))
    yield _collective("8 GPUs in order, latency 3 ms", well, distant, "all_reduce", "ring", 80 * MB)
    for n, seed in ((6, 51), (8, 52), (12, 53)):
        placed = build("ring", n, cable).placed(shuffled(n, seed))
        name = f"{n} GPUs at random on a ring, seed {seed}"
        yield _collective(name, badly, placed, "all_reduce", "ring", n * 10 * MB)
    for seed in (54, 55):
        placed = torus.placed(shuffled(16, seed))
        name = f"16 GPUs at random on a 4x4 torus, seed {seed}"
        yield _collective(name, badly, placed, "all_reduce", "ring", 160 * MB)
    cube = build("torus3d", 12, cable, dims=[3, 2, 2]).placed(shuffled(12, 56))
    name = "12 GPUs at random on a 3x2x2 torus, seed 56"
    yield _collective(name, badly, cube, "all_reduce", "ring", 120 * MB)
    for ratio in (1, 2, 4):
        strided = build("fat-tree", 16, cable, leaf=4, oversubscription=ratio)
        strided = strided.placed([4 * (i % 4) + i // 4 for i in range(16)])
        name = f"every step leaves its leaf, {ratio}:1"
        yield _collective(name, badly, strided, "all_reduce", "ring", 160 * MB)
    lost = leaves.placed(shuffled(16, 57))
    name = "16 GPUs at random on a fat tree 4:1, seed 57"
    yield _collective(name, badly, lost, "all_gather", "ring", 160 * MB)


def collectives() -> Iterator[Case]:
    """Other algorithms, whole."""
    cable, family = Cable(10 * GBPS), "collectives"
    for name, n, options in (
        ("hypercube", 16, {}),
        ("torus2d", 16, {"dims": [4, 4]}),
        ("ring", 8, {}),
        ("fat-tree", 16, {"leaf": 4, "oversubscription": 4}),
        ("rail", 16, {"node": 4}),
    ):
        topology = build(name, n, cable, **options)
        title = f"halving-doubling all-reduce on {n}, {name}"
        yield _collective(title, family, topology, "all_reduce", "halving-doubling", 160 * MB)
    for name, n in (("switch", 8), ("line", 6), ("pcie-tree", 8), ("nvlink-mesh", 8)):
        title, topology = f"direct all-to-all on {n}, {name}", build(name, n, cable)
        yield _collective(title, family, topology, "all_to_all", "direct", n * 10 * MB)
    title, topology = "recursive doubling on 8, mesh2d", build("mesh2d", 8, cable)
    yield _collective(title, family, topology, "all_reduce", "recursive-doubling", 40 * MB)
    title, topology = "direct all-reduce on 8, switch", build("switch", 8, cable)
    yield _collective(title, family, topology, "all_reduce", "direct", 80 * MB)
    uneven = build("fat-tree", 12, cable, leaf=4, oversubscription=2).placed(shuffled(12, 58))
    title = "ring all-reduce of 100,000,007 bytes on 12"
    yield _collective(title, family, uneven, "all_reduce", "ring", 100_000_007)
    title, topology = "tree broadcast to 12, pcie-tree", build("pcie-tree", 12, cable)
    yield _collective(title, family, topology, "broadcast", "tree", 40 * MB)


def random_tree(n: int, count: int, seed: int, latency_s: float = 0.0) -> tuple[Topology, list[Flow]]:
    """GPUs at the leaves of a random tree of switches; any bandwidths; half of the messages are answers."""
    rng = random.Random(seed)
    switches = max(2, n // 3)
    cables: list[tuple[Any, Any, float]] = []
    for k in range(1, switches):
        cables.append((f"s{k}", f"s{rng.randrange(k)}", rng.uniform(2, 30) * GBPS))
    cables += [(i, f"s{rng.randrange(switches)}", rng.uniform(1, 20) * GBPS) for i in range(n)]
    flows: list[Flow] = []
    for number in range(count):
        src, dst = rng.sample(range(n), 2)
        known = [k for k, f in enumerate(flows) if f.dst == src]
        after = (rng.choice(known),) if known and number % 2 else ()
        delay = rng.choice([0.0, 0.0, rng.randrange(1, 30_000) * 1e-6])
        flows.append(Flow(src, dst, rng.randrange(500_000, 200_000_000), delay, after, rng.randrange(3)))
    return tree(cables, range(n), latency_s), flows


def anything() -> Iterator[Case]:
    """Networks and traffic without any pattern."""
    few = (5, 12, 61), (8, 30, 62), (8, 60, 63), (12, 40, 64)
    many = (12, 80, 65), (16, 100, 66), (20, 120, 67), (24, 150, 68)
    for n, count, seed in (*few, *many):
        yield _flows(
            f"{count} messages among {n} GPUs, seed {seed}",
            "random trees",
            *random_tree(n, count, seed),
        )


@lru_cache
def all_cases() -> tuple[Case, ...]:
    """Every case, in the order of the table."""
    families = (shared_link, incast, parking_lots, switches, fat_trees, rings, collectives, anything)
    cases = tuple(case for family in families for case in family())
    assert len({c.name for c in cases}) == len(cases)
    return cases


# ---- both sides --------------------------------------------------------------------------------------------
@lru_cache
def recorded(case: Case) -> ExecutionGraph:
    """The case's program, recorded dry."""
    hw = case.hardware
    assert hw.topology is not None
    return Cluster(hw, len(hw.topology.gpus), "dry", memory_bytes=None).run(case.program, *case.args).graph


def messages(graph: ExecutionGraph) -> np.ndarray:
    """The rows of a graph's messages in canonical order (rank, lane, order), which no build order changes."""
    return graph.canonical[graph.kind[graph.canonical] == SEND]


def ours(case: Case, topology: Topology | None = None) -> tuple[Timeline, np.ndarray]:
    """The timeline with contention (on `topology`, if given), and the arrivals in canonical order."""
    graph = recorded(case)
    line = replay(graph, replace(case.hardware, topology=topology or case.topology), contention=True)
    assert line.shared is not None
    arrival = np.empty(len(graph))
    arrival[line.shared.rows] = line.shared.arrival
    return line, arrival[messages(graph)]


def events(case: Case) -> dict[str, Any]:
    """The case for another simulator: links [bytes/s, latency], routes [node, node, links], and events.

    Events are in an order in which they can be begun. An event is ["message", route, bytes, after] or
    ["delay", seconds, after], `after` a list of earlier events. `arrivals` are the events at whose end the
    messages (in canonical order) are at their receivers.
    """
    graph, topology = recorded(case), case.topology
    spent = costs(graph, case.hardware, "fp32").duration
    nodes = {node: i for i, node in enumerate(topology.graph.nodes)}
    routes: dict[tuple[int, int], tuple[int, list[int]]] = {}
    found: list[list[Any]] = []
    ancestors: list[int] = []  # of every event, one bit each
    ended: list[set[int]] = []  # of every row: the events whose end is its end
    arrived: dict[int, set[int]] = {}  # of every send: the event whose end is its arrival

    def latest(after: set[int]) -> set[int]:
        """Without those that others of them follow anyway."""
        earlier = 0
        for e in after:
            earlier |= ancestors[e]
        return {e for e in after if not earlier >> e & 1}

    def add(*what: Any, after: set[int]) -> set[int]:
        found.append([*what, sorted(after)])
        bits = 0
        for e in after:
            bits |= ancestors[e] | 1 << e
        ancestors.append(bits)
        return {len(found) - 1}

    for row in range(len(graph)):
        after = set().union(*(ended[d] for d in graph.dependencies(row).tolist()))
        if graph.match[row] >= 0:
            after |= arrived[int(graph.match[row])]
        after = latest(after)
        if graph.kind[row] == SEND:
            segments = topology.segments(int(graph.rank[row]), int(graph.peer[row]))
            overhead = float(topology.overhead_s[segments[0][0]])
            if overhead:
                after = add("delay", overhead, after=after)
            for k, segment in enumerate(segments):
                ends = nodes[topology.links[segment[0]][0]], nodes[topology.links[segment[-1]][1]]
                number, links = routes.setdefault(ends, (len(routes), segment))
                assert links == segment, "two routes from one node to another"
                after = add("message", number, int(graph.bytes[row]), after=after)
                if k == 0:
                    ended.append(after)
            arrived[row] = after
        else:
            ended.append(add("delay", float(spent[row]), after=after) if spent[row] else after)
    return {
        "nodes": len(nodes),
        "links": [[float(b), float(x)] for b, x in zip(topology.bandwidth, topology.latency_s, strict=True)],
        "routes": [[*ends, links] for ends, (_, links) in routes.items()],
        "events": found,
        "arrivals": [next(iter(arrived[row])) for row in messages(graph).tolist()],
    }
