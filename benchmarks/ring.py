"""Our ring against gloo's own all_reduce, in the same Ray actors, interleaved.

Goal: at most 1.0 of gloo's time from 1 MiB up. Every rank is pinned to one core and runs one thread.
"""

from __future__ import annotations

import os
import time
from statistics import median
from typing import Any

from glasscluster.sim.run import Cluster

SIZES = {"4 KiB": 4 * 1024, "1 MiB": 1024**2, "64 MiB": 64 * 1024**2}
REPEATS = 11


def program(gpu: Any, nbytes: int, repeats: int) -> list[tuple[float, float]]:
    """Seconds of (our ring, gloo's) in each repeat, as this rank saw them."""
    import torch
    import torch.distributed as dist

    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[gpu.rank % len(cores)]})
    x = torch.ones(nbytes // 4)

    def timed(what: Any) -> float:
        dist.barrier()
        begun = time.perf_counter()
        what()
        return time.perf_counter() - begun

    ours, theirs = (lambda: gpu.comm.all_reduce(x, algorithm="ring")), (lambda: dist.all_reduce(x))
    spent = []
    for number in range(repeats + 2):  # the first two warm up; who goes first alternates
        if number % 2:
            a, b = timed(ours), timed(theirs)
        else:
            b, a = timed(theirs), timed(ours)
        x.fill_(1.0)
        spent.append((a, b))
    os.sched_setaffinity(0, set(cores))
    return spent[2:]


def measure() -> list[dict[str, Any]]:
    """One row a size and N: medians over repeats of the slowest rank, and their ratio."""
    rows = []
    for gpus in (4, 8):
        with Cluster("classroom", gpus, "ray", timeout_s=120) as cluster:
            for name, nbytes in SIZES.items():
                ranks = cluster.run(program, nbytes, REPEATS, record=False).results
                ours = median(max(r[i][0] for r in ranks) for i in range(REPEATS))
                theirs = median(max(r[i][1] for r in ranks) for i in range(REPEATS))
                ratios = sorted(
                    max(r[i][0] for r in ranks) / max(r[i][1] for r in ranks) for i in range(REPEATS)
                )
                rows.append(
                    {
                        "gpus": gpus,
                        "size": name,
                        "ours_ms": round(ours * 1e3, 3),
                        "gloo_ms": round(theirs * 1e3, 3),
                        "ratio": round(ours / theirs, 2),
                        "ratio_quartiles": [
                            round(ratios[REPEATS // 4], 2),
                            round(ratios[-1 - REPEATS // 4], 2),
                        ],
                    }
                )
    return rows
