"""A graph file can say anything: whatever is wrong with it is named before compiled loops follow its numbers."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from glasscluster import Cluster
from glasscluster.base.errors import InputError
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.recording.packed import FORMAT, load_packed, pack_graph
from glasscluster.sim.time.replay import replay


def program(gpu):
    x = torch.ones(4, 4)
    gpu.comm.all_reduce(x @ x)
    if gpu.rank == 0:
        gpu.comm.send(x, 1)
    if gpu.rank == 1:
        gpu.comm.recv(x, 0)


@pytest.fixture(scope="module")
def graph():
    return Cluster("classroom", 2).run(program).graph


def changed(graph, path, name, index, value):
    """The graph's file with one number changed."""
    graph.save(path)
    with np.load(path) as data:
        arrays = {k: data[k].copy() for k in data.files}
    arrays[name] = arrays[name].astype(np.int64)
    arrays[name][index] = value
    np.savez_compressed(path, **arrays)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("dep_idx", 10**12, "dep_idx of event"),
        ("dep_idx", -5, "dep_idx of event"),
        ("dep_ptr", 10**9, "dep_ptr"),
        ("match", 10**12, "match of event"),
        ("match", -7, "match of event"),
        ("op", 999, "op of event"),
        ("kind", 99, "kind of event"),
        ("rank", 2, "rank of event"),
        ("flops", -1, "flops of event"),
        ("bytes", 1 << 61, "bytes of event"),
        ("peer", 17, "peer of event"),
        ("phase", -1, "phase of event"),
        ("purpose", 5, "purpose of event"),
    ],
)
def test_a_number_that_points_nowhere_is_named(graph, tmp_path, name, value, words):
    changed(graph, tmp_path / "graph.npz", name, len(getattr(graph, name)) // 2, value)
    with pytest.raises(InputError, match=words):
        ExecutionGraph.load(tmp_path / "graph.npz")


def test_dependencies_that_point_forward_are_named(graph, tmp_path):
    row = int(np.flatnonzero(np.diff(graph.dep_ptr))[0])
    changed(graph, tmp_path / "graph.npz", "dep_idx", int(graph.dep_ptr[row]), len(graph) - 1)
    with pytest.raises(InputError, match="stands after it"):
        ExecutionGraph.load(tmp_path / "graph.npz")


def test_events_of_a_lane_follow_each_other(graph, tmp_path):
    """Else they would be at the same time in one lane, and a rank's shares of a step would not add up."""
    busy = np.flatnonzero(graph.lane == graph.lane[len(graph) // 2])
    changed(graph, tmp_path / "graph.npz", "order", int(busy[1]), int(graph.order.max()) + 1)
    with pytest.raises(InputError, match="in a lane, and does not follow it"):
        ExecutionGraph.load(tmp_path / "graph.npz")
    changed(graph, tmp_path / "graph.npz", "order", int(busy[1]), int(graph.order[busy[1]]))
    ExecutionGraph.load(tmp_path / "graph.npz")


def test_a_receive_keeps_its_own_send(graph, tmp_path):
    receives = np.flatnonzero(graph.match >= 0)
    changed(graph, tmp_path / "graph.npz", "match", int(receives[0]), int(graph.match[receives[1]]))
    with pytest.raises(InputError, match="a receive"):
        ExecutionGraph.load(tmp_path / "graph.npz")


def test_a_short_column_is_named(graph, tmp_path):
    graph.save(tmp_path / "graph.npz")
    with np.load(tmp_path / "graph.npz") as data:
        arrays = {k: data[k] for k in data.files}
    np.savez_compressed(tmp_path / "graph.npz", **{**arrays, "flops": arrays["flops"][:-1]})
    with pytest.raises(InputError, match="length of column flops"):
        ExecutionGraph.load(tmp_path / "graph.npz")


def test_the_file_of_a_report_is_looked_at_too(graph, tmp_path):
    whole = {"format": FORMAT, **pack_graph(graph)}
    (tmp_path / "graph.json").write_text(json.dumps(whole))
    assert load_packed(tmp_path / "graph.json").difference(graph) is None
    for key, value in (("ranks", 1), ("names", []), ("data", "AAAA"), ("groups", {})):
        (tmp_path / "graph.json").write_text(json.dumps({**whole, key: value}))
        with pytest.raises(InputError, match="is not a"):
            load_packed(tmp_path / "graph.json")


# Every changed file is refused, or is a graph that replays; a crash of the interpreter fails the test.
MANY = """
import sys, random, numpy as np
from glasscluster.base.errors import InputError
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.time.replay import replay
source, seed, cases = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
draw = random.Random(seed)
with np.load(source) as data:
    whole = {k: data[k] for k in data.files}
columns = [k for k in whole if k != "meta"]
refused = 0
for case in range(cases):
    arrays = {k: v.copy() for k, v in whole.items()}
    for _ in range(draw.choice((1, 1, 1, 3))):
        name = draw.choice(columns)
        arrays[name] = arrays[name].astype(np.int64)
        if len(arrays[name]):
            odd = draw.choice((-1, 0, 1, 7, -(1 << 40), 1 << 31, 1 << 62, len(whole["rank"])))
            arrays[name][draw.randrange(len(arrays[name]))] = odd
    np.savez(source + ".changed.npz", **arrays)
    try:
        timeline = replay(ExecutionGraph.load(source + ".changed.npz"), "classroom")
        assert timeline.makespan >= 0
    except InputError:
        refused += 1
print(refused)
"""


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_no_changed_graph_crashes_the_replay(graph, tmp_path, seed):
    graph.save(tmp_path / "graph.npz")
    cases = 300 if seed == 1 else 3000
    words = [sys.executable, "-c", MANY, str(tmp_path / "graph.npz"), str(seed), str(cases)]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert int(ended.stdout) > cases // 3


def test_a_sound_graph_is_read_as_it_was(graph, tmp_path):
    graph.save(tmp_path / "graph.npz")
    again = ExecutionGraph.load(tmp_path / "graph.npz")
    assert again.difference(graph) is None
    assert replay(again, "classroom").makespan == replay(graph, "classroom").makespan
