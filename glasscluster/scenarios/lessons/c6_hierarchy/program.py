"""C6: an all-reduce in two levels, against one ring through all nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.ranks.collectives import MODULES
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
    """Bytes that every rank sent to another node."""

    out = (graph.kind == SEND) & (graph.rank // g != graph.peer // g)
    return np.bincount(graph.rank[out], graph.bytes[out], minlength=graph.ranks).astype(int).tolist()


@lesson(hardware="dgx-h100")
def hierarchy(lab: Lab, nodes: int = 2, large_nodes: int = 8, mib: int = 16) -> None:
    """A flat ring and a two-level all-reduce run on two nodes, then both are recorded without data on eight."""

    hw = hardware(lab.hardware)
    g, nbytes = (
        hw.node_size,
        mib * 2**20 // (nodes * large_nodes * hw.node_size) * nodes * large_nodes * hw.node_size,
    )
    flat = lab.run("flat", lab.text("flat_ring"), program, "ring", nbytes, None, gpus=nodes * g)
    levels = lab.run("levels", lab.text("two_levels"), program, "hierarchical", nbytes, g, gpus=nodes * g)

    def dry(m: int, algorithm: str, size: int) -> Any:
        turns = (
            {"turns": size} if algorithm == "ring" else {}
        )  # a ring is the same all round: rank 0 is recorded, and turned
        return Cluster(hw, m * g, "dry", memory_bytes=None, **turns).run(
            program, algorithm, size, None if turns else g
        )

    sizes = [s * nodes * large_nodes * g // 2**7 for s in SIZES]
    counts = sorted({2, 4, nodes, large_nodes})
    big = {(m, s): (dry(m, "ring", s), dry(m, "hierarchical", s)) for m in counts for s in sizes}
    shown = sizes[-2]
    for m, run, size in ((nodes, levels, nbytes), (large_nodes, big[large_nodes, shown][1], shown)):
        crossed = between_nodes(run.graph, g)
        wires = (
            MODULES["hierarchical"]
            .predict("all_reduce", m * g, size, hw.intra, between=hw.inter, node_size=g)
            .time_s
        )
        seconds = wires + (m * g - 1) * size / (m * g) / hw.gpu.reduce_rate  # and the additions
        lab.row(
            "time_two_levels_gpus",
            seconds,
            None,
            "F12 and additions at γ",
            simulated=run.timeline.makespan,
            unit="s",
            match="virtual",
            tolerance=1e-9,
            m=m,
            g=g,
        )
        lab.row("sent_another_node_gpu_gpus", 2 * (m - 1) * size // (m * g), crossed[0], "F12", m=m, g=g)
        lab.row(
            "gpus_sent_something_else_another_node",
            0,
            sum(c != crossed[0] for c in crossed),
            "F12",
            unit="ranks",
            m=m,
            g=g,
        )
    n, ring = large_nodes * g, between_nodes(big[large_nodes, shown][0].graph, g)
    lab.row("sent_another_node_flat_ring_last", 2 * (n - 1) * shown // n, ring[g - 1], "F9")
    lab.row(
        "ranks_wrong_sum",
        0,
        sum(x != sum(range(nodes * g)) % 256 for x in flat.results + levels.results),
        "definition",
        unit="ranks",
    )
    gain = {k: a.timeline.makespan / b.timeline.makespan for k, (a, b) in big.items()}
    ratio, found = hw.intra.bandwidth / hw.inter.bandwidth, gain[large_nodes, shown]
    lab.ask("number", found, "×", large_nodes=large_nodes, g=g, hardware=hw.name, shown_mib=shown / 2**20)
    two, axes = (
        between_nodes(big[large_nodes, shown][1].graph, g),
        {
            "en": ("flat ring", "two levels", "S through the GPU's network port"),
            "zh": ("平坦的环", "两级", "经该 GPU 网口的量（S）"),
        },
    )
    lab.figure(
        lab.text("gpu_node_sends_other", large_nodes=large_nodes, g=g),
        lambda lang: bars(
            [f"GPU {i}" for i in range(g)],
            {axes[lang][0]: [b / shown for b in ring[:g]], axes[lang][1]: [b / shown for b in two[:g]]},
            axes[lang][2],
        ),
    )

    def gains(lang: str) -> Any:
        drawn = {lab.word("nodes", lang).format(m, g): (sizes, [gain[m, s] for s in sizes]) for m in counts}
        figure = lines(
            {**drawn, lab.word("ratio_bandwidths", lang): (sizes, [ratio] * len(sizes))},
            lab.word("buffer_mib", lang),
            lab.word("times_fast_flat_ring", lang),
            log_x=True,
        )
        return figure.update_xaxes(tickvals=sizes, ticktext=[f"{s / 2**20:.4g}" for s in sizes])

    lab.figure("speed_up_over_flat", gains)
    own = flat.timeline.makespan / levels.timeline.makespan
    lab.tell(
        "run_nodes_mib_take",
        view="tab=timeline&run=levels",
        nodes=nodes,
        size_mib=nbytes / 2**20,
        flat_us=flat.timeline.makespan * 1000000.0,
        levels_us=levels.timeline.makespan * 1000000.0,
        own=own,
    )
    lab.tell(
        "flat_ring_leaves_node",
        view="tab=network&run=flat",
        flat_sent=ring[g - 1] / shown,
        g=g,
        levels_sent=two[0] / shown,
    )
    lab.tell(
        "nodes_mib_speed_up", large_nodes=large_nodes, shown_mib=shown / 2**20, found=found, ratio=ratio, g=g
    )
    lab.tell(
        "bytes_there_steps_count",
        smallest=sizes[0],
        gain=gain[large_nodes, sizes[0]],
        flat_steps=2 * (n - 1),
        level_steps=2 * (g - 1) + 2 * (large_nodes - 1),
    )
    lab.conclude(found=found, large_nodes=large_nodes, g=g, ratio=ratio)
    lab.explain()
    lab.own_number(found=found, large_nodes=large_nodes, g=g, hardware=hw.name, ratio=ratio)
