"""A timeline as a small static SVG, drawn from the event table in plain Python: no browser, no plotly."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from glasscluster.sim.vocabulary import PHASES
from glasscluster.visualize.palette import KINDS

if TYPE_CHECKING:
    from glasscluster.sim.timeline import Timeline

WIDTH, LANE, RANKS = 360, 22, 8


def timeline_svg(timeline: Timeline, title: str = "") -> str:
    """At most eight ranks; compute above, communication below, idle grey."""
    ranks = min(timeline.graph.ranks, RANKS)
    scale = WIDTH / (timeline.makespan or 1.0)
    parts = [f'<rect x="0" y="{r * LANE}" width="{WIDTH}" height="12" fill="{KINDS["bubble"].fill}"/>' for r in range(ranks)]
    for block in timeline.blocks():
        if block["rank"] < ranks:
            parts.append(_rect(block["start"], block["end"], scale, block["rank"] * LANE, 12, KINDS[PHASES[block["phase"]]].fill))
    for work in timeline.communications():
        if work["rank"] < ranks:
            kind = "collective" if work["collective"] else "p2p"
            parts.append(_rect(work["start"], work["end"], scale, work["rank"] * LANE + 13, 6, KINDS[kind].fill))
    label = f"<title>{escape(title)}</title>" if title else ""
    size = f'viewBox="0 0 {WIDTH} {ranks * LANE}" preserveAspectRatio="none" role="img"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{label}{"".join(parts)}</svg>'


def _rect(start: float, end: float, scale: float, y: int, height: int, fill: str) -> str:
    width = max((end - start) * scale, 0.6)
    return f'<rect x="{start * scale:.2f}" y="{y}" width="{width:.2f}" height="{height}" fill="{fill}"/>'
