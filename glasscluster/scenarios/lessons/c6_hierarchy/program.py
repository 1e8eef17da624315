"""C6: an all-reduce in two levels, against one ring through all nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.ranks.collectives import THEORY
from glasscluster.sim.recording.events import SEND
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import hardware
from glasscluster.visualize.figures.plots import bars, lines

SIZES = [2**k for k in (16, 20, 24, 28, 32)]


def program(gpu: Any, algorithm: str, nbytes: int, node_size: int | None) -> float:
    """Sum a buffer of bytes; only the messages are timed."""

    with gpu.unrecorded():
        x = torch.full((nbytes,), gpu.rank, dtype=torch.uint8, device=gpu.comm.wire.device)
    gpu.comm.all_reduce(x, algorithm=algorithm, node_size=node_size)
    with gpu.unrecorded():
        return 0.0 if x.device.type == "meta" else float(x[-1])


def between_nodes(graph: Any, g: int) -> list[int]:
    """The bytes that each rank sent to another node."""

    out = (graph.kind == SEND) & (graph.rank // g != graph.peer // g)
    return np.bincount(graph.rank[out], graph.bytes[out], minlength=graph.ranks).astype(int).tolist()


@lesson(hardware="dgx-h100")
def hierarchy(lab: Lab, nodes: int = 2, large_nodes: int = 8, mib: int = 16) -> None:
    """A flat ring and a two-level all-reduce run on two nodes, then both are recorded without data on
    eight.
    """
    hw = hardware(lab.hardware)
    g = hw.node_size
    even = nodes * large_nodes * g  # sizes that every ring here cuts evenly
    nbytes = mib * 2**20 // even * even
    flat = lab.run("flat", lab.text("flat_ring"), program, "ring", nbytes, None, gpus=nodes * g)
    levels = lab.run("levels", lab.text("two_levels"), program, "hierarchical", nbytes, g, gpus=nodes * g)
    sizes = [s * even // 2**7 for s in SIZES]
    counts = sorted({2, 4, nodes, large_nodes})
    rings = {(m, s): record(hw, m, "ring", s) for m in counts for s in sizes}
    twos = {(m, s): record(hw, m, "hierarchical", s) for m in counts for s in sizes}
    shown = sizes[-2]
    ring, two = rings[large_nodes, shown], twos[large_nodes, shown]

    check_two_levels(lab, hw, levels, nodes, nbytes)
    check_two_levels(lab, hw, two, large_nodes, shown)
    check_flat_ring(lab, hw, ring, large_nodes, shown)
    n = large_nodes * g
    last = between_nodes(ring.graph, g)[g - 1]
    lab.row("flat_rings_last_gpu", 2 * (n - 1) * shown // n, last, "Eq 9")
    total = sum(range(nodes * g)) % 256
    wrong = sum(x != total for x in flat.results + levels.results)
    lab.row("ranks_with_a_wrong_sum", 0, wrong, "definition", unit="ranks")

    gain = {key: rings[key].timeline.makespan / twos[key].timeline.makespan for key in rings}
    ratio, speed_up = hw.intra.bandwidth / hw.inter.bandwidth, gain[large_nodes, shown]
    cluster: dict[str, Any] = {"large_nodes": large_nodes, "g": g}
    lab.ask("speed_up", speed_up, **cluster, hardware=hw.name, shown_mib=shown / 2**20, **both_links(hw))
    sent = {way: between_nodes(run.graph, g)[:g] for way, run in (("one_ring", ring), ("levels", two))}
    lab.figure("sent_to_other_nodes", lambda lang: by_gpu(lab, sent, shown, lang), **cluster)
    lab.figure("speed_up", lambda lang: gains(lab, gain, g, ratio, lang))
    took: dict[str, Any] = {
        "flat_us": flat.timeline.makespan * 1e6,
        "levels_us": levels.timeline.makespan * 1e6,
    }
    own = flat.timeline.makespan / levels.timeline.makespan
    lab.tell("ran", view="tab=timeline&run=levels", nodes=nodes, size_mib=nbytes / 2**20, **took, own=own)
    lab.tell(
        "flat_ring",
        view="tab=network&run=flat",
        flat_sent=last / shown,
        g=g,
        levels_sent=sent["levels"][0] / shown,
    )
    lab.tell("large", **cluster, shown_mib=shown / 2**20, speed_up=speed_up, ratio=ratio)
    steps: dict[str, Any] = {"flat_steps": 2 * (n - 1), "level_steps": 2 * (g - 1) + 2 * (large_nodes - 1)}
    lab.tell("small", smallest=sizes[0], gain=gain[large_nodes, sizes[0]], **steps)
    lab.conclude(speed_up=speed_up, **cluster, ratio=ratio)
    lab.explain()
    lab.card(**steps, shown_mib=shown / 2**20)
    lab.own_number(speed_up=speed_up, **cluster, hardware=hw.name, ratio=ratio)


def record(hw: Any, nodes: int, algorithm: str, size: int) -> Any:
    """Record an all-reduce on some nodes, without data."""
    # all ranks of a ring do the same: rank 0 is recorded, and relabelled for the others
    ring = {"ring_bytes": size} if algorithm == "ring" else {}
    cluster = Cluster(hw, nodes * hw.node_size, "dry", memory_bytes=None, **ring)
    return cluster.run(program, algorithm, size, None if ring else hw.node_size)


def check_two_levels(lab: Lab, hw: Any, run: Any, m: int, size: int) -> None:
    """Check the time of two levels, and what each GPU sends to another node."""
    g = hw.node_size
    theory = THEORY["hierarchical"]
    wires = theory("all_reduce", m * g, size, hw.intra, between=hw.inter, node_size=g).time_s
    assert wires is not None
    seconds = wires + (m * g - 1) * size / (m * g) / hw.gpu.reduce_rate  # and the additions
    source = "Eq 12 and additions at γ"
    virtual: dict[str, Any] = {"unit": "s", "match": "virtual", "tolerance": 1e-9}
    lab.row("time", seconds, None, source, simulated=run.timeline.makespan, **virtual, m=m, g=g)
    crossed = between_nodes(run.graph, g)
    lab.row("sent_by_each_gpu", 2 * (m - 1) * size // (m * g), crossed[0], "Eq 12", m=m, g=g)
    together = 2 * (m - 1) * size // m
    lab.row("sent_by_a_node", together, sum(crossed[:g]), "Eq 12, over g GPUs", m=m, g=g)
    others = sum(c != crossed[0] for c in crossed)
    lab.row("gpus_that_sent_something_else", 0, others, "Eq 12", unit="ranks", m=m, g=g)


def check_flat_ring(lab: Lab, hw: Any, run: Any, m: int, size: int) -> None:
    """Check the time of a flat ring whose ports at the nodes' borders never rest."""
    source, virtual = "derivation: the border's port never rests", {"match": "virtual", "tolerance": 1e-9}
    options: dict[str, Any] = {"unit": "s", "m": m, "g": hw.node_size, **virtual}
    seconds, time = flat_ring_seconds(hw, m, size), run.timeline.makespan
    lab.row("time_of_a_flat_ring", seconds, None, source, simulated=time, **options)


