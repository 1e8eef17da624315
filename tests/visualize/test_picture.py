"""A picture is what plotly's Figure would be, call by call; plotly's own code is the oracle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import drawn
import plotly.graph_objects as go
import pytest
import torch
from plotly.subplots import make_subplots

from glasscluster.sim.run import Cluster
from glasscluster.visualize.figures import network
from glasscluster.visualize.figures.layout import TEMPLATE, plain_layout
from glasscluster.visualize.figures.picture import Picture, panels, trace
from glasscluster.visualize.figures.plots import lines
from glasscluster.visualize.figures.thumbnail import figure_svg
from glasscluster.visualize.figures.timeline import timeline_figure
from glasscluster.visualize.page.chapters import bilingual, plain
from glasscluster.visualize.page.one_run import write_run_report
from glasscluster.visualize.page.show import show

ROOT = Path(__file__).resolve().parents[2]
BAR = {"name": "a", "x": ["p", "q"], "y": [1, 2], "marker": {"color": "#000000", "line": {"width": 1}}}


def content(figure):
    """Its JSON without the template and what is empty."""
    made = plain(figure)
    made["layout"] = {k: v for k, v in made["layout"].items() if k != "template" and v not in ({}, [])}
    return made


# ---- the same calls, the same figure -----------------------------------------------------------------------
CALLS = {
    "nested": lambda f: f.update_layout(title={"text": "T"}, margin={"l": 5}).update_layout(margin={"r": 6}),
    "underscores": lambda f: f.update_layout(margin_t=7, legend_font_size=9, paper_bgcolor="#ffffff"),
    "by dict": lambda f: f.update_layout({"yaxis": {"range": [0, 3]}}, bargap=0.5),
    "axes": lambda f: f.update_xaxes(title_text="x", title={"standoff": 4}).update_yaxes(type="log"),
    "second axis": lambda f: f.update_layout(yaxis2={"range": [0, 1]}).update_yaxes(showgrid=False),
    "traces": lambda f: f.update_traces(marker={"line": {"color": "#ffffff"}}, width=0.5),
    "taken away": lambda f: f.update_traces(name=None, marker={"color": None}).update_xaxes(range=None),
    "vline": lambda f: f.add_vline(x=3, line={"color": "#000000", "dash": "dash"}),
    "hline": lambda f: f.add_hline(y=2, line_width=2),
    "vrect": lambda f: f.add_vrect(x0=1, x1=2, fillcolor="#eeeeee", opacity=1, layer="below", line_width=0),
    "shape": lambda f: f.add_shape(type="rect", x0=0, x1=1, y0=0, y1=1, line_color="#000000"),
    "notes": lambda f: (
        f.add_annotation(x=1, y=2, text="n", font_size=8)
        .add_annotation(x=2, y=2, text="m")
        .update_annotations(font={"color": "#000000"})
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_does_what_plotly_s_does(name):
    ours, theirs = Picture(trace("bar", **BAR)), go.Figure(go.Bar(**BAR))
    before = json.dumps(BAR)
    assert content(CALLS[name](ours)) == content(CALLS[name](theirs))
    assert json.dumps(BAR) == before, "what a caller gave is not changed"


PANELS = {
    "one row": (1, 2, {"horizontal_spacing": 0.06, "shared_yaxes": True, "subplot_titles": ["a", "b"]}),
    "one column": (3, 1, {"vertical_spacing": 0.2, "subplot_titles": ["a", "b"]}),
    "widths": (1, 3, {"horizontal_spacing": 0.045, "column_widths": [0.46, 0.2, 0.34], "shared_yaxes": True}),
    "grid": (
        4,
        3,
        {"horizontal_spacing": 0.07, "vertical_spacing": 0.09, "subplot_titles": list("abcdefgh")},
    ),
    "shared": (
        2,
        3,
        {
            "horizontal_spacing": 0.04,
            "vertical_spacing": 0.07,
            "shared_xaxes": True,
            "shared_yaxes": True,
            "subplot_titles": list("abcde"),
        },
    ),
}


def close(ours, theirs):
    """Whether two contents are equal, numbers up to what sums in another order leave."""
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(close(ours[k], theirs[k]) for k in theirs)
    if isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(close, ours, theirs))
    return ours == (pytest.approx(theirs, rel=1e-12, abs=1e-15) if isinstance(theirs, float) else theirs)


@pytest.mark.parametrize("name", PANELS)
def test_panels_stand_where_make_subplots_puts_them(name):
    rows, cols, options = PANELS[name]
    ours, theirs = panels(rows, cols, **options), make_subplots(rows, cols, **options)
    for figure, bar in ((ours, trace("bar", **BAR)), (theirs, go.Bar(**BAR))):
        figure.add_trace(bar, row=rows, col=cols)
        figure.add_trace(bar, row=1, col=1)
        figure.update_xaxes(title_text="last row", row=rows).update_yaxes(title_text="first", col=1)
        figure.update_yaxes(type="log", row=rows, col=cols).update_annotations(font_size=14)
    assert close(content(ours), content(theirs))


def test_a_panel_at_another_place_is_noticed():
    ours, theirs = (make(1, 2, horizontal_spacing=0.1) for make in (panels, make_subplots))
    assert close(content(ours), content(theirs))
    ours.layout["xaxis2"]["domain"][0] += 1e-9
    assert not close(content(ours), content(theirs))


# ---- plotly's door ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def run():
    return Cluster("classroom", 2, "dry").run(lambda gpu: gpu.comm.all_reduce(torch.ones(64) * 2))


def test_whoever_asks_a_timeline_gets_a_figure_of_plotly_s_that_looks_as_in_the_page(run):
    figure = run.timeline.figure(lang="zh")
    assert isinstance(figure, go.Figure)
    assert content(figure) == content(timeline_figure(run.timeline, "zh"))
    assert figure.layout.template.to_plotly_json()["layout"] == TEMPLATE["layout"]
    assert figure.update_layout(title_text="mine").layout.title.text == "mine"


def test_a_figure_of_plotly_s_is_accepted_wherever_a_picture_is(run, tmp_path):
    def own(lang):
        return go.Figure(go.Bar(**{**BAR, "name": lang})).update_layout(**plain_layout(300))

    made = bilingual(own)
    assert (made["data"][0]["name"], made["zh"]["data"]) == ("en", [{"name": "zh"}])
    assert made["layout"]["template"]["layout"]["colorway"], "it keeps plotly's template"
    assert figure_svg(plain(own("en"))).startswith("<svg")
    write_run_report(run, tmp_path / "report.html", {"own": own})
    assert show(own("en"), "own", tmp_path / "own.html").stat().st_size > 10_000


# ---- what plotly refuses, and what JSON has not ------------------------------------------------------------
@pytest.mark.parametrize(
    "spoil",
    [
        lambda f: f.update_layout(hieght=300),
        lambda f: f.update_xaxes(rangmode="tozero"),
        lambda f: f.data[0].update(colour="#000000"),
        lambda f: f.data[0]["marker"].update(line={"color": "no colour"}),
        lambda f: f.add_annotation(text="n", yankor="top"),
    ],
)
def test_a_misspelt_property_is_noticed(spoil):
    drawn.judge()
    figure = lines({"a": ([1, 2], [3, 4])}, "x", "y")
    assert drawn.judge() == 1
    figure = lines({"a": ([1, 2], [3, 4])}, "x", "y")
    spoil(figure)
    with pytest.raises(ValueError, match="Invalid"):
        drawn.judge()


def test_no_picture_of_a_page_escapes_the_judge(run, tmp_path, monkeypatch):
    """A misspelt property of a report's figure is noticed, though no test has that figure in hand."""
    drawn.judge()
    monkeypatch.setattr(network, "trace", lambda kind, **given: {**trace(kind, **given), "hight": 1})
    write_run_report(run, tmp_path / "report.html")
    with pytest.raises(ValueError, match="hight"):
        drawn.judge()


