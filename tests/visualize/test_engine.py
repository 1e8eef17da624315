"""The page's own JavaScript gives Python's times, gaps, paths and bars, on recorded graphs, with every knob.

It runs under node, beside which Chromium must compute the same bits. Nothing here is skipped where node is.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import run_plan
from programs import library_sums, pipeline_of_spans

import glasscluster
import glasscluster.visualize as package
from glasscluster.base.breakdown import ENTRIES, entry_of, listed, tenths
from glasscluster.base.errors import InputError
from glasscluster.sim.recording.events import COMPUTE, PHASES
from glasscluster.sim.recording.packed import load_packed, pack, pack_graph, unpack
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.cost import kinds_of_work
from glasscluster.sim.time.hardware import hardware
from glasscluster.sim.time.network import Cable, build
from glasscluster.sim.time.replay import replay
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.visualize.figures.palette import IDLE_KINDS, kind_of_gap
from glasscluster.visualize.page.assemble import ENGINE
from glasscluster.visualize.page.pack import pack_timeline
from glasscluster.visualize.page.trace import chrome_trace

TEMPLATES = Path(package.__file__).parent / "templates"
ROOT = Path(glasscluster.__file__).parent.parent
MODEL = make_model("tiny", layers=3, hidden=32, seq=16)
TOLERANCE = (
    1e-12  # of the makespan: both sides do the same operations on the same numbers, but for what is packed
)


def recorded(**options: Any) -> Callable[[], Any]:
    """Makes the graph of one training step under a plan."""
    return lambda: run_plan(make_plan(**options), MODEL).graph


def sums(gpu: Any) -> None:
    """A program that only communicates."""
    gpu.comm.all_reduce(torch.empty(1000))


GRAPHS = {
    "buckets": recorded(dp=4, global_batch=8, bucket=2**14),
    "zero-3": recorded(dp=3, zero=3, global_batch=6),
    "tensor": recorded(tp=2, dp=2, zero=1, global_batch=4),
    "overlapped": recorded(tp=2, dp=2, sequence_parallel=True, tp_overlap=True, global_batch=4),
    "pipeline": recorded(pp=3, tp=2, schedule="1f1b", global_batch=5),
    "recomputed": recorded(pp=2, recompute="full", schedule="gpipe", global_batch=4),
    "context": recorded(cp=2, dp=2, zero=2, global_batch=4),
    "offload": recorded(dp=2, zero=1, offload="optimizer", bucket=2**13, global_batch=4),
    "hybrid": recorded(dp=4, zero=2, shard=2, bucket=2**13, global_batch=8),
    "native": lambda: Cluster("classroom", 3, "dry").run(library_sums).graph,
    "one device": recorded(global_batch=2),
    "spans": lambda: Cluster("classroom", 4, "dry").run(pipeline_of_spans, 8, "1f1b").graph,
    "no compute": lambda: Cluster("classroom", 3, "dry").run(sums).graph,
}
KNOBS: list[dict[str, Any]] = [
    {},
    {"bandwidth": 0.25, "latency": 8.0},
    {"flops": 3.0, "slowRank": 1, "slowFactor": 1.7},
    {"kind": "backward", "factor": 2.0, "bandwidth": 1.5},
    {"kind": "dp", "factor": 4.0},
    {"kind": "pp", "factor": 10.0, "latency": 0.1},
    {"kind": "host", "factor": 3.0},
]

# ---- the page's code, under node or in Chromium ------------------------------------------------------------
ANSWER = """async ({ graph, cases }) => {
  const g = await GlassPack.loadPacked(graph);
  const list = (a) => Array.from(a);
  const rows = ({ n, ...columns }) => Array.from({ length: n }, (_, i) =>
    Object.fromEntries(Object.entries(columns).map(([name, column]) => [name, column[i]])));
  const words = { collective: "collective", host: "host", send: "p2p" };
  return cases.map(([hardware, knobs]) => {
    const t = GlassReplay.replay(g, hardware, knobs), b = GlassBarArrays.barArrays(t);
    const names = list(b.kind).map((k) => GlassBarArrays.DRAWN[k]);
    const works = rows(t.communications()).map((w) => ({ ...w, kind: words[g.kinds[g.kind[w.row]]],
      axis: g.axisOf(w.row), op: g.names[g.op[w.row]], bytes: g.bytes[w.row], peer: g.peer[w.row],
      label: g.names[g.label[w.row]] }));
    const gaps = rows(t.allGaps).map((gap) => ({ ...gap, entry: GlassBreakdown.entriesOf(g)[gap.entry],
      axis: gap.axis < 0 ? "" : g.axes[gap.axis] }));
    return { start: list(t.start), end: list(t.end), path: t.criticalPath, kinds: GlassCost.kindsOfWork(g),
      window: t.window, useful: t.useful(), summary: t.summary(), gaps, exposed: t.exposedComm(),
      last_rank: t.lastRank, breakdowns: Array.from({ length: g.ranks }, (_, rank) => t.breakdown(rank)),
      blocks: rows(t.blocks()), works, lanes: list(b.lanePtr), bar_starts: list(b.start),
      bars: names.map((name, i) => [name, b.rank[i], b.start[i], b.end[i],
        b.critical[i], b.events[i], b.flops[i]]) };
  });
}"""
TRACE = """async ({ graph, hardware }) => {
  const g = await GlassPack.loadPacked(graph);
  return GlassTrace.chromeTrace(GlassReplay.replay(g, hardware, {}), hardware.name);
}"""
UNPACK = """async (packed) => {
  const columns = await GlassPack.unpack(packed);
  return Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, Array.from(values)]));
}"""


def source(changed: dict[str, str] | None = None) -> str:
    """The engine as one script; `changed`: other text for some files."""
    return "\n".join((changed or {}).get(name, (TEMPLATES / name).read_text()) for name in ENGINE)


def under_node(script: Path, code: str, function: str, request: Any) -> Any:
    """What `function` of the page's code gives for `request`, by way of JSON."""
    read = "JSON.parse(require('fs').readFileSync(0, 'utf8'))"
    script.write_text(f"{code}\n({function})({read}).then((x) => process.stdout.write(JSON.stringify(x)));")
    node = shutil.which("node")
    assert node is not None
    done = subprocess.run(
        [node, script], input=json.dumps(request), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """`node(function, request)` runs the page's code; a third argument takes the place of that code."""
    script = tmp_path_factory.mktemp("node") / "engine.js"
    return lambda function, request, code=None: under_node(script, code or source(), function, request)


@pytest.fixture(scope="module")
def graphs():
    made = {name: make() for name, make in GRAPHS.items()}
    assert not (made["no compute"].kind == COMPUTE).any()
    return made


# ---- Python's answer ---------------------------------------------------------------------------------------
def in_python(graph, hw, knobs):
    scaled = hw.scaled(**{k: knobs[k] for k in ("bandwidth", "latency", "flops") if k in knobs})
    slow = (
        {knobs["slowRank"]: knobs["slowFactor"]} if knobs.get("slowRank", graph.ranks) < graph.ranks else None
    )
    faster = {knobs["kind"]: knobs["factor"]} if knobs.get("kind") in kinds_of_work(graph) else None
    return replay(graph, scaled, slow_ranks=slow, faster=faster)


def demand_equal(theirs: dict[str, Any], line: Any) -> None:
    """All that the page computed is Python's: words and counts exactly, seconds within rounding."""
    graph, order, place = line.graph, line.graph.canonical, line.graph.place
    slack = TOLERANCE * line.makespan

    def same_seconds(a: Any, b: Any) -> None:
        assert len(a) == len(b)
        assert np.abs(np.array(a, dtype=float) - np.array(b, dtype=float)).max(initial=0) <= slack

    def same_rows(
        mine: list[dict], other: list[dict], exactly: tuple[str, ...], seconds: tuple[str, ...]
    ) -> None:
        assert [[row[key] for key in exactly] for row in other] == [
            [row[key] for key in exactly] for row in mine
        ]
        for key in seconds:
            same_seconds([row[key] for row in mine], [row[key] for row in other])

    same_seconds(line.start[order], theirs["start"])
    same_seconds(line.end[order], theirs["end"])
    assert theirs["path"] == place[line.critical_path].tolist()
    assert theirs["kinds"] == kinds_of_work(graph)
    same_seconds(line.window, theirs["window"])
    same_seconds(line.useful(), theirs["useful"])
    gaps = [{**vars(g), "row": -1 if g.row < 0 else int(place[g.row])} for g in line.all_gaps]
    same_rows(gaps, theirs["gaps"], ("rank", "entry", "axis", "awaited", "row"), ("start", "end"))
    assert theirs["last_rank"] == line.last_rank()
    for rank, other in enumerate(theirs["breakdowns"]):
        mine = line.breakdown(rank)
        assert list(other) == list(mine)
        same_seconds(list(other.values()), list(mine.values()))
        assert abs(sum(other.values()) - theirs["summary"]["makespan_s"]) <= slack
    same_seconds(line.exposed_comm(), theirs["exposed"])
    blocks, count = line.blocks(), ("rank", "phase", "micro_batch", "events", "flops", "critical")
    same_rows(blocks, theirs["blocks"], count, ("start", "end"))
    works = sorted(
        ({**w, "row": int(place[w["row"]])} for w in line.communications()), key=lambda w: w["row"]
    )
    words = ("rank", "row", "kind", "axis", "op", "label", "bytes", "peer", "critical")
    same_rows(works, theirs["works"], words, ("launched", "start", "end"))
    said = line.summary()
    for key, tolerance in (("makespan_s", slack), ("bubble_fraction", TOLERANCE), ("exposed_comm_s", slack)):
        assert theirs["summary"][key] == pytest.approx(said[key], rel=0, abs=tolerance)
    assert (said["bubble_fraction"] is None) == (not graph.pipelined)
    assert theirs["summary"]["breakdown_s"] == theirs["breakdowns"][line.last_rank()]
    # what is drawn: all of these, each lane in order of time
    drawn = [
        (PHASES[b["phase"]], *(b[k] for k in ("rank", "start", "end", "critical", "events", "flops")))
        for b in blocks
    ]
    drawn += [(w["kind"], w["rank"], w["start"], w["end"], w["critical"], 1, 0) for w in works]
    drawn += [(kind_of_gap(g.entry), g.rank, g.start, g.end, False, 0, 0) for g in line.all_gaps]
    mine, other = sorted(drawn), sorted(map(tuple, theirs["bars"]))
    assert [(a[:2], *map(int, a[4:])) for a in mine] == [(b[:2], *map(int, b[4:])) for b in other]
    for at in (2, 3):
        same_seconds([a[at] for a in mine], [b[at] for b in other])
    for first, last in zip(theirs["lanes"], theirs["lanes"][1:], strict=False):
        starts = theirs["bar_starts"][first:last]
        assert starts == sorted(starts)


# ---- equal -------------------------------------------------------------------------------------------------
@pytest.mark.node
@pytest.mark.parametrize("name", list(GRAPHS))
def test_times_gaps_paths_and_bars_equal_python_s_on_other_hardware_and_under_every_knob(node, graphs, name):
    graph = graphs[name]
    machines = [hardware("classroom"), replace(hardware("dgx-a100-80gb"), node_size=2), hardware("dgx-h100")]
    cases = [(hw, knobs) for hw in machines[:2] for knobs in KNOBS] + [(machines[2], {})]
    told = {hw.name: pack_timeline(replay(graph, hw)) for hw in machines}
    answers = node(
        ANSWER, {"graph": pack_graph(graph), "cases": [(told[hw.name], knobs) for hw, knobs in cases]}
    )
    for (hw, knobs), theirs in zip(cases, answers, strict=True):
        demand_equal(theirs, in_python(graph, hw, knobs))


@pytest.mark.node
@pytest.mark.parametrize("name", ["buckets", "pipeline", "zero-3"])
def test_a_replay_on_a_topology_is_the_same_on_the_page_with_and_without_shared_links(node, graphs, name):
    graph = graphs[name]
    hw = replace(hardware("classroom"), topology=build("line", graph.ranks, Cable(1e9, 1e-6, 2e-7)))
    alone, shared = replay(graph, hw), replay(graph, hw, contention=True)
    assert alone.makespan != replay(graph, "classroom").makespan  # the routes are not the machine's own wires
    wider = {"bandwidth": 4.0, "latency": 0.5}
    cases = [(pack_timeline(alone), {}), (pack_timeline(alone), wider), (pack_timeline(shared), {})]
    answers = node(ANSWER, {"graph": pack_graph(graph), "cases": cases})
    for theirs, line in zip(answers, [alone, in_python(graph, hw, wider), shared], strict=True):
        demand_equal(theirs, line)


@pytest.mark.node
def test_a_replay_with_slow_ranks_rendezvous_fp8_or_rates_without_limit_is_the_same_on_the_page(node, graphs):
    graph, free = graphs["pipeline"], hardware("classroom")
    free = replace(
        free,
        gpu=replace(free.gpu, memory_bandwidth=float("inf")),
        intra=replace(free.intra, bandwidth=float("inf")),
    )
    slow = {"slow_ranks": {1: 1.5, 2: 3.0}, "faster": {"backward": 2.0, "pp": 3.0}}
    lines = [replay(graph, "dgx-h100", precision="fp8"), replay(graph, "classroom", **slow)]
    lines += [replay(graph, "classroom", rendezvous=True), replay(graph, free)]
    for line in lines:
        request = {
            "graph": pack_graph(graph, line.replay_options["rendezvous"]),
            "cases": [(pack_timeline(line), {})],
        }
        assert "Infinity" not in json.dumps(request)  # which no browser could read
        demand_equal(node(ANSWER, request)[0], line)


@pytest.mark.node
def test_what_is_packed_is_unpacked_whole_even_large_and_negative(node):
    columns = {
        "a": np.array([], int),
        "b": np.array([5]),
        "c": np.arange(-200, 400, 7),
        "d": np.array([9, -(2**31)]),
    }
    columns |= {"flops": np.array([2**52, -(2**40), 3, 2**33]), "bytes": np.array([2**40, 2**40 + 1, 7])}
    for back in (unpack(pack(columns)), node(UNPACK, pack(columns))):
        assert {name: list(values) for name, values in back.items()} == {
            name: list(v) for name, v in columns.items()
        }


@pytest.mark.node
def test_the_trace_made_in_the_page_is_python_s(node, graphs):
    graph = graphs["tensor"]
    line = replay(graph, "classroom")
    theirs, mine = (
        node(TRACE, {"graph": pack_graph(graph), "hardware": pack_timeline(line)}),
        chrome_trace(line),
    )
    assert theirs["otherData"] == mine["otherData"]
    for event, other in zip(mine["traceEvents"], theirs["traceEvents"], strict=True):
        told = {**event, "id": int(graph.place[event["id"]])} if "id" in event else event
        untimed = [{k: v for k, v in e.items() if k not in ("ts", "dur")} for e in (told, other)]
        assert untimed[0] == untimed[1]
        for key in ("ts", "dur"):
            assert told.get(key, 0) == pytest.approx(other.get(key, 0), abs=2e-6)


@pytest.mark.node
@pytest.mark.browser
@pytest.mark.parametrize("name", ["native", "offload", "overlapped", "pipeline", "spans"])
def test_chromium_computes_the_same_bits_as_node(browser, node, graphs, name):
    graph, hw = graphs[name], replace(hardware("dgx-a100-80gb"), node_size=2)
    cases = [(pack_timeline(replay(graph, hw)), knobs) for knobs in ({}, KNOBS[1], KNOBS[2])]
    request = {"graph": pack_graph(graph), "cases": cases}
    page = browser.new_page()
    names = ", ".join(re.findall(r"^const (Glass\w+) =", source(), re.MULTILINE))
    page.evaluate(f"{source()}; Object.assign(window, {{ {names} }}); undefined")
    in_chromium = page.evaluate(ANSWER, request)
    page.close()
    assert in_chromium == node(ANSWER, request)


# ---- the tests can fail ------------------------------------------------------------------------------------
CHANGES = [
    ("graph.js", 'members[0] + "/" + graph.sequence[i]', "members[0]"),
    ("graph.js", "this.axes[this.axis[row]]", "this.axes[0]"),
    ("hardware.js", "=== node(dst) ? 0 : 1", "=== node(dst) ? 1 : 0"),
    ("hardware.js", "seconds * latency + moving[i] / bandwidth", "seconds * latency + moving[i]"),
    ("cost.js", "hw.launch_s + Math.max(", "hw.launch_s + Math.min("),
    ("cost.js", "graph.axis[i] === axis", "graph.axis[i] !== axis"),
    ("cost.js", "if (native[graph.op[i]])", "if (false)"),
    ("replay.js", "end[match[i]] + latency[i]", "end[match[i]]"),
    ("replay.js", "slowRanks.push([settings.slowRank, settings.slowFactor]);", ""),
    ("graph.js", "kind[i] === KIND.begin", "kind[i] === KIND.send"),
    ("timeline.js", "return this.start[match[row]];", "return this.start[row];"),
    ("timeline.js", "return first === Infinity ? [0, this.makespan]", "return first === Infinity ? [0, 0]"),
    ("timeline.js", '"weight", "recompute"]', '"weight"]'),
    ("critical_path.js", "end[row] === end[best] && row < best", "end[row] === end[best] && row > best"),
    ("critical_path.js", "end[best] < start[row]", "end[best] > start[row]"),
    ("idle.js", "if (launched <= start) break;", "break;"),
    ("idle.js", 'isHost ? "host" :', 'isHost ? "wait" :'),
    ("idle.js", "graph.stages[awaited] !== graph.stages[rank]", "awaited !== rank"),
    ("idle.js", "Math.max(start, timeline.underWay(row))", "timeline.underWay(row)"),
    ("idle.js", 'phase === "recompute" || ', ""),
    ("graph.js", 'axis === "pp" &&', 'axis === "dp" &&'),
    ("graph.js", "members.length > longest.length", "members.length < longest.length"),
    ("timeline.js", "start[i] > start[last[join]]", "start[i] < start[last[join]]"),
    ("timeline.js", "return rank[match[row]];", "return rank[row];"),
    ("breakdown.js", 'ENTRIES.indexOf("host") - 0.5', "-1"),
    ("bars.js", "b.micro_batch[current] === micro_batch", "true"),
    ("bars.js", "lastEnd.get(key) || 0", "0"),
    ("bars.js", "pathWorks.has(work(row))", "false"),
    ("bar_arrays.js", "if (!turns.length) return;", "return;"),
    ("bar_arrays.js", "send: p2p", "send: host"),
]


@pytest.fixture(scope="module")
def examined(graphs):
    """Graphs that between them show every changed line, each with a request and Python's answers."""
    found, hw = [], replace(hardware("dgx-a100-80gb"), node_size=2)
    seen = ("native", "pipeline", "buckets", "hybrid", "overlapped", "recomputed", "offload", "no compute")
    for name in seen:
        graph = graphs[name]
        knobs = [{}, {"bandwidth": 0.25, "slowRank": 1, "slowFactor": 1.7}, {"kind": "dp", "factor": 4.0}]
        told = pack_timeline(replay(graph, hw))
        request = {"graph": pack_graph(graph), "cases": [(told, k) for k in knobs]}
        found.append((request, [in_python(graph, hw, k) for k in knobs]))
    return found


@pytest.mark.node
@pytest.mark.parametrize(("name", "line", "wrong"), CHANGES)
def test_a_changed_line_of_the_page_is_caught(node, examined, name, line, wrong):
    text = (TEMPLATES / name).read_text()
    assert text.count(line) == 1, f"{name} has no longer one line with {line}"
    code = source({name: text.replace(line, wrong)})
    for request, lines in examined:
        try:
            for theirs, mine in zip(node(ANSWER, request, code), lines, strict=True):
                demand_equal(theirs, mine)
        except AssertionError:
            return
    pytest.fail(f"{name} with {wrong} in place of {line} gives what Python gives")


@pytest.mark.node
def test_a_planted_change_in_the_recording_moves_the_page_s_times(node, graphs):
    graph = graphs["pipeline"]
    line, packed = replay(graph, "classroom"), pack_graph(graph)
    columns = unpack(packed)
    on_path = [r for r in line.critical_path if graph.kind[r] == COMPUTE]
    columns["bytes"][graph.place[on_path[0]]] += 10**6
    request = {"graph": {**packed, **pack(columns)}, "cases": [(pack_timeline(line), {})]}
    assert max(node(ANSWER, request)[0]["end"]) > line.makespan * 1.0001


# ---- named alike -------------------------------------------------------------------------------------------
def in_snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda m: "_" + m[1].lower(), name)


