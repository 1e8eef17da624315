"""Replay on a network, in one run beside SimPy and SimGrid.

    python -m benchmarks.network [--python PYTHON_WITH_SIMPY]

Goals: 5 million sends/s with contention, 100 million events/s without; a ring all-reduce of 1 GiB over 1,024
ranks in 0.4 s. SimPy runs in the given Python (any with `pip install simpy`), SimGrid in C++ where a compiler
finds it (Debian: g++ and libsimgrid-dev); either is left out, with the reason, where it is not there.
Recording and sorting the graph is not part of a replay: it happens once, and `built_s` tells what it took.
"share" is the compiled loop with its tables; "call" is a whole `replay()`, and "first_call" the first of a
graph, which finds its routes too (and loads or compiles the loop, in the process's first graph).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.simgrid import FLAGS
from glasscluster.scenarios.jobs.collective_job import one_collective
from glasscluster.sim.recording.events import SEND
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.contention import replay_shared
from glasscluster.sim.time.cost import costs
from glasscluster.sim.time.hardware import hardware
from glasscluster.sim.time.network import Cable, Topology, build
from glasscluster.sim.time.replay import longest_path, replay

HERE = Path(__file__).parent
MIB, GIB = 1024**2, 1024**3
CABLE = Cable(10e9, 1e-5)
RING = (64, 64 * MIB)  # ranks and bytes of the ring that all three run
REPEATS, FEW = 7, 3
GOALS = {"sends_per_s_with_contention": 5e6, "events_per_s_without": 100e6, "seconds_1024_ranks_1GiB": 0.4}


def seconds(what: Callable[[], Any]) -> float:
    """Wall seconds of a call."""
    begun = time.perf_counter()
    what()
    return time.perf_counter() - begun


def record(operation: str, algorithm: str, ranks: int, nbytes: int) -> tuple[ExecutionGraph, float]:
    """One collective, and the seconds until its graph is sorted. Rank 0 is recorded, then copied for all."""
    begun = time.perf_counter()
    cluster = Cluster("classroom", ranks, "dry", memory_bytes=None, ring_bytes=nbytes)
    graph = cluster.run(one_collective, operation, algorithm, nbytes, {}).graph
    return graph, time.perf_counter() - begun


class Ours:
    """One graph on one topology, and how long its replays took."""

    def __init__(
        self,
        what: str,
        topology: Topology,
        operation: str,
        algorithm: str,
        ranks: int,
        nbytes: int,
    ) -> None:
        self.what = what
        self.graph, self.built_s = record(operation, algorithm, ranks, nbytes)
        self.hw = replace(hardware("classroom"), topology=topology)
        self.cost = costs(self.graph, self.hw, "fp32")
        g, cost = self.graph, self.cost
        self.ways: dict[str, Callable[[], Any]] = {
            "share": lambda: replay_shared(g, topology, cost.duration, history=False),
            "call": lambda: replay(g, self.hw, contention=True),
            "path": lambda: longest_path(g.dep_ptr, g.dep_idx, g.match, cost.duration, cost.latency),
            "path_call": lambda: replay(g, self.hw),
        }
        begun = time.perf_counter()
        self.virtual_s = replay(g, self.hw, contention=True).makespan
        self.first_s = time.perf_counter() - begun
        self.spent: dict[str, list[float]] = {way: [] for way in self.ways}

    def once(self) -> None:
        """Time every way once."""
        for way, call in self.ways.items():
            self.spent[way].append(seconds(call))

    def row(self) -> dict[str, Any]:
        """Medians, and rates made from them."""
        sends = int((self.graph.kind == SEND).sum())
        s = {way: median(times) for way, times in self.spent.items()}
        return {
            "what": self.what,
            "sends": sends,
            "events": len(self.graph),
            "built_s": round(self.built_s, 2),
            "virtual_s": self.virtual_s,
            "with_contention": {
                "share_s": round(s["share"], 5),
                "share_sends_per_s": round(sends / s["share"]),
                "call_s": round(s["call"], 5),
                "call_sends_per_s": round(sends / s["call"]),
                "first_call_s": round(self.first_s, 3),
            },
            "without": {
                "loop_s": round(s["path"], 6),
                "loop_events_per_s": round(len(self.graph) / s["path"]),
                "call_s": round(s["path_call"], 5),
            },
        }


class Theirs:
    """Another simulator on the same ring.

    It is a command that reads `given` and prints one JSON object, or the reason why there is none.
    """

    def __init__(self, command: list[str] | str, given: str = "") -> None:
        self.command, self.given, self.answers = command, given, list[dict[str, Any]]()

    def once(self) -> None:
        """Run it; the first failure is the reason from then on."""
        if isinstance(self.command, str):
            return
        done = subprocess.run(self.command, input=self.given, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it failed without a word"]
            self.command = f"left out: {lines[-1]}"
            return
        self.answers.append(json.loads(done.stdout.splitlines()[-1]))

    def row(self, ours: dict[str, Any]) -> dict[str, Any] | str:
        """Sends a second, ours as a multiple, and the virtual end, which must be ours."""
        if not self.answers:
            return str(self.command)
        rate = self.answers[0]["sends"] / median(a["seconds"] for a in self.answers)
        return {
            "version": self.answers[0]["version"],
            "sends_per_s": round(rate),
            "virtual_s": self.answers[0]["virtual_s"],
            "ours_times_as_fast": round(ours["with_contention"]["share_sends_per_s"] / rate, 1),
            "our_whole_call_times_as_fast": round(ours["with_contention"]["call_sends_per_s"] / rate, 1),
        }


def in_simpy(python: str | None, ranks: int, nbytes: int) -> Theirs:
    """The uncontended ring; SimPy knows no bandwidth that is shared."""
    if python is None:
        return Theirs("left out: no --python with SimPy was given")
    values = (ranks, nbytes, CABLE.bandwidth, CABLE.latency_s)
    return Theirs([python, "-I", str(HERE / "network_simpy.py"), *map(str, values)])


def in_simgrid(program: str, topology: Topology, ranks: int, nbytes: int) -> Theirs:
    """A ring over any topology. `program`: the path of what `compiled` made, or why there is none."""
    if not program.startswith("/"):
        return Theirs(program)
    lines = [f"{ranks} {nbytes} {len(topology.links)}"]
    bandwidths, latencies = topology.bandwidth.tolist(), topology.latency_s.tolist()
    lines += [f"{bandwidth!r} {latency!r}" for bandwidth, latency in zip(bandwidths, latencies, strict=True)]
    for rank in range(ranks):
        way = topology.route(rank, (rank + 1) % ranks)
        lines.append(" ".join(map(str, [len(way), *way])))
    flags = [f"--cfg={flag}" for flag in FLAGS]
    return Theirs([program, *flags, "--log=root.thresh:error"], "\n".join(lines))


def compiled(folder: Path) -> str:
    """The path of network_simgrid.cpp's program, or why there is none."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return "left out: no C++ compiler"
    target = folder.resolve() / "network_simgrid"
    source = str(HERE / "network_simgrid.cpp")
    command = [compiler, "-O2", "-std=c++17", source, "-o", str(target), "-lsimgrid"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return "left out: SimGrid's C++ library is not installed (Debian: libsimgrid-dev)"
    return str(target)


def shuffled(n: int, seed: int) -> list[int]:
    """A random placement."""
    order = list(range(n))
    random.Random(seed).shuffle(order)
    return order


def side_by_side(ours: Ours, others: dict[str, Theirs], repeats: int) -> dict[str, Any]:
    """Everybody in turn, `repeats` times."""
    for _ in range(repeats):
        for each in (ours, *others.values()):
            each.once()
    row = ours.row()
    return {"ours": row, **{name: other.row(row) for name, other in others.items()}}


def measure(python: str | None = None, large: bool = True) -> dict[str, Any]:
    """Rings beside SimPy and SimGrid, uncontended and contended.

    Then ours alone on an all-to-all, and with `large` on a ring of 1,024 ranks.
    """
    found: dict[str, Any] = {"machine": f"{os.cpu_count()} cores, shared with others", "goals": GOALS}
    with tempfile.TemporaryDirectory() as folder:
        program = compiled(Path(folder))
        topology, (ranks, nbytes) = build("ring", RING[0], CABLE), RING
        ours = Ours(f"ring of {ranks}, uncontended", topology, "all_reduce", "ring", ranks, nbytes)
        simgrid = in_simgrid(program, topology, ranks, nbytes)
        others = {"SimPy": in_simpy(python, ranks, nbytes), "SimGrid": simgrid}
        found["same_ring"] = side_by_side(ours, others, REPEATS)
        # no latency: SimGrid pays it before the transfer, which would change who shares a link at what time
        torus = build("torus2d", 256, Cable(CABLE.bandwidth), dims=[16, 16]).placed(shuffled(256, 1))
        ours = Ours("ring of 256 at random on a 16x16 torus", torus, "all_reduce", "ring", 256, 256 * MIB)
        simgrid = in_simgrid(program, torus, 256, 256 * MIB)
        found["contended_ring"] = side_by_side(ours, {"SimGrid": simgrid}, FEW)
    tree = build("fat-tree", 256, CABLE, leaf=16, oversubscription=4)
    ours = Ours("direct all-to-all of 256 on a fat tree 4:1", tree, "all_to_all", "direct", 256, 256 * MIB)
    found["all_to_all"] = side_by_side(ours, {}, FEW)
    if large:
        ring = build("ring", 1024, CABLE)
        ours = Ours("ring of 1,024 and 1 GiB, uncontended", ring, "all_reduce", "ring", 1024, GIB)
        found["large_ring"] = side_by_side(ours, {}, FEW)
    return found


def main() -> None:
    """Print one JSON object."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--python", help="a Python in which `import simpy` works")
    parser.add_argument("--small", action="store_true", help="without the 1,024 ranks (4 GB of memory)")
    asked = parser.parse_args()
    print(json.dumps(measure(asked.python, not asked.small), indent=1))


if __name__ == "__main__":
    main()
