"""C1: latency and bandwidth of a message, by ping-pong."""

from __future__ import annotations

from typing import Any

import torch

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.time.hardware import hardware
from glasscluster.visualize.figures.plots import lines

LINKS = ("classroom", "dgx-h100", "pcie-4090", "laptop")
RING = 4  # ranks of the ring


def ping_pong(gpu: Any, nbytes: int) -> None:
    """Send from rank 0 to rank 1, and back."""

    with gpu.unrecorded():  # only the messages are timed
        x = torch.zeros(nbytes, dtype=torch.uint8)
    if gpu.rank == 0:
        gpu.comm.send(x, 1)
        gpu.comm.recv(x, 1)
    else:
        gpu.comm.recv(x, 0)
        gpu.comm.send(x, 0)


def gather(gpu: Any, nbytes: int) -> None:
    """Pass chunks round a ring: the half of an all-reduce in which nothing is added."""

    with gpu.unrecorded():
        x = torch.zeros(nbytes, dtype=torch.uint8)
    gpu.comm.all_gather(x, algorithm="ring")


@lesson
def alpha_beta(lab: Lab, small: int = 1000) -> None:
    """Two ranks play ping-pong with messages of 100 bytes to 10 MB, replayed on four links; then a ring
    passes chunks that are as large as the knee.
    """

    sizes = sorted({100, small, 10_000, 100_000, 1_000_000, 10_000_000})
    runs = {s: lab.run(f"bytes-{s}", lab.text("run", s=s), ping_pong, s, gpus=2) for s in sizes}
    one_way = {s: run.timeline.makespan / 2 for s, run in runs.items()}
    link = hardware(lab.hardware).link(0, 1)
    virtual: dict[str, Any] = {"match": "virtual", "tolerance": 1e-9}
    for s in sizes:
        seconds = link.alpha + s / link.bandwidth
        lab.row("one_way", seconds, None, "Eq 8", simulated=one_way[s], unit="s", **virtual, s=s)
    tiny, big = sizes[0], sizes[-1]
    beta = (big - tiny) / (one_way[big] - one_way[tiny])
    alpha = one_way[tiny] - tiny / beta
    virtual["tolerance"] = 1e-6  # a difference of two times loses digits
    lab.row("fitted_alpha", link.alpha, None, "Eq 8", simulated=alpha, unit="s", **virtual)
    lab.row("fitted_beta", link.bandwidth, None, "Eq 8", simulated=beta, unit="bytes/s", **virtual)

    def by_size(lang: str) -> Any:
        series = {name: (sizes, [runs[s].replay(name).makespan / 2 * 1e6 for s in sizes]) for name in LINKS}
        return lines(series, lab.word("message", lang), lab.word("one_way", lang), log_x=True, log_y=True)

    lab.figure("time_by_size", by_size)
    knee, wire = alpha * beta, {"alpha_us": link.alpha * 1e6, "beta_gb": link.bandwidth / 1e9}
    lab.ask("knee", knee / 1e3, hardware=lab.hardware, **wire)
    for s in sizes:
        share = link.alpha / (link.alpha + s / link.bandwidth)
        lab.row(
            "latency_share",
            share,
            None,
            "Eq 8",
            simulated=alpha / one_way[s],
            unit="fraction",
            **virtual,
            s=s,
        )
    in_ring = RING * round(link.alpha * link.bandwidth)
    ring = lab.run("ring", lab.text("ring", ring=RING), gather, in_ring, gpus=RING)
    virtual["tolerance"] = 1e-3  # chunks are whole bytes
    took = ring.timeline.makespan
    names: dict[str, Any] = {"ring": RING, "in_ring": in_ring}
    expected = 2 * (RING - 1) * link.alpha
    lab.row("ring_at_its_threshold", expected, None, "Eq 8", simulated=took, unit="s", **virtual, **names)

    shares: dict[str, Any] = {"small_share": alpha / one_way[small], "big_share": alpha / one_way[big]}
    lab.tell("fitted", hardware=lab.hardware, alpha_us=alpha * 1e6, beta_gb=beta / 1e9, knee=knee)
    lab.tell("shares", small=small, big=big, **shares)
    lab.tell("ring", view="tab=timeline&run=ring", **names, took_us=took * 1e6)
    lab.conclude(knee=knee)
    lab.explain()
    lab.card(**wire, **names, **shares, small=small, big=big)
    lab.own_number(knee=knee, hardware=lab.hardware)