def names_of(python: Path) -> set[str]:
    """Functions, classes and constants of a Python file; private ones also without their underscore."""
    found = set()
    for part in ast.walk(ast.parse(python.read_text())):
        if isinstance(part, ast.FunctionDef | ast.ClassDef):
            found |= {part.name, part.name.removeprefix("_")}
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            found.add(part.id)
    return found


def test_every_file_of_the_engine_is_named_as_its_counterpart_and_so_are_its_functions():
    # the sliders as they stand, for which Python has arguments; numbers of entries, for which it has keys
    own = {"replay.js": {"AS_RECORDED"}, "breakdown.js": {"entries_of"}}
    for name in (*ENGINE[:-1],):
        text = (TEMPLATES / name).read_text()
        counterpart = re.search(r"Counterpart: (glasscluster/(?:\w+/)+(\w+)\.py)", text)
        assert counterpart, name
        assert counterpart[2] == name.removesuffix(".js")
        known = names_of(ROOT / counterpart[1]) | own.get(name, set())
        exported = re.search(r"^  return \{ (.*) \};\n\}\)\(\);", text, re.MULTILINE)[1].split(", ")
        methods = re.findall(r"^    (?:get )?(\w+)\([^)]*\) \{", text, re.MULTILINE)
        for function in {*exported, *methods} - {"constructor", "if", "for", "while"}:
            same = function if function[0].isupper() else in_snake_case(function)
            assert same in known, f"{name}: {function} has no counterpart in {counterpart[1]}"
    assert "no counterpart" in (TEMPLATES / ENGINE[-1]).read_text()


