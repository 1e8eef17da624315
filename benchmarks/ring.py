"""Our ring against gloo's own all_reduce and against a bare loop of messages, in the same Ray actors.

Goal: at most 1.0 of gloo's time from 1 MiB up with 4 ranks. The bare loop (`floor`) sends the ring's messages
with torch.distributed alone: no steps, no recording, no comparison, no names for errors. So ours over the
floor is what our layers cost, and the floor over gloo is what a ring from Python can reach; `uncompared` is
ours without the comparison of calls. They are interleaved, and who goes first changes with each repeat.
Every rank is pinned to one core and runs one thread.
"""

from __future__ import annotations

import os
import time
from statistics import median, quantiles
from typing import Any

from glasscluster.sim.run import Cluster

SIZES = {"4 KiB": (4 * 1024, 201), "1 MiB": (1024**2, 101), "64 MiB": (64 * 1024**2, 15)}  # bytes, repeats
WARM_UP = 3
CANDIDATES = ("ours", "uncompared", "floor", "gloo")
RATIOS = (("ours", "gloo"), ("uncompared", "gloo"), ("ours", "floor"), ("floor", "gloo"))


def floor(x: Any, rank: int, size: int) -> None:
    """Sum `x`, flat [n], over all ranks: the messages of collectives/ring.py, posted and awaited directly."""
    import torch
    import torch.distributed as dist

    chunks = torch.tensor_split(x, size)
    right, left, group = (rank + 1) % size, (rank - 1) % size, dist.group.WORLD
    room = torch.empty_like(chunks[0])
    held = []  # handles that are dropped at once make the rank wait for gloo's thread
    for step in range(size - 1):
        outgoing, incoming = chunks[(rank - step - 1) % size], chunks[(rank - step - 2) % size]
        arrived = room[: incoming.numel()]
        works = [group.recv([arrived], left, 0), group.send([outgoing], right, 0)]
        for work in works:
            work.wait()
        incoming.add_(arrived)
        held = works
    receives = [group.recv([chunks[(rank - step - 1) % size]], left, 0) for step in range(size - 1)]
    for step in range(size - 1):
        send = group.send([chunks[(rank - step) % size]], right, 0)
        receives[step].wait()
        send.wait()
        held = [send]
    del held


def program(gpu: Any, nbytes: int, repeats: int) -> list[dict[str, tuple[float, float]]]:
    """Wall and CPU seconds of each candidate in each repeat, as this rank saw them."""
    import torch
    import torch.distributed as dist

    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[gpu.rank % len(cores)]})
    x, calls = torch.ones(nbytes // 4), gpu.comm.wire.calls
    run = {
        "ours": lambda: gpu.comm.all_reduce(x, algorithm="ring"),
        "uncompared": lambda: gpu.comm.all_reduce(x, algorithm="ring"),
        "floor": lambda: floor(x, gpu.rank, gpu.size),
        "gloo": lambda: dist.all_reduce(x),
    }
    spent: list[dict[str, tuple[float, float]]] = []
    for number in range(repeats + WARM_UP):
        first = number % len(CANDIDATES)
        spent.append({})
        for name in CANDIDATES[first:] + CANDIDATES[:first]:
            x.fill_(1.0)
            gpu.comm.wire.calls = None if name == "uncompared" else calls
            dist.barrier()
            cpu, begun = time.process_time(), time.perf_counter()
            run[name]()
            spent[-1][name] = (time.perf_counter() - begun, time.process_time() - cpu)
            assert float(x.min()) == float(x.max()) == gpu.size, f"{name} gave a wrong sum"
    gpu.comm.wire.calls = calls
    os.sched_setaffinity(0, set(cores))
    return spent[WARM_UP:]


def _row(gpus: int, size: str, ranks: list[list[dict[str, tuple[float, float]]]]) -> dict[str, Any]:
    """Medians over repeats: of the slowest rank's wall time, of all ranks' CPU time, of each repeat's ratios."""
    repeats = range(len(ranks[0]))
    wall = {name: [max(rank[i][name][0] for rank in ranks) for i in repeats] for name in CANDIDATES}
    cpu = {name: [sum(rank[i][name][1] for rank in ranks) for i in repeats] for name in CANDIDATES}
    row: dict[str, Any] = {"gpus": gpus, "size": size}
    for name in CANDIDATES:
        row[f"{name}_ms"] = round(median(wall[name]) * 1e3, 3)
    for above, below in RATIOS:
        ratios = [a / b for a, b in zip(wall[above], wall[below], strict=True)]
        row[f"{above}_over_{below}"] = round(median(wall[above]) / median(wall[below]), 2)
        row[f"{above}_over_{below}_quartiles"] = [round(q, 2) for q in quantiles(ratios, n=4)[::2]]
        row[f"{above}_over_{below}_cpu"] = round(median(cpu[above]) / median(cpu[below]), 2)
    return row


def measure() -> list[dict[str, Any]]:
    """One row for each size and number of ranks."""
    rows = []
    for gpus in (4, 8):
        with Cluster("classroom", gpus, "ray", timeout_s=120) as cluster:
            for size, (nbytes, repeats) in SIZES.items():
                ranks = cluster.run(program, nbytes, repeats, record=False).results
                rows.append(_row(gpus, size, ranks))
    return rows
