"""C2: a parameter server with one shard and with one on every worker, and what each GPU's port carries."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.ranks.collectives import parameter_server as theory
from glasscluster.sim.recording.events import SEND
from glasscluster.sim.time.hardware import hardware
from glasscluster.sim.time.network import gpu, of_hardware
from glasscluster.visualize.figures.cells import Table, cells_figure, shade
from glasscluster.visualize.figures.plots import lines


def program(gpu: Any, elements: int, algorithm: str, servers: int | None) -> float:
    """Sum a gradient over all ranks: pushed to the servers, added there, pulled back."""

    with gpu.unrecorded():  # only the messages are timed
        x = torch.full((elements,), float(gpu.rank))
    gpu.comm.all_reduce(x, algorithm=algorithm, servers=servers)
    with gpu.unrecorded():
        return float(x[-1])


def port_load(graph: Any, topology: Any) -> dict[str, list[int]]:
    """The bytes that each GPU's link carries out of the GPU and into it, along the routes of all messages."""

    load = dict.fromkeys(topology.links, 0)
    for row in (graph.kind == SEND).nonzero()[0].tolist():
        for number in topology.route(int(graph.rank[row]), int(graph.peer[row])):
            load[topology.links[number]] += int(graph.bytes[row])
    ports = [gpu(i) for i in range(graph.ranks)]
    return {
        "out": [sum(b for (u, _), b in load.items() if u == p) for p in ports],
        "in": [sum(b for (_, v), b in load.items() if v == p) for p in ports],
    }


@lesson
def parameter_server(lab: Lab, gpus: int = 16, elements: int = 800_000) -> None:
    """A synchronous parameter server sums one gradient over 16 workers behind one switch, first with one
    shard, then with 16.
    """
    elements -= elements % gpus
    size = 4 * elements
    star = replace(
        hardware(lab.hardware), node_size=gpus
    )  # one switch: every GPU's port is a link of its own
    network, link = of_hardware(star, gpus), star.intra
    server = (program, elements, "parameter-server")
    single = lab.run("one", lab.text("one_server"), *server, 1, gpus=gpus)
    sharded = lab.run("sharded", lab.text("sharded", gpus=gpus), *server, gpus, gpus=gpus)
    for entry in lab.entries:  # the times to compare are those with shared links, below
        entry.compared, entry.note = False, lab.text("no_sharing")
    counts = [k for k in (1, 2, 4, 8, 16, 32) if k < gpus] + [gpus]
    runs = {1: single, gpus: sharded}
    runs |= {k: lab.cluster(gpus).run(*server, k) for k in counts if k not in runs}
    ring_run = lab.cluster(gpus).run(program, elements, "ring", None)
    loads = {1: port_load(single.graph, network), gpus: port_load(sharded.graph, network)}
    busiest = max(loads[1]["in"] + loads[1]["out"])
    lab.ask("busiest_port", busiest / size, gpus=gpus)

    check_bytes(lab, single, sharded, loads[1], size)
    shared = check_ports_and_times(lab, runs, star, network, size)
    ring = ring_run.replay(star, contention=True).makespan
    least = {k: 2 * (gpus - 1) * size / k / link.bandwidth for k in counts}  # pushed in, then pulled out
    lab.figure("bytes_by_link", lambda lang: bytes_by_link(lab, loads, size, lang))
    lab.figure("time_by_shards", lambda lang: time_by_shards(lab, shared, least, ring, lang), gpus=gpus)
    lab.tell(
        "servers_link", view="tab=network&run=one", busiest=busiest / size, worker_in=loads[1]["in"][1] / size
    )
    use = (gpus - 1) * size / link.bandwidth / shared[1]
    lab.tell("busy", view="tab=timeline&run=one", use=use, one_ms=shared[1] * 1e3)
    shard: dict[str, Any] = {"shard_in": loads[gpus]["in"][0] / size, "speedup": shared[1] / shared[gpus]}
    lab.tell("sharded", view="tab=network&run=sharded", gpus=gpus, sharded_ms=shared[gpus] * 1e3, **shard)
    between = max((k for k in counts if k < gpus), key=lambda k: shared[k] / least[k])
    if shared[between] > 2 * least[between]:
        lab.tell("between", between=between, least_ms=least[between] * 1e3, between_ms=shared[between] * 1e3)
    chains = check_steps(lab, ring_run.graph, sharded.graph)
    lab.tell("ring", **chains, ring_ms=ring * 1e3, sharded_ms=shared[gpus] * 1e3)
    lab.conclude(busiest=busiest / size, shard_in=shard["shard_in"])
    lab.explain()
    lab.card(**chains)
    lab.own_number(busiest=busiest / size, gpus=gpus, **shard)