def test_the_engine_never_touches_the_page():
    assert not re.search(r"\b(document|window)\.\w", source())


WORDS = """async ({ breakdowns, names, comma }) => ({
  entries: GlassBreakdown.ENTRIES,
  drawn: GlassBarArrays.DRAWN.slice(GlassBarArrays.FIRST_IDLE),
  said: breakdowns.map((breakdown) => GlassBreakdown.listed(breakdown, (key) => names[key], comma)),
})"""


@pytest.mark.node
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_page_lists_python_s_entries_in_its_order_and_says_a_breakdown_in_the_same_words(
    node, graphs, lang
):
    lines = [replay(graph, hw) for graph in graphs.values() for hw in ("classroom", "dgx-h100")]
    breakdowns = [line.breakdown(rank) for line in lines for rank in range(line.graph.ranks)]
    breakdowns += [dict.fromkeys(("compute", "wait", "optimizer"), 1.0), {"compute": 0.0}, {}]
    names = {key: entry_of(key).name.in_(lang) for breakdown in breakdowns for key in breakdown}
    theirs = node(WORDS, {"breakdowns": breakdowns, "names": names, "comma": {"en": ", ", "zh": "、"}[lang]})
    assert theirs["entries"] == list(ENTRIES)
    assert theirs["drawn"] == list(IDLE_KINDS)
    assert theirs["said"] == [listed(breakdown).in_(lang) for breakdown in breakdowns]
    for breakdown in breakdowns[:-2]:
        assert sum(tenths(breakdown).values()) == 1000


def test_a_downloaded_graph_is_the_recorded_one(graphs, tmp_path):
    for name, graph in graphs.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"format": "glasscluster.graph/3", **pack_graph(graph)}))
        back = load_packed(path)
        assert graph.difference(back) is None
        assert back.groups == {
            r: {g: (a, list(m)) for g, (a, m) in gs.items()} for r, gs in graph.groups.items()
        }
        for rank, memory in graph.memory.items():
            for table in ("log", "waits", "before"):
                assert np.array_equal(back.memory[rank][table], memory[table])
            assert back.memory[rank]["named"] == memory["named"]
            assert back.memory[rank]["base"] == memory["base"]
    (tmp_path / "bad.json").write_text('{"format": "glasscluster.graph/3", "columns": 3}')
    with pytest.raises(InputError, match=r"is not a report's graph\.json"):
        load_packed(tmp_path / "bad.json")
