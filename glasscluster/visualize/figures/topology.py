"""The network: GPUs, switches and ports, and how much of every link's bandwidth is used in each slice of
time.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from glasscluster.sim.recording.events import SEND
from glasscluster.sim.time.loads import network_of, utilisation
from glasscluster.visualize.figures.layout import INK, plain_layout
from glasscluster.visualize.figures.picture import Picture, trace
from glasscluster.visualize.figures.timeline import time_unit
from glasscluster.visualize.words import word

if TYPE_CHECKING:
    from glasscluster.sim.time.network import Topology
    from glasscluster.sim.time.timeline import Timeline

MOST_LINKS = 600  # more links cannot be distinguished in a picture
MOST_MESSAGES = 400_000
SLICES = 24
# how much of a link is in use -> colour and width, so that grey print shows it too; above 1 only without
# contention
BINS = (
    (0.0, "#dde3ea", 1.5),
    (0.25, "#a9cfe8", 2.5),
    (0.5, "#56B4E9", 4.0),
    (0.75, "#E69F00", 5.5),
    (0.95, "#D55E00", 7.0),
    (math.inf, "#7a1f00", 9.0),
)
KINDS = {
    "gpu": ("square", "#1f2933", 26),
    "switch": ("circle", "#6b7a8c", 18),
    "nic": ("diamond", "#6b7a8c", 16),
}
DIRECTION_GAP = 0.03  # the two directions of a link, side by side, in units of the picture


def load_figure(timeline: Timeline, lang: str = "en") -> Picture | None:
    """Draw every link coloured by its utilisation, over the whole run or in a slice of time chosen with the
    slider. Returns None when there are too many links to read.
    """

    graph = timeline.graph
    if not timeline.makespan or not (graph.kind == SEND).any() or (graph.kind == SEND).sum() > MOST_MESSAGES:
        return None
    network = network_of(timeline)
    if len(network.links) > MOST_LINKS:
        return None
    edges = np.linspace(0.0, timeline.makespan, SLICES + 1)
    shares = np.vstack([utilisation(timeline, edges[[0, -1]]), utilisation(timeline, edges)])
    ends = _segments(network)
    frames = [_traces(share, ends, network) for share in shares]
    figure = Picture()
    for low, (high, colour, width), content in zip(
        (0.0, *(b[0] for b in BINS)), BINS, frames[0][:-1], strict=False
    ):
        line = {"color": colour, "width": width}
        figure.add_trace(
            trace("scatter", **content, mode="lines", line=line, name=_range(low, high), hoverinfo="skip")
        )
    hidden = {
        "mode": "markers",
        "marker": {"size": 12, "opacity": 0},
        "hovertemplate": "%{customdata}<extra></extra>",
        "showlegend": False,
    }
    figure.add_trace(trace("scatter", **frames[0][-1], **hidden))
    for kind, (symbol, colour, size) in KINDS.items():
        nodes = [n for n, d in network.graph.nodes(data=True) if d["kind"] == kind]
        if nodes:
            figure.add_trace(_nodes(network, nodes, symbol, colour, size, lang))
    figure.update_layout(**plain_layout(_height(network), left=16, right=16, top=16, bottom=150))
    figure.update_layout(sliders=[_slider(frames, shares, edges, network, lang)], hovermode="closest")
    figure.update_xaxes(visible=False, fixedrange=True, range=_range_of(network, 0))
    figure.update_yaxes(visible=False, fixedrange=True, range=_range_of(network, 1))
    return figure


def _place(network: Topology, node: Any) -> np.ndarray:
    return np.array(network.graph.nodes[node]["pos"], dtype=float)


def _range_of(network: Topology, axis: int) -> list[float]:
    values = [_place(network, n)[axis] for n in network.graph.nodes]
    margin = max(0.12 * (max(values) - min(values)), 0.5)
    return [min(values) - margin, max(values) + margin]


def _height(network: Topology) -> int:
    wide, high = (b - a for a, b in (_range_of(network, 0), _range_of(network, 1)))
    return int(np.clip(1200 * high / wide, 240, 560)) + 170


def _segments(network: Topology) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Return the lines that draw each link. Its two directions are drawn side by side. A link that wraps
    round is drawn as two ends: one leaves the picture, one enters it.
    """
    wide, high = (b - a for a, b in (_range_of(network, 0), _range_of(network, 1)))
    scale, lines = np.array([wide, high]) * DIRECTION_GAP / 6, []
    for u, v, out in network.graph.edges(data="out"):
        a, b = _place(network, u), _place(network, v)
        along = (b - a if out is None else np.array(out)) / np.array([wide, high])
        norm = float(np.hypot(*along)) or 1.0
        side = np.array([-along[1], along[0]]) / norm * scale
        step = None if out is None else 0.4 * np.array(out)
        lines.append(
            [(a + side, b + side)]
            if step is None
            else [(a + side, a + side + step), (b + side - step, b + side)]
        )
    return lines


