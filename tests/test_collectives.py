"""Every algorithm of every operation, for any number of ranks and elements: what torch says, and the bytes that theory says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from glasscluster.sim.cluster import Cluster
from glasscluster.sim.collectives import ALGORITHMS, MODULES, hierarchical
from glasscluster.sim.errors import ScenarioError
from glasscluster.sim.hardware import hardware
from glasscluster.sim.vocabulary import BEGIN, SEND

CASES = [(op, name) for op, algorithms in ALGORITHMS.items() for name in algorithms if name != "native"]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool)
OPS = ("sum", "max", "min", "avg")
REDUCING = ("all_reduce", "reduce_scatter", "reduce")


def given(rank: int, elements: int, dtype: torch.dtype) -> torch.Tensor:
    """Small whole numbers: exact in every dtype, different on every rank."""
    i = torch.arange(elements)
    values = (i * 7 + rank * 5 + (i * rank) % 3) % 11 - 5
    return (values > 0) if dtype == torch.bool else values.to(dtype)


def expected(operation: str, op: str, root: int, n: int, rank: int, elements: int, dtype: torch.dtype) -> tuple[slice, torch.Tensor]:
    """Which part of the buffer is defined on a rank afterwards, and what it holds."""
    every = torch.stack([given(r, elements, dtype) for r in range(n)])
    starts = np.cumsum([0, *(c.numel() for c in torch.tensor_split(every[0], n))])
    mine, whole, nothing = slice(starts[rank], starts[rank + 1]), slice(None), slice(0, 0)
    if operation in REDUCING:
        if dtype == torch.bool:
            total = every.any(0) if op in ("sum", "max", "avg") else every.all(0)
        else:
            total = {"sum": every.sum(0), "avg": every.sum(0), "max": every.amax(0), "min": every.amin(0)}[op].to(dtype)
            if op == "avg":
                total = torch.div(total, n, rounding_mode="trunc") if dtype == torch.int64 else total / n
        where = {"all_reduce": whole, "reduce_scatter": mine, "reduce": whole if rank == root else nothing}[operation]
        return where, total[where]
    owners = torch.repeat_interleave(torch.arange(n), torch.tensor(np.diff(starts)))
    gathered = every[owners, torch.arange(elements)] if elements else every[0]
    if operation == "all_gather":
        return whole, gathered
    if operation == "gather":
        where = whole if rank == root else nothing
        return where, gathered[where]
    if operation == "broadcast":
        return whole, every[root]
    if operation == "scatter":
        return mine, every[root][mine]
    return whole, every[:, mine].reshape(-1)


def call(gpu, operation: str, algorithm: str, op: str, root: int, x: torch.Tensor) -> torch.Tensor:
    """Run one collective; returns the buffer that it ends in."""
    if operation == "all_to_all":
        out = torch.zeros(gpu.size * gpu.comm.chunk(x).numel(), dtype=x.dtype)
        gpu.comm.all_to_all(x, out, algorithm=algorithm)
        return out
    options = {"op": op} if operation in REDUCING else {}
    options |= {"src": root} if operation in ("broadcast", "scatter") else {"dst": root} if operation in ("reduce", "gather") else {}
    getattr(gpu.comm, operation)(x, algorithm=algorithm, **options)
    return x


def all_sizes(gpu, operation: str, algorithm: str) -> list[str]:
    """Every size, dtype and reduction of one algorithm; what went wrong."""
    n, wrong = gpu.size, []
    for elements in (0, 1, n - 1, n, n + 1, 1000):
        for number, dtype in enumerate(DTYPES):
            root = (elements + number) % n
            for op in OPS if operation in REDUCING and elements in (n + 1, 1000) else ("sum",):
                if dtype == torch.bool and op == "avg":
                    continue
                x = call(gpu, operation, algorithm, op, root, given(gpu.rank, elements, dtype))
                where, right = expected(operation, op, root, n, gpu.rank, elements, dtype)
                if not torch.equal(x[where], right):
                    wrong.append(f"rank {gpu.rank}: {elements} {dtype} {op} root {root}")
    return wrong


@pytest.mark.parametrize("n", range(2, 18))
@pytest.mark.parametrize(("operation", "algorithm"), CASES)
def test_every_algorithm_gives_what_torch_gives(operation, algorithm, n):
    results = Cluster("classroom", n, "threads").run(all_sizes, operation, algorithm, record=False).results
    assert [w for wrong in results for w in wrong] == []


def once(gpu, operation: str, algorithm: str, elements: int) -> None:
    call(gpu, operation, algorithm, "sum", 0, torch.ones(elements))


def moving(run) -> float:
    """From launch to the end on the last rank."""
    works = run.timeline.communications()
    return max(w["end"] for w in works) - min(w["launched"] for w in works)


@pytest.mark.parametrize("n", [2, 3, 4, 6, 7, 8, 12, 16])
@pytest.mark.parametrize(("operation", "algorithm"), CASES)
def test_counted_bytes_steps_and_virtual_time_are_the_predicted_ones(operation, algorithm, n):
    elements = 24 * n
    hw = replace(hardware("classroom"), node_size=64) if algorithm != "hierarchical" else hardware("classroom")
    run = Cluster(hw, n, "threads").run(once, operation, algorithm, elements)
    far = {"between": hw.inter} if algorithm == "hierarchical" else {}
    theory = MODULES[algorithm].predict(operation, n, 4 * elements, hw.intra, **far)
    assert sum(run.graph.bytes_sent()) == theory.bytes_total
    assert run.graph.message_chain() == theory.steps
    if theory.time_s is not None:
        launched = run.timeline.start[run.graph.kind == BEGIN]
        assert launched.max() == launched.min()
        assert moving(run) == pytest.approx(theory.time_s, rel=1e-9)
    else:
        assert algorithm in ("tree", "recursive-doubling", "halving-doubling")
        assert n & (n - 1) or operation == "all_gather"


def test_dropping_or_resizing_one_message_breaks_the_count():
    run = Cluster("classroom", 4, "threads").run(once, "all_reduce", "halving-doubling", 96)
    theory = MODULES["halving-doubling"].predict("all_reduce", 4, 384)
    graph = run.graph
    first = int(np.flatnonzero(graph.kind == SEND)[0])
    graph.bytes[first] += 4
    assert sum(graph.bytes_sent()) != theory.bytes_total
    graph.bytes[first] -= 4
    graph.kind[first] = -1
    assert sum(graph.bytes_sent()) != theory.bytes_total


@pytest.mark.parametrize("n", [2, 4, 8, 16])
@pytest.mark.parametrize("algorithm", ["ring", "halving-doubling", "direct", "parameter-server"])
def test_the_bandwidth_optimal_ones_meet_the_lower_bound_on_every_rank(algorithm, n):
    run = Cluster("classroom", n, "threads").run(once, "all_reduce", algorithm, 24 * n)
    assert run.graph.bytes_sent() == [2 * (n - 1) * 24 * 4] * n


def test_the_slow_wire_carries_a_node_s_share_of_a_hierarchical_all_reduce():
    run = Cluster("classroom", 16, "threads").run(once, "all_reduce", "hierarchical", 160)
    graph, (inside, across) = run.graph, hierarchical.traffic(16, 640)
    sends = graph.kind == SEND
    between = sends & (graph.rank // 8 != graph.peer // 8)
    assert int(graph.bytes[between].sum()) == across == 2 * 1 * 640
    assert int(graph.bytes[sends & ~between].sum()) == inside


def test_dry_records_what_threads_record_for_every_algorithm():
    for operation, algorithm in CASES:
        real, dry = (Cluster("classroom", 6, b, memory_bytes=None).run(once, operation, algorithm, 50).graph for b in ("threads", "dry"))
        assert real.difference(dry) is None, (operation, algorithm)


def every_pair(gpu) -> list[str]:
    """All algorithms in turn, in one program."""
    return [f"{op} {name}: {wrong}" for op, name in CASES for wrong in all_sizes(gpu, op, name)]


@pytest.mark.ray
def test_ray_actors_agree_on_every_algorithm():
    with Cluster("classroom", 3, "ray", timeout_s=60) as cluster:
        assert cluster.run(every_pair, record=False).results == [[], [], []]


@pytest.mark.torchrun
def test_torchrun_agrees_on_every_algorithm(tmp_path):
    from test_torchrun import torchrun

    script = tmp_path / "pairs.py"
    tests = Path(__file__).resolve().parent
    script.write_text(
        f"import sys; sys.path.insert(0, {str(tests)!r})\n"
        "from test_collectives import every_pair\n"
        "from glasscluster.sim.cluster import Cluster\n"
        'with Cluster("classroom", 3, "torchrun") as cluster:\n'
        "    results = cluster.run(every_pair, record=False).results\n"
        "    print('RESULT', cluster.leader, results)\n"
    )
    done = torchrun(3, str(script), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "RESULT True [[], [], []]" in done.stdout


def test_what_an_algorithm_cannot_do_is_an_input_error_that_names_what_can():
    with pytest.raises(ScenarioError, match=r"all_to_all has no such algorithm.*direct"):
        Cluster("classroom", 2, "threads").run(once, "all_to_all", "tree", 4)
    with pytest.raises(ScenarioError, match=r"reduce dst = 5.*ranks 0\.\.1"):
        Cluster("classroom", 2, "threads").run(lambda gpu: gpu.comm.reduce(torch.ones(2), dst=5))
