"""The page's replay engine gives Python's times, gaps and paths, on recorded graphs and under every knob."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import run_plan
from programs import library_sums, pipeline_of_spans

import glasscluster.visualize as package
from glasscluster.base.errors import InputError
from glasscluster.sim.recording.events import COMPUTE, PHASES
from glasscluster.sim.recording.packed import load_packed, pack, pack_graph, unpack
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.cost import kinds_of_work
from glasscluster.sim.time.hardware import hardware
from glasscluster.sim.time.network import Cable, build
from glasscluster.sim.time.replay import replay
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.visualize.page.pack import pack_hardware, pack_timeline
from glasscluster.visualize.page.trace import chrome_trace

TEMPLATES = Path(package.__file__).parent / "templates"
MODEL = make_model("tiny", layers=3, hidden=32, seq=16)


GRAPHS = {
    "buckets": lambda: run_plan(make_plan(dp=4, global_batch=8, bucket=2**14), MODEL).graph,
    "zero-3": lambda: run_plan(make_plan(dp=3, zero=3, global_batch=6), MODEL).graph,
    "tensor": lambda: run_plan(make_plan(tp=2, dp=2, zero=1, global_batch=4), MODEL).graph,
    "pipeline": lambda: run_plan(make_plan(pp=3, tp=2, schedule="1f1b", global_batch=5), MODEL).graph,
    "offload": lambda: run_plan(make_plan(dp=2, zero=1, offload="optimizer", bucket=2**13, global_batch=4), MODEL).graph,
    "hybrid": lambda: run_plan(make_plan(dp=4, zero=2, shard=2, bucket=2**13, global_batch=8), MODEL).graph,
    "native": lambda: Cluster("classroom", 3, "dry").run(library_sums).graph,
    "one device": lambda: run_plan(make_plan(global_batch=2), MODEL).graph,
    "spans": lambda: Cluster("classroom", 4, "dry").run(pipeline_of_spans, 8, "1f1b").graph,
}
KNOBS = [
    {},
    {"bandwidth": 0.25, "latency": 8.0},
    {"flops": 3.0, "slowRank": 1, "slowFactor": 1.7},
    {"kind": "backward", "factor": 2.0, "bandwidth": 1.5},
    {"kind": "dp", "factor": 4.0},
    {"kind": "pp", "factor": 10.0, "latency": 0.1},
    {"kind": "host", "factor": 3.0},
]


@pytest.fixture(scope="module")
def graphs():
    return {name: make() for name, make in GRAPHS.items()}


@pytest.fixture(scope="module")
def engine(browser):
    page = browser.new_page()
    page.evaluate((TEMPLATES / "engine.js").read_text() + "; window.GlassEngine = GlassEngine; undefined")
    yield page
    page.close()


PLAY = """async ([packed, hardware, knobs]) => {
  const g = await GlassEngine.unpack(packed);
  const { times, path, bars, summary } = GlassEngine.play(g, hardware, knobs);
  const list = (a) => Array.from(a);
  return { start: list(times.start), end: list(times.end), path, summary, gaps: bars.idle, kinds: GlassEngine.kindsOfWork(g),
    bars: list(bars.kind).map((k, i) => [GlassEngine.DRAWN[k], bars.rank[i], bars.start[i], bars.end[i], bars.critical[i]]) };
}"""


def in_python(graph, hw, knobs):
    scaled = hw.scaled(**{k: knobs[k] for k in ("bandwidth", "latency", "flops") if k in knobs})
    slow = {knobs["slowRank"]: knobs["slowFactor"]} if knobs.get("slowRank", graph.ranks) < graph.ranks else None
    faster = {knobs["kind"]: knobs["factor"]} if knobs.get("kind") in kinds_of_work(graph) else None
    return replay(graph, scaled, slow_ranks=slow, faster=faster)


@pytest.mark.browser
@pytest.mark.parametrize("name", list(GRAPHS))
def test_start_times_gaps_and_paths_equal_python_s_under_every_knob(engine, graphs, name):
    graph = graphs[name]
    packed = pack_graph(graph)
    for hw in (hardware("classroom"), replace(hardware("dgx-a100-80gb"), node_size=2)):
        told = pack_timeline(replay(graph, hw))
        for knobs in KNOBS:
            theirs = engine.evaluate(PLAY, [packed, told, knobs])
            line = in_python(graph, hw, knobs)
            order = graph.canonical
            for mine, other in ((line.start, theirs["start"]), (line.end, theirs["end"])):
                assert np.abs(mine[order] - other).max(initial=0) <= 1e-9 * line.makespan
            assert theirs["path"] == graph.place[line.critical_path].tolist()
            assert theirs["kinds"] == kinds_of_work(graph)
            gaps = [(g.rank, g.cause, g.axis, -1 if g.row < 0 else int(graph.place[g.row])) for g in line.all_gaps]
            assert [(g["rank"], g["cause"], g["axis"], g["row"]) for g in theirs["gaps"]] == gaps
            assert [g["comm"] for g in theirs["gaps"]] == pytest.approx([g.comm for g in line.all_gaps], abs=1e-9 * line.makespan)
            said = line.summary()
            assert theirs["summary"]["bubble"] == pytest.approx(said["bubble_fraction"], abs=1e-9)
            assert theirs["summary"]["exposed"] == pytest.approx(said["exposed_comm_s"], abs=1e-9 * line.makespan)


@pytest.mark.browser
@pytest.mark.parametrize("name", list(GRAPHS))
def test_the_page_draws_the_blocks_and_communications_that_python_draws(engine, graphs, name):
    graph = graphs[name]
    hw = hardware("classroom")
    line = replay(graph, hw)
    theirs = engine.evaluate(PLAY, [pack_graph(graph), pack_hardware(hw, line.precision), {}])["bars"]
    mine = [(PHASES[b["phase"]], b["rank"], b["start"], b["end"], b["critical"]) for b in line.blocks()]
    mine += [(w["kind"], w["rank"], w["start"], w["end"], w["critical"]) for w in line.communications()]
    mine += [("bubble", g.rank, g.start, g.end, False) for g in line.all_gaps if g.length > 0]
    assert len(mine) == len(theirs)
    for a, b in zip(sorted(mine), sorted(map(tuple, theirs)), strict=True):
        assert a[:2] == b[:2]
        assert a[2:4] == pytest.approx(b[2:4], abs=1e-9 * line.makespan)
        assert bool(a[4]) == bool(b[4])


@pytest.mark.browser
def test_a_planted_change_in_the_recording_moves_the_page_s_times(engine, graphs):
    graph, hw = graphs["pipeline"], hardware("classroom")
    packed, told = pack_graph(graph), pack_hardware(hw, "fp32")
    columns = unpack(packed)
    on_path = [r for r in replay(graph, hw).critical_path if graph.kind[r] == COMPUTE]
    columns["bytes"][graph.place[on_path[0]]] += 10**6
    planted = engine.evaluate(PLAY, [{**packed, **pack(columns)}, told, {}])
    assert max(planted["end"]) > replay(graph, hw).makespan * 1.0001


@pytest.mark.browser
def test_the_trace_made_in_the_page_is_python_s(engine, graphs):
    graph, hw = graphs["tensor"], hardware("classroom")
    line = replay(graph, hw)
    theirs = engine.evaluate(
        """async ([packed, hardware]) => { const g = await GlassEngine.unpack(packed);
        return GlassEngine.chromeTrace(g, GlassEngine.longestPath(g, GlassEngine.costs(g, hardware, {})), hardware.name); }""",
        [pack_graph(graph), pack_hardware(hw, "fp32")],
    )
    mine = chrome_trace(line)
    place = graph.place

    def plain(events, rename):
        return [{**e, "id": rename(e["id"])} if "id" in e else e for e in events]

    assert theirs["otherData"] == mine["otherData"]
    for a, b in zip(plain(mine["traceEvents"], lambda i: int(place[i])), theirs["traceEvents"], strict=True):
        assert {k: v for k, v in a.items() if k not in ("ts", "dur")} == {k: v for k, v in b.items() if k not in ("ts", "dur")}
        assert a.get("ts", 0) == pytest.approx(b.get("ts", 0), abs=2e-6)


def test_what_is_packed_is_unpacked_whole_even_large_and_negative():
    columns = {"a": np.array([], int), "b": np.array([5]), "c": np.array([2**52, -(2**40), 3, 2**33]), "d": np.arange(-200, 400, 7)}
    back = unpack(pack(columns))
    assert list(back) == list(columns)
    for name, values in columns.items():
        assert back[name].tolist() == values.tolist()


@pytest.mark.browser
@pytest.mark.parametrize("name", ["buckets", "pipeline", "zero-3"])
def test_a_replay_in_which_messages_shared_links_is_the_same_on_the_page(engine, graphs, name):
    graph = graphs[name]
    cable = Cable(1e9, 1e-6, 2e-7)
    hw = replace(hardware("classroom"), topology=build("line", graph.ranks, cable))
    line = replay(graph, hw, contention=True)
    theirs = engine.evaluate(PLAY, [pack_graph(graph), pack_timeline(line), {}])
    for mine, other in ((line.start, theirs["start"]), (line.end, theirs["end"])):
        assert np.abs(mine[graph.canonical] - other).max() <= 1e-9 * line.makespan


@pytest.mark.browser
def test_a_replay_with_slow_ranks_rendezvous_or_fp8_is_the_same_on_the_page(engine, graphs):
    graph = graphs["pipeline"]
    line = replay(graph, "dgx-h100", precision="fp8")
    theirs = engine.evaluate(PLAY, [pack_graph(graph), pack_timeline(line), {}])
    assert np.abs(line.end[graph.canonical] - theirs["end"]).max() <= 1e-9 * line.makespan
    for asked in ({"slow_ranks": {1: 1.5, 2: 3.0}, "faster": {"backward": 2.0, "pp": 3.0}}, {"rendezvous": True}):
        line = replay(graph, "classroom", **asked)
        theirs = engine.evaluate(PLAY, [pack_graph(graph, line.asked["rendezvous"]), pack_timeline(line), {}])
        assert np.abs(line.start[graph.canonical] - theirs["start"]).max() <= 1e-9 * line.makespan


def test_a_downloaded_graph_is_the_recorded_one(graphs, tmp_path):
    for name, graph in graphs.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"format": "glasscluster.graph/3", **pack_graph(graph)}))
        back = load_packed(path)
        assert graph.difference(back) is None
        assert back.groups == {r: {g: (a, list(m)) for g, (a, m) in gs.items()} for r, gs in graph.groups.items()}
        for rank, memory in graph.memory.items():
            for table in ("log", "waits", "before"):
                assert np.array_equal(back.memory[rank][table], memory[table])
            assert back.memory[rank]["named"] == memory["named"]
            assert back.memory[rank]["base"] == memory["base"]
    (tmp_path / "bad.json").write_text('{"format": "glasscluster.graph/3", "columns": 3}')
    with pytest.raises(InputError, match=r"is not a report's graph\.json"):
        load_packed(tmp_path / "bad.json")
