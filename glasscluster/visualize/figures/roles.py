"""Which model works when in an iteration of preference tuning: a lane for each role, drawn from the replayed
recording.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from glasscluster.sim.recording.events import COMPUTE
from glasscluster.visualize.figures.layout import QUIET_AXIS, plain_layout
from glasscluster.visualize.figures.palette import KINDS, Look
from glasscluster.visualize.figures.picture import Picture, trace
from glasscluster.visualize.figures.timeline import time_unit
from glasscluster.visualize.words import word

if TYPE_CHECKING:
    from glasscluster.sim.time.timeline import Timeline

LOOKS: dict[str, Look] = {
    "writes": Look("#009E73", "#000000", "."),
    "judges": KINDS["forward"],
    "trains": KINDS["backward"],
}


def blocks(timeline: Timeline, rank: int, tokens: int) -> list[tuple[str, int, float, float]]:
    """Return (what, step, start, end) for what a rank did: each of the `tokens` steps of generation, then the
    forwards over the answers, then each update.
    """
    graph, blocks_of_rank = timeline.graph, []
    mine = (graph.rank == rank) & (graph.kind == COMPUTE) & (graph.micro_batch >= 0)
    for step in np.unique(graph.micro_batch[mine]).tolist():
        here = mine & (graph.micro_batch == step)
        what = "writes" if step < tokens else "judges" if step == tokens else "trains"
        blocks_of_rank.append(
            (what, int(step), float(timeline.start[here].min()), float(timeline.end[here].max()))
        )
    return blocks_of_rank


def roles_figure(
    timeline: Timeline, lanes: Mapping[str, int], tokens: int, names: Mapping[str, str], lang: str = "en"
) -> Picture:
    """Draw the lanes. `lanes` maps a role's name to its rank, `tokens` is the length of an answer, and
    `names` are the labels of `writes`, `judges` and `trains`.
    """

    factor, unit = time_unit(timeline.makespan)
    figure = Picture()
    for what, look in LOOKS.items():
        bars: dict[str, list[Any]] = {"y": [], "base": [], "x": [], "customdata": []}
        for lane, rank in lanes.items():
            for kind, step, start, end in blocks(timeline, rank, tokens):
                if kind == what:
                    bars["y"].append(lane)
                    bars["base"].append(float(f"{start * factor:.7g}"))
                    bars["x"].append(float(f"{(end - start) * factor:.7g}"))
                    bars["customdata"].append(step + 1 if what == "writes" else step - tokens)
        figure.add_trace(
            trace(
                "bar",
                name=names[what],
                orientation="h",
                marker={
                    "color": look.fill,
                    "pattern": {"shape": look.hatch, "fgcolor": look.ink, "size": 7, "solidity": 0.2},
                    "line": {"color": "#404040" if what == "writes" else "#ffffff", "width": 1},
                },
                hovertemplate=f"%{{y}}: {names[what]} %{{customdata}}<br>%{{x:.4g}} {unit}<extra></extra>",
                **bars,
            )
        )
    title = f"{word('virtual_time', lang)} ({unit}) · {timeline.hardware.name}"
    figure.update_layout(
        **plain_layout(170 + 40 * len(lanes), left=20, right=24, top=20, bottom=96, size=15),
        barmode="overlay",
        bargap=0.25,
    )
    figure.update_xaxes(title={"text": title}, **QUIET_AXIS)
    figure.update_yaxes(
        **QUIET_AXIS, autorange="reversed", automargin=True, categoryorder="array", categoryarray=list(lanes)
    )
    return figure
