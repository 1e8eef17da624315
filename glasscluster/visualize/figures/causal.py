"""Which rank computes which part of a causal mask: the mask coloured by the rank that has the query, and
below it how much work each rank has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glasscluster.visualize.figures.layout import CELL_AXIS, INK, QUIET_AXIS, plain_layout
from glasscluster.visualize.figures.palette import contrast
from glasscluster.visualize.figures.picture import Picture, trace
from glasscluster.visualize.words import word

CELL, HEAD, GAP, BARS, FOOT = (
    19,
    62,
    74,
    170,
    50,
)  # heights in pixels: a row of the mask, the titles, the mask's axis, the bars, the bars' axis
RAMP = (
    (0.0, (0xF0, 0xE4, 0x42)),
    (0.5, (0x00, 0x9E, 0x73)),
    (1.0, (0x00, 0x2F, 0x5C)),
)  # from light to dark, so that the order survives grey printing


@dataclass(frozen=True)
class Shared:
    """A way to share out a sequence: the owner of each query, from the first to the last, and how many
    query-key pairs every rank computes.
    """

    title: str
    queries: Sequence[int]
    pairs: Sequence[int]


def colours(owners: int) -> list[str]:
    """Return one colour for each owner, from light to dark."""
    return [_between(i / max(owners - 1, 1)) for i in range(owners)]


def _between(place: float) -> str:
    (a, low), (b, high) = RAMP[:2] if place <= 0.5 else RAMP[1:]
    return "#" + "".join(
        f"{round(x + (y - x) * (place - a) / (b - a)):02x}" for x, y in zip(low, high, strict=True)
    )


def causal_figure(ways: Sequence[Shared], lang: str = "en", heading: str = "") -> Picture:
    """Draw the masks side by side (row: query, column: key) with the numbers of the owners, and below each
    mask the work of every rank divided by the mean over ranks.

    With fewer owners than ranks, neighbouring ranks work on the same queries, each on some of the heads.
    """

    figure, top = Picture(), HEAD if heading else HEAD - 34
    tall = CELL * max(len(w.queries) for w in ways)
    height = top + tall + GAP + BARS + FOOT
    most = max(max(w.pairs) / (sum(w.pairs) / len(w.pairs)) for w in ways)
    titles = []
    for i, way in enumerate(ways):
        n, number, bar = len(way.queries), "" if i == 0 else str(2 * i + 1), str(2 * i + 2)
        x = [i / len(ways) + (0.05 if len(ways) > 1 else 0.03), (i + 1) / len(ways) - 0.005]
        if len(ways) == 1:
            x[1] = 0.6
        fill = colours(max(way.queries) + 1)
        figure.add_trace(_mask(way, fill, number, lang))
        figure.add_trace(_work(way, fill, bar, lang))
        low = (BARS + FOOT) / height
        cells: dict[str, Any] = {"tickvals": [], **CELL_AXIS}
        figure.update_layout(
            {
                f"xaxis{number}": {
                    "domain": x,
                    "anchor": f"y{number}",
                    "range": [-0.5, n - 0.5],
                    "title": {"text": word("keys_axis", lang), "standoff": 4},
                    **cells,
                },
                f"yaxis{number}": {
                    "domain": [1 - (top + tall) / height, 1 - top / height],
                    "anchor": f"x{number}",
                    "range": [n - 0.5, -0.5],
                    "title": {"text": word("queries_axis", lang) if i == 0 else "", "standoff": 4},
                    **cells,
                },
                f"xaxis{bar}": {
                    "domain": x,
                    "anchor": f"y{bar}",
                    "title": {"text": word("rank", lang), "standoff": 4},
                    "tickvals": list(range(len(way.pairs))),
                    **QUIET_AXIS,
                },
                f"yaxis{bar}": {
                    "domain": [FOOT / height, low],
                    "anchor": f"x{bar}",
                    "range": [0, most * 1.2],
                    "title": {"text": word("work_over_mean", lang) if i == 0 else "", "standoff": 4},
                    **QUIET_AXIS,
                },
            }
        )
        where = {
            "x": x[0],
            "y": 1 - top / height,
            "xref": "paper",
            "yref": "paper",
            "xanchor": "left",
            "yanchor": "bottom",
        }
        titles.append({**where, "text": f"<b>{way.title}</b>", "showarrow": False})
    figure.update_layout(
        **plain_layout(height, left=36, right=10, top=0, bottom=0, size=15),
        annotations=titles,
        showlegend=False,
    )
    figure.update_layout(uniformtext={"minsize": 9, "mode": "show"}, bargap=0.15)
    if heading:
        figure.update_layout(
            title={"text": heading, "x": 0, "xref": "paper", "y": 1, "pad": {"t": 22}, "font": {"size": 18}}
        )
    return figure


def _mask(way: Shared, fill: list[str], number: str, lang: str) -> Any:
    """Draw a cell for each visible pair; the first cell of a row shows its owner's number."""
    cells = [(q, k) for q in range(len(way.queries)) for k in range(q + 1)]
    owner = [way.queries[q] for q, _ in cells]
    ink = [_ink(fill[o]) for o in owner]
    return trace(
        "bar",
        name=way.title,
        orientation="h",
        base=[k - 0.5 for _, k in cells],
        x=[1] * len(cells),
        y=[q for q, _ in cells],
        width=1,
        xaxis=f"x{number}",
        yaxis=f"y{number}",
        text=[str(o) if k == 0 else "" for o, (_, k) in zip(owner, cells, strict=True)],
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        textfont={"color": ink, "size": 13},
        marker={"color": [fill[o] for o in owner], "line": {"color": "#ffffff", "width": 1}},
        customdata=[
            f"{word('query', lang)} {q}, {word('key', lang)} {k}: {word('rank', lang)} {way.queries[q]}"
            for q, k in cells
        ],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _work(way: Shared, fill: list[str], number: str, lang: str) -> Any:
    """Draw a bar for each rank: its number of pairs divided by the mean over ranks."""
    mean, each = sum(way.pairs) / len(way.pairs), len(way.pairs) // len(fill)
    shares = [p / mean for p in way.pairs]
    return trace(
        "bar",
        name=way.title,
        x=list(range(len(shares))),
        y=[float(f"{s:.6g}") for s in shares],
        xaxis=f"x{number}",
        yaxis=f"y{number}",
        text=[f"{s:.2f}" for s in shares],
        textposition="outside",
        textfont={"color": INK, "size": 13},
        cliponaxis=False,
        marker={"color": [fill[r // each] for r in range(len(shares))], "line": {"color": INK, "width": 1}},
        customdata=[
            f"{word('rank', lang)} {r}: {p:,} {word('pairs', lang)}, {s:.3g} × {word('mean', lang)}"
            for r, (p, s) in enumerate(zip(way.pairs, shares, strict=True))
        ],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _ink(fill: str) -> str:
    return "#ffffff" if contrast("#ffffff", fill) > contrast("#000000", fill) else "#000000"
