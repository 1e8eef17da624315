"""What it costs to compare collectives before they run: our ring with and without, in the same Ray actors.

Goal: a ring of 4 KiB at most 1.5 times as long, of 1 MiB at most 1.05 times. Who goes first alternates.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from glasscluster.sim.run import Cluster

SIZES = {"4 KiB": 4 * 1024, "1 MiB": 1024**2}
GOALS = {"4 KiB": 1.5, "1 MiB": 1.05}
REPEATS, IN_A_ROW = 201, 5
RANKS = 4


def program(gpu: Any, nbytes: int, repeats: int) -> list[tuple[float, float]]:
    """Seconds of a ring (with, without) the comparison in each repeat, as this rank saw them."""
    import torch
    import torch.distributed as dist

    x, calls = torch.ones(nbytes // 4), gpu.comm.wire.calls

    def timed(compared: bool) -> float:
        gpu.comm.wire.calls = calls if compared else None
        dist.barrier()
        begun = time.perf_counter()
        for _ in range(IN_A_ROW):
            gpu.comm.all_reduce(x, algorithm="ring")
        return (time.perf_counter() - begun) / IN_A_ROW

    spent = []
    for number in range(repeats + 2):  # the first two warm up
        first = bool(number % 2)
        a, b = timed(first), timed(not first)
        x.fill_(1.0)
        spent.append((a, b) if first else (b, a))
    gpu.comm.wire.calls = calls
    return spent[2:]


def measure() -> list[dict[str, Any]]:
    """One row a size: medians over repeats of the slowest rank, and their ratio."""
    rows = []
    with Cluster("classroom", RANKS, "ray", timeout_s=120) as cluster:
        for name, nbytes in SIZES.items():
            ranks = cluster.run(program, nbytes, REPEATS, record=False).results
            pairs = [[max(r[i][k] for r in ranks) for k in (0, 1)] for i in range(REPEATS)]
            compared, plain = (median(pair[k] for pair in pairs) for k in (0, 1))
            quick = [sorted(pair[k] for pair in pairs)[REPEATS // 10] for k in (0, 1)]
            rows.append(
                {
                    "gpus": RANKS,
                    "size": name,
                    "compared_ms": round(compared * 1e3, 3),
                    "plain_ms": round(plain * 1e3, 3),
                    "ratio": round(compared / plain, 3),
                    "ratio_of_first_deciles": round(quick[0] / quick[1], 3),  # on a busy machine
                    "goal": GOALS[name],
                }
            )
    return rows
