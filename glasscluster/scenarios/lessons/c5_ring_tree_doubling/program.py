"""C5: ring, tree, recursive doubling and halving-doubling: which is faster at which size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from glasscluster.base.errors import InputError
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.ranks.collectives import THEORY, double_tree
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import hardware
from glasscluster.sim.time.network import Cable, build
from glasscluster.visualize.figures.plots import lines

ALGORITHMS = ("ring", "tree", "recursive-doubling", "halving-doubling")
RECORDED = ("ring", "tree", "recursive-doubling")  # on many ranks, without data
REAL, SMALL, LARGE = 8, 64, 65_536  # ranks that really run; bytes a rank of the two recordings without data
VIRTUAL: dict[str, Any] = {"match": "virtual", "tolerance": 1e-9}


def program(gpu: Any, algorithm: str, nbytes: int) -> float:
    """Sum a buffer of bytes; only the messages are timed."""

    with gpu.unrecorded():
        x = torch.full((nbytes,), gpu.rank, dtype=torch.uint8, device=gpu.comm.wire.device)
    gpu.comm.all_reduce(x, algorithm=algorithm)
    with gpu.unrecorded():
        return 0.0 if x.device.type == "meta" else float(x[-1])


def crossing(one: Any, other: Any) -> float:
    """The size at which two straight lines of time over size meet; each is a pair ((size, time), (size,
    time)).
    """
    levels, slopes = [], []
    for (s1, t1), (s2, t2) in (one, other):
        levels.append((t1 * s2 - t2 * s1) / (s2 - s1))
        slopes.append((t2 - t1) / (s2 - s1))
    return (levels[0] - levels[1]) / (slopes[1] - slopes[0])


def decades(figure: Any) -> Any:
    """Put powers of ten on both axes."""
    figure.update_xaxes(dtick=1, exponentformat="power")
    return figure.update_yaxes(dtick=1, exponentformat="power")


def seconds(machine: Any, algorithm: str, n: int, size: float) -> float:
    """The closed form of an all-reduce over n ranks in seconds, with its additions."""
    wires = THEORY[algorithm]("all_reduce", n, size, machine.link(0, 1)).time_s
    assert wires is not None
    whole_buffers = algorithm in ("tree", "recursive-doubling")  # added one after the other
    sums = n.bit_length() - 1 if whole_buffers else (n - 1) / n
    return wires + sums * size / machine.gpu.reduce_rate


@lesson
def ring_tree_doubling(lab: Lab, gpus: int = 256, nbytes: int = 8_000_000) -> None:
    """Four all-reduces run on 8 ranks; three of them are recorded on 256 without data, and their times over
    size are crossed.
    """
    if gpus < 4 or gpus & (gpus - 1):
        rule = "the closed forms hold for a power of two, from 4"
        raise InputError("gpus", gpus, rule, [2**k for k in range(2, 11)])
    link = hardware(lab.hardware).link(0, 1)
    wide = replace(hardware(lab.hardware), node_size=gpus, intra=link)  # one kind of wire between any two
    nbytes -= nbytes % REAL
    runs = {a: lab.run(a, lab.text(a), program, a, nbytes, gpus=REAL) for a in ALGORITHMS}
    for a, run in runs.items():
        time = run.timeline.makespan
        names: dict[str, Any] = {"algorithm": lab.text(f"name_{a}"), "gpus": REAL}
        lab.row(
            "time", seconds(wide, a, REAL, nbytes), None, "Eq 8", simulated=time, unit="s", **VIRTUAL, **names
        )
    wrong = sum(x != sum(range(REAL)) for run in runs.values() for x in run.results)
    lab.row("ranks_with_a_wrong_sum", 0, wrong, "definition", unit="ranks")
    two_trees = check_two_trees(lab, nbytes)
    replayed, fewer = record_large(lab, wide, gpus), max(4, gpus // 4)
    met = check_meetings(lab, wide, gpus, replayed, "meeting")
    met_fewer = met
    if fewer < gpus:
        met_fewer = check_meetings(lab, wide, fewer, record_large(lab, wide, fewer), "meeting_of_fewer")

    wire: dict[str, Any] = {"alpha_us": link.alpha * 1e6, "beta_gb": link.bandwidth / 1e9}
    lab.ask("meeting", met["tree"] / 1e6, gpus=gpus, hardware=lab.hardware, **wire)
    sizes = [1024 * 4**k for k in range(11)]
    times = {a: [seconds(wide, a, gpus, size) for size in sizes] for a in ALGORITHMS}
    lab.figure("time_by_size", lambda lang: time_by_size(lab, sizes, times, replayed, lang), gpus=gpus)
    lab.figure("who_wins", lambda lang: who_wins(lab, sizes, times, lang), gpus=gpus)

    took = {a: runs[a].timeline.makespan * 1e3 for a in ("ring", "tree")}
    ran: dict[str, Any] = {"ring_ms": took["ring"], "tree_ms": took["tree"]}
    lab.tell("ran", view="tab=timeline&run=tree", gpus=REAL, megabytes=nbytes / 1e6, **ran)
    steps: dict[str, Any] = {"steps": 2 * (gpus - 1), "tree_steps": 2 * (gpus.bit_length() - 1)}
    small: dict[str, Any] = {"small_ring_ms": times["ring"][0] * 1e3, "small_tree_ms": times["tree"][0] * 1e3}
    lab.tell("small_buffers", gpus=gpus, smallest=sizes[0], **small, **steps)
    lab.tell("meet", met_tree=met["tree"] / 1e6, met_doubling=met["recursive-doubling"] / 1e6)
    doublings = [
        list(zip(sizes, times[a], strict=True))[:2] for a in ("recursive-doubling", "halving-doubling")
    ]
    lab.tell("all_four", turn_kb=crossing(*doublings) / 1e3)
    shared: dict[str, Any] = {
        f"shared_{name}_ms": on_a_ring_of_cables(wide, runs[a]) * 1e3 for name, a in SHARED.items()
    }
    lab.tell("shared_wires", view="tab=timeline&run=halving-doubling", gpus=REAL, **shared)
    lab.conclude(gpus=gpus, met_tree=met["tree"] / 1e6)
    lab.explain()
    lab.card(two_trees=two_trees, fewer=fewer, met_fewer=met_fewer["tree"] / 1e6)
    lab.own_number(met_tree=met["tree"] / 1e6, gpus=gpus, hardware=lab.hardware)


SHARED = {"ring": "ring", "halving": "halving-doubling"}  # replayed where wires are shared


def record_large(lab: Lab, machine: Any, gpus: int) -> dict[str, list[tuple[int, float]]]:
    """Record two sizes with each algorithm on many ranks without data, and check their times.

    Returns (size, seconds) of both sizes, by algorithm.
    """
    replayed: dict[str, list[tuple[int, float]]] = {a: [] for a in RECORDED}
    for a in RECORDED:
        for size in (SMALL * gpus, LARGE * gpus):
            # all ranks of a ring do the same: rank 0 is recorded, and relabelled for the others
            ring = {"ring_bytes": size} if a == "ring" else {}
            cluster = Cluster(machine, gpus, "dry", memory_bytes=None, **ring)
            time = cluster.run(program, a, size).timeline.makespan
            replayed[a].append((size, time))
            expected = seconds(machine, a, gpus, size)
            names: dict[str, Any] = {"algorithm": lab.text(f"name_{a}"), "gpus": gpus, "size": size}
            lab.row("time_of_a_size", expected, None, "Eq 8", simulated=time, unit="s", **VIRTUAL, **names)
    return replayed


def check_two_trees(lab: Lab, nbytes: int) -> float:
    """Check what the busiest rank sends in a double binary tree; return it in multiples of the buffer."""
    graph = lab.cluster(REAL).run(program, "double-tree", nbytes).graph
    sent, source = max(graph.bytes_sent()), "Sanders, Speck and Träff 2009"
    lab.row("sent_in_two_trees", max(double_tree.sent(REAL, nbytes)), sent, source, gpus=REAL)
    return sent / nbytes


def check_meetings(lab: Lab, machine: Any, gpus: int, replayed: Any, key: str) -> dict[str, float]:
    """Check the sizes at which the ring and another algorithm take the same time: replayed, against the
    formula; `key` is that of the rows.

    Returns the replayed sizes in bytes, by algorithm.
    """
    met = {}
    ends = (SMALL * gpus, LARGE * gpus)
    ring = [(size, seconds(machine, "ring", gpus, size)) for size in ends]
    for a in ("tree", "recursive-doubling"):
        other = [(size, seconds(machine, a, gpus, size)) for size in ends]
        met[a] = crossing(replayed["ring"], replayed[a])
        source, name = "Eq 8, solved for S", lab.text(f"name_{a}")
        names: dict[str, Any] = {"algorithm": name} | ({} if key == "meeting" else {"gpus": gpus})
        lab.row(key, crossing(ring, other), None, source, simulated=met[a], **VIRTUAL, **names)
    return met


def on_a_ring_of_cables(machine: Any, run: Any) -> float:
    """The seconds of a run where the GPUs are cabled in a ring, so that distant pairs share links."""
    link = machine.intra
    cables = build("ring", REAL, Cable(link.bandwidth, link.latency_s, link.overhead_s))
    return run.replay(replace(machine, topology=cables), contention=True).makespan


def time_by_size(lab: Lab, sizes: list[int], times: Any, replayed: Any, lang: str) -> Any:
    """Draw the formulas as lines and the replayed times as marks."""
    series = {lab.word(a, lang): (sizes, [t * 1e3 for t in ts]) for a, ts in times.items()}
    for a, points in replayed.items():
        marks = ([size for size, _ in points], [time * 1e3 for _, time in points])
        series[lab.word("replayed", lang) + lab.word(a, lang)] = marks
    axes = (lab.word("buffer_bytes", lang), lab.word("milliseconds", lang))
    figure = lines(series, *axes, log_x=True, log_y=True)
    for number, trace in enumerate(figure.data):
        trace["mode"] = "lines" if number < len(times) else "markers"
        trace["marker"] |= {"size": 14, "color": "#1f2933"}
    return decades(figure)


def who_wins(lab: Lab, sizes: list[int], times: Any, lang: str) -> Any:
    """Draw each algorithm's time over that of the fastest, at each size."""
    best = [min(column) for column in zip(*times.values(), strict=True)]
    series = {}
    for a, ts in times.items():
        series[lab.word(a, lang)] = (sizes, [t / fastest for t, fastest in zip(ts, best, strict=True)])
    axes = (lab.word("buffer_bytes", lang), lab.word("over_the_best", lang))
    return decades(lines(series, *axes, log_x=True, log_y=True))
