"""C5: ring, tree, recursive doubling and halving-doubling: which is faster at which size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from glasscluster.base.errors import InputError
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.ranks.collectives import MODULES
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import hardware
from glasscluster.sim.time.network import Cable, build
from glasscluster.visualize.figures.plots import lines

NAMES = {
    "ring": ("ring", "环"),
    "tree": ("binomial tree", "二项树"),
    "recursive-doubling": ("recursive doubling", "递归加倍"),
    "halving-doubling": ("halving-doubling", "折半-加倍"),
}
REAL, SMALL, LARGE = 8, 64, 65_536  # ranks that really run; bytes a rank of the two recordings without data


def program(gpu: Any, algorithm: str, nbytes: int) -> float:
    """Sum a buffer of bytes; only the messages are timed."""

    with gpu.unrecorded():
        x = torch.full((nbytes,), gpu.rank, dtype=torch.uint8, device=gpu.comm.wire.device)
    gpu.comm.all_reduce(x, algorithm=algorithm)
    with gpu.unrecorded():
        return 0.0 if x.device.type == "meta" else float(x[-1])


def crossing(one: Any, other: Any) -> float:
    """The size at which two straight lines of time over size meet; each a pair ((size, time), (size, time))."""
    (level, slope), (level_2, slope_2) = (
        ((t1 * s2 - t2 * s1) / (s2 - s1), (t2 - t1) / (s2 - s1)) for (s1, t1), (s2, t2) in (one, other)
    )
    return (level - level_2) / (slope_2 - slope)


def decades(figure: Any) -> Any:
    """Powers of ten on both axes."""
    figure.update_xaxes(dtick=1, exponentformat="power")
    return figure.update_yaxes(dtick=1, exponentformat="power")


@lesson
def ring_tree_doubling(lab: Lab, gpus: int = 256, nbytes: int = 8_000_000) -> None:
    """Four all-reduces run on 8 ranks; three of them are recorded on 256 without data, and their times over size are crossed."""

    if gpus < 4 or gpus & (gpus - 1):
        raise InputError(
            "gpus", gpus, "the closed forms hold for a power of two, from 4", [2**k for k in range(2, 11)]
        )
    link, bits = hardware(lab.hardware).link(0, 1), gpus.bit_length() - 1
    wide = replace(hardware(lab.hardware), node_size=gpus, intra=link)  # one kind of wire between any two
    nbytes -= nbytes % REAL

    def form(algorithm: str, n: int, size: float) -> float:
        wires = MODULES[algorithm].predict("all_reduce", n, size, link).time_s
        assert wires is not None
        added = (
            n.bit_length() - 1 if algorithm in ("tree", "recursive-doubling") else (n - 1) / n
        )  # whole buffers, one after the other
        return wires + added * size / wide.gpu.reduce_rate

    runs = {a: lab.run(a, title, program, a, nbytes, gpus=REAL) for a, title in NAMES.items()}
    for a, run in runs.items():
        lab.row(
            "time",
            form(a, REAL, nbytes),
            None,
            "F8",
            simulated=run.timeline.makespan,
            unit="s",
            match="virtual",
            tolerance=1e-9,
            algorithm=a,
            gpus=REAL,
        )
    lab.row(
        "ranks_wrong_sum",
        0,
        sum(x != sum(range(REAL)) for run in runs.values() for x in run.results),
        "definition",
        unit="ranks",
    )
    replayed: dict[str, list[tuple[int, float]]] = {}
    for a in ("ring", "tree", "recursive-doubling"):
        for size in (SMALL * gpus, LARGE * gpus):
            turns = (
                {"turns": size} if a == "ring" else {}
            )  # a ring is the same all round: rank 0 is recorded, and turned
            seconds = (
                Cluster(wide, gpus, "dry", memory_bytes=None, **turns).run(program, a, size).timeline.makespan
            )
            replayed.setdefault(a, []).append((size, seconds))
            lab.row(
                "time_bytes",
                form(a, gpus, size),
                None,
                "F8",
                simulated=seconds,
                unit="s",
                match="virtual",
                tolerance=1e-9,
                algorithm=a,
                gpus=gpus,
                size=size,
            )
    ends, others = (SMALL * gpus, LARGE * gpus), ("tree", "recursive-doubling")
    theory = {
        a: crossing(*([(size, form(x, gpus, size)) for size in ends] for x in ("ring", a))) for a in others
    }
    met = {a: crossing(replayed["ring"], replayed[a]) for a in others}
    for a, meeting in theory.items():
        lab.row(
            "size_ring_take_same_time",
            meeting,
            None,
            "F8, solved for S",
            simulated=met[a],
            match="virtual",
            tolerance=1e-9,
            algorithm=a,
        )
    lab.ask(
        "number",
        met["tree"] / 1e6,
        "MB",
        gpus=gpus,
        hardware=lab.hardware,
        alpha_us=link.alpha * 1000000.0,
        beta_gb=link.bandwidth / 1000000000.0,
    )
    sizes = [1024 * 4**k for k in range(11)]
    times = {a: [form(a, gpus, s) for s in sizes] for a in NAMES}
    turn = crossing(
        *([(s, form(a, gpus, s)) for s in sizes[:2]] for a in ("recursive-doubling", "halving-doubling"))
    )

    def curves(lang: str) -> Any:
        zh = lang == "zh"
        marks = {
            lab.word("replayed", lang) + NAMES[a][zh]: ([s for s, _ in points], [t * 1e3 for _, t in points])
            for a, points in replayed.items()
        }
        figure = lines(
            {**{NAMES[a][zh]: (sizes, [t * 1e3 for t in ts]) for a, ts in times.items()}, **marks},
            lab.word("buffer_bytes", lang),
            lab.word("time_all_reduce_ms", lang),
            log_x=True,
            log_y=True,
        )
        for number, trace in enumerate(figure.data):
            trace.update(
                mode="lines" if number < len(times) else "markers", marker={"size": 14, "color": "#1f2933"}
            )
        return decades(figure)

    lab.figure(lab.text("time_over_size_lines", gpus=gpus), curves)
    lab.figure(
        lab.text("who_wins_size_fastest", gpus=gpus),
        lambda lang: decades(
            lines(
                {
                    NAMES[a][lang == "zh"]: (
                        sizes,
                        [t / min(times[b][i] for b in NAMES) for i, t in enumerate(ts)],
                    )
                    for a, ts in times.items()
                },
                lab.word("buffer_bytes", lang),
                lab.word("time_best", lang),
                log_x=True,
                log_y=True,
            )
        ),
    )
    circle = replace(
        wide, topology=build("ring", REAL, Cable(link.bandwidth, link.latency_s, link.overhead_s))
    )
    shared = {a: runs[a].replay(circle, contention=True).makespan for a in ("ring", "halving-doubling")}
    lab.tell(
        "ranks_mb_take_ms",
        view="tab=timeline&run=tree",
        gpus=REAL,
        megabytes=nbytes / 1000000.0,
        ring_ms=runs["ring"].timeline.makespan * 1000.0,
        tree_ms=runs["tree"].timeline.makespan * 1000.0,
    )
    lab.tell(
        "gpus_bytes_ring_takes",
        gpus=gpus,
        smallest=sizes[0],
        small_ring_ms=times["ring"][0] * 1000.0,
        small_tree_ms=times["tree"][0] * 1000.0,
        steps=2 * (gpus - 1),
        tree_steps=2 * bits,
    )
    lab.tell(
        "ring_tree_meet_mb",
        met_tree=met["tree"] / 1000000.0,
        met_doubling=met["recursive-doubling"] / 1000000.0,
    )
    lab.tell("all_four_recursive_doubling", turn_kb=turn / 1000.0)
    lab.tell(
        "gpus_cabled_ring_wires",
        view="tab=timeline&run=halving-doubling",
        gpus=REAL,
        shared_ring_ms=shared["ring"] * 1000.0,
        shared_halving_ms=shared["halving-doubling"] * 1000.0,
    )
    lab.conclude(gpus=gpus, met_tree=met["tree"] / 1000000.0)
    lab.explain()
    lab.own_number(met_tree=met["tree"] / 1000000.0, gpus=gpus, hardware=lab.hardware)
