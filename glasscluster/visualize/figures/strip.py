"""One layer on one rank, forward and backward, as a strip of bars: matrix products, attention, and the
collectives between them.

    tp          QKV attention out [AR] up GELU down [AR]
    + sequence  [AG] QKV attention out [RS] [AG] up GELU down [RS]

The bars are the events of a replayed recording, compute above and communication below. The time of each strip
starts with its layer. A product is recognised by its FLOPs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from glasscluster.sim.recording.events import BACKWARD, COLLECTIVE, COMPUTE, FORWARD, SEND
from glasscluster.visualize.figures.layout import INK, QUIET_AXIS, plain_layout
from glasscluster.visualize.figures.palette import LAYER, Look
from glasscluster.visualize.figures.picture import Picture, panels, trace
from glasscluster.visualize.words import word

if TYPE_CHECKING:
    from glasscluster.sim.time.timeline import Timeline

COLLECTIVES = {
    "gathers": "all_gather",
    "scatters": "reduce_scatter",
    "reduces": "all_reduce",
}  # part of an operation's name -> what it is called here
SHORT = {"gathers": "AG", "scatters": "RS", "reduces": "AR"}
HEIGHT, LANES = (
    0.42,
    {"compute": 0.22, "comm": -0.22},
)  # height of a bar; distance of the middle of each lane from the strip's line


def layer_strip(
    strips: Sequence[tuple[str, Timeline]],
    layer: int,
    products: Mapping[int, str],
    lang: str = "en",
    rank: int = 0,
) -> Picture:
    """Draw one row for each run: on the left the layer's forward, on the right its backward. `products` maps
    the FLOPs of a whole product to its name.
    """

    titles = [f"<b>{word(phase, lang)}</b>" for phase in ("forward", "backward")]
    figure = panels(
        1, 2, shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=titles, column_widths=[0.36, 0.64]
    )
    for column, phase in ((1, FORWARD), (2, BACKWARD)):
        bars = [
            (row, *bar)
            for row, (_, t) in enumerate(strips)
            for bar in strip_bars(t, layer, phase, rank, products)
        ]
        for kind, look in LAYER.items():
            chosen = [b for b in bars if b[1] == kind]
            if chosen or column == 2:
                figure.add_trace(
                    _trace(kind, look, chosen, lang, column == 2 and any(b[1] == kind for b in bars)),
                    1,
                    column,
                )
        hardware = strips[0][1].hardware.name
        title = word(
            "strip_ms",
            lang,
            phase=word("forward" if column == 1 else "backward", lang).lower(),
            hardware=hardware,
        )
        figure.update_xaxes(title_text=title, rangemode="tozero", row=1, col=column, **QUIET_AXIS)
    figure.update_yaxes(
        tickvals=list(range(len(strips))),
        ticktext=[name for name, _ in strips],
        range=[len(strips) - 0.45, -0.55],
        tickfont={"size": 16, "color": INK},
        automargin=True,
        showgrid=False,
        zeroline=False,
        fixedrange=True,
    )
    figure.update_layout(
        **plain_layout(160 + 110 * len(strips), left=20, right=20, top=40, bottom=104, size=15),
        barmode="overlay",
    )
    figure.update_layout(uniformtext={"minsize": 11, "mode": "hide"}, legend_traceorder="normal")
    return figure


def strip_bars(
    timeline: Timeline, layer: int, phase: int, rank: int, products: Mapping[int, str]
) -> Iterator[tuple[str, str, float, float]]:
    """Yield (kind, text, start, end) for what a rank computes and sends in a layer and phase; times in ms
    from the layer's start.
    """
    g, start, end = timeline.graph, timeline.start, timeline.end
    here = (g.rank == rank) & (g.layer == layer) & (g.phase == phase)
    work = np.flatnonzero(here & (g.kind == COMPUTE) & (end > start))
    bars: list[list[Any]] = []
    for row in work[np.argsort(start[work], kind="stable")].tolist():
        op = g.names[g.op[row]]
        attention = "flash" in op or "softmax" in op or op == "bmm"
        name = None if attention else named(int(g.flops[row]), products)
        kind = "product" if name else "kernel" if attention else "elementwise"
        if bars and bars[-1][0] == kind == "elementwise" and float(start[row]) - bars[-1][3] < 1e-9:
            bars[-1][3] = float(end[row])
        else:
            bars.append([kind, name or "", float(start[row]), float(end[row])])
    for row in np.flatnonzero(
        here & ((g.kind == COLLECTIVE) | ((g.kind == SEND) & (g.sequence < 0)))
    ).tolist():
        op = g.names[g.op[row]]
        kind = next((k for k, part in COLLECTIVES.items() if part in op), "ring_pieces")
        bars.append([kind, SHORT.get(kind, ""), timeline.under_way(row), float(end[row])])
    first = min((bar[2] for bar in bars), default=0.0)
    for kind, text, a, b in bars:
        yield kind, text, (a - first) * 1e3, (b - first) * 1e3


def named(flops: int, products: Mapping[int, str]) -> str | None:
    """Return the name of the product with so many FLOPs. With overlap a product is computed in several
    pieces; then it is the product of which so many FLOPs are the largest piece.
    """
    fits = [(whole // flops, name) for whole, name in products.items() if flops and whole % flops == 0]
    return min(fits)[1] if fits else None


def _trace(kind: str, look: Look, bars: list[Any], lang: str, legend: bool) -> Any:
    lane = LANES["compute" if kind in ("product", "kernel", "elementwise") else "comm"]
    return trace(
        "bar",
        name=word(kind, lang),
        legendgroup=kind,
        showlegend=legend,
        orientation="h",
        base=[float(f"{a:.6g}") for *_, a, _ in bars],
        x=[float(f"{b - a:.6g}") for *_, a, b in bars],
        y=[row - lane for row, *_ in bars],
        width=HEIGHT,
        text=[text for _, _, text, _, _ in bars],
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        constraintext="inside",
        textfont={"size": 14, "color": look.text},
        hovertemplate=f"{word(kind, lang)} %{{text}}<br>%{{x:.4g}} ms<extra></extra>",
        marker={
            "color": look.fill,
            "pattern": {"shape": look.hatch, "fgcolor": look.ink, "size": 7, "solidity": 0.2},
            "line": {"color": "#ffffff", "width": 1},
        },
    )
