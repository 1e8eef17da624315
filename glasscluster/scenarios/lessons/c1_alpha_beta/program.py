"""C1: latency and bandwidth of a message, by ping-pong."""

from __future__ import annotations

from typing import Any

import torch

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.time.hardware import hardware
from glasscluster.visualize.figures.plots import lines

LINKS = ("classroom", "dgx-h100", "pcie-4090", "laptop")


def ping_pong(gpu: Any, nbytes: int) -> None:
    """Rank 0 sends, rank 1 sends back."""

    with gpu.unrecorded():  # only the messages are timed
        x = torch.zeros(nbytes, dtype=torch.uint8)
    if gpu.rank == 0:
        gpu.comm.send(x, 1)
        gpu.comm.recv(x, 1)
    else:
        gpu.comm.recv(x, 0)
        gpu.comm.send(x, 0)


@lesson
def alpha_beta(lab: Lab, small: int = 1000) -> None:
    """Two ranks play ping-pong with messages of 100 bytes to 10 MB; the recordings are replayed on four links."""

    sizes = sorted({100, small, 10_000, 100_000, 1_000_000, 10_000_000})
    runs = {s: lab.run(f"bytes-{s}", lab.text("bytes", s=s), ping_pong, s, gpus=2) for s in sizes}
    half = {name: [runs[s].replay(name).makespan / 2 for s in sizes] for name in LINKS}
    link = hardware(lab.hardware).link(0, 1)
    lab.ask("number", runs[small].timeline.makespan / 2 * 1e6, "µs", small=small, hardware=lab.hardware)
    for s in sizes:
        lab.row(
            "time_bytes_way",
            link.alpha + s / link.bandwidth,
            None,
            "F8",
            simulated=runs[s].timeline.makespan / 2,
            unit="s",
            match="virtual",
            tolerance=1e-9,
            s=s,
        )
    big, tiny = sizes[-1], sizes[0]
    times = {s: runs[s].timeline.makespan / 2 for s in (tiny, big)}
    beta = (big - tiny) / (times[big] - times[tiny])
    alpha = times[tiny] - tiny / beta
    lab.row(
        "fitted_two_sizes", link.alpha, None, "F8", simulated=alpha, unit="s", match="virtual", tolerance=1e-6
    )
    lab.row(
        "fitted_two_sizes_2",
        link.bandwidth,
        None,
        "F8",
        simulated=beta,
        unit="bytes/s",
        match="virtual",
        tolerance=1e-6,
    )
    lab.figure(
        "time_against_size_four",
        lambda lang: lines(
            {n: (sizes, [t * 1e6 for t in half[n]]) for n in LINKS},
            lab.word("message_bytes", lang),
            lab.word("way", lang),
            log_x=True,
            log_y=True,
        ),
    )
    knee = link.alpha * link.bandwidth
    lab.tell(
        "gb_fitted_two_sizes",
        hardware=lab.hardware,
        alpha_us=alpha * 1000000.0,
        beta_gb=beta / 1000000000.0,
        knee=knee,
    )
    lab.conclude(knee=knee)
    lab.explain()
    lab.own_number(knee=knee, hardware=lab.hardware)