def flat_ring_seconds(hw: Any, m: int, size: int) -> float | None:
    """The seconds of a flat ring over m nodes in which every chunk passes the port at each node's border one
    after the other; None for buffers so small that the port waits for chunks.
    """
    n, near, far = m * hw.node_size, hw.intra, hw.inter
    added, steps, crossings = (n - 1) * size / n / hw.gpu.reduce_rate, 2 * (n - 1), 2 * m
    port = steps * (far.overhead_s + size / n / far.bandwidth) + far.latency_s
    hops = (near.alpha + size / n / near.bandwidth, far.alpha + size / n / far.bandwidth)
    journey = (steps - crossings) * hops[0] + crossings * hops[1]  # of one chunk, the longest there is
    return port + added if port > 2 * journey else None


def both_links(hw: Any) -> dict[str, Any]:
    """The constants of the link inside a node and of that between nodes, for a text."""
    ends: dict[str, Any] = {"near": hw.intra, "far": hw.inter}
    alphas = {f"alpha_{name}": link.alpha * 1e6 for name, link in ends.items()}
    return alphas | {f"beta_{name}": link.bandwidth / 1e9 for name, link in ends.items()}


def by_gpu(lab: Lab, sent: dict[str, list[int]], size: int, lang: str) -> Any:
    """Draw what each GPU of a node sends to other nodes, in multiples of the buffer."""
    series = {lab.word(way, lang): [b / size for b in by_rank] for way, by_rank in sent.items()}
    gpus = [f"GPU {i}" for i in range(len(sent["levels"]))]
    return bars(gpus, series, lab.word("through_port", lang))


def gains(lab: Lab, gain: dict[tuple[int, int], float], g: int, ratio: float, lang: str) -> Any:
    """Draw the speed-up over a flat ring against the size, a line for each number of nodes."""
    counts, sizes = sorted({m for m, _ in gain}), sorted({s for _, s in gain})
    series = {lab.word("cluster", lang, nodes=m, g=g): (sizes, [gain[m, s] for s in sizes]) for m in counts}
    series[lab.word("ratio_of_bandwidths", lang)] = (sizes, [ratio] * len(sizes))
    figure = lines(series, lab.word("buffer_mib", lang), lab.word("times_as_fast", lang), log_x=True)
    return figure.update_xaxes(tickvals=sizes, ticktext=[f"{s / 2**20:.4g}" for s in sizes])
