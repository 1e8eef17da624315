"""`glass collective` as a person types it, from start to exit: CPU seconds and peak memory, by size.

Goals: a ring of 1,024 ranks in 2 s of CPU beyond the imports, one of 16,384 in 10 s. Beside each command
stand the rows that were replayed, the ranks that they stand for, and the compiled loop alone on those rows.
`imports` is what a process takes that only imports what the command needs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from glasscluster.scenarios.jobs.collective_job import CollectiveJob
from glasscluster.scenarios.jobs.timed_collective import timed
from glasscluster.scenarios.jobs.wires import wires
from glasscluster.sim.time.cost import costs
from glasscluster.sim.time.replay import longest_path

GIB = 1024**3
CABLE = {"bandwidth": "50GB/s", "latency": "500ns"}
RANKS = (64, 1024, 16384)
GOALS_S = {1024: 2.0, 16384: 10.0}
OTHERS = (  # operation, algorithm, topology, ranks: what folds to more roles, and what does not fold
    ("all-reduce", "ring", "torus2d", 1024),
    ("all-reduce", "halving-doubling", "switch", 1024),
    ("all-reduce", "tree", "switch", 1024),
)
IMPORTS = "import glasscluster.scenarios.jobs.collective, numba, networkx, glasscluster.commands.app"
REPEATS = 3


def used(words: list[str]) -> tuple[float, float, str]:
    """CPU seconds and peak megabytes of one process, and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        with said.open("w") as out:
            child = subprocess.Popen(words, cwd=folder, stdout=out, stderr=subprocess.DEVNULL)
            _, _, usage = os.wait4(child.pid, 0)
            child.returncode = 0  # waited for above
        return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, said.read_text()


def inner_loop(operation: str, algorithm: str, topology: str, ranks: int) -> dict[str, Any]:
    """The rows that are replayed, and the median seconds of the compiled loop on them."""
    job = CollectiveJob(operation, algorithm, ranks, GIB, wires(ranks, topology=topology, **CABLE))
    line = timed(job).timeline
    graph, cost = line.graph, costs(line.graph, job.hardware, line.precision)
    spent = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        longest_path(graph.dep_ptr, graph.dep_idx, graph.match, cost.duration, cost.latency)
        spent.append(time.perf_counter() - begun)
    stands_for = 1 if graph.fold is None else graph.fold.shifts.each
    return {"rows": len(graph), "each_for_ranks": stands_for, "loop_s": round(median(spent), 6)}


def measure() -> dict[str, Any]:
    """One row a command."""
    imports, imported_mb, _ = used([sys.executable, "-c", IMPORTS])
    rows = []
    for operation, algorithm, topology, ranks in (
        *(("all-reduce", "ring", "ring", n) for n in RANKS),
        *OTHERS,
    ):
        line = (
            f"collective {operation} --algorithm {algorithm} --gpus {ranks} --size 1GiB --topology {topology}"
        )
        line += " --bandwidth 50GB/s --latency 500ns"
        spent = [
            used([sys.executable, "-m", "glasscluster", *line.split(), "--json"]) for _ in range(REPEATS)
        ]
        said = json.loads(spent[0][2])
        cpu = median(s for s, _, _ in spent)
        row: dict[str, Any] = {"command": f"glass {line}", "cpu_s": round(cpu, 2)}
        row |= {"beyond_imports_s": round(cpu - imports, 2), "peak_mb": round(max(mb for _, mb, _ in spent))}
        row |= {key: said[key] for key in ("time_s", "messages", "roles", "contention")}
        row |= inner_loop(operation, algorithm, topology, ranks)
        if algorithm == topology == "ring" and ranks in GOALS_S:
            row |= {"goal_s": GOALS_S[ranks], "ok": row["beyond_imports_s"] <= GOALS_S[ranks]}
        rows.append(row)
    return {"imports_s": round(imports, 2), "imports_mb": round(imported_mb), "commands": rows}
