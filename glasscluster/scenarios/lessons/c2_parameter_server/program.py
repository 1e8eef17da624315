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
    """Bytes that every GPU's link carries, out of the GPU and into it, along the routes of all messages."""

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
    """A synchronous parameter server sums one gradient over 16 workers behind one switch, first with one shard, then with 16."""

    elements -= elements % gpus
    size, star = (
        4 * elements,
        replace(hardware(lab.hardware), node_size=gpus),
    )  # one switch: every GPU's port is a link of its own
    network, link = of_hardware(star, gpus), star.intra
    one = lab.run("one", lab.text("server"), program, elements, "parameter-server", 1, gpus=gpus)
    every = lab.run(
        "sharded", lab.text("shards_2", gpus=gpus), program, elements, "parameter-server", gpus, gpus=gpus
    )
    for entry in lab.entries:  # the times to compare are those with shared links, below
        entry.compared, entry.note = False, lab.text("timeline_shares_no_links")
    loads = {1: port_load(one.graph, network), gpus: port_load(every.graph, network)}
    busiest = max(loads[1]["in"] + loads[1]["out"])
    lab.ask("number", busiest / size, "S", gpus=gpus)
    lab.row("sent_only_server", (gpus - 1) * size, one.graph.bytes_sent()[0], "F11")
    lab.row("received_only_server", (gpus - 1) * size, loads[1]["in"][0], "F11")
    lab.row(
        "workers_did_not_send_receive",
        0,
        sum(loads[1][way][r] != size for way in loads[1] for r in range(1, gpus)),
        "F11",
        unit="ranks",
    )
    even = every.graph.bytes_sent()
    lab.row("sent_every_rank", 2 * (gpus - 1) * size // gpus, even[0], "F11, K = N")
    lab.row("ranks_sent_something_else", 0, sum(s != even[0] for s in even), "F11, K = N", unit="ranks")
    lab.row(
        "ranks_wrong_sum",
        0,
        sum(x != sum(range(gpus)) for x in one.results + every.results),
        "definition",
        unit="ranks",
    )
    counts = [k for k in (1, 2, 4, 8, 16, 32) if k < gpus] + [gpus]
    runs = {
        k: {1: one, gpus: every}.get(k) or lab.cluster(gpus).run(program, elements, "parameter-server", k)
        for k in counts
    }
    for k in counts:
        lab.row(
            "busiest_port",
            (gpus + k - 2) * (size / k),
            max(map(max, port_load(runs[k].graph, network).values())),
            "F11 and the worker's own push",
            tolerance=0 if elements % k == 0 else 8,
            k=k,
        )
    shared = {k: runs[k].replay(star, contention=True).makespan for k in counts}
    circle = lab.cluster(gpus).run(program, elements, "ring", None)
    ring, chains = (
        circle.replay(star, contention=True).makespan,
        (every.graph.message_chain(), circle.graph.message_chain()),
    )
    push = (
        link.overhead_s + (gpus - 1) * size / link.bandwidth + link.latency_s
    )  # all at once through one port
    pull = (gpus - 1) * (link.overhead_s + size / link.bandwidth) + link.latency_s  # one after the other
    both = {1: push + pull, gpus: theory.predict("all_reduce", gpus, size, link).time_s or 0.0}
    for k, seconds in both.items():
        added = (gpus - 1) * size / k / star.gpu.reduce_rate
        lab.row(
            "time_behind_switch",
            seconds + added,
            None,
            "derivation; ports shared max-min fairly",
            simulated=shared[k],
            unit="s",
            match="virtual",
            tolerance=1e-9,
            k=k,
        )

    def heat(lang: str) -> Any:
        rows = [
            (lab.word("text", lang).format(k, words[lang][2 + (way == "in")]), loads[k][way])
            for k in loads
            for way in ("out", "in")
        ]
        text = [[f"{b / size:.3g}" for b in row] for _, row in rows]
        fill = [[shade(b / busiest) for b in row] for _, row in rows]
        return cells_figure(
            [
                Table(
                    "",
                    [name for name, _ in rows],
                    [str(r) for r in range(gpus)],
                    text,
                    fill,
                    lab.word("gpu_link_switch", lang),
                )
            ]
        )

    lab.figure("bytes_every_gpu_link", heat)
    least = {k: 2 * (gpus - 1) * size / k / link.bandwidth for k in counts}  # pushed in, then pulled out
    drawn = [
        (counts, [t * 1e3 for t in ts]) for ts in (shared.values(), least.values(), [ring] * len(counts))
    ]
    lab.figure(
        lab.text("time_sum_gpus_behind", gpus=gpus),
        lambda lang: lines(
            dict(
                zip(
                    (
                        lab.word("parameter_server", lang),
                        lab.word("server_own_bytes", lang),
                        lab.word("ring_all_reduce", lang),
                        lab.word("shards", lang),
                        lab.word("ms_links_shared", lang),
                    ),
                    drawn,
                    strict=False,
                )
            ),
            lab.word("shards", lang),
            lab.word("ms_links_shared", lang),
            log_x=True,
        ),
    )
    use = (gpus - 1) * size / link.bandwidth / shared[1]
    lab.tell(
        "server_link_carries_way",
        view="tab=network&run=one",
        busiest=busiest / size,
        worker_in=loads[1]["in"][1] / size,
    )
    lab.tell("link_busy_time_direction", view="tab=timeline&run=one", use=use, one_ms=shared[1] * 1000.0)
    lab.tell(
        "shards_every_link_carries",
        view="tab=network&run=sharded",
        gpus=gpus,
        shard_in=loads[gpus]["in"][0] / size,
        sharded_ms=shared[gpus] * 1000.0,
        speedup=shared[1] / shared[gpus],
    )
    between = max((k for k in counts if k < gpus), key=lambda k: shared[k] / least[k])
    if shared[between] > 2 * least[between]:
        lab.tell(
            "shards_server_own_bytes",
            between=between,
            least_ms=least[between] * 1000.0,
            between_ms=shared[between] * 1000.0,
        )
    lab.tell("ring_sends_same_bytes", longest=chains[1], shortest=chains[0], ring_ms=ring * 1000.0)
    lab.conclude(busiest=busiest / size, shard_in=loads[gpus]["in"][0] / size)
    lab.explain()
    lab.own_number(
        busiest=busiest / size, shard_in=loads[gpus]["in"][0] / size, speedup=shared[1] / shared[gpus]
    )