def check_bytes(lab: Lab, single: Any, sharded: Any, load: dict[str, list[int]], size: int) -> None:
    """Check how much each rank sent and received, with one server and with a shard on every rank."""
    gpus = len(single.results)
    lab.row("sent_by_server", (gpus - 1) * size, single.graph.bytes_sent()[0], "Eq 11")
    lab.row("received_by_server", (gpus - 1) * size, load["in"][0], "Eq 11")
    others = sum(load[way][r] != size for way in load for r in range(1, gpus))
    lab.row("workers", 0, others, "Eq 11", unit="ranks")
    even = sharded.graph.bytes_sent()
    lab.row("sent_by_every_rank", 2 * (gpus - 1) * size // gpus, even[0], "Eq 11, K = N")
    different = sum(s != even[0] for s in even)
    lab.row("ranks_that_sent_something_else", 0, different, "Eq 11, K = N", unit="ranks")
    wrong = sum(x != sum(range(gpus)) for x in single.results + sharded.results)
    lab.row("ranks_with_a_wrong_sum", 0, wrong, "definition", unit="ranks")


def check_steps(lab: Lab, ring: Any, sharded: Any) -> dict[str, Any]:
    """Check how many messages wait for each other in a chain: two with servers, 2(N−1) in a ring."""
    steps: dict[str, Any] = {"longest": ring.message_chain(), "shortest": sharded.message_chain()}
    lab.row("steps_of_servers", 2, steps["shortest"], "a push, then a pull", unit="steps")
    lab.row("steps_of_a_ring", 2 * (ring.ranks - 1), steps["longest"], "Eq 8", unit="steps")
    return steps


def check_ports_and_times(
    lab: Lab, runs: dict[int, Any], star: Any, network: Any, size: int
) -> dict[int, float]:
    """Check the busiest port for every number of shards, and the time with ports shared; return seconds by
    shards.
    """
    gpus, elements = len(runs[1].results), size // 4
    for k, run in sorted(runs.items()):
        port = max(map(max, port_load(run.graph, network).values()))
        expected, source = (gpus + k - 2) * (size / k), "Eq 11 and the worker's own push"
        lab.row("busiest_port", expected, port, source, tolerance=0 if elements % k == 0 else 8, k=k)
    shared = {k: run.replay(star, contention=True).makespan for k, run in sorted(runs.items())}
    for k, seconds in expected_times(star, gpus, size).items():
        source = "derivation; ports shared max-min fairly"
        virtual: dict[str, Any] = {"match": "virtual", "tolerance": 1e-9}
        lab.row("time", seconds, None, source, simulated=shared[k], unit="s", **virtual, k=k)
    return shared


def expected_times(star: Any, gpus: int, size: int) -> dict[int, float]:
    """The seconds with one shard and with one on every rank, with ports shared and additions included."""
    link = star.intra
    push = (
        link.overhead_s + (gpus - 1) * size / link.bandwidth + link.latency_s
    )  # all at once through one port
    pull = (gpus - 1) * (link.overhead_s + size / link.bandwidth) + link.latency_s  # one after the other
    sharded = theory.predict("all_reduce", gpus, size, link).time_s or 0.0
    added = (gpus - 1) * size / star.gpu.reduce_rate
    return {1: push + pull + added, gpus: sharded + added / gpus}


def bytes_by_link(lab: Lab, loads: dict[int, dict[str, list[int]]], size: int, lang: str) -> Any:
    """Draw the bytes that each GPU's link carries in both directions, in multiples of S."""
    busiest = max(loads[1]["in"] + loads[1]["out"])
    names, rows = [], []
    for k, load in loads.items():
        for way in ("out", "in"):
            names.append(lab.word("row_of_ports", lang, k=k, way=lab.word(way, lang)))
            rows.append(load[way])
    text = [[f"{b / size:.3g}" for b in row] for row in rows]
    fill = [[shade(b / busiest) for b in row] for row in rows]
    gpus = [str(r) for r in range(len(rows[0]))]
    return cells_figure([Table("", names, gpus, text, fill, lab.word("gpu", lang))])


def time_by_shards(
    lab: Lab, shared: dict[int, float], least: dict[int, float], ring: float, lang: str
) -> Any:
    """Draw milliseconds of one sum against the number of shards, beside a server's own bytes and the ring."""
    counts = list(shared)
    series = {
        lab.word("parameter_server", lang): (counts, [t * 1e3 for t in shared.values()]),
        lab.word("own_bytes", lang): (counts, [t * 1e3 for t in least.values()]),
        lab.word("ring", lang): (counts, [ring * 1e3] * len(counts)),
    }
    return lines(series, lab.word("shards", lang), lab.word("milliseconds", lang), log_x=True)