def test_what_json_has_not_becomes_null_and_numpy_s_numbers_numbers():
    import numpy as np

    values = [float("nan"), float("inf"), np.float32(0.5), np.int64(3)]
    made = plain(Picture(trace("bar", x=np.arange(4), y=values)))
    assert made["data"] == [{"type": "bar", "x": [0, 1, 2, 3], "y": [None, None, 0.5, 3]}]
    with pytest.raises(TypeError, match="cannot hold"):
        plain(Picture(trace("bar", x=[object()])))


# ---- what a report costs -----------------------------------------------------------------------------------
WRITES = """
import sys
from pathlib import Path
import torch
from glasscluster.sim.run import Cluster
from glasscluster.visualize.figures import network
run = Cluster("classroom", 4, "dry").run(lambda gpu: gpu.comm.all_reduce(torch.ones(64) * 2))
report = run.report(Path("report.html"))
run.timeline.show(Path("timeline.html"))
print("plotly" in sys.modules)

def with_plotly(graph, lang):
    import plotly.graph_objects as go
    return go.Figure()

network.sent_figure = with_plotly
run.report(Path("report.html"))
print("plotly" in sys.modules)
"""


def test_a_report_is_written_without_importing_plotly_and_one_figure_that_imports_it_is_noticed(tmp_path):
    command = [sys.executable, "-c", WRITES]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    told = done.stdout.split()
    assert told[-2:] == ["False", "True"], done.stdout