def _traces(
    share: np.ndarray, ends: list[list[tuple[np.ndarray, np.ndarray]]], network: Topology
) -> list[dict[str, Any]]:
    """Return x and y of the links in each bin, and last the middles of all links with their hover texts."""
    number = np.searchsorted([b[0] for b in BINS], np.round(share, 9))
    traces: list[dict[str, Any]] = []
    for i in range(len(BINS)):
        x: list[float | None] = []
        y: list[float | None] = []
        for link in np.flatnonzero(number == i).tolist():
            for (ax, ay), (bx, by) in ends[link]:
                x += [round(float(ax), 4), round(float(bx), 4), None]
                y += [round(float(ay), 4), round(float(by), 4), None]
        traces.append({"x": x or [None], "y": y or [None]})
    middles = [a + 0.36 * (b - a) for (a, b), *_ in ends]
    said = [f"{u} → {v}<br>{s:.1%}" for (u, v), s in zip(network.links, share.tolist(), strict=True)]
    traces.append(
        {
            "x": [round(float(m[0]), 4) for m in middles],
            "y": [round(float(m[1]), 4) for m in middles],
            "customdata": said,
        }
    )
    return traces


def _busiest(share: np.ndarray, network: Topology) -> str:
    u, v = network.links[int(np.argmax(share))]
    return f"{u} → {v} {share.max():.0%}"


def _slider(
    frames: list[list[dict[str, Any]]], shares: np.ndarray, edges: np.ndarray, network: Topology, lang: str
) -> dict[str, Any]:
    factor, unit = time_unit(float(edges[-1]))
    numbers = list(range(len(frames[0])))
    steps = []
    for i, frame in enumerate(frames):
        label = (
            word("whole_run", lang)
            if i == 0
            else f"{edges[i - 1] * factor:.3g}–{edges[i] * factor:.3g} {unit}"
        )
        change = {key: [content.get(key) for content in frame] for key in ("x", "y", "customdata")}
        steps.append(
            {
                "label": f"{label} · {_busiest(shares[i], network)}",
                "method": "update",
                "args": [change, {}, numbers],
            }
        )
    return {
        "steps": steps,
        "active": 0,
        "currentvalue": {
            "prefix": word("utilisation", lang) + ": ",
            "font": {"size": 15, "color": INK},
            "xanchor": "left",
        },
        "pad": {"t": 20, "b": 10},
        "len": 0.96,
        "x": 0.02,
        "tickcolor": "#ffffff",
        "font": {
            "color": "rgba(0,0,0,0)"
        },  # the labels of 25 steps would overlap, so only the current one is shown, above the slider
    }


def _range(low: float, high: float) -> str:
    return "0 %" if high == 0 else f"> {low:.0%}" if math.isinf(high) else f"{low:.0%}–{high:.0%}"


def _nodes(network: Topology, nodes: list[Any], symbol: str, colour: str, size: int, lang: str) -> Any:
    """Draw the nodes of one kind; a GPU is labelled with the rank that runs on it."""
    ranks = {network.gpus[number]: rank for rank, number in enumerate(network.place)}
    small = size if len(network.gpus) <= 32 else size * 0.6
    return trace(
        "scatter",
        x=[float(_place(network, n)[0]) for n in nodes],
        y=[float(_place(network, n)[1]) for n in nodes],
        mode="markers+text",
        marker={"symbol": symbol, "color": colour, "size": small, "line": {"color": "#ffffff", "width": 2}},
        text=[str(ranks[n]) if n in ranks else "" for n in nodes],
        textfont={"color": "#ffffff", "size": 13 if len(network.gpus) <= 32 else 9},
        customdata=[f"{n} · {word('rank', lang)} {ranks[n]}" if n in ranks else str(n) for n in nodes],
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
    )
